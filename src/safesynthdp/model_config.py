"""The ``model`` and ``lora`` sections of a config.

Here: the keys and what they refuse. Elsewhere: loading (models.py).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safesynthdp.errors import ConfigError

BUILTIN_MODELS = ("smollm2-135m",)


@dataclass(frozen=True, kw_only=True)
class FromScratchConfig:
    """A small Llama with random weights and the byte tokenizer: no files, for tests and first steps."""

    hidden_size: int = 64
    """Width of the residual stream."""
    num_hidden_layers: int = 2
    """Number of blocks."""
    num_attention_heads: int = 4
    """Heads a block; divides hidden_size."""
    intermediate_size: int | None = None
    """Width of the feed-forward layer; null = 4 * hidden_size."""

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built."""
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.from_scratch.{name}={getattr(self, name)}: give a whole number above 0")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ConfigError(
                f"model.from_scratch.hidden_size={self.hidden_size} is not a multiple of 2 * num_attention_heads="
                f"{2 * self.num_attention_heads}; change one of them"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model is fine-tuned: exactly one of ``model_name_or_path`` and ``from_scratch``."""

    model_name_or_path: str | None = None
    """A causal LM by Hugging Face name or local path, or the builtin 'smollm2-135m'."""
    from_scratch: FromScratchConfig | None = None
    """Build a tiny random model instead (keys: hidden_size, num_hidden_layers, ...)."""
    revision: str | None = None
    """Commit or tag on the hub; recorded, so pin it for anything you publish."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage of the frozen base; what is trained is always float32."""
    attn_implementation: str | None = None
    """As in transformers ('sdpa', 'eager', ...); null = its default."""

    def __post_init__(self) -> None:
        """Refuse neither and both; make a local folder absolute, so that a later stage finds it from anywhere.

        A page or card that is published then knows it for a folder: ``ward7/model`` alone looks like a hub's name.
        """
        if (self.model_name_or_path is None) == (self.from_scratch is None):
            raise ConfigError("model.model_name_or_path: give it or model.from_scratch, exactly one of the two")
        name = self.model_name_or_path
        if name == "":
            raise ConfigError("model.model_name_or_path is empty; give a value or leave the key out")
        if name is not None and name not in BUILTIN_MODELS and Path(name).expanduser().is_dir():
            object.__setattr__(self, "model_name_or_path", str(Path(name).expanduser().absolute()))


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) through peft; the base stays frozen."""

    enabled: bool | None = None
    """null = yes for a pretrained model, no for one from scratch."""
    lora_r: int = 16
    """Rank of the adapters."""
    lora_alpha: float = 32
    """Scale: the update is multiplied by lora_alpha / lora_r."""
    lora_dropout: float = 0.0
    """Dropout on the adapters' input."""
    target_modules: list[str] | str = "all-linear"
    """Names of the linear layers that get adapters, or 'all-linear' (all but the head)."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(lora_r) instead."""

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        if self.lora_r < 1:
            raise ConfigError(f"lora.lora_r={self.lora_r}: give a whole number above 0")
        if not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"lora.lora_dropout={self.lora_dropout}: give a number in [0, 1)")
