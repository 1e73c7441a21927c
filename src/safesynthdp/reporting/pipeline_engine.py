"""Who runs the jobs of a pipeline: their order, and the engine of one machine.

Here: running them in order, a few at a time, each as a process of its own with a log. Elsewhere: the engine of a
cluster (pipeline_slurm.py), which jobs there are (pipeline_jobs.py), what is skipped and what the result means
(pipeline_command.py). ``run`` returns when nothing more can be done, and never raises for a job that failed.
"""

import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from safesynthdp.privacy.storage import make_private_directory
from safesynthdp.reporting.pipeline_calls import Job

POLL_SECONDS = 0.2
SAVE_SECONDS = 120.0  # a training step may be under way, and its state is then written
BLOCKED = "needs a job that failed"
LAST_CHARACTERS = 400


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one job ended; ``code`` None was never started."""

    key: str
    code: int | None
    seconds: float
    last_line: str
    """Of its log: the one line of an error."""


class Engine(Protocol):
    """Runs jobs so that each starts after those it needs ended well."""

    def run(self, jobs: Sequence[Job], *, on_end: Callable[[Outcome], bool]) -> None:
        """Run every job that can be run.

        Args:
            jobs: In an order in which each stands after those it needs; needs that are not among them are done.
            on_end: Called once a job, also for one that is never started; returns whether others may build on it.
        """
        ...


class PolledEngine(ABC):
    """Starts what can be started, and asks again and again what has ended."""

    log_dir: Path
    max_parallel: int
    poll_seconds: float = POLL_SECONDS

    def run(self, jobs: Sequence[Job], *, on_end: Callable[[Outcome], bool]) -> None:
        """See Engine; if this process is interrupted, ``stop`` and go on raising."""
        make_private_directory(self.log_dir)
        waiting, well, badly = list(jobs), set[str](), set[str]()
        ours = {job.key for job in jobs}
        try:
            while waiting or self.num_running:
                for job in [one for one in waiting if badly & set(one.needs)]:
                    waiting.remove(job)
                    badly.add(job.key)
                    on_end(Outcome(key=job.key, code=None, seconds=0.0, last_line=BLOCKED))
                ready = [one for one in waiting if all(need in well or need not in ours for need in one.needs)]
                for job in ready[: self.max_parallel - self.num_running]:
                    waiting.remove(job)
                    self.start(job)
                for outcome in self.ended():
                    (well if on_end(outcome) else badly).add(outcome.key)
                time.sleep(self.poll_seconds)
        finally:
            self.stop()

    @property
    @abstractmethod
    def num_running(self) -> int:
        """How many jobs were started and have not ended."""

    @abstractmethod
    def start(self, job: Job) -> None:
        """Start a job."""

    @abstractmethod
    def ended(self) -> list[Outcome]:
        """Return the jobs that ended since it was last asked."""

    @abstractmethod
    def stop(self) -> None:
        """Leave nothing behind that nobody would look after; called in the end, whatever happened."""

    def log_of(self, key: str) -> Path:
        """Return where a job's output goes."""
        return self.log_dir / f"{key.replace('/', '.')}.log"

    def last_line(self, key: str) -> str:
        """Return the last line of a job's log: the one line of an error."""
        path = self.log_of(key)
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        lines = [line for line in text.splitlines() if line]
        return lines[-1][-LAST_CHARACTERS:] if lines else ""


@dataclass(kw_only=True)
class LocalEngine(PolledEngine):
    """Processes of this machine, at most ``max_parallel`` at a time; a log each in ``log_dir``, for the owner alone."""

    log_dir: Path
    max_parallel: int = 1
    _running: dict[str, tuple[Job, "subprocess.Popen[bytes]", float]] = field(default_factory=dict, repr=False)

    @property
    def num_running(self) -> int:
        """See PolledEngine."""
        return len(self._running)

    def start(self, job: Job) -> None:
        """See PolledEngine."""
        path = self.log_of(job.key)
        path.touch(mode=0o600)
        with path.open("ab") as log:
            process = subprocess.Popen(command(job), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        self._running[job.key] = (job, process, time.monotonic())

    def ended(self) -> list[Outcome]:
        """See PolledEngine."""
        done = [
            (key, process, began) for key, (_, process, began) in self._running.items() if process.poll() is not None
        ]
        for key, _, _ in done:
            del self._running[key]
        return [
            Outcome(key=key, code=process.returncode, seconds=time.monotonic() - began, last_line=self.last_line(key))
            for key, process, began in done
        ]

    def stop(self) -> None:
        """Ask what still runs to save and end; SIGTERM is what a cluster sends too."""
        for _, process, _ in self._running.values():
            process.terminate()
        deadline = time.monotonic() + SAVE_SECONDS
        for _, process, _ in self._running.values():
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()


def command(job: Job) -> list[str]:
    """Return the words of a job's process: the console script in this very Python, behind a launcher if it has one."""
    start = [sys.executable, "-m", "safesynthdp"]
    if job.launch:
        start = [sys.executable, "-m", "accelerate.commands.launch", *job.launch, "-m", "safesynthdp"]
    return [*start, *job.words]
