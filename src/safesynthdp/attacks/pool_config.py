"""What a shadow pool is asked for: the flags of ``attack plan | run | status`` and of ``attack score --pool``.

Here: the keys, their meaning and their bounds. Elsewhere: what is planned from them (pool_plan.py), the driver
(driver.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from safesynthdp.errors import ConfigError
from safesynthdp.generation.settings import SampleDtype

Channel = Literal["model", "text"]
MAX_MODELS = 512
"""Array indices stay below SLURM's usual MaxArraySize of 1001."""


def check_primary(name: str, *, channels: Sequence[str]) -> None:
    """Refuse a primary attack that does not exist, has no verdict, or is of another channel."""
    from safesynthdp.attacks.pool_attacks import ATTACKS, NO_VERDICT

    known = [attack for attack in ATTACKS if attack not in NO_VERDICT and ATTACKS[attack].channel in channels]
    if name not in known:
        raise ConfigError(f"primary={name} gets no verdict here; name one of {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class CanaryConfig:
    """Made-up records, each put in by a coin of its own."""

    kind: str = "random_tokens"
    """random_tokens and mislabelled light up a model, text_suffix (a usual beginning, an improbable end) the text,
    sampled (texts_file) both; natural and mislabelled take texts of the holdout."""
    count: int = 0
    """How many canaries."""
    repeats: int = 1
    """Copies of each canary; above 1 it is protected, and compared, as a group of so many records."""
    texts_file: str | None = None
    """For sampled, which needs it: a csv, jsonl or parquet file whose column text a language model wrote without these
    records (synthetic.parquet of ``safesynthdp sample --untuned true --temperature 0.8``, say)."""

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        if self.count < 0:
            raise ConfigError(f"canaries.count={self.count}: give 0 or more")
        if self.repeats < 1:
            raise ConfigError(f"canaries.repeats={self.repeats}: give a whole number above 0")
        if (self.kind == "sampled") != (self.texts_file is not None):
            raise ConfigError(
                f"canaries.texts_file={self.texts_file} with canaries.kind={self.kind}: sampled takes its texts from "
                "there, and no other kind does"
            )


@dataclass(frozen=True, kw_only=True)
class PoolSampleConfig:
    """The synthetic corpus drawn from each model; the keys are those of ``safesynthdp sample``."""

    num_records: int = 1000
    """Texts a corpus."""
    labels: Literal["auto", "histogram", "sqrt", "uniform"] = "auto"
    """Texts per label, as in ``safesynthdp sample``."""
    temperature: float = 1.0
    """Divides the logits."""
    top_k: int = 0
    """Draw among the k likeliest tokens only; 0 = all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that hold this much probability."""
    token_matching_rounds: int = 5
    """Rounds of matching the released token counts, where the recipe takes them; 0 = none."""
    token_matching_records: int = 800
    """Texts of each round."""
    token_matching_candidates: int = 3
    """Texts drawn for each one that is kept."""
    max_new_tokens: int | None = None
    """Longest text; null = what the prompt leaves of data.max_length."""
    batch_size: int = 128
    """Texts decoded at once."""
    dtype: SampleDtype | None = None
    """Precision of the model while sampling, as in ``safesynthdp sample``; null = as the run has it."""
    attn_implementation: Literal["sdpa", "eager"] | None = None
    """Of the model while sampling; null = as the run has it."""
    seed: int = 0
    """Each model draws with a seed of its own derived from this one."""

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning; sampling itself checks the rest."""
        if self.num_records < 1:
            raise ConfigError(f"sample.num_records={self.num_records}: give a whole number above 0")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"sample.temperature={self.temperature}: give a finite number above 0")


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Plan a pool of shadow models: who is trained on what, with the recipe of the model that is released."""

    output_dir: str
    """The pool. Private (mode 0700): it holds the records, and nothing in it is released but its target."""
    recipe: str
    """A training recipe (YAML), or the directory of a finetune run, whose recipe is then taken."""
    overrides: list[str] = field(default_factory=list)
    """Changes to the recipe, as on the command line: ["--train.max_steps=5"]."""
    num_models: int = 8
    """Shadow models, in pairs; at least 6 for a shrunken variance. 16 is a strong pool."""
    seed: int = 0
    """Of the coins (rule pairs-v1) and of the choice of audited records; not of the training."""
    num_audit: int = 1000
    """At most so many natural records are audited by a coin each; all other records are in every model."""
    num_population: int = 1000
    """At most so many held-out records, in nobody's training data, are scored too: rmia_calibrated compares with them,
    and reaches no false-positive rate below 1 / (their number + 1). 0 = none."""
    canaries: CanaryConfig = field(default_factory=CanaryConfig)
    """Made-up records that are audited too."""
    text_canaries: CanaryConfig = field(default_factory=lambda: CanaryConfig(kind="text_suffix"))
    """More of them, of a kind that suits the channel text: what lights up a model is weak in released text."""
    primary: str | None = None
    """The one attack, such as lira, that has the whole alpha of its channel, named before any score is seen; null = all
    attacks share it."""
    channels: list[Channel] = field(default_factory=lambda: ["model", "text"])
    """model: the attacker holds the weights; text: the synthetic corpus only."""
    sample: PoolSampleConfig = field(default_factory=PoolSampleConfig)
    """The corpus of each model, for the channel text."""
    with_target: bool = True
    """Also train the model that may be released, as a dedicated target with coins of its own. It is kept."""
    target_run: str | None = None
    """A finished finetune run of this recipe, attacked as the target in place of one trained here: nobody tossed coins
    for it, so it gets AUCs and no bound on epsilon."""
    num_processes: int = 1
    """Processes (GPUs) a model is trained with, through accelerate, within one task."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("output_dir", "recipe"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty; give a path")
        if self.num_models % 2 or not 2 <= self.num_models <= MAX_MODELS:
            raise ConfigError(f"num_models={self.num_models}: give an even number from 2 to {MAX_MODELS}")
        if self.num_audit < 0 or self.num_audit + self.num_canaries < 2:
            raise ConfigError(f"num_audit={self.num_audit}: audit two records or more, natural ones or canaries")
        if self.num_population < 0:
            raise ConfigError(f"num_population={self.num_population}: give 0 or more")
        if not self.channels or len(set(self.channels)) < len(self.channels):
            raise ConfigError(f"channels={self.channels}: name model, text, or both, each once")
        self._check_canaries()
        if self.primary is not None:
            check_primary(self.primary, channels=self.channels)
        if self.num_processes < 1:
            raise ConfigError(f"num_processes={self.num_processes}: give a whole number above 0")

    def _check_canaries(self) -> None:
        """Refuse canaries that cannot be told apart, or that nobody would hold."""
        if self.canaries.count and self.text_canaries.count and self.canaries.kind == self.text_canaries.kind:
            raise ConfigError(f"text_canaries.kind={self.text_canaries.kind}: canaries has it too; give another kind")
        if self.target_run is not None and (self.num_canaries or not self.with_target):
            raise ConfigError(
                f"target_run={self.target_run} is the dedicated target and holds no canary; leave out canaries.count, "
                "text_canaries.count and with_target=false"
            )

    @property
    def num_canaries(self) -> int:
        """Canaries of both kinds."""
        return self.canaries.count + self.text_canaries.count


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """What ``sbatch`` is told, for ``--engine slurm`` and ``--submitit.cluster slurm``."""

    partition: str | None = None
    """Partition; null = the cluster's default."""
    account: str | None = None
    """Account to charge."""
    time_minutes: int | None = None
    """Time limit of a task; null = the partition's. submitit has to be given one."""
    cpus_per_task: int | None = None
    """Cores a task."""
    gpus_per_task: int = 0
    """GPUs a task; as many as the plan's num_processes."""
    memory_gib: float | None = None
    """Memory a task."""
    extra: list[str] = field(default_factory=list)
    """More options of sbatch, as they are: ["--qos=low"]."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell before the task: ["module load cuda"]."""
    query_seconds: float = 10.0
    """Seconds between two questions to the controller, at most 30; manifests are looked at more often."""

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        if not 0 < self.query_seconds <= 30:
            raise ConfigError(f"slurm.query_seconds={self.query_seconds}: give a number above 0, at most 30")


@dataclass(frozen=True, kw_only=True)
class SubmititConfig:
    """Where submitit begins tasks, for ``--engine submitit``."""

    cluster: Literal["local", "slurm"] = "local"
    """Its executor: processes of this machine, or SLURM arrays with the options of ``slurm``."""


@dataclass(frozen=True, kw_only=True)
class RunPoolConfig:
    """Train and score what is left of a pool; the same command goes on wherever an earlier one stopped."""

    pool: str
    """The pool, as ``attack plan`` wrote it."""
    shard: int | None = None
    """Do this one shard in this process: what a task of any scheduler calls. null = drive them all."""
    engine: Literal["local", "slurm", "submitit"] = "local"
    """Where tasks run: processes of this machine, a SLURM array, or either of them by way of submitit."""
    max_parallel: int | None = None
    """Tasks at once; null = what cores and memory allow (local), no limit of ours (slurm)."""
    memory_gib_per_task: float | None = None
    """Memory a local task needs; null = 2 GiB until the first one is done, then what that one took."""
    retries: int = 2
    """How often a failed task is begun again, counted on disk over all drivers."""
    deadline_minutes: float | None = None
    """Stop driving after this long; SLURM tasks go on, local ones save and end."""
    poll_seconds: float = 0.2
    """Seconds between two looks at the manifests."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    """Options of SLURM."""
    submitit: SubmititConfig = field(default_factory=SubmititConfig)
    """Options of submitit."""

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        for name in ("max_parallel", "memory_gib_per_task", "deadline_minutes", "poll_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name}={value}: give a number above 0")
        if self.retries < 0:
            raise ConfigError(f"retries={self.retries}: give 0 or more")


@dataclass(frozen=True, kw_only=True)
class StatusConfig:
    """Say which shards of a pool are done, running, missing, failed or stale."""

    pool: str
    """The pool, as ``attack plan`` wrote it."""
    json: bool = False
    """Print one JSON object and nothing else on stdout."""
