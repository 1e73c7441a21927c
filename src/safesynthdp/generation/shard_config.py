"""The ``prompts`` and ``adapters`` sections: what a shard of private records is turned into.

Here: keys and what they refuse. Elsewhere: the prompts (shard_prompts.py), the adapters (shard_adapters.py).
"""

import math
from dataclasses import dataclass

from safesynthdp.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """The public words around private records."""

    template: str = "Here is a {label}:\n{text}\n\nHere is another {label}:\n"
    """Holds {text} once, and {label}; the model goes on where it ends."""
    public_text: str = ""
    """Stands in for {text} in the public prompt: nothing, or an example of your own that is public."""
    max_record_tokens: int = 64
    """What a shard may say, tokens; records are cut."""
    separator: str = "\n"
    """Between the records of one shard."""

    def __post_init__(self) -> None:
        """Refuse templates without a place for the record."""
        if self.template.count("{text}") != 1 or "{label}" not in self.template:
            raise ConfigError(f"prompts.template={self.template!r} must hold {{text}} exactly once, and {{label}}")
        if self.max_record_tokens < 1:
            raise ConfigError(f"prompts.max_record_tokens={self.max_record_tokens}: give a whole number above 0")


@dataclass(frozen=True, kw_only=True)
class ShardTraining:
    """How each adapter is trained; the same public numbers for all."""

    max_steps: int = 30
    """Optimizer steps of an adapter."""
    batch_size: int = 8
    """Records a step."""
    learning_rate: float = 1e-3
    """Of AdamW, constant."""
    seed: int = 0
    """Initialisation and order; public."""

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        for name in ("max_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"adapters.{name}={getattr(self, name)}: give a whole number above 0")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"adapters.learning_rate={self.learning_rate}: give a finite number above 0")
