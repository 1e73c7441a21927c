"""What breaks is said in one line, and nothing that was spent is lost."""

import errno
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from safesynthdp.cli import run as run_door
from safesynthdp.errors import LedgerMismatch, SafeSynthError
from safesynthdp.runs import RunDirectory
from safesynthdp.training import state as state_module
from safesynthdp.training.command import main
from safesynthdp.training.loss import record_losses
from safesynthdp.training.meeting import Pulse
from safesynthdp.training.state import Clock, fill_state, find_state, save_state

Start = Callable[..., list[Any]]
End = Callable[..., list[Any]]


class Held:
    """A trainable, its optimizer and its schedule."""

    def __init__(self) -> None:
        self.trainable = {"w": nn.Parameter(torch.arange(6.0).view(2, 3))}
        self.optimizer = torch.optim.AdamW(self.trainable.values(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + step))

    def step(self) -> None:
        self.trainable["w"].grad = torch.ones(2, 3)
        self.optimizer.step()
        self.scheduler.step()

    def parts(self) -> dict[str, Any]:
        return {"trainable": self.trainable, "optimizer": self.optimizer, "scheduler": self.scheduler}


def clock(step: int, incarnation: int = 0) -> Clock:
    return Clock(step=step, incarnation=incarnation, abandoned=0, signal="s")


