"""What drivers know of the tasks they began: attempts, job ids and reasons, on disk, for whoever drives next.

Here: jobs.json and the note a failing worker leaves. Elsewhere: beginning tasks (engine_*.py) and
deciding what comes next (driver.py). Nothing here says that a shard is done: its manifest does (pool.py).
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from safesynthdp.attacks.pool import JOBS, Pool, folder_name
from safesynthdp.attacks.shard_spec import ShardSpec
from safesynthdp.errors import SafeSynthError
from safesynthdp.privacy.storage import make_private_directory, write_json

Phase = Literal["alive", "ended", "failed", "set_aside", "gone", "unknown"]
OPEN = "open"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One task of one shard."""

    engine: str
    job: str
    """The engine's own id."""
    log: str
    begun: float
    """Seconds since 1970."""
    state: str = OPEN
    """open, failed (counts), set aside (does not: preempted, or another worker was at it), done."""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A task that an engine has taken."""

    job: str
    """The engine's own id."""
    log: Path
    """Where its output goes."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What an engine knows of a job now."""

    phase: Phase
    """alive: waits or runs. ended: over, said to be well. gone: nobody knows it any more. unknown: nobody answers."""
    reason: str = ""


class Engine(Protocol):
    """Where tasks run."""

    name: str

    def submit(self, logs: Mapping[int, Path]) -> dict[int, "Begun"]:
        """Begin a task for each shard number, if possible with the log named; return what was begun."""
        ...

    def look(self, jobs: Mapping[int, str]) -> dict[int, Seen]:
        """Return what is known of each job."""
        ...

    def find(self) -> dict[int, str]:
        """Return the live tasks of this pool, by shard, whoever began them."""
        ...

    def room(self, alive: int) -> int:
        """Return how many more tasks may be begun."""
        ...

    def stop(self, jobs: Mapping[int, str]) -> None:
        """End what would not outlive the driver usefully: local tasks save and end, a cluster's go on."""
        ...


@dataclass
class JobBook:
    """The attempts of every shard, by key; rewritten whole at each change."""

    path: Path
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)

    @classmethod
    def open(cls, pool: Pool) -> "JobBook":
        """Read jobs.json, or begin one.

        Raises:
            SafeSynthError: If it is damaged.
        """
        path = pool.path / JOBS
        if not path.is_file():
            return cls(path=path)
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            found = {key: [Attempt(**row) for row in rows] for key, rows in raw["attempts"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SafeSynthError(f"{path} is damaged; delete it: attempts are then counted anew") from error
        return cls(path=path, attempts=found)

    def current(self, spec: ShardSpec) -> Attempt | None:
        """Return the attempt that is not over yet, as far as the book knows."""
        rows = self.attempts.get(spec.key, [])
        return rows[-1] if rows and rows[-1].state == OPEN else None

    def failures(self, spec: ShardSpec) -> list[Attempt]:
        """Return the attempts that count as failed."""
        return [row for row in self.attempts.get(spec.key, []) if row.state == "failed"]

    def begin(self, specs: Mapping[int, ShardSpec], tasks: Mapping[int, Begun], *, engine: str) -> None:
        """Write down new tasks."""
        for number, task in tasks.items():
            row = Attempt(engine=engine, job=task.job, log=str(task.log), begun=time.time())
            self.attempts.setdefault(specs[number].key, []).append(row)
        self._write()

    def close(self, spec: ShardSpec, *, state: str, reason: str) -> None:
        """Say how the current attempt of a shard went."""
        rows = self.attempts[spec.key]
        rows[-1] = replace(rows[-1], state=state, reason=reason)
        self._write()

    def _write(self) -> None:
        value: dict[str, Any] = {key: [asdict(row) for row in rows] for key, rows in self.attempts.items()}
        write_json(self.path, {"version": 1, "attempts": value}, private=True)


def log_file(pool: Pool, spec: ShardSpec, *, attempt: int) -> Path:
    """Return where the output of a task goes."""
    make_private_directory(pool.path / "logs")
    return pool.path / "logs" / f"{folder_name(spec)}.{attempt}.log"


def note_file(pool: Pool, spec: ShardSpec) -> Path:
    """Return where a failing worker says why."""
    return pool.path / "logs" / f"{folder_name(spec)}.json"


def leave_note(pool: Pool, spec: ShardSpec, error: SafeSynthError) -> None:
    """Write down why a worker ends, for a driver that sees no exit code."""
    make_private_directory(pool.path / "logs")
    write_json(note_file(pool, spec), {"exit_code": error.exit_code, "message": str(error)}, private=True)


def read_note(pool: Pool, spec: ShardSpec) -> tuple[int | None, str]:
    """Return exit code and message of the last worker that left a note; (None, '') if none did."""
    try:
        value = json.loads(note_file(pool, spec).read_text(encoding="utf-8"))
        return int(value["exit_code"]), str(value["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, ""


def end_of_log(path: str | Path, *, lines: int = 2) -> str:
    """Return the last lines of a log, for people."""
    try:
        text = Path(path).read_bytes()[-4000:].decode("utf-8", "replace")
    except OSError:
        return "(no log)"
    return " / ".join(line.strip() for line in text.splitlines()[-lines:] if line.strip()) or "(empty log)"
