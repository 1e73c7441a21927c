"""Exact per-record clipping in one backward pass: book-keeping.

Here: the engine and its tape. Elsewhere: what a layer hands over (recording.py), norms and weighted sums
(layer_gradients.py), the clip factors (clipping.py). Source: Bu et al. (2023), arXiv:2210.00038, here with flat
clipping, tied weights and a choice of route for each layer and length. Shapes: B rows, U units, S = tokens of a unit.

Guarantee:
    Unit i of the sum is computed from row i's own inputs and output gradients of the summed losses. These are row i's
    alone if the model does not mix rows, which selfcheck.py tests on the real model. No state is kept on tensors,
    parameters or modules; a layer that is visited twice, or not at all, is an error.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from safesynthdp.errors import SafeSynthError, UnsupportedLayer
from safesynthdp.training.clipping import clip_factors, trainable_parameters, units_of
from safesynthdp.training.layer_gradients import Formed, LayerGradient, Lookup, Outer, Tied, gram, is_formed
from safesynthdp.training.precision import products
from safesynthdp.training.recording import forward_of

if TYPE_CHECKING:
    from safesynthdp.training.full_shards import Shards


class BookkeepingEngine:
    """Norms and weighted sums from layer inputs and output gradients: about the price of an ordinary step.

    Works with gradient checkpointing of both kinds, and with frozen parameters of any dtype.

    Raises:
        UnsupportedLayer: If a trainable parameter belongs to a layer without a rule, or to several layers.
    """

    name = "bookkeeping"

    def __init__(self, model: nn.Module) -> None:
        self._trainable = trainable_parameters(model)
        self._owners = _owners(model, self._trainable)
        self._open: BookkeepingTape | None = None
        self._shards: Shards | None = None
        self.is_plain_outside = True
        """Whether a layer may run outside a tape, where nothing clips its gradients; False refuses it by name."""
        self._modules = [(path, module) for path, module in model.named_modules() if _own_trainables(module)]
        for path, module in self._modules:
            if "forward" in vars(module):
                raise UnsupportedLayer(f"{path}: its forward was replaced by something else; remove that first")
        for path, module in self._modules:
            record = forward_of(module)
            assert record is not None  # _owners refused it
            module.forward = functools.partial(self._forward, module, path, record, module.forward)

    def shard(self, shards: "Shards") -> None:
        """From now on weights are gathered for each pass, and sums are kept in shards (full_shards.py)."""
        self._trainable, self._shards = shards.sharded, shards

    @contextmanager
    def tape(self, *, rows: int, units: int | None = None) -> Iterator["BookkeepingTape"]:
        """See ``ClippingEngine.tape``.

        Raises:
            SafeSynthError: If a tape is open already.
        """
        try:
            yield self.open_tape(rows=rows, units=units)
        finally:
            self.close_tape()

    def open_tape(self, *, rows: int, units: int | None = None) -> "BookkeepingTape":
        """Begin a micro-batch; ``tape`` does this and ends it."""
        if self._open is not None:
            raise SafeSynthError("a micro-batch was begun within another one; this is a defect")
        units = units_of(rows, units)
        self._open = BookkeepingTape(self._trainable, self._owners, rows=rows, units=units, shards=self._shards)
        return self._open

    def close_tape(self) -> None:
        """End the micro-batch, if one is open: its layers can record nothing more."""
        if self._open is not None:
            self._open.is_closed = True
            self._open = None

    def close(self) -> None:
        """Give every layer its own forward back."""
        for _, module in self._modules:
            del module.forward

    def _forward(
        self,
        module: nn.Module,
        path: str,
        record: Callable[..., Tensor],
        plain: Callable[..., Tensor],
        *inputs: Any,
        **named: Any,
    ) -> Tensor:
        if not torch.is_grad_enabled() or (self._open is None and self.is_plain_outside):
            return plain(*inputs, **named)
        if self._open is None:
            raise UnsupportedLayer(
                f"{path} is called outside a forward pass of the whole model, where its gradients are not clipped; "
                "call the model that the engine was built for, or use torch.no_grad()"
            )
        if len(inputs) != 1 or named:
            raise UnsupportedLayer(f"{path} ({type(module).__name__}) takes more than one input; freeze it or use LoRA")
        (x,) = inputs
        return record(module, self._open, path, x)


class BookkeepingTape:
    """What the layers of one micro-batch handed over, until the clip factors are known."""

    def __init__(
        self,
        trainable: Mapping[str, nn.Parameter],
        owners: Mapping[tuple[str, str], str],
        *,
        rows: int,
        units: int,
        shards: "Shards | None" = None,
    ) -> None:
        self.rows = rows
        self._shards = shards
        self.is_closed = False
        self.on_record: Callable[[], None] | None = None
        self._units = units
        self._trainable = trainable
        self._owners = owners
        self._ties = _ties(owners)
        self._found: dict[str, LayerGradient] = {}
        self._half_found: dict[str, Lookup | Outer] = {}
        self._squares: dict[str, Tensor] = {}
        self._last_input: tuple[Tensor, Tensor] | None = None

    def matrix(self, layer: str, inputs: Tensor, grads: Tensor, *, transposed: bool) -> None:
        """See ``Recorder.matrix``: choose the route for this layer and length."""
        with products("highest"):
            self._matrix(layer, inputs, grads, transposed=transposed)

    def _matrix(self, layer: str, inputs: Tensor, grads: Tensor, *, transposed: bool) -> None:
        name = self._owners[layer, "weight"]
        inputs_USd, grads_USp = self._by_unit(layer, name, inputs), self._by_unit(layer, name, grads)
        rows_US, columns_US = (inputs_USd, grads_USp) if transposed else (grads_USp, inputs_USd)
        is_tied = name in self._ties
        if not is_tied and is_formed(tokens=inputs_USd.shape[1], rows=rows_US.shape[2], columns=columns_US.shape[2]):
            self._keep(name, Formed(torch.bmm(rows_US.mT, columns_US)))
            return
        outer = Outer(rows_US, columns_US)
        if not transposed:
            outer.gram_of_columns = self._gram_of_input(inputs_USd)
        if is_tied:
            self._half(name, outer)
        else:
            self._keep(name, outer)

    def table(self, layer: str, ids: Tensor, grads: Tensor) -> None:
        """See ``Recorder.table``."""
        name = self._owners[layer, "weight"]
        grads_USd = self._by_unit(layer, name, grads)
        lookup = Lookup(ids.reshape(self._units, -1), grads_USd)
        with products("highest"):
            if name in self._ties:
                self._half(name, lookup)
            else:
                self._keep(name, lookup)

    def formed(self, layer: str, parameter: str, grads: Tensor) -> None:
        """See ``Recorder.formed``."""
        name = self._owners[layer, parameter]
        self._check_rows(layer, grads)
        grads = grads.to(self._trainable[name].dtype)
        self._keep(name, Formed(grads.reshape(self._units, -1, *grads.shape[1:]).sum(dim=1)))

    def clip_into(self, sums: Mapping[str, Tensor], losses_U: Tensor, *, per_sample_max_grad_norm: float) -> Tensor:
        """See ``Tape.clip_into``: one backward pass, the norms of all layers added once, one weighted sum a layer."""
        if sums.keys() != self._trainable.keys():
            name = next(iter(sums.keys() ^ self._trainable.keys()))
            raise UnsupportedLayer(f"{name} is not among the parameters that are clipped; freeze it")
        for parameter in self._trainable.values():
            parameter.grad = None
        losses_U.sum().backward()  # type: ignore[no-untyped-call]
        norms_U = self.norms()
        self.add_into(sums, clip_factors(norms_U, per_sample_max_grad_norm=per_sample_max_grad_norm))
        return torch.where(norms_U.isfinite(), norms_U, math.nan)

    def norms(self) -> Tensor:
        """Return ||g_i||, [U], over all trainables, once the backward pass is over.

        Raises:
            UnsupportedLayer: If a trainable was not reached, or got a gradient past its own layer.
        """
        self._check_coverage()
        return torch.stack([self._squares[name] for name in self._trainable]).sum(dim=0).sqrt()

    def add_into(self, sums: Mapping[str, Tensor], factors_U: Tensor) -> None:
        """Add sum_i c_i g_i; a unit whose norm is not finite adds exactly nothing. The tape is empty afterwards."""
        broken_U = ~torch.stack(list(self._squares.values())).sum(dim=0).isfinite()
        any_broken = bool(broken_U.any())
        for name, total in sums.items():
            found = self._found.pop(name)
            if any_broken:
                found.drop(broken_U)
            with products("highest"):
                if self._shards is None:
                    found.add_into(total, factors_U)
                else:
                    self._shards.add_part(name, found, factors_U, total)

    def found(self) -> Mapping[str, LayerGradient]:
        """Return what is held of each trainable until the factors are known."""
        return self._found

    def missing(self) -> str:
        """Name a trainable that has not been reached; '' for none."""
        return next((name for name in self._trainable if name not in self._squares), "")

    def _keep(self, name: str, found: LayerGradient) -> None:
        if name in self._squares:
            raise UnsupportedLayer(f"{name} was used twice in one forward pass; freeze it or use LoRA")
        squares_U = found.squares()
        if squares_U.shape != (self._units,):
            raise SafeSynthError(f"{name} gave norms of shape {tuple(squares_U.shape)} for {self._units} units")
        self._found[name], self._squares[name] = found, squares_U
        if self.on_record is not None:
            self.on_record()

    def _half(self, name: str, found: Lookup | Outer) -> None:
        """Keep one side of a tied matrix until the other comes."""
        other = self._half_found.pop(name, None)
        if other is None:
            self._half_found[name] = found
        elif isinstance(found, Lookup) and isinstance(other, Outer):
            self._keep(name, Tied(found, other))
        elif isinstance(found, Outer) and isinstance(other, Lookup):
            self._keep(name, Tied(other, found))
        else:
            raise UnsupportedLayer(f"{name} was used twice in one forward pass; freeze it or use LoRA")

    def _gram_of_input(self, inputs_USd: Tensor) -> Tensor:
        """Return x x^T, once for layers that share their input (query, key and value; gate and up)."""
        if self._last_input is None or not _is_same(self._last_input[0], inputs_USd):
            self._last_input = (inputs_USd, gram(inputs_USd))
        return self._last_input[1]

    def _by_unit(self, layer: str, name: str, x: Tensor) -> Tensor:
        """Return [B, ..., d] as [U, S, d], in the parameter's precision."""
        self._check_rows(layer, x)
        return x.detach().reshape(self._units, -1, x.shape[-1]).to(self._trainable[name].dtype)

    def _check_rows(self, layer: str, x: Tensor) -> None:
        if self.is_closed:
            raise SafeSynthError(f"{layer}: backward pass of a micro-batch that is over; run its forward pass again")
        if x.shape[0] != self.rows:
            raise UnsupportedLayer(
                f"{layer} sees {x.shape[0]} rows in a batch of {self.rows}: records are flattened or shared there; "
                "freeze it or set lora.target_modules"
            )

    def _check_coverage(self) -> None:
        if self.missing():
            raise UnsupportedLayer(
                f"{self.missing()} is trainable but no record reaches it; freeze it or change lora.target_modules"
            )
        for name, parameter in self._trainable.items():
            if parameter.grad is not None:
                parameter.grad = None
                raise UnsupportedLayer(f"{name} is used outside its own layer; freeze it or use LoRA")


