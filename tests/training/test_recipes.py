"""The recipes of train/recipes: each parses whole; those of hub data sets meet the labels they will find there.

The hub itself is out of reach here: a local folder with the same columns, and labels as the same integers, stands in.
"""

import json
from pathlib import Path

import pytest

from safesynthdp.cli import run
from safesynthdp.config import parse
from safesynthdp.records import load_split
from safesynthdp.training.command import main
from safesynthdp.training.config import FinetuneConfig

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "train" / "recipes").glob("*.yaml"))
HUB = {
    "ag_news": ("fancyzhx/ag_news", ["World", "Sports", "Business", "Sci/Tech"]),
    "yelp": ("Yelp/yelp_review_full", ["1 star", "2 star", "3 stars", "4 stars", "5 stars"]),
    "imdb": ("stanfordnlp/imdb", ["neg", "pos"]),
}
"""Name on the hub, and the names of its ClassLabel in the order of its integers."""


def recipe(name: str) -> Path:
    return ROOT / "train" / "recipes" / f"{name}.yaml"


@pytest.fixture(params=HUB)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as the hub has it: parquet, integers, the names in the file's own features."""
    from datasets import ClassLabel, Dataset, Features, Value, config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    names = HUB[name][1]
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    rows = {"text": [f"text number {i}" for i in range(80)], "label": [i % len(names) for i in range(80)]}
    (tmp_path / "hub").mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "hub" / "train-00000-of-00001.parquet"))
    return tmp_path / "hub"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_parses_and_promises_something(path: Path) -> None:
    config = parse(FinetuneConfig, ["--config", str(path)], prog="finetune")
    assert config.privacy.target_epsilon is not None
    assert config.privacy.unsafe_seed is None


def test_a_recipe_of_a_hub_data_set_names_it_and_every_label(name: str) -> None:
    config = parse(FinetuneConfig, ["--config", str(recipe(name))], prog="finetune")
    assert (config.data.dataset_name, config.data.labels) == HUB[name]
    assert "UNTESTED" in recipe(name).read_text(encoding="utf-8")


def test_integers_of_a_class_label_come_as_the_words_of_the_recipe(name: str, folder: Path) -> None:
    argv = ["--config", str(recipe(name)), f"--data.dataset_name={folder}"]
    config = parse(FinetuneConfig, argv, prog="finetune")
    train = load_split(config.data).train
    assert sorted(set(train.labels)) == sorted(HUB[name][1])


@pytest.mark.slow
def test_the_recipe_runs_on_that_folder_and_counts_labels_by_name(name: str, folder: Path, tmp_path: Path) -> None:
    argv = ["--config", str(recipe(name)), f"--output_dir={tmp_path / 'run'}", f"--data.dataset_name={folder}",
            "--data.max_length=256", "--model.model_name_or_path=null", "--model.from_scratch.num_hidden_layers=1",
            "--model.from_scratch.hidden_size=16", "--train.expected_batch_size=8", "--train.max_steps=1",
            "--privacy.accountant=rdp"]  # fmt: skip
    assert run(main, argv) == 0
    counts = json.loads((tmp_path / "run" / "label_histogram.json").read_text())
    assert set(HUB[name][1]) <= set(json.dumps(counts).split('"'))
