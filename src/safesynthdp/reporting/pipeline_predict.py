"""Private prediction in a pipeline: each mechanism of the file at each finite epsilon of the grid, and its evaluation.

Here: the calls. Elsewhere: the stage itself (generation/predict_command.py). Records, split, model and promise are
those of ``finetune``: another set of records, or another delta, could not be read beside the other runs. The epsilon
comes from the grid: the stage chooses the number that its mechanism leaves open, or refuses what costs more.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safesynthdp.reporting.pipeline_calls import Job, recipe_of, settings_of, words_of
from safesynthdp.reporting.pipeline_config import PipelineConfig, PredictStageConfig

_SOURCES = ("data.train_file", "data.dataset_name", "data.builtin", "model.model_name_or_path")
_SECTIONS = ("data.", "model.")
_PROMISE = ("privacy.target_delta", "privacy.unit", "privacy.adjacency", "privacy.num_records_is_public",
            "privacy.unsafe_seed")  # fmt: skip


def predict_jobs(config: PipelineConfig, root: Path, *, untuned: str | None) -> list[Job]:
    """Return a call of ``predict``, and one of ``evaluate``, for each mechanism and epsilon; once for all seeds."""
    shared = shared_settings(settings_of(config.finetune)) if config.predict else {}
    return [
        job
        for stage in config.predict
        if stage.enabled
        for epsilon in config.epsilons
        for job in _jobs(config, stage, epsilon, root, shared=shared, untuned=untuned)
    ]


def shared_settings(finetune: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that private prediction takes over from training; what names no source there is set to none.

    >>> shared_settings({"model.from_scratch.hidden_size": 64, "data.builtin": "vader", "train.max_steps": 1})
    ... # doctest: +NORMALIZE_WHITESPACE
    {'data.train_file': None, 'data.dataset_name': None, 'data.builtin': 'vader', 'model.model_name_or_path': None,
     'model.from_scratch.hidden_size': 64}
    """
    found = {key: finetune.get(key) for key in _SOURCES}
    found |= {key: value for key, value in finetune.items() if key.startswith(_SECTIONS) or key in _PROMISE}
    has_shape = any(key.startswith("model.from_scratch") for key in found)
    return found if has_shape else {**found, "model.from_scratch": None}


def _jobs(
    config: PipelineConfig,
    stage: PredictStageConfig,
    epsilon: float,
    root: Path,
    *,
    shared: Mapping[str, Any],
    untuned: str | None,
) -> list[Job]:
    name = f"{stage.name}-eps{epsilon:g}"
    text, out = root / name / "synthetic", root / name / "evaluation"
    flags = {**shared, **stage.flags, "privacy.target_epsilon": epsilon, "output_dir": str(text)}
    words = words_of(stage, ("predict",), flags)
    jobs = [Job(key=f"{name}/synthetic", words=words, output_dir=text, recipe=recipe_of(stage))]
    if config.evaluate.enabled:
        given = {"real": str(text), "synthetic": str(text), "holdout": str(text), "output_dir": str(out)}
        given |= {} if untuned is None else {"baseline": str(root / untuned)}
        needs = (jobs[0].key, *([] if untuned is None else [untuned]))
        words = words_of(config.evaluate, ("evaluate",), given)
        recipe = recipe_of(config.evaluate)
        jobs.append(Job(key=f"{name}/evaluation", words=words, output_dir=out, needs=needs, recipe=recipe))
    return jobs
