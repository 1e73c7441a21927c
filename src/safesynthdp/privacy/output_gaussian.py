"""Gaussian noise at sampling time: vectors of scores or of probabilities, which may then be decoded in any way.

Here: gaussian_l2, gaussian_probs. Elsewhere: as in output_mechanisms.py. Symbols as in output_pricing.py, and sigma
``scale``, mu = D / sigma.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from safesynthdp.privacy.losses import Access, Adjacency, GaussianSteps
from safesynthdp.privacy.output_clipping import clipped_mean_l2, mean_probabilities
from safesynthdp.privacy.output_conversions import gaussian_exact
from safesynthdp.privacy.output_draws import TokenStep
from safesynthdp.privacy.output_pricing import OutputMechanism


class _Gaussian(OutputMechanism):
    """Vectors with Gaussian noise: priced by ``mu = D / sigma``."""

    scale: float

    @property
    @abstractmethod
    def sensitivity(self) -> float:
        """D."""

    @property
    def l2_sensitivity(self) -> float:
        """D."""
        return self.sensitivity

    @property
    def score_range(self) -> None:
        """None."""
        return

    @property
    def pure_step(self) -> None:
        """None."""
        return

    @property
    def simple_rho_step(self) -> float:
        """``mu^2 / 2``."""
        return (self.sensitivity / self.scale) ** 2 / 2

    @property
    def rho_step(self) -> float:
        """``mu^2 / 2``, exact."""
        return self.simple_rho_step

    def conversions(self, delta: float) -> dict[str, float]:
        """Return epsilon at ``delta``; the steps are one Gaussian release."""
        mu = math.sqrt(self.steps) * self.sensitivity / self.scale
        return super().conversions(delta) | {"gaussian_exact": gaussian_exact(mu, delta)}

    def group_conversions(self, delta: float, *, size: int) -> dict[str, float]:
        """Return epsilon at ``delta`` for ``size`` records; ``group_gaussian`` has ``size`` times the sensitivity."""
        mu = math.sqrt(self.steps) * self.sensitivity / self.scale
        return super().group_conversions(delta, size=size) | {"group_gaussian": gaussian_exact(size * mu, delta)}

    def accesses(self, relation: Adjacency) -> tuple[Access, ...]:
        """Gaussian releases without sampling; a replaced record moves those of ``GaussianSteps`` twice as far."""
        distance = 2 if relation == "replace" else 1
        noise = distance * self.scale / self.sensitivity
        return (GaussianSteps(noise_multiplier=noise, sample_rate=1.0, count=self.steps),)


@dataclass(frozen=True, kw_only=True)
class GaussianL2(_Gaussian):
    """Score differences clipped to L2 norm C, averaged, plus ``N(0, sigma^2)`` per candidate; then any decoding."""

    clip: float
    scale: float
    name: ClassVar[str] = "gaussian_l2"

    @property
    def sensitivity(self) -> float:
        """C/S where a record can only vanish, else 2C/S."""
        return self.width / 2 * self.clip / self.shards

    def draw(self, step: TokenStep) -> int:
        """See OutputMechanism."""
        scores_K = clipped_mean_l2(
            step.private_RK, step.public_K, clip=self.clip, shards=self.shards, recentre=step.recentre
        )
        noisy_K = scores_K + self.scale * step.normal(len(scores_K))
        return step.decoding.draw_scores(noisy_K, step.uniform())


@dataclass(frozen=True, kw_only=True)
class GaussianProbs(_Gaussian):
    """The mean of S probability vectors plus ``N(0, sigma^2)`` per candidate; then any decoding."""

    scale: float
    name: ClassVar[str] = "gaussian_probs"

    @property
    def sensitivity(self) -> float:
        """``sqrt(2) / S``."""
        return math.sqrt(2) / self.shards

    def draw(self, step: TokenStep) -> int:
        """See OutputMechanism."""
        mean_K = mean_probabilities(step.private_RK, step.public_K, shards=self.shards)
        noisy_K = mean_K + self.scale * step.normal(len(mean_K))
        return step.decoding.draw_probabilities(noisy_K, step.uniform())
