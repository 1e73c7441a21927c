"""A shard is published whole or not at all, whoever else is at it and wherever it was killed."""

import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safesynthdp.attacks import shard
from safesynthdp.attacks.command import main
from safesynthdp.attacks.pool import SHARD_MANIFEST, SIGNALS, Pool
from safesynthdp.attacks.shard import FACTS, ShardBusy, run_shard
from safesynthdp.attacks.shard_spec import ShardSpec
from safesynthdp.cli import run


@dataclass
class Work:
    """In place of training and scoring: leaves what they leave."""

    value: float = 1.0
    calls: int = 0
    meanwhile: Callable[[], None] = field(default=lambda: None)

    def __call__(self, pool: Pool, spec: ShardSpec, work: Path) -> None:
        self.calls += 1
        (work / "run").mkdir(exist_ok=True)
        (work / "run" / "weights").write_text("secret")
        pq.write_table(pa.table({"record_id": [spec.name], "value": [self.value]}), work / SIGNALS)
        self.meanwhile()
        (work / FACTS).write_text(json.dumps({"recipe_hash": spec.recipe_hash, "attempts": 1}))


@pytest.fixture
def pool(tmp_path: Path, planned_pool: Path) -> Pool:
    shutil.copytree(planned_pool, tmp_path / "pool")
    return Pool.open(tmp_path / "pool")


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    made = Work()
    monkeypatch.setattr(shard, "_make_tables", made)
    return made


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_finished_shard_holds_tables_and_manifest_and_no_weights(pool: Pool, work: Work) -> None:
    folder = run_shard(pool.shards[0], pool)
    assert names(folder) == [SHARD_MANIFEST, SIGNALS]
    assert pool.state_of(pool.shards[0]) == "done"
    assert names(pool.path / "work") == []
    facts = json.loads((folder / SHARD_MANIFEST).read_text())["facts"]
    assert facts["weights_deleted"] is True


def test_a_finished_shard_is_not_done_again(pool: Pool, work: Work) -> None:
    first = run_shard(pool.shards[1], pool)
    assert run_shard(pool.shards[1], pool) == first
    assert work.calls == 1


def test_a_changed_or_lost_file_is_seen_and_the_shard_is_done_again(pool: Pool, work: Work) -> None:
    spec = pool.shards[0]
    folder = run_shard(spec, pool)
    pq.write_table(pa.table({"record_id": ["x"], "value": [2.0]}), folder / SIGNALS)
    assert pool.state_of(spec) == "damaged"
    run_shard(spec, pool)
    assert pool.state_of(spec) == "done"
    (folder / SIGNALS).unlink()
    assert pool.state_of(spec) == "damaged"
    (folder / SHARD_MANIFEST).unlink()
    assert pool.state_of(spec) == "damaged"
    assert run_shard(spec, pool) == folder
    assert pool.state_of(spec) == "done"


@pytest.mark.parametrize("point", ["_finish", "_publish"])
def test_killed_after_its_tables_it_goes_on_without_training_again(
    pool: Pool, work: Work, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shard, point, killed)
        with pytest.raises(KeyboardInterrupt):
            run_shard(pool.shards[0], pool)
    assert pool.state_of(pool.shards[0]) == "missing"
    run_shard(pool.shards[0], pool)
    assert pool.state_of(pool.shards[0]) == "done"
    assert work.calls == (1 if point == "_finish" else 2), "a manifest that was not published is made anew"


def test_two_workers_on_one_host_do_not_work_on_one_shard(pool: Pool, work: Work) -> None:
    def second() -> None:
        work.meanwhile = lambda: None
        with pytest.raises(ShardBusy, match="another process works on this shard"):
            run_shard(pool.shards[0], pool)

    work.meanwhile = second
    run_shard(pool.shards[0], pool)
    assert work.calls == 1


def test_of_twins_on_two_hosts_without_common_locks_the_first_to_finish_wins(
    pool: Pool, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second host takes over the folder, the first one's writes then fail, and nothing of it is published."""

    def other_host() -> None:
        work.meanwhile = lambda: None
        work.value = 2.0
        with monkeypatch.context() as patch:
            patch.setattr(platform, "node", lambda: "other")
            for lock in (pool.path / "work").glob("*.lock"):
                lock.unlink()  # as on a file system whose locks do not reach
            run_shard(pool.shards[0], pool)

    work.meanwhile = other_host
    with pytest.raises(FileNotFoundError):
        run_shard(pool.shards[0], pool)
    assert pool.state_of(pool.shards[0]) == "done"
    assert pq.read_table(pool.folder(pool.shards[0]) / SIGNALS)["value"].to_pylist() == [2.0]


def test_the_loser_of_the_rename_drops_its_own(pool: Pool, work: Work, tmp_path: Path) -> None:
    spec = pool.shards[0]
    folder = run_shard(spec, pool)
    winner = (folder / SHARD_MANIFEST).read_bytes()
    mine = pool.path / "work" / "mine"
    mine.mkdir()
    (mine / SHARD_MANIFEST).write_text("{}")
    assert shard._publish(pool, spec, mine) == folder
    assert (folder / SHARD_MANIFEST).read_bytes() == winner
    assert not mine.exists()


def test_what_another_host_began_is_taken_over(pool: Pool, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(platform, "node", lambda: "other")
        patch.setattr(shard, "_finish", killed)
        with pytest.raises(KeyboardInterrupt):
            run_shard(pool.shards[0], pool)
    run_shard(pool.shards[0], pool)
    assert work.calls == 1
    assert not [name for name in names(pool.path / "work") if not name.endswith(".lock")]


def test_a_shard_of_another_plan_is_stale_and_left_alone(pool: Pool, work: Work, pool_recipe: Path) -> None:
    folder = run_shard(pool.shards[0], pool)
    argv = ["plan", "--output_dir", str(pool.path), "--recipe", str(pool_recipe), "--num_models=2", "--num_audit=12"]
    assert run(main, argv) == 0
    again = Pool.open(pool.path)
    assert again.stale() == [folder.name]
    assert again.state_of(again.shards[0]) == "missing"
    assert folder.is_dir()


def test_weights_that_cannot_be_deleted_are_an_error_and_nothing_is_published(
    pool: Pool, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safesynthdp.attacks.shard.shutil.rmtree", lambda *_, **__: None)
    with pytest.raises(Exception, match="weights of shadow models must not stay"):
        run_shard(pool.shards[0], pool)
    assert pool.state_of(pool.shards[0]) == "missing"
