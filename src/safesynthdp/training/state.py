"""What a run needs to go on: trainables, optimizer, clock and keys, in ``state/`` (0700, never released).

Here: save and load, whole or not at all. Elsewhere: the ledger, which alone says what was spent; loop.py decides what
a resumed run may replay. Tensors are safetensors, facts JSON.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from safesynthdp.errors import LedgerMismatch
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.privacy.storage import disk_error, make_private_directory, sync_directory, write_json

KEYS = "keys.json"
LATEST = "latest.json"


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Where a run stands. The ledger counts ``abandoned + step`` steps, never fewer."""

    step: int
    """Logical steps whose result is in the trainables."""
    incarnation: int
    """Which derived keys masks and noise come from; rises when the same steps cannot be replayed bit by bit."""
    abandoned: int
    """Steps that earlier incarnations spent and whose result was lost."""
    signal: str
    """Hash of all that shapes a step's sum: config with hardware, data, engine, versions, threads."""


def save_keys(state: Path, keys: StepKeys) -> None:
    """Write the keys once, before anything is drawn with them (mode 0600)."""
    write_json(state / KEYS, keys.to_json(), private=True)


def load_keys(state: Path) -> StepKeys:
    """Read the keys of an unfinished run.

    Raises:
        LedgerMismatch: If they are gone: without them a replayed step would be a second release.
    """
    if not (state / KEYS).is_file():
        raise LedgerMismatch(f"{state / KEYS} is missing; the run cannot go on, start another in a new output_dir")
    return StepKeys.from_json(json.loads((state / KEYS).read_text(encoding="utf-8")))


def save_state(
    state: Path,
    *,
    clock: Clock,
    trainable: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Write a folder for this step, then point ``latest.json`` at it, then drop the older ones."""
    name = f"step-{clock.step:08d}-{clock.incarnation}"
    unfinished = state / f".{name}.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    make_private_directory(unfinished)
    try:
        tensors = {f"trainable.{k}": v.detach().cpu().contiguous() for k, v in trainable.items()}
        moments, counts = _optimizer_tensors(optimizer)
        save_file(tensors | moments, unfinished / "tensors.safetensors")
        schedule = {k: v for k, v in scheduler.state_dict().items() if not k.startswith("lr_lambdas")}
        write_json(
            unfinished / "clock.json", {"clock": asdict(clock), "optimizer_steps": counts, "scheduler": schedule}
        )
        target = state / name
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
        sync_directory(state)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise disk_error(state / name, error if isinstance(error, OSError) else OSError(28, str(error))) from error
    write_json(state / LATEST, {"folder": name}, private=True)
    for folder in state.glob("step-*"):
        if folder.name != name:
            shutil.rmtree(folder, ignore_errors=True)


def load_clock(state: Path) -> Clock | None:
    """Return where the newest state stands; None if the run died before its first one."""
    folder = _latest(state)
    return None if folder is None else Clock(**_facts(folder)["clock"])


def load_state(
    state: Path,
    *,
    trainable: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Fill trainables, optimizer and scheduler from the newest state, bit by bit.

    Raises:
        LedgerMismatch: If names or shapes are not those of this model.
    """
    folder = _latest(state)
    if folder is None:
        raise LedgerMismatch(f"{state} holds no saved step; start another run in a new output_dir")
    tensors, facts = load_file(folder / "tensors.safetensors"), _facts(folder)
    for name, parameter in trainable.items():
        saved = tensors.get(f"trainable.{name}")
        if saved is None or saved.shape != parameter.shape:
            raise LedgerMismatch(f"resume: {name} is not what {folder} holds; restore the config or change output_dir")
        with torch.no_grad():
            parameter.copy_(saved)
    _fill_optimizer(optimizer, tensors, facts["optimizer_steps"])
    scheduler.load_state_dict(scheduler.state_dict() | facts["scheduler"])
    for group, rate in zip(optimizer.param_groups, facts["scheduler"]["_last_lr"], strict=True):
        group["lr"] = rate


def drop_state(state: Path) -> None:
    """Delete what only an unfinished run needs; the keys stay, so that the same noise is never drawn again."""
    for folder in state.glob("step-*"):
        shutil.rmtree(folder, ignore_errors=True)
    (state / LATEST).unlink(missing_ok=True)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, float]]:
    """AdamW's two moments by the parameter's position, and its step counts."""
    moments, counts = dict[str, Tensor](), dict[str, float]()
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if name == "step":
                counts[str(index)] = float(value)
            else:
                moments[f"optimizer.{index}.{name}"] = value.detach().cpu().contiguous()
    return moments, counts


def _fill_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], counts: Mapping[str, float]
) -> None:
    values = optimizer.state_dict()
    restored: dict[int, dict[str, Any]] = {int(i): {"step": torch.tensor(count)} for i, count in counts.items()}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            restored[int(index)][name] = value
    optimizer.load_state_dict({"state": restored, "param_groups": values["param_groups"]})


def _latest(state: Path) -> Path | None:
    if not (state / LATEST).is_file():
        return None
    folder = state / str(json.loads((state / LATEST).read_text(encoding="utf-8"))["folder"])
    if not folder.is_dir():
        raise LedgerMismatch(f"{state / LATEST} names a state that is gone; start another run in a new output_dir")
    return folder


def _facts(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "clock.json").read_text(encoding="utf-8")))
