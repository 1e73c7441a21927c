"""Two processes draw the texts that one draws."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from safesynthdp.cli import run as run_door
from safesynthdp.generation import command
from safesynthdp.training.command import main

DOOR = str(Path(__file__).parents[2] / "generate" / "sample.py")
Start = Callable[..., list[Any]]
End = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    assert run_door(main, ["--config", str(recipe), "--output_dir", str(run), "--train.max_steps", "2"]) == 0
    return run


def test_two_processes_write_the_table_that_one_writes_and_one_of_them_speaks(
    trained: Path, tmp_path: Path, start: Start, end: End
) -> None:
    words = ["--run", str(trained), "--num_records", "37", "--batch_size", "5"]
    assert run_door(command.main, [*words, "--output_dir", str(tmp_path / "one")]) == 0
    main_rank, other = end(start(2, tmp_path / "two", *words, door=(DOOR,)))
    assert (main_rank.code, other.code) == (0, 0), main_rank.err
    assert not other.out.strip()
    one, two = (pq.read_table(tmp_path / name / "synthetic.parquet") for name in ("one", "two"))
    assert one.equals(two)
    assert one.num_rows == 37
    facts = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "two")]
    for key in ("num_records", "num_tokens", "counts", "labels"):
        assert facts[0][key] == facts[1][key]
    assert not list((tmp_path / "two" / "state").glob("rows-*"))
