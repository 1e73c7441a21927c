"""The price of several accesses together: grids of privacy losses, added up and read at one delta.

Here: composition by a tilted Fourier transform, and epsilon from delta. Elsewhere: the grids (losses.py), and which
accountant is asked (accounting.py). Source: Sommer, Meiser and Mohammadi (2019) for the losses; Koskela et al. (2020),
arXiv:1906.03049, for the transform. Symbols: L the sum of all losses under P, h the grid interval, N the points of the
transform, ``K(t) = ln E[exp(t L); L finite]``.

A plain transform has an absolute rounding error of about 1e-16 a mass, which a small delta feels. So the masses are
first multiplied by ``exp(t l)``, with t such that the losses around the answer become the likely ones, and afterwards
divided by it: the error is then relative to delta.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from safesynthdp.privacy.losses import Access, Adjacency, Direction, Floats, GaussianSteps, LossGrid

FINE_POINTS = 2**18
COARSE_POINTS = 2**14
_FIRST_POINTS = 4096
_SEARCH_POINTS = 2**14
_CHARGE = 1e-7  # share of delta charged for cut tails, and again for rounding
_WRAPPED = 1e-14  # tilted mass that may wrap around onto higher losses
_MOST_POINTS = 2**21
_LEAST_SPAN = 1e-6  # nats; a loss may be next to constant
DIRECTIONS: dict[Adjacency, tuple[Direction, ...]] = {"add_remove": ("remove", "add"), "replace": ("replace",)}


@dataclasses.dataclass(frozen=True)
class _Tilts:
    """Exponents to try, or the best ones: for the answer, and from there on to either end of the window."""

    answer: Floats
    above: Floats
    below: Floats

    def nearby(self) -> "_Tilts":
        """Return what to try on a finer grid."""
        around = 2.0 ** np.arange(-1.5, 2, 0.5)
        return _Tilts(self.answer * around, self.above * around, self.below * around)


@dataclasses.dataclass(frozen=True)
class _Window:
    """Losses between which the transform is exact enough, in nats, and the tilt used."""

    low: float
    high: float
    tilt: float
    log_scale: float
    tilts: _Tilts


def composed_epsilon(
    accesses: Sequence[Access], *, delta: float, adjacency: Adjacency, points: int = FINE_POINTS
) -> float:
    """Return the smallest epsilon >= 0 at which all accesses together are (epsilon, delta)-DP.

    Guarantee:
        Never below the true value: grids are pessimistic, cut tails count as infinite losses, and 2e-7 of delta is
        set aside for tails and rounding. Fewer ``points`` give a larger epsilon, never a smaller one. Infinity when
        no finite epsilon reaches delta.
    """
    if not accesses:
        return 0.0
    merged = [access.merged() if isinstance(access, GaussianSteps) else access for access in accesses]
    return max(_epsilon(merged, delta, direction, points) for direction in DIRECTIONS[adjacency])


def _epsilon(accesses: Sequence[Access], delta: float, direction: Direction, points: int) -> float:
    """Refine the interval until the transform uses about ``points`` of them, then compose."""
    counts = [access.count for access in accesses]
    tail = _CHARGE * delta / sum(counts)
    span = max(_LEAST_SPAN, *(access.span(direction, tail) for access in accesses))
    interval = _power_of_two(span / _FIRST_POINTS)
    grids = [access.grid(direction, interval, tail) for access in accesses]
    window = _find_window(grids, counts, interval, delta, _first_tilts(grids, counts, interval))
    for size in (min(points, _SEARCH_POINTS), points, points):
        wanted = _power_of_two(max(window.high - window.low, span) / size)
        if wanted != interval:
            interval = wanted
            grids = [access.grid(direction, interval, tail) for access in accesses]
            tilts = window.tilts.nearby() if size <= _SEARCH_POINTS else window.tilts
            window = _find_window(grids, counts, interval, delta, tilts)
    return _read(grids, counts, interval, window, delta)


def _power_of_two(interval: float) -> float:
    """Round up to a power of two, so that intervals are nested and a coarser one is never cheaper."""
    return float(2.0 ** math.ceil(math.log2(interval)))


def _log_moment(grids: Sequence[LossGrid], counts: Sequence[int], interval: float, tilt: float) -> float:
    """Return ``K(tilt)``."""
    return sum(n * _log_sum(tilt * g.losses(interval), g.masses) for g, n in zip(grids, counts, strict=True))


def _log_sum(exponents: Floats, masses: Floats) -> float:
    """Return ``ln sum(masses * exp(exponents))``; the first and the last mass are above 0."""
    largest = float(exponents.max())
    summed = float(masses @ np.exp(exponents - largest))
    if summed > 0:
        return largest + math.log(summed)
    with np.errstate(divide="ignore"):
        return float(np.logaddexp.reduce(exponents + np.log(masses)))


def _spread(grids: Sequence[LossGrid], counts: Sequence[int], interval: float) -> float:
    """Return the standard deviation of the sum of losses."""
    variance = 0.0
    for grid, count in zip(grids, counts, strict=True):
        losses = grid.losses(interval)
        total = grid.masses.sum()
        variance += count * float(grid.masses @ (losses - grid.masses @ losses / total) ** 2 / total)
    return max(math.sqrt(variance), interval)


def _first_tilts(grids: Sequence[LossGrid], counts: Sequence[int], interval: float) -> _Tilts:
    """Return exponents around one over the standard deviation of the sum."""
    scale = 1 / _spread(grids, counts, interval)
    wide = scale * 2.0 ** np.arange(-8, 9, 0.5)
    return _Tilts(wide, wide, wide)


def _find_window(
    grids: Sequence[LossGrid], counts: Sequence[int], interval: float, delta: float, tilts: _Tilts
) -> _Window:
    """Return the window outside which Chernoff's bound leaves next to nothing.

    What lies above ``high`` wraps around to the bottom; as losses above 0 it is worth at most ``_CHARGE * delta``, and
    so much is charged as infinite. Below ``low`` lies at most ``_WRAPPED`` of the tilted masses; it wraps around to
    the top, where it can only raise epsilon.
    """

    def moment(tilt: float) -> float:
        return _log_moment(grids, counts, interval, tilt)

    def best(bounds: list[float], tried: Floats) -> tuple[float, float]:
        chosen = int(np.argmin(bounds))
        return bounds[chosen], float(tried[chosen])

    lowest = sum(n * interval * g.lower for g, n in zip(grids, counts, strict=True))
    highest = lowest + sum(n * interval * (len(g.masses) - 1) for g, n in zip(grids, counts, strict=True))
    _, tilt = best([(moment(t) - math.log(delta)) / t for t in tilts.answer], tilts.answer)
    scale = moment(tilt)
    down, below = best([(moment(tilt - t) - scale - math.log(_WRAPPED)) / t for t in tilts.below], tilts.below)
    low = max(-down, lowest)
    level = min(0.0, math.log(_CHARGE * delta) - scale + tilt * max(low, 0.0))
    high, above = best([(moment(tilt + t) - scale - level) / t for t in tilts.above], tilts.above)
    high = max(min(high, highest), low)
    found = _Tilts(np.array([tilt]), np.array([above]), np.array([below]))
    return _Window(low - interval, high + 2 * interval, tilt, scale, found)


def _read(grids: Sequence[LossGrid], counts: Sequence[int], interval: float, window: _Window, delta: float) -> float:
    """Compose, and return epsilon at ``delta``; widen the window downwards when the answer lies below it."""
    infinity = 2 * _CHARGE * delta - math.expm1(
        sum(n * math.log1p(-min(g.infinity, 1.0)) for g, n in zip(grids, counts, strict=True))
    )
    losses, masses = _compose(grids, counts, interval, window)
    found = _solve(losses, masses, infinity, delta)
    while found is None and (window.high - window.low) / interval < _MOST_POINTS:
        window = dataclasses.replace(window, low=window.high - 4 * (window.high - window.low))
        losses, masses = _compose(grids, counts, interval, window)
        found = _solve(losses, masses, infinity, delta)
    return float(losses[0]) if found is None else found  # delta is met there: a bound, if not the least


def _compose(
    grids: Sequence[LossGrid], counts: Sequence[int], interval: float, window: _Window
) -> tuple[Floats, Floats]:
    """Return the losses of the window and their masses under P."""
    size = 2 ** math.ceil(math.log2((window.high - window.low) / interval + 2))
    log_transform = np.zeros(size // 2 + 1, dtype=np.complex128)
    start = 0
    for grid, count in zip(grids, counts, strict=True):
        exponents = window.tilt * grid.losses(interval)
        tilted = grid.masses * np.exp(exponents - _log_sum(exponents, grid.masses))
        transform = np.fft.rfft(np.bincount(np.arange(len(tilted)) % size, tilted, size))
        with np.errstate(divide="ignore"):
            log_transform += count * np.log(transform)
        start += count * grid.lower
    tilted_sum = np.fft.irfft(np.exp(log_transform), size)
    first = math.floor(window.low / interval)
    losses = interval * (first + np.arange(size))
    tilted_sum = np.maximum(np.roll(tilted_sum, start - first), 0.0)
    return losses, tilted_sum * np.exp(np.minimum(window.log_scale - window.tilt * losses, 700.0))


def _solve(losses: Floats, masses: Floats, infinity: float, delta: float) -> float | None:
    """Return the smallest epsilon >= 0 with ``infinity + E[1 - exp(epsilon - l); l > epsilon] <= delta``.

    None when even the lowest loss, above 0, meets delta: the answer lies below the window.
    """
    mass_above = np.append(np.cumsum(masses[::-1])[::-1], 0.0)

    def excess(epsilon: float) -> float:
        above = int(np.searchsorted(losses, epsilon, side="right"))
        return infinity + float(mass_above[above] - masses[above:] @ np.exp(epsilon - losses[above:])) - delta

    if infinity >= delta:
        return math.inf
    lowest = max(float(losses[0]), 0.0)
    if excess(lowest) <= 0:
        return 0.0 if lowest == 0 else None
    low, high = max(int(np.searchsorted(losses, lowest)), 0), len(losses) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if excess(float(losses[middle])) <= 0 else (middle, high)
    above, end = masses[high:], losses[high:]
    shrunk = float(above @ np.exp(losses[high] - end))  # E[exp(l_high - l)] over the losses that count
    return float(losses[high] + min(0.0, math.log((infinity + float(above.sum()) - delta) / shrunk)))