@pytest.fixture
def two_states(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A folder with the states of steps 2 and 4, and the weights at 2."""
    held = Held()
    save_state(tmp_path, clock=clock(0), **held.parts())
    held.step()
    save_state(tmp_path, clock=clock(2), **held.parts())
    before = held.trainable["w"].detach().clone()
    held.step()
    save_state(tmp_path, clock=clock(4), **held.parts())
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000002-0", "step-00000004-0"]
    return tmp_path, before


@pytest.mark.parametrize("damage", ["half", "missing", "flipped", "clock"])
def test_a_torn_state_is_passed_over_for_the_one_before_it_under_fresh_keys(
    two_states: tuple[Path, torch.Tensor], damage: str
) -> None:
    folder, before = two_states
    torn = folder / "step-00000004-0" / ("clock.json" if damage == "clock" else state_module.TENSORS)
    raw = torn.read_bytes()
    if damage == "missing":
        torn.unlink()
    else:
        torn.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]) if damage == "flipped" else raw[: len(raw) // 2])
    found = find_state(folder)
    assert found is not None
    assert (found.facts["clock"]["step"], found.facts["is_newest"]) == (2, False), "no replay under the same keys"
    held = Held()
    fill_state(found.tensors, found.facts, **held.parts())
    assert torch.equal(held.trainable["w"], before)


def test_a_state_is_restored_bit_by_bit_and_the_next_step_is_the_same(two_states: tuple[Path, torch.Tensor]) -> None:
    found = find_state(two_states[0])
    assert found is not None
    assert found.facts["is_newest"]
    held, other = Held(), Held()
    fill_state(found.tensors, found.facts, **held.parts())
    for _ in range(2):
        other.step()
    held.step()
    other.step()
    assert torch.equal(held.trainable["w"], other.trainable["w"])


def test_without_a_whole_state_nothing_goes_on(two_states: tuple[Path, torch.Tensor]) -> None:
    for path in two_states[0].glob("step-*/*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(LedgerMismatch, match="no whole state"):
        find_state(two_states[0])


def test_a_full_disk_at_a_save_leaves_the_state_before_it(
    two_states: tuple[Path, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder, held = two_states[0], Held()
    with monkeypatch.context() as patched:
        patched.setattr(state_module, "save_file", full)
        with pytest.raises(SafeSynthError, match="the disk is full; free some space and run the same command again"):
            save_state(folder, clock=clock(6), **held.parts())
    found = find_state(folder)
    assert found is not None
    assert found.facts["clock"]["step"] == 4
    assert not list(folder.glob(".step*"))


def test_a_process_killed_between_two_renames_of_a_save_still_finds_a_state(
    two_states: tuple[Path, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = two_states[0]

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for name in ("sync_directory", "write_json"):  # before and after the new folder has its name
        with monkeypatch.context() as patched:
            patched.setattr(state_module, name, killed)
            with pytest.raises(KeyboardInterrupt):
                save_state(folder, clock=clock(6), **Held().parts())
        found = find_state(folder)
        assert found is not None
        assert found.facts["clock"]["step"] == 4
    save_state(folder, clock=clock(4), **Held().parts())
    assert find_state(folder) is not None, "the state a run goes on from is never replaced by itself"


def test_a_lock_that_is_held_says_by_whom_and_what_to_do_if_it_is_stale(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", kind="finetune", config={"a": 1})
    with pytest.raises(SafeSynthError, match=r"in use by process \d+ on .*, since .*delete .lock"):
        RunDirectory.create(tmp_path / "run", kind="finetune", config={"a": 1})
    run.discard()


def test_a_lock_left_by_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("process 1 on elsewhere, since 2020-01-01T00:00:00Z\n")
    run = RunDirectory.create(tmp_path / "run", kind="finetune", config={"a": 1})
    assert "elsewhere" not in (run.path / ".lock").read_text()


def test_a_file_system_without_locks_is_refused_and_not_called_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.raises(SafeSynthError, match=r"file system without locks \(No locks available\)"):
        RunDirectory.create(tmp_path / "run", kind="finetune", config={"a": 1})


@pytest.mark.slow
def test_a_directory_that_cannot_be_written_is_one_line_and_no_rank_waits(
    tmp_path: Path, start: Start, end: End
) -> None:
    (tmp_path / "file").write_text("")
    ended = end(start(2, tmp_path / "file" / "run"), seconds=60)
    assert [process.code for process in ended] == [1, 1]
    assert "file" in ended[0].err.strip().splitlines()[-1]
    assert ended[0].err.strip().splitlines()[-1].startswith("error: ")
    assert not ended[1].err.strip(), "rank 0 alone speaks"


def test_a_model_that_gives_no_finite_loss_spends_its_steps_on_noise_and_says_so(
    tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "safesynthdp.training.step.record_losses",
        lambda model, batch: record_losses(model, batch) * (float("nan") if batch.rows > 3 else 1.0),
    )
    words = [
        "--config",
        str(recipe),
        "--output_dir",
        str(tmp_path / "run"),
        "--hardware.max_tokens_per_microbatch",
        "400",
    ]
    assert run_door(main, words) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any(line["num_dropped"] for line in lines)
    assert len(lines) == 12


SHORT = ("--hardware.meeting_seconds", "5", "--hardware.silence_seconds", "5")
COMES_AND_GOES = """
import os, signal
from safesynthdp.training.meeting import Patience, meet
meet(os.environ, Patience(meeting=60))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("absent", [0, 1])
def test_whoever_does_not_come_is_named_and_the_others_end(tmp_path: Path, start: Start, end: End, absent: int) -> None:
    processes = start(2, tmp_path / "run", *SHORT)
    processes[absent].kill()
    here = end(processes, seconds=60)[1 - absent]
    assert here.code == 1
    said = here.err.strip().splitlines()[-1]  # torch has a page of its own to say before
    assert said.startswith("error: ")
    assert ("rank 0 of 2 did not answer" if absent == 0 else "rank 1 of 2 did not come within 5 s") in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_rank_killed_while_the_group_is_formed_ends_the_others(tmp_path: Path, start: Start, end: End) -> None:
    words = (*SHORT[:1], "60", *SHORT[2:])
    with_main = start(2, tmp_path / "run", *words, only=(0,))
    gone = start(2, tmp_path / "run", door=("-c", COMES_AND_GOES), only=(1,), again=True)
    began = time.monotonic()
    main_rank = end([*with_main, *gone], seconds=60)[0]
    assert time.monotonic() - began < 60
    assert main_rank.code == 1
    assert "no sign of life from rank 1 of 2 for 5 s" in main_rank.err


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_others_and_the_run_goes_on(
    tmp_path: Path, start: Start, end: End, steps_in: Callable[[Path], int]
) -> None:
    words = ("--train.max_steps", "40", *SHORT[2:])
    processes = start(2, tmp_path / "run", *words)
    while steps_in(tmp_path / "run") < 5:
        assert processes[0].poll() is None, processes[0].communicate()[1]
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    main_rank = end(processes[:1], seconds=60)[0]
    assert time.monotonic() - began < 45
    assert main_rank.code == 1
    assert "no sign of life from rank 1 of 2 for 5 s" in main_rank.err
    processes[1].kill()
    assert [ended.code for ended in end(start(2, tmp_path / "run", *words))] == [0, 0]
    assert steps_in(tmp_path / "run") == 40


def test_only_a_rank_that_came_and_fell_silent_is_lost_and_own_sleep_is_not_held_against_others() -> None:
    now = [100.0]
    pulse = Pulse(rank=0, silence=8.0, clock=lambda: now[0])
    for beat in range(20):
        now[0] += 1
        pulse.hear({0: "1", 1: str(beat), 2: str(min(beat, 5))})
        lost = pulse.judge()
        assert lost == ([2] if beat > 5 + 8 else []), beat
    now[0] += 3600  # this very process was suspended
    assert pulse.judge() == []
    for _ in range(7):
        now[0] += 1
        assert pulse.judge() == []
    now[0] += 1.5
    assert pulse.judge() == [1, 2]
