"""Is one set of texts varied: distinct n-grams, copies and near copies, the nearest neighbour.

Here: the rows about one set alone, beside real text of the same size. Elsewhere: the formulas (diversity.py,
coverage.py), coverage (fidelity_pairs.py). ``model`` is ``exact`` or ``near`` for ``duplicate_share``, and the encoder
for ``nn_cosine``. Rows about S read synthetic text alone, unless the size of another file cut the sample, or the space
of the encoder was fitted on other files too (tf-idf).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from safesynthdp.evaluation.coverage import nearest_cosines
from safesynthdp.evaluation.diversity import cut_tokens, distinct_n, near_duplicates, token_lists
from safesynthdp.evaluation.encoders import Encoder
from safesynthdp.evaluation.estimates import SYNTHETIC, Estimate, Metric, rows
from safesynthdp.evaluation.fidelity_pairs import MAX_QUADRATIC
from safesynthdp.evaluation.inputs import Corpora
from safesynthdp.evaluation.intervals import effective_size, wilson
from safesynthdp.evaluation.jackknife import Ints, around, clusters, deal_groups, standard_error
from safesynthdp.evaluation.pairs import Pair
from safesynthdp.evaluation.rows import Row, Source
from safesynthdp.records import Records

NN_COSINE = Metric(group="diversity", name="nn_cosine", direction="lower", worst=1.0, compares=False)
DUPLICATES = Metric(group="diversity", name="duplicate_share", direction="lower", worst=1.0, compares=False)
SIZES = (1, 2, 3)
Sets = Mapping[str, Records]


def measure_diversity(
    corpora: Corpora, drawn: Sets, pairs: Mapping[str, Pair], encoder: Encoder, *, max_records: int
) -> list[Row]:
    """Return the rows about each set that was drawn, the holdout left out.

    Args:
        corpora: All records.
        drawn: Role -> records drawn, as many of each; empty if too few were given.
        pairs: The same with their vectors.
        encoder: What made the vectors.
        max_records: The cap on a draw.
    """
    sets = {role: records for role, records in drawn.items() if role != "holdout"}
    if not sets:
        return []
    also = _cut_by(corpora, len(sets[SYNTHETIC]), max_records)
    found = _distinct(sets, also)
    found += rows(DUPLICATES, {r: _share(s, near_duplicates) for r, s in sets.items()}, model="near", also_reads=also)
    cosines = {role: _nearest(pairs[role]) for role in sets}
    fitted: tuple[Source, ...] = ("real", "holdout") if encoder.kind == "tfidf" else ()  # on the texts of all files
    return found + rows(NN_COSINE, cosines, model=encoder.name, also_reads=tuple(dict.fromkeys((*also, *fitted))))


def estimate_of_set(pair: Pair) -> dict[str, Estimate]:
    """Return distinct-1 to 3 and the nearest-neighbour cosine of the second side of a pair."""
    lists = token_lists(pair.other.texts, seed=0)
    found = {f"distinct_{n}": _distinct_estimate(lists, n) for n in SIZES}
    return found | {"nn_cosine": _nearest(pair)}


def _cut_by(corpora: Corpora, size: int, max_records: int) -> tuple[Source, ...]:
    """Return whose number of records decided the size of the sample: it then tells something about that file."""
    if size == min(len(corpora.synthetic), max_records):
        return ()
    return ("real", "holdout")


def _distinct(sets: Sets, also: tuple[Source, ...]) -> list[Row]:
    lists = {role: token_lists(records.texts, seed=0) for role, records in sets.items()}
    totals = {role: sum(map(len, words)) for role, words in lists.items()}
    matched = min(totals.values())
    reads = also if matched == totals[SYNTHETIC] else tuple(dict.fromkeys((*also, "real")))
    cut = {role: cut_tokens(words, matched) for role, words in lists.items()}
    found = list[Row]()
    for n in SIZES:
        metric = Metric(group="diversity", name=f"distinct_{n}", direction="higher", worst=0.0, compares=False)
        found += rows(metric, {role: _distinct_estimate(words, n) for role, words in cut.items()}, also_reads=reads)
    return found


def _distinct_estimate(lists: Sequence[list[str]], n: int) -> Estimate:
    value, size = distinct_n(lists, n), len(lists)
    if value is None:
        return Estimate(value=None, n=size, reason=f"no text has {n} words")
    groups = deal_groups(clusters([" ".join(words) for words in lists]))
    low, high = around(value, _error_of_distinct(lists, groups, n))
    return Estimate(value=value, low=low, high=high, n=size)


def _error_of_distinct(lists: Sequence[list[str]], group_N: Ints, n: int) -> float:
    """Return the jackknife standard error from how often each n-gram stands in each group, [V, G]."""
    number = dict[tuple[str, ...], int]()
    grams = [(tuple(w[i : i + n]), g) for w, g in zip(lists, group_N, strict=True) for i in range(len(w) - n + 1)]
    found = np.array([(number.setdefault(gram, len(number)), group) for gram, group in grams], dtype=np.intp)
    names = np.unique(group_N)
    counts_VG = np.zeros((len(number), len(names)))
    np.add.at(counts_VG, (found[:, 0], np.searchsorted(names, found[:, 1])), 1)
    whole_V = counts_VG.sum(axis=1)

    def measure(left_out: tuple[int, ...]) -> list[float]:
        kept_V = whole_V - counts_VG[:, list(left_out)].sum(axis=1)
        return [float((kept_V > 0).sum() / max(kept_V.sum(), 1.0))]

    return float(standard_error(measure, range(len(names)))[0])


def _share(records: Records, find: Callable[[Sequence[str]], np.ndarray[tuple[int], np.dtype[np.bool_]]]) -> Estimate:
    """Return a share of the first records, with Wilson's interval at the number of distinct texts."""
    texts = records.texts[:MAX_QUADRATIC]
    is_found = find(texts)
    value = float(is_found.mean())
    witnesses = effective_size(np.bincount(clusters(texts)).tolist())
    low, high = wilson(value * witnesses, witnesses)
    return Estimate(value=value, low=low, high=high, n=len(texts))


def _nearest(pair: Pair) -> Estimate:
    pair = pair.first(MAX_QUADRATIC)
    vectors = pair.other_ND
    if len(vectors) < 3:
        return Estimate(value=None, n=len(vectors), reason="fewer than three texts")
    value = float(nearest_cosines(vectors).mean())
    groups = deal_groups(clusters(pair.other.texts))
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1.0)

    def measure(left_out: tuple[int, ...]) -> list[float]:
        kept = np.flatnonzero(~np.isin(groups, left_out))
        return [float(cosines[np.ix_(kept, kept)].max(axis=1).mean()) if len(kept) > 1 else 1.0]

    error = float(standard_error(measure, np.unique(groups).tolist())[0])
    low, high = around(value, error, low=-1.0)
    return Estimate(value=value, low=low, high=high, n=len(vectors))
