"""The data section refuses what cannot be meant, in one line that starts with the key."""

from pathlib import Path
from typing import Any

import pytest

from safesynthdp.config import parse, to_mapping
from safesynthdp.data_config import DataConfig
from safesynthdp.errors import ConfigError

FILE = {"train_file": "train.csv"}


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({}, "data.train_file"),
        (FILE | {"builtin": "vader"}, "data.train_file and data.builtin"),
        (FILE | {"dataset_name": "x"}, "data.train_file and data.dataset_name"),
        ({"train_file": ""}, "data.train_file is empty"),
        ({"builtin": "imdb"}, "data.builtin=imdb"),
        (FILE | {"dataset_split": "train"}, "data.dataset_split"),
        (FILE | {"dataset_config": "plain"}, "data.dataset_config"),
        (FILE | {"text_column": ""}, "data.text_column is empty"),
        (FILE | {"text_column": "label"}, "data.label_column=label"),
        (FILE | {"user_column": "text"}, "data.user_column=text"),
        ({"builtin": "vader", "text_column": "body"}, "data.text_column=body"),
        ({"builtin": "vader", "label_column": "topic"}, "data.label_column=topic"),
        ({"builtin": "vader", "user_column": "author"}, "data.user_column=author"),
        (FILE | {"holdout_percent": -1}, "data.holdout_percent=-1"),
        (FILE | {"holdout_percent": 91}, "data.holdout_percent=91"),
        (FILE | {"max_length": 7}, "data.max_length=7"),
        (FILE | {"max_records": 0}, "data.max_records=0"),
        (FILE | {"labels": []}, "data.labels is empty"),
        (FILE | {"labels": ["a", " "]}, "data.labels holds an empty label"),
        (FILE | {"labels": ["a", "b", "a"]}, "data.labels holds 'a' twice"),
        (FILE | {"labels": ["a", 1]}, "data.labels holds something that is not text"),
        (FILE | {"prompt_template": ""}, "data.prompt_template=''"),
        (FILE | {"prompt_template": "review: "}, "data.prompt_template="),
        (FILE | {"prompt_template": "{label} {label}"}, "data.prompt_template="),
        (FILE | {"prompt_template": "{label} {text}"}, "data.prompt_template="),
        (FILE | {"prompt_template": "{label"}, "data.prompt_template="),
        (FILE | {"label_descriptions": {"a": " "}}, "data.label_descriptions.a is empty"),
        (FILE | {"labels": ["a", "b"], "label_descriptions": {"c": "x"}}, "data.label_descriptions.c"),
    ],
)
def test_a_bad_section_is_refused_with_its_key(values: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DataConfig(**values)
    assert str(caught.value).startswith(key)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        FILE | {"holdout_percent": 0, "max_length": 8, "max_records": 1, "labels": ["a"]},
        FILE | {"holdout_percent": 90, "prompt_template": "{label}"},
        {"dataset_name": "some/name", "dataset_config": "c", "dataset_split": "test"},
        {"builtin": "vader", "label_column": "sentiment", "user_column": "source"},
    ],
)
def test_the_edges_of_what_is_allowed_pass(values: dict[str, Any]) -> None:
    DataConfig(**values)


def test_the_builtins_domain_is_its_label() -> None:
    assert DataConfig(builtin="vader", label_column="domain").label_source == "label"
    assert DataConfig(train_file="a.csv", label_column="domain").label_source == "domain"


def test_paths_are_absolute_so_that_a_later_stage_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    data = DataConfig(train_file="a.csv", membership_file="m.parquet")
    assert data.train_file == str(tmp_path / "a.csv")
    assert data.membership_file == str(tmp_path / "m.parquet")
    assert DataConfig(dataset_name="folder").dataset_name == str(tmp_path / "folder")
    assert DataConfig(dataset_name="hub/name").dataset_name == "hub/name"


def test_a_config_survives_its_own_yaml_and_the_command_line(tmp_path: Path) -> None:
    recipe = tmp_path / "data.yaml"
    recipe.write_text("train_file: /a.csv\nlabels: ['yes', 'no']\n")
    data = parse(DataConfig, ["--config", str(recipe), "--holdout_percent", "5"], prog="test")
    assert data == DataConfig(train_file="/a.csv", labels=["yes", "no"], holdout_percent=5)
    assert DataConfig(**to_mapping(data)) == data
