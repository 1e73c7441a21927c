"""Tasks as processes of this machine, no more at once than cores and memory allow.

Here: starting workers that outlive a killed driver, finding them again, the window. Elsewhere: what a worker does
(shard.py), which one comes next (driver.py).
"""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safesynthdp.attacks.jobs import Begun, Seen
from safesynthdp.attacks.pool import Pool, folder_name, read_shard_manifest
from safesynthdp.attacks.pool_config import RunPoolConfig
from safesynthdp.attacks.shard import lock_is_held
from safesynthdp.errors import Preempted

FIRST_GUESS_GIB = 2.0
SPARE = 1.2
"""Times what the largest finished task took."""
SECONDS_TO_SAVE = 60.0
LOCKED = "lock"


class LocalEngine:
    """Workers in sessions of their own: Ctrl-C and the death of the driver do not reach them."""

    name = "local"

    def __init__(self, pool: Pool, config: RunPoolConfig) -> None:
        self._pool, self._config = pool, config
        self._children = dict[str, subprocess.Popen[bytes]]()

    def submit(self, logs: Mapping[int, Path]) -> dict[int, Begun]:
        """See ``Engine.submit``."""
        return {number: self._start(number, log) for number, log in logs.items()}

    def look(self, jobs: Mapping[int, str]) -> dict[int, Seen]:
        """See ``Engine.look``."""
        return {number: self._look(number, job) for number, job in jobs.items()}

    def find(self) -> dict[int, str]:
        """Return the shards that somebody on this machine holds the lock of."""
        work = self._pool.path / "work"
        held = [lock_is_held(work / f"{folder_name(spec)}@{platform.node()}.lock") for spec in self._pool.shards]
        return {number: LOCKED for number, is_held in enumerate(held) if is_held}

    def room(self, alive: int) -> int:
        """See ``Engine.room``: cores, memory, and what is asked for; one task may always run."""
        return max(0, min(self.limit(), max(1, self._fitting())) - alive)

    def limit(self) -> int:
        """Return how many tasks may run at once, memory apart."""
        return self._config.max_parallel or _cores()

    def stop(self, jobs: Mapping[int, str]) -> None:
        """Ask the workers to save and end, and wait for them."""
        mine = [self._children[job] for job in jobs.values() if job in self._children]
        for child in mine:
            child.terminate()
        until = time.monotonic() + SECONDS_TO_SAVE
        for child in mine:
            try:
                child.wait(timeout=max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()

    def threads(self) -> dict[str, str]:
        """Return the variable by which tasks share the cores; what the user has set stands."""
        return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, _cores() // self.limit())))}

    def _start(self, number: int, log: Path) -> Begun:
        command = worker_command(self._pool, number)
        environment = dict(os.environ) | self.threads()
        with log.open("ab") as output:
            child = subprocess.Popen(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True, env=environment
            )
        job = f"{platform.node()}:{child.pid}:{start_time(child.pid)}"
        self._children[job] = child
        return Begun(job=job, log=log)

    def _look(self, number: int, job: str) -> Seen:
        if job == LOCKED:
            return Seen(phase="alive" if number in self.find() else "gone")
        if (mine := self._look_at_own(job)) is not None:
            return mine
        host, pid, began = job.rsplit(":", 2)
        if host != platform.node():
            return Seen(phase="gone", reason=f"a driver on {host} began it")
        is_same = start_time(int(pid)) == began
        return Seen(phase="alive") if is_same else Seen(phase="gone", reason="its process is gone")

    def _look_at_own(self, job: str) -> Seen | None:
        """Return what became of a task that this very driver began; None of any other."""
        return _ending(self._children[job].poll()) if job in self._children else None

    def _pids(self) -> list[int]:
        """Return the live tasks of this driver."""
        return [child.pid for child in self._children.values() if child.returncode is None]

    def _fitting(self) -> int:
        """Return how many tasks, running ones included, the memory has room for."""
        needed = self._config.memory_gib_per_task or self._measured_gib() or FIRST_GUESS_GIB
        free = _free_gib()
        held = sum(_resident_gib(pid) for task in self._pids() for pid in family(task))
        return sys.maxsize if free is None else int((free + held) / needed)

    def _measured_gib(self) -> float | None:
        done = (read_shard_manifest(self._pool.folder(spec)) for spec in self._pool.shards)
        peaks = [float(m["facts"].get("peak_memory_gib", 0)) for m in done if m is not None]
        return SPARE * max(peaks) if peaks and max(peaks) > 0 else None


def worker_command(pool: Pool, number: int | str) -> list[str]:
    """Return the command of a worker: what a task of any scheduler calls."""
    return [sys.executable, "-m", "safesynthdp", "attack", "run", "--pool", str(pool.path), "--shard", str(number)]


def _ending(code: int | None) -> Seen:
    if code is None:
        return Seen(phase="alive")
    if code == 0:
        return Seen(phase="ended")
    if code == Preempted.exit_code:
        return Seen(phase="set_aside", reason="told to end")
    return Seen(phase="failed", reason=f"killed by signal {-code}" if code < 0 else f"exit code {code}")


def start_time(pid: int) -> str:
    """Return when a process began, in clock ticks since boot; '' if there is none. A pid alone is used again."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] == "Z" else after_name[19]


def family(pid: int) -> list[int]:
    """Return a process and its descendants, as far as the system tells: a launcher itself holds no memory."""
    found, left = list[int](), [pid]
    while left:
        found.append(left.pop())
        for path in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            with suppress(OSError):
                left += map(int, path.read_text(encoding="utf-8").split())
    return found


def _cores() -> int:
    """Return the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _resident_gib(pid: int) -> float:
    """Return the memory a process holds; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def _free_gib() -> float | None:
    """Return the memory that can be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return int(found["MemAvailable"].split()[0]) / 2**20 if "MemAvailable" in found else None
