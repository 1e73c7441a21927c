"""The jobs of a pipeline on a SLURM cluster: one batch job each.

Here: submitting, asking, and reading how a job ended. Elsewhere: their order (pipeline_engine.py), SLURM's clients and
what their states mean (attacks/engine_slurm.py). How a job ended is read from a file that its script writes last, so it
needs no accounting; a job that leaves the queue without that file has failed. The name of a job follows from its
place, so that a pipeline that was killed finds its jobs again and starts none twice. A job that itself drives tasks
on the cluster is a process beside the pipeline: as a task it would hold a node while its tasks wait.
"""

import hashlib
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path

from safesynthdp.attacks.engine_slurm import call_client, meaning_of, sbatch_options
from safesynthdp.attacks.pool_config import SlurmConfig
from safesynthdp.errors import SafeSynthError
from safesynthdp.privacy.storage import write_text
from safesynthdp.reporting.pipeline_calls import Job
from safesynthdp.reporting.pipeline_engine import LocalEngine, Outcome, PolledEngine, command

GRACE_SECONDS = 60.0
"""A job may be gone this long before its exit code is seen: file systems of a cluster lag."""
POLL_SECONDS = 1.0


@dataclass(kw_only=True)
class SlurmEngine(PolledEngine):
    """Batch jobs, at most ``max_parallel`` in the queue at a time; logs and exit codes in ``log_dir``."""

    log_dir: Path
    slurm: SlurmConfig
    max_parallel: int = 1
    poll_seconds: float = POLL_SECONDS
    grace: float = GRACE_SECONDS
    _here: LocalEngine = field(init=False, repr=False)
    _began: dict[str, float] = field(default_factory=dict, repr=False)
    _gone_since: dict[str, float] = field(default_factory=dict, repr=False)
    _states: dict[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    _asked_at: float | None = field(default=None, repr=False)

    @property
    def num_running(self) -> int:
        """See PolledEngine."""
        return len(self._began) + self._here.num_running

    def __post_init__(self) -> None:
        """Drivers have an engine of this machine."""
        self._here = LocalEngine(log_dir=self.log_dir, max_parallel=self.max_parallel)

    def start(self, job: Job) -> None:
        """Submit a job, unless an earlier pipeline did and it is still in the queue.

        Raises:
            SafeSynthError: If SLURM refuses it.
        """
        if job.drives_cluster:
            self._here.start(job)
            return
        if not self._is_alive(self._ask(), job.key):
            self._exit_of(job.key).unlink(missing_ok=True)
            script = self.log_dir / f"{self._name(job.key)}.sbatch"
            write_text(script, self._script(job), private=True)
            self.log_of(job.key).touch(mode=0o600)
            options = [f"--job-name={self._name(job.key)}", f"--output={self.log_of(job.key)}", "--open-mode=append"]
            call_client(["sbatch", "--parsable", *options, *sbatch_options(self.slurm), str(script)])
            self._asked_at = None
        self._began[job.key] = time.monotonic()

    def ended(self) -> list[Outcome]:
        """See PolledEngine; a controller that does not answer is asked again."""
        found = [outcome for key in list(self._began) if (outcome := self._outcome(key)) is not None]
        for outcome in found:
            del self._began[outcome.key]
            self._gone_since.pop(outcome.key, None)
        return found + self._here.ended()

    def stop(self) -> None:
        """Leave the tasks be, the same command finds them again; a driver ends, and finds its own again too."""
        self._here.stop()

    def _outcome(self, key: str) -> Outcome | None:
        seconds = time.monotonic() - self._began[key]
        if (code := self._exit_code(key)) is not None:
            return Outcome(key=key, code=code, seconds=seconds, last_line=self.last_line(key))
        try:
            states = self._ask()
        except SafeSynthError:
            return None
        if self._is_alive(states, key):
            self._gone_since.pop(key, None)
            return None
        if time.monotonic() - self._gone_since.setdefault(key, time.monotonic()) < self.grace:
            return None
        state, reason = states.get(self._name(key), ("gone from the queue", ""))
        said = f"SLURM: {meaning_of(state, reason).reason}; the same command goes on"
        return Outcome(key=key, code=SafeSynthError.exit_code, seconds=seconds, last_line=said)

    def _ask(self) -> dict[str, tuple[str, str]]:
        """Return state and reason by job name, asked for no more often than the controller likes."""
        if self._asked_at is None or time.monotonic() - self._asked_at >= self.slurm.query_seconds:
            rows = call_client(["squeue", "-h", "-t", "all", "-o", "%i|%j|%T|%r"]).splitlines()
            cut = sorted((line.strip().split("|", 3) for line in rows if line.count("|") >= 3), key=_number)
            self._states = {name: (state, reason) for _, name, state, reason in cut}  # of equal names the last one
            self._asked_at = time.monotonic()
        return self._states

    def _is_alive(self, states: dict[str, tuple[str, str]], key: str) -> bool:
        known = states.get(self._name(key))
        return known is not None and meaning_of(*known).phase == "alive"

    def _name(self, key: str) -> str:
        """A name nobody else has: of the folder of this pipeline and the job's place in it."""
        place = hashlib.sha256(f"{self.log_dir.resolve()}\n{key}".encode()).hexdigest()
        return f"safesynthdp-{place[:16]}"

    def _script(self, job: Job) -> str:
        target = shlex.quote(str(self._exit_of(job.key)))
        lines = ["#!/bin/bash", *self.slurm.setup, shlex.join(command(job)), "code=$?"]
        return "\n".join([*lines, f"echo $code > {target}.tmp && mv {target}.tmp {target}", "exit $code", ""])

    def _exit_of(self, key: str) -> Path:
        return self.log_dir / f"{self._name(key)}.exit"

    def _exit_code(self, key: str) -> int | None:
        path = self._exit_of(key)
        text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        return int(text) if text.isdigit() else None


def _number(row: list[str]) -> int:
    digits = row[0].partition("_")[0]
    return int(digits) if digits.isdigit() else 0
