"""The ``output`` section: a mechanism at sampling time, and what it may look at.

Here: keys and what they refuse. Elsewhere: the mechanisms and their prices (privacy/output_*.py).
"""

from dataclasses import dataclass
from typing import Any, Literal

from safesynthdp.errors import ConfigError
from safesynthdp.privacy.output_draws import Decoding
from safesynthdp.privacy.output_pricing import OutputMechanism
from safesynthdp.privacy.output_registry import output_mechanism

Mechanism = Literal["softmax", "laplace", "gaussian_l2", "laplace_probs", "gaussian_probs", "uniform_mix"]
CLIPPED: tuple[str, ...] = ("softmax", "laplace", "gaussian_l2")
VECTORS: tuple[str, ...] = ("gaussian_l2", "laplace_probs", "gaussian_probs")
"""Mechanisms that give a noisy vector, which any decoding may read."""


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Noise at sampling time. The numbers are those of ``safesynthdp account output``."""

    mechanism: Mechanism = "softmax"
    """softmax: drawing from clipped scores is itself the noise. The others are named by the paper."""
    clip: float | None = None
    """Bound on what a shard does to a score; needed by softmax, laplace and gaussian_l2."""
    clip_rule: Literal["difference", "recentre"] = "difference"
    """difference: clip private minus public logits. recentre: clip the logits themselves, without a public model."""
    scale: float | None = None
    """Laplace scale or Gaussian standard deviation."""
    temperature: float | None = None
    """Of the softmax mechanism (null = 1), or of sampling after laplace (null = argmax). It is part of the price."""
    mixing: float | None = None
    """Weight of the private distribution in uniform_mix."""
    vocab_size: int | None = None
    """Width of the model's logits, for uniform_mix."""
    public_top_k: int | None = 100
    """Candidates: the k likeliest tokens of the *public* model and those within reach of them; null = all."""

    def __post_init__(self) -> None:
        """Refuse what has no price; the numbers themselves are checked by the mechanism."""
        if self.mechanism in CLIPPED and self.clip is None and not self.is_open:
            raise ConfigError(f"output.clip is missing: without it mechanism={self.mechanism} bounds nothing; give it")
        if self.public_top_k is not None and self.public_top_k < 1:
            raise ConfigError(f"output.public_top_k={self.public_top_k}: give a whole number above 0, or null for all")
        if self.mechanism == "uniform_mix" and self.public_top_k is not None:
            raise ConfigError(
                f"output.public_top_k={self.public_top_k}: mechanism=uniform_mix draws from the whole vocabulary; set "
                "public_top_k to null"
            )
        if self.clip_rule == "recentre" and self.mechanism not in CLIPPED:
            raise ConfigError(f"output.clip_rule=recentre: mechanism={self.mechanism} clips nothing; leave it out")

    @property
    def is_open(self) -> bool:
        """Whether a number is left to be chosen by the budget; here none may be."""
        return False

    @property
    def needs_public_model(self) -> bool:
        """Whether public logits are looked at: for the clip or for the candidates."""
        return self.public_top_k is not None or (self.mechanism in CLIPPED and not self.is_recentred)

    @property
    def is_recentred(self) -> bool:
        """Whether public logits stay out of the scores."""
        return self.clip_rule == "recentre"

    def priced(self, **public: Any) -> OutputMechanism:
        """Return the mechanism with the shards, tokens and texts it is priced for.

        Raises:
            ConfigError: Under the key of this section, if a number is missing, foreign or out of range.
        """
        numbers = {key: getattr(self, key) for key in ("clip", "scale", "temperature", "mixing", "vocab_size")}
        try:
            priced = output_mechanism(self.mechanism, **numbers, **public)
            priced.refuse_draws()
        except ConfigError as error:
            raise ConfigError(f"output.{error}") from error
        return priced


@dataclass(frozen=True, kw_only=True)
class ModelOutputConfig(OutputConfig):
    """Noise at sampling time on one model that saw every record."""

    single: bool = False
    """Must be true: one model is one shard, and the range of its scores is four times the clip."""
    weights_withheld: bool = False
    """The weights are never released: the text then carries the smaller of both guarantees. Otherwise the noise adds
    nothing to theirs."""

    def __post_init__(self) -> None:
        """Refuse one shard that is not owned up to."""
        super().__post_init__()
        if not self.single:
            raise ConfigError(
                "output.single=false: one model is one shard, which costs four times the clip a token; say "
                "--output.single true if that is meant"
            )
        if self.clip_rule == "recentre" and self.public_top_k is not None:
            raise ConfigError(
                f"output.public_top_k={self.public_top_k} needs a public model and clip_rule=recentre has none: the k "
                "likeliest tokens of a private model are private; set public_top_k to null"
            )


def refuse_other_vocabulary(output: OutputConfig | None, model: Any) -> None:
    """Refuse a ``vocab_size`` that is not the width of the model's logits, before anything is begun.

    Raises:
        ConfigError: Naming the key.
    """
    if output is None or output.vocab_size is None:
        return
    from safesynthdp.models import logits_width

    width = logits_width(model)
    if output.vocab_size != width:
        raise ConfigError(f"output.vocab_size={output.vocab_size} is not the width of the model's logits; set {width}")


def refuse_private_truncation(output: OutputConfig, *, temperature: float, top_k: int, top_p: float) -> Decoding:
    """Return the decoding of a noisy vector; refuse one where there is no noisy vector to read.

    Raises:
        ConfigError: If a mechanism whose draw is the noise is combined with a decoding of private logits.
    """
    given = [
        (name, value)
        for name, value, free in (("temperature", temperature, 1.0), ("top_k", top_k, 0), ("top_p", top_p, 1.0))
        if value != free
    ]
    if given and output.mechanism not in VECTORS:
        name, value = given[0]
        raise ConfigError(
            f"{name}={value} would read private logits, which no epsilon pays for; mechanism={output.mechanism} takes "
            "output.temperature and output.public_top_k"
        )
    return Decoding(temperature=temperature, top_k=top_k, top_p=top_p)
