"""Tasks as jobs of submitit, on its executors ``slurm`` and ``local``.

Here: submitting, and what became of a job. Elsewhere: what a job runs (submitit_task.py), states and questions of
SLURM (engine_slurm.py), processes and the window of this machine (engine_local.py), retries (driver.py). A job is
pickled by submitit into a folder of its own under logs/submitit (mode 0700) and holds a command and no data; nothing
is ever read back from a pickle here.

Not used of submitit, and why: ``result``, ``wait`` and job states, since without accounting a cancelled job is UNKNOWN
to it for ever; its default time limits (5 minutes on SLURM, 2 locally), which end a task; its local executor's habit of
starting everything at once and of hiding all GPUs. ``--engine slurm`` and ``local`` need no submitit and stay the
default: an array of submitit numbers its tasks from 0, not by shard, so that a list written before it is needed to
know them again; its call of sbatch has no timeout of its own; and of a local job's end it keeps no exit code.
"""

import json
import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safesynthdp.attacks.engine_local import SECONDS_TO_SAVE, LocalEngine, start_time, worker_command
from safesynthdp.attacks.engine_slurm import CALL_SECONDS, SlurmEngine, queue_rows
from safesynthdp.attacks.jobs import Begun, Engine, Seen
from safesynthdp.attacks.pool import Pool
from safesynthdp.attacks.pool_config import RunPoolConfig, SlurmConfig
from safesynthdp.attacks.submitit_task import Call, Task
from safesynthdp.errors import ConfigError, SafeSynthError
from safesynthdp.privacy.storage import make_private_directory, write_json

SHARDS = "shards.json"
NO_LIMIT_MINUTES = 60 * 24 * 365
SIGNAL_SECONDS = 90
Value = TypeVar("Value")


