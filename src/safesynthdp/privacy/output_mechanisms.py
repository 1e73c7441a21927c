"""The mechanisms at sampling time with a pure epsilon: each one frozen object that draws a token and knows its price.

Here: softmax, laplace, laplace_probs, uniform_mix. Elsewhere: what they share (output_pricing.py), Gaussian noise
(output_gaussian.py), bounding a record (output_clipping.py), randomness (output_draws.py). ``mechanisms.py`` names all.

Symbols as in output_pricing.py, and tau ``temperature``, b ``scale``, L ``mixing``, V ``vocab_size``.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from safesynthdp.errors import ConfigError
from safesynthdp.privacy import checks
from safesynthdp.privacy.conversions import pure_rho
from safesynthdp.privacy.losses import Access, Adjacency
from safesynthdp.privacy.output_clipping import clipped_mean, mean_probabilities
from safesynthdp.privacy.output_conversions import mixing_epsilon, rdp_curve, softmax_rho
from safesynthdp.privacy.output_draws import Floats, Tokens, TokenStep, pick, softmax
from safesynthdp.privacy.output_pricing import BoundedRange, OutputMechanism

_LEAST_MIXING = 1e-30
_MAX_CLIP = 50.0  # in units of the temperature: beyond it a candidate could underflow to probability 0


@dataclass(frozen=True, kw_only=True)
class _ClippedScores(OutputMechanism):
    """Score differences, each clipped to [-C, C] and averaged."""

    clip: float

    @property
    def score_range(self) -> float:
        """R."""
        return self.width * self.clip / self.shards


@dataclass(frozen=True, kw_only=True)
class Softmax(_ClippedScores):
    """Draw y with probability proportional to ``exp(q_y / tau)``: the exponential mechanism; R/tau-bounded range."""

    temperature: float = 1.0
    name: ClassVar[str] = "softmax"

    @property
    def eta(self) -> float:
        """R / tau."""
        return self.score_range / self.temperature

    @property
    def pure_step(self) -> float:
        """Eta."""
        return self.eta

    @property
    def simple_rho_step(self) -> float:
        """``eta^2 / 8``: for Gumbel noise, and nothing else."""
        return self.eta**2 / 8

    @property
    def rho_step(self) -> float:
        """See ``softmax_rho``."""
        return softmax_rho(self.eta)

    def conversions(self, delta: float) -> dict[str, float]:
        """Return epsilon at ``delta``; bounded range has a Renyi curve of its own."""
        return super().conversions(delta) | {"rdp_curve": rdp_curve(self.eta, self.steps, delta)}

    def accesses(self, relation: Adjacency) -> tuple[Access, ...]:
        """Bounded range, not a pair of distributions."""
        del relation
        return (BoundedRange(eta=self.eta, pure=self.pure_step, count=self.steps),)

    def refuse_draws(self) -> None:
        """See OutputMechanism."""
        if self.clip / self.temperature > _MAX_CLIP:
            raise ConfigError(
                f"clip={self.clip} is above {_MAX_CLIP:g} times temperature={self.temperature}: tokens would "
                "underflow; lower it"
            )

    def probabilities(self, private_RK: Floats, public_K: Floats | None, *, recentre: bool = False) -> Floats:
        """Return [K] the distribution that is drawn from."""
        self.refuse_draws()
        scores_K = clipped_mean(private_RK, public_K, clip=self.clip, shards=self.shards, recentre=recentre)
        return softmax(scores_K, self.temperature)

    def draw(self, step: TokenStep) -> int:
        """See OutputMechanism."""
        probabilities_K = self.probabilities(step.private_RK, step.public_K, recentre=step.recentre)
        return pick(probabilities_K, step.uniform())


@dataclass(frozen=True, kw_only=True)
class Laplace(_ClippedScores):
    """``q + Lap(b)`` per candidate, then argmax; with a temperature softmax over all candidates. One token leaves."""

    scale: float
    temperature: float | None = None
    """None: argmax."""
    name: ClassVar[str] = "laplace"

    @property
    def _noisy_max(self) -> float:
        return self.score_range / self.scale

    @property
    def _eta(self) -> float | None:
        return None if self.temperature is None else self.score_range / self.temperature

    @property
    def pure_step(self) -> float:
        """``R / b``; with a temperature the smaller of it and ``R / tau``."""
        return self._noisy_max if self._eta is None else min(self._noisy_max, self._eta)

    @property
    def simple_rho_step(self) -> float:
        """``e^2 / 2``; with a temperature the smaller of it and ``eta^2 / 8``."""
        alone = self._noisy_max**2 / 2
        return alone if self._eta is None else min(alone, self._eta**2 / 8)

    @property
    def rho_step(self) -> float:
        """``e tanh(e / 2)``; with a temperature the smaller of it and ``softmax_rho``."""
        alone = pure_rho(self._noisy_max)
        return alone if self._eta is None else min(alone, softmax_rho(self._eta))

    def conversions(self, delta: float) -> dict[str, float]:
        """Return epsilon at ``delta``."""
        found = super().conversions(delta)
        return found if self._eta is None else found | {"rdp_curve": rdp_curve(self._eta, self.steps, delta)}

    def accesses(self, relation: Adjacency) -> tuple[Access, ...]:
        """A pure step, or one of bounded range when softmax follows."""
        if self._eta is None:
            return super().accesses(relation)
        return (BoundedRange(eta=self._eta, pure=self.pure_step, count=self.steps),)

    def draw(self, step: TokenStep) -> int:
        """See OutputMechanism; nothing but the one token may leave."""
        scores_K = clipped_mean(
            step.private_RK, step.public_K, clip=self.clip, shards=self.shards, recentre=step.recentre
        )
        noisy_K = scores_K + self.scale * step.laplace(len(scores_K))
        if self.temperature is None:
            return int(noisy_K.argmax())
        return pick(softmax(noisy_K, self.temperature), step.uniform())


@dataclass(frozen=True, kw_only=True)
class LaplaceProbs(OutputMechanism):
    """The mean of S probability vectors plus ``Lap(b)`` per candidate; then any decoding."""

    scale: float
    name: ClassVar[str] = "laplace_probs"

    @property
    def score_range(self) -> float:
        """The L1 sensitivity, 2/S."""
        return 2 / self.shards

    @property
    def pure_step(self) -> float:
        """``2 / (S b)``."""
        return self.score_range / self.scale

    @property
    def simple_rho_step(self) -> float:
        """``e^2 / 2``."""
        return self.pure_step**2 / 2

    @property
    def rho_step(self) -> float:
        """``e tanh(e / 2)``."""
        return pure_rho(self.pure_step)

    def draw(self, step: TokenStep) -> int:
        """See OutputMechanism."""
        mean_K = mean_probabilities(step.private_RK, step.public_K, shards=self.shards)
        noisy_K = mean_K + self.scale * step.laplace(len(mean_K))
        return step.decoding.draw_probabilities(noisy_K, step.uniform())


@dataclass(frozen=True, kw_only=True)
class UniformMix(OutputMechanism):
    """Draw from ``L p + (1 - L) / V``, p the mean private distribution: a demonstration of what one model costs."""

    mixing: float
    """L."""
    vocab_size: int
    """V."""
    name: ClassVar[str] = "uniform_mix"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole("vocab_size", self.vocab_size, at_least=2, at_most=checks.MAX_STEPS)
        checks.positive("mixing", self.mixing)
        if not _LEAST_MIXING <= self.mixing < 1:
            raise ConfigError(f"mixing={self.mixing} must lie in [{_LEAST_MIXING:g}, 1)")

    @property
    def score_range(self) -> None:
        """None."""
        return

    @property
    def pure_step(self) -> float:
        """See ``mixing_epsilon``."""
        return mixing_epsilon(mixing=self.mixing, vocab_size=self.vocab_size, shards=self.shards)

    @property
    def simple_rho_step(self) -> float:
        """``e^2 / 2``."""
        return self.pure_step**2 / 2

    @property
    def rho_step(self) -> float:
        """``e tanh(e / 2)``."""
        return pure_rho(self.pure_step)

    def support(self, public_V: Floats, *, end: int, top_k: int | None) -> Tokens:
        """Return the whole vocabulary.

        Raises:
            ConfigError: If a part of it is asked for, or ``vocab_size`` is not its size.
        """
        del end
        if top_k is not None or len(public_V) != self.vocab_size:
            raise ConfigError(
                f"vocab_size={self.vocab_size}: mechanism=uniform_mix draws from all {len(public_V)} tokens of the "
                "model; set it to that, and leave public_top_k out"
            )
        return np.arange(len(public_V))

    def probabilities(self, private_RK: Floats, public_K: Floats | None) -> Floats:
        """Return [V] the distribution that is drawn from."""
        if len(private_RK) > self.shards:
            raise ConfigError(f"shards={self.shards}: mechanism=uniform_mix needs shards of a fixed number; use many")
        mean_K = np.maximum(mean_probabilities(private_RK, public_K, shards=self.shards), 0.0)
        if len(mean_K) != self.vocab_size:
            raise ConfigError(f"vocab_size={self.vocab_size} is not the model's {len(mean_K)}; set it to that")
        return np.asarray(self.mixing * mean_K / mean_K.sum() + (1 - self.mixing) / self.vocab_size)

    def draw(self, step: TokenStep) -> int:
        """See OutputMechanism."""
        return pick(self.probabilities(step.private_RK, step.public_K), step.uniform())
