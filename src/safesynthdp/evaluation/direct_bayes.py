"""Naive Bayes with differential privacy: one noisy table of word counts, and everything after it for free.

Here: the mechanism, its sensitivity and its noise. Elsewhere: the words (hashed_words.py), the comparison it stands in
(direct.py). Source of the noise: Balle and Wang (2018), arXiv:1805.06530, theorem 8. Shapes: N records, F features, K
classes, U units.

A record adds to the block of its class: its binary word vector scaled to L2 norm 1, and .5 in a coordinate that counts
the class. Its contribution has norm sqrt(1 + .25) = 1.118, and a user's, the mean of its records' contributions, has
no more. Contributions are nowhere negative, so two of them differ by at most sqrt(2) times that: 1.581.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesynthdp.errors import ConfigError
from safesynthdp.privacy.losses import Adjacency
from safesynthdp.privacy.randomness import StepKeys, normals

CLASS_COORDINATE = 0.5
SMOOTHING_MASS = 2048
"""Pseudo-counts of a class, shared by its features: .5 each at 2^12 features, .125 each at 2^14."""
NOISE_DOMAIN = "direct/naive_bayes"
_ROUNDING = 1e-9
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class NaiveBayesMechanism:
    """A table of K (F + 1) sums over the records, with one draw of Gaussian noise."""

    epsilon: float
    delta: float
    adjacency: Adjacency

    @property
    def sensitivity(self) -> float:
        """Largest L2 distance of the tables of neighbours; sums of float64 are charged with a margin of 1e-9."""
        norm = math.sqrt(1 + CLASS_COORDINATE**2) * (1 + _ROUNDING)
        return norm * (math.sqrt(2) if self.adjacency == "replace" else 1)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise in every cell."""
        return self.sensitivity * analytic_gaussian(epsilon=self.epsilon, delta=self.delta)

    def release(self, table_KF: Floats, *, keys: StepKeys) -> Floats:
        """Return the table with noise, [K, F + 1]; ``keys`` must be used for this one table."""
        drawn = normals(keys.noise, domain=NOISE_DOMAIN, step=0, tensor=0, count=table_KF.size)
        return table_KF + self.noise_std * drawn.reshape(table_KF.shape)


def analytic_gaussian(*, epsilon: float, delta: float) -> float:
    """Return the least sigma for which noise N(0, sigma^2) on sensitivity 1 is (epsilon, delta)-DP.

    delta(sigma) = Phi(1 / (2 sigma) - epsilon sigma) - e^epsilon Phi(-1 / (2 sigma) - epsilon sigma), which falls as
    sigma grows; the answer is on the safe side of the root to 1e-12.

    >>> [round(analytic_gaussian(epsilon=e, delta=1e-5), 3) for e in (1, 2, 4, 8)]
    [3.731, 1.994, 1.081, 0.6]
    """
    if not (0 < epsilon < math.inf and 0 < delta < 1):
        raise ConfigError(
            f"dp_direct_epsilon={epsilon} at delta={delta} means nothing; give epsilon > 0, 0 < delta < 1"
        )
    low, high = 0.0, 1.0
    while _delta(high, epsilon) > delta:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _delta(middle, epsilon) > delta else (low, middle)
    return high


def count_table(features_NF: Any, classes_N: Ints, units: Sequence[Sequence[int]], num_classes: int) -> Floats:
    """Return the sums without noise, [K, F + 1]; the last column counts classes.

    A record whose class is outside ``range(num_classes)`` adds nothing: the classes are a public list.

    Args:
        features_NF: Sparse, rows of L2 norm at most 1 and nowhere negative.
        classes_N: [N] class of each record.
        units: U lists of the positions of a unit's records, which share one contribution.
        num_classes: K.
    """
    from scipy.sparse import csr_array

    share_N = np.zeros(len(classes_N), dtype=np.float64)
    for members in units:
        share_N[list(members)] = 1 / len(members)
    known = np.flatnonzero((classes_N >= 0) & (classes_N < num_classes))
    weights_KN = csr_array((share_N[known], (classes_N[known], known)), shape=(num_classes, len(classes_N)))
    counts_K1 = CLASS_COORDINATE * np.asarray(weights_KN.sum(axis=1), dtype=np.float64).reshape(-1, 1)
    return np.hstack([(weights_KN @ features_NF).toarray(), counts_K1])


def classify(table_KF: Floats, features_MF: Any) -> NDArray[np.intp]:
    """Return the class of each test record, [M], by multinomial naive Bayes on the noisy sums; post-processing.

    Cells are clipped at 0 and smoothed; a class whose count was lost in the noise keeps a share of one record.
    """
    counts_KF, classes_K = np.maximum(table_KF[:, :-1], 0), np.maximum(table_KF[:, -1] / CLASS_COORDINATE, 1)
    smooth_KF = counts_KF + SMOOTHING_MASS / counts_KF.shape[1]
    log_theta_KF = np.log(smooth_KF / smooth_KF.sum(axis=1, keepdims=True))
    scores_MK = (features_MF != 0).astype(np.float64) @ log_theta_KF.T + np.log(classes_K / classes_K.sum())
    return np.asarray(scores_MK.argmax(axis=1), dtype=np.intp)


def _delta(sigma: float, epsilon: float) -> float:
    """Return the delta of sigma, with the product of a large and a small number taken as logarithms."""
    from scipy.special import log_ndtr, ndtr

    first = float(ndtr(0.5 / sigma - epsilon * sigma))
    return first - math.exp(epsilon + float(log_ndtr(-0.5 / sigma - epsilon * sigma)))
