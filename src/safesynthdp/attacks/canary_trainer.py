"""The shipped private step on made-up canaries whose leak is known exactly.

Here: the canaries, and a trainer whose every part is the one that trains a model. Elsewhere: the parts themselves
(privacy/mechanisms.py draws and makes noise, training/ clips, adds and divides), the same trainer with one part broken
(broken_trainers.py), the test of what it releases (claimed_curve.py). Shapes: B rows, P coordinates, T steps.

Canary i is token i of a one-column table; its loss is -10 C times its own entry, so its gradient is -10 C on its own
coordinate, at every step and whatever the weights are. Clipped, it moves the released update there by C / divisor. With
every canary in each of T steps, the sum of a coordinate's updates is Gaussian with ``mu = sqrt(T) / noise_multiplier``.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from safesynthdp.privacy.mechanisms import DPSGDMechanism
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.training.clipping import ClippingEngine, trainable_parameters
from safesynthdp.training.step import add_noise, set_gradients, zero_sums

CLIP = 1.0
"""C: per_sample_max_grad_norm of every canary run."""
CANARY_NORM = 10 * CLIP
"""A canary's gradient before clipping."""
MICRO_BATCHES = 4
Updates = NDArray[np.float64]
EngineOf = Callable[[nn.Module], ClippingEngine]
Attached = tuple[ClippingEngine, dict[str, nn.Parameter]]
"""An engine, and the parameters that the step noises and divides."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What is trained on and how, and how an attacker turns the released updates into one score a canary."""

    num_records: int
    """Canaries (and base records) that may be present; each has a coordinate of its own, from 0."""
    expected_batch_size: int
    """Mean draw if all were present; the divisor."""
    steps: int
    """T."""
    noise_multiplier: float
    """Noise standard deviation / C."""
    score: Callable[[Updates], NDArray[np.float64]]
    """[T, P] released updates -> scores, higher = more member-like."""
    num_idle: int = 0
    """Coordinates after the records' own that no record ever touches."""

    @property
    def mechanism(self) -> DPSGDMechanism:
        """The mechanism that runs, and is claimed."""
        return DPSGDMechanism(
            num_records=self.num_records,
            expected_batch_size=self.expected_batch_size,
            noise_multiplier=self.noise_multiplier,
            steps=self.steps,
            per_sample_max_grad_norm=CLIP,
        )


class CanaryModel(nn.Module):
    """One number a coordinate."""

    def __init__(self, num_coordinates: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_coordinates, 1)

    def forward(self, ids_BS: Tensor) -> Tensor:
        """Return one loss a row, [B]: -10 C times the sum of the entries it reads."""
        entries_BS1: Tensor = self.table(ids_BS)
        return -CANARY_NORM * entries_BS1.flatten(1).sum(dim=1)


class CanaryTrainer:
    """The shipped private step. Every method is one part of it, so a defect is one method.

    Weights stay where they are: the losses are linear, so no later gradient depends on them.
    """

    def __init__(self, world: World, engine_of: EngineOf, *, is_present: NDArray[np.bool_], keys: StepKeys) -> None:
        self.world, self.mechanism, self.keys = world, world.mechanism, keys
        self.is_present = is_present
        self.model = self.build_model()
        self.engine, self.trainable = self.attach(engine_of)
        self.sums = zero_sums(self.trainable)

    def train(self) -> Updates:
        """Return the released updates, [T, P]."""
        released = list[NDArray[np.float64]]()
        for step in range(self.world.steps):
            present = self.present(step)
            self.add_up(present)
            self.add_noise(step)
            released.append(self.release(present))
        return np.stack(released)

    def close(self) -> None:
        """Leave the model without hooks."""
        self.engine.close()

    def build_model(self) -> CanaryModel:
        """Return what is trained."""
        return CanaryModel(self.world.num_records + self.world.num_idle)

    def attach(self, engine_of: EngineOf) -> Attached:
        """Attach the engine, and list what is trained."""
        return engine_of(self.model), trainable_parameters(self.model)

    def present(self, step: int) -> NDArray[np.intp]:
        """Return the drawn records that are in the data; the coins of the others decide nothing."""
        drawn = self.draw(step)
        return drawn[self.is_present[drawn]]

    def draw(self, step: int) -> NDArray[np.intp]:
        """Return the indices of a Poisson draw, by the mechanism that is priced."""
        return self.mechanism.draw_batch(step=step, keys=self.keys)

    def ids(self, batch: NDArray[np.intp]) -> Tensor:
        """Return what each row of a micro-batch reads, [B, S]: its own token."""
        return torch.from_numpy(batch)[:, None]

    def add_up(self, present: NDArray[np.intp]) -> None:
        """Set the sums to the clipped gradients of the records, in micro-batches."""
        self.model.zero_grad()
        for total in self.sums.values():
            total.zero_()
        for batch in np.array_split(present, MICRO_BATCHES):
            if batch.size:
                with self.engine.tape(rows=batch.size) as tape:
                    losses_B = self.model(self.ids(batch))
                    tape.clip_into(self.sums, losses_B, per_sample_max_grad_norm=CLIP)

    def add_noise(self, step: int) -> None:
        """Add the noise of the step, once."""
        add_noise(self.sums, mechanism=self.mechanism, keys=self.keys, step=step)

    def divisor(self, present: NDArray[np.intp]) -> float:
        """Return the public constant."""
        return self.mechanism.expected_batch_size

    def release(self, present: NDArray[np.intp]) -> NDArray[np.float64]:
        """Divide, and return the update of every coordinate at learning rate 1, [P]."""
        set_gradients(self.trainable, self.sums, divisor=self.divisor(present))
        gradient = self.model.table.weight.grad
        assert gradient is not None
        return -gradient.view(-1).double().numpy()

    def with_noise_times(self, factor: float) -> DPSGDMechanism:
        """Return the mechanism with another noise; the shipped step has no use for it."""
        return dataclasses.replace(self.mechanism, noise_multiplier=factor * self.mechanism.noise_multiplier)
