"""From a micro-batch's losses to one bounded sum of per-record gradients: the clip step.

Here: the engines. Each takes the vector of losses, adds sum_i c_i g_i to the running sums and returns the norms.
Elsewhere: the noise and the division (step.py), the sampling (privacy/mechanisms.py). Source: Algorithm 1 of Abadi et
al. (2016), arXiv:1607.00133. Shapes: B rows of a micro-batch, P trainable parameters in all tensors together.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from safesynthdp.errors import ConfigError, UnsupportedLayer

CLIP_MARGIN = 1e-3
"""The clip is at C * (1 - CLIP_MARGIN) and the noise is calibrated to C: float32 rounding cannot pass the bound."""


class ClippingEngine(Protocol):
    """Adds the clipped gradients of one micro-batch to the running sums."""

    name: str

    def clip_into(self, sums: Mapping[str, Tensor], losses_B: Tensor, *, per_sample_max_grad_norm: float) -> Tensor:
        """Add sum_i g_i * min(1, C / ||g_i||) to ``sums`` (one float32 tensor a trainable) and return ||g_i||, [B].

        Norms and products are taken in the precision of ``sums``.

        Guarantee:
            Row i moves ``sums`` by at most C in L2 norm over all trainables together. A row whose norm is not finite
            adds exactly nothing; its norm is returned as NaN.
        """
        ...

    def paused(self) -> AbstractContextManager[None]:
        """Within it, forward and backward passes are ordinary ones."""
        ...

    def close(self) -> None:
        """Leave the model as it was found."""
        ...


class HooksEngine:
    """Per-record gradients from Opacus' hooks (the layer under ``wrap_model=False``): exact, the reference.

    Memory: B * P floats. Opacus leaves ``grad_sample`` on the parameters; it is taken off within the call.
    """

    name = "hooks"

    def __init__(self, model: nn.Module) -> None:
        from opacus.grad_sample import GradSampleHooks

        self._trainable = trainable_parameters(model)
        # Expected: the ids under an embedding and the frozen layers under an adapter need no gradient.
        warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients are computed")
        try:
            self._hooks = GradSampleHooks(model, loss_reduction="sum", strict=True)
        except NotImplementedError as error:
            raise UnsupportedLayer(
                f"{_first_buffered(model)} is trainable and holds a buffer; freeze it or use LoRA"
            ) from error

    def clip_into(self, sums: Mapping[str, Tensor], losses_B: Tensor, *, per_sample_max_grad_norm: float) -> Tensor:
        """See ``ClippingEngine.clip_into``."""
        losses_B.sum().backward()  # type: ignore[no-untyped-call]
        rows = len(losses_B)
        grads = {name: self._take(name, p, rows).to(sums[name].dtype) for name, p in self._trainable.items()}
        squares_B = sum(grad.flatten(1).square().sum(dim=1) for grad in grads.values())
        assert isinstance(squares_B, Tensor)
        norms_B = squares_B.sqrt()
        factors_B = clip_factors(norms_B, per_sample_max_grad_norm=per_sample_max_grad_norm)
        broken = ~norms_B.isfinite()
        for name, grad in grads.items():
            if broken.any():
                grad[broken] = 0.0  # 0 * NaN is NaN: the row goes before the product
            sums[name].view(-1).add_(factors_B @ grad.flatten(1))
        return torch.where(broken, math.nan, norms_B)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """See ``ClippingEngine.paused``."""
        self._hooks.disable_hooks()
        try:
            yield
        finally:
            self._hooks.enable_hooks()

    def close(self) -> None:
        """Remove every hook."""
        self._hooks.remove_hooks()

    def _take(self, name: str, parameter: nn.Parameter, rows: int) -> Tensor:
        """Take the per-record gradient, [rows, *shape], off the parameter."""
        grad = getattr(parameter, "grad_sample", None)
        parameter.grad_sample = None  # type: ignore[attr-defined]
        parameter.grad = None
        if not isinstance(grad, Tensor) or grad.shape != (rows, *parameter.shape):
            raise UnsupportedLayer(
                f"{name} gave no gradient of its own for each of {rows} records; freeze it or set lora.target_modules"
            )
        return grad.detach()


class PlainEngine:
    """The ordinary gradient of the summed losses: no clip, hence no guarantee (``privacy.mode: none``)."""

    name = "plain"

    def __init__(self, model: nn.Module) -> None:
        self._trainable = trainable_parameters(model)

    def clip_into(self, sums: Mapping[str, Tensor], losses_B: Tensor, *, per_sample_max_grad_norm: float) -> Tensor:
        """Add sum_i g_i; rows whose loss is not finite are left out. The norms are not known: NaN."""
        if per_sample_max_grad_norm != math.inf:
            raise ConfigError("privacy.per_sample_max_grad_norm: the plain engine cannot clip; this is a defect")
        losses_B[losses_B.isfinite()].sum().backward()  # type: ignore[no-untyped-call]
        grads = {name: parameter.grad for name, parameter in self._trainable.items() if parameter.grad is not None}
        if all(bool(grad.isfinite().all()) for grad in grads.values()):
            for name, grad in grads.items():
                sums[name].add_(grad.to(sums[name].dtype))
        for parameter in self._trainable.values():
            parameter.grad = None
        return torch.full((len(losses_B),), math.nan)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """See ``ClippingEngine.paused``."""
        yield

    def close(self) -> None:
        """Nothing was changed."""


def clip_factors(norms_B: Tensor, *, per_sample_max_grad_norm: float) -> Tensor:
    """Return c_i = min(1, C (1 - margin) / ||g_i||), [B]; 0 where the norm is not finite.

    Raises:
        ConfigError: If C is not above 0. C = infinity clips nothing (c_i = 1).
    """
    if not per_sample_max_grad_norm > 0:
        raise ConfigError(
            f"privacy.per_sample_max_grad_norm={per_sample_max_grad_norm} bounds nothing; give one above 0"
        )
    if per_sample_max_grad_norm == math.inf:
        return norms_B.isfinite().to(norms_B.dtype)
    bound = per_sample_max_grad_norm * (1 - CLIP_MARGIN)
    factors_B = bound / norms_B.clamp(min=bound)  # min(1, bound / norm) without dividing by zero
    return torch.where(norms_B.isfinite(), factors_B, 0.0)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what is trained, by name, each tensor once (a tie is listed under its first name)."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _first_buffered(model: nn.Module) -> str:
    for name, module in model.named_modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)) and any(True for _ in module.buffers()):
            return f"{name} ({type(module).__name__})"
    return "a layer"
