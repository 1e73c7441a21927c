"""What breaks is said in one line, and nothing that was spent is lost."""

import errno
import json
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
