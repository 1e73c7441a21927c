"""Would every call of a grid be understood, and is every price affordable?

Here: each job's words through the parser of its own stage, and the price of private prediction: of every job for
``--dry_run true``, of one job of each kind before a grid begins. Elsewhere: the jobs (pipeline_jobs.py). Nothing but
recipes is read, nothing is started or written: a wrong key is found before a night of training, not after it.
"""

import shlex
from collections.abc import Sequence
from typing import Any

from safesynthdp.config import parse
from safesynthdp.errors import UserError
from safesynthdp.reporting.pipeline_calls import Job


def check_jobs(jobs: Sequence[Job]) -> list[str]:
    """Return one line a job: its key and its call.

    Raises:
        UserError: If a stage would refuse its words; the message names the job.
    """
    for job in jobs:
        try:
            _check(job)
        except UserError as error:
            raise type(error)(f"{job.key}: {error}") from error
    return [f"{job.key}: {' '.join(_quoted(word) for word in ('safesynthdp', *job.words))}" for job in jobs]


def _quoted(word: str) -> str:
    """Return a word as bash reads it back, on one line: a prompt template holds line breaks."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t") + "'"


def of_each_kind(jobs: Sequence[Job]) -> list[Job]:
    """Return the first of the jobs that differ in the values of the grid alone: what costs a moment to check."""
    kinds: dict[tuple[str, ...], Job] = {}
    for job in jobs:
        flags = (word for word in job.words if word.startswith("--"))
        kinds.setdefault((*job.words[:2], str(job.recipe), *flags), job)
    return list(kinds.values())


def _check(job: Job) -> None:
    """Parse the words of a job; draw nothing, but know what private prediction would cost."""
    config_class, words = _stage(job.words)
    config: Any = parse(config_class, words, prog=f"safesynthdp {job.words[0]}")
    if job.words[0] == "predict":
        config.mechanism(num_labels=1)


def _stage(words: Sequence[str]) -> tuple[type[Any], Sequence[str]]:
    """Return the config class of a call, and the words that belong to it."""
    from safesynthdp.attacks.command import AttackScoreConfig
    from safesynthdp.attacks.pool_config import PoolConfig, RunPoolConfig
    from safesynthdp.attacks.pool_scoring import ScorePoolConfig
    from safesynthdp.evaluation.evaluate_config import EvaluateConfig
    from safesynthdp.generation.predict_config import PredictConfig
    from safesynthdp.generation.settings import SampleConfig
    from safesynthdp.training.config import FinetuneConfig

    if words[0] == "attack":
        scored = ScorePoolConfig if "--pool" in words else AttackScoreConfig
        return {"plan": PoolConfig, "run": RunPoolConfig, "score": scored}[words[1]], words[2:]
    classes = {
        "finetune": FinetuneConfig, "sample": SampleConfig, "evaluate": EvaluateConfig, "predict": PredictConfig,
    }  # fmt: skip
    return classes[words[0]], words[1:]
