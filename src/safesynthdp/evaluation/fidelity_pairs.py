"""What one pair (holdout, other text) gives: two-sample AUC, divergences, lengths, coverage.

Here: what each number is called, and the number with its interval on one pair. Elsewhere: the formulas (c2st.py,
mauve.py, frechet.py, coverage.py, form.py), which pairs there are and their rows (fidelity.py, fidelity_labels.py).
Shapes: N texts a side, K buckets.
"""

import numpy as np
from numpy.typing import NDArray

from safesynthdp.evaluation.auc import Auc
from safesynthdp.evaluation.c2st import judge_on_embeddings, judge_on_words
from safesynthdp.evaluation.coverage import NEIGHBOURS, covered
from safesynthdp.evaluation.estimates import Estimate, Metric
from safesynthdp.evaluation.form import Floats, ks_distance, ks_interval
from safesynthdp.evaluation.frechet import error_of_distance, frechet_distance
from safesynthdp.evaluation.intervals import effective_size, wilson
from safesynthdp.evaluation.jackknife import around, clusters, standard_error
from safesynthdp.evaluation.mauve import TEXTS_PER_BUCKET, divergence, quantise
from safesynthdp.evaluation.pairs import Pair

DIVERGENCES = ("mauve", "mauve_star", "frontier_integral")
MAX_QUADRATIC = 2_000
NEIGHBOUR_INFLATION = 1.5
C2ST = Metric(group="two_sample", name="c2st_auc", direction="half", worst=1.0)
FRECHET = Metric(group="divergence", name="frechet", direction="lower", worst=None)
LENGTH = Metric(group="form", name="length_ks", direction="lower", worst=1.0)
BITS = Metric(group="form", name="bits_per_byte", direction="lower", worst=1.0)
MEAN_BITS = Metric(group="form", name="bits_per_byte", direction="lower", worst=None, compares=False)
COVERAGE = Metric(group="diversity", name="coverage", direction="higher", worst=0.0)
OF_DIVERGENCE = {
    "mauve": Metric(group="divergence", name="mauve", direction="higher", worst=0.0),
    "mauve_star": Metric(group="divergence", name="mauve_star", direction="higher", worst=0.0),
    "frontier_integral": Metric(group="divergence", name="frontier_integral", direction="lower", worst=1.0),
}


def two_sample(pair: Pair, *, on: str) -> Estimate:
    """Return the C2ST AUC ``on`` embeddings, tfidf (words and pairs of words) or words (their order unseen)."""
    real, other = pair.real.texts, pair.other.texts
    found: Auc | None
    if on == "embeddings":
        found = judge_on_embeddings(real, other, pair.real_ND, pair.other_ND)
    else:
        found = judge_on_words(real, other, pairs=on == "tfidf")
    if found is None:
        return Estimate(value=None, n=len(pair), reason="fewer than two distinct texts on a side")
    return Estimate(value=found.value, low=found.low, high=found.high, n=found.num_tested // 2)


def divergences(pair: Pair, *, buckets: int, seeds: int) -> dict[str, Estimate]:
    """Return MAUVE, MAUVE* and the frontier integral: mean over k-means seeds, jackknife and seed spread together."""
    size = len(pair)
    if size < TEXTS_PER_BUCKET * buckets:
        reason = (
            f"{size} texts a side are too few for {buckets} buckets ({TEXTS_PER_BUCKET} a bucket are needed); "
            f"give more texts or --mauve_buckets {max(2, size // TEXTS_PER_BUCKET)}"
        )
        return dict.fromkeys(DIVERGENCES, Estimate(value=None, n=size, reason=reason))
    groups = pair.groups()
    bucket_lists = [quantise(pair.real_ND, pair.other_ND, buckets=buckets, seed=seed) for seed in range(seeds)]
    found = [_divergence(chosen, size, groups, (), buckets) for chosen in bucket_lists]
    error_3 = standard_error(
        lambda left_out: _divergence(bucket_lists[0], size, groups, left_out, buckets),
        np.union1d(*groups).tolist(),
    )
    estimates = dict[str, Estimate]()
    for column, name in enumerate(DIVERGENCES):
        values = np.array([row[column] for row in found])
        spread = float(values.var(ddof=1)) / seeds if seeds > 1 else 0.0
        low, high = around(float(values.mean()), float(np.hypot(error_3[column], np.sqrt(spread))))
        estimates[name] = Estimate(value=float(values.mean()), low=low, high=high, n=size, seeds=seeds)
    return estimates


def frechet(pair: Pair, *, corrected: bool = True) -> Estimate:
    """Return the Frechet distance of the embeddings, with its jackknife interval.

    Args:
        pair: Both sides.
        corrected: Take off what the jackknife counts twice; without it the interval is wider, and found much sooner.
    """
    value = frechet_distance(pair.real_ND, pair.other_ND)
    error = error_of_distance(pair.real_ND, pair.other_ND, pair.groups(), corrected=corrected)
    low, high = around(value, error, high=np.inf)
    return Estimate(value=value, low=low, high=high, n=len(pair))


def coverage(pair: Pair) -> Estimate:
    """Return the share of holdout texts whose 5-nearest-neighbour ball holds another text.

    Texts share neighbours, so they are not independent: between equal sets the variance is about 1.4 times that of a
    share of as many independent records (measured on 384 dimensions). The interval is Wilson's at two thirds of the
    number of distinct texts of the smaller side.
    """
    pair = pair.first(MAX_QUADRATIC)
    if len(pair) <= 2 * NEIGHBOURS:
        return Estimate(value=None, n=len(pair), reason=f"fewer than {2 * NEIGHBOURS + 1} texts a side")
    value = float(covered(pair.real_ND, pair.other_ND).mean())
    sides = (pair.real.texts, pair.other.texts)
    witnesses = min(effective_size(np.bincount(clusters(texts)).tolist()) for texts in sides) / NEIGHBOUR_INFLATION
    low, high = wilson(value * witnesses, witnesses)
    return Estimate(value=value, low=low, high=high, n=len(pair))


def distribution_distance(real: Floats, other: Floats) -> Estimate:
    """Return the Kolmogorov-Smirnov distance of two samples; values that are not finite are left out."""
    real, other = real[np.isfinite(real)], other[np.isfinite(other)]
    size = min(len(real), len(other))
    if not size:
        return Estimate(value=None, n=0, reason="no text on a side")
    value = ks_distance(real, other)
    low, high = ks_interval(value, len(real), len(other))
    return Estimate(value=value, low=low, high=high, n=size)


def _divergence(
    found: NDArray[np.intp],
    size: int,
    groups: tuple[NDArray[np.intp], NDArray[np.intp]],
    left_out: tuple[int, ...],
    buckets: int,
) -> list[float]:
    """Return the three divergences of the histograms, without some groups."""
    sides = (found[:size], found[size:])
    kept = [side[~np.isin(group, left_out)] for side, group in zip(sides, groups, strict=True)]
    if not all(len(side) for side in kept):
        return [0.0, 0.0, 1.0]  # one side is a single text and its copies
    value = divergence(*(np.bincount(side, minlength=buckets) for side in kept))
    return [value.mauve, value.mauve_star, value.frontier_integral]
