"""Twelve ways in which private training goes wrong in the field, one wrong line each.

Here: N1 to N12, each the shipped step (canary_trainer.py) with one part replaced; the line that is wrong says so.
Elsewhere: what must reject them (selftest_engine.py). Nothing here is used for training. Shapes: B rows, S ids a row.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from safesynthdp.attacks.canary_trainer import MICRO_BATCHES, Attached, CanaryModel, CanaryTrainer, EngineOf
from safesynthdp.training.clipping import ClippingEngine, Tape
from safesynthdp.training.step import add_noise

ClipInto = Callable[[Tape, Mapping[str, Tensor], Tensor, float], Tensor]


class NoNoise(CanaryTrainer):
    """N1."""

    def add_noise(self, step: int) -> None:
        """Wrong: nothing is added."""


class NoClip(CanaryTrainer):
    """N2."""

    def attach(self, engine_of: EngineOf) -> Attached:
        """Wrong: see ``sum_unclipped``."""
        return super().attach(lambda model: BrokenEngine(engine_of(model), sum_unclipped))


class TenthOfTheNoise(CanaryTrainer):
    """N3: as when noise meant for the sum is divided by the batch size once more."""

    def add_noise(self, step: int) -> None:
        """Wrong: the factor."""
        add_noise(self.sums, mechanism=self.with_noise_times(0.1), keys=self.keys, step=step)


class HalfTheNoise(CanaryTrainer):
    """N4: as when a variance is taken for a standard deviation, or a rank leaves its share out."""

    def add_noise(self, step: int) -> None:
        """Wrong: the factor."""
        add_noise(self.sums, mechanism=self.with_noise_times(0.5), keys=self.keys, step=step)


class SameNoiseEveryStep(CanaryTrainer):
    """N5: as when a generator is seeded anew in each step."""

    def add_noise(self, step: int) -> None:
        """Wrong: step 0 for every step."""
        add_noise(self.sums, mechanism=self.mechanism, keys=self.keys, step=0)


class BatchClip(CanaryTrainer):
    """N6: as when ``clip_grad_norm_`` is taken for the clip of DP-SGD."""

    def attach(self, engine_of: EngineOf) -> Attached:
        """Wrong: see ``clip_the_average``."""
        return super().attach(lambda model: BrokenEngine(engine_of(model), clip_the_average))


class NoisePerMicroBatch(CanaryTrainer):
    """N7: gradients are accumulated, and each micro-batch brings an equal share of the standard deviation."""

    def add_noise(self, step: int) -> None:
        """Wrong: k draws of std / k add up to std / sqrt(k)."""
        for number in range(MICRO_BATCHES):
            share = self.with_noise_times(1 / MICRO_BATCHES)
            add_noise(self.sums, mechanism=share, keys=self.keys, step=MICRO_BATCHES * step + number)


class RealisedDivisor(CanaryTrainer):
    """N8: the mean over the records that were drawn; the noise then tells how many there were."""

    def divisor(self, present: NDArray[np.intp]) -> float:
        """Wrong: a private number."""
        return len(present)


class ShuffledBatches(CanaryTrainer):
    """N9: every record exactly once an epoch, priced as Poisson sampling."""

    def draw(self, step: int) -> NDArray[np.intp]:
        """Wrong: fixed batches; who knows the order knows the step of each record."""
        return np.flatnonzero(np.arange(self.world.num_records) % self.world.steps == step)


class CrossRecordPath(CanaryTrainer):
    """N10: packing, batch statistics or attention across rows."""

    def ids(self, batch: NDArray[np.intp]) -> Tensor:
        """Wrong: every row reads all records of its micro-batch."""
        return super().ids(batch).T.expand(len(batch), -1)


class RepeatedRecord(CanaryTrainer):
    """N11: four copies of each record in the data, each drawn and clipped by itself, one claimed."""

    def draw(self, step: int) -> NDArray[np.intp]:
        """Wrong: four times; right under a claim for groups of four."""
        return np.repeat(super().draw(step), COPIES)


class UncoveredParameters(CanaryTrainer):
    """N12: adapters are private, and the table beside them is trained as usual."""

    def build_model(self) -> CanaryModel:
        """Return the table with an adapter."""
        return _ModelWithAdapter(self.world.num_records)

    def attach(self, engine_of: EngineOf) -> Attached:
        """Wrong: see ``unfreeze_after_attaching``."""
        return unfreeze_after_attaching(self.model.table, lambda: super(UncoveredParameters, self).attach(engine_of))


COPIES = 4


def sum_unclipped(tape: Tape, sums: Mapping[str, Tensor], losses_B: Tensor, bound: float) -> Tensor:
    """N2. Wrong: the bound is not passed on."""
    return tape.clip_into(sums, losses_B, per_sample_max_grad_norm=math.inf)


def clip_the_average(tape: Tape, sums: Mapping[str, Tensor], losses_B: Tensor, bound: float) -> Tensor:
    """N6. Wrong: one factor for the average gradient, none for each record."""
    plain = {name: torch.zeros_like(total) for name, total in sums.items()}
    norms_B = tape.clip_into(plain, losses_B, per_sample_max_grad_norm=math.inf)
    average = torch.cat([total.flatten() for total in plain.values()]) / len(losses_B)
    factor = min(1.0, bound / float(average.norm()))
    for name, total in sums.items():
        total.add_(plain[name], alpha=factor)
    return norms_B


def unfreeze_after_attaching(layer: nn.Module, attach: Callable[[], Attached]) -> Attached:
    """N12. Attach the engine, and let a further layer train that it does not know."""
    layer.requires_grad_(False)
    attached = attach()
    layer.requires_grad_(True)  # wrong: the engine and the step have listed their parameters already
    return attached


class BrokenEngine:
    """An engine with another ``clip_into``."""

    def __init__(self, engine: ClippingEngine, clip_into: ClipInto) -> None:
        self.name = engine.name
        self._engine, self._clip_into = engine, clip_into

    @contextmanager
    def tape(self, *, rows: int, units: int | None = None) -> Iterator[Tape]:
        """See ``ClippingEngine.tape``."""
        with self._engine.tape(rows=rows, units=units) as tape:
            yield _BrokenTape(tape, self._clip_into)

    def close(self) -> None:
        """See ``ClippingEngine.close``."""
        self._engine.close()


@dataclasses.dataclass(frozen=True)
class _BrokenTape:
    tape: Tape
    broken: ClipInto

    def clip_into(self, sums: Mapping[str, Tensor], losses_U: Tensor, *, per_sample_max_grad_norm: float) -> Tensor:
        return self.broken(self.tape, sums, losses_U, per_sample_max_grad_norm)


class _ModelWithAdapter(CanaryModel):
    def __init__(self, num_coordinates: int) -> None:
        super().__init__(num_coordinates)
        self.adapter = nn.Linear(1, 1, bias=False)

    def forward(self, ids_BS: Tensor) -> Tensor:
        adapted_B: Tensor = self.adapter(torch.ones(len(ids_BS), 1)).squeeze(1)
        return super().forward(ids_BS) + adapted_B
