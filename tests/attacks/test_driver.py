"""The driver's decisions, on an engine that does as it is told: retries, grace, silence, deadlines, twins."""

import fcntl
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from safesynthdp.attacks.driver import Driver
from safesynthdp.attacks.jobs import Begun, JobBook, Seen, leave_note
from safesynthdp.attacks.pool import SHARD_MANIFEST, Pool
from safesynthdp.attacks.pool_config import RunPoolConfig
from safesynthdp.errors import Preempted, SafeSynthError


@dataclass
class Told:
    """An engine with a script: (shard, number of its task) -> what is seen of it; the default is done at once."""

    pool: Pool
    script: dict[tuple[int, int], Seen | Callable[[], Seen]] = field(default_factory=dict)
    most: int = 100
    name: str = "told"
    begun: list[int] = field(default_factory=list)
    stopped: bool = False
    elsewhere: dict[int, str] = field(default_factory=dict)
    refuse: int = 0

    def submit(self, logs: Mapping[int, Path]) -> dict[int, Begun]:
        if self.refuse:
            self.refuse -= 1
            raise SafeSynthError("nobody answers")
        found = dict[int, Begun]()
        for number, log in logs.items():
            self.begun.append(number)
            found[number] = Begun(job=f"{number}.{self.begun.count(number)}", log=log)
        return found

    def look(self, jobs: Mapping[int, str]) -> dict[int, Seen]:
        return {number: self._look(number, int(job.split(".")[1])) for number, job in jobs.items()}

    def _look(self, number: int, task: int) -> Seen:
        what = self.script.get((number, task))
        if what is None:
            finish(self.pool, number)
            return Seen(phase="ended")
        return what() if callable(what) else what

    def find(self) -> dict[int, str]:
        return self.elsewhere

    def room(self, alive: int) -> int:
        return self.most - alive

    def stop(self, jobs: Mapping[int, str]) -> None:
        self.stopped = True


def finish(pool: Pool, number: int) -> None:
    spec = pool.shards[number]
    folder = pool.folder(spec)
    folder.mkdir(parents=True, exist_ok=True)
    value = {"key": spec.key, "spec": spec.to_json(), "files": {}, "facts": {}}
    (folder / SHARD_MANIFEST).write_text(json.dumps(value))


@pytest.fixture
def pool(planned_pool: Path, tmp_path: Path) -> Pool:
    shutil.copytree(planned_pool, tmp_path / "pool")
    return Pool.open(tmp_path / "pool")


def driver(pool: Pool, engine: Told, *, grace: float = 0.0, **options: float) -> Driver:
    config = RunPoolConfig(pool=str(pool.path), poll_seconds=0.001, **options)  # type: ignore[arg-type]
    return Driver(pool=pool, config=config, engine=engine, book=JobBook.open(pool), grace=grace)


FAILED = Seen(phase="failed", reason="CANCELLED")


def test_every_shard_is_begun_once_and_the_driver_ends_when_all_manifests_are_there(pool: Pool) -> None:
    engine = Told(pool)
    driver(pool, engine).drive()
    assert sorted(engine.begun) == [0, 1, 2]
    driver(pool, engine).drive()
    assert sorted(engine.begun) == [0, 1, 2], "a finished pool begins nothing"


def test_no_more_tasks_are_alive_than_the_engine_has_room_for(pool: Pool) -> None:
    alive = list[int]()

    def ends_after(number: int) -> Callable[[], Seen]:
        looks = iter(range(3))

        def look() -> Seen:
            alive.append(sum(engine.pool.state_of(engine.pool.shards[n]) != "done" for n in set(engine.begun)))
            if next(looks, None) is None:
                finish(pool, number)
            return Seen(phase="alive")

        return look

    engine = Told(pool, most=1)
    engine.script = {(number, 1): ends_after(number) for number in range(3)}
    driver(pool, engine).drive()
    assert max(alive) == 1


def test_a_failed_task_is_begun_again_as_often_as_allowed_counted_over_drivers(pool: Pool) -> None:
    engine = Told(pool, {(1, task): FAILED for task in range(1, 10)})
    with pytest.raises(SafeSynthError, match=r"2 of 3 shards are done, 1 failed too often. model-001 .* CANCELLED"):
        driver(pool, engine, retries=2).drive()
    assert engine.begun.count(1) == 3
    with pytest.raises(SafeSynthError, match="1 failed too often"):
        driver(pool, engine, retries=2).drive()
    assert engine.begun.count(1) == 3, "a new driver does not begin to count anew"
    with pytest.raises(SafeSynthError, match="1 failed too often"):
        driver(pool, engine, retries=3).drive()
    assert engine.begun.count(1) == 4


