"""The keys of ``safesynthdp pipeline``.

Here: the config and what it refuses. Elsewhere: which jobs it means (pipeline_jobs.py), who runs them
(pipeline_engine.py), the order of the command (pipeline_command.py).
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from safesynthdp.attacks.pool_config import SlurmConfig
from safesynthdp.errors import ConfigError

OWNED = {
    "finetune": ("output_dir", "privacy.target_epsilon", "privacy.mode", "train.seed"),
    "sample": ("output_dir", "run", "seed", "untuned"),
    "evaluate": ("output_dir", "real", "synthetic", "holdout", "baseline"),
    "attack": ("output_dir", "run"),
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
    public: bool = False
    """Draw the public edition too, in report_public."""
    accelerate_config: str | None = None
    """Launch finetune and sample through accelerate with this file (accelerate_configs/multi_gpu.yaml, say)."""
    engine: Literal["local", "slurm"] = "local"
    """Where the jobs run: processes of this machine, or a SLURM batch job each."""
    max_parallel: int = 1
    """Jobs at a time; each may take all of a GPU or of the memory."""
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
            if taken := [key for key in getattr(self, name).flags if key in owned]:
                raise ConfigError(f"{name}.flags sets {taken[0]}, which the pipeline sets itself; take it out")
