"""Two processes draw the texts that one draws, and score the records that one scores."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from safesynthdp.attacks.command import main as attack
from safesynthdp.cli import run as run_door
from safesynthdp.generation import command
from safesynthdp.training.command import main

DOOR = str(Path(__file__).parents[2] / "generate" / "sample.py")
ATTACK = str(Path(__file__).parents[2] / "attacks" / "shadow_mia.py")
HELD_OUT = ["--data.holdout_percent", "30"]
COUNTED = ["--privacy.token_histogram_share", "0.5"]
MATCHED = ["--token_matching_rounds", "2", "--token_matching_records", "30"]
Start = Callable[..., list[Any]]
End = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    words = ["--config", str(recipe), "--output_dir", str(run), "--train.max_steps", "2", *HELD_OUT, *COUNTED]
    assert run_door(main, words) == 0
    return run


@pytest.mark.slow
def test_two_processes_write_the_table_that_one_writes_and_one_of_them_speaks(
    trained: Path, tmp_path: Path, start: Start, end: End
) -> None:
    words = ["--run", str(trained), "--num_records", "37", "--batch_size", "5", *MATCHED]
    assert run_door(command.main, [*words, "--output_dir", str(tmp_path / "one")]) == 0
    main_rank, other = end(start(2, tmp_path / "two", *words, door=(DOOR,)))
    assert (main_rank.code, other.code) == (0, 0), main_rank.err
    assert not other.out.strip()
    one, two = (pq.read_table(tmp_path / name / "synthetic.parquet") for name in ("one", "two"))
    assert one.equals(two)
    assert one.num_rows == 37
    facts = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "two")]
    assert facts[0]["token_matching"]["rounds"] == 2
    for key in ("num_records", "num_tokens", "counts", "labels", "token_matching"):
        assert facts[0][key] == facts[1][key]
    assert not list((tmp_path / "two" / "state").glob("rows-*"))


@pytest.mark.slow
def test_two_processes_write_the_scores_that_one_writes_and_one_of_them_speaks(
    trained: Path, tmp_path: Path, start: Start, end: End
) -> None:
    words = ["score", "--run", str(trained), "--max_records", "15"]
    assert run_door(attack, [*words, "--output_dir", str(tmp_path / "one")]) == 0
    main_rank, other = end(start(2, tmp_path / "two", *words[1:], door=(ATTACK, "score")))
    assert (main_rank.code, other.code) == (0, 0), main_rank.err
    assert "channel" in main_rank.out
    assert not other.out.strip()
    one, two = (pq.read_table(tmp_path / name / "scores.parquet") for name in ("one", "two"))
    assert one.equals(two)
    assert (tmp_path / "one" / "audit.json").read_bytes() == (tmp_path / "two" / "audit.json").read_bytes()
    refused = end(start(2, tmp_path / "one", *words[1:], "--seed", "9", door=(ATTACK, "score")))
    assert [ended.code for ended in refused] == [2, 2]
    assert "another config" in refused[0].err
    assert not refused[1].err.strip()
