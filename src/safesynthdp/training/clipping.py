"""From a micro-batch's losses to one bounded sum of per-record gradients: the clip step.

Here: what an engine promises, the clip factors, and the engine that does not clip. Elsewhere: the engines that do
(bookkeeping.py, opacus_engines.py), the choice among them (engines.py), the noise and the division (step.py), the
sampling (privacy/mechanisms.py). Source: Algorithm 1 of Abadi et al. (2016), arXiv:1607.00133. Shapes: B rows of a
micro-batch, U privacy units (records, or users with B / U rows each, one after the other).
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from safesynthdp.errors import ConfigError

CLIP_MARGIN = 1e-3
"""The clip is at C * (1 - CLIP_MARGIN) and the noise is calibrated to C: float32 rounding cannot pass the bound."""


class Tape(Protocol):
    """The state of one micro-batch: opened before its forward pass, gone after its backward pass."""

    def clip_into(self, sums: Mapping[str, Tensor], losses_U: Tensor, *, per_sample_max_grad_norm: float) -> Tensor:
        """Add sum_i g_i * min(1, C / ||g_i||) to ``sums`` (one float32 tensor a trainable) and return ||g_i||, [U].

        Norms and products are taken in the precision of ``sums``.

        Guarantee:
            Unit i moves ``sums`` by at most C in L2 norm over all trainables together. A unit whose norm is not
            finite adds exactly nothing; its norm is returned as NaN.

        Raises:
            NonFiniteRows: By an engine that cannot leave such a unit out; nothing was added, run the others again.
            UnsupportedLayer: If a trainable was not reached, or records reached into one another.
        """
        ...


class ClippingEngine(Protocol):
    """Adds the clipped gradients of one micro-batch to the running sums; owns no noise, sampling or accounting."""

    name: str

    def tape(self, *, rows: int, units: int | None = None) -> AbstractContextManager[Tape]:
        """Open the tape of a micro-batch; run the forward pass and ``clip_into`` within it.

        Outside a tape, forward and backward passes are ordinary ones.

        Args:
            rows: B, rows of the batch.
            units: U, privacy units; unit u owns rows u * B / U to (u + 1) * B / U. None = every row is a unit.
        """
        ...

    def close(self) -> None:
        """Leave the model as it was found."""
        ...


class NonFiniteRows(Exception):
    """Units whose gradient is not finite, which this engine cannot leave out of the sum; nothing was added."""

    def __init__(self, norms_U: Tensor) -> None:
        super().__init__("some gradients are not finite")
        self.norms_U = norms_U


class PlainEngine:
    """The ordinary gradient of the summed losses: no clip, hence no guarantee (``privacy.mode: none``)."""

    name = "plain"

    def __init__(self, model: nn.Module) -> None:
        self._trainable = trainable_parameters(model)

    @contextmanager
    def tape(self, *, rows: int, units: int | None = None) -> Iterator["PlainEngine"]:
        """See ``ClippingEngine.tape``; there is nothing to record."""
        units_of(rows, units)
        yield self

    def clip_into(self, sums: Mapping[str, Tensor], losses_U: Tensor, *, per_sample_max_grad_norm: float) -> Tensor:
        """Add sum_i g_i; rows whose loss is not finite are left out. The norms are not known: NaN."""
        if per_sample_max_grad_norm != math.inf:
            raise ConfigError("privacy.per_sample_max_grad_norm: the plain engine cannot clip; this is a defect")
        losses_U[losses_U.isfinite()].sum().backward()  # type: ignore[no-untyped-call]
        grads = {name: parameter.grad for name, parameter in self._trainable.items() if parameter.grad is not None}
        if all(bool(grad.isfinite().all()) for grad in grads.values()):
            for name, grad in grads.items():
                sums[name].add_(grad.to(sums[name].dtype))
        for parameter in self._trainable.values():
            parameter.grad = None
        return torch.full((len(losses_U),), math.nan)

    def close(self) -> None:
        """Nothing was changed."""


def clip_factors(norms_U: Tensor, *, per_sample_max_grad_norm: float) -> Tensor:
    """Return c_i = min(1, C (1 - margin) / ||g_i||), [U]; 0 where the norm is not finite.

    Raises:
        ConfigError: If C is not above 0. C = infinity clips nothing (c_i = 1).
    """
    if not per_sample_max_grad_norm > 0:
        raise ConfigError(
            f"privacy.per_sample_max_grad_norm={per_sample_max_grad_norm} bounds nothing; give one above 0"
        )
    if per_sample_max_grad_norm == math.inf:
        return norms_U.isfinite().to(norms_U.dtype)
    bound = per_sample_max_grad_norm * (1 - CLIP_MARGIN)
    factors_U = bound / norms_U.clamp(min=bound)  # min(1, bound / norm) without dividing by zero
    return torch.where(norms_U.isfinite(), factors_U, 0.0)


def squared_norms(grads_U: Tensor) -> Tensor:
    """Return ||g_i||^2, [U], of gradients [U, ...].

    ``square().sum()`` adds pairwise; ``norm()`` of float32 on a CPU is 6.5e-5 too small on 4.7M elements, the unsafe
    side. Large ones go row by row, so that the squares need the memory of one.
    """
    if grads_U.numel() <= 1 << 24:
        return grads_U.flatten(1).square().sum(dim=1)
    return torch.stack([row.square().sum() for row in grads_U])


def units_of(rows: int, units: int | None) -> int:
    """Return U.

    Raises:
        ConfigError: If the rows cannot be shared out evenly.
    """
    units = rows if units is None else units
    if units < 1 or rows % units:
        raise ConfigError(f"units={units} do not divide rows={rows} of a micro-batch evenly; this is a defect")
    return units


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what is trained, by name, each tensor once (a tie is listed under its first name)."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
