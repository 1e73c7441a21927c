"""The sections of a training config that only training reads.

Here: ``privacy`` (the promise), ``train`` (what is learnt), ``hardware`` (speed and memory, never the guarantee).
Elsewhere: ``data`` (records.py), ``model`` and ``lora`` (models.py).
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from safesynthdp.errors import ConfigError
from safesynthdp.model_config import LoraConfig, ModelConfig
from safesynthdp.records import DataConfig
from safesynthdp.training.tracking import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """The promise. It has no default: give target_epsilon or noise_multiplier, or write ``mode: none``."""

    mode: Literal["dp", "none"] = "dp"
    """'none' trains the same way without clip and noise, and reports no guarantee."""
    target_epsilon: float | None = None
    """Epsilon of everything the run releases (weights, label and token histogram, composed jointly), in nats."""
    noise_multiplier: float | None = None
    """Noise standard deviation / per_sample_max_grad_norm; null = the smallest that meets target_epsilon. With both
    given, training stops before the step that would pass target_epsilon."""
    target_delta: float = 1e-5
    """Delta of the same release; keep it well below 1 / number of records."""
    per_sample_max_grad_norm: float = 1.0
    """L2 bound on one record's gradient."""
    unit: Literal["record", "user"] = "record"
    """Who is protected: one record, or all records of one user (needs data.user_column)."""
    max_records_per_user: int = 1
    """With unit=user: at most this many records of a drawn user join a step, a keyed choice each time; the gradient of
    their mean loss is clipped as one."""
    adjacency: Literal["add_remove", "replace"] = "add_remove"
    """Neighbouring data sets: one unit more or less, or one exchanged (accountant pld only)."""
    accountant: Literal["auto", "prv", "pld", "rdp"] = "auto"
    """How steps compose; 'auto' = prv (Opacus'), or pld for adjacency=replace. With a label histogram the joint
    composition is by pld (or rdp, if chosen), and the release says so."""
    label_histogram_epsilon: float | None = 0.1
    """Epsilon of the noisy label counts that sampling follows (discrete Laplace), composed with the rest; null = no
    histogram: texts are spread uniformly over the labels, at no cost."""
    token_histogram_share: float | None = None
    """Share of target_epsilon that noisy counts of each label's tokens and lengths would cost alone (Gaussian noise),
    composed with the rest; sampling then matches these frequencies, which teaches a model the words of a label with far
    less noise than its weights can. null = no counts. 0.5 is a good first choice."""
    token_histogram_word_buckets: int | None = None
    """Of these counts: a token inside a word is counted together with the word so far, in one of this many hashed
    columns, so that words of several tokens are learnt as words. null = about twice as many as the model knows tokens;
    0 = every token by itself."""
    num_records_is_public: bool = True
    """False lists the number of records under not_covered: the sample rate is computed from it."""
    noise_generator: Literal["keyed", "device"] = "keyed"
    """'keyed' draws the noise of the steps from a cryptographic stream. 'device' draws it where the model is, from a
    generator seeded from OS entropy: faster on a GPU, not cryptographic, and the release says so. Sampling is keyed."""
    unsafe_seed: int | None = None
    """null = keys from OS entropy. A number makes the run reproducible and every later artifact is marked 'seeded: no
    guarantee against whoever knows the seed'."""

    def __post_init__(self) -> None:
        """Refuse a promise that is not one."""
        if self.mode == "none":
            if self.target_epsilon is not None or self.noise_multiplier is not None:
                raise ConfigError("privacy.mode=none makes no promise; remove target_epsilon and noise_multiplier")
        elif self.target_epsilon is None and self.noise_multiplier is None:
            raise ConfigError("privacy.target_epsilon is null; give it, or privacy.noise_multiplier, or mode: none")
        for name in ("target_epsilon", "noise_multiplier", "per_sample_max_grad_norm", "label_histogram_epsilon"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"privacy.{name}={value}: give a finite number above 0")
        share = self.token_histogram_share
        if share is not None and not 0 < share < 1:
            raise ConfigError(f"privacy.token_histogram_share={share} is outside (0, 1); give 0.5, say, or null")
        if share is not None and self.mode == "dp" and self.target_epsilon is None:
            raise ConfigError(
                f"privacy.token_histogram_share={share} is a share of privacy.target_epsilon, which is null; give it"
            )
        buckets = self.token_histogram_word_buckets
        if buckets is not None and buckets < 0:
            raise ConfigError(f"privacy.token_histogram_word_buckets={buckets}: give a whole number, 0 or null")
        if not 0 < self.target_delta < 1:
            raise ConfigError(f"privacy.target_delta={self.target_delta} is outside (0, 1); give, say, 1e-5")
        self._check_users()
        self._settle_accountant()

    def _settle_accountant(self) -> None:
        """Put a name in the place of 'auto', so that config.yaml and the ledger say which one it was."""
        if self.accountant == "auto":
            object.__setattr__(self, "accountant", "pld" if self.adjacency == "replace" else "prv")
        if self.adjacency == "replace" and self.accountant != "pld":
            raise ConfigError(f"privacy.accountant={self.accountant} knows only add_remove; use pld with replace")

    def _check_users(self) -> None:
        if self.max_records_per_user < 1:
            raise ConfigError(f"privacy.max_records_per_user={self.max_records_per_user}: give a whole number above 0")
        if self.max_records_per_user > 1 and self.unit == "record":
            raise ConfigError(
                f"privacy.max_records_per_user={self.max_records_per_user} has no meaning with unit=record; set "
                "privacy.unit=user"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is learnt. ``seed`` reaches initialisation and dropout only, never the draw or the noise."""

    expected_batch_size: int = 64
    """Mean of the Poisson batch; the public divisor of every update."""
    max_steps: int | None = None
    """Optimizer steps; an empty draw counts too."""
    num_train_epochs: float | None = None
    """Instead of max_steps: round(epochs / sample rate) steps, fixed at the start."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "linear"
    """Decay after the warm-up, as in transformers."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    weight_decay: float = 0.0
    """AdamW's decay."""
    adam_beta1: float = 0.9
    """AdamW's first decay rate."""
    adam_beta2: float = 0.999
    """AdamW's second decay rate."""
    adam_epsilon: float = 1e-8
    """AdamW's denominator guard."""
    seed: int = 0
    """Initialisation, and together with a secret key dropout."""
    logging_steps: int = 1
    """Steps between lines of metrics.jsonl."""
    save_steps: int = 10
    """Steps between resumable states."""

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        if (self.max_steps is None) == (self.num_train_epochs is None):
            raise ConfigError("train.max_steps: give it or train.num_train_epochs, exactly one of the two")
        for name in ("expected_batch_size", "max_steps", "logging_steps", "save_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"train.{name}={value}: give a whole number above 0")
        for name in ("learning_rate", "num_train_epochs", "adam_epsilon"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"train.{name}={value}: give a finite number above 0")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"train.{name}={getattr(self, name)} is outside [0, 1)")
        if not 0 <= self.weight_decay < math.inf or self.warmup_steps < 0:
            raise ConfigError("train.weight_decay and train.warmup_steps must not be negative")


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """Speed and memory. Changing anything here never changes the guarantee."""

    max_tokens_per_microbatch: int = 2048
    """Rows x padded length of a physical batch; records are sorted by length first."""
    physical_batch_size: int | None = None
    """At most this many records in memory at once; null = max_tokens_per_microbatch decides alone."""
    clipping_engine: Literal["auto", "bookkeeping", "ghost", "hooks"] = "auto"
    """How per-record gradients are bounded: one backward pass (bookkeeping), or Opacus' ghost clipping or per-record
    gradients (hooks). All are exact; 'auto' takes the fastest that fits the model and says why."""
    mixed_precision: Literal["no"] = "no"
    """Autocast; model.dtype=bfloat16 stores the frozen base smaller instead."""
    float32_matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Of the passes through the model, as in torch.set_float32_matmul_precision: 'medium' rounds the factors of a
    product to bfloat16 where that is faster (AMX, AVX512-BF16, GPUs), 'high' to TF32. Norms and sums stay in full
    float32. Needs hardware.clipping_engine=bookkeeping (or auto, where that is what it takes)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    sharding: Literal["auto", "none", "frozen_base", "full"] = "auto"
    """'frozen_base' shards what is not trained over the processes (FSDP2; with LoRA), 'full' shards everything, with
    sums and moments (full fine-tuning), 'none' keeps the whole model on each; 'auto' = the one that fits when launched
    with an FSDP config (accelerate_configs/fsdp2.yaml), else none."""
    num_processes: int | None = None
    """Processes this run must find itself with, else it stops before it reads anything; null = as many as launched."""
    meeting_seconds: float = 120.0
    """Seconds within which all processes must have started, else those that came end and name the others."""
    silence_seconds: float = 60.0
    """Seconds without a sign of life after which a process counts as lost (killed, suspended, out of reach) and the
    others end; the same command goes on. A busy process gives signs of life."""
    waiting_seconds: float = 1800.0
    """Seconds that a live but busy process (a download, a search for the noise) may keep the others waiting."""

    def __post_init__(self) -> None:
        """Refuse sizes without a meaning."""
        if self.max_tokens_per_microbatch < 1:
            raise ConfigError(
                f"hardware.max_tokens_per_microbatch={self.max_tokens_per_microbatch}: give a whole number above 0"
            )
        if self.physical_batch_size is not None and self.physical_batch_size < 1:
            raise ConfigError(f"hardware.physical_batch_size={self.physical_batch_size}: give a whole number above 0")
        for name in ("meeting_seconds", "silence_seconds", "waiting_seconds"):
            if not 1 <= getattr(self, name) <= 1e6:
                raise ConfigError(f"hardware.{name}={getattr(self, name)} is outside [1, 1e6]; give seconds")
        if self.num_processes is not None and self.num_processes < 1:
            raise ConfigError(f"hardware.num_processes={self.num_processes}: give a whole number above 0")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Fine-tune a language model on labelled private text with DP-SGD, and write down what it cost."""

    output_dir: str
    """Where everything of this run goes; the same command resumes it."""
    model: ModelConfig
    """The model."""
    data: DataConfig
    """The private records."""
    privacy: PrivacyConfig
    """The promise."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters."""
    train: TrainConfig
    """What is learnt."""
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    """Speed and memory."""
    resume_with_new_segment: bool = False
    """Let an unfinished run go on with another promise (noise, clip, batch, steps, records), which is otherwise
    refused: its ledger gets a further entry, all entries are composed, and privacy.target_epsilon covers them together.
    train.max_steps counts the steps already spent."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Trackers."""
    dry_run: bool = False
    """Say what the run would need (memory by part, steps, noise, epsilon, time) for hardware.num_processes processes;
    load no weight, draw nothing, write nothing."""

    def __post_init__(self) -> None:
        """Refuse sections that contradict one another."""
        if not self.output_dir:
            raise ConfigError("output_dir is empty; give a directory")
        if self.privacy.unit == "user" and self.data.user_column is None:
            raise ConfigError("privacy.unit=user needs data.user_column, the column that names the user")
