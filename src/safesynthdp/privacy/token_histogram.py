"""How often the units of each label use each token: one noisy table, and everything after it for free.

Here: the mechanism, its sensitivity, its noise and its price. Elsewhere: the table (training/token_counts.py), its use
(generation/token_matching.py), the label counts (mechanisms.py). Source of the noise: Balle and Wang (2018),
arXiv:1805.06530, theorem 8. Shapes: L labels, V tokens.

A record adds to the row of its label its token counts, scaled to L2 norm 1; a user adds the mean of its records'
contributions, whose norm is at most 1. Contributions are nowhere negative, so two of them differ by at most sqrt(2).
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesynthdp.errors import ConfigError
from safesynthdp.privacy import checks
from safesynthdp.privacy.accounting import OWN
from safesynthdp.privacy.entries import built, known_keys
from safesynthdp.privacy.losses import Access, Adjacency, GaussianSteps
from safesynthdp.privacy.output_conversions import gaussian_delta, gaussian_exact
from safesynthdp.privacy.randomness import StepKeys, derive_key, normals

NOISE_DOMAIN = "token_histogram"
_ROUNDING = 1e-6
"""Relative: norms and sums of float64 are charged with this margin."""
_LEAST_NOISE, _MOST_NOISE = 0.01, 1e6


@dataclass(frozen=True, kw_only=True)
class TokenHistogramMechanism:
    """A table of L x V sums over the units, released once with Gaussian noise in every cell."""

    noise_multiplier: float
    """Standard deviation of the noise / the norm of one unit's contribution, which is 1."""
    adjacency: Adjacency = "add_remove"
    """A unit added or removed moves the table by 1, a unit replaced by at most sqrt(2)."""

    def __post_init__(self) -> None:
        noise = checks.positive("noise_multiplier", self.noise_multiplier)
        if not _LEAST_NOISE <= noise <= _MOST_NOISE:
            raise ConfigError(
                f"noise_multiplier={noise} is outside [{_LEAST_NOISE:g}, {_MOST_NOISE:g}], where noise means something"
            )
        checks.adjacency("adjacency", self.adjacency)

    @classmethod
    def from_epsilon(cls, epsilon: float, *, delta: float, adjacency: Adjacency) -> "TokenHistogramMechanism":
        """Return the least noise, to 1e-9, that alone costs at most ``epsilon`` at ``delta``.

        >>> round(TokenHistogramMechanism.from_epsilon(1.0, delta=1e-5, adjacency="add_remove").noise_multiplier, 3)
        3.731
        """
        checks.positive("epsilon", epsilon)
        checks.probability("delta", delta)

        def costs(noise: float) -> float:
            return gaussian_delta(cls(noise_multiplier=noise, adjacency=adjacency).signal_to_noise, epsilon)

        low, high = _LEAST_NOISE, _MOST_NOISE
        if costs(high) > delta:
            raise ConfigError(f"epsilon={epsilon} at delta={delta} needs more noise than {_MOST_NOISE:g}; give more")
        while high - low > 1e-9 * high:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if costs(middle) > delta else (low, middle)
        return cls(noise_multiplier=high, adjacency=adjacency)

    @property
    def accountant(self) -> str:
        """Its own conversion; alone it never asks another accountant."""
        return OWN

    @property
    def sensitivity(self) -> float:
        """Largest L2 distance of the tables of two neighbours."""
        return (math.sqrt(2) if self.adjacency == "replace" else 1.0) * (1 + _ROUNDING)

    @property
    def signal_to_noise(self) -> float:
        """``mu`` of Gaussian differential privacy."""
        return self.sensitivity / self.noise_multiplier

    def draw(self, table_LV: NDArray[np.float64], *, keys: StepKeys) -> NDArray[np.float64]:
        """Return the table with noise; cells below 0 are as likely as the noise makes them.

        Guarantee:
            The key of the noise is derived from the run's secret one *and* from the table. The same table gets the
            same noise, so a run that was killed and begun again releases one table; of two different tables no
            difference is without noise. The labels and the vocabulary are public lists: empty cells get noise too.
        """
        exact = np.ascontiguousarray(table_LV, dtype=np.float64)
        own = derive_key(keys.noise, f"{NOISE_DOMAIN}/{hashlib.sha256(exact.tobytes()).hexdigest()}")
        noisy_LV = exact.copy()
        for row, noisy_V in enumerate(noisy_LV):
            noisy_V += self.noise_multiplier * normals(
                own, domain=NOISE_DOMAIN, step=0, tensor=row, count=noisy_LV.shape[1]
            )
        return noisy_LV

    def epsilon(self, *, delta: float) -> float:
        """Return its exact price alone."""
        return gaussian_exact(self.signal_to_noise, checks.probability("delta", delta))

    def accesses(self) -> tuple[Access, ...]:
        """One Gaussian release; a replaced unit moves that of ``GaussianSteps`` by 2, this one by less."""
        distance = 2.0 if self.adjacency == "replace" else 1.0
        return (GaussianSteps(noise_multiplier=distance / self.signal_to_noise, sample_rate=1.0, count=1),)

    def to_entry(self) -> dict[str, Any]:
        """Return every number of its formula, under the flag names of ``account tokens``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> "TokenHistogramMechanism":
        """Read what ``to_entry`` wrote.

        Raises:
            LedgerMismatch: If a key is missing, unknown or out of range.
        """
        return built(cls, known_keys(entry, required={"noise_multiplier"}, optional={"adjacency"}))
