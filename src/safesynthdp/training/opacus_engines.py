"""Opacus' own engines: per-record gradients (``hooks``) and ghost clipping (``ghost``).

Here: both behind our interface. They are the reference for bookkeeping.py and the way out for layers without a rule.
Opacus' engine, optimizer, loaders and losses are not used. Opacus keeps its state on parameters; it is taken off within
each micro-batch. Source: Opacus, Yousefpour et al. (2021), arXiv:2109.12298. Shapes: B rows, U units.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from safesynthdp.clippable import refuse_under_opacus
from safesynthdp.errors import UnsupportedLayer
from safesynthdp.training.clipping import NonFiniteRows, clip_factors, squared_norms, trainable_parameters, units_of
from safesynthdp.training.layer_gradients import Outer


class HooksEngine:
    """Per-record gradients from Opacus' hooks (the layer under ``wrap_model=False``): exact, the reference.

    Memory: B * P floats. With gradient checkpointing it needs the reentrant kind.
    """

    name = "hooks"

    def __init__(self, model: nn.Module) -> None:
        from opacus.grad_sample import GradSampleHooks

        self._model, self.trainable = model, trainable_parameters(model)
        self._hooks = _attach(GradSampleHooks, model, engine=self.name)

    @contextmanager
    def tape(self, *, rows: int, units: int | None = None) -> Iterator["HooksTape"]:
        """See ``ClippingEngine.tape``."""
        self._hooks.enable_hooks()
        try:
            yield HooksTape(self.trainable, rows=rows, units=units_of(rows, units))
        finally:
            self._hooks.disable_hooks()

    def close(self) -> None:
        """Remove every hook and attribute."""
        self._hooks.cleanup()
        _clear_modules(self._model)


@dataclass(frozen=True)
class HooksTape:
    """One micro-batch of ``HooksEngine``."""

    trainable: Mapping[str, nn.Parameter]
    rows: int
    units: int

    def clip_into(self, sums: Mapping[str, Tensor], losses_U: Tensor, *, per_sample_max_grad_norm: float) -> Tensor:
        """See ``Tape.clip_into``."""
        losses_U.sum().backward()  # type: ignore[no-untyped-call]
        grads = {name: self._take(name, p).to(sums[name].dtype) for name, p in self.trainable.items()}
        norms_U = torch.stack([squared_norms(grad) for grad in grads.values()]).sum(dim=0).sqrt()
        factors_U = clip_factors(norms_U, per_sample_max_grad_norm=per_sample_max_grad_norm)
        broken_U = ~norms_U.isfinite()
        for name, grad in grads.items():
            if broken_U.any():
                grad[broken_U] = 0.0  # 0 * NaN is NaN: the unit goes before the product
            sums[name].view(-1).add_(factors_U @ grad.flatten(1))
        return torch.where(broken_U, math.nan, norms_U)

    def _take(self, name: str, parameter: nn.Parameter) -> Tensor:
        """Take the gradients off the parameter: [U, *shape], the rows of a unit added."""
        grad = getattr(parameter, "grad_sample", None)
        parameter.grad_sample = None  # type: ignore[attr-defined]
        parameter.grad = None
        if not isinstance(grad, Tensor) or grad.shape != (self.rows, *parameter.shape):
            raise UnsupportedLayer(
                f"{name} gave no gradient of its own for each of {self.rows} records; freeze it or set "
                "lora.target_modules"
            )
        if self.units == self.rows:
            return grad.detach()
        return grad.detach().view(self.units, -1, *parameter.shape).sum(dim=1)


class GhostEngine:
    """Opacus' ghost clipping: one backward pass for the norms, a second one of sum_i c_i loss_i.

    Memory: the graph is held for two passes, no B * P floats where Opacus has a norm rule (Linear, Embedding). Rows
    are units here; tied weights are refused, as by Opacus. With gradient checkpointing it needs the reentrant kind.
    """

    name = "ghost"

    def __init__(self, model: nn.Module) -> None:
        from opacus.grad_sample import GradSampleHooksFastGradientClipping

        class WithSafeNorms(GradSampleHooksFastGradientClipping):  # type: ignore[misc]  # Opacus carries no types
            NORM_SAMPLERS: ClassVar = {**GradSampleHooksFastGradientClipping.NORM_SAMPLERS, nn.Linear: linear_norms}

        self._model, self.trainable = model, trainable_parameters(model)
        _refuse_ties(model)
        self._hooks = _attach(WithSafeNorms, model, engine=self.name)
        self._visited = set[str]()
        self._counters = [
            module.register_forward_pre_hook(functools.partial(self._visit, path), prepend=True)
            for path, module in model.named_modules()
            if any(p.requires_grad for p in module.parameters(recurse=False))
        ]

    @contextmanager
    def tape(self, *, rows: int, units: int | None = None) -> Iterator["GhostEngine"]:
        """See ``ClippingEngine.tape``.

        Raises:
            UnsupportedLayer: If a unit has more than one row: Opacus' norms are those of rows.
        """
        if units_of(rows, units) != rows:
            raise UnsupportedLayer(
                "hardware.clipping_engine=ghost clips rows, and privacy.max_records_per_user is above 1; use "
                "bookkeeping or hooks"
            )
        self._hooks.enable_hooks()
        self._visited.clear()
        try:
            yield self
        finally:
            self._hooks.disable_hooks()

    def clip_into(self, sums: Mapping[str, Tensor], losses_U: Tensor, *, per_sample_max_grad_norm: float) -> Tensor:
        """See ``Tape.clip_into``. A row that is not finite would spoil the second pass: raises ``NonFiniteRows``."""
        losses_U.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        self._clear_grads()
        norms_U = self._norms(len(losses_U)).to(next(iter(sums.values())).dtype)
        if not bool(norms_U.isfinite().all()):
            raise NonFiniteRows(torch.where(norms_U.isfinite(), norms_U, math.nan))
        factors_U = clip_factors(norms_U, per_sample_max_grad_norm=per_sample_max_grad_norm)
        self._hooks.disable_hooks()
        (losses_U * factors_U.to(losses_U.dtype)).sum().backward()  # type: ignore[no-untyped-call]
        for name, parameter in self.trainable.items():
            if parameter.grad is None:
                raise UnsupportedLayer(f"{name} is trainable but no record reaches it; freeze it")
            sums[name].add_(parameter.grad.to(sums[name].dtype))
        self._clear_grads()
        return norms_U

    def close(self) -> None:
        """Remove every hook and attribute."""
        self._hooks.cleanup()
        for handle in self._counters:
            handle.remove()
        _clear_modules(self._model)

    def _visit(self, path: str, module: nn.Module, inputs: object) -> None:
        """Refuse a second visit: Opacus keeps one norm a parameter, the last one."""
        del module, inputs
        if not (self._hooks.hooks_enabled and torch.is_grad_enabled()):
            return
        if path in self._visited:
            raise UnsupportedLayer(
                f"{path} is used twice in one forward pass, which hardware.clipping_engine=ghost cannot clip; use hooks"
            )
        self._visited.add(path)

    def _norms(self, rows: int) -> Tensor:
        """Take the norms off the parameters and join them."""
        squares = list[Tensor]()
        for name, parameter in self.trainable.items():
            norm = getattr(parameter, "_norm_sample", None)
            if not isinstance(norm, Tensor) or norm.shape != (rows,):
                raise UnsupportedLayer(f"{name} gave no norm of its own for each of {rows} records; freeze it")
            del parameter._norm_sample  # type: ignore[attr-defined]
            squares.append(norm.detach().square())
        return torch.stack(squares).sum(dim=0).sqrt()

    def _clear_grads(self) -> None:
        for parameter in self.trainable.values():
            parameter.grad = None


def linear_norms(layer: nn.Linear, activations: Sequence[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Return the norms, [B], of a Linear's gradients, as Opacus asks for them.

    In place of Opacus' own, whose Gram products come out too small where tokens cancel or wide features drift one way:
    a record could then pass the clip (layer_gradients.py).
    """
    grads_BSp = backprops.reshape(len(backprops), -1, backprops.shape[-1])
    found = dict[nn.Parameter, Tensor]()
    weight = cast(nn.Parameter, layer.weight)
    if weight.requires_grad:
        inputs_BSd = activations[0].to(backprops.dtype)
        inputs_BSd = inputs_BSd.reshape(len(inputs_BSd), -1, inputs_BSd.shape[-1])
        found[weight] = Outer(grads_BSp, inputs_BSd).squares().sqrt()
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = squared_norms(grads_BSp.sum(dim=1)).sqrt()
    return found


