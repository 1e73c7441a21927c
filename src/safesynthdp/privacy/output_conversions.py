"""Epsilon of noise at sampling time, by every bound that holds for its steps.

Here: the price of one token and of n of them. Elsewhere: ``kov`` and ``cks``, which hold for other noise too
(conversions.py), the objects that draw (output_mechanisms.py), joint prices (joint.py). Sources: bounded range and
zCDP, Dong, Durfee and Rogers (2020), arXiv:1909.13830, Cesar and Rogers (2021), arXiv:2004.07223; epsilon from a Renyi
curve, Canonne, Kamath and Steinke (2020), arXiv:2004.00010; ``gaussian_exact`` Balle and Wang (2018),
arXiv:1805.06530. Symbols: eta the range of a step's log-likelihood ratios, n steps, m the signal-to-noise ratio of all
Gaussian steps, a a Renyi order, rho zero-concentrated DP.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import optimize, special

_SERIES_BELOW = 0.05
_SMALL_RANGE = 1e-3
_ROUNDING = 1e-15
_LEAST_LOG_DELTA = -740.0  # below it exp is 0
_RELATIVE = np.float64(1e-14)


def softmax_rho(eta: float) -> float:
    """Return the exact zCDP of one softmax draw, ``eta / (exp(eta) - 1) - 1 + ln((exp(eta) - 1) / eta)``.

    Below 0.05 by its series, whose next term is negative: the sum is not below the function.

    >>> round(softmax_rho(1.0), 6)
    0.123302
    """
    if eta < _SERIES_BELOW:
        return eta**2 / 8 - eta**4 / 576 + eta**6 / 25920
    log_ratio = eta + math.log1p(-math.exp(-eta)) - math.log(eta)
    return eta * math.exp(-eta) / -math.expm1(-eta) - 1 + log_ratio


def mixing_epsilon(*, mixing: float, vocab_size: int, shards: int) -> float:
    """Return ``ln(1 + L V / (S (1 - L)))``: each token keeps at least the probability ``(1 - L) / V``."""
    return math.log1p(mixing * vocab_size / (shards * (1 - mixing)))


def rdp_curve(eta: float, steps: int, delta: float) -> float:
    """Return ``min over a > 1 of n D(a) + ln(1 - 1/a) - ln(a delta) / (a - 1)``, at least 0, D of ``bounded_range``."""
    return _best_order(lambda excess: steps * bounded_range(eta, 1 + excess), steps * eta**2 / 8, delta)


def bounded_range(eta: float, order: float) -> float:
    """Return D(a), the largest Renyi divergence of a step whose log-likelihood ratios have the range eta.

    ``max over t in [0, eta] of ln[(1 - q) exp((a-1) t) + q exp((a-1)(t - eta))] / (a - 1)``, ``q = (exp(t) - 1) /
    (exp(eta) - 1)``. With ``k = (1 - exp(-(a-1) eta)) / (exp(eta) - 1)`` the bracket is ``exp((a-1) t) (1 + k) - k
    exp(a t)``, largest where ``exp(t) = (a-1)(1+k) / (a k)``.
    """
    excess = order - 1
    if eta < _SMALL_RANGE:
        return order * softmax_rho(eta)  # an upper bound, and equal to four digits; the closed form cancels here
    log_k = math.log(-math.expm1(-excess * eta)) - eta - math.log(-math.expm1(-eta))
    log_one_k = float(np.logaddexp(0.0, log_k))
    shift = min(max(math.log(excess / order) + log_one_k - log_k, 0.0), eta)
    bracket = excess * shift + math.log(max(math.exp(log_one_k) - math.exp(log_k + shift), 0.0))
    return min((bracket + _ROUNDING * (1 + excess * eta)) / excess, eta)


def gaussian_exact(mu: float, delta: float) -> float:
    """Return the smallest x >= 0 with ``Phi(m/2 - x/m) - exp(x) Phi(-m/2 - x/m) <= delta``, m = ``mu``."""
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    high = mu**2 / 2 + mu * math.sqrt(-2 * math.log(delta)) + 1  # holds too: the Gaussian tail
    if gaussian_delta(mu, high) > delta:
        return high  # its digits do not reach that far
    found: Any = optimize.brentq(lambda x: gaussian_delta(mu, x) - delta, 0.0, high, xtol=1e-13, rtol=_RELATIVE)
    root = float(found)
    return root if gaussian_delta(mu, root) <= delta else root + 2e-13 + 2e-14 * root


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return the delta of a Gaussian release with signal-to-noise ratio ``mu``."""
    upper, lower = special.log_ndtr(mu / 2 - epsilon / mu), special.log_ndtr(-mu / 2 - epsilon / mu)
    return float(math.exp(upper) * -math.expm1(min(epsilon + lower - upper, 0.0)))


def group_delta_for(epsilon: Callable[[float], float], *, size: int, delta: float) -> float:
    """Return ``size * x``, where (x, d) holds for one record and ``d (exp(size x) - 1) / (exp(x) - 1) = delta``.

    ``epsilon`` gives x at d, and falls. The d that is found is on the safe side; infinity when none is large enough.
    """

    def group_delta(log_d: float) -> float:
        x = epsilon(math.exp(log_d))
        if x == 0:
            return log_d + math.log(size)
        return log_d + size * x + math.log(-math.expm1(-size * x)) - x - math.log(-math.expm1(-x))

    high = math.log(delta)
    low = max(high - 600.0, _LEAST_LOG_DELTA)
    if low >= high or group_delta(low) > math.log(delta):
        return math.inf
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if group_delta(middle) <= math.log(delta) else (low, middle)
    return size * epsilon(math.exp(low))


def _best_order(curve: Callable[[float], float], rho: float, delta: float) -> float:
    """Minimise over orders ``1 + excess``, on a grid in logarithms and then between its points.

    Any order gives a bound, so a missed minimum errs on the safe side.
    """

    def bound(log_excess: float) -> float:
        excess = math.exp(log_excess)
        return curve(excess) - math.log1p(1 / excess) - (math.log1p(excess) + math.log(delta)) / excess

    centre = math.log(math.sqrt(-math.log(delta) / rho))
    grid = centre + np.linspace(-10, 10, 161)
    best = int(np.argmin([bound(float(x)) for x in grid]))
    ends = (float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)]))
    found = optimize.minimize_scalar(bound, bounds=ends, method="bounded", options={"xatol": 1e-9})
    return max(0.0, min(float(found.fun), bound(float(grid[best]))))
