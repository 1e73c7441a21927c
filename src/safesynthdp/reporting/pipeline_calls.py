"""One job of a pipeline: one call of the console script, in one directory.

Here: the call, its words, and a point of the grid. Elsewhere: which calls a grid means (pipeline_jobs.py,
pipeline_pool.py, pipeline_predict.py), who runs them (pipeline_engine.py).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from safesynthdp.config import check_yaml
from safesynthdp.reporting.pipeline_config import StageConfig


@dataclass(frozen=True, kw_only=True)
class Job:
    """One stage in one directory. ``words`` follow ``safesynthdp``; ``needs`` are keys of other jobs."""

    key: str
    words: tuple[str, ...]
    output_dir: Path
    needs: tuple[str, ...] = ()
    launch: tuple[str, ...] = ()
    """Words of a launcher in front, an accelerate config file say."""
    recipe: Path | None = None
    good_codes: tuple[int, ...] = (0, 1)
    """Exit codes after which it may be finished; its directory must say so too."""
    result: str | None = None
    """A file that lies in its directory once it is finished; exit code 1 is then good only if it refutes a claim."""
    drives_cluster: bool = False
    """It submits tasks to the cluster and watches them: it runs beside the pipeline, not as a task."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the grid; ``epsilon`` None trains without privacy."""

    epsilon: float | None
    seed: int

    @property
    def name(self) -> str:
        """Its folder.

        >>> Cell(epsilon=0.5, seed=3).name, Cell(epsilon=None, seed=0).name
        ('eps0.5-seed3', 'no_privacy-seed0')
        """
        return f"{'no_privacy' if self.epsilon is None else f'eps{self.epsilon:g}'}-seed{self.seed}"


def words_of(stage: StageConfig, command: tuple[str, ...], given: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the recipe, then the flags of the pipeline's file, then what the grid decides: the last one counts."""
    recipe = () if stage.recipe is None else ("--config", stage.recipe)
    flags = {**stage.flags, **given}
    return (*command, *recipe, *flag_words(flags))


def flag_words(flags: Mapping[str, Any]) -> tuple[str, ...]:
    """Return flags and their values as words.

    >>> flag_words({"a.b": True, "c": None, "d": ["good", "bad"], "e": "plain"})
    ('--a.b', 'true', '--c', 'null', '--d', '["good", "bad"]', '--e', 'plain')
    """
    return tuple(word for key, value in flags.items() for word in (f"--{key}", _text(value)))


def settings_of(stage: StageConfig) -> dict[str, Any]:
    """Return the dotted keys of a stage's recipe with its flags over them.

    Raises:
        ConfigError: If the recipe is missing or no YAML mapping.
    """
    if stage.recipe is None:
        return dict(stage.flags)
    check_yaml(Path(stage.recipe))
    return {**_dotted(yaml.safe_load(Path(stage.recipe).read_text(encoding="utf-8"))), **stage.flags}


def _dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested sections as dotted keys.

    >>> _dotted({"a": {"b": {"c": 1}}, "d": None})
    {'a.b.c': 1, 'd': None}
    """
    found = dict[str, Any]()
    for key, value in values.items():
        found |= _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def recipe_of(stage: StageConfig) -> Path | None:
    """Return the file of a stage's own recipe; its content counts in what is finished."""
    return None if stage.recipe is None else Path(stage.recipe)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
