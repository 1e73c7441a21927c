"""Opacus' PRV accountant: privacy random variables, discretised and composed by a Fourier transform.

Here: the upper value of epsilon of Poisson-sampled Gaussian steps. Elsewhere: which accountant is asked, how this
one is checked (accounting.py); ours (composition.py). Source: Gopi, Lee and Wutschitz (2021), arXiv:2106.02848.

The random variable, its discretisation, composition and epsilon are Opacus'. Three things are ours, each for a reason
that was measured with opacus 1.6:

* the domain has Opacus' length, from the same Renyi orders but our curve (its own takes up to 9 s at much noise), and
  is then widened to a size that a Fourier transform likes (6 times faster; a wider domain cuts less);
* the mean of one loss is exact to rounding: Opacus' quadrature errs by some 1e-8, and the steps multiply that;
* ``eps_error`` follows epsilon: Opacus' 0.01 is half of a promise of 0.02, and takes a minute at 100.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy import fft

from safesynthdp.errors import ConfigError
from safesynthdp.privacy import renyi
from safesynthdp.privacy.losses import Floats, GaussianSteps

USUAL_ERROR = 0.01
"""Opacus' own ``eps_error``; ours between epsilon 1.33 and 10."""
LEAST_ERROR = 1e-3
"""The smallest value that this accountant can return is above it."""
_MIDDLE_ERROR = 3e-3  # around epsilon 0.1, where less would take many seconds
_SHARES = (0.1, 7.5e-3, 1e-3)  # of epsilon: the error below 0.03, below 1.33, and above 10
_MOST_LOSS = 600.0  # exp(loss) must not overflow
_MOST_POINTS = 30_000_000
_DELTA_ERROR = 1e-3  # share of delta
_TAIL = 14.0  # standard deviations of the noise beyond which a probability is 0 in double precision
_ROUNDING = 1e-16  # share of the likely masses by which one step of a transform may spoil the others


def error(epsilon: float) -> float:
    """Return the ``eps_error`` for a price around ``epsilon``; it never falls when ``epsilon`` rises."""
    tiny, small, large = (share * epsilon for share in _SHARES)
    return max(LEAST_ERROR, min(USUAL_ERROR, tiny, max(_MIDDLE_ERROR, small)), large)


def upper_epsilon(access: GaussianSteps, *, delta: float, eps_error: float) -> float:
    """Return the upper value at ``delta``, for records added or removed; importing opacus loads torch.

    Guarantee:
        At least the true epsilon and at most ``2 * eps_error`` above it, in exact arithmetic (theorem 5.5 of the
        source). In double precision a transform leaves errors that grow with the steps and that a small delta feels:
        plain Opacus returns 8.75 after 50,000 steps (noise 2, rate 0.01) at delta 1e-12, where pld, which is tight
        there, says 8.84. Such a delta is refused here.

    Raises:
        ConfigError: If the value cannot be computed.
    """
    delta_error = _DELTA_ERROR * delta
    if _ROUNDING * access.count > delta_error:
        raise ConfigError(f"accountant=prv: delta={delta:g} drowns in rounding after steps={access.count}; use pld")
    reach = _reach(access, delta_error, eps_error)
    if reach > _MOST_LOSS:
        raise ConfigError(f"accountant=prv: epsilon is beyond {_MOST_LOSS:g} at this noise; add noise, or use pld")
    from opacus.accountants.analysis import prv

    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        domain = _domain(access.count, reach, delta_error, eps_error)
        variable = prv.PoissonSubsampledGaussianPRV(access.sample_rate, access.noise_multiplier)
        truncated = prv.TruncatedPrivacyRandomVariable(variable, domain.t_min, domain.t_max)
        try:
            single = prv.discretize(_Loss(truncated, access), domain)
            composed = prv.compose_heterogeneous([single], [access.count])
            found = float(composed.compute_epsilon(delta, delta_error, eps_error)[2])
        except (RuntimeError, ValueError) as problem:
            raise ConfigError(f"accountant=prv cannot compute this epsilon ({problem}); use pld") from problem
    if not math.isfinite(found):
        raise ConfigError("accountant=prv found no finite epsilon here; use pld")
    return max(found, 0.0)


def mean_loss(access: GaussianSteps) -> float:
    """Return ``E[ln(P / Q)]`` of one step under P: trapezoids are exact to rounding for a smooth Gaussian integrand.

    What the truncation of the domain cuts has a mass below ``delta_error / (8 * steps)`` and moves nothing.
    """
    q, s = access.sample_rate, access.noise_multiplier
    x = np.arange(-_TAIL, _TAIL + 1 / s, min(1 / 16, s / 4))  # the integrand has a pole pi s away
    density = (1 - q) * np.exp(-(x**2) / 2) + q * np.exp(-((x - 1 / s) ** 2) / 2)
    return float(density @ _losses(access, x) / density.sum())


def _losses(access: GaussianSteps, x: Floats) -> Floats:
    """Return the loss at each outcome; x is in units of the noise."""
    q, s = access.sample_rate, access.noise_multiplier
    stay = math.log1p(-q) if q < 1 else -math.inf
    found: Floats = np.logaddexp(stay, math.log(q) + (2 * x * s - 1) / (2 * s**2))
    return found


def _reach(access: GaussianSteps, delta_error: float, eps_error: float) -> float:
    """Return the largest loss that the domain must hold, by Opacus' rule (remark 5.6 of the source)."""
    from opacus.accountants import RDPAccountant

    orders = np.array(RDPAccountant.DEFAULT_ALPHAS, dtype=np.float64)
    one = renyi.divergences(access, orders)
    whole = renyi.from_curve(orders, access.count * one, delta_error / 4)
    single = renyi.from_curve(orders, one, delta_error / (8 * access.count))
    return max(whole, single, eps_error) + 3


def _domain(count: int, reach: float, delta_error: float, eps_error: float) -> Any:
    """Return Opacus' mesh, with a point at 0, over at least ``[-reach, reach]``."""
    from opacus.accountants.analysis import prv

    interval = eps_error / math.sqrt(count * math.log(12 / delta_error) / 2)
    half = math.ceil(reach / interval) + 1
    if 2 * half > _MOST_POINTS:
        raise ConfigError(f"accountant=prv needs too much memory for steps={count} at this noise; use pld")
    half = cast("int", fft.next_fast_len(half, real=True))
    return prv.Domain(t_min=-(half - 1) * interval, t_max=half * interval, size=2 * half)


@dataclass(frozen=True)
class _Loss:
    """Opacus' truncated variable, asked only where its probability is neither 0 nor 1, with an exact mean."""

    truncated: Any
    access: GaussianSteps

    def cdf(self, losses: Floats) -> Floats:
        """Return the probability of at most each of the losses, which rise."""
        ends = _losses(self.access, np.array([-_TAIL, _TAIL + 1 / self.access.noise_multiplier]))
        first, last = np.searchsorted(losses, ends)
        found = np.zeros_like(losses)
        found[first:last] = self.truncated.cdf(losses[first:last])
        found[last:] = 1.0
        return found

    def mean(self) -> float:
        """Return the mean of one loss."""
        return mean_loss(self.access)
