"""The mechanisms that run, which are the mechanisms that are priced.

Here: Poisson-sampled Gaussian steps (DP-SGD) and the noisy label histogram, each one frozen object that draws and that
knows its price; and the names of the output mechanisms, which have files of their own (output_*.py). Elsewhere: the
formulas (accounting.py, conversions.py), randomness (randomness.py, integer_noise.py), clipping (training). Fields are
public; records, counts and randomness are arguments.
"""

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from safesynthdp.errors import ConfigError, LedgerMismatch
from safesynthdp.privacy import checks, conversions
from safesynthdp.privacy.accounting import dpsgd_epsilon
from safesynthdp.privacy.entries import built, known_keys
from safesynthdp.privacy.integer_noise import discrete_gaussian, discrete_laplace
from safesynthdp.privacy.losses import Access, Adjacency, DiscreteGaussian, GaussianSteps, TwoPoint
from safesynthdp.privacy.output_gaussian import GaussianL2, GaussianProbs
from safesynthdp.privacy.output_mechanisms import Laplace, LaplaceProbs, Softmax, UniformMix
from safesynthdp.privacy.output_registry import Heuristic, output_mechanism
from safesynthdp.privacy.randomness import EntropySource, StepKeys, normals, words

if TYPE_CHECKING:
    import torch

__all__ = [
    "DPSGDMechanism",
    "GaussianL2",
    "GaussianProbs",
    "Heuristic",
    "LabelHistogramMechanism",
    "Laplace",
    "LaplaceProbs",
    "Softmax",
    "UniformMix",
    "label_shares",
    "output_mechanism",
    "poisson_draw",
]
SAMPLING_DOMAIN = "dpsgd/sampling"
NOISE_DOMAIN = "dpsgd/noise"
DEVICE_DOMAIN = "dpsgd/device_seed"
_MIN_SCALE, _MAX_SCALE = 1e-2, 1e9


