"""Prompts of private prediction in context: one for every shard, and the same words without a record.

Here: from records to token ids of at most a public length. Elsewhere: which records a shard holds (partition.py).

Guarantee:
    A prompt depends on the records of its shard, the public template and the public tokenizer. Its length is at most
    ``width``, a function of public numbers: longer records are cut.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from safesynthdp.errors import ConfigError
from safesynthdp.generation.shard_config import PromptsConfig
from safesynthdp.models import token_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptMaker:
    """Makes the prompts of one tokenizer and template."""

    def __init__(
        self,
        config: PromptsConfig,
        *,
        tokenizer: "PreTrainedTokenizerBase",
        labels: Sequence[str],
        called: Callable[[str], str] = str,
    ) -> None:
        """``called`` gives the public words that stand for a label (data.label_descriptions)."""
        self._config, self._tokenizer = config, tokenizer
        before, after = config.template.split("{text}")
        start = tokenizer.bos_token_id if getattr(tokenizer, "add_bos_token", False) else None
        head = () if start is None else (token_id(start),)
        self._heads = {label: (*head, *self._public(before.replace("{label}", called(label)))) for label in labels}
        self._tails = {label: self._public(after.replace("{label}", called(label))) for label in labels}
        if any(not self._tails[label] and not self._heads[label] for label in labels):
            raise ConfigError("prompts.template encodes to no token; give it at least one word")
        self.width = max(len(self._heads[x]) + len(self._tails[x]) for x in labels) + config.max_record_tokens
        self.public_width = max(len(self.public(label)) for label in labels)

    def private(self, label: str, texts: Sequence[str]) -> tuple[int, ...]:
        """Return the prompt of a shard with these records."""
        joined = self._config.separator.join(texts)
        encoded = self._tokenizer(joined, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return (*self._heads[label], *encoded["input_ids"][: self._config.max_record_tokens], *self._tails[label])

    def public(self, label: str) -> tuple[int, ...]:
        """Return the prompt without a record."""
        middle = self._public(self._config.public_text)[: self._config.max_record_tokens]
        return (*self._heads[label], *middle, *self._tails[label])

    def _public(self, words: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(words, add_special_tokens=False)["input_ids"]) if words else ()
