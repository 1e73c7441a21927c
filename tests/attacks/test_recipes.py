"""The recipes of attacks/recipes: each is a plan that can be carried out; the tiny one is, to its audit.

Records and models that would have to be fetched are replaced by a file and a two-layer model; every other setting is
the recipe's own, fewer models and texts apart.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from safesynthdp.attacks.command import main
from safesynthdp.attacks.pool import Pool
from safesynthdp.cli import run
from safesynthdp.training.command import main as finetune

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "attacks" / "recipes").glob("*.yaml"))
LABELS = ("movie_review", "news_editorial", "product_review", "tweet")
SMALL = ["--num_models=2", "--num_audit=24", "--sample.num_records=8", "--sample.max_new_tokens=8"]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 texts in the four domains of the builtin ones."""
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(300)]
    rows = [f"{' '.join(rng.choice(words, size=9))},{LABELS[i % 4]}" for i in range(400)]
    path = tmp_path_factory.mktemp("records") / "texts.csv"
    path.write_text("\n".join(["text,label", *rows, ""]))
    return path


def own_records(records: Path) -> list[str]:
    return ["--data.builtin=null", f"--data.train_file={records}", f"--data.labels=[{','.join(LABELS)}]"]


def overrides(recipe: dict[str, Any], records: Path) -> list[str]:
    """Return what takes the place of fetched records and models, and of steps."""
    asked = yaml.safe_load((ROOT / recipe["recipe"]).read_text())
    changes = [*own_records(records), "--train.max_steps=3", "--train.expected_batch_size=8"]
    if "model_name_or_path" in asked["model"]:
        changes += ["--model.model_name_or_path=null", "--model.from_scratch.num_hidden_layers=2"]
        changes += ["--model.from_scratch.hidden_size=32", "--data.max_length=128"]
    return [f"--overrides={json.dumps(changes)}"]


def plan(path: Path, folder: Path, *flags: str) -> Pool:
    argv = ["plan", "--config", str(path), "--output_dir", str(folder), *flags]
    assert run(main, argv) == 0
    return Pool.open(folder)


def carry_out(pool: Pool, *, shards: range) -> None:
    for shard in shards:
        assert run(main, ["run", "--pool", str(pool.path), "--shard", str(shard)]) == 0


def test_every_recipe_is_looked_at_here() -> None:
    assert {path.stem for path in RECIPES} == {"tiny", "vader", "existing_run"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tiny_recipe_ends_in_an_audit(tmp_path: Path, records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path = ROOT / "attacks" / "recipes" / "tiny.yaml"
    recipe = yaml.safe_load(path.read_text())
    shrunk = [flag for flag in SMALL if "num_models" not in flag]
    pool = plan(path, tmp_path / "pool", *shrunk, "--canaries.count=24", *overrides(recipe, records))
    assert pool.num_models == recipe["num_models"] == 6
    carry_out(pool, shards=range(7))
    assert run(main, ["score", "--pool", str(pool.path)]) == 0
    rows = json.loads((pool.path / "audit.json").read_text())["rows"]
    assert {row["channel"] for row in rows} == {*recipe["channels"], "none"}
    assert {"lira", "rmia", "rmia_calibrated", "ez", "ngram2_rmia"} <= {row["attack"] for row in rows}
    assert {note for row in rows for note in row["notes"] if note.startswith("records: ")} == {
        "records: natural",
        f"records: {recipe['canaries']['kind']}",
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_recipe_of_a_pretrained_model_is_planned_and_a_shard_of_it_carried_out(
    tmp_path: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    path = ROOT / "attacks" / "recipes" / "vader.yaml"
    recipe = yaml.safe_load(path.read_text())
    pool = plan(path, tmp_path / "pool", *SMALL, "--canaries.count=10", *overrides(recipe, records))
    carry_out(pool, shards=range(1))
    kinds = {row["canary_kind"] for row in pq.read_table(pool.path / "records.parquet").to_pylist()}
    assert kinds == {None, recipe["canaries"]["kind"]}
    assert pool.state_of(pool.shards[0]) == "done"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_recipe_of_an_existing_run_attacks_what_the_tiny_training_recipe_left(
    tmp_path: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ROOT / "attacks" / "recipes" / "existing_run.yaml"
    recipe = yaml.safe_load(path.read_text())
    assert (
        recipe["recipe"]
        == recipe["target_run"]
        == yaml.safe_load((ROOT / "train/recipes/tiny.yaml").read_text())["output_dir"]
    )
    monkeypatch.chdir(tmp_path)
    trained = ["--config", str(ROOT / "train/recipes/tiny.yaml"), *own_records(records), "--train.max_steps=3"]
    assert run(finetune, [*trained, "--train.expected_batch_size=8"]) == 0
    pool = plan(path, tmp_path / "pool", *SMALL)
    carry_out(pool, shards=range(2, 3))
    assert pool.state_of(pool.shards[2]) == "done"
