"""Driving a pool to its end: begin, watch, begin again; killed and restarted at will.

Here: the loop and its decisions. Elsewhere: where tasks run (engine_*.py), what is remembered
(jobs.py), what a task does (shard.py). A shard is done when its manifest says so, whatever became of its task; an
engine is only asked about shards that are not.
"""

import fcntl
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from safesynthdp.attacks.jobs import Engine, JobBook, Seen, end_of_log, log_file, note_file, read_note
from safesynthdp.attacks.pool import Pool
from safesynthdp.attacks.pool_config import RunPoolConfig
from safesynthdp.errors import Preempted, SafeSynthError
from safesynthdp.privacy.storage import disk_error
from safesynthdp.progress import duration

GRACE_SECONDS = 60.0
"""A task may be gone this long before its manifest is seen: file systems of a cluster lag."""
SECONDS_BETWEEN_LINES = 30.0
SECONDS_AFTER_REFUSAL = 5.0
SECONDS_TO_SUBMIT = 300.0
"""How long nobody may answer a submission: a controller restarts within it."""
SHOWN = 3
"""Shards whose failure is told in full."""
MOST_SET_ASIDE = 100
"""A shard that is set aside this often is not going to end."""


@dataclass
class Driver:
    """One driver of one pool."""

    pool: Pool
    config: RunPoolConfig
    engine: Engine
    book: JobBook
    grace: float = GRACE_SECONDS
    _done: set[int] = field(default_factory=set)
    _missing_since: dict[int, float] = field(default_factory=dict)
    _told: str = ""
    _told_at: float = 0.0
    _refused_since: float | None = None
    _wait_until: float = 0.0

    def drive(self) -> None:
        """Return when every shard is done.

        Raises:
            SafeSynthError: If shards failed more often than allowed, or the deadline is over; with their reasons.
            Preempted: After SIGTERM.
        """
        until = None if self.config.deadline_minutes is None else time.monotonic() + 60 * self.config.deadline_minutes
        with _alone(self.pool), _told_to_end():
            try:
                self._loop(until)
            except BaseException:
                self.engine.stop(self._jobs())
                raise

    def _loop(self, until: float | None) -> None:
        while True:
            self._take_in()
            left = [n for n in range(len(self.pool.shards)) if n not in self._done]
            seen = self._watch(left)
            given_up = [n for n in self._given_up() if n not in seen]
            if not left:
                self._say(seen, len(given_up), always=True)
                return
            if set(left) <= set(given_up):
                raise SafeSynthError(self._why(given_up))
            if until is not None and time.monotonic() > until:
                raise SafeSynthError(f"deadline_minutes={self.config.deadline_minutes:g} is over; {self._open(seen)}")
            self._begin([n for n in left if n not in given_up and n not in seen], alive=len(seen))
            self._say(seen, len(given_up))
            time.sleep(self.config.poll_seconds)

    def _take_in(self) -> None:
        """See which shards have become done; each is checked once, file by file."""
        for number, spec in enumerate(self.pool.shards):
            if number in self._done or self.pool.state_of(spec) != "done":
                continue
            self._done.add(number)
            if self.book.current(spec) is not None:
                self.book.close(spec, state="done", reason="")

    def _watch(self, left: list[int]) -> dict[int, Seen]:
        """Ask the engine about the open tasks; close those that are over; return those that may still end well."""
        jobs = self._jobs(left)
        found = self.engine.find() if len(jobs) < len(left) else {}
        seen = {number: Seen(phase="alive", reason="begun elsewhere") for number in left if number in found}
        for number, what in self.engine.look(jobs).items():
            if self._may_end_well(number, what):
                seen[number] = what
        return seen

    def _may_end_well(self, number: int, what: Seen) -> bool:
        if what.phase in ("alive", "unknown"):
            self._missing_since.pop(number, None)
            return True
        if what.phase in ("ended", "gone"):
            since = self._missing_since.setdefault(number, time.monotonic())
            if time.monotonic() - since < self.grace:
                return True
        self._missing_since.pop(number, None)
        spec = self.pool.shards[number]
        if self.pool.state_of(spec) == "done":
            return True  # between two looks
        code, message = read_note(self.pool, spec)
        is_aside = what.phase == "set_aside" or code == Preempted.exit_code
        words = {"ended": "ended without its manifest", "gone": "gone without a trace"}
        reason = "; ".join(part for part in (what.reason or words.get(what.phase, ""), message) if part)
        self.book.close(spec, state="set aside" if is_aside else "failed", reason=reason)
        if not is_aside:
            self._line(f"{spec.name}: failed ({reason}); {len(self.book.failures(spec))} of {self._most()} tries")
        return False

    def _begin(self, waiting: list[int], *, alive: int) -> None:
        """Begin as many tasks as there is room for."""
        chosen = waiting[: self.engine.room(alive)]
        if not chosen or time.monotonic() < self._wait_until:
            return
        specs = {number: self.pool.shards[number] for number in chosen}
        tries = {n: len(self.book.attempts.get(spec.key, [])) + 1 for n, spec in specs.items()}
        logs = {n: log_file(self.pool, spec, attempt=tries[n]) for n, spec in specs.items()}
        for spec in specs.values():
            note_file(self.pool, spec).unlink(missing_ok=True)
        try:
            begun = self.engine.submit(logs)
        except SafeSynthError as error:
            self._refused_since = self._refused_since or time.monotonic()
            if time.monotonic() - self._refused_since > SECONDS_TO_SUBMIT:
                raise
            self._line(f"{error}; trying again")
            self._wait_until = time.monotonic() + SECONDS_AFTER_REFUSAL
            return
        self._refused_since = None
        self.book.begin(specs, begun, engine=self.engine.name)

    def _given_up(self) -> list[int]:
        """Return the shards that failed as often as they may, by the book."""
        return [n for n, spec in enumerate(self.pool.shards) if n not in self._done and self._is_over(n, spec.key)]

    def _is_over(self, number: int, key: str) -> bool:
        rows = self.book.attempts.get(key, [])
        set_aside = sum(row.state == "set aside" for row in rows)
        return len(self.book.failures(self.pool.shards[number])) >= self._most() or set_aside >= MOST_SET_ASIDE

    def _most(self) -> int:
        return self.config.retries + 1

    def _jobs(self, numbers: list[int] | None = None) -> dict[int, str]:
        """Return the open jobs of this engine."""
        wanted = range(len(self.pool.shards)) if numbers is None else numbers
        open_rows = {number: self.book.current(self.pool.shards[number]) for number in wanted}
        return {n: row.job for n, row in open_rows.items() if row is not None and row.engine == self.engine.name}

    def _why(self, given_up: list[int]) -> str:
        """Return the one line of a pool that cannot be finished."""
        said = list[str]()
        for number in given_up[:SHOWN]:
            spec = self.pool.shards[number]
            rows = self.book.attempts[spec.key]
            said.append(
                f"{spec.name} (key {spec.key[:16]}) failed {len(rows)} times, last: {rows[-1].reason}; its log "
                f"{rows[-1].log} ends: {end_of_log(rows[-1].log)}"
            )
        return (
            f"{len(self._done)} of {len(self.pool.shards)} shards are done, {len(given_up)} failed too often. "
            f"{' | '.join(said)} | mend the cause and run again with a larger --retries"
        )

    def _open(self, seen: dict[int, Seen]) -> str:
        reasons = sorted({what.reason for what in seen.values() if what.reason})
        why = f" ({', '.join(reasons)})" if reasons else ""
        return (
            f"{len(self._done)} of {len(self.pool.shards)} shards are done, {len(seen)} open{why}; run again to go on"
        )

    def _say(self, seen: dict[int, Seen], given_up: int, *, always: bool = False) -> None:
        reasons = ", ".join(sorted({what.reason for what in seen.values() if what.reason}))
        text = f"{len(self._done)} of {len(self.pool.shards)} shards done, {len(seen)} open"
        text += (f", {given_up} failed" if given_up else "") + (f" ({reasons})" if reasons else "")
        is_due = time.monotonic() - self._told_at > SECONDS_BETWEEN_LINES
        if always or (text != self._told and (is_due or f"{len(self._done)} of" not in self._told)):
            self._line(text)
            self._told, self._told_at = text, time.monotonic()

    def _line(self, text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def drive(pool: Pool, config: RunPoolConfig) -> None:
    """Drive every shard of a pool to its end on the engine that the config names."""
    engine = _engine(pool, config)
    began = time.monotonic()
    Driver(pool=pool, config=config, engine=engine, book=JobBook.open(pool)).drive()
    sys.stdout.write(f"all {len(pool.shards)} shards are done in {duration(time.monotonic() - began)} -> {pool.path}\n")


def _engine(pool: Pool, config: RunPoolConfig) -> Engine:
    if config.engine == "submitit":
        from safesynthdp.attacks.engine_submitit import engine_of

        return engine_of(pool, config)
    from safesynthdp.attacks.engine_local import LocalEngine
    from safesynthdp.attacks.engine_slurm import SlurmEngine

    return SlurmEngine(pool, config) if config.engine == "slurm" else LocalEngine(pool, config)


@contextmanager
def _alone(pool: Pool) -> Iterator[None]:
    """Only one driver at a time, as far as locks reach; beyond, two would begin twins, which are harmless."""
    path = pool.path / ".driver.lock"
    try:
        handle: Any = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise disk_error(path, error) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SafeSynthError(f"pool={pool.path}: another driver is at work; it goes on by itself") from error
        yield


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Turn SIGTERM into an orderly end."""

    def end(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise Preempted("told to end (SIGTERM); the same command goes on")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
