"""One private step: clipped sum, noise once, public divisor.

Here: steps 5 to 7 of Algorithm 1 of Abadi et al. (2016), arXiv:1607.00133. Elsewhere: per-record gradients and the
clip (clipping.py), the draw and the noise's distribution (privacy/mechanisms.py), the order of events (loop.py).
Shapes: one float32 tensor a trainable parameter.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.training.clipping import ClippingEngine
from safesynthdp.training.config import HardwareConfig
from safesynthdp.training.examples import Example, micro_batches
from safesynthdp.training.loss import record_losses


class NoiseMechanism(Protocol):
    """What a step needs of the mechanism that is priced (``DPSGDMechanism``)."""

    def noise(self, *, step: int, tensor: int, count: int, keys: StepKeys, offset: int = 0) -> NDArray[np.float64]:
        """Return [count] float64 normals with standard deviation noise_multiplier * C."""
        ...


@dataclass(frozen=True, kw_only=True)
class StepFacts:
    """What a step looked like. Private: computed from the records of the draw, for metrics.jsonl alone."""

    loss: float | None
    """Mean loss of the drawn records, nats per token; None for an empty draw."""
    clip_share: float | None
    """Share of drawn records whose gradient was clipped; None without a clip or for an empty draw."""
    batch_size: int
    """Records drawn."""
    num_dropped: int
    """Records whose gradient was not finite; they added nothing."""


def sum_clipped_gradients(
    model: nn.Module,
    engine: ClippingEngine,
    sums: Mapping[str, Tensor],
    examples: Sequence[Example],
    *,
    per_sample_max_grad_norm: float,
    hardware: HardwareConfig,
    pad_token_id: int,
    dropout_seed: int,
) -> StepFacts:
    """Add every record's clipped gradient to ``sums`` (zeroed first) in length-sorted micro-batches.

    Guarantee:
        One record moves the result by at most C in L2 norm whatever the micro-batches (clipping.py). An empty draw
        runs no forward pass and leaves zeros: that is still a step, noised and charged.
    """
    for total in sums.values():
        total.zero_()
    device = next(iter(sums.values())).device
    losses, norms = list[Tensor](), list[Tensor]()
    batches = micro_batches(
        examples,
        max_tokens=hardware.max_tokens_per_microbatch,
        max_rows=hardware.physical_batch_size,
        pad_token_id=pad_token_id,
        device=device,
    )
    for number, (_, batch) in enumerate(batches):
        torch.manual_seed(dropout_seed + number)
        losses_B = record_losses(model, batch)
        norms_B = engine.clip_into(sums, losses_B, per_sample_max_grad_norm=per_sample_max_grad_norm)
        losses.append(losses_B.detach().cpu())
        norms.append(norms_B.cpu())
    return _facts(losses, norms, per_sample_max_grad_norm)


def add_noise(sums: Mapping[str, Tensor], *, mechanism: NoiseMechanism, keys: StepKeys, step: int) -> None:
    """Add noise_multiplier * C * N(0, 1) to every coordinate, once per logical step, whatever the micro-batches.

    Guarantee:
        Tensor k of step t gets a block of the keystream that no other tensor, step or incarnation uses. Normals are
        drawn in float64 and added in float32.
    """
    for index, total in enumerate(sums.values()):
        noise = mechanism.noise(step=step, tensor=index, count=total.numel(), keys=keys)
        total.view(-1).add_(torch.from_numpy(noise).to(device=total.device, dtype=total.dtype))


def set_gradients(trainable: Mapping[str, nn.Parameter], sums: Mapping[str, Tensor], *, divisor: float) -> None:
    """Set ``.grad = sum / expected_batch_size``: a public constant, never the number of records drawn."""
    for name, parameter in trainable.items():
        parameter.grad = sums[name] / divisor


def zero_sums(trainable: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return one float32 zero tensor a trainable, on its device."""
    return {name: torch.zeros_like(p, dtype=torch.float32) for name, p in trainable.items()}


def _facts(losses: Sequence[Tensor], norms: Sequence[Tensor], bound: float) -> StepFacts:
    if not losses:
        return StepFacts(loss=None, clip_share=None, batch_size=0, num_dropped=0)
    losses_N, norms_N = torch.cat(list(losses)), torch.cat(list(norms))
    clipped = bound != math.inf
    finite = losses_N[losses_N.isfinite()]
    dropped = ~norms_N.isfinite() if clipped else ~losses_N.isfinite()
    return StepFacts(
        loss=float(finite.mean()) if len(finite) else None,
        clip_share=float((norms_N > bound).float().mean()) if clipped else None,
        batch_size=len(losses_N),
        num_dropped=int(dropped.sum()),
    )
