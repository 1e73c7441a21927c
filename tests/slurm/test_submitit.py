"""A shadow pool by way of submitit on a real SLURM of one node: told to save, cancelled, its driver killed."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "safesynthdp", "attack"]
RECIPE = """
output_dir: unused
model: {from_scratch: {num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2}}
data: {train_file: RECORDS, labels: ["good", "bad"], max_length: 32}
privacy: {target_epsilon: 8.0, target_delta: 1.0e-3, unsafe_seed: 3, accountant: rdp}
train: {expected_batch_size: 8, max_steps: 150, save_steps: 10}
"""


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Drivers that a test began; none is left behind."""
    drivers = list[subprocess.Popen[str]]()
    yield drivers
    for driver in drivers:
        driver.kill()
        driver.communicate()


@pytest.fixture(scope="module")
def calm(cluster: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool that is carried out here, without any engine."""
    folder = tmp_path_factory.mktemp("calm")
    pool = plan(cluster, folder)
    for shard in (0, 1):
        call(cluster, "run", "--pool", pool, "--shard", shard)
    return pool


def plan(cluster: dict[str, str], folder: Path) -> Path:
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(60)]
    rows = [f"{' '.join(rng.choice(words, size=3))},{('good', 'bad')[i % 2]}" for i in range(90)]
    (folder / "records.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("RECORDS", str(folder / "records.csv")))
    size = ["--num_models=2", "--num_audit=40", "--sample.num_records=8", "--with_target=false"]
    call(cluster, "plan", "--output_dir", folder / "pool", "--recipe", recipe, *size)
    return folder / "pool"


def call(cluster: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *map(str, words)], env=cluster, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def drive(cluster: dict[str, str], pool: Path, *flags: str) -> subprocess.Popen[str]:
    options = ["--engine=submitit", "--submitit.cluster=slurm", "--slurm.time_minutes=30", "--slurm.query_seconds=1"]
    command = [*COMMAND, "run", "--pool", str(pool), *options, *flags]
    return subprocess.Popen(command, env=cluster, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(driver: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = driver.communicate(timeout=600)
    return driver.returncode, out + err


def client(cluster: dict[str, str], *words: str) -> str:
    return subprocess.run(words, env=cluster, timeout=30, check=False, capture_output=True, text=True).stdout


def wait(until: Callable[[], Any], *, why: str) -> Any:
    end = time.monotonic() + 180
    while time.monotonic() < end:
        if found := until():
            return found
        time.sleep(0.1)
    pytest.fail(f"waited for {why}")


def saved_states(pool: Path) -> list[Path]:
    return sorted((pool / "work").glob("*/run/state/latest.json"))


def attempts(pool: Path) -> list[dict[str, Any]]:
    return [row for rows in json.loads((pool / "jobs.json").read_text())["attempts"].values() for row in rows]


def same_signals(pool: Path, calm: Path) -> bool:
    tables = [[pq.read_table(f / "signals.parquet") for f in sorted((p / "shards").iterdir())] for p in (pool, calm)]
    return len(tables[0]) == 2 and all(mine.equals(theirs) for mine, theirs in zip(*tables, strict=True))


def test_a_preempted_job_saves_and_goes_on_in_the_queue_by_itself(
    cluster: dict[str, str], tmp_path: Path, calm: Path, started: list[subprocess.Popen[str]]
) -> None:
    pool = plan(cluster, tmp_path)
    started.append(drive(cluster, pool, "--max_parallel=1", "--retries=0"))
    wait(lambda: saved_states(pool), why="a saved state")
    running = client(cluster, "squeue", "-h", "-r", "-t", "RUNNING", "-o", "%i").split()
    assert len(running) == 1, "throttled"
    client(cluster, "scancel", "--signal=USR2", running[0])
    code, said = ended(started[-1])
    assert code == 0, said
    rows = attempts(pool)
    assert [(row["engine"], row["state"]) for row in rows] == [("submitit-slurm", "done")] * 2, "begun once each"
    log = next(Path(row["log"]).read_text() for row in rows if row["job"] == running[0])
    for sentence in ("this job is preempted", "told to end (SIGTERM): the state is saved", "Requeued job"):
        assert sentence in log
    assert same_signals(pool, calm)


def test_a_cancelled_job_and_a_killed_driver_lose_nothing_and_nobody_waits_for_ever(
    cluster: dict[str, str], tmp_path: Path, calm: Path, started: list[subprocess.Popen[str]]
) -> None:
    pool = plan(cluster, tmp_path)
    started.append(drive(cluster, pool))
    wait(lambda: len(saved_states(pool)) == 2, why="two saved states")
    started[-1].kill()
    started[-1].communicate()
    (pool / "jobs.json").unlink()  # what it knew is lost: the names of the arrays lead back to the shards
    running = client(cluster, "squeue", "-h", "-r", "-t", "RUNNING", "-o", "%i").split()
    client(cluster, "scancel", running[0])
    started.append(drive(cluster, pool))
    code, said = ended(started[-1])
    assert code == 0, said
    assert len(attempts(pool)) == 1, "the task that went on was found, the cancelled one begun again"
    assert same_signals(pool, calm)
