"""A clock that jumps and a disk that fills: nothing is lost, nothing is spent twice, and the run goes on."""

import errno
import itertools
import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest

from safesynthdp import runs
from safesynthdp.cli import run as run_door
from safesynthdp.errors import SafeSynthError
from safesynthdp.privacy import storage
from safesynthdp.privacy.ledger import Ledger
from safesynthdp.runs import RunDirectory
from safesynthdp.training import checkpoint, loop, metrics_log, state
from safesynthdp.training.command import main
from safesynthdp.training.step import StepFacts, sum_clipped_gradients

Weights = Callable[[Path], bytes]


class Jumping(datetime):
    """A wall clock that is a century off, a different way each time it is read."""

    _jumps = itertools.cycle([36500, -36500, 0, 3, -7000])

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "Jumping":
        """Return a wrong time."""
        wrong = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=next(cls._jumps))
        return cls(wrong.year, wrong.month, wrong.day, tzinfo=tz)


@pytest.fixture(scope="module")
def straight(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("straight") / "run"
    assert run_door(main, words(recipe, run)) == 0
    return run


def words(recipe: Path, run: Path) -> list[str]:
    return ["--config", str(recipe), "--output_dir", str(run), "--train.max_steps", "6", "--train.save_steps", "2"]


def test_a_clock_that_jumps_changes_neither_the_run_nor_its_resume_nor_its_durations(
    tmp_path: Path, recipe: Path, straight: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = itertools.cycle([0.0, 4e9, -4e9, 1.0])
    monkeypatch.setattr(runs, "datetime", Jumping)
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    calls = itertools.count(1)

    def dies(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return sum_clipped_gradients(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "sum_clipped_gradients", dies)
        assert run_door(main, words(recipe, tmp_path / "run")) == 130
    assert run_door(main, words(recipe, tmp_path / "run")) == 0
    assert weights(tmp_path / "run") == weights(straight)
    assert Ledger.read(tmp_path / "run/ledger.json") == Ledger.read(straight / "ledger.json")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert 0 <= manifest["timings"]["seconds"] < 600
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["seconds"] < 600 for line in lines)


def test_a_lock_holds_by_its_process_whatever_its_time_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = RunDirectory.create(tmp_path / "run", kind="finetune", config={"a": 1})
    lock = tmp_path / "run" / ".lock"
    for days in (-100_000, 100_000):  # a lock of ancient times, and one from the future
        os.utime(lock, (days * 86400 if days > 0 else 0, days * 86400 if days > 0 else 0))
        monkeypatch.setattr(runs, "datetime", Jumping)
        with pytest.raises(SafeSynthError, match="in use by process"):
            RunDirectory.create(tmp_path / "run", kind="finetune", config={"a": 1})
    held.begin()
    held.discard()
    assert held._lock is not None
    held._lock.close()
    os.utime(lock, (9e9, 9e9))
    assert RunDirectory.create(tmp_path / "run", kind="finetune", config={"a": 1}).is_resumed


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


PLACES: dict[str, tuple[Any, str, str, int]] = {
    "the ledger, before a step": (storage, "_write_utf8", "ledger.json", 4),
    "the tensors of a state": (state, "save_file", "tensors", 2),
    "the facts of a state": (storage, "_write_utf8", "clock.json", 3),
    "a line of the metrics": (metrics_log, "_append", "metrics.jsonl", 3),
    "the release": (checkpoint, "write_text", "README.md", 1),
}
"""Where the disk is full: a function, the file it writes, and from which of these calls on."""


@pytest.mark.parametrize("place", PLACES)
def test_a_disk_that_fills_is_one_line_and_the_same_command_ends_with_the_same_bytes_at_the_same_price(
    tmp_path: Path,
    recipe: Path,
    straight: Path,
    weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
) -> None:
    module, name, file, number = PLACES[place]
    unpatched, calls = getattr(module, name), itertools.count(1)

    def fills(*args: Any, **kwargs: Any) -> Any:
        return full() if any(file in str(arg) for arg in args) and next(calls) >= number else unpatched(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(module, name, fills)
        assert run_door(main, words(recipe, tmp_path / "run")) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: ")
    assert "the disk is full; free some space and run the same command again" in said[-1]
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert run_door(main, words(recipe, tmp_path / "run")) == 0
    assert weights(tmp_path / "run") == weights(straight)
    assert Ledger.read(tmp_path / "run/ledger.json") == Ledger.read(straight / "ledger.json")
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6], "one line a step, however often it was taken"


def test_a_torn_line_and_lines_of_steps_that_were_lost_are_cut_and_the_file_stays_private(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    facts = StepFacts(loss=1.0, clip_share=0.5, batch_size=3, num_dropped=0)
    for step in (1, 2, 3):
        metrics_log.append_line(path, facts, step=step, seconds=0.1)
    whole = path.read_text()
    with path.open("a") as handle:
        handle.write('{"step": 4, "lo')
    metrics_log.cut_back(path, step=9)
    assert path.read_text() == whole
    metrics_log.cut_back(path, step=2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    assert path.stat().st_mode & 0o777 == 0o600
    metrics_log.cut_back(tmp_path / "none", step=0)


def test_a_directory_that_becomes_read_only_is_one_line_and_the_run_goes_on_when_it_is_writable_again(
    tmp_path: Path,
    recipe: Path,
    straight: Path,
    weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = itertools.count(1)

    def refuses(*args: Any) -> None:
        if "ledger.json" in str(args[0]) and next(calls) >= 5:
            raise OSError(errno.EROFS, "Read-only file system")
        unpatched(*args)

    unpatched = storage._write_utf8
    with monkeypatch.context() as patched:
        patched.setattr(storage, "_write_utf8", refuses)
        assert run_door(main, words(recipe, tmp_path / "run")) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "ledger.json: cannot be written (Read-only file system); check the path and its permissions" in said
    assert run_door(main, words(recipe, tmp_path / "run")) == 0
    assert weights(tmp_path / "run") == weights(straight)
