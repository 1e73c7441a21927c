"""A shadow pool on a real SLURM of one node: throttled, cancelled, killed, restarted, the same tables at the end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "safesynthdp", "attack"]
RECIPE = """
output_dir: unused
model: {from_scratch: {num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2}}
data: {train_file: RECORDS, labels: ["good", "bad"], max_length: 32}
privacy: {target_epsilon: 8.0, target_delta: 1.0e-3, unsafe_seed: 3, accountant: rdp}
train: {expected_batch_size: 8, max_steps: STEPS, save_steps: 10}
"""
TABLES = ("records", "assignment", "signals", "scores")


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Drivers that a test began; none is left behind."""
    drivers = list[subprocess.Popen[str]]()
    yield drivers
    for driver in drivers:
        driver.kill()
        driver.communicate()


def plan(cluster: dict[str, str], folder: Path, *, name: str = "pool", models: int = 2, steps: int = 4) -> Path:
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(60)]
    rows = [f"{' '.join(rng.choice(words, size=3))},{('good', 'bad')[i % 2]}" for i in range(90)]
    (folder / "records.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("RECORDS", str(folder / "records.csv")).replace("STEPS", str(steps)))
    size = [f"--num_models={models}", "--num_audit=40", "--sample.num_records=8", "--with_target=false"]
    call(cluster, "plan", "--output_dir", folder / name, "--recipe", recipe, *size)
    return folder / name


def call(cluster: dict[str, str], *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *map(str, words)], env=cluster, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done


def drive(cluster: dict[str, str], pool: Path, *flags: str) -> subprocess.Popen[str]:
    command = [*COMMAND, "run", "--pool", str(pool), "--engine=slurm", "--slurm.query_seconds=1", *flags]
    return subprocess.Popen(command, env=cluster, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(driver: subprocess.Popen[str], *, seconds: float = 900) -> tuple[int, str]:
    out, err = driver.communicate(timeout=seconds)
    return driver.returncode, out + err


def queue(cluster: dict[str, str], *, states: str = "RUNNING") -> list[str]:
    command = ["squeue", "-h", "-r", "-t", states, "-o", "%i"]
    found = subprocess.run(command, env=cluster, capture_output=True, text=True, timeout=30, check=False)
    return found.stdout.split()


def wait(until: Callable[[], Any], *, seconds: float = 120, why: str) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := until():
            return found
        time.sleep(0.1)
    pytest.fail(f"waited {seconds:.0f} s for {why}")


def training(pool: Path) -> list[Path]:
    """Return the ledgers of shards that have begun to train."""
    return sorted((pool / "work").glob("*/run/ledger.json"))


def worker_pids(pool: Path) -> list[int]:
    found = list[int]()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "--shard" in words and str(pool) in words:
            found.append(int(entry.name))
    return found


def done_shards(pool: Path) -> list[Path]:
    return sorted((pool / "shards").glob("*/manifest.json"))


def test_a_pool_killed_three_times_along_the_way_ends_with_the_tables_of_an_undisturbed_one(
    cluster: dict[str, str], tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    calm, pool = (plan(cluster, tmp_path, name=name, models=8, steps=60) for name in ("calm", "pool"))
    started.append(drive(cluster, calm, "--max_parallel=2"))
    assert ended(started[-1])[0] == 0

    started.append(drive(cluster, pool, "--max_parallel=2"))
    wait(lambda: training(pool), why="the first training")
    os.kill(worker_pids(pool)[0], signal.SIGKILL)  # a worker
    wait(lambda: len(done_shards(pool)) >= 2, why="two shards")
    started[-1].kill()  # the driver
    started[-1].communicate()
    running = wait(lambda: queue(cluster), why="a running task")
    subprocess.run(["scancel", running[0]], env=cluster, timeout=30, check=True)  # a task, with no driver to see it
    started.append(drive(cluster, pool, "--max_parallel=2"))
    code, said = ended(started[-1])
    assert code == 0, said

    for name in (calm, pool):
        call(cluster, "score", "--pool", name)
    for table in TABLES:
        assert pq.read_table(pool / f"{table}.parquet").equals(pq.read_table(calm / f"{table}.parquet")), table
    models = [pq.read_table(p / "models.parquet").drop(["walltime_s", "attempts"]) for p in (calm, pool)]
    assert models[0].equals(models[1])
    attempts = json.loads((pool / "jobs.json").read_text())["attempts"]
    assert sum(len(rows) for rows in attempts.values()) > 8, "the kills were felt"
    assert not list(tmp_path.glob("*/shards/*/run")), "no weights are left"


def test_an_array_is_throttled_and_cancelled_tasks_are_begun_again(
    cluster: dict[str, str], tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    pool = plan(cluster, tmp_path, steps=300)
    started.append(drive(cluster, pool, "--max_parallel=1", "--retries=1"))
    wait(lambda: training(pool), why="the first training")
    running = queue(cluster)
    assert len(running) == 1
    assert len(queue(cluster, states="PENDING")) == 1
    subprocess.run(["scancel", *running], env=cluster, timeout=30, check=True)
    while started[-1].poll() is None:
        tasks = queue(cluster)
        done = {path.parent.name[:9] for path in done_shards(pool)}  # a task ends a moment after its manifest
        busy = [task for task in tasks if f"model-{int(task.split('_')[1]):03d}" not in done]
        assert len(busy) <= 1, "also a task that is begun again waits for its turn"
        time.sleep(0.5)
    code, said = ended(started[-1])
    assert code == 0, said
    states = [
        row["state"] for rows in json.loads((pool / "jobs.json").read_text())["attempts"].values() for row in rows
    ]
    assert sorted(states) in (["done", "done", "failed"], ["done", "done", "set aside"])


def test_a_task_that_always_fails_is_given_up_with_its_reason(
    cluster: dict[str, str], tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    pool = plan(cluster, tmp_path)
    (pool / "data" / "training.parquet").write_text("no table")
    started.append(drive(cluster, pool, "--retries=1"))
    code, said = ended(started[-1])
    assert code == 1
    assert "0 of 2 shards are done, 2 failed too often" in said
    assert "failed 2 times, last: FAILED" in said
    assert "training.parquet" in said
    status = json.loads(call(cluster, "status", "--pool", pool, "--json").stdout)
    assert status["failed"] == [0, 1]


def as_administrator(cluster: dict[str, str]) -> None:
    """A controller that forgot a start begins it again, drains the node and holds the task until freed."""
    for _ in range(6):
        time.sleep(5)
        nodes = [line.split("|") for line in client(cluster, "sinfo", "-h", "-o", "%n|%T").splitlines()]
        held = [line for line in client(cluster, "squeue", "-h", "-r", "-o", "%i|%r").splitlines() if "held" in line]
        for name, _ in [node for node in nodes if "drain" in node[1]]:
            client(cluster, "scontrol", "update", f"nodename={name}", "state=resume")
        for line in held:
            client(cluster, "scontrol", "release", line.partition("|")[0])


def client(cluster: dict[str, str], *words: str) -> str:
    return subprocess.run(words, env=cluster, timeout=30, check=False, capture_output=True, text=True).stdout


def test_a_restart_of_the_controller_loses_nothing(
    cluster: dict[str, str], tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    pool = plan(cluster, tmp_path, steps=300)
    started.append(drive(cluster, pool))
    wait(lambda: training(pool), why="the first training")
    pid_file = Path(cluster["SLURM_CONF"]).parent / "slurmctld.pid"
    controller = int(pid_file.read_text())
    time.sleep(6)  # the controller saves what it knows every five seconds
    os.kill(controller, signal.SIGKILL)
    time.sleep(3)
    pid_file.unlink(missing_ok=True)
    subprocess.run(["slurmctld"], env=cluster, timeout=30, check=True)
    as_administrator(cluster)
    code, said = ended(started[-1])
    assert code == 0, said
    assert len(done_shards(pool)) == 2


def test_a_plain_array_does_the_same_without_a_driver(cluster: dict[str, str], tmp_path: Path) -> None:
    """The script of docs/howto/shadow_pool.md, as the page prints it."""
    pool = plan(cluster, tmp_path)
    page = (ROOT / "docs" / "howto" / "shadow_pool.md").read_text(encoding="utf-8")
    script = tmp_path / "pool.sbatch"
    script.write_text(page.split("```bash\n")[1].split("```")[0])
    command = ["sbatch", "--parsable", "--wait", "--array=0-1%2", f"--output={tmp_path}/log-%a", str(script), str(pool)]
    done = subprocess.run(command, env=cluster, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr + (tmp_path / "log-0").read_text()
    status = json.loads(call(cluster, "status", "--pool", pool, "--json").stdout)
    assert status["done"] == [0, 1]
    assert call(cluster, "run", "--pool", pool).returncode == 0, "a driver finds nothing to do"
