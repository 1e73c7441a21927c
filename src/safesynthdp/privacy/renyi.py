"""Renyi divergences of the accesses, and epsilon from their sum.

Here: the rdp accountant. Elsewhere: which accountant is asked (accounting.py). Source: the sampled Gaussian of Mironov,
Talwar and Zhang (2019), arXiv:1908.10530, at whole orders; epsilon by Canonne, Kamath and Steinke (2020),
arXiv:2004.00010, proposition 12. Symbols: a the order, q the sample rate, s the noise multiplier.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from safesynthdp.errors import ConfigError
from safesynthdp.privacy.losses import Access, DiscreteGaussian, Floats, GaussianSteps, TwoPoint

_WHOLE_ORDERS = np.array([1, *range(2, 65), *(int(64 * 2 ** (k / 8)) for k in range(1, 73))])
_ORDERS = 1 + np.geomspace(1e-3, _WHOLE_ORDERS[-1] - 1, 4000)


def epsilon(accesses: Sequence[Access], *, delta: float) -> float:
    """Return epsilon at ``delta``, for records added or removed.

    Guarantee:
        At least the true epsilon: ``(a - 1) D_a`` is convex in a and 0 at a = 1, so the straight line between whole
        orders lies above it, and the conversion holds at every order.
    """
    if not accesses:
        return 0.0
    scaled = np.zeros(len(_WHOLE_ORDERS))  # (a - 1) D_a
    for access in accesses:
        scaled[1:] += access.count * np.array([_scaled(access, int(order)) for order in _WHOLE_ORDERS[1:]])
    usable = np.isfinite(scaled)
    between = np.interp(_ORDERS, _WHOLE_ORDERS[usable], scaled[usable], right=np.inf)
    return from_curve(_ORDERS, between / (_ORDERS - 1), delta)


def from_curve(orders: Floats, divergences: Floats, delta: float) -> float:
    """Return ``min_a D_a + ln(1 - 1/a) - ln(a delta) / (a - 1)``, at least 0."""
    values = divergences + np.log1p(-1 / orders) - np.log(orders * delta) / (orders - 1)
    return max(0.0, float(np.min(values)))


def _scaled(access: Access, order: int) -> float:
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
        case _:
            raise ConfigError(f"accountant=rdp has no curve for {type(access).__name__}; use pld")


def _sampled_gaussian(noise: float, rate: float, order: int) -> float:
    """Return ``ln sum_k C(a, k) (1 - q)^(a - k) q^k exp(k (k - 1) / (2 s^2))``."""
    if rate == 1:
        return order * (order - 1) / (2 * noise**2)
    k = np.arange(order + 1)
    binomial = special.gammaln(order + 1) - special.gammaln(k + 1) - special.gammaln(order - k + 1)
    terms = binomial + (order - k) * math.log1p(-rate) + k * math.log(rate) + k * (k - 1) / (2 * noise**2)
    return max(0.0, float(special.logsumexp(terms)))
