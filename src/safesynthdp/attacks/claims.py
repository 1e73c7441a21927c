"""What a release claims, as an audit compares it: for one record, or for a group of copies.

Here: the claim of one channel, its trade-off curve, its (epsilon, delta) for a group. Elsewhere: the test of the curve
(claimed_curve.py), bounds (bounds.py), what was spent (privacy/ledger.py). Source: Dwork and Roth (2014), theorem 2.2,
for groups; Dong, Roth and Su (2022), arXiv:1905.02383, for Gaussian claims. Symbols: mu of a Gaussian claim, k copies.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from scipy.special import log_ndtr, ndtr

from safesynthdp.attacks.claimed_curve import LARGEST_EPSILON, Tradeoff, profile_tradeoff, sampled_gaussian_tradeoff
from safesynthdp.errors import ConfigError
from safesynthdp.privacy.ledger import Ledger

_BISECT_TO = 1e-9
AUDITABLE_ADJACENCY = "add_remove"
"""A coin decides whether a canary is there, which is what this adjacency protects."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The promise of one release; ``epsilon`` None is no promise."""

    epsilon: float | None
    """For one unit, in nats."""
    delta: float | None
    adjacency: str = AUDITABLE_ADJACENCY
    unit: str = "record"
    """Whom it protects: record or user."""
    noise_multiplier: float | None = None
    """With sample_rate and steps: the release is one run of DP-SGD and nothing else, so the whole curve is claimed."""
    sample_rate: float | None = None
    steps: int | None = None
    is_seeded: bool = False
    """The noise came from a seed that somebody may know."""

    @cached_property
    def tradeoff(self) -> Tradeoff | None:
        """The curve of the claim for one unit; None without a promise."""
        if self.epsilon is None or self.delta is None:
            return None
        if self.noise_multiplier and self.sample_rate and self.steps:
            return sampled_gaussian_tradeoff(
                noise_multiplier=self.noise_multiplier, sample_rate=self.sample_rate, steps=self.steps
            )
        return profile_tradeoff([(self.epsilon, self.delta)])

    def of_group(self, copies: int) -> tuple[float, float] | None:
        """Return (epsilon, delta) for a unit that was put in ``copies`` times; None where that promises nothing.

        A Gaussian claim (every record in every step): ``mu -> k mu`` at the same delta. Any other: ``k epsilon, delta
        (e^{k epsilon} - 1) / (e^epsilon - 1)``, which is nothing from a delta of 1 on.

        Raises:
            ConfigError: If ``copies`` is not a whole number of at least 1.
        """
        if isinstance(copies, bool) or copies < 1:
            raise ConfigError(f"group_size={copies} is not a number of copies; give a whole number of at least 1")
        if self.epsilon is None or self.delta is None:
            return None
        if copies == 1:
            return self.epsilon, self.delta
        if self.sample_rate == 1 and self.noise_multiplier and self.steps and self.delta > 0:
            return gaussian_epsilon(copies * math.sqrt(self.steps) / self.noise_multiplier, self.delta), self.delta
        if copies * self.epsilon > LARGEST_EPSILON:
            return None
        factor = math.expm1(copies * self.epsilon) / math.expm1(self.epsilon) if self.epsilon else float(copies)
        delta = self.delta * factor
        return (copies * self.epsilon, delta) if delta < 1 else None


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the epsilon of a mu-Gaussian claim at ``delta``, to 1e-9 from above.

    ``delta(eps) = Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2)``.

    Raises:
        ConfigError: If mu is not positive and finite or delta is outside (0, 1).
    """
    if not 0 < mu < math.inf or not 0 < delta < 1:
        raise ConfigError(f"mu={mu}, delta={delta}: give mu above 0 and delta between 0 and 1")

    def excess(epsilon: float) -> float:
        tail = math.exp(min(0.0, epsilon + float(log_ndtr(-epsilon / mu - mu / 2))))
        return float(ndtr(-epsilon / mu + mu / 2)) - tail - delta

    if excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while excess(high) > 0:
        low, high = high, 2 * high
    while high - low > _BISECT_TO:
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


def claim_of_release(ledger: Ledger, artifact: str) -> Claim:
    """Return what a ledger claims for its last release of ``artifact`` (weights or synthetic_text).

    The whole curve is claimed only where the release rests on a single run of DP-SGD; beside a label histogram or
    another mechanism the (epsilon, delta) pair is.

    Raises:
        ConfigError: If there is no such release.
    """
    releases = [release for release in ledger.releases if release.artifact == artifact]
    if not releases:
        raise ConfigError(f"artifact={artifact}: the ledger has no such release; it was not made, so it claims nothing")
    release = releases[-1]
    entries = [entry for entry in ledger.entries if entry.id in release.entries]
    mechanism = entries[0].mechanism if len(entries) == 1 and entries[0].kind == "dpsgd" else {}
    steps = mechanism.get("steps")
    return Claim(
        epsilon=release.epsilon,
        delta=release.delta,
        adjacency=ledger.adjacency,
        unit=ledger.unit,
        noise_multiplier=mechanism.get("noise_multiplier"),
        sample_rate=mechanism.get("sample_rate"),
        steps=None if steps is None else int(steps),
        is_seeded=any(entry.randomness.get("seeded", True) for entry in entries),
    )
