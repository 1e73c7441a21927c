"""One private step: clipped sum, noise once, public divisor.

Here: steps 5 to 7 of Algorithm 1 of Abadi et al. (2016), arXiv:1607.00133. Elsewhere: per-record gradients and the
clip (clipping.py), the draw and the noise's distribution (privacy/mechanisms.py), the order of events (loop.py).
Several processes deal the micro-batches of one global draw among them (sharding.py) and add their sums up before the
noise. Shapes: one float32 tensor a trainable parameter.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from safesynthdp.errors import ConfigError, SafeSynthError
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.training.clipping import ClippingEngine, NonFiniteRows
from safesynthdp.training.config import HardwareConfig
from safesynthdp.training.examples import Example, collate
from safesynthdp.training.loss import record_losses
from safesynthdp.training.micro_batching import (
    Shape,
    longest_input,
    micro_batches,
    shaped_micro_batches,
)
from safesynthdp.training.precision import rounds_by_shape
from safesynthdp.training.ranks import Ranks
from safesynthdp.training.sharding import deal


class NoiseMechanism(Protocol):
    """What a step needs of the mechanism that is priced (``DPSGDMechanism``)."""

    def noise(self, *, step: int, tensor: int, count: int, keys: StepKeys, offset: int = 0) -> NDArray[np.float64]:
        """Return [count] float64 normals with standard deviation noise_multiplier * C."""
        ...

    def device_noise(self, *, step: int, tensor: int, count: int, keys: StepKeys, device: torch.device) -> Tensor:
        """Return the same, drawn on ``device`` by its own generator."""
        ...


@dataclass(frozen=True, kw_only=True)
class StepFacts:
    """What a step looked like. Private: computed from the records of the draw, for metrics.jsonl alone."""

    loss: float | None
    """Mean loss of the drawn units, nats per token; None for an empty draw."""
    clip_share: float | None
    """Share of drawn units whose gradient was clipped; None without a clip or for an empty draw."""
    batch_size: int
    """Units drawn: records, or users."""
    num_dropped: int
    """Units whose gradient was not finite; they added nothing."""


def sum_clipped_gradients(
    model: nn.Module,
    engine: ClippingEngine,
    sums: Mapping[str, Tensor],
    drawn: Sequence[Sequence[Example]],
    *,
    per_sample_max_grad_norm: float,
    hardware: HardwareConfig,
    pad_token_id: int,
    dropout_seed: int,
    ranks: Ranks | None = None,
) -> StepFacts:
    """Add every drawn unit's clipped gradient to ``sums`` (zeroed first) in length-sorted micro-batches.

    ``drawn`` holds for each drawn unit its records of this step: one, or for users up to max_records_per_user. It is
    the whole draw on every rank; each works on its share, and all leave with the same total. Dropout is seeded by the
    micro-batch's number in the whole draw, so it does not depend on who does it.

    Guarantee:
        One unit moves the result by at most C in L2 norm whatever the micro-batches (clipping.py) and the ranks: each
        unit is one rank's, and sums are added, never averaged. An empty draw runs no forward pass and leaves zeros:
        that is still a step, noised and charged.
    """
    ranks = ranks or Ranks()
    for total in sums.values():
        total.zero_()
    losses, norms = list[Tensor](), list[Tensor]()
    chosen = _micro_batches(model, drawn, hardware)
    costs = [shape.rows * shape.width if shape else _tokens([drawn[i] for i in rows]) for rows, shape in chosen]
    shares = deal(costs, world_size=ranks.world_size)
    with ranks.working():
        for number in shares[ranks.rank]:
            positions, shape = chosen[number]
            torch.manual_seed(dropout_seed + number)
            losses_U, norms_U = clip_units(
                model,
                engine,
                sums,
                [drawn[i] for i in positions],
                per_sample_max_grad_norm=per_sample_max_grad_norm,
                pad_token_id=pad_token_id,
                device=next(iter(sums.values())).device,
                shape=shape,
            )
            losses.append(losses_U)
            norms.append(norms_U)
        if ranks.is_sharded:
            missing = max(len(share) for share in shares) - len(shares[ranks.rank])
            _keep_up(model, engine, sums, missing, pad_token_id=pad_token_id, ranks=ranks)
    if ranks.shards is None:
        ranks.add_up(sums.values())
    return _facts(losses, norms, per_sample_max_grad_norm, ranks)


def clip_units(
    model: nn.Module,
    engine: ClippingEngine,
    sums: Mapping[str, Tensor],
    units: Sequence[Sequence[Example]],
    *,
    per_sample_max_grad_norm: float,
    pad_token_id: int,
    device: torch.device | str = "cpu",
    shape: Shape | None = None,
) -> tuple[Tensor, Tensor]:
    """Add the clipped gradients of one micro-batch to ``sums`` and return losses and norms, [U] each, on the CPU.

    A unit's loss is the mean over its records, of which each unit here has equally many. ``shape`` is filled up with
    units without a target, whose gradient is 0 and which are not returned. Where an engine cannot leave
    out a gradient that is not finite, the micro-batch runs again without that unit, whose norm stays NaN.
    """
    examples, real = [example for unit in units for example in unit], len(units)
    batch = collate(examples, pad_token_id=pad_token_id, device=device, shape=shape)
    filled = batch.rows // len(units[0])
    with engine.tape(rows=batch.rows, units=filled) as tape:
        losses_U = record_losses(model, batch).view(filled, -1).mean(dim=1)
        try:
            norms_U = tape.clip_into(sums, losses_U, per_sample_max_grad_norm=per_sample_max_grad_norm)
            return losses_U.detach().cpu()[:real], norms_U.cpu()[:real]
        except NonFiniteRows as broken:
            norms_U = broken.norms_U.cpu()[:real]
    losses_U = losses_U.detach().cpu()[:real]
    finite = [i for i, ok in enumerate(norms_U.isfinite().tolist()) if ok]
    if finite:
        left = [units[i] for i in finite]
        losses_U[finite], norms_U[finite] = clip_units(
            model,
            engine,
            sums,
            left,
            per_sample_max_grad_norm=per_sample_max_grad_norm,
            pad_token_id=pad_token_id,
            device=device,
            shape=shape,
        )
    return losses_U, norms_U


def add_noise(
    sums: Mapping[str, Tensor],
    *,
    mechanism: NoiseMechanism,
    keys: StepKeys,
    step: int,
    generator: Literal["keyed", "device"] = "keyed",
    offsets: Mapping[str, int] | None = None,
) -> None:
    """Add noise_multiplier * C * N(0, 1) to every coordinate, once per logical step, whatever the micro-batches.

    Guarantee:
        Tensor k of step t gets a block of the keystream that no other tensor, step or incarnation uses. Normals are
        drawn in float64 and added in float32. ``generator='device'`` is ``privacy.noise_generator``. Where ``sums`` are
        parts of tensors, ``offsets`` says at which element each begins: it gets the noise of its own place, the same
        bits as in one process, and no element gets any twice.

    Raises:
        ConfigError: If a device's generator is asked for a part.
    """
    if offsets is not None and generator == "device":
        raise ConfigError("privacy.noise_generator=device draws whole tensors; use keyed with hardware.sharding=full")
    for index, (name, total) in enumerate(sums.items()):
        if generator == "device":
            drawn = mechanism.device_noise(step=step, tensor=index, count=total.numel(), keys=keys, device=total.device)
        else:
            begin = 0 if offsets is None else offsets[name]
            noise = mechanism.noise(step=step, tensor=index, count=total.numel(), keys=keys, offset=begin)
            drawn = torch.from_numpy(noise).to(total.device)
        total.view(-1).add_(drawn.to(total.dtype))


def set_gradients(trainable: Mapping[str, nn.Parameter], sums: Mapping[str, Tensor], *, divisor: float) -> None:
    """Set ``.grad = sum / expected_batch_size``: a public constant, never the number of records drawn.

    Raises:
        SafeSynthError: If a sum is not finite. Clipped gradients and noise are, so this is a defect; nothing is hidden.
    """
    for name, parameter in trainable.items():
        if not bool(sums[name].sum().isfinite()):
            raise SafeSynthError(f"{name}: the sum of clipped gradients is not finite; lower train.learning_rate")
        parameter.grad = sums[name] / divisor


def zero_sums(trainable: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return one float32 zero tensor a trainable, on its device."""
    return {name: torch.zeros_like(p, dtype=torch.float32) for name, p in trainable.items()}


