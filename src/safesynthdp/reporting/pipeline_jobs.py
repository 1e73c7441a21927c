"""From a grid to its jobs: one call of the console script each, and which must be finished before it.

Here: the calls. Elsewhere: the keys (pipeline_config.py), who runs the jobs (pipeline_engine.py). Layout, for a grid in
G: ``G/eps8-seed0/{run,synthetic,evaluation,attack}``, ``G/untuned``, ``G/report``.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safesynthdp.reporting.pipeline_config import PipelineConfig, StageConfig

REPORT, PUBLIC_REPORT, UNTUNED = "report", "report_public", "untuned"


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


def cells(config: PipelineConfig) -> tuple[Cell, ...]:
    """Return the grid, epsilons in the order given, the runs without privacy last."""
    epsilons: list[float | None] = [*config.epsilons, *([None] if config.without_privacy else [])]
    return tuple(Cell(epsilon=epsilon, seed=seed) for epsilon in epsilons for seed in config.seeds)


def stage_jobs(config: PipelineConfig) -> tuple[Job, ...]:
    """Return every job but the reports, each after those it needs."""
    root, grid = Path(config.output_dir).resolve(), cells(config)
    jobs = [job for cell in grid for job in _training(config, cell, root)]
    if config.untuned:
        jobs.append(_untuned(config, grid[0], root))
    return (*jobs, *(job for cell in grid for job in _judging(config, cell, root)))


def report_job(config: PipelineConfig, runs: Sequence[Path], *, is_public: bool) -> Job:
    """Return the job that draws what there is."""
    name = PUBLIC_REPORT if is_public else REPORT
    out = Path(config.output_dir).resolve() / name
    flags = ["--public"] if is_public else []
    return Job(key=name, words=("report", *map(str, runs), "--output_dir", str(out), *flags), output_dir=out)


def _training(config: PipelineConfig, cell: Cell, root: Path) -> list[Job]:
    run, text = root / cell.name / "run", root / cell.name / "synthetic"
    privacy: dict[str, Any] = {"privacy.target_epsilon": cell.epsilon}
    if cell.epsilon is None:
        privacy = {"privacy.mode": "none", "privacy.target_epsilon": None, "privacy.noise_multiplier": None}
    finetune = _words(config.finetune, ("finetune",), {**privacy, "train.seed": cell.seed, "output_dir": str(run)})
    sample = _words(config.sample, ("sample",), {"run": str(run), "seed": cell.seed, "output_dir": str(text)})
    launch, key = _launch(config), f"{cell.name}/run"
    return [
        Job(key=key, words=finetune, output_dir=run, launch=launch, recipe=_recipe(config.finetune)),
        Job(key=f"{cell.name}/synthetic", words=sample, output_dir=text, needs=(key,), launch=launch,
            recipe=_recipe(config.sample)),
    ]  # fmt: skip


def _untuned(config: PipelineConfig, first: Cell, root: Path) -> Job:
    """Text of the model before training: it depends on no epsilon, so one serves the grid."""
    out = root / UNTUNED
    given = {"run": str(root / first.name / "run"), "seed": first.seed, "untuned": True, "output_dir": str(out)}
    words = _words(config.sample, ("sample",), given)
    recipe, needs = _recipe(config.sample), (f"{first.name}/run",)
    return Job(key=UNTUNED, words=words, output_dir=out, needs=needs, launch=_launch(config), recipe=recipe)


def _judging(config: PipelineConfig, cell: Cell, root: Path) -> list[Job]:
    folder, jobs = root / cell.name, list[Job]()
    run, text = str(folder / "run"), f"{cell.name}/synthetic"
    if config.evaluate.enabled:
        out = folder / "evaluation"
        given = {"real": run, "synthetic": str(folder / "synthetic"), "holdout": run, "output_dir": str(out)}
        given |= {"baseline": str(root / UNTUNED)} if config.untuned else {}
        needs = (text, *((UNTUNED,) if config.untuned else ()))
        words = _words(config.evaluate, ("evaluate",), given)
        jobs.append(
            Job(key=f"{cell.name}/evaluation", words=words, output_dir=out, needs=needs,
                recipe=_recipe(config.evaluate))
        )  # fmt: skip
    if config.attack.enabled:
        out = folder / "attack"
        words = _words(config.attack, ("attack", "score"), {"run": run, "output_dir": str(out)})
        needs = (f"{cell.name}/run",)
        jobs.append(
            Job(key=f"{cell.name}/attack", words=words, output_dir=out, needs=needs, recipe=_recipe(config.attack))
        )
    return jobs


def _words(stage: StageConfig, command: tuple[str, ...], given: dict[str, Any]) -> tuple[str, ...]:
    """The recipe first, then the flags of the pipeline's file, then what the grid decides: the last one counts."""
    recipe = () if stage.recipe is None else ("--config", stage.recipe)
    flags = {**stage.flags, **given}
    return (*command, *recipe, *(word for key, value in flags.items() for word in (f"--{key}", _text(value))))


def _text(value: Any) -> str:
    """A value as the command line of a stage reads it.

    >>> _text(True), _text(None), _text(["good", "bad"]), _text("plain")
    ('true', 'null', '["good", "bad"]', 'plain')
    """
    return value if isinstance(value, str) else json.dumps(value)


def _recipe(stage: StageConfig) -> Path | None:
    return None if stage.recipe is None else Path(stage.recipe)


def _launch(config: PipelineConfig) -> tuple[str, ...]:
    return () if config.accelerate_config is None else ("--config_file", config.accelerate_config)
