"""Privacy losses on a grid: what one access to the data can reveal, as a probability distribution.

Here: three kinds of access, each as a pessimistic grid of ``ln(P / Q)`` under P. Elsewhere: their composition and its
price (composition.py). Source: connect-the-dots of Doroshenko et al. (2022), arXiv:2207.04380; the pairs (P, Q) of Zhu
et al. (2022), arXiv:2106.08567, and for ``replace`` the pair of Google's dp-accounting. Symbols: h the interval of the
grid, l a loss in nats, q the sample rate, s the noise multiplier.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special

Adjacency = Literal["add_remove", "replace"]
Direction = Literal["remove", "add", "replace"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LossGrid:
    """Masses at the losses ``(lower + k) * h``, and the mass at infinity.

    Guarantee:
        At every epsilon the hockey-stick divergence is at least that of the true pair, and this survives composition:
        mass is moved so that its total under P and under Q stay what they were and it spreads outwards. Cut tails are
        moved up, the upper one to infinity. Rounding is charged for in composition.py.
    """

    lower: int
    masses: Floats
    infinity: float

    def losses(self, interval: float) -> Floats:
        """Return the loss of every mass, in nats."""
        return _grid(interval, self.lower, len(self.masses))


class Access(Protocol):
    """One kind of access to the data, made ``count`` times."""

    @property
    def count(self) -> int:
        """How often the grid is composed with itself."""
        ...

    def span(self, direction: Direction, tail: float) -> float:
        """Return the distance between the highest and the lowest loss once ``tail`` is cut at each end."""
        ...

    def grid(self, direction: Direction, interval: float, tail: float) -> LossGrid:
        """Return one access as a grid; at most ``tail`` of its mass goes to infinity."""
        ...


@dataclass(frozen=True, kw_only=True)
class GaussianSteps:
    """``count`` Poisson-sampled Gaussian releases of sensitivity 1.

    The pair is ``P = (1-p) N(0, s^2) + p N(1, s^2)`` and ``Q = (1-w) N(0, s^2) + w N(-1, s^2)``: a record removed has
    p = q and w = 0, a record added p = 0 and w = q, a record replaced p = w = q. The loss rises with x.
    """

    noise_multiplier: float
    sample_rate: float
    count: int

    def merged(self) -> "GaussianSteps":
        """Return T releases at s as the one at ``s / sqrt(T)``, which they are exactly when nothing is sampled."""
        if self.sample_rate < 1 or self.count <= 1:
            return self
        return GaussianSteps(noise_multiplier=self.noise_multiplier / math.sqrt(self.count), sample_rate=1.0, count=1)

    def span(self, direction: Direction, tail: float) -> float:
        """See Access."""
        low, high = self._ends(direction, tail)
        return high - low

    def grid(self, direction: Direction, interval: float, tail: float) -> LossGrid:
        """See Access."""
        low, high = self._ends(direction, tail)
        first = math.floor(low / interval)
        losses = _grid(interval, first, max(math.ceil(high / interval) - first, 1) + 1)
        points = self._points(direction, losses)
        p, w = self._weights(direction)
        rest = _normal_between(points, self.noise_multiplier)
        upper = (1 - p) * rest + (p * _normal_between(points - 1, self.noise_multiplier) if p else 0)
        lower = (1 - w) * rest + (w * _normal_between(points + 1, self.noise_multiplier) if w else 0)
        ends = np.array([points[0], -points[-1]]) / self.noise_multiplier
        shift = np.array([-1, 1]) / self.noise_multiplier
        below, above = (1 - p) * special.ndtr(ends) + p * special.ndtr(ends + shift)
        upper[0] += below  # rounded up to the lowest loss of the grid
        return connect_the_dots(first, upper, lower, interval, infinity=float(above))

    def _weights(self, direction: Direction) -> tuple[float, float]:
        """Return p and w of the pair."""
        return (0.0 if direction == "add" else self.sample_rate), (0.0 if direction == "remove" else self.sample_rate)

    def _ends(self, direction: Direction, tail: float) -> tuple[float, float]:
        """Return the lowest and the highest loss worth a place on the grid."""
        reach = -float(special.ndtri(tail)) * self.noise_multiplier
        return self._loss(direction, -reach), self._loss(direction, reach + (direction != "add"))

    def _loss(self, direction: Direction, x: float) -> float:
        """Return ``ln(P(x) / Q(x))``."""
        variance = self.noise_multiplier**2
        p, w = self._weights(direction)
        return _log_mixture(p, (2 * x - 1) / (2 * variance)) - _log_mixture(w, (-2 * x - 1) / (2 * variance))

    def _points(self, direction: Direction, losses: Floats) -> Floats:
        """Return the x at which each loss is reached; infinite where it never is."""
        if direction == "remove":
            return self._points_remove(losses)
        if direction == "add":
            return -self._points_remove(-losses)
        return self._points_replace(losses)

    def _points_remove(self, losses: Floats) -> Floats:
        """Solve ``1 - q + q exp((2x - 1) / (2 s^2)) = exp(l)``."""
        rate = self.sample_rate
        with np.errstate(divide="ignore"):
            low = np.log1p(np.maximum(np.expm1(np.minimum(losses, 0)) / rate, -1.0))
        high = losses + np.log1p((rate - 1) * np.exp(-np.maximum(losses, 0))) - math.log(rate)
        return self.noise_multiplier**2 * np.where(losses <= 0, low, high) + 0.5

    def _points_replace(self, losses: Floats) -> Floats:
        """Solve ``sinh(x / s^2 - l / 2) = (1 - q) / q * exp(1 / (2 s^2)) * sinh(l / 2)``."""
        variance, half = self.noise_multiplier**2, np.abs(losses) / 2
        if self.sample_rate == 1:
            return variance * losses / 2
        with np.errstate(divide="ignore"):
            log_sinh = half + np.log(-np.expm1(-2 * half)) - math.log(2)
        odds = math.log1p(-self.sample_rate) - math.log(self.sample_rate)
        right = log_sinh + odds + 1 / (2 * variance)
        arc_sinh = np.logaddexp(right, 0.5 * np.logaddexp(0, 2 * right))  # of exp(right), without overflow
        return variance * np.sign(losses) * (half + np.where(half > 0, arc_sinh, 0))


@dataclass(frozen=True, kw_only=True)
class TwoPoint:
    """``count`` answers whose loss is +e or -e: randomised response, and one cell of discrete Laplace noise.

    A cell that moves by one under noise ``P(x)`` proportional to ``exp(-e |x|)`` has the loss +e for x <= 0 and -e
    above: mass ``1 / (1 + exp(-e))`` and the rest, exactly, whatever e.
    """

    epsilon: float
    count: int

    def span(self, direction: Direction, tail: float) -> float:
        """See Access; every direction is the same."""
        del direction, tail
        return 2 * self.epsilon

    def grid(self, direction: Direction, interval: float, tail: float) -> LossGrid:
        """See Access."""
        del direction, tail
        likely = 1 / (1 + math.exp(-self.epsilon))
        return _atoms(np.array([-self.epsilon, self.epsilon]), np.array([1 - likely, likely]), interval, infinity=0.0)


@dataclass(frozen=True, kw_only=True)
class DiscreteGaussian:
    """``count`` cells that move by one under integer noise ``P(y)`` proportional to ``exp(-y^2 / (2 s^2))``.

    The loss at y is ``(1 - 2y) / (2 s^2)``.
    """

    scale: float
    count: int

    def span(self, direction: Direction, tail: float) -> float:
        """See Access; every direction is the same."""
        del direction
        return (2 * self._reach(tail) + 1) / self.scale**2

    def grid(self, direction: Direction, interval: float, tail: float) -> LossGrid:
        """See Access."""
        del direction
        reach = self._reach(tail)
        noise = np.arange(reach, -reach - 1, -1)  # losses rise
        masses = np.exp(-(noise**2) / (2 * self.scale**2))
        return _atoms((1 - 2 * noise) / (2 * self.scale**2), masses / masses.sum(), interval, infinity=tail)

    def _reach(self, tail: float) -> int:
        """Return K with ``P(|Y| > K)`` below ``tail``: the discrete tail is below ``2 exp(-K^2 / (2 s^2))``."""
        return math.ceil(self.scale * math.sqrt(2 * math.log(4 / tail))) + 1


def connect_the_dots(first: int, upper: Floats, lower: Floats, interval: float, *, infinity: float) -> LossGrid:
    """Return the grid of n intervals of losses, ``[(first + i) h, (first + i + 1) h]``.

    The mass ``P_i`` of an interval goes to its two ends so that both P and Q keep their masses: the upper end gets
    the share ``(1 - exp(l_i) Q_i / P_i) / (1 - exp(-h))``, where ``l_i`` is the lower end.

    Args:
        first: Index of the lowest end.
        upper: [n] masses under P.
        lower: [n] masses under Q; one that underflowed to zero sends its P upwards.
        interval: h, in nats.
        infinity: P of what lies above the last end.
    """
    ends = _grid(interval, first, len(upper))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        log_ratio = np.where((upper > 0) & (lower > 0), ends + np.log(lower) - np.log(upper), -np.inf)
    share = np.clip(-np.expm1(np.minimum(log_ratio, 0.0)) / -math.expm1(-interval), 0.0, 1.0)
    masses = np.zeros(len(upper) + 1)
    masses[1:] = share * upper
    masses[:-1] += (1 - share) * upper
    return _trimmed(first, masses, infinity)


def _atoms(losses: Floats, masses: Floats, interval: float, *, infinity: float) -> LossGrid:
    """Return the grid of a discrete pair; each atom is split between the two grid points around it."""
    below = np.floor(losses / interval).astype(np.int64)
    share = np.clip(-np.expm1(below * interval - losses) / -math.expm1(-interval), 0.0, 1.0)
    placed = below - below.min()
    size = int(placed.max()) + 2
    grid = np.zeros(size)
    grid += np.bincount(placed, (1 - share) * masses, size)
    grid += np.bincount(placed + 1, share * masses, size)
    return _trimmed(int(below.min()), grid, infinity)


def _trimmed(lower: int, masses: Floats, infinity: float) -> LossGrid:
    """Drop empty ends, which a tilt would multiply by infinity."""
    used = np.flatnonzero(masses)
    return LossGrid(lower + int(used[0]), masses[used[0] : used[-1] + 1], infinity)


def _grid(interval: float, first: int, count: int) -> Floats:
    """Return ``count`` losses from ``first`` intervals on."""
    return np.arange(first, first + count, dtype=np.float64) * interval


def _normal_between(points: Floats, scale: float) -> Floats:
    """Return the mass of N(0, scale^2) between neighbouring points, without cancellation in either tail."""
    scaled = points / scale
    left = special.ndtr(-np.abs(scaled))
    crossing = (scaled[:-1] < 0) & (scaled[1:] > 0)
    between: Floats = np.where(crossing, 1 - left[1:] - left[:-1], np.abs(np.diff(left)))
    return between


def _log_mixture(weight: float, exponent: float) -> float:
    """Return ``ln(1 - weight + weight * exp(exponent))``."""
    if weight == 0:
        return 0.0
    stay = math.log1p(-weight) if weight < 1 else -math.inf
    return float(np.logaddexp(stay, math.log(weight) + exponent))
