"""Intervals: Wilson, the paired difference, and a paired bootstrap that never fits a model again.

Here: arithmetic on predictions and indicators. Elsewhere: what is predicted (downstream.py) and matched (overlap.py).
Sources: Wilson (1927); Newcombe (1998), Statistics in Medicine 17:2635, method 10; percentile bootstrap, Efron (1979).
Shapes: H test records, K classes, S seeds, D draws.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesynthdp.evaluation.rows import LEVEL

NUM_DRAWS = 2000
BOOTSTRAP_SEED = 20_260
_BLOCK = 4_000_000
Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Accuracy and macro-F1 of one training set: the value, and its draws."""

    accuracy: float
    macro_f1: float
    recall_K: Floats
    """Mean over seeds of the share of each class that was found."""
    accuracy_D: Floats
    macro_f1_D: Floats
    num_seeds: int = 1


def wilson(successes: float, trials: float, *, level: float = LEVEL) -> Interval:
    """Return Wilson's score interval of a proportion; ``trials`` may be an effective sample size.

    >>> [round(end, 4) for end in wilson(0, 100)]
    [0.0, 0.037]
    """
    if trials <= 0:
        return 0.0, 1.0
    z2 = _quantile(level) ** 2
    share = successes / trials
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (share * (1 - share) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def paired_difference(first: Floats, second: Floats, *, effective_n: float, level: float = LEVEL) -> Interval:
    """Return an interval of ``mean(first) - mean(second)`` for indicators on the same records.

    Newcombe's method 10: Wilson limits of both shares, joined with the correlation of the pairs (a positive one is
    corrected for continuity). Unlike a bootstrap it does not shrink to nothing when no record matches. The values may
    be means of indicators over draws, in [0, 1].
    """
    share_1, share_2 = float(first.mean()), float(second.mean())
    low_1, high_1 = wilson(share_1 * effective_n, effective_n, level=level)
    low_2, high_2 = wilson(share_2 * effective_n, effective_n, level=level)
    spread = float(first.std() * second.std())
    covariance = float(((first - share_1) * (second - share_2)).mean())
    if covariance > 0:
        covariance = max(0.0, covariance - 1 / (2 * effective_n))
    pairs = covariance / spread if spread > 0 else 0.0
    down, up = share_1 - low_1, high_1 - share_1
    down_2, up_2 = share_2 - low_2, high_2 - share_2
    lower = math.sqrt(max(0.0, down**2 - 2 * pairs * down * up_2 + up_2**2))
    upper = math.sqrt(max(0.0, up**2 - 2 * pairs * up * down_2 + down_2**2))
    difference = share_1 - share_2
    return max(-1.0, difference - lower), min(1.0, difference + upper)


def effective_size(cluster_sizes: Sequence[int]) -> float:
    """Return Kish's ``(sum m)^2 / sum m^2``: records that are copies of each other count as one witness.

    >>> effective_size([1, 1, 1, 1]), effective_size([4])
    (4.0, 1.0)
    """
    squares = sum(size**2 for size in cluster_sizes)
    return sum(cluster_sizes) ** 2 / squares if squares else 0.0


def score(
    truth_H: Ints, predicted_SH: Sequence[Ints], *, num_classes: int, num_draws: int = NUM_DRAWS, stream: int = 0
) -> Scores:
    """Score the predictions of S seeds, with a bootstrap over the test records and the seeds on top.

    Every call with the same number of test records and draws resamples the same records, so draws of two training
    sets are paired. ``macro_f1`` is the mean of F1 over the classes that stand among the test records; a class that was
    never predicted counts with 0. A prediction outside ``range(num_classes)`` is wrong and belongs to no class.

    Args:
        truth_H: [H] class of each test record.
        predicted_SH: S arrays [H].
        num_classes: K.
        num_draws: D.
        stream: Separates the draws of seeds of one training set from those of another.
    """
    hits = [_Counts.of(truth_H, predicted, num_classes) for predicted in predicted_SH]
    once = np.ones((len(truth_H), 1), dtype=np.float32)
    points = [counts.evaluate(once) for counts in hits]
    draws = [[counts.evaluate(weights) for counts in hits] for weights in _weights(len(truth_H), num_draws)]
    accuracy_SD = np.array([np.concatenate([block[s][0] for block in draws]) for s in range(len(hits))])
    macro_f1_SD = np.array([np.concatenate([block[s][1] for block in draws]) for s in range(len(hits))])
    picked = np.random.default_rng([BOOTSTRAP_SEED, 1, stream]).integers(len(hits), size=(len(hits), num_draws))
    return Scores(
        accuracy=float(np.mean([accuracy[0] for accuracy, _ in points])),
        macro_f1=float(np.mean([macro_f1[0] for _, macro_f1 in points])),
        recall_K=np.mean([counts.recall() for counts in hits], axis=0),
        accuracy_D=np.take_along_axis(accuracy_SD, picked, axis=0).mean(axis=0),
        macro_f1_D=np.take_along_axis(macro_f1_SD, picked, axis=0).mean(axis=0),
        num_seeds=len(hits),
    )


def percentile(draws_D: Floats, *, level: float = LEVEL) -> Interval:
    """Return the percentile interval of bootstrap draws."""
    low, high = np.quantile(draws_D, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class _Counts:
    """Who is in which class, as sparse indicator matrices [K, H]: a product with weights [H, D] counts a draw."""

    truth: Any
    predicted: Any
    found: Any

    @classmethod
    def of(cls, truth_H: Ints, predicted_H: Ints, num_classes: int) -> "_Counts":
        is_found = truth_H == predicted_H
        return cls(
            _indicator(truth_H, num_classes),
            _indicator(predicted_H, num_classes),
            _indicator(np.where(is_found, truth_H, num_classes), num_classes),
        )

    def evaluate(self, weights_HD: NDArray[np.float32]) -> tuple[Floats, Floats]:
        """Return accuracy [D] and macro-F1 [D]."""
        truth_KD, predicted_KD, found_KD = (
            np.asarray(matrix @ weights_HD, dtype=np.float64) for matrix in (self.truth, self.predicted, self.found)
        )
        is_there_KD = truth_KD > 0
        f1_KD = 2 * found_KD / np.maximum(truth_KD + predicted_KD, 1)
        macro_f1_D = (f1_KD * is_there_KD).sum(axis=0) / is_there_KD.sum(axis=0)
        return found_KD.sum(axis=0) / truth_KD.sum(axis=0), macro_f1_D

    def recall(self) -> Floats:
        """Return the share of each class that was found, [K]; 0 for a class without test records."""
        once = np.ones(self.truth.shape[1], dtype=np.float64)
        truth_K, found_K = self.truth @ once, self.found @ once
        return np.asarray(found_K / np.maximum(truth_K, 1), dtype=np.float64)


def _indicator(classes_H: Ints, num_classes: int) -> Any:
    from scipy.sparse import csr_array

    kept = np.flatnonzero((classes_H >= 0) & (classes_H < num_classes))
    ones = np.ones(len(kept), dtype=np.float32)
    return csr_array((ones, (classes_H[kept], kept)), shape=(num_classes, len(classes_H)))


def _weights(num_records: int, num_draws: int) -> Iterator[NDArray[np.float32]]:
    """Yield how often each record stands in each draw, [H, D] in blocks that fit into memory; always the same."""
    rng = np.random.default_rng([BOOTSTRAP_SEED, 0])
    block = max(1, _BLOCK // num_records)
    for start in range(0, num_draws, block):
        size = min(block, num_draws - start)
        picked = rng.integers(num_records, size=(size, num_records)) + np.arange(size)[:, None] * num_records
        counts = np.bincount(picked.ravel(), minlength=size * num_records)
        yield np.ascontiguousarray(counts.reshape(size, num_records).T, dtype=np.float32)


def _quantile(level: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf((1 + level) / 2)
