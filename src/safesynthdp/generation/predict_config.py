"""What ``safesynthdp predict`` is asked for: text drawn straight from private records and a public model.

Here: the keys and what they refuse. Elsewhere: the mechanisms (privacy/output_*.py), the work (prediction.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from safesynthdp.errors import ConfigError
from safesynthdp.generation.output_config import OutputConfig, refuse_private_truncation
from safesynthdp.generation.shard_config import PromptsConfig, ShardTraining
from safesynthdp.model_config import LoraConfig, ModelConfig
from safesynthdp.privacy.mechanisms import Heuristic
from safesynthdp.privacy.output_pricing import OutputAdjacency, OutputMechanism
from safesynthdp.privacy.planner import largest_clip, least_scale
from safesynthdp.records import DataConfig


@dataclass(frozen=True, kw_only=True)
class PredictPrivacy:
    """The promise."""

    mode: Literal["dp", "none"] = "dp"
    """'none' is needed by the heuristic, which promises nothing, and by nothing else."""
    target_epsilon: float | None = None
    """Refuse to begin when the text would cost more; null = the price is what it is. Where output.clip (softmax) or
    output.scale (the others) is null it is chosen so that the text costs this, from public numbers alone."""
    target_delta: float = 1e-5
    """Delta of the same release; keep it well below 1 / number of records."""
    unit: Literal["record", "user"] = "record"
    """Who is protected: one record, or all records of one user (needs data.user_column and output.grouping=many)."""
    adjacency: Literal["add_remove", "replace"] = "add_remove"
    """Neighbouring data sets: one unit more or less, or one exchanged (one record a shard only)."""
    num_records_is_public: bool = True
    """False lists the number of records as private in the ledger; nothing here is computed from it."""
    unsafe_seed: int | None = None
    """null = OS entropy. A number makes the run reproducible and marks every later artifact 'seeded'."""

    def __post_init__(self) -> None:
        """Refuse a promise that is not one."""
        if self.target_epsilon is not None and not 0 < self.target_epsilon < math.inf:
            raise ConfigError(f"privacy.target_epsilon={self.target_epsilon}: give a finite number above 0")
        if self.mode == "none" and self.target_epsilon is not None:
            raise ConfigError("privacy.mode=none makes no promise; remove privacy.target_epsilon")
        if not 0 < self.target_delta < 1:
            raise ConfigError(f"privacy.target_delta={self.target_delta} is outside (0, 1); give, say, 1e-5")


@dataclass(frozen=True, kw_only=True)
class ShardOutputConfig(OutputConfig):
    """A mechanism over many shards. All numbers are public and charged in full."""

    shards: int
    """S, the divisor: groups of a batch, or the expected number of records in it."""
    tokens: int
    """Longest text, end included; all of them are charged, however early a text ends."""
    texts_per_batch: int = 1
    """Texts drawn from one batch of records; all are charged to each of them."""
    grouping: Literal["one", "many"] = "one"
    """one: each record is a shard of its own, a removed one costs 2 clip / shards. many: records share shards, and
    whatever happens to one costs 4 clip / shards."""

    def __post_init__(self) -> None:
        """Refuse one shard; the rest is checked by the mechanism."""
        super().__post_init__()
        if self.mechanism in ("laplace", "gaussian_l2") and self.clip is None:
            raise ConfigError(f"output.clip is missing: without it mechanism={self.mechanism} bounds nothing; give it")
        if self.shards < 2:
            raise ConfigError(f"output.shards={self.shards}: average over at least 2; one model is `sample`'s business")
        if self.mechanism == "uniform_mix" and self.grouping == "one":
            raise ConfigError("output.grouping=one: mechanism=uniform_mix needs shards of a fixed number; use many")

    @property
    def open_number(self) -> str | None:
        """The number that sets the price, if it is left open: clip of softmax, scale of the others."""
        name = {"softmax": "clip", "uniform_mix": None}.get(self.mechanism, "scale")
        return name if name is not None and getattr(self, name) is None else None

    @property
    def is_open(self) -> bool:
        """Whether privacy.target_epsilon has to choose a number."""
        return self.open_number is not None


@dataclass(frozen=True, kw_only=True)
class HeuristicConfig:
    """The paper's idea as it stands: demonstrations in one prompt, noise on frequencies. No guarantee at any scale."""

    noise: Literal["laplace", "gaussian"] = "laplace"
    """Distribution."""
    scale: float
    """Laplace scale or Gaussian standard deviation, added to each probability."""
    demonstrations: int = 4
    """Private records in the prompt."""
    tokens: int = 64
    """Longest text."""
    texts_per_label: int
    """How many to draw."""

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        Heuristic(noise=self.noise, scale=self.scale)
        for name in ("demonstrations", "tokens", "texts_per_label"):
            if getattr(self, name) < 1:
                raise ConfigError(f"heuristic.{name}={getattr(self, name)}: give a whole number above 0")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Draw labelled synthetic text from private records without training a model that could be released.

    Source 'in_context': records stand in the prompts of a public model, many prompts vote on every token. Source
    'adapters': a small adapter is trained on each shard, without noise, and the adapters vote. Each record pays for the
    texts of its own batch. See ``safesynthdp account plan`` for what a budget affords.
    """

    output_dir: str
    """Where the text goes; the same command resumes it."""
    source: Literal["in_context", "adapters"] = "in_context"
    """Where logits come from."""
    model: ModelConfig
    """The public model."""
    data: DataConfig
    """The private records."""
    privacy: PredictPrivacy = field(default_factory=PredictPrivacy)
    """The promise."""
    output: ShardOutputConfig | None = None
    """The mechanism; or heuristic."""
    heuristic: HeuristicConfig | None = None
    """In place of output, with privacy.mode none."""
    batches_per_label: int = 1
    """Batches of each label, public: each yields output.texts_per_batch texts. Source adapters has one batch."""
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    """The words around the records (source in_context, heuristic)."""
    lora: LoraConfig = field(default_factory=lambda: LoraConfig(lora_r=4, lora_alpha=8))
    """Shape of an adapter (source adapters)."""
    adapters: ShardTraining = field(default_factory=ShardTraining)
    """Training of an adapter (source adapters)."""
    temperature: float = 1.0
    """Of a noisy vector (gaussian_l2, laplace_probs, gaussian_probs): free. Else output.temperature."""
    top_k: int = 0
    """Likewise; 0 = all."""
    top_p: float = 1.0
    """Likewise; 1 = all."""
    batches_at_once: int = 8
    """Texts decoded side by side: speed and memory only."""
    rows_per_call: int | None = None
    """Rows of one forward call, filled up with dummies; null = shards, with room for one and a half standard deviations
    more if each record is a shard. Speed and memory only."""
    csv: bool = False
    """Write synthetic.csv beside synthetic.parquet."""

    def __post_init__(self) -> None:
        """Refuse what contradicts itself or has no price."""
        if not self.output_dir:
            raise ConfigError("output_dir is empty; give a directory")
        for name in ("batches_per_label", "batches_at_once", "rows_per_call"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: give a whole number above 0")
        if (self.output is None) == (self.heuristic is None):
            raise ConfigError("output is missing: give output.mechanism with its numbers, or heuristic, not both")
        if (self.heuristic is not None) != (self.privacy.mode == "none"):
            raise ConfigError(
                f"privacy.mode={self.privacy.mode}: heuristic noise has no guarantee and needs mode none written out; "
                "with a mechanism it is dp"
            )
        if self.output is not None:
            self._refuse_unpriced(self.output)

    def _refuse_unpriced(self, output: ShardOutputConfig) -> None:
        is_many = output.grouping == "many"
        if self.source == "adapters" and not is_many:
            raise ConfigError("output.grouping=one: an adapter is trained on its whole shard; set it to many")
        if self.source == "adapters" and self.batches_per_label != 1:
            raise ConfigError(
                f"batches_per_label={self.batches_per_label}: adapters are one batch for life; raise "
                "output.texts_per_batch"
            )
        if self.privacy.unit == "user" and (not is_many or self.data.user_column is None):
            raise ConfigError("privacy.unit=user needs data.user_column and output.grouping=many")
        if self.privacy.adjacency == "replace" and is_many:
            raise ConfigError(
                "privacy.adjacency=replace with output.grouping=many: an exchanged record may change two shards, which "
                "no row of the price list covers; use add_remove"
            )
        if output.is_open and self.privacy.target_epsilon is None:
            raise ConfigError(
                f"output.{output.open_number} is missing: give it, or privacy.target_epsilon, which then chooses it"
            )
        refuse_private_truncation(output, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)

    def mechanism(self, *, num_labels: int) -> OutputMechanism | Heuristic:
        """Return the mechanism at the price of one unit.

        A record is in one batch. The records of a user may carry every label, and then touch a batch of each. An
        exchanged record leaves one batch and enters another: a range of 4 clip / shards pays for 2 in each, but the
        sensitivity of probability vectors is the same for one that leaves and one that is exchanged, so both pay.
        """
        if self.heuristic is not None:
            return Heuristic(noise=self.heuristic.noise, scale=self.heuristic.scale)
        assert self.output is not None  # checked when built
        adjacency: OutputAdjacency = "replace" if self.privacy.adjacency == "replace" else "null"
        touched = num_labels if self.privacy.unit == "user" and self.source == "in_context" else 1
        if adjacency == "replace" and self.output.mechanism.endswith("_probs"):
            touched = 2
        output = self.output

        def priced(chosen: ShardOutputConfig) -> OutputMechanism:
            return chosen.priced(
                shards=output.shards,
                tokens=output.tokens,
                texts_per_batch=output.texts_per_batch * touched,
                adjacency="many" if output.grouping == "many" else adjacency,
            )

        return priced(output) if output.open_number is None else self._chosen(output, priced)

    def _chosen(
        self, output: ShardOutputConfig, priced: Callable[[ShardOutputConfig], OutputMechanism]
    ) -> OutputMechanism:
        """Return the mechanism that costs the target, and no more: the largest clip, or the least noise."""
        target, delta = self.privacy.target_epsilon, self.privacy.target_delta
        assert target is not None  # checked when built
        if output.open_number == "clip":
            tau = output.temperature or 1.0
            return largest_clip(
                lambda clip: priced(replace(output, clip=clip)), temperature=tau, target_epsilon=target, delta=delta
            )
        return least_scale(lambda scale: priced(replace(output, scale=scale)), target_epsilon=target, delta=delta)

    @property
    def tokens(self) -> int:
        """Longest text."""
        return self.output.tokens if self.output is not None else self.heuristic.tokens  # type: ignore[union-attr]

    @property
    def call_rows(self) -> int:
        """Rows of one forward call; public."""
        if self.heuristic is not None or self.output is None:
            return 1
        if self.source == "adapters":
            return self.output.shards
        if self.rows_per_call is not None:
            return self.rows_per_call
        more = math.ceil(1.5 * math.sqrt(self.output.shards)) if self.output.grouping == "one" else 0
        return self.output.shards + more
