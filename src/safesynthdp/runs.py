"""A run directory: what one stage wrote, whole or resumable, and where its parents lie.

Here: create, lock, finish, read. Elsewhere: the ledger (privacy/ledger.py) and what each stage puts in. Every stage
hands over a directory on disk, never a live object.
"""

import errno
import fcntl
import hashlib
import json
import os
import platform
import resource
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Self

import yaml

from safesynthdp.config import config_hash, differing_keys
from safesynthdp.errors import ConfigError, LedgerMismatch, SafeSynthError, UserError
from safesynthdp.privacy.storage import disk_error, make_private_directory, write_json, write_text

Kind = Literal["finetune", "sample", "evaluate", "attack", "shadow_pool", "report"]
MANIFEST = "manifest.json"
CONFIG = "config.yaml"
LEDGER = "ledger.json"
STATE = "state"
CHECKPOINT = "checkpoint"
TOKENS = "token_histogram.safetensors"
_VERSIONED = ("safesynthdp", "torch", "transformers", "peft", "opacus", "accelerate", "dp-accounting", "numpy")


@dataclass(kw_only=True)
class RunDirectory:
    """One stage's directory. ``create`` for the stage that writes it, ``open`` for those that read it.

    ``with RunDirectory.create(...) as run:`` lets go of the lock at the end of the work, whatever ended it: without it
    the lock lasts until the object is collected, and a traceback can keep it alive for long.
    """

    path: Path
    manifest: dict[str, Any]
    writes: bool = True
    """False for a process that only works along: another one writes this directory and speaks."""
    is_drifted: bool = False
    """It was begun with another config and is to go on with this one (``adopt``)."""
    _lock: Any = field(default=None, repr=False)

    @classmethod
    def create(
        cls,
        output_dir: str | Path,
        *,
        kind: Kind,
        config: Mapping[str, Any],
        parents: Sequence["RunDirectory"] = (),
        leave_out: Sequence[str] = ("output_dir",),
        may_drift: bool = False,
    ) -> "RunDirectory":
        """Lock ``output_dir``; write the resolved config and a manifest into it, or find this stage's earlier try.

        The returned run has ``is_finished`` (the stage was done before with the same config) or ``is_resumed`` (it
        was begun with the same config); otherwise it is new. Keys in ``leave_out`` may differ. With ``may_drift`` an
        unfinished run with another config is returned too, as ``is_drifted``; nothing of it is changed yet.

        Raises:
            ConfigError: If ``output_dir`` is a file, holds something else, or holds a run with another config.
            SafeSynthError: If another process works in it, or the disk refuses.
        """
        path = Path(output_dir).resolve()
        hashed = config_hash(config, leave_out=leave_out)
        earlier = _own_manifest(path, kind=kind, config=config, leave_out=leave_out, may_drift=may_drift)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(path, error) from error
        is_drifted = earlier is not None and earlier.get("config_hash") != hashed
        run = cls(path=path, manifest=earlier or {}, is_drifted=is_drifted, _lock=_lock(path))
        if earlier is None:
            run.manifest = _new_manifest(kind=kind, hashed=hashed, parents=parents)
            write_text(path / CONFIG, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
            write_json(path / MANIFEST, run.manifest)
        return run

    @classmethod
    def open(cls, path: str | Path, *, kind: Kind | None = None) -> "RunDirectory":
        """Read a run directory.

        Raises:
            UserError: If there is none, or it is of another kind than asked for.
        """
        folder = Path(path).resolve()
        if not (folder / MANIFEST).is_file():
            raise UserError(f"{path} is not a run directory (no {MANIFEST}); give the output_dir of a finished stage")
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except ValueError as error:
            raise LedgerMismatch(f"{folder / MANIFEST} is not JSON; restore it or run the stage again") from error
        if not isinstance(manifest, dict) or not {"kind", "status", "run_id"} <= manifest.keys():
            raise UserError(f"{folder / MANIFEST} is not a manifest of ours; give the output_dir of a finished stage")
        if kind is not None and manifest["kind"] != kind:
            raise UserError(f"{path} is the output of '{manifest['kind']}', not of '{kind}'; give the right directory")
        return cls(path=folder, manifest=manifest)

    @classmethod
    def follow(cls, output_dir: str | Path, manifest: Mapping[str, Any]) -> "RunDirectory":
        """Return the run that another process created, for one that works along and writes and says nothing."""
        return cls(path=Path(output_dir).resolve(), manifest=dict(manifest), writes=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go()

    @property
    def is_finished(self) -> bool:
        """The stage ended as planned; nothing is left to do."""
        return bool(self.manifest["status"] == "finished")

    @property
    def is_resumed(self) -> bool:
        """An earlier process began this stage and did not end it."""
        return bool(self.manifest["status"] == "interrupted")

    @property
    def state(self) -> Path:
        """The folder for what may never be released (mode 0700), created on first use."""
        make_private_directory(self.path / STATE)
        return self.path / STATE

    def config(self) -> dict[str, Any]:
        """Return the resolved config this stage ran with."""
        value = yaml.safe_load((self.path / CONFIG).read_text(encoding="utf-8"))
        return dict(value)

    def begin(self) -> None:
        """Say on disk that the work has begun: from here on a process that finds this directory resumes it."""
        self.update(status="interrupted")

    def update(self, **facts: Any) -> None:
        """Merge ``facts`` into the manifest on disk."""
        self.manifest |= facts
        if self.writes:
            write_json(self.path / MANIFEST, self.manifest)

    def adopt(self, config: Mapping[str, Any], *, leave_out: Sequence[str], **facts: Any) -> None:
        """Go on with another config than the run was begun with; the manifest decides which one holds."""
        write_text(self.path / CONFIG, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        self.update(config_hash=config_hash(config, leave_out=leave_out), **facts)
        self.is_drifted = False

    def finish(self, **facts: Any) -> None:
        """Write the last facts, mark the stage as finished and let go of the lock."""
        self.update(status="finished", finished=_now(), peak_memory_gib=_peak_memory_gib(), **facts)
        self._let_go()

    def discard(self) -> None:
        """Take back what ``create`` wrote, as long as no work has begun; whatever else lies there stays."""
        if self.manifest["status"] != "created" or not self.writes:
            return
        for name in (CONFIG, MANIFEST, ".lock"):
            (self.path / name).unlink(missing_ok=True)
        self._let_go()
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def say(self, line: str) -> None:
        """Write one line for people."""
        if self.writes:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


def parent_of(run: RunDirectory, *, kind: Kind) -> RunDirectory | None:
    """Return the first ancestor of a kind: the run a sample was drawn from, say; None if it is not there any more."""
    for parent in run.manifest.get("parents", []):
        folder = Path(parent["path"])
        folder = folder if folder.is_absolute() else run.path / folder
        if not (folder / MANIFEST).is_file():
            continue
        found = RunDirectory.open(folder)
        if found.manifest["run_id"] != parent["run_id"]:
            continue
        if found.manifest["kind"] == kind:
            return found
        if (above := parent_of(found, kind=kind)) is not None:
            return above
    return None


def hardware() -> dict[str, Any]:
    """Return what the machine is: processor, cores, memory in GiB."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"machine": platform.machine(), "cpu_cores": os.cpu_count(), "memory_gib": round(memory, 1)}


def commit() -> str | None:
    """Return the commit of the checkout this package runs from, with ``-dirty`` if it was changed; None elsewhere."""
    import subprocess

    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def code_digest() -> str:
    """Return a hash of the source that shapes a step: two trees, both changed by hand, are told apart."""
    root, found = Path(__file__).parent, hashlib.sha256()
    for path in sorted([*root.glob("*.py"), *root.glob("privacy/*.py"), *root.glob("training/*.py")]):
        found.update(f"{path.relative_to(root)} ".encode() + path.read_bytes())
    return found.hexdigest()


def _peak_memory_gib() -> float:
    """Return the most memory this process has held, in GiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # not ru_maxrss there: a child begins with its parent's
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return round(int(line.split()[1]) / 2**20, 2)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**30 if sys.platform == "darwin" else 2**20), 2)


def _own_manifest(
    path: Path, *, kind: Kind, config: Mapping[str, Any], leave_out: Sequence[str], may_drift: bool
) -> dict[str, Any] | None:
    """Return the manifest of this very stage if ``path`` holds one; refuse whatever else it holds."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"output_dir={path} is a file; give a directory")
    if not path.exists() or not any(p for p in path.iterdir() if p.name != ".lock"):
        return None
    if not (path / MANIFEST).is_file():
        raise ConfigError(f"output_dir={path} is not empty and holds no run; give a new or empty directory")
    manifest = RunDirectory.open(path).manifest
    if manifest["kind"] != kind:
        raise ConfigError(f"output_dir={path} holds the output of '{manifest['kind']}'; give another directory")
    if manifest["status"] == "created":
        return None  # it stopped before its work began: nothing is lost by starting over
    is_unfinished = manifest["status"] == "interrupted"
    if manifest.get("config_hash") != config_hash(config, leave_out=leave_out) and not (may_drift and is_unfinished):
        can_go_on = kind == "finetune" and is_unfinished
        raise ConfigError(
            f"output_dir={path} holds a run with another config{_what_differs(path, config, leave_out=leave_out)}; "
            "restore it or give another directory"
            + (", or let the run go on with --resume_with_new_segment true" if can_go_on else "")
        )
    return manifest


def _what_differs(path: Path, config: Mapping[str, Any], *, leave_out: Sequence[str]) -> str:
    """Name the keys, the first with their values; a seed is as good as a key of the run, and is not repeated."""
    try:
        before = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
        pairs = differing_keys(before, config, leave_out=leave_out)
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return f" (its {CONFIG} cannot be read)"
    shown = [
        key if key.endswith("unsafe_seed") else f"{key} is {_short(now)} now and was {_short(then)} then"
        for key, (then, now) in list(pairs.items())[:3]
    ]
    more = f", and {len(pairs) - 3} more keys" if len(pairs) > 3 else ""
    return f": {', '.join(shown)}{more} (see its {CONFIG})" if shown else f" (see its {CONFIG})"


def _short(value: Any) -> str:
    said = json.dumps(value, ensure_ascii=False)
    return said if len(said) <= 60 else f"{said[:57]}..."


def _new_manifest(*, kind: Kind, hashed: str, parents: Sequence[RunDirectory]) -> dict[str, Any]:
    return {
        "kind": kind,
        "status": "created",
        "run_id": uuid.uuid4().hex,
        "created": _now(),
        "config_hash": hashed,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(),
        "parents": [{"kind": p.manifest["kind"], "run_id": p.manifest["run_id"], "path": str(p.path)} for p in parents],
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of every package that shapes a number."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _lock(path: Path) -> Any:
    """Hold an advisory lock for the life of the process; the system drops it when the process dies.

    The file says who holds it, for the case of a network file system that does not notice a death.
    """
    try:
        handle = (path / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise disk_error(path / ".lock", error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            handle.close()
            raise SafeSynthError(
                f"output_dir={path} is on a file system without locks ({error.strerror}), where two processes could "
                "spend one budget twice; give a directory elsewhere"
            ) from error
        handle.seek(0)
        holder = " ".join(handle.read().split()) or "another process"
        handle.close()
        raise SafeSynthError(
            f"output_dir={path} is in use by {holder}; wait for it or give another. If that process is gone (a network "
            "file system may keep its lock), delete .lock"
        ) from error
    try:
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {platform.node()}, since {_now()}\n")
        handle.flush()
    except OSError as error:
        raise disk_error(path / ".lock", error) from error
    return handle


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
