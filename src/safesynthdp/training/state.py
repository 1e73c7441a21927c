"""What a run needs to go on: trainables, optimizer, clock and keys, in ``state/`` (0700, never released).

Here: save and load, whole or not at all: the newest state and the one before it. Elsewhere: the ledger, which alone
says what was spent; loop.py decides what a resumed run may replay. Tensors are safetensors, facts JSON.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from safesynthdp.errors import LedgerMismatch, SafeSynthError
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.privacy.storage import disk_error, make_private_directory, sync_directory, write_json

KEYS = "keys.json"
LATEST = "latest.json"
TENSORS = "tensors.safetensors"


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
    whole: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a folder for this step, then point ``latest.json`` at it, then drop the older ones.

    ``whole`` are the ``state_tensors`` of all ranks put together, where ``trainable`` and the moments are only parts.
    """
    name = f"step-{clock.step:08d}-{clock.incarnation}"
    newest = _latest_name(state)
    if newest == name:  # this very process, or the one before it, wrote it: the same bits
        _say_who_goes_on(state / name / "clock.json", clock)
        return
    unfinished = state / f".{name}.tmp"
    for left in state.glob(".step-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    make_private_directory(unfinished)
    try:
        tensors = state_tensors(trainable, optimizer) if whole is None else whole
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, unfinished / TENSORS)
        counts = {str(i): float(held["step"]) for i, held in optimizer.state_dict()["state"].items()}
        schedule = {k: v for k, v in scheduler.state_dict().items() if not k.startswith("lr_lambdas")}
        facts = {"clock": asdict(clock), "optimizer_steps": counts, "scheduler": schedule}
        write_json(unfinished / "clock.json", facts | {"sha256": _flushed_hash(unfinished / TENSORS)})
        target = state / name
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
        sync_directory(state)
    except (OSError, SafetensorError, SafeSynthError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, SafeSynthError):
            raise
        raise disk_error(state / name, error if isinstance(error, OSError) else OSError(28, str(error))) from error
    write_json(state / LATEST, {"folder": name}, private=True)
    for folder in state.glob("step-*"):
        if folder.name not in (name, newest):
            shutil.rmtree(folder, ignore_errors=True)


def state_tensors(trainable: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the tensors of a state: ``trainable.NAME``, and ``optimizer.I.MOMENT`` for AdamW's two of the I-th."""
    found: dict[str, Tensor] = {f"trainable.{name}": parameter for name, parameter in trainable.items()}
    for index, values in optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{index}.{name}": value for name, value in values.items() if name != "step"}
    return found


@dataclass(frozen=True, kw_only=True)
class FoundState:
    """A whole state on disk."""

    facts: dict[str, Any]
    """clock, optimizer_steps, scheduler; is_newest; incarnations_used (the highest number any state here bears)."""
    tensors: bytes = field(repr=False)
    """The safetensors file."""


def find_state(state: Path) -> FoundState | None:
    """Return the newest whole state; None if the run died before its first one.

    A state that was torn (half a file after a power cut, a damaged disk) is passed over for the one before it, and
    ``is_newest`` is False: its steps must not be replayed under the same keys, since later ones were drawn with them.

    Raises:
        LedgerMismatch: If there are states and none is whole.
    """
    newest = _latest_name(state)
    if newest is None:
        return None
    names = [folder.name for folder in state.glob("step-*")]
    used = max(int(name.rsplit("-", 1)[1]) for name in {newest, *names})
    for name in dict.fromkeys([newest, *sorted(names, reverse=True)]):
        facts = _whole_facts(state / name)
        if facts is not None:
            extra = {"is_newest": name == newest, "incarnations_used": used}
            return FoundState(facts=facts | extra, tensors=(state / name / TENSORS).read_bytes())
    raise LedgerMismatch(
        f"{state} holds no whole state (a file is missing or damaged); start another run in a new output_dir: what "
        "this one spent stays spent"
    )


def fill_state(
    tensors: bytes,
    facts: Mapping[str, Any],
    *,
    trainable: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    cut: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Fill trainables, optimizer and scheduler from a found state, bit by bit; ``cut`` takes a rank's part of each.

    Raises:
        LedgerMismatch: If names or shapes are not those of this model.
    """
    saved = load(tensors)
    names = {key.removeprefix("trainable.") for key in saved if key.startswith("trainable.")}
    for name in sorted(names ^ trainable.keys()):
        raise LedgerMismatch(f"resume: {name} is trained now or then, not both; restore the config or output_dir")
    if cut is not None:
        saved = {key: cut(key, value) for key, value in saved.items()}
    for name, parameter in trainable.items():
        value = saved[f"trainable.{name}"]
        if value.shape != parameter.shape:
            raise LedgerMismatch(f"resume: {name} had another shape; restore the config or change output_dir")
        with torch.no_grad():
            parameter.copy_(value)
    _fill_optimizer(optimizer, saved, facts["optimizer_steps"])
    _fill_schedule(scheduler, facts["scheduler"])


def drop_state(state: Path) -> None:
    """Delete what only an unfinished run needs; the keys stay, so that the same noise is never drawn again."""
    for folder in state.glob("step-*"):
        shutil.rmtree(folder, ignore_errors=True)
    (state / LATEST).unlink(missing_ok=True)


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


def _fill_schedule(scheduler: Any, saved: Mapping[str, Any]) -> None:
    """Set the schedule to where it stood; the rates are the config's, which a new segment may have changed."""
    scheduler.load_state_dict(scheduler.state_dict() | saved | {"base_lrs": scheduler.base_lrs})
    pairs = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    scheduler._last_lr = [base * factor(scheduler.last_epoch) for base, factor in pairs]
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler._last_lr, strict=True):
        group["lr"] = rate


def _say_who_goes_on(path: Path, clock: Clock) -> None:
    """Write down the signal under which the next step will be drawn, before it is: a replay is judged by it."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts["clock"] != asdict(clock):
        write_json(path, facts | {"clock": asdict(clock)})


def _latest_name(state: Path) -> str | None:
    """Return the folder that ``latest.json`` names.

    Raises:
        LedgerMismatch: If the file is damaged.
    """
    path = state / LATEST
    if not path.is_file():
        return None
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["folder"]
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerMismatch(f"{path} is damaged; start another run in a new output_dir") from error
    return str(name)


def _whole_facts(folder: Path) -> dict[str, Any] | None:
    """Return the facts of a state whose tensors are the ones that were written, or None."""
    try:
        facts = json.loads((folder / "clock.json").read_text(encoding="utf-8"))
        with (folder / TENSORS).open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and facts.get("sha256") == found else None


def _flushed_hash(path: Path) -> str:
    """Flush a file to disk and return its SHA-256."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
        return hashlib.file_digest(handle, "sha256").hexdigest()
