"""Which clipping engine a run gets, and why.

Here: ``hardware.clipping_engine`` from name to object. Elsewhere: the engines (bookkeeping.py, opacus_engines.py) and
the check that the chosen one is right on this very model (selfcheck.py).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from safesynthdp.errors import UnsupportedLayer
from safesynthdp.training.bookkeeping import BookkeepingEngine
from safesynthdp.training.clipping import ClippingEngine, PlainEngine, trainable_parameters
from safesynthdp.training.opacus_engines import GhostEngine, HooksEngine

_ENGINES: dict[str, Callable[[nn.Module], ClippingEngine]] = {
    "bookkeeping": BookkeepingEngine,
    "ghost": GhostEngine,
    "hooks": HooksEngine,
}


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """An engine attached to a model, and the reason for it."""

    engine: ClippingEngine
    reason: str


def choose_engine(model: nn.Module, *, clipping_engine: str, rows: int, dp: bool = True) -> Chosen:
    """Attach the engine that ``hardware.clipping_engine`` names, or the fastest exact one.

    Args:
        model: What is trained, on its device.
        clipping_engine: 'auto' or an engine's name.
        rows: Rows of a micro-batch, for the memory that ``hooks`` would need.
        dp: False for ``privacy.mode: none``.

    Raises:
        UnsupportedLayer: If the named engine, or under 'auto' none, is exact for this model and fits its memory.
    """
    if not dp:
        return Chosen(engine=PlainEngine(model), reason="privacy.mode=none clips nothing")
    if clipping_engine != "auto":
        return Chosen(engine=_ENGINES[clipping_engine](model), reason="hardware.clipping_engine names it")
    try:
        return Chosen(engine=BookkeepingEngine(model), reason="one backward pass, and every trainable layer has a rule")
    except UnsupportedLayer as error:
        missing = str(error).split(" has no rule")[0]
        needed, free = _hooks_bytes(model, rows=rows), _free_bytes(model)
        if needed > free:
            raise UnsupportedLayer(
                f"{missing}: only hardware.clipping_engine=hooks could clip it, and {rows} rows need "
                f"{needed / 2**30:.1f} of {free / 2**30:.1f} GiB; lower hardware.max_tokens_per_microbatch or use LoRA"
            ) from error
        return Chosen(engine=HooksEngine(model), reason=f"no rule of our own for {missing}")


def _hooks_bytes(model: nn.Module, *, rows: int) -> int:
    """Return the bytes of B per-record gradients, and of the copies on the way to the sum."""
    return 2 * rows * sum(4 * parameter.numel() for parameter in trainable_parameters(model).values())


def _free_bytes(model: nn.Module) -> int:
    """Return the memory of the model's device."""
    import torch

    device = next(iter(trainable_parameters(model).values())).device
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