def _attach(hooks: Callable[..., Any], model: nn.Module, *, engine: str) -> Any:
    """Put Opacus' hooks on the model, at rest until a tape is opened.

    Raises:
        UnsupportedLayer: If Opacus cannot follow a layer.
    """
    refuse_under_opacus(model, engine=engine)
    # Expected: the ids under an embedding and the frozen layers under an adapter need no gradient.
    warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients are computed")
    try:
        attached = hooks(model, loss_reduction="sum", strict=True)
    except NotImplementedError as error:
        raise UnsupportedLayer(
            f"{_first_buffered(model)} is trainable and holds a buffer; freeze it or use LoRA"
        ) from error
    attached.disable_hooks()
    return attached


def _clear_modules(model: nn.Module) -> None:
    """Take off what Opacus leaves on the modules that it hooked: inputs of records among it."""
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is None:
            continue
        for name in ("activations", "ft_compute_sample_grad", "max_batch_len"):
            vars(module).pop(name, None)


def _refuse_ties(model: nn.Module) -> None:
    seen = dict[int, str]()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            place = f"{path}.{name}"
            if seen.setdefault(id(parameter), place) != place:
                raise UnsupportedLayer(
                    f"{seen[id(parameter)]} and {place} are one tied parameter, which "
                    "hardware.clipping_engine=ghost cannot clip; use bookkeeping or hooks"
                )


def _first_buffered(model: nn.Module) -> str:
    for name, module in model.named_modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)) and any(True for _ in module.buffers()):
            return f"{name} ({type(module).__name__})"
    return "a layer"
