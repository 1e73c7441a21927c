"""The keys of ``safesynthdp pipeline``.

Here: the config and what it refuses. Elsewhere: which jobs it means (pipeline_jobs.py), who runs them
(pipeline_engine.py), the order of the command (pipeline_command.py).
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from safesynthdp.attacks.pool_config import SlurmConfig
from safesynthdp.errors import ConfigError

OWNED = {
    "finetune": ("output_dir", "privacy.target_epsilon", "privacy.mode", "train.seed"),
    "sample": ("output_dir", "run", "seed", "untuned"),
    "evaluate": ("output_dir", "real", "synthetic", "holdout", "baseline"),
    "attack": ("output_dir", "run"),
    "pool": ("output_dir", "recipe", "overrides"),
    "predict": ("output_dir", "privacy.target_epsilon", "privacy.mode", "heuristic"),
}
"""What the pipeline sets itself; anything else may stand in ``flags``."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """How one stage is called: its recipe, and flags after it."""

    recipe: str | None = None
    """A YAML file for the stage's own --config."""
    flags: dict[str, Any] = field(default_factory=dict)
    """Keys of the stage and their values, over those of the recipe: {train.max_steps: 10}."""
    enabled: bool = True
    """False leaves the stage out; the report then says that it was not done."""


@dataclass(frozen=True, kw_only=True)
class PoolStageConfig(StageConfig):
    """A shadow pool at some points of the grid; ``recipe`` and ``flags`` are those of ``attack plan``."""

    epsilons: list[float | Literal["none"]]
    """At which of the grid's epsilons; none: the runs without privacy. First seed only."""
    score: dict[str, Any] = field(default_factory=dict)
    """Flags of ``attack score --pool``: {primary: lira}."""
    max_parallel: int = 1
    """Shadow models trained at once; each may take all of a GPU or of the memory."""
    retries: int = 2
    """How often a failed shadow model is begun again."""

    def __post_init__(self) -> None:
        """Refuse what is not a number of anything."""
        if self.max_parallel < 1 or self.retries < 0:
            raise ConfigError(
                f"pool.max_parallel={self.max_parallel}, pool.retries={self.retries}: give at least 1 and at least 0"
            )
        if "pool" in self.score:
            raise ConfigError("pool.score sets pool, which the pipeline sets itself; take it out")

    @property
    def points(self) -> tuple[float | None, ...]:
        """The epsilons; None for no privacy."""
        return tuple(None if epsilon == "none" else float(epsilon) for epsilon in self.epsilons)


@dataclass(frozen=True, kw_only=True)
class PredictStageConfig(StageConfig):
    """Private prediction at every finite epsilon of the grid; ``recipe`` and ``flags`` are those of ``predict``.

    Records, model, unit, adjacency and delta are those of ``finetune``.
    """

    name: str
    """What it is called in folders and on the page: the mechanism, say."""

    def __post_init__(self) -> None:
        """Refuse a name that is no folder's."""
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise ConfigError(f"predict.name={self.name}: give small letters, digits and _, a letter first")


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Run every stage for a grid of epsilons and seeds, and draw one report."""

    output_dir: str
    """Where the whole grid goes; the same command goes on where it stopped and skips what is finished."""
    finetune: StageConfig
    """Every run of the grid; target_epsilon and seed come from the grid."""
    epsilons: list[float]
    """One run each. Every run is a new access to the same records: releasing several of them adds up."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """train.seed of the repetitions, and the seed of their samples; never masks or noise."""
    without_privacy: bool = False
    """Also one run a seed with privacy.mode none: no formal guarantee, never to be released."""
    sample: StageConfig = field(default_factory=StageConfig)
    """Synthetic text of each run."""
    untuned: bool = True
    """Also sample the untuned model, once for the grid: the epsilon = 0 row."""
    evaluate: StageConfig = field(default_factory=StageConfig)
    """Utility, fidelity and memorisation of each run."""
    attack: StageConfig = field(default_factory=StageConfig)
    """Attack on each run."""
    pool: PoolStageConfig | None = None
    """Shadow models of a run's own recipe, and the audit they allow; null: none."""
    predict: list[PredictStageConfig] = field(default_factory=list)
    """Text drawn straight from the records, one entry a mechanism; each run a new access to them."""
    public: bool = False
    """Draw the public edition too, in report_public."""
    accelerate_config: str | None = None
    """Launch finetune and sample through accelerate with this file (accelerate_configs/multi_gpu.yaml, say)."""
    engine: Literal["local", "slurm"] = "local"
    """Where the jobs run: processes of this machine, or a SLURM batch job each."""
    max_parallel: int = 1
    """Jobs at a time; each may take all of a GPU or of the memory."""
    dry_run: bool = False
    """Check every call of the grid, print it and stop: nothing is read but recipes, nothing is started or written."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    """What sbatch is told, for engine slurm; every job of the grid asks for the same."""

    def __post_init__(self) -> None:
        """Refuse a grid that is none."""
        if not self.output_dir:
            raise ConfigError("output_dir is empty; give a directory")
        if not self.epsilons and not self.without_privacy:
            raise ConfigError("epsilons is empty; give at least one, or without_privacy: true")
        for epsilon in self.epsilons:
            if not 0 < epsilon < math.inf:
                raise ConfigError(f"epsilons={epsilon}: give finite numbers above 0")
        for name, values in (("epsilons", self.epsilons), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise ConfigError(f"{name}={values} holds a value twice; give each once")
        if not self.seeds:
            raise ConfigError("seeds is empty; give at least one")
        if self.max_parallel < 1:
            raise ConfigError(f"max_parallel={self.max_parallel}: give a whole number above 0")
        self._check_stages()

    def _check_stages(self) -> None:
        for name in ("finetune", "sample"):
            if not getattr(self, name).enabled:
                raise ConfigError(f"{name}.enabled=false: there is nothing to report on without it")
        for name, owned in OWNED.items():
            part: StageConfig | list[StageConfig] | None = getattr(self, name)
            stages = part if isinstance(part, list) else [] if part is None else [part]
            if taken := [key for stage in stages for key in stage.flags if key in owned]:
                raise ConfigError(f"{name}.flags sets {taken[0]}, which the pipeline sets itself; take it out")
        names = [stage.name for stage in self.predict]
        if len(set(names)) < len(names):
            raise ConfigError(f"predict.name: {', '.join(names)} holds a name twice; give each its own")
        grid = {*self.epsilons, *([None] if self.without_privacy else [])}
        if self.pool is not None and (strange := [e for e in self.pool.points if e not in grid]):
            missing = "none, and without_privacy is false" if strange[0] is None else f"{strange[0]:g}"
            raise ConfigError(f"pool.epsilons holds {missing}: not a point of the grid; give some of epsilons")