def _keep_up(
    model: nn.Module,
    engine: ClippingEngine,
    sums: Mapping[str, Tensor],
    count: int,
    *,
    pad_token_id: int,
    ranks: Ranks,
) -> None:
    """Run made-up micro-batches that are left out of the sum, so that this rank's passes are as many as the others'.

    Where sums are sharded, this rank gives zeros and keeps its part of what the others give.
    """
    made_up = Example(input_ids=(pad_token_id,) * 2, num_prompt_tokens=1, is_truncated=False)
    bound, device = math.inf if engine.name == "plain" else 1.0, next(iter(sums.values())).device
    for _ in range(count):
        held = sums if ranks.shards is not None else {name: torch.zeros_like(total) for name, total in sums.items()}
        with nullcontext() if ranks.shards is None else ranks.shards.giving_nothing():
            clip_units(
                model,
                engine,
                held,
                [[made_up]],
                per_sample_max_grad_norm=bound,
                pad_token_id=pad_token_id,
                device=device,
            )


def _micro_batches(
    model: nn.Module, drawn: Sequence[Sequence[Example]], hardware: HardwareConfig
) -> list[tuple[list[int], Shape | None]]:
    """Cut the draw; where shapes matter, no record decides another one's."""
    most, rows = hardware.max_tokens_per_microbatch, hardware.physical_batch_size
    if rounds_by_shape(model):
        return list(shaped_micro_batches(drawn, max_tokens=most, max_rows=rows, longest=longest_input(model)))
    return [(positions, None) for positions in micro_batches(drawn, max_tokens=most, max_rows=rows)]


def _tokens(units: Sequence[Sequence[Example]]) -> int:
    """Return rows x padded length of a micro-batch."""
    return sum(len(unit) for unit in units) * max(len(example) for unit in units for example in unit)


def _facts(losses: Sequence[Tensor], norms: Sequence[Tensor], bound: float, ranks: Ranks) -> StepFacts:
    """Count over all ranks."""
    losses_N = torch.cat([torch.empty(0), *losses]).double()
    norms_N = torch.cat([torch.empty(0), *norms])
    is_clipped = bound != math.inf
    finite = losses_N[losses_N.isfinite()]
    dropped = ~norms_N.isfinite() if is_clipped else ~losses_N.isfinite()
    clipped = float((norms_N > bound).sum())
    counted = [float(finite.sum()), len(finite), clipped, len(losses_N), float(dropped.sum())]
    loss, num_finite, num_clipped, num, num_dropped = ranks.total(counted)
    return StepFacts(
        loss=loss / num_finite if num_finite else None,
        clip_share=num_clipped / num if is_clipped and num else None,
        batch_size=int(num),
        num_dropped=int(num_dropped),
    )
