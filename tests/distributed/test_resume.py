"""A run on several processes survives whatever kills it, and spends what it would have spent anyway."""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from safesynthdp.privacy.ledger import Ledger

Start = Callable[..., list[Any]]
End = Callable[..., list[Any]]
StepsIn = Callable[[Path], int]
Weights = Callable[[Path], bytes]
LONG = ("--train.max_steps", "40")


def reach(step: int, run: Path, steps_in: StepsIn, processes: list[Any]) -> None:
    """Wait until the ledger counts a step."""
    while steps_in(run) < step:
        assert all(process.poll() is None for process in processes), processes[0].communicate()[1]
        time.sleep(0.01)


def priced(run: Path) -> list[tuple[Any, ...]]:
    ledger = Ledger.read(run / "ledger.json")
    return [(entry.id, dict(entry.mechanism)) for entry in ledger.entries] + [
        (release.artifact, release.epsilon) for release in ledger.releases
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_killed_rank_ends_the_others_within_a_minute_and_the_run_goes_on_to_the_same_bytes(
    tmp_path: Path, start: Start, end: End, steps_in: StepsIn, weights: Weights
) -> None:
    assert [ended.code for ended in end(start(2, tmp_path / "straight", *LONG))] == [0, 0]
    killed = start(2, tmp_path / "killed", *LONG)
    reach(8, tmp_path / "killed", steps_in, killed)
    killed[1].kill()
    began = time.monotonic()
    main, lost = end(killed, seconds=60)
    assert (main.code, lost.code) == (1, -signal.SIGKILL)
    assert time.monotonic() - began < 60
    assert main.err.strip().splitlines()[-1].startswith("error: another process of this run was lost")
    counted = steps_in(tmp_path / "killed")
    assert 8 <= counted < 40
    assert not (tmp_path / "killed" / "checkpoint").exists()
    assert [ended.code for ended in end(start(2, tmp_path / "killed", *LONG))] == [0, 0]
    assert weights(tmp_path / "killed") == weights(tmp_path / "straight")
    assert priced(tmp_path / "killed") == priced(tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sigterm_saves_the_step_and_ends_every_rank_with_the_code_for_try_again(
    tmp_path: Path, start: Start, end: End, steps_in: StepsIn
) -> None:
    processes = start(2, tmp_path / "run", *LONG, "--train.save_steps", "1000")
    reach(5, tmp_path / "run", steps_in, processes)
    processes[1].send_signal(signal.SIGTERM)
    ended = end(processes, seconds=60)
    assert [process.code for process in ended] == [75, 75]
    assert "told to end (SIGTERM)" in ended[0].err
    assert not ended[1].err.strip(), "rank 0 alone speaks"
    state = tmp_path / "run" / "state"
    folder = json.loads((state / "latest.json").read_text())["folder"]
    clock = json.loads((state / folder / "clock.json").read_text())["clock"]
    assert clock["step"] == steps_in(tmp_path / "run") >= 5, "nothing is lost"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_twenty_random_moments_the_run_ends_with_the_same_bytes_and_the_same_price(
    tmp_path: Path, start: Start, end: End, steps_in: StepsIn, weights: Weights
) -> None:
    moments = random.Random(4)
    words = ("--train.max_steps", "240", "--train.save_steps", "4")
    assert [ended.code for ended in end(start(2, tmp_path / "straight", *words))] == [0, 0]
    run, counted = tmp_path / "killed", 0
    for _ in range(20):
        processes = start(2, run, *words)
        enough = counted + moments.randint(1, 6)  # in steps, not seconds: a fast machine must not reach the last one
        while steps_in(run) < enough and processes[0].poll() is None and moments.random() > 0.002:
            time.sleep(0.01)  # rarely: while it is still starting
        time.sleep(moments.random() * 0.03)
        order = moments.sample(processes, k=2)
        order[0].kill()
        if moments.random() < 0.5 or steps_in(run) == counted:  # still meeting: there it is the launcher who ends all
            order[1].kill()
        end(processes, seconds=60)
        assert steps_in(run) >= counted, "what was spent stays spent"
        counted = steps_in(run)
        assert counted < 240, "still running when it was killed"
    assert [ended.code for ended in end(start(2, run, *words))] == [0, 0]
    assert weights(run) == weights(tmp_path / "straight")
    assert priced(run) == priced(tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_on_another_number_of_processes_lost_steps_stay_counted_and_no_noise_repeats(
    tmp_path: Path, start: Start, end: End, steps_in: StepsIn
) -> None:
    run, words = tmp_path / "run", (*LONG, "--train.save_steps", "1000")  # every kill loses steps
    for number, (world_size, step) in enumerate(((2, 8), (1, 16), (3, 24))):
        processes = start(world_size, run, *words)
        reach(step, run, steps_in, processes)
        for process in processes:
            process.kill()
        end(processes)
        folder = json.loads((run / "state" / "latest.json").read_text())["folder"]
        assert folder.endswith(f"-{number}"), "every change of size takes keys of its own"
    counted = steps_in(run)
    assert [ended.code for ended in end(start(2, run, *words))] == [0, 0]
    assert steps_in(run) == 40 >= counted
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["steps_in_weights"] < 40, "what was computed after the last state was lost, and stays counted"
    assert manifest["world_size"] == 2
    epsilon = Ledger.read(run / "ledger.json").releases[0].epsilon
    assert epsilon is not None
    assert epsilon <= 8


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stopped_by_a_scheduler_a_run_goes_on_with_another_number_of_processes_to_the_same_weights_up_to_rounding(
    tmp_path: Path, start: Start, end: End, steps_in: StepsIn
) -> None:
    run, words = tmp_path / "run", (*LONG, "--train.save_steps", "1000")
    assert [ended.code for ended in end(start(1, tmp_path / "straight", *words))] == [0]
    for world_size, step in ((2, 5), (3, 15)):
        processes = start(world_size, run, *words)
        reach(step, run, steps_in, processes)
        processes[0].send_signal(signal.SIGTERM)
        assert {ended.code for ended in end(processes, seconds=60)} == {75}
    assert [ended.code for ended in end(start(1, run, *words))] == [0]
    alone, moved = (load_file(path / "checkpoint" / "model.safetensors") for path in (tmp_path / "straight", run))
    for name, value in alone.items():
        np.testing.assert_allclose(moved[name], value, atol=1e-5, rtol=0, err_msg=name)
    assert priced(run) == priced(tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_two_three_and_four_processes_release_the_same_weights_up_to_rounding(
    tmp_path: Path, start: Start, end: End
) -> None:
    for size in (1, 2, 3, 4):
        assert {ended.code for ended in end(start(size, tmp_path / str(size)))} == {0}
    alone = load_file(tmp_path / "1" / "checkpoint" / "model.safetensors")
    for size in (2, 3, 4):
        other = load_file(tmp_path / str(size) / "checkpoint" / "model.safetensors")
        assert alone.keys() == other.keys()
        for name, value in alone.items():
            np.testing.assert_allclose(other[name], value, atol=1e-6, rtol=0, err_msg=f"{size} processes: {name}")
        assert priced(tmp_path / str(size)) == priced(tmp_path / "1")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_fully_sharded_run_that_is_killed_goes_on_to_the_same_bytes_and_also_on_one_process(
    tmp_path: Path, start: Start, end: End, steps_in: StepsIn, weights: Weights
) -> None:
    words = (*LONG, "--hardware.sharding", "full")
    assert [ended.code for ended in end(start(3, tmp_path / "straight", *words))] == [0, 0, 0]
    killed = start(3, tmp_path / "again", *words)
    reach(14, tmp_path / "again", steps_in, killed)
    killed[1].kill()
    ended = end(killed, seconds=60)
    assert [ended[0].code, ended[2].code] == [1, 1]
    assert "another process of this run was lost" in ended[0].err
    shutil.copytree(tmp_path / "again", tmp_path / "alone")
    for name, size, more in (("again", 3, words), ("alone", 1, LONG)):
        assert [ended.code for ended in end(start(size, tmp_path / name, *more))] == [0] * size
        assert steps_in(tmp_path / name) == 40
    assert weights(tmp_path / "again") == weights(tmp_path / "straight")
    assert priced(tmp_path / "again") == priced(tmp_path / "alone") == priced(tmp_path / "straight")
