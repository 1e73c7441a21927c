"""MAUVE, its smoothed form and the frontier integral, written from the papers.

Here: two histograms to three numbers, and two sets of embeddings to two histograms. Elsewhere: embeddings
(embeddings.py), which sets are compared (fidelity.py). Sources: Pillutla et al. (2021), arXiv:2102.01454, section 3;
Liu et al. (2021), arXiv:2106.07898, for the smoothing and the frontier integral.
Shapes: K buckets, N texts a side, D dimensions, W mixing weights.

The bucket count decides the value (real against real at n = 1,000: 10 buckets 1.000, 100 .962, 500 .495), so it is a
setting and stored; with fewer than 5 texts a bucket and side nothing is measured.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesynthdp.evaluation.threads import one_thread

SCALING = 5.0
NUM_WEIGHTS = 25
MARGIN = 1e-6
SMOOTHING = 0.5
TEXTS_PER_BUCKET = 5
EXPLAINED_VARIANCE = 0.9
MAX_PCA_TEXTS = 10_000
NUM_RESTARTS = 5
MAX_ITERATIONS = 500
CLUSTER_SEED = 7_400
Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """How far apart two histograms are."""

    mauve: float
    """Area under the divergence curve, 1 = equal."""
    mauve_star: float
    """The same after adding 1/2 to each bucket."""
    frontier_integral: float
    """0 = equal, 1 = nothing in common."""


def divergence(counts_p_K: NDArray[np.generic], counts_q_K: NDArray[np.generic]) -> Divergence:
    """Return the three numbers of two lists of counts, [K] each, neither of them all zero."""
    p_K, q_K = np.asarray(counts_p_K, dtype=np.float64), np.asarray(counts_q_K, dtype=np.float64)
    return Divergence(
        mauve=mauve(p_K, q_K),
        mauve_star=mauve(p_K + SMOOTHING, q_K + SMOOTHING),
        frontier_integral=frontier_integral(p_K, q_K),
    )


def mauve(counts_p_K: Floats, counts_q_K: Floats) -> float:
    """Return the area under ``(exp(-5 KL(Q, R)), exp(-5 KL(P, R)))``, R = w P + (1 - w) Q, in (0, 1].

    The points are taken in the order of w: as w grows the first number falls and the second rises. Sorting them by the
    first number instead breaks ties at 1 and gives .75 for equal histograms.
    """
    p_K, q_K = counts_p_K / counts_p_K.sum(), counts_q_K / counts_q_K.sum()
    weights_W = np.linspace(MARGIN, 1 - MARGIN, NUM_WEIGHTS)
    mixtures_WK = weights_W[:, None] * p_K + (1 - weights_W)[:, None] * q_K
    x_W = np.exp(-SCALING * _divergences(q_K, mixtures_WK))
    y_W = np.exp(-SCALING * _divergences(p_K, mixtures_WK))
    x, y = np.concatenate([[1.0], x_W, [0.0]]), np.concatenate([[0.0], y_W, [1.0]])
    over_x = float(((x[:-1] - x[1:]) * (y[:-1] + y[1:])).sum() / 2)
    over_y = float(((y[1:] - y[:-1]) * (x[:-1] + x[1:])).sum() / 2)
    return (over_x + over_y) / 2


def frontier_integral(counts_p_K: Floats, counts_q_K: Floats) -> float:
    """Return ``sum (p+q)/2 - pq/(p-q) log(p/q)``, in [0, 1]; max(p, q)/2 where one is 0, 0 where they are equal."""
    p_K, q_K = counts_p_K / counts_p_K.sum(), counts_q_K / counts_q_K.sum()
    is_both = (p_K > 0) & (q_K > 0)
    is_near = np.abs(p_K - q_K) <= 1e-9 * (p_K + q_K)  # the limit is 0, and the formula would divide by it
    terms_K = np.where(is_near, 0.0, np.maximum(p_K, q_K) / 2)
    used = is_both & ~is_near
    p, q = p_K[used], q_K[used]
    terms_K[used] = (p + q) / 2 - p * q / (p - q) * np.log(p / q)
    return float(np.clip(terms_K.sum(), 0.0, 1.0))


def quantise(first_ND: NDArray[np.float32], second_ND: NDArray[np.float32], *, buckets: int, seed: int) -> Ints:
    """Return the bucket of every text of both sides, [2 N] (first, then second).

    Rows are L2-normalised, reduced by PCA to 90 % of the variance, and clustered together by k-means with 5 restarts.
    With fewer distinct points than buckets some buckets stay empty (fidelity.py says so).
    """
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    restarts: Any = NUM_RESTARTS
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        reduced = _reduce(np.concatenate([first_ND, second_ND]), seed=seed)
        model = KMeans(n_clusters=buckets, n_init=restarts, max_iter=MAX_ITERATIONS, random_state=CLUSTER_SEED + seed)
        return np.asarray(model.fit_predict(reduced), dtype=np.intp)


def _reduce(points: NDArray[np.float32], *, seed: int) -> NDArray[np.float32]:
    """L2-normalise and keep the first principal components that explain 90 % of the variance."""
    lengths = np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    points = points / lengths
    centred: NDArray[np.float32] = points - points.mean(axis=0)
    sample = centred
    if len(centred) > MAX_PCA_TEXTS:
        rng = np.random.default_rng([CLUSTER_SEED, seed])
        sample = centred[rng.choice(len(centred), size=MAX_PCA_TEXTS, replace=False)]
    variance, axes = np.linalg.eigh(np.asarray(sample.T @ sample, dtype=np.float64))
    variance, axes = variance[::-1].clip(min=0), axes[:, ::-1]
    if variance.sum() <= 0:
        return np.zeros((len(centred), 1), dtype=np.float32)  # all texts are one
    kept = int(np.searchsorted(np.cumsum(variance) / variance.sum(), EXPLAINED_VARIANCE)) + 1
    return np.ascontiguousarray(centred @ axes[:, :kept], dtype=np.float32)


def _divergences(p_K: Floats, mixtures_WK: Floats) -> Floats:
    """Return KL(p, r) for each mixture, [W]."""
    used = p_K > 0
    return np.asarray((p_K[used] * np.log(p_K[used] / mixtures_WK[:, used])).sum(axis=1), dtype=np.float64)
