"""A model that no GPU can train whole: FSDP2 shards weights, sums, gradients and moments over the processes.

Here: which rows of each tensor are whose, reduction of a clipped sum into shards, and whole tensors for a state or a
release. Elsewhere: the clip, which knows nothing of shards (bookkeeping.py); LoRA's frozen base (frozen_shards.py).
Source: ``torch.distributed.fsdp.fully_shard``. Shapes: W processes, tensors [R, ...] cut along R into W equal parts of
ceil(R / W) rows, the last ones shorter or empty.

Guarantee:
    FSDP gathers weights and never sees a gradient: the layers record inputs and output gradients, so a rank clips its
    own whole records over all tensors together, as one process would. Each tensor's clipped sum is then added up over
    the ranks (SUM, in its own precision) and every element is kept, noised and updated by exactly one rank.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from safesynthdp.errors import ConfigError, LedgerMismatch, SafeSynthError
from safesynthdp.training.clipping import trainable_parameters
from safesynthdp.training.layer_gradients import LayerGradient
from safesynthdp.training.ranks import Ranks, collective


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which rows of a tensor this rank holds."""

    shape: torch.Size
    """Of the whole tensor."""
    rows: int
    """Rows of a part, padding included: the same on every rank."""
    first: int
    """The first row held here."""
    count: int
    """Rows held here, at most ``rows``; 0 on a rank that got none."""

    @classmethod
    def of(cls, shape: torch.Size, *, rank: int, world_size: int) -> "Place":
        """Cut as FSDP2 does: by rows, rounded up."""
        rows = -(-shape[0] // world_size)
        first = min(rank * rows, shape[0])
        return cls(shape=shape, rows=rows, first=first, count=min(rows, shape[0] - first))

    @property
    def offset(self) -> int:
        """The first element held here, counted in the whole tensor: where its noise begins."""
        return self.first * self.shape[1:].numel()

    def cut(self, whole: Tensor) -> Tensor:
        """Return this rank's rows of a whole tensor."""
        return whole[self.first : self.first + self.count]


@dataclass(kw_only=True)
class Shards:
    """What this rank holds of a fully sharded model, and how parts become whole."""

    model: nn.Module
    ranks: Ranks
    places: Mapping[str, Place]
    """Of every parameter, trained or not, by its first name."""
    trained: Mapping[str, nn.Parameter]
    """This rank's part of each trained tensor: the memory that FSDP gathers from, seen as a plain tensor."""
    _gives: bool = field(default=True, repr=False)

    @property
    def sharded(self) -> dict[str, nn.Parameter]:
        """The parameters as FSDP holds them between passes (DTensors), trained ones only."""
        return {name: p for name, p in self.model.named_parameters() if name in self.trained}

    @property
    def offsets(self) -> dict[str, int]:
        """Where this rank's part of each trained tensor begins, in elements."""
        return {name: self.places[name].offset for name in self.trained}

    @contextmanager
    def giving_nothing(self, *, unless: bool = False) -> Iterator[None]:
        """Take part in every reduction with zeros: this rank's passes are made-up, or another's copies."""
        before = self._gives
        self._gives = before and unless
        try:
            yield
        finally:
            self._gives = before

    def add_part(self, name: str, found: LayerGradient, factors_U: Tensor, total: Tensor) -> None:
        """Add this rank's part of the sum, over all ranks and their units, of c_i g_i to ``total``.

        Every rank calls this for the same tensors in the same order. It needs the memory of one whole tensor.
        """
        place = self.places[name]
        whole = total.new_zeros(place.rows * self.ranks.world_size, *place.shape[1:])
        if self._gives:
            found.add_into(whole[: place.shape[0]], factors_U)
        part = total.new_empty(place.rows, *place.shape[1:])
        collective(lambda: dist.reduce_scatter_tensor(part, whole, group=self.ranks.group))
        total.add_(part[: place.count])

    def whole(self, name: str, part: Tensor) -> Tensor | None:
        """Return the whole of a tensor of which every rank holds a part, on rank 0's CPU; None elsewhere."""
        place = self.places[name]
        padded = part.new_zeros(place.rows, *place.shape[1:])
        padded[: place.count] = part
        parts = [torch.empty_like(padded) for _ in range(self.ranks.world_size)] if self.ranks.is_main else None
        collective(lambda: dist.gather(padded, parts, dst=0, group=self.ranks.group))
        return None if parts is None else torch.cat(parts)[: place.shape[0]].cpu()

    def whole_tensors(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return whole tensors for a state, on rank 0 (elsewhere nothing): keys are ``KIND.NAME``, see ``cut``."""
        found = dict[str, Tensor]()
        for key, part in parts.items():
            made = self.whole(self._name(key), part.detach())
            if made is not None:
                found[key] = made
        return found

    def cut(self, key: str, whole: Tensor) -> Tensor:
        """Return this rank's part of a whole tensor of a state.

        ``key`` is ``trainable.NAME``, or ``optimizer.I.MOMENT`` for the I-th trained tensor.

        Raises:
            LedgerMismatch: If it is not a tensor of this model.
        """
        name = self._name(key)
        if name not in self.places or whole.shape != self.places[name].shape:
            raise LedgerMismatch(f"resume: {name} had another shape; restore the config or change output_dir")
        return self.places[name].cut(whole)

    def released(self) -> dict[str, Tensor]:
        """Return everything a release holds, whole, on rank 0 (elsewhere nothing), under the model's own names.

        A tensor that bears two names is the same object under both.
        """
        self.check_alias()
        held = {name: local_part(part) for name, part in self.model.named_parameters()}
        parts = {name: self.whole(name, part.detach()) for name, part in held.items()}
        if not self.ranks.is_main:
            return {}
        first = {id(p): name for name, p in self.model.named_parameters()}
        names = {name: first[id(p)] for name, p in self.model.named_parameters(remove_duplicate=False)}
        found = {name: parts[names[name]] if name in names else v for name, v in self.model.state_dict().items()}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def check_alias(self) -> None:
        """See that the optimizer moves the very memory that the next pass gathers from.

        Raises:
            SafeSynthError: If FSDP holds another copy by now.
        """
        for name, parameter in self.sharded.items():
            held = local_part(parameter)
            if held.numel() and held.data_ptr() != self.trained[name].data_ptr():
                raise SafeSynthError(f"{name}: its shard was copied elsewhere, so it is not trained; this is a defect")

    def take_gradients(self) -> dict[str, Tensor]:
        """Return this rank's part of the gradients of a plain backward pass (FSDP's mean), and leave none behind."""
        found = dict[str, Tensor]()
        for name, parameter in self.sharded.items():
            grad = parameter.grad
            found[name] = torch.zeros_like(self.trained[name]) if grad is None else local_part(grad).clone()
            parameter.grad = None
        return found

    def _name(self, key: str) -> str:
        kind, rest = key.split(".", 1)
        return list(self.trained)[int(rest.split(".", 1)[0])] if kind == "optimizer" else rest


def shard_everything(model: nn.Module, ranks: Ranks, *, engine: str, checkpointing: bool) -> Shards:
    """Shard every parameter over all ranks, layer by layer; call it once, after the engine is attached.

    Raises:
        ConfigError: If the combination is not exact, or a tensor cannot be cut.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    if engine != "bookkeeping":
        raise ConfigError(
            f"hardware.sharding=full: hardware.clipping_engine={engine} needs whole gradients; use bookkeeping, LoRA, "
            "or hardware.sharding=none"
        )
    if checkpointing:
        raise ConfigError(
            "hardware.sharding=full: gradient_checkpointing is not exact under it; switch one of them off"
        )
    groups = [layer for layers in layer_lists(model) for layer in layers]
    _refuse_uncuttable(model, groups)
    names = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    whole = {name: p.shape for name, p in model.named_parameters()}
    mesh = DeviceMesh.from_group(ranks.group or dist.group.WORLD, ranks.device.type)  # type: ignore[arg-type]
    for layer in groups:
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    held = dict(model.named_parameters())
    places = {n: Place.of(shape, rank=ranks.rank, world_size=ranks.world_size) for n, shape in whole.items()}
    trained = {name: nn.Parameter(local_part(held[name])) for name, wanted in names.items() if wanted}
    for name, part in trained.items():
        if part.shape[0] != places[name].count:
            raise SafeSynthError(f"{name}: FSDP cut it in another way than expected; this is a defect")
    return Shards(model=model, ranks=ranks, places=places, trained=trained)


def with_shards(ranks: Ranks, shards: Shards) -> Ranks:
    """Return the ranks of a run whose model is sharded in full."""
    return dataclasses.replace(ranks, is_sharded=True, shards=shards)


def trained_here(model: nn.Module, ranks: Ranks) -> Mapping[str, nn.Parameter]:
    """Return what this rank's optimizer moves: every trained tensor, or this rank's part of each."""
    return trainable_parameters(model) if ranks.shards is None else ranks.shards.trained


def local_part(parameter: Tensor) -> Tensor:
    """Return what this rank holds of a sharded tensor: the same memory, without its history."""
    from torch.distributed.tensor import DTensor

    if not isinstance(parameter, DTensor):
        raise SafeSynthError("a tensor that should be sharded is whole; this is a defect")
    local: Tensor = parameter.to_local().detach()
    return local


def layer_lists(model: nn.Module) -> list[nn.ModuleList]:
    """Return the lists of layers, inner ones first: what is within another must be wrapped before it."""
    return [module for module in model.modules() if isinstance(module, nn.ModuleList)][::-1]


def _refuse_uncuttable(model: nn.Module, groups: list[nn.Module]) -> None:
    """Refuse a number without rows, and a tensor that two groups would shard, each its own copy of it."""
    owner = {id(module): number for number, layer in reversed(list(enumerate(groups))) for module in layer.modules()}
    places = dict[int, tuple[int, str]]()
    for path, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{attribute}".lstrip(".")
            if not parameter.dim():
                raise ConfigError(
                    f"hardware.sharding=full: {name} is a single number, which cannot be cut; use LoRA, or "
                    "hardware.sharding=none"
                )
            group = owner.get(id(module), -1)
            known, first = places.setdefault(id(parameter), (group, name))
            if known != group:
                raise ConfigError(
                    f"hardware.sharding=full: {first} and {name} are one tensor in two layers, which would be sharded "
                    "apart; use LoRA, or hardware.sharding=none"
                )
