"""What the private texts use, read from noisy sums and from what the model expects: empirical Bayes.

A cell that drowns in the noise is not nothing: thousands of them, each pulled a little towards what was released, say
together what a threshold throws away. Here: one label's posterior means. Elsewhere: the noise (privacy/
token_histogram.py), the expectations (token_matching.py). Reads released numbers and the model only: post-processing.

The model: a cell's sum is ``T s e^r``, s the share that is expected of it, r normal with variance ``t^2`` and ``e^r``
of mean 1; what was released is that plus normal noise. T, t and how far a label's shares are its own are those under
which the released sums are likeliest. Source: Robbins (1956), with the marginal likelihood of Morris (1983),
doi:10.1080/01621459.1983.10477920. Shapes: L labels, C columns, K cells that are looked at, G points of a grid.
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_RATIOS_G = np.arange(-12.0, 8.01, 0.125)
"""r, in nats; far down, where a cell that is expected and was released below 0 has its mass."""
_SHARP = 5.0
_DEVIATIONS_G = np.arange(-4.5, 4.51, 0.25)
"""In standard deviations of the noise: a sum released above the first is looked for within the others of what was
released, however unexpected it is, for noise alone does not get there."""
_SPREADS = (0.5, 0.75, 1.0, 1.5, 2.0)
_OWN_SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
_SMALL, STANDS_OUT = 0.05, 3.0
"""In standard deviations of the noise: a cell expected below the first and released below the second says nothing."""
_LOST = 3.0
"""A total that is not this many standard deviations above 0 says nothing."""
_TOTAL_ROUNDS = 3
_MOST_CELLS = 3000
"""Of a label, to find the mixture and the spread by."""
_LEAST = 1e-300


def shrink(released_LC: Floats, expected_LC: Floats, *, noise_std: float) -> Floats:
    """Return the posterior means of the sums, [L, C]; a row of 0: nothing is known of that label.

    Args:
        released_LC: Sums with noise in every cell.
        expected_LC: How often each column is to be expected, in any scale; a row of 0 where a label was not drawn.
        noise_std: Of a cell; above 0.
    """
    sums_LC = np.zeros_like(released_LC)
    drawn = np.flatnonzero(expected_LC.any(axis=1))
    if not len(drawn):
        return sums_LC
    shares_LC = expected_LC / np.maximum(expected_LC.sum(axis=1, keepdims=True), _LEAST)
    pool_C = shares_LC[drawn].mean(axis=0)
    for row in drawn:
        sums_LC[row] = _one_label(released_LC[row], shares_LC[row], pool_C, noise_std)
    return sums_LC


def _one_label(released_C: Floats, own_C: Floats, pool_C: Floats, noise_std: float) -> Floats:
    """Return the posterior means under the likeliest mixture, spread and total."""
    length = float(np.sqrt(pool_C @ pool_C))
    total = float(released_C @ pool_C) / length**2  # least squares: far surer than the sum of all cells
    if total <= _LOST * noise_std / length:
        return np.zeros_like(released_C)
    seen_K = np.flatnonzero(pool_C * total >= _SMALL * noise_std)  # chosen by no released number of the label's own
    if not len(seen_K):
        return np.zeros_like(released_C)
    some_K = seen_K[:: -(-len(seen_K) // _MOST_CELLS)]

    def likelihood(setting: tuple[float, float]) -> float:
        own, spread = setting
        mean_K = total * (own * own_C[some_K] + (1 - own) * pool_C[some_K])
        return _posterior(released_C[some_K], mean_K, spread, noise_std)[1]

    own, spread = max(product(_OWN_SHARES, _SPREADS), key=likelihood)
    share_C = own * own_C + (1 - own) * pool_C
    for _ in range(_TOTAL_ROUNDS):
        seen = float(_posterior(released_C[seen_K], total * share_C[seen_K], spread, noise_std)[0].sum())
        total = seen / float(share_C[seen_K].sum())
    sums_C = total * share_C
    sure_K = np.flatnonzero((sums_C >= _SMALL * noise_std) | ((released_C >= STANDS_OUT * noise_std) & (sums_C > 0)))
    sums_C[sure_K] = _posterior(released_C[sure_K], sums_C[sure_K], spread, noise_std)[0]
    return sums_C


def _posterior(released_K: Floats, mean_K: Floats, spread: float, noise_std: float) -> tuple[Floats, float]:
    """Return the posterior means of cells, and the log likelihood of what was released, up to a constant."""
    mean_K = np.maximum(mean_K, _LEAST)  # a token that is never expected: what it has is then very unlikely
    is_sharp_K = released_K > _SHARP * noise_std
    means_K, likelihoods_K = np.empty_like(released_K), np.empty_like(released_K)
    for is_here_K, sums_KG, lengths_KG in (
        (is_sharp_K, *_around(released_K[is_sharp_K], noise_std)),
        (~is_sharp_K, *_across(mean_K[~is_sharp_K])),
    ):
        log_ratio_KG = np.log(sums_KG / mean_K[is_here_K, None])
        log_KG = np.log(lengths_KG / sums_KG / spread) - (log_ratio_KG + spread**2 / 2) ** 2 / (2 * spread**2)
        log_KG -= (released_K[is_here_K, None] - sums_KG) ** 2 / (2 * noise_std**2)
        largest_K1 = log_KG.max(axis=1, keepdims=True)
        weight_KG = np.exp(log_KG - largest_K1)
        total_K = weight_KG.sum(axis=1)
        means_K[is_here_K] = (weight_KG * sums_KG).sum(axis=1) / total_K
        likelihoods_K[is_here_K] = largest_K1[:, 0] + np.log(total_K)
    return means_K, float(likelihoods_K.sum())


def _around(released_K: Floats, noise_std: float) -> tuple[Floats, Floats]:
    """Return [K, G] sums as far from what was released as the noise is wide, and the length that each stands for."""
    sums_KG = released_K[:, None] + noise_std * _DEVIATIONS_G
    return sums_KG, np.full_like(sums_KG, noise_std * (_DEVIATIONS_G[1] - _DEVIATIONS_G[0]))


def _across(mean_K: Floats) -> tuple[Floats, Floats]:
    """Return [K, G] sums as far from what is expected as a ratio may lie, and the length that each stands for."""
    sums_KG = mean_K[:, None] * np.exp(_RATIOS_G)
    return sums_KG, sums_KG * (_RATIOS_G[1] - _RATIOS_G[0])
