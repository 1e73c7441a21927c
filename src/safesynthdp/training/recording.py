"""Layers that hand their inputs and output gradients to a tape instead of making a weight gradient.

Here: the autograd functions and, for each kind of layer, its forward pass while a tape is open. Elsewhere: what is
done with what was caught (layer_gradients.py, bookkeeping.py). Recording happens in the *backward* pass, so a layer
under gradient checkpointing, reentrant or not, is recorded once, and a forward pass alone leaves nothing behind.
Shapes: B rows first, the features last.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from safesynthdp.errors import UnsupportedLayer


class Recorder(Protocol):
    """What a layer tells of itself in the backward pass; ``layer`` is its path in the model."""

    rows: int

    def matrix(self, layer: str, inputs: Tensor, grads: Tensor, *, transposed: bool) -> None:
        """A matrix product: inputs [B, ..., d], gradients of its output [B, ..., p]."""

    def table(self, layer: str, ids: Tensor, grads: Tensor) -> None:
        """A table: ids [B, ...], gradients of its output [B, ..., d]."""

    def formed(self, layer: str, parameter: str, grads: Tensor) -> None:
        """Gradients of a vector, already one a row: [B, *shape]."""


_LINEAR_BY_HAND = frozenset({"FalconLinear"})
"""Subclasses of Linear that write x W^T + b out."""

Forward = Callable[[nn.Module, Recorder, str, Tensor], Tensor]


class _Matrix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, recorder: Recorder, layer: str, transposed: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.recorder, ctx.layer, ctx.transposed = recorder, layer, transposed
        ctx.has_bias = bias is not None
        if not transposed:
            return nn.functional.linear(x, weight, bias)
        flat = x.reshape(-1, x.shape[-1])
        made = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
        return made.view(*x.shape[:-1], weight.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        if needs_weight:
            ctx.recorder.matrix(ctx.layer, x, grads, transposed=ctx.transposed)
        if needs_bias:
            ctx.recorder.formed(ctx.layer, "bias", grads.flatten(1, -2).sum(dim=1) if grads.dim() > 2 else grads)
        back = None
        if needs_input:
            same = weight.to(grads.dtype)
            back = (grads @ (same.t() if ctx.transposed else same)).to(x.dtype)
        return back, None, None, None, None, None


class _Table(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, ids: Tensor, padding_idx: int | None, recorder: Recorder, layer: str
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.recorder, ctx.layer, ctx.padding_idx = recorder, layer, padding_idx
        return nn.functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: Tensor) -> tuple[None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (ids,) = ctx.saved_tensors
        if ctx.padding_idx is not None:  # torch gives this row no gradient
            grads = grads * (ids != ctx.padding_idx)[..., None]
        ctx.recorder.table(ctx.layer, ids, grads)
        return None, None, None, None, None


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float, recorder: Recorder, layer: str
    ) -> Tensor:
        out, mean, scale = torch.native_layer_norm(x, weight.shape, weight, bias, epsilon)
        ctx.save_for_backward(x, weight, bias, mean, scale)
        ctx.recorder, ctx.layer = recorder, layer
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, bias, mean, scale = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        if needs_weight:
            ctx.recorder.formed(ctx.layer, "weight", _rows((x - mean) * scale * grads, weight))
        if needs_bias:
            ctx.recorder.formed(ctx.layer, "bias", _rows(grads, bias))
        back = None
        if needs_input:
            wanted = [True, False, False]
            back = torch.ops.aten.native_layer_norm_backward(
                grads.contiguous(), x, weight.shape, mean, scale, weight, bias, wanted
            )[0]
        return back, None, None, None, None, None


class _OnePerRow(torch.autograd.Function):
    """A vector as seen by each row: broadcasting then gives each row a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, vector: Tensor, dims: int, recorder: Recorder, layer: str, parameter: str) -> Tensor:
        ctx.recorder, ctx.layer, ctx.parameter, ctx.shape = recorder, layer, parameter, vector.shape
        between = (1,) * (dims - 1 - vector.dim())
        return vector.view(1, *between, *vector.shape).expand(recorder.rows, *between, *vector.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: Tensor) -> tuple[None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.recorder.formed(ctx.layer, ctx.parameter, grads.reshape(grads.shape[0], *ctx.shape))
        return None, None, None, None, None


class _With:
    """A module with some of its parameters exchanged, for one call of its own forward."""

    def __init__(self, module: nn.Module, exchanged: Mapping[str, Tensor]) -> None:
        self.__dict__.update(exchanged)
        self.__dict__["_module"] = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def linear(module: nn.Module, recorder: Recorder, layer: str, x: Tensor) -> Tensor:
    """``nn.Linear``."""
    return _Matrix.apply(x, module.weight, module.bias, recorder, layer, False)  # type: ignore[no-any-return, no-untyped-call]


def conv1d(module: nn.Module, recorder: Recorder, layer: str, x: Tensor) -> Tensor:
    """GPT-2's ``Conv1D``: a Linear whose matrix is stored transposed."""
    return _Matrix.apply(x, module.weight, module.bias, recorder, layer, True)  # type: ignore[no-any-return, no-untyped-call]


def embedding(module: nn.Module, recorder: Recorder, layer: str, ids: Tensor) -> Tensor:
    """``nn.Embedding``, with the public factor of Gemma's."""
    out: Tensor = _Table.apply(module.weight, ids, module.padding_idx, recorder, layer)  # type: ignore[no-untyped-call]
    scale = getattr(module, "embed_scale", None)
    return out if scale is None else out * scale.to(out.dtype)


def layer_norm(module: nn.Module, recorder: Recorder, layer: str, x: Tensor) -> Tensor:
    """``nn.LayerNorm``."""
    return _LayerNorm.apply(x, module.weight, module.bias, module.eps, recorder, layer)  # type: ignore[no-any-return, no-untyped-call]


def rms_norm(module: nn.Module, recorder: Recorder, layer: str, x: Tensor) -> Tensor:
    """``nn.RMSNorm``, which takes no vector of another shape: the norm without one, times one vector a row."""
    _check_rows(x, recorder, layer)
    vector: Tensor = _OnePerRow.apply(module.weight, x.dim(), recorder, layer, "weight")  # type: ignore[no-untyped-call]
    return nn.functional.rms_norm(x, module.normalized_shape, None, module.eps) * vector  # type: ignore[arg-type]


def elementwise(module: nn.Module, recorder: Recorder, layer: str, x: Tensor) -> Tensor:
    """A norm that multiplies by its vector: the module's own forward, with one vector a row."""
    _check_rows(x, recorder, layer)
    exchanged = {
        name: _OnePerRow.apply(vector, x.dim(), recorder, layer, name)  # type: ignore[no-untyped-call]
        for name, vector in module.named_parameters(recurse=False)
        if vector.requires_grad
    }
    made: Tensor = type(module).forward(_With(module, exchanged), x)
    return made


def forward_of(module: nn.Module) -> Forward | None:
    """Return the recording forward of a module that owns trainable parameters, or None if there is no rule for it.

    Rules go by what the forward pass *does*: a subclass with a forward of its own has no rule of its parent's.
    """
    from transformers.pytorch_utils import Conv1D

    forward = type(module).forward
    if forward is nn.Linear.forward or type(module).__name__ in _LINEAR_BY_HAND:
        return linear
    if forward is Conv1D.forward:
        return conv1d
    if isinstance(module, nn.Embedding):
        return embedding if _is_plain_table(module) else None
    if forward is nn.LayerNorm.forward:
        return layer_norm if module.weight is not None else None
    if forward is nn.RMSNorm.forward:
        return rms_norm
    name = type(module).__name__
    is_norm = name.endswith(("RMSNorm", "LayerNorm")) and not isinstance(module, nn.LayerNorm | nn.RMSNorm)
    return elementwise if is_norm else None


def _is_plain_table(module: nn.Embedding) -> bool:
    has_known_forward = type(module).forward is nn.Embedding.forward or type(module).__name__.endswith(
        "TextScaledWordEmbedding"
    )
    return has_known_forward and module.max_norm is None and not module.scale_grad_by_freq and not module.sparse


def _check_rows(x: Tensor, recorder: Recorder, layer: str) -> None:
    if x.shape[0] != recorder.rows:
        raise UnsupportedLayer(
            f"{layer} sees {x.shape[0]} rows in a batch of {recorder.rows}: records are flattened or shared there; "
            "freeze it or use LoRA"
        )


def _rows(grads: Tensor, like: Tensor) -> Tensor:
    """Sum [B, ..., *shape] over everything between: [B, *shape]."""
    return grads.reshape(grads.shape[0], -1, *like.shape).sum(dim=1)
