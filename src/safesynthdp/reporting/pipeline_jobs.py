"""From a grid to its jobs: one call of the console script each, and which must be finished before it.

Here: training, sampling, evaluation, attack and report. Elsewhere: shadow pools (pipeline_pool.py), private prediction
(pipeline_predict.py), the keys (pipeline_config.py), who runs the jobs (pipeline_engine.py). Layout, for a grid in G:
``G/eps8-seed0/{run,synthetic,evaluation,attack,pool}``, ``G/softmax-eps8/{synthetic,evaluation}``, ``G/untuned``,
``G/report``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safesynthdp.reporting.pipeline_calls import Cell, Job, recipe_of, words_of
from safesynthdp.reporting.pipeline_config import PipelineConfig
from safesynthdp.reporting.pipeline_pool import pool_jobs
from safesynthdp.reporting.pipeline_predict import predict_jobs

REPORT, PUBLIC_REPORT, UNTUNED = "report", "report_public", "untuned"


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
    jobs += [job for cell in grid for job in _judging(config, cell, root)]
    jobs += [job for cell in grid for job in pool_jobs(config, cell, root)]
    return (*jobs, *predict_jobs(config, root, untuned=UNTUNED if config.untuned else None))


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
    finetune = words_of(config.finetune, ("finetune",), {**privacy, "train.seed": cell.seed, "output_dir": str(run)})
    sample = words_of(config.sample, ("sample",), {"run": str(run), "seed": cell.seed, "output_dir": str(text)})
    launch, key = _launch(config), f"{cell.name}/run"
    return [
        Job(key=key, words=finetune, output_dir=run, launch=launch, recipe=recipe_of(config.finetune)),
        Job(key=f"{cell.name}/synthetic", words=sample, output_dir=text, needs=(key,), launch=launch,
            recipe=recipe_of(config.sample)),
    ]  # fmt: skip


def _untuned(config: PipelineConfig, first: Cell, root: Path) -> Job:
    """Text of the model before training: it depends on no epsilon, so one serves the grid, and on no label counts."""
    out = root / UNTUNED
    given = {"run": str(root / first.name / "run"), "seed": first.seed, "untuned": True, "output_dir": str(out)}
    given |= {"labels": "auto"}
    words = words_of(config.sample, ("sample",), given)
    recipe, needs = recipe_of(config.sample), (f"{first.name}/run",)
    return Job(key=UNTUNED, words=words, output_dir=out, needs=needs, launch=_launch(config), recipe=recipe)


def _judging(config: PipelineConfig, cell: Cell, root: Path) -> list[Job]:
    folder, jobs = root / cell.name, list[Job]()
    run, text = str(folder / "run"), f"{cell.name}/synthetic"
    if config.evaluate.enabled:
        out = folder / "evaluation"
        given = {"real": run, "synthetic": str(folder / "synthetic"), "holdout": run, "output_dir": str(out)}
        given |= {"baseline": str(root / UNTUNED)} if config.untuned else {}
        needs = (text, *((UNTUNED,) if config.untuned else ()))
        words = words_of(config.evaluate, ("evaluate",), given)
        jobs.append(
            Job(key=f"{cell.name}/evaluation", words=words, output_dir=out, needs=needs,
                recipe=recipe_of(config.evaluate))
        )  # fmt: skip
    if config.attack.enabled:
        out = folder / "attack"
        words = words_of(config.attack, ("attack", "score"), {"run": run, "output_dir": str(out)})
        needs = (f"{cell.name}/run",)
        jobs.append(
            Job(key=f"{cell.name}/attack", words=words, output_dir=out, needs=needs, recipe=recipe_of(config.attack))
        )
    return jobs


def _launch(config: PipelineConfig) -> tuple[str, ...]:
    return () if config.accelerate_config is None else ("--config_file", config.accelerate_config)