@dataclass(frozen=True, kw_only=True)
class DPSGDMechanism:
    """Poisson-sampled Gaussian mechanism: each record joins a step by its own coin, the clipped sum gets noise."""

    num_records: int
    """Units in the data: records, or users when ``unit: user``. Public, or listed under not_covered."""
    expected_batch_size: int | float
    """Mean number of units in a step; the divisor of the sum, whatever was drawn."""
    noise_multiplier: float
    """Noise standard deviation / ``per_sample_max_grad_norm``; no unit."""
    steps: int
    """Optimizer steps; a logical batch counts once, an empty one too. 0: nothing has run, nothing is spent."""
    per_sample_max_grad_norm: float
    """L2 bound on one unit's gradient; the noise is in the same unit."""
    accountant: str = checks.AUTO
    """Which accountant prices it alone: prv, pld or rdp; auto becomes prv, or pld for adjacency=replace, when built."""
    adjacency: Adjacency = "add_remove"
    """Neighbours: one unit added or removed, or one replaced."""

    def __post_init__(self) -> None:
        checks.whole("num_records", self.num_records)
        checks.positive("expected_batch_size", self.expected_batch_size)
        if self.expected_batch_size > self.num_records:
            raise ConfigError(
                f"expected_batch_size={self.expected_batch_size} is above num_records={self.num_records}; lower it"
            )
        checks.positive("noise_multiplier", self.noise_multiplier)
        checks.whole("steps", self.steps, at_least=0, at_most=checks.MAX_STEPS)
        checks.positive("per_sample_max_grad_norm", self.per_sample_max_grad_norm)
        relation = checks.adjacency("adjacency", self.adjacency)
        object.__setattr__(self, "accountant", checks.accountant("accountant", self.accountant, relation=relation))

    @property
    def sample_rate(self) -> float:
        """Probability that a unit joins a step: exactly ``expected_batch_size / num_records``, in (0, 1]."""
        return self.expected_batch_size / self.num_records

    def draw_batch(self, *, step: int, keys: StepKeys, num_present: int | None = None) -> NDArray[np.intp]:
        """Return the sorted indices of the units of one step; possibly none, and that is still a step.

        Args:
            step: The logical step.
            keys: The run's keys.
            num_present: How many units there are where that is not ``num_records``: in a shadow model, whose size is
                random, the rate stays that of the size it was planned with.

        Guarantee:
            Unit i is in when its own 64-bit word is below ``floor(sample_rate * 2^64)``, so each joins alone, with a
            probability at most the one that is priced. The draw depends on (keys, step) only: every process draws the
            same, and a resumed run draws what an unbroken one would have.
        """
        return poisson_draw(
            num_records=self.num_records,
            expected_batch_size=self.expected_batch_size,
            step=step,
            keys=keys,
            num_present=num_present,
        )

    def noise(self, *, step: int, tensor: int, count: int, keys: StepKeys, offset: int = 0) -> NDArray[np.float64]:
        """Return elements ``offset:offset + count`` of the noise of one tensor in one step.

        Normal with standard deviation ``noise_multiplier * per_sample_max_grad_norm``, for the *sum* of clipped
        gradients. An element depends on its own place only, so shards draw their parts and agree. Add it once a step,
        after the reduction over processes.
        """
        drawn = normals(keys.noise, domain=NOISE_DOMAIN, step=step, tensor=tensor, count=count, offset=offset)
        drawn *= self.noise_multiplier * self.per_sample_max_grad_norm
        return drawn

    def device_noise(
        self, *, step: int, tensor: int, count: int, keys: StepKeys, device: "torch.device"
    ) -> "torch.Tensor":
        """Return the same distribution as ``noise``, drawn where the model is: [count] float64 on ``device``.

        Guarantee:
            That of ``noise`` against anyone who cannot predict the device's generator, which is not cryptographic.
            Each step and tensor seeds it anew with a word of the secret noise key, so a step can be replayed.
        """
        import torch

        word = words(keys.noise, domain=DEVICE_DOMAIN, step=step, tensor=tensor, count=1)[0]
        generator = torch.Generator(device).manual_seed(int(word >> np.uint64(1)))
        drawn = torch.randn(count, dtype=torch.float64, device=device, generator=generator)
        return drawn.mul_(self.noise_multiplier * self.per_sample_max_grad_norm)

    def epsilon(self, *, delta: float) -> float:
        """Return the price of all ``steps``, at ``delta``, by this mechanism's accountant."""
        return dpsgd_epsilon(
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.sample_rate,
            steps=self.steps,
            delta=delta,
            accountant=self.accountant,
            adjacency=self.adjacency,
        )

    def accesses(self) -> tuple[Access, ...]:
        """Return what a joint price is computed from; nothing before the first step."""
        if self.steps == 0:
            return ()
        rate, noise = self.sample_rate, float(self.noise_multiplier)
        return (GaussianSteps(noise_multiplier=noise, sample_rate=rate, count=self.steps),)

    def with_steps(self, steps: int) -> "DPSGDMechanism":
        """Return the same mechanism after another number of steps."""
        return dataclasses.replace(self, steps=steps)

    def to_entry(self) -> dict[str, Any]:
        """Return every number of its formula, under the flag names of ``account dpsgd``."""
        return {**dataclasses.asdict(self), "sample_rate": self.sample_rate, "sampling": "poisson"}

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> "DPSGDMechanism":
        """Read what ``to_entry`` wrote; an entry that names no accountant was priced by pld.

        Raises:
            LedgerMismatch: If a key is missing, unknown or out of range, or the sample rate is not the quotient.
        """
        required = {"num_records", "expected_batch_size", "noise_multiplier", "steps", "sample_rate"}
        optional = {"per_sample_max_grad_norm", "accountant", "adjacency", "sampling"}
        values = {"per_sample_max_grad_norm": 1.0, "accountant": "pld"} | known_keys(
            entry, required=required, optional=optional
        )
        rate, sampling = values.pop("sample_rate"), values.pop("sampling", "poisson")
        if sampling != "poisson":
            raise LedgerMismatch(f"ledger: sampling is {sampling}, and only poisson can be priced")
        found = built(cls, values)
        if values["accountant"] != found.accountant:
            raise LedgerMismatch(f"ledger: accountant is {values['accountant']}, which names none; restore the ledger")
        if rate != found.sample_rate:
            raise LedgerMismatch(
                f"ledger: sample_rate is {rate}, expected_batch_size / num_records is {found.sample_rate}; restore it"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class LabelHistogramMechanism:
    """Counts of the public labels with exact integer noise."""

    mechanism: Literal["laplace", "gaussian"]
    """``P(y)`` proportional to ``exp(-|y| / scale)``, or to ``exp(-y^2 / (2 scale^2))``, for whole y."""
    scale: float
    """Scale of the noise, in records."""
    adjacency: Adjacency = "add_remove"
    """A record added or removed moves one cell by one, a record replaced two cells."""

    def __post_init__(self) -> None:
        if self.mechanism not in ("laplace", "gaussian"):
            raise ConfigError(f"mechanism={self.mechanism} is not one of laplace, gaussian")
        checks.positive("scale", self.scale)
        checks.adjacency("adjacency", self.adjacency)
        largest = conversions.MAX_GAUSSIAN_SCALE if self.mechanism == "gaussian" else _MAX_SCALE
        if not _MIN_SCALE <= self.scale <= largest:
            raise ConfigError(
                f"scale={self.scale} is outside [{_MIN_SCALE:g}, {largest:g}], where noise means something"
            )

    @classmethod
    def from_epsilon(cls, epsilon: float, adjacency: Adjacency) -> "LabelHistogramMechanism":
        """Return discrete Laplace noise that costs the pure ``privacy.label_histogram_epsilon``."""
        checks.positive("privacy.label_histogram_epsilon", epsilon)
        cells = 2 if checks.adjacency("privacy.adjacency", adjacency) == "replace" else 1
        scale = cells / epsilon
        if cells / scale > epsilon:
            scale = math.nextafter(scale, math.inf)
        return cls(mechanism="laplace", scale=scale, adjacency=adjacency)

    @property
    def accountant(self) -> str:
        """Its own conversions; alone it never asks another accountant."""
        return "conversions"

    @property
    def cells(self) -> int:
        """How many counts one neighbour moves, each by one."""
        return 2 if self.adjacency == "replace" else 1

    @property
    def pure_epsilon(self) -> float | None:
        """Epsilon at delta 0; None where there is none."""
        return self.cells / self.scale if self.mechanism == "laplace" else None

    @property
    def rho(self) -> float:
        """Zero-concentrated DP."""
        if self.mechanism == "laplace":
            return conversions.laplace_rho(scale=self.scale, cells=self.cells)
        return conversions.gaussian_rho(scale=self.scale, cells=self.cells)

    def draw(self, counts: Sequence[int], *, entropy: EntropySource) -> list[int]:
        """Return the counts with fresh noise: whole numbers, below 0 too.

        Guarantee:
            The labels are a public list: the count of a label that no record has is 0, is noised and stays. A label
            found in the data and not in the list must not become a cell.
        """
        exact = [checks.whole("counts", operator.index(count), at_least=0) for count in counts]
        scale = Fraction(self.scale)
        sampler = discrete_laplace if self.mechanism == "laplace" else discrete_gaussian
        return [count + sampler(scale, entropy) for count in exact]

    def conversions(self, delta: float) -> dict[str, float]:
        """Return epsilon at ``delta`` by every bound that holds, by name."""
        checks.probability("delta", delta)
        if self.mechanism == "laplace":
            return conversions.laplace_conversions(scale=self.scale, cells=self.cells, delta=delta)
        return conversions.gaussian_conversions(scale=self.scale, cells=self.cells, delta=delta)

    def epsilon(self, *, delta: float) -> float:
        """Return the smallest of the conversions."""
        return min(self.conversions(delta).values())

    def accesses(self) -> tuple[Access, ...]:
        """Return what a joint price is computed from."""
        if self.mechanism == "laplace":
            return (TwoPoint(epsilon=1 / self.scale, count=self.cells),)
        return (DiscreteGaussian(scale=float(self.scale), count=self.cells),)

    def to_entry(self) -> dict[str, Any]:
        """Return every number of its formula, under the flag names of ``account histogram``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> "LabelHistogramMechanism":
        """Read what ``to_entry`` wrote.

        Raises:
            LedgerMismatch: If a key is missing, unknown or out of range.
        """
        return built(cls, known_keys(entry, required={"mechanism", "scale"}, optional={"adjacency"}))


def label_shares(noisy_counts: Sequence[int]) -> list[float]:
    """Return noisy counts as shares that sum to 1: clamped at 0; all equal when none is above 0. Post-processing."""
    if not noisy_counts:
        raise ConfigError("labels=[] leaves nothing to share; give the public label set")
    clamped = [max(0, count) for count in noisy_counts]
    total = sum(clamped)
    return [count / total for count in clamped] if total else [1 / len(clamped)] * len(clamped)


def poisson_draw(
    *, num_records: int, expected_batch_size: int | float, step: int, keys: StepKeys, num_present: int | None = None
) -> NDArray[np.intp]:
    """Return the sorted indices of one Poisson draw at rate ``expected_batch_size / num_records``.

    The draw is among ``num_present`` units, ``num_records`` if not given.
    """
    count = num_records if num_present is None else checks.whole("num_present", num_present, at_least=0)
    threshold = int(Fraction(expected_batch_size / num_records) * 2**64)
    if threshold >= 2**64:
        return np.arange(count, dtype=np.intp)
    coins = words(keys.sampling, domain=SAMPLING_DOMAIN, step=step, tensor=0, count=count)
    return np.flatnonzero(coins < np.uint64(threshold))
