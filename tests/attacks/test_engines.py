"""What the engines make of processes and of SLURM's answers; the clients are scripts that answer as SLURM does."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from safesynthdp.attacks import engine_local
from safesynthdp.attacks.engine_local import LOCKED, LocalEngine
from safesynthdp.attacks.engine_slurm import SlurmEngine, sbatch_options, script_of
from safesynthdp.attacks.jobs import Seen, end_of_log
from safesynthdp.attacks.pool import Pool, folder_name
from safesynthdp.attacks.pool_config import RunPoolConfig, SlurmConfig
from safesynthdp.attacks.shard import _lock
from safesynthdp.attacks.shard_spec import ShardSpec
from safesynthdp.errors import SafeSynthError

Client = Callable[[str, str], None]


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
    (tmp_path / "work").mkdir()
    return Pool(path=tmp_path, plan={}, shards=specs)


def config(pool: Pool, max_parallel: int | None = None, memory: float | None = None) -> RunPoolConfig:
    slurm = SlurmConfig(query_seconds=1e-9)
    return RunPoolConfig(pool=str(pool.path), max_parallel=max_parallel, memory_gib_per_task=memory, slurm=slurm)


def asked(pool: Pool, name: str) -> int:
    return len((pool.path / "bin" / f"{name}.args").read_text().splitlines())


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Return what puts a script in the place of a SLURM client; it writes down its arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def put(name: str, body: str) -> None:
        (folder / name).write_text(f'#!/bin/sh\necho "$@" >>{folder}/{name}.args\n{body}\n')
        (folder / name).chmod(0o755)

    return put


NO_ACCOUNTING = "echo 'Slurm accounting storage is disabled' >&2; exit 1"


def test_every_task_of_an_array_is_known_by_its_own_id(pool: Pool, client: Client) -> None:
    client("sbatch", "echo '42;cluster'")
    begun = SlurmEngine(pool, config(pool, 2)).submit({n: pool.path / f"{n}.log" for n in (0, 2)})
    assert {number: task.job for number, task in begun.items()} == {0: "42_0", 2: "42_2"}
    assert begun[2].log == pool.path / "logs" / "slurm-42_2.log"
    said = (pool.path / "bin" / "sbatch.args").read_text()
    assert "--array=0,2%2" in said
    assert "--ntasks=1" in said


def test_without_accounting_the_queue_tells_and_who_is_in_neither_is_gone(pool: Pool, client: Client) -> None:
    client("sacct", NO_ACCOUNTING)
    client("squeue", "echo '42_0|RUNNING|None'; echo '42_1|CANCELLED|None'; echo '41_2|PENDING|Resources'")
    engine = SlurmEngine(pool, config(pool))
    assert engine.look({0: "42_0", 1: "42_1", 2: "40_2"}) == {
        0: Seen(phase="alive", reason="RUNNING"),
        1: Seen(phase="failed", reason="CANCELLED"),
        2: Seen(phase="gone"),
    }
    engine.look({0: "42_0"})
    assert asked(pool, "sacct") == 1, "asked once, and never again"
    assert engine.find() == {0: "42_0", 2: "41_2"}


def test_the_accounting_is_believed_where_there_is_one(pool: Pool, client: Client) -> None:
    client("squeue", "true")
    client("sacct", "echo '42_0|COMPLETED'; echo '42_1|CANCELLED by 0'; echo '42_2|PREEMPTED'")
    found = SlurmEngine(pool, config(pool)).look({0: "42_0", 1: "42_1", 2: "42_2"})
    assert [found[number].phase for number in range(3)] == ["ended", "failed", "set_aside"]


@pytest.mark.parametrize("body", ["echo 'Unable to contact slurm controller' >&2; exit 1", "sleep 5"])
def test_while_the_controller_is_silent_nothing_is_known_and_nothing_hangs(
    pool: Pool, client: Client, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.setattr("safesynthdp.attacks.engine_slurm.CALL_SECONDS", 0.5)
    client("squeue", body)
    client("sacct", NO_ACCOUNTING)
    engine = SlurmEngine(pool, config(pool))
    assert engine.look({0: "42_0"})[0].phase == "unknown"
    assert engine.find() == {}


def test_the_controller_is_not_asked_at_every_look(pool: Pool, client: Client) -> None:
    client("sacct", NO_ACCOUNTING)
    client("squeue", "echo '42_0|RUNNING|None'")
    engine = SlurmEngine(pool, RunPoolConfig(pool=str(pool.path)))
    for _ in range(20):
        assert engine.look({0: "42_0"})[0].phase == "alive"
        assert engine.find() == {0: "42_0"}
    assert asked(pool, "squeue") == 1


def test_without_slurm_the_way_out_is_said(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SafeSynthError, match="sbatch is not installed here; use --engine local"):
        SlurmEngine(pool, config(pool)).submit({0: pool.path / "log"})


def test_tasks_begun_again_wait_until_the_open_ones_are_fewer_than_may_run(pool: Pool) -> None:
    assert SlurmEngine(pool, config(pool)).room(3) == 3
    limited = SlurmEngine(pool, config(pool, 2))
    assert [limited.room(alive) for alive in (0, 1, 2, 3)] == [3, 1, 0, 0]


def test_the_script_execs_the_worker_after_the_lines_of_the_user(pool: Pool) -> None:
    lines = script_of(pool, SlurmConfig(setup=["module load cuda"])).splitlines()
    assert lines[:2] == ["#!/bin/bash", "module load cuda"]
    assert lines[2].startswith(f"exec {sys.executable} -m safesynthdp attack run --pool")
    assert lines[2].endswith('--shard "$SLURM_ARRAY_TASK_ID"')
    wanted = SlurmConfig(partition="p", gpus_per_task=2, memory_gib=1.5, extra=["--qos=low"])
    assert sbatch_options(wanted) == ["--ntasks=1", "--partition=p", "--gpus-per-task=2", "--mem=1536M", "--qos=low"]


def look_until(engine: LocalEngine, jobs: dict[int, str]) -> Seen:
    until = time.monotonic() + 20
    while (seen := engine.look(jobs)[0]).phase == "alive" and time.monotonic() < until:
        time.sleep(0.02)
    return seen


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("exit 0", Seen(phase="ended")),
        ("exit 3", Seen(phase="failed", reason="exit code 3")),
        ("exit 75", Seen(phase="set_aside", reason="told to end")),
        ("kill -9 $$", Seen(phase="failed", reason="killed by signal 9")),
    ],
)
def test_how_a_local_task_ended(pool: Pool, monkeypatch: pytest.MonkeyPatch, body: str, expected: Seen) -> None:
    monkeypatch.setattr(engine_local, "worker_command", lambda *_: ["sh", "-c", f"echo said; {body}"])
    engine = LocalEngine(pool, config(pool, 1))
    begun = engine.submit({0: pool.path / "log"})
    assert look_until(engine, {0: begun[0].job}) == expected
    assert end_of_log(begun[0].log) == "said"


def test_another_driver_tells_a_live_task_from_one_that_is_gone_and_from_its_pid_used_again(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_local, "worker_command", lambda *_: ["sleep", "30"])
    first, second = LocalEngine(pool, config(pool, 1)), LocalEngine(pool, config(pool, 1))
    jobs = {0: first.submit({0: pool.path / "log"})[0].job}
    assert second.look(jobs)[0].phase == "alive"
    assert second.look({0: jobs[0] + "1"})[0].phase == "gone", "the same pid, begun at another time"
    first.stop(jobs)
    assert second.look(jobs)[0].phase == "gone"
    assert second.look({0: "otherhost:1:1"})[0].phase == "gone"


def test_a_shard_whose_lock_is_held_is_found_whoever_began_it(pool: Pool) -> None:
    engine = LocalEngine(pool, config(pool, 1))
    assert engine.find() == {}
    with _lock(pool.path / "work" / f"{folder_name(pool.shards[1])}@{os.uname().nodename}.lock"):
        assert engine.find() == {1: LOCKED}
        assert engine.look({1: LOCKED})[1].phase == "alive"
    assert engine.look({1: LOCKED})[1].phase == "gone"


def test_the_window_is_the_smaller_of_what_is_asked_for_and_what_memory_holds(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_local, "_free_gib", lambda: 7.0)
    assert LocalEngine(pool, config(pool, 8, 2.0)).room(0) == 3
    assert LocalEngine(pool, config(pool, 2, 2.0)).room(1) == 1
    assert LocalEngine(pool, config(pool, 8, 2.0)).room(3) == 0
    assert LocalEngine(pool, config(pool, 8, 100.0)).room(0) == 1, "one may always run"
    monkeypatch.setattr(engine_local, "_cores", lambda: 4)
    assert LocalEngine(pool, config(pool, None, 0.1)).room(0) == 4


def test_a_finished_task_says_how_much_the_next_ones_need(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_local, "_free_gib", lambda: 6.0)
    engine = LocalEngine(pool, config(pool, 8))
    assert engine.room(0) == 3, "2 GiB is guessed"
    folder = pool.folder(pool.shards[0])
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"spec": {}, "files": {}, "facts": {"peak_memory_gib": 0.5}}')
    assert engine.room(0) == 8
    shutil.rmtree(folder)
