"""Tasks by way of submitit: its local executor for real, its SLURM executor against scripts that answer like SLURM."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from safesynthdp.attacks import engine_submitit
from safesynthdp.attacks.command import main
from safesynthdp.attacks.engine_submitit import SubmititLocalEngine, SubmititSlurmEngine, engine_of, submitit_options
from safesynthdp.attacks.jobs import Seen, end_of_log
from safesynthdp.attacks.pool import Pool
from safesynthdp.attacks.pool_config import RunPoolConfig, SlurmConfig, SubmititConfig
from safesynthdp.attacks.shard_spec import ShardSpec
from safesynthdp.cli import run
from safesynthdp.errors import ConfigError, SafeSynthError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    """Three shards that are planned and no more."""
    specs = [
        ShardSpec(
            model_id=number,
            pair=number // 2,
            seed=0,
            recipe_hash="r",
            data_hash="d",
            nominal_num_records=10,
            unsafe_seed=None,
            channels=("model",),
            sample=None,
        )
        for number in range(3)
    ]
    (tmp_path / "logs").mkdir()
    return Pool(path=tmp_path, plan={}, shards=specs)


def config(pool: Pool, **slurm: Any) -> RunPoolConfig:
    options = SlurmConfig(query_seconds=1e-9, time_minutes=30, **slurm)
    return RunPoolConfig(pool=str(pool.path), max_parallel=2, slurm=options, submitit=SubmititConfig(cluster="slurm"))


def shell(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    monkeypatch.setattr(engine_submitit, "worker_command", lambda *_: ["bash", "-c", body])


def look_until_over(engine: SubmititLocalEngine, jobs: dict[int, str]) -> Seen:
    until = time.monotonic() + 30
    while (seen := engine.look(jobs)[0]).phase == "alive" and time.monotonic() < until:
        time.sleep(0.05)
    return seen


def wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("body", "expected"),
    [("exit 0", Seen(phase="ended")), ("exit 3", Seen(phase="failed", reason="ended without a result"))],
)
def test_how_a_local_job_ended(pool: Pool, monkeypatch: pytest.MonkeyPatch, body: str, expected: Seen) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    shell(monkeypatch, f'echo "on $CUDA_VISIBLE_DEVICES"; {body}')
    engine = SubmititLocalEngine(pool, config(pool))
    begun = engine.submit({0: pool.path / "logs" / "model-000.1.log"})[0]
    other = SubmititLocalEngine(pool, config(pool))
    assert other.look({0: begun.job})[0].phase == "alive", "another driver sees it too"
    assert look_until_over(engine, {0: begun.job}) == expected
    assert other.look({0: begun.job})[0].phase == "gone"
    assert "on 5" in begun.log.read_text(), "submitit would hide every GPU"
    assert ("Traceback" in end_of_log(begun.log, lines=50)) is False
    assert stat.S_IMODE(begun.log.parent.stat().st_mode) == 0o700


def test_a_local_job_that_is_told_to_end_saves_first_and_leaves_nothing_behind(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, ready = pool.path / "saved", pool.path / "ready"
    shell(monkeypatch, f"trap 'sleep 0.3; touch {saved}; exit 75' TERM; touch {ready}; while :; do sleep 0.05; done")
    engine = SubmititLocalEngine(pool, config(pool))
    begun = engine.submit({0: pool.path / "logs" / "model-000.1.log"})[0]
    wait_for(ready)
    assert engine.room(1) == 1
    engine.stop({0: begun.job})
    assert saved.exists()
    assert engine.look({0: begun.job})[0].phase == "failed"
    assert engine.room(0) == 2


WORKER = """
import os, signal, sys
from safesynthdp.attacks.submitit_task import Call, Task
call = Call(Task(tuple(sys.argv[1:])))
def as_submitit(*_):
    again = call.checkpoint()
    print("again", again.function.task == call.task, flush=True)
    sys.exit(7)
