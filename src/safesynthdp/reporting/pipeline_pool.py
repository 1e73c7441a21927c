"""The shadow pools of a pipeline: at chosen points of the grid, the recipe of a run is planned, carried out, scored.

Here: three calls a pool. Elsewhere: what each does (attacks/pool_command.py, pool_scoring.py), how the report sets the
audit beside the claim of the run (pools.py). The pool takes its recipe from the finished run, so it is that of the
run to the last key. A pool is at the first seed only: another seed is another draw of the same mechanism.

On a cluster the driver of a pool is no task: it would hold a node for the time that its own tasks wait. It runs beside
the pipeline and submits an array; killed, it finds its tasks again.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from safesynthdp.attacks.pool_config import SlurmConfig
from safesynthdp.config import to_mapping
from safesynthdp.reporting.pipeline_calls import Cell, Job, flag_words, recipe_of, settings_of, words_of
from safesynthdp.reporting.pipeline_config import PipelineConfig, PoolStageConfig

AUDIT = "audit.json"
DECODING = ("labels", "temperature", "top_k", "top_p", "max_new_tokens", "batch_size", "dtype", "attn_implementation",
            "token_matching_rounds", "token_matching_records", "token_matching_candidates")  # fmt: skip
"""The corpora of a pool are drawn as the text of the run is, unless the pool's flags say otherwise."""


def pool_jobs(config: PipelineConfig, cell: Cell, root: Path) -> list[Job]:
    """Return plan, run and score of the pool of one point of the grid; none where no pool is asked for."""
    pool = config.pool
    if pool is None or not pool.enabled or cell.seed != config.seeds[0] or cell.epsilon not in pool.points:
        return []
    out, key = root / cell.name / "pool", f"{cell.name}/pool"
    given = {"recipe": str(root / cell.name / "run"), "output_dir": str(out)}
    settings = settings_of(config.sample)
    decoding = {f"sample.{name}": settings[name] for name in DECODING if name in settings}
    plan = Job(
        key=f"{key}_plan",
        words=words_of(replace(pool, flags={**decoding, **pool.flags}), ("attack", "plan"), given),
        output_dir=out,
        needs=(f"{cell.name}/run",),
        recipe=recipe_of(pool),
        good_codes=(0,),
    )
    run = Job(
        key=f"{key}_run",
        words=("attack", "run", *flag_words({"pool": str(out), **_engine(config, pool)})),
        output_dir=out,
        needs=(plan.key,),
        good_codes=(0,),
        drives_cluster=config.engine == "slurm",
    )
    words = ("attack", "score", *flag_words({"pool": str(out), **pool.score}))
    return [plan, run, Job(key=key, words=words, output_dir=out, needs=(run.key,), good_codes=(0,), result=AUDIT)]


def _engine(config: PipelineConfig, pool: PoolStageConfig) -> dict[str, Any]:
    """Return where the tasks of a pool run: where the jobs of the pipeline do, asking for the same."""
    shared = {"max_parallel": pool.max_parallel, "retries": pool.retries}
    if config.engine == "local":
        return {"engine": "local", **shared}
    usual, asked = to_mapping(SlurmConfig()), to_mapping(config.slurm)
    return {"engine": "slurm", **shared, **{f"slurm.{k}": v for k, v in asked.items() if v != usual[k]}}