def test_the_reason_a_worker_left_is_told(pool: Pool) -> None:
    def fails() -> Seen:
        leave_note(pool, pool.shards[0], SafeSynthError("the disk is full"))
        return FAILED

    engine = Told(pool, {(0, 1): fails})
    with pytest.raises(SafeSynthError, match=r"last: CANCELLED; the disk is full"):
        driver(pool, engine, retries=0).drive()


def test_a_preempted_task_does_not_count(pool: Pool) -> None:
    def preempted() -> Seen:
        leave_note(pool, pool.shards[0], Preempted("told to end"))
        return Seen(phase="failed", reason="FAILED (NonZeroExitCode)")

    engine = Told(pool, {(0, 1): preempted, (0, 2): Seen(phase="set_aside", reason="PREEMPTED")})
    driver(pool, engine, retries=0).drive()
    assert engine.begun.count(0) == 3


def test_a_task_nobody_knows_any_more_gets_its_grace_and_then_counts_as_failed(pool: Pool) -> None:
    engine = Told(pool, {(0, 1): Seen(phase="gone"), (2, 1): Seen(phase="ended")})
    began = time.monotonic()
    driver(pool, engine, grace=0.2).drive()
    assert time.monotonic() - began >= 0.2
    assert engine.begun.count(0) == 2
    reasons = {row.reason for spec in pool.shards for row in JobBook.open(pool).failures(spec)}
    assert reasons == {"gone without a trace", "ended without its manifest"}


def test_a_manifest_that_comes_late_is_no_failure(pool: Pool) -> None:
    looks = iter(range(20))

    def late() -> Seen:
        if next(looks, None) is None:
            finish(pool, 0)
        return Seen(phase="gone")

    engine = Told(pool, {(0, 1): late})
    driver(pool, engine, grace=30).drive()
    assert engine.begun.count(0) == 1


def test_while_nobody_answers_nothing_is_begun_twice(pool: Pool) -> None:
    looks = iter(range(10))

    def silent() -> Seen:
        if next(looks, None) is None:
            finish(pool, 0)
        return Seen(phase="unknown", reason="squeue gave no answer")

    engine = Told(pool, {(0, 1): silent})
    driver(pool, engine, retries=0).drive()
    assert engine.begun.count(0) == 1


def test_a_submission_that_is_refused_is_tried_again(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safesynthdp.attacks.driver.SECONDS_AFTER_REFUSAL", 0.0)
    engine = Told(pool, refuse=3)
    driver(pool, engine, retries=0).drive()
    assert sorted(engine.begun) == [0, 1, 2]


def test_a_submission_nobody_ever_takes_is_an_error(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safesynthdp.attacks.driver.SECONDS_AFTER_REFUSAL", 0.0)
    monkeypatch.setattr("safesynthdp.attacks.driver.SECONDS_TO_SUBMIT", 0.05)
    with pytest.raises(SafeSynthError, match="nobody answers"):
        driver(pool, Told(pool, refuse=10**6)).drive()


def test_the_deadline_ends_the_driver_with_the_reason_the_queue_gives(pool: Pool) -> None:
    engine = Told(pool, {(0, 1): Seen(phase="alive", reason="PENDING (Resources)")})
    with pytest.raises(
        SafeSynthError, match=r"deadline_minutes=0.002 is over; 2 of 3 .* 1 open \(PENDING \(Resources\)\)"
    ):
        driver(pool, engine, deadline_minutes=0.002).drive()
    assert engine.stopped


def test_a_new_driver_takes_up_the_open_tasks_of_a_killed_one(pool: Pool) -> None:
    first = Told(pool, {(0, 1): Seen(phase="alive")})
    with pytest.raises(SafeSynthError, match="deadline"):
        driver(pool, first, deadline_minutes=0.001).drive()
    second = Told(pool)
    driver(pool, second).drive()
    assert second.begun == [], "the task that was open ended well"


def test_a_task_that_was_begun_and_never_written_down_is_found(pool: Pool) -> None:
    engine = Told(pool, elsewhere={2: "77_2"})
    with pytest.raises(SafeSynthError, match=r"2 of 3 shards are done, 1 open \(begun elsewhere\)"):
        driver(pool, engine, deadline_minutes=0.002).drive()
    assert 2 not in engine.begun


def test_two_drivers_of_one_pool_are_refused(pool: Pool) -> None:
    with (pool.path / ".driver.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(SafeSynthError, match="another driver is at work"):
            driver(pool, Told(pool)).drive()


def test_a_damaged_book_is_refused(pool: Pool) -> None:
    (pool.path / "jobs.json").write_text("{")
    with pytest.raises(SafeSynthError, match="delete it: attempts are then counted anew"):
        JobBook.open(pool)
