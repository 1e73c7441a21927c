"""A config is read as written, or refused in one line that names the key."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from safesynthdp.config import config_hash, parse, to_mapping
from safesynthdp.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Promise:
    """The promise."""

    mode: Literal["dp", "none"] = "dp"
    """Kind."""
    target_epsilon: float | None = None
    """Epsilon."""

    def __post_init__(self) -> None:
        if self.mode == "dp" and self.target_epsilon is None:
            raise ConfigError("privacy.target_epsilon is null; give it")


@dataclass(frozen=True, kw_only=True)
class Data:
    """The data."""

    labels: list[str] | None = None
    """Labels."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A config."""

    output_dir: str
    """Where."""
    steps: int = 3
    """Steps."""
    quiet: bool = False
    """A switch."""
    privacy: Promise
    """Promise."""
    data: Data = field(default_factory=Data)
    """Data."""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("output_dir: here\nprivacy:\n  target_epsilon: 8\n")
    return path


def test_a_flag_after_the_file_overrides_it(recipe: Path) -> None:
    config = parse(Config, ["--config", str(recipe), "--privacy.target_epsilon", "2", "--steps=5"], prog="x")
    assert (config.privacy.target_epsilon, config.steps, config.output_dir) == (2.0, 5, "here")


@pytest.mark.parametrize(
    ("words", "on"),
    [(["--quiet"], True), (["--quiet", "--steps", "4"], True), (["--quiet", "false"], False), ([], False)],
)
def test_a_switch_may_stand_alone(recipe: Path, words: list[str], on: bool) -> None:
    assert parse(Config, ["--config", str(recipe), *words], prog="x").quiet is on


def test_a_flag_before_the_file_is_refused_because_the_file_would_win(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=r"--privacy\.target_epsilon stands before --config"):
        parse(Config, ["--privacy.target_epsilon", "2", "--config", str(recipe)], prog="x")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--privacy.target_epsilom", "3"],
            r"privacy\.target_epsilom is not a key here; did you mean privacy\.target_eps",
        ),
        (["--privacy.target_eps", "3"], r"privacy\.target_eps is not a key here"),
        (["--steps", "1e3"], "steps: "),
        (["--steps", "many"], "steps: "),
        (["--privacy.mode", "nope"], r"privacy\.mode: "),
        (["--privacy.target_epsilon", "null"], r"privacy\.target_epsilon is null"),
        (["--privacy", "other.yaml"], "privacy is a section"),
        (["word"], "word is not a key here"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(recipe: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        parse(Config, ["--config", str(recipe), *words], prog="x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--train.per_device_train_batch_size=8", "train.expected_batch_size"),
        ("--gradient_accumulation_steps=8", "hardware.max_tokens_per_microbatch"),
        ("--train.max_grad_norm=1", "privacy.per_sample_max_grad_norm"),
        ("--packing=true", "two records"),
        ("--push_to_hub=true", "safesynthdp push"),
        ("--report_to=tensorboard", "tracking.report_to"),
    ],
)
def test_a_name_that_users_bring_along_is_told_what_to_set_instead(recipe: Path, words: str, said: str) -> None:
    from safesynthdp.training.config import FinetuneConfig

    with pytest.raises(ConfigError, match=rf"is not a key here; .*{said}"):
        parse(FinetuneConfig, [words], prog="finetune")
    with pytest.raises(ConfigError, match="is not a key here; --help lists the keys"):
        parse(Config, ["--config", str(recipe), "--push_to_hub=true"], prog="x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("output_dir: x\nprivacy: {target_epsilom: 8}\n", r"privacy\.target_epsilom is not a key here"),
        (
            "output_dir: x\nsteps: 3\nsteps: 300\nprivacy: {target_epsilon: 8}\n",
            r"line 3: the key 'steps' stands twice",
        ),
        ("output_dir: x\nprivacy: {target_epsilon: 8, target_epsilon: 80}\n", "stands twice"),
        ("output_dir: x\ndata: {labels: [yes, 1]}\nprivacy: {target_epsilon: 8}\n", r"data\.labels: .*quote"),
        ("privacy: {target_epsilon: 8}\n", "output_dir is missing"),
        ("- a\n", "must be a YAML mapping"),
        ("a: [\n", "line"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_key(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        parse(Config, ["--config", str(path)], prog="x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [["--config"], ["--config", "/does/not/exist.yaml"]])
def test_a_missing_file_is_named(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="config"):
        parse(Config, words, prog="x")


def test_a_resolved_config_reads_back_as_itself(recipe: Path, tmp_path: Path) -> None:
    import yaml

    config = parse(Config, ["--config", str(recipe), "--data.labels", '["yes", "1"]'], prog="x")
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(to_mapping(config)))
    assert parse(Config, ["--config", str(again)], prog="x") == config


def test_the_hash_of_a_config_ignores_the_place_of_output_and_nothing_else(recipe: Path) -> None:
    values = to_mapping(parse(Config, ["--config", str(recipe)], prog="x"))
    assert config_hash(values) == config_hash(values | {"output_dir": "there"})
    assert config_hash(values) != config_hash(values | {"steps": 4})
