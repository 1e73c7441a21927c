"""Which clipping engine a run gets, and why.

Here: ``hardware.clipping_engine`` from name to object. Elsewhere: the engines (bookkeeping.py, opacus_engines.py) and
the check that the chosen one is right on this very model (selfcheck.py).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
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


def choose_engine(
    model: nn.Module, *, clipping_engine: str, rows: int, rows_per_unit: int = 1, dp: bool = True
) -> Chosen:
    """Attach the engine that ``hardware.clipping_engine`` names, or the fastest exact one.

    Args:
        model: What is trained, on its device.
        clipping_engine: 'auto' or an engine's name.
        rows: Rows of a micro-batch, for the memory that ``hooks`` would need.
        rows_per_unit: More than 1 for users with several records a step.
        dp: False for ``privacy.mode: none``.

    Raises:
        UnsupportedLayer: If the named engine, or under 'auto' none, is exact for this model and fits its memory.
    """
    chosen = _choose(model, clipping_engine=clipping_engine, rows=rows, rows_per_unit=rows_per_unit, dp=dp)
    precision = torch.get_float32_matmul_precision()
    if dp and precision != "highest" and chosen.engine.name != "bookkeeping":
        chosen.engine.close()
        raise UnsupportedLayer(
            f"hardware.float32_matmul_precision={precision}: hardware.clipping_engine={chosen.engine.name} would round "
            "its norms too; use highest, or bookkeeping where it fits the model"
        )
    return chosen


def _choose(model: nn.Module, *, clipping_engine: str, rows: int, rows_per_unit: int, dp: bool) -> Chosen:
    if not dp:
        return Chosen(engine=PlainEngine(model), reason="privacy.mode=none clips nothing")
    if clipping_engine == "ghost" and rows_per_unit > 1:
        raise UnsupportedLayer(
            f"hardware.clipping_engine=ghost clips rows, and privacy.max_records_per_user={rows_per_unit} joins them; "
            "use bookkeeping or hooks"
        )
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
    device = next(iter(trainable_parameters(model).values())).device
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
