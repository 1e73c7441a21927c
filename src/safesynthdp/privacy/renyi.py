"""Renyi divergences of the accesses, and epsilon from their sum.

Here: the rdp accountant. Elsewhere: which accountant is asked (accounting.py). Source: the sampled Gaussian of Mironov,
Talwar and Zhang (2019), arXiv:1908.10530; epsilon by Canonne, Kamath and Steinke (2020),
arXiv:2004.00010, proposition 12. Symbols: a the order, q the sample rate, s the noise multiplier.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import special

from safesynthdp.errors import ConfigError
from safesynthdp.privacy.losses import Access, DiscreteGaussian, Floats, GaussianSteps, TwoPoint
from safesynthdp.privacy.output_pricing import BoundedRange

_WHOLE = 64  # from here on only some of the whole orders are tried, then those between
_ORDERS = (
    *(1 + 0.005 * 2200 ** (k / 150) for k in range(151)),  # 1.005 to 12
    *range(13, 65),
    *(int(64 * 2 ** (k / 8)) for k in range(1, 73)),  # to 32768
)


def epsilon(accesses: Sequence[Access], *, delta: float) -> float:
    """Return epsilon at ``delta``, for records added or removed.

    Guarantee:
        At least the true epsilon: the conversion holds at every order, and for the sampled Gaussian the divergence of
        removing a record is at least that of adding one.
    """
    if not accesses:
        return 0.0

    def at(order: float) -> float:
        scaled = sum(access.count * _scaled(access, order) for access in accesses)
        return float(_converted(np.array([order]), np.array([scaled / (order - 1)]), delta)[0])

    values = [at(order) for order in _ORDERS]
    best = int(np.nanargmin(values))
    around = _ORDERS[max(best - 1, 0) : best + 2]
    between = _least_between(at, math.ceil(around[0]), math.floor(around[-1])) if _ORDERS[best] >= _WHOLE else math.inf
    return max(0.0, min(values[best], between))


def from_curve(orders: Floats, divergences: Floats, delta: float) -> float:
    """Return ``min_a D_a + ln(1 - 1/a) - ln(a delta) / (a - 1)``, at least 0."""
    return max(0.0, float(np.min(_converted(orders, divergences, delta))))


def _converted(orders: Floats, divergences: Floats, delta: float) -> Floats:
    """Return epsilon at each order."""
    return divergences + np.log1p(-1 / orders) - np.log(orders * delta) / (orders - 1)


def _least_between(at: Callable[[float], float], low: int, high: int) -> float:
    """Return the least value of a curve that falls and then rises, at whole orders; any of its values is a bound."""
    while high - low > 2:
        third = (high - low) // 3
        left, right = low + third, high - third
        low, high = (low, right) if at(left) <= at(right) else (left, high)
    return min(at(order) for order in range(low, high + 1))


def divergences(access: Access, orders: Floats) -> Floats:
    """Return the Renyi divergence of one access of ``access.count`` at each order."""
    return np.array([_scaled(access, order) for order in orders.tolist()]) / (orders - 1)


def _scaled(access: Access, order: float) -> float:
    """Return ``(a - 1) D_a`` of one access."""
    match access:
        case GaussianSteps(noise_multiplier=noise, sample_rate=rate):
            return _sampled_gaussian(noise, rate, order)
        case TwoPoint(epsilon=loss):
            likely, unlikely = -math.log1p(math.exp(-loss)), -loss - math.log1p(math.exp(-loss))
            both = (order * likely + (1 - order) * unlikely, order * unlikely + (1 - order) * likely)
            return float(np.logaddexp(*both))
        case DiscreteGaussian(scale=scale):
            return order * (order - 1) / (2 * scale**2)
        case BoundedRange():
            return (order - 1) * access.renyi(order)
        case _:
            raise ConfigError(f"accountant=rdp has no curve for {type(access).__name__}; use pld")


def _sampled_gaussian(noise: float, rate: float, order: float) -> float:
    """Return ``ln E[(1 - q + q exp((2x - 1) / (2 s^2)))^a]``, x from N(0, s^2)."""
    if rate == 1:
        return order * (order - 1) / (2 * noise**2)
    whole = order == int(order)
    return max(0.0, _by_sum(noise, rate, int(order)) if whole else _by_trapezoids(noise, rate, order))


def _by_sum(noise: float, rate: float, order: int) -> float:
    """Return ``ln sum_k C(a, k) (1 - q)^(a - k) q^k exp(k (k - 1) / (2 s^2))``."""
    k = np.arange(order + 1)
    binomial = special.gammaln(order + 1) - special.gammaln(k + 1) - special.gammaln(order - k + 1)
    terms = binomial + (order - k) * math.log1p(-rate) + k * math.log(rate) + k * (k - 1) / (2 * noise**2)
    return float(np.logaddexp.reduce(terms))


def _by_trapezoids(noise: float, rate: float, order: float) -> float:
    """Integrate over x in units of s; for a smooth Gaussian integrand the rule is exact to rounding."""
    width = 1 / 16
    x = np.arange(-14, order / noise + 14, width)
    loss = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x * noise - 1) / (2 * noise**2))
    return float(np.logaddexp.reduce(order * loss - x**2 / 2)) + math.log(width / math.sqrt(2 * math.pi))
