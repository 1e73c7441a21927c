"""Epsilon of a label histogram, by every bound that holds for its integer noise.

Here: c cells that each move by one, under discrete Laplace or discrete Gaussian noise. Elsewhere: together with other
accesses (accounting.py); drawing the noise (mechanisms.py). Source: Canonne, Kamath and Steinke (2020),
arXiv:2004.00010; ``kov`` is optimal composition, Kairouz, Oh and Viswanath (2015), arXiv:1311.0776. Symbols: c cells,
e the pure epsilon of a cell, rho zero-concentrated DP. The formulas for continuous noise are too small here.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from safesynthdp.errors import ConfigError

MAX_GAUSSIAN_SCALE = 1e5


def laplace_conversions(*, scale: float, cells: int, delta: float) -> dict[str, float]:
    """Return epsilon at ``delta`` under noise ``exp(-|y| / scale)``: pure, kov, cks and cks_tight."""
    e = 1 / scale
    return {
        "pure": cells * e,
        "kov": kov(e, cells, delta),
        "cks": cks(cells * e**2 / 2, delta),
        "cks_tight": cks(laplace_rho(scale=scale, cells=cells), delta),
    }


def gaussian_conversions(*, scale: float, cells: int, delta: float) -> dict[str, float]:
    """Return epsilon at ``delta`` under noise ``exp(-y^2 / (2 scale^2))``: cks and discrete_exact."""
    rho = gaussian_rho(scale=scale, cells=cells)
    return {"cks": cks(rho, delta), "discrete_exact": discrete_exact(scale, cells, delta)}


def laplace_rho(*, scale: float, cells: int) -> float:
    """Return ``c e tanh(e / 2)``, exact."""
    return cells * pure_rho(1 / scale)


def gaussian_rho(*, scale: float, cells: int) -> float:
    """Return ``c / (2 scale^2)``."""
    return cells / (2 * scale**2)


def pure_rho(e: float) -> float:
    """Return the exact zCDP of one pure-e answer, ``e tanh(e / 2)``."""
    return e * math.tanh(e / 2)


def cks(rho: float, delta: float) -> float:
    """Return ``min over a > 1 of a rho + ln(1 - 1/a) - ln(a delta) / (a - 1)``, at least 0."""

    def bound(log_excess: float) -> float:
        excess = math.exp(log_excess)
        return (1 + excess) * rho - math.log1p(1 / excess) - (math.log1p(excess) + math.log(delta)) / excess

    centre = math.log(math.sqrt(-math.log(delta) / rho))
    grid = centre + np.linspace(-12, 12, 241)
    best = int(np.argmin([bound(float(x)) for x in grid]))
    ends = (float(grid[max(best - 1, 0)]), float(grid[min(best + 1, 240)]))
    found = optimize.minimize_scalar(bound, bounds=ends, method="bounded", options={"xatol": 1e-9})
    return max(0.0, min(float(found.fun), bound(float(grid[best]))))


def kov(e: float, count: int, delta: float) -> float:
    """Return the smallest x with ``E[max(0, 1 - exp(x - loss))] <= delta``, loss ``(2K - n) e``, K Binomial."""
    successes = np.arange(count, -1, -1)
    likely, unlikely = -np.logaddexp(0, -e), -np.logaddexp(0, e)
    binomial = special.gammaln(count + 1) - special.gammaln(successes + 1) - special.gammaln(count - successes + 1)
    masses = np.exp(binomial + successes * likely + (count - successes) * unlikely)
    return epsilon_of_atoms((2 * successes - count) * e, masses, delta)


def discrete_exact(scale: float, cells: int, delta: float) -> float:
    """Return the exact epsilon of ``cells`` integer Gaussians that each move by one.

    With Y the sum of c integer Gaussians the loss is ``(c - 2Y) / (2 s^2)``. For c = 2, ``P(Y = y)`` is proportional
    to ``exp(-y^2 / (4 s^2))`` times a constant that depends on whether y is even. Cut tails are charged to delta.
    """
    if scale > MAX_GAUSSIAN_SCALE:
        raise ConfigError(f"scale={scale} is above {MAX_GAUSSIAN_SCALE:g} and drowns every count; use a smaller one")
    spread = scale * math.sqrt(cells)
    reach = math.ceil(spread * math.sqrt(2 * math.log(4e9 / delta))) + 2
    y = np.arange(-reach, reach + 1)
    weights = np.exp(-(y**2) / (2 * spread**2))
    if cells == 2:
        weights = weights * np.where(y % 2 == 0, weights[reach % 2 :: 2].sum(), weights[1 - reach % 2 :: 2].sum())
    elif cells != 1:
        raise ConfigError(f"cells={cells}: one record moves one or two cells of a label histogram")
    return epsilon_of_atoms((cells - 2 * y) / (2 * scale**2), weights / weights.sum(), delta * (1 - 1e-9))


def epsilon_of_atoms(losses: NDArray[Any], masses: NDArray[Any], delta: float) -> float:
    """Return the smallest x >= 0 with ``E[max(0, 1 - exp(x - loss))] <= delta``; losses fall."""
    upper = np.cumsum(masses)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_lower = np.logaddexp.accumulate(np.log(masses) - losses)
        candidates = np.log(np.maximum(upper - delta, 0)) - log_lower
    following = np.append(losses[1:], -np.inf)
    inside = np.flatnonzero(candidates >= following)
    return max(0.0, float(candidates[inside[0]]))
