"""A pool with real models on this machine: killed, restarted, launched on two processes, scored."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from safesynthdp.attacks.command import main
from safesynthdp.attacks.pool import Pool
from safesynthdp.cli import run
from safesynthdp.runs import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}


def plan(folder: Path, recipe: Path, name: str, *flags: str) -> Path:
    size = ["--num_models=2", "--num_audit=30", "--sample.num_records=8", "--with_target=false"]
    argv = ["plan", "--output_dir", str(folder / name), "--recipe", str(recipe), *size, *flags]
    assert run(main, argv) == 0
    return folder / name


def command(pool: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "safesynthdp", "attack", "run", "--pool", str(pool), *flags]


@pytest.fixture
def begin() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a driver; none is left behind."""
    begun = list[subprocess.Popen[str]]()

    def start(pool: Path, *flags: str) -> subprocess.Popen[str]:
        begun.append(
            subprocess.Popen(
                command(pool, *flags), env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def wait(until: Callable[[], Any], *, why: str) -> Any:
    end = time.monotonic() + 180
    while time.monotonic() < end:
        if found := until():
            return found
        time.sleep(0.05)
    pytest.fail(f"waited for {why}")


def open_jobs(pool: Path) -> list[dict[str, Any]]:
    path = pool / "jobs.json"
    rows = json.loads(path.read_text())["attempts"].values() if path.is_file() else []
    return [attempts[-1] for attempts in rows if attempts[-1]["state"] == "open"]


def signals(pool: Path) -> list[Any]:
    opened = Pool.open(pool)
    return [pq.read_table(opened.folder(spec) / "signals.parquet") for spec in opened.shards]


def test_killed_worker_and_driver_leave_a_pool_that_ends_with_the_signals_of_a_calm_one(
    tmp_path: Path, pool_recipe: Path, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    longer = "--overrides=[--train.max_steps=40]"
    calm, pool = (plan(tmp_path, pool_recipe, name, longer) for name in ("calm", "pool"))
    driver = begin(calm, "--max_parallel=2")
    assert driver.wait(timeout=300) == 0

    driver = begin(pool, "--max_parallel=2")
    wait(lambda: list((pool / "work").glob("*/run/ledger.json")), why="a training")
    job = wait(lambda: open_jobs(pool), why="a job in the book")[0]["job"]
    os.kill(int(job.split(":")[1]), signal.SIGKILL)
    wait(lambda: len(open_jobs(pool)) >= 1, why="another task")
    driver.kill()
    driver.communicate()
    alive = {row["job"] for row in open_jobs(pool)}
    driver = begin(pool, "--max_parallel=2")
    out, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, out + err
    assert alive, "workers outlive their driver"
    for mine, theirs in zip(signals(pool), signals(calm), strict=True):
        assert mine.equals(theirs)
    states = [
        row["state"] for rows in json.loads((pool / "jobs.json").read_text())["attempts"].values() for row in rows
    ]
    assert states.count("failed") >= 1
    assert states.count("done") == 2
    assert not list(pool.glob("shards/*/run"))


def test_a_driver_told_to_end_lets_its_workers_save_and_the_next_one_goes_on(
    tmp_path: Path, pool_recipe: Path, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    pool = plan(tmp_path, pool_recipe, "pool", "--overrides=[--train.max_steps=300]")
    driver = begin(pool, "--max_parallel=1")
    wait(lambda: list((pool / "work").glob("*/run/state/latest.json")), why="a saved state")
    driver.send_signal(signal.SIGTERM)
    _, err = driver.communicate(timeout=120)
    assert driver.returncode == 75, err
    assert not any(Path(f"/proc/{row['job'].split(':')[1]}").exists() for row in open_jobs(pool))
    driver = begin(pool, "--max_parallel=2", "--retries=0")
    _, err = driver.communicate(timeout=400)
    assert driver.returncode == 0, err


def test_a_model_is_trained_and_sampled_on_as_many_processes_as_planned(tmp_path: Path, pool_recipe: Path) -> None:
    pool = plan(tmp_path, pool_recipe, "pool", "--num_processes=2", "--with_target=true")
    done = subprocess.run(
        command(pool, "--shard=2"), env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert RunDirectory.open(pool / "target" / "run").manifest["world_size"] == 2
    opened = Pool.open(pool)
    assert opened.state_of(opened.shards[2]) == "done"
    assert (pool / "target" / "run" / "checkpoint").is_dir(), "the target is the release and is kept"


def test_a_pool_is_scored_without_torch_and_its_rows_are_those_of_the_contract(
    tmp_path: Path, pool_recipe: Path
) -> None:
    flags = ["--num_models=6", "--num_audit=60", "--canaries.count=10", "--with_target=true"]
    pool = plan(tmp_path, pool_recipe, "pool", *flags)
    for shard in range(7):
        assert run(main, ["run", "--pool", str(pool), "--shard", str(shard)]) == 0
    code = (
        "import sys; from safesynthdp.attacks.command import main; "
        f"main(['score', '--pool', {str(pool)!r}, '--json']); "
        "sys.exit(3 if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout)["rows"]
    assert {row["channel"] for row in rows} == {"model", "text", "none"}
    assert {"lira", "rmia", "loss", "ngram2_rmia", "ngram2_domias"} <= {row["attack"] for row in rows}
    assert all(row["verdict"] != "refuted" for row in rows)
    calibrated = [row for row in rows if row["attack"] == "rmia_calibrated"]
    assert calibrated
    assert {row["verdict"] for row in calibrated} == {None}, "its order is that of rmia"
    models = pq.read_table(pool / "models.parquet").to_pylist()
    assert [row["pair"] for row in models] == [0, 0, 1, 1, 2, 2, None]
    assert {row["status"] for row in models} == {"done"}
    assert [row["weights_deleted"] for row in models] == [True] * 6 + [False]
    assert json.loads((pool / "audit.json").read_text())["rows"] == rows