signal.signal(signal.SIGUSR2, as_submitit)
call()
"""


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_to_the_whole_group_lets_the_worker_save(tmp_path: Path, number: signal.Signals) -> None:
    """SIGUSR2 would kill a worker that does not expect it; SIGTERM is what submitit itself drops."""
    saved, ready = tmp_path / "saved", tmp_path / "ready"
    body = f"trap 'sleep 0.2; touch {saved}; exit 75' TERM; touch {ready}; while :; do sleep 0.05; done"
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, "bash", "-c", body],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(ready)
        time.sleep(0.2)  # the handler of SIGTERM is set after the worker has begun
        os.killpg(process.pid, number)
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert saved.exists()
    assert process.returncode == (7 if number == signal.SIGUSR2 else 75)
    assert ("again True" in out) is (number == signal.SIGUSR2)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Return what puts a script in the place of a SLURM client; it writes down its arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def put(name: str, body: str) -> Path:
        (folder / name).write_text(f'#!/bin/sh\necho "$@" >>{folder}/{name}.args\n{body}\n')
        (folder / name).chmod(0o755)
        return folder / f"{name}.args"

    put("srun", "true")
    put("sacct", "exit 1")
    return put


def test_the_tasks_of_an_array_are_known_again_by_a_driver_that_lost_everything(
    pool: Pool, client: Callable[[str, str], Path]
) -> None:
    asked = client("sbatch", "echo 'Submitted batch job 42'")
    first = SubmititSlurmEngine(pool, config(pool, partition="p", memory_gib=1.5, extra=["--qos=low", "--hold"]))
    assert first.find() == {}, "nothing was begun, so nobody is asked"
    begun = first.submit({n: pool.path / f"{n}.log" for n in (0, 2)})
    assert {number: task.job for number, task in begun.items()} == {0: "42_0", 2: "42_1"}
    script = Path(asked.read_text().split()[-1]).read_text()
    for line in ("array=0-1%2", "time=30", "partition=p", "mem=1536M", "qos=low", "hold", "signal=USR2@90", "nodes=1"):
        assert f"#SBATCH --{line}\n" in script
    assert "wckey" not in script
    name = begun[0].log.parent.name
    client("squeue", f"echo '42_0|RUNNING|None|{name}'; echo '42_1|PENDING|Resources|{name}'")
    second = SubmititSlurmEngine(pool, config(pool))
    assert second.find() == {0: "42_0", 2: "42_1"}
    assert second.look({2: "42_1"})[2].phase == "alive"
    assert second.look({1: "41"})[1].phase == "gone"
    assert second.job_name in (pool.path / "bin" / "squeue.args").read_text()


def test_a_single_task_is_a_job_of_its_own(pool: Pool, client: Callable[[str, str], Path]) -> None:
    client("sbatch", "echo 'Submitted batch job 43'")
    engine = SubmititSlurmEngine(pool, config(pool))
    begun = engine.submit({2: pool.path / "2.log"})
    assert begun[2].job == "43"
    client("squeue", f"echo '43|FAILED|NonZeroExitCode|{begun[2].log.parent.name}'")
    assert engine.look({2: "43"})[2] == Seen(phase="failed", reason="FAILED (NonZeroExitCode)")
    assert engine.find() == {}


@pytest.mark.parametrize(
    ("body", "said"), [("echo no such partition >&2; exit 1", "no such partition"), ("sleep 9", "no answer")]
)
def test_a_controller_that_refuses_or_hangs_is_an_error_and_not_a_wait(
    pool: Pool, client: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch, body: str, said: str
) -> None:
    monkeypatch.setattr(engine_submitit, "CALL_SECONDS", 1.0)
    client("sbatch", body)
    with pytest.raises(SafeSynthError, match=said):
        SubmititSlurmEngine(pool, config(pool)).submit({0: pool.path / "0.log"})


def test_without_slurm_the_reason_is_said(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SafeSynthError, match='submitit failed: Could not detect "srun"'):
        SubmititSlurmEngine(pool, config(pool)).submit({0: pool.path / "0.log"})


def test_what_submitit_would_do_wrong_in_silence_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"slurm\.time_minutes is not set; submitit would end every task after 5"):
        submitit_options(SlurmConfig())
    with pytest.raises(ConfigError, match=r"slurm.extra=\['-p x'\]: submitit takes long options only"):
        submitit_options(SlurmConfig(time_minutes=5, extra=["-p x"]))


def test_the_config_names_the_cluster(pool: Pool) -> None:
    assert engine_of(pool, config(pool)).name == "submitit-slurm"
    assert engine_of(pool, RunPoolConfig(pool=str(pool.path), engine="submitit")).name == "submitit-local"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_pool_on_submitit_gives_the_signals_of_one_without_it(tmp_path: Path, pool_recipe: Path) -> None:
    def planned(name: str) -> Pool:
        size = ["--num_models=2", "--num_audit=30", "--sample.num_records=8", "--with_target=false"]
        assert run(main, ["plan", "--output_dir", str(tmp_path / name), "--recipe", str(pool_recipe), *size]) == 0
        return Pool.open(tmp_path / name)

    plain, pool = planned("plain"), planned("pool")
    for shard in (0, 1):
        assert run(main, ["run", "--pool", str(plain.path), "--shard", str(shard)]) == 0
    driver = [sys.executable, "-m", "safesynthdp", "attack", "run", "--pool", str(pool.path), "--engine=submitit"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(driver, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 100
        while not list((pool.path / "work").glob("*/run/ledger.json")) and time.monotonic() < until:
            time.sleep(0.05)
        process.kill()  # the driver; its tasks go on
        process.communicate()
        done = subprocess.run(driver, env=environment, capture_output=True, text=True, timeout=200, check=False)
    finally:
        process.kill()
    assert done.returncode == 0, done.stderr[-2000:]
    for mine, theirs in zip(pool.shards, plain.shards, strict=True):
        tables = [pq.read_table(p.folder(s) / "signals.parquet") for p, s in ((pool, mine), (plain, theirs))]
        assert tables[0].equals(tables[1])
    rows = [row for rows in json.loads((pool.path / "jobs.json").read_text())["attempts"].values() for row in rows]
    assert {row["engine"] for row in rows} == {"submitit-local"}
    assert [row["state"] for row in rows].count("done") == 2
