"""Tasks as one SLURM array: submit, ask, never wait for a job.

Here: sbatch, sacct and squeue, each with a timeout, and what their states mean. Elsewhere: what a task does (shard.py),
what follows from a state (driver.py). Without accounting a cancelled or killed job simply leaves the queue: whoever
waits for its end waits for ever, so the driver polls manifests, and a job that nobody knows any more is gone. Array
indices are shard numbers.
"""

import math
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from safesynthdp.attacks.engine_local import worker_command
from safesynthdp.attacks.jobs import Begun, Phase, Seen
from safesynthdp.attacks.pool import Pool
from safesynthdp.attacks.pool_config import RunPoolConfig, SlurmConfig
from safesynthdp.attacks.shard_spec import canonical_hash
from safesynthdp.errors import SafeSynthError
from safesynthdp.privacy.storage import write_text

CALL_SECONDS = 30
SCRIPT = "tasks.sbatch"
_ALIVE = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD"}
_ALIVE |= {"RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_SET_ASIDE = {"PREEMPTED"}
_FAILED = {"FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "REVOKED"}


class SlurmEngine:
    """One array a submission, throttled by SLURM itself."""

    name = "slurm"

    def __init__(self, pool: Pool, config: RunPoolConfig) -> None:
        self._pool, self._config = pool, config
        self._has_accounting = True
        self._asked_at = -math.inf
        self._silence: str | None = None
        self._known = dict[str, tuple[str, str]]()
        hashed = canonical_hash([spec.key for spec in pool.shards])
        self.job_name = f"pool-{hashed[:12]}"

    def submit(self, logs: Mapping[int, Path]) -> dict[int, Begun]:
        """See ``Engine.submit``.

        Raises:
            SafeSynthError: If sbatch refuses, or nobody answers.
        """
        script = self._pool.path / "logs" / SCRIPT
        write_text(script, script_of(self._pool, self._config.slurm), private=True)
        throttle = "" if self._config.max_parallel is None else f"%{self._config.max_parallel}"
        indices = ",".join(str(number) for number in sorted(logs)) + throttle
        folder = self._pool.path / "logs"
        options = [
            f"--job-name={self.job_name}",
            f"--array={indices}",
            f"--output={folder}/slurm-%A_%a.log",
            "--open-mode=append",
        ]
        found = call_client(["sbatch", "--parsable", *options, *sbatch_options(self._config.slurm), str(script)])
        job = found.strip().split(";")[0]
        return {n: Begun(job=f"{job}_{n}", log=folder / f"slurm-{job}_{n}.log") for n in logs}

    def look(self, jobs: Mapping[int, str]) -> dict[int, Seen]:
        """See ``Engine.look``."""
        if not jobs:
            return {}
        try:
            states = self._states(list(jobs.values()))
        except SafeSynthError as error:
            return {number: Seen(phase="unknown", reason=str(error)) for number in jobs}
        return {
            number: meaning_of(*states[job]) if job in states else Seen(phase="gone") for number, job in jobs.items()
        }

    def find(self) -> dict[int, str]:
        """Return the live tasks of this pool's arrays."""
        try:
            states = self._states([])
        except SafeSynthError:
            return {}
        numbers = {job: self._number_of(job) for job, (state, _) in states.items() if _phase(state) == "alive"}
        return {number: job for job, number in numbers.items() if number is not None}

    def room(self, alive: int) -> int:
        """See ``Engine.room``: all at once, and SLURM holds back what is too much, but it does so array by array.

        A task that is begun again is another array: it waits until the open ones are fewer than may run at once.
        """
        most = self._config.max_parallel
        return len(self._pool.shards) if most is None or not alive else max(0, most - alive)

    def stop(self, jobs: Mapping[int, str]) -> None:
        """Leave them be: the next driver finds their manifests."""

    def _states(self, jobs: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Return state and reason by task, asked for no more often than the controller likes.

        Raises:
            SafeSynthError: If the controller does not answer.
        """
        if time.monotonic() - self._asked_at >= self._config.slurm.query_seconds:
            self._asked_at, self._silence = time.monotonic(), None
            try:
                self._known = self._queue() | self._accounting(jobs)
            except SafeSynthError as error:
                self._silence = str(error)
        if self._silence is not None:
            raise SafeSynthError(self._silence)
        return self._known

    def _queue(self) -> dict[str, tuple[str, str]]:
        """Return state and reason by task, of every array of this pool the controller still knows."""
        return {job: (state, reason) for job, state, reason in queue_rows([self.job_name], "%i|%T|%r")}

    def _number_of(self, job: str) -> int | None:
        """Return the shard of a task; None if it is no task of an array."""
        return int(job.rpartition("_")[2]) if "_" in job else None

    def _accounting(self, jobs: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Return the same from the accounting, which forgets nothing, where there is one."""
        if not self._has_accounting or not jobs:
            return {}
        arrays = sorted({job.partition("_")[0] for job in jobs})
        try:
            found = call_client(["sacct", "-nXPo", "JobID,State", "-j", ",".join(arrays)])
        except SafeSynthError:
            self._has_accounting = False
            return {}
        rows = [line.split("|", 1) for line in found.splitlines() if "|" in line]
        return {job: (state.split()[0], "") for job, state in rows if state and "[" not in job}


def script_of(pool: Pool, slurm: SlurmConfig) -> str:
    """Return the script of a task; SLURM's signals reach the worker itself."""
    command = " ".join(shlex.quote(word) for word in worker_command(pool, "INDEX"))
    command = command.replace("INDEX", '"$SLURM_ARRAY_TASK_ID"')
    return "\n".join(["#!/bin/bash", *slurm.setup, f"exec {command}", ""])


def sbatch_options(slurm: SlurmConfig) -> list[str]:
    """Return the config's options as sbatch has them."""
    named = {
        "partition": slurm.partition,
        "account": slurm.account,
        "time": slurm.time_minutes,
        "cpus-per-task": slurm.cpus_per_task,
        "gpus-per-task": slurm.gpus_per_task or None,
        "mem": None if slurm.memory_gib is None else f"{round(slurm.memory_gib * 1024)}M",
    }
    chosen = [f"--{name}={value}" for name, value in named.items() if value is not None]
    return ["--ntasks=1", *chosen, *slurm.extra]


def _phase(state: str) -> Phase:
    if state in _ALIVE:
        return "alive"
    if state == "COMPLETED":
        return "ended"
    if state in _SET_ASIDE:
        return "set_aside"
    return "failed" if state in _FAILED else "unknown"


def queue_rows(names: Sequence[str], columns: str) -> list[list[str]]:
    """Return the columns (squeue's own, with a bar between them) of every task the controller knows by a job's name.

    Raises:
        SafeSynthError: If nobody answers.
    """
    found = call_client(["squeue", "-h", "-r", "-t", "all", f"--name={','.join(names)}", "-o", columns])
    bars = columns.count("|")
    return [line.strip().split("|") for line in found.splitlines() if line.count("|") == bars]


def meaning_of(state: str, reason: str) -> Seen:
    """Return what a state says about a job."""
    said = state if reason in ("", "None") else f"{state} ({reason})"
    return Seen(phase=_phase(state), reason=said)


def call_client(command: Sequence[str]) -> str:
    """Return what a SLURM client prints.

    Raises:
        SafeSynthError: If it is not installed, fails, or does not answer in time.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CALL_SECONDS, check=False)
    except FileNotFoundError as error:
        raise SafeSynthError(
            f"{command[0]} is not installed here; use --engine local, or run on a SLURM node"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SafeSynthError(f"{command[0]} gave no answer in {CALL_SECONDS} s") from error
    if done.returncode:
        raise SafeSynthError(f"{command[0]} failed: {' '.join(done.stderr.split())[:300]}")
    return done.stdout
