"""Does the nearest real record of a synthetic text lie among training records more often than by chance?

Here: nearest neighbours, and the share of them in T'. Elsewhere: the other signs of memorisation (memorisation.py). Of
T and of H equally many records take part, so .5 means no sign, whatever the texts are like. Similarity is the cosine
of an encoder's vectors, or of tf-idf whose frequencies are those of S alone: nothing favours T or H. A share near .5
proves nothing: where T' is a small part of T, even a verbatim copy of T stays close to it, and the floor says how
close. Shapes: P probes, Q real records, D draws of T'.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesynthdp.evaluation.downstream import Embed
from safesynthdp.evaluation.inputs import Corpora
from safesynthdp.evaluation.intervals import effective_size, wilson
from safesynthdp.evaluation.rows import Row
from safesynthdp.evaluation.training_sets import subsamples
from safesynthdp.records import canonical_text

NUM_DRAWS = 20
POOL_FACTOR = 2
"""T' is drawn from a random part of T that is at most this many times as large as the cap."""
NEAREST_SEED = 7_220
NUM_FEATURES = 2**18
MAX_CHARACTERS = 8_000
_TIE = 1e-6
Floats = NDArray[np.float64]
Similarities = NDArray[np.float32]


def measure_nearest(corpora: Corpora, *, max_records: int, embed: Embed | None = None) -> list[Row]:
    """Return the row ``nearest_in_train``, or none if a side has too few records to be halved."""
    synthetic, holdout, copies = (
        subsamples(records, max_records, seeds=1, stream=stream)[0].texts
        for records, stream in ((corpora.synthetic, 11), (corpora.holdout, 12), (corpora.real, 13))
    )
    pool = subsamples(corpora.real, POOL_FACTOR * max_records, seeds=1, stream=14)[0].texts
    if min(len(holdout), len(pool)) < 2:
        return []
    vectors: Any = _tfidf_of(synthetic) if embed is None else embed
    made, heldout, trained, copy = (vectors(texts) for texts in (synthetic, holdout, pool, copies))
    half = len(holdout) // 2
    found = shares_in_train(_cosines(made, trained), _cosines(made, heldout))
    fresh = shares_in_train(_cosines(heldout[:half], trained), _cosines(heldout[:half], heldout[half:]))
    copied = shares_in_train(_cosines(copy, trained), _cosines(copy, heldout))
    value = float(found.mean())
    witnesses = effective_size(list(Counter(canonical_text(text) for text in synthetic).values()))
    low, high = wilson(value * witnesses, witnesses)
    return [
        Row(
            group="memorisation", name="nearest_in_train", train_on="real_sample", value=value, low=low, high=high,
            n=len(synthetic), seeds=NUM_DRAWS, direction="half", reads=("synthetic", "real", "holdout"),
            ceiling=float(fresh.mean()), floor=float(copied.mean()),
        )
    ]  # fmt: skip


def shares_in_train(to_train_PQ: Similarities, to_holdout_PH: Similarities) -> Floats:
    """Return for each probe the share of draws in which its nearest record lies in T'; a tie counts half, [P].

    Each draw takes equally many random columns of both.
    """
    size = min(to_train_PQ.shape[1], to_holdout_PH.shape[1])
    total = np.zeros(len(to_train_PQ), dtype=np.float64)
    for draw in range(NUM_DRAWS):
        rng = np.random.default_rng([NEAREST_SEED, draw])
        best = [
            side[:, np.sort(rng.choice(side.shape[1], size=size, replace=False))].max(axis=1)
            for side in (to_train_PQ, to_holdout_PH)
        ]
        closer = best[0] - best[1]
        total += np.where(np.abs(closer) <= _TIE, 0.5, closer > 0)
    return total / NUM_DRAWS


def _cosines(first: Any, second: Any) -> Similarities:
    """Return the products of rows of length 1, dense or sparse."""
    product = first @ second.T
    return np.asarray(product.toarray() if hasattr(product, "toarray") else product, dtype=np.float32)


def _tfidf_of(synthetic: Sequence[str]) -> Any:
    """Return a function from texts to sparse vectors of length 1, hashed, with the idf of the synthetic texts."""
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    options: dict[str, Any] = {"n_features": NUM_FEATURES, "alternate_sign": False, "norm": None}
    hashing: Any = HashingVectorizer(token_pattern=r"\w+", ngram_range=(1, 2), **options)

    def counts(texts: Sequence[str]) -> Any:
        return hashing.transform([text[:MAX_CHARACTERS] for text in texts]).astype(np.float32)

    weigh = TfidfTransformer(sublinear_tf=True).fit(counts(synthetic))
    return lambda texts: weigh.transform(counts(texts))
