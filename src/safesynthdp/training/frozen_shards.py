"""A frozen base that no GPU holds whole: FSDP2 shards it, the adapters stay replicated.

Here: whether anything is sharded, and the frozen base of LoRA. Elsewhere: full fine-tuning (full_shards.py), the sums
of the adapters, added as ever (ranks.py), the equal number of micro-batches that a sharded pass needs (step.py).
Source: ``torch.distributed.fsdp.fully_shard`` with ``ignored_params``.

Guarantee:
    Only parameters that are not trained are sharded. Each rank sees whole records and whole adapters, so clip, sum and
    noise are those of an unsharded run.
"""

import os
from typing import Any, Literal

import torch
from torch import nn

from safesynthdp.errors import ConfigError
from safesynthdp.training.full_shards import layer_lists
from safesynthdp.training.ranks import Ranks

Sharding = Literal["none", "frozen_base", "full"]


def wanted_sharding(sharding: str, ranks: Ranks, *, use_lora: bool) -> Sharding:
    """Return what is to be sharded: as configured, or under auto as launched.

    Raises:
        ConfigError: If one process was asked to, or what is named does not fit what is trained.
    """
    launched = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if sharding == "none" or (sharding == "auto" and not launched):
        return "none"
    if not ranks.are_several:
        raise ConfigError(f"hardware.sharding={sharding}: one process has nobody to share with; launch several")
    by_launch = "frozen_base" if use_lora else "full"
    return planned_sharding(by_launch if sharding == "auto" else sharding, use_lora=use_lora)


def planned_sharding(sharding: str, *, use_lora: bool) -> Sharding:
    """Return what is sharded by a config, whatever the launch: 'auto' is none then.

    Raises:
        ConfigError: If what is named does not fit what is trained.
    """
    if sharding in ("auto", "none"):
        return "none"
    fitting: Sharding = "frozen_base" if use_lora else "full"
    if sharding != fitting:
        what = "adapters are trained (LoRA)" if use_lora else "every weight is trained (full fine-tuning)"
        raise ConfigError(f"hardware.sharding={sharding}: {what}; use {fitting}, auto or none")
    return fitting


def shard_frozen(model: nn.Module, ranks: Ranks, *, engine: str, checkpointing: bool) -> None:
    """Shard everything frozen over all ranks, layer by layer; call it once, after the engine is attached.

    Raises:
        ConfigError: If something that is trained would have to be sharded, or the combination is not exact.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    frozen = sum(parameter.numel() for parameter in model.parameters()) - sum(p.numel() for p in trained)
    if not frozen:
        raise ConfigError("hardware.sharding=frozen_base: nothing is frozen; use full, or hardware.sharding=none")
    if engine not in ("bookkeeping", "plain"):
        raise ConfigError(
            f"hardware.sharding: hardware.clipping_engine={engine} runs passes of its own; use bookkeeping"
        )
    if checkpointing:
        raise ConfigError("hardware.sharding: gradient_checkpointing is not exact under it yet; switch one of them off")
    group = ranks.group or torch.distributed.group.WORLD
    mesh = DeviceMesh.from_group(group, ranks.device.type)  # type: ignore[arg-type]  # WORLD is set by now
    options: dict[str, Any] = {"mesh": mesh, "ignored_params": trained}
    for layers in layer_lists(model):
        for layer in layers:
            if any(not parameter.requires_grad for parameter in layer.parameters()):
                fully_shard(layer, **options)
    fully_shard(model, **options)