def _owners(model: nn.Module, trainable: Mapping[str, nn.Parameter]) -> dict[tuple[str, str], str]:
    """Return the parameter's name for each (layer, attribute) that owns a trainable; refuse what has no rule."""
    names = {id(parameter): name for name, parameter in trainable.items()}
    owners = dict[tuple[str, str], str]()
    for path, module in model.named_modules():
        own = _own_trainables(module)
        if own and forward_of(module) is None:
            raise UnsupportedLayer(
                f"{path}.{own[0]} ({type(module).__name__}) has no rule in hardware.clipping_engine=bookkeeping; use "
                "hooks, freeze it, or set lora.target_modules"
            )
        owners.update({(path, attribute): names[id(getattr(module, attribute))] for attribute in own})
    kinds = {path: forward_of(module) for path, module in model.named_modules() if _own_trainables(module)}
    for name, places in _ties(owners).items():
        found = sorted(getattr(kinds[path], "__name__", "") for path, _ in places)
        if found != ["embedding", "linear"]:
            raise UnsupportedLayer(
                f"{name} is shared by {' and '.join(path for path, _ in places)}; freeze it or use LoRA"
            )
    return owners


def _ties(owners: Mapping[tuple[str, str], str]) -> dict[str, list[tuple[str, str]]]:
    """Return the parameters that several layers own, with their places."""
    places = dict[str, list[tuple[str, str]]]()
    for place, name in owners.items():
        places.setdefault(name, []).append(place)
    return {name: found for name, found in places.items() if len(found) > 1}


def _own_trainables(module: nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters(recurse=False) if parameter.requires_grad]


def _is_same(x: Tensor, y: Tensor) -> bool:
    """Return whether two live tensors are the same memory, seen the same way."""
    return x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride() and x.dtype == y.dtype