class SubmititLocalEngine(LocalEngine):
    """Jobs of submitit's local executor, no more at once than cores and memory allow."""

    name = "submitit-local"

    def __init__(self, pool: Pool, config: RunPoolConfig) -> None:
        super().__init__(pool, config)
        self._jobs = dict[str, Any]()

    def _start(self, number: int, log: Path) -> Begun:
        from submitit import LocalExecutor

        executor = LocalExecutor(_new_folder(self._pool, f"{log.stem}-{uuid.uuid4().hex[:8]}"))
        executor.update_parameters(timeout_min=NO_LIMIT_MINUTES, stderr_to_stdout=True)
        environment = {**self.threads(), "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}
        task = Task(tuple(worker_command(self._pool, number)), tuple(sorted(environment.items())))
        job = _within(CALL_SECONDS, lambda: executor.submit(Call(task)))
        name = f"{platform.node()}:{job.job_id}:{start_time(int(job.job_id))}"
        self._jobs[name] = job
        return Begun(job=name, log=job.paths.stdout)

    def _look_at_own(self, job: str) -> Seen | None:
        mine = self._jobs.get(job)
        if mine is None:
            return None
        if mine.state == "RUNNING":
            return Seen(phase="alive")
        if mine.paths.result_pickle.exists():
            return Seen(phase="ended")
        return Seen(phase="failed", reason="killed" if mine.state == "INTERRUPTED" else "ended without a result")

    def stop(self, jobs: Mapping[int, str]) -> None:
        """Ask the workers to save and end, and wait for them."""
        mine = [self._jobs[job] for job in jobs.values() if job in self._jobs]
        for job in mine:
            self._signal(job, signal.SIGTERM)
        until = time.monotonic() + SECONDS_TO_SAVE
        while any(job.state == "RUNNING" for job in mine) and time.monotonic() < until:
            time.sleep(0.1)
        for job in mine:
            self._signal(job, signal.SIGKILL)

    def _pids(self) -> list[int]:
        return [int(job.job_id) for job in self._jobs.values() if job.state == "RUNNING"]

    def _signal(self, job: Any, number: signal.Signals) -> None:
        if job.state == "RUNNING":  # asked of its process, which is our child: its pid is not yet anyone else's
            os.kill(int(job.job_id), number)


class SubmititSlurmEngine(SlurmEngine):
    """One array of submitit a submission, throttled by SLURM; states are asked for as ``SlurmEngine`` does."""

    name = "submitit-slurm"

    def __init__(self, pool: Pool, config: RunPoolConfig) -> None:
        super().__init__(pool, config)
        self._shards = dict[str, int]()

    def submit(self, logs: Mapping[int, Path]) -> dict[int, Begun]:
        """See ``Engine.submit``.

        The list of shards is written before the array is begun: its name leads back to it, whoever is killed.

        Raises:
            SafeSynthError: If sbatch refuses, or nobody answers.
        """
        from submitit import SlurmExecutor

        numbers = sorted(logs)
        folder = _new_folder(self._pool, f"{self.job_name}-{uuid.uuid4().hex[:8]}")
        write_json(folder / SHARDS, {"shards": numbers}, private=True)
        throttle = self._config.max_parallel or len(numbers)
        calls = [Call(Task(tuple(worker_command(self._pool, number)))) for number in numbers]

        def begin() -> list[Any]:
            executor = SlurmExecutor(folder)
            options = submitit_options(self._config.slurm)
            executor.update_parameters(**options, job_name=folder.name, array_parallelism=throttle)
            return list(executor.submit_array(calls))

        jobs = _within(CALL_SECONDS, begin)
        return {n: Begun(job=job.job_id, log=job.paths.stdout) for n, job in zip(numbers, jobs, strict=True)}

    def _queue(self) -> dict[str, tuple[str, str]]:
        folders = {path.parent.name: path for path in (self._pool.path / "logs" / "submitit").glob(f"*/{SHARDS}")}
        if not folders:
            return {}
        states = dict[str, tuple[str, str]]()
        for job, state, reason, name in queue_rows(sorted(folders), "%i|%T|%r|%j"):
            states[job] = (state, reason)
            if name in folders and job not in self._shards:
                index = int(job.partition("_")[2] or 0)
                self._shards[job] = read_shards(folders[name])[index]
        return states

    def _number_of(self, job: str) -> int | None:
        return self._shards.get(job)


def engine_of(pool: Pool, config: RunPoolConfig) -> Engine:
    """Return the engine on the cluster that the config names.

    Raises:
        ConfigError: If submitit would end every task, for want of a time limit.
    """
    if config.submitit.cluster == "local":
        return SubmititLocalEngine(pool, config)
    submitit_options(config.slurm)
    return SubmititSlurmEngine(pool, config)


def submitit_options(slurm: SlurmConfig) -> dict[str, Any]:
    """Return the config's options as submitit's SLURM executor has them.

    Raises:
        ConfigError: If there is no time limit, or an option that submitit cannot pass on.
    """
    if slurm.time_minutes is None:
        raise ConfigError("slurm.time_minutes is not set; submitit would end every task after 5 minutes, so give one")
    broken = [option for option in slurm.extra if not option.startswith("--")]
    if broken:
        raise ConfigError(f"slurm.extra={broken}: submitit takes long options only; write --name=value")
    named = [option.removeprefix("--").partition("=") for option in slurm.extra]
    return {
        "time": slurm.time_minutes,
        "partition": slurm.partition,
        "account": slurm.account,
        "cpus_per_task": slurm.cpus_per_task,
        "gpus_per_task": slurm.gpus_per_task or None,
        "mem": None if slurm.memory_gib is None else f"{round(slurm.memory_gib * 1024)}M",
        "setup": list(slurm.setup) or None,
        "nodes": 1,
        "ntasks_per_node": 1,
        "signal_delay_s": SIGNAL_SECONDS,
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's default is refused where such keys are checked
        "additional_parameters": {name: value if given else True for name, given, value in named} or None,
    }


def read_shards(path: Path) -> list[int]:
    """Return the shard of each task of an array.

    Raises:
        SafeSynthError: If the list is damaged.
    """
    try:
        return [int(number) for number in json.loads(path.read_text(encoding="utf-8"))["shards"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SafeSynthError(f"{path} is damaged; cancel the tasks named {path.parent.name} and delete it") from error


def _new_folder(pool: Pool, name: str) -> Path:
    """Each submission has its own: submitit names files by job id or pid, which come again."""
    for folder in (pool.path / "logs" / "submitit", pool.path / "logs" / "submitit" / name):
        make_private_directory(folder)
    return pool.path / "logs" / "submitit" / name


def _within(seconds: float, call: Callable[[], Value]) -> Value:
    """Return what a call returns; one that hangs is left behind, and what it begins after all is found by its name.

    Raises:
        SafeSynthError: If it fails, or does not return in time.
    """
    found = list[Value]()
    failures = list[Exception]()

    def run() -> None:
        try:
            found.append(call())
        except (RuntimeError, OSError, ValueError) as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failures:
        raise SafeSynthError(f"submitit failed: {' '.join(str(failures[0]).split())[:300]}") from failures[0]
    if not found:
        raise SafeSynthError(f"submitit gave no answer in {seconds:g} s")
    return found[0]
