"""From drawn tokens to text, with a mark on what is not a clean text.

Here: decoding, and the counts of empty, truncated and malformed texts. Elsewhere: drawing (decoding.py). Nothing is
dropped or repaired beyond the replacement character: discarding bad texts would flatter every number computed later.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safesynthdp.generation.decoding import DrawnRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
FLAWS: tuple[str, ...] = ("empty", "truncated", "malformed")


@dataclass(frozen=True, kw_only=True)
class SampledText:
    """One synthetic text and what is wrong with it."""

    number: int
    """Its row."""
    text: str
    """As drawn. The prompt, with whatever separates it from the text, was never part of it, so nothing is stripped."""
    num_tokens: int
    """Without the end."""
    is_empty: bool
    """Nothing but white space."""
    is_truncated: bool
    """The end-of-text token did not come in time."""
    is_malformed: bool
    """Bytes that are no UTF-8 (shown as U+FFFD), special tokens or ids outside the vocabulary (left out)."""


class TextDecoder:
    """Turns rows of tokens into texts."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        from transformers import ByT5Tokenizer

        self._tokenizer = tokenizer
        self._num_ids = len(tokenizer)
        self._special = frozenset(tokenizer.all_special_ids)
        self._byte_offset = tokenizer.offset if isinstance(tokenizer, ByT5Tokenizer) else None

    def __call__(self, drawn: DrawnRow) -> SampledText:
        """Return the row as text."""
        plain = [token for token in drawn.tokens if token < self._num_ids and token not in self._special]
        text = self._decode(plain)
        return SampledText(
            number=drawn.number,
            text=text,
            num_tokens=len(drawn.tokens),
            is_empty=not text.strip(),
            is_truncated=drawn.is_truncated,
            is_malformed=len(plain) < len(drawn.tokens) or REPLACEMENT in text,
        )

    def _decode(self, tokens: list[int]) -> str:
        """Decode as the tokenizer does; but that of ByT5 drops bad bytes in silence, so its bytes are read here."""
        if self._byte_offset is not None:
            return bytes(token - self._byte_offset for token in tokens).decode(errors="replace")
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def count_flaws(texts: Iterable[SampledText]) -> dict[str, int]:
    """Return how many texts are empty, truncated, malformed; one text may count in several."""
    counts = dict.fromkeys(FLAWS, 0)
    for text in texts:
        for flaw in FLAWS:
            counts[flaw] += bool(getattr(text, f"is_{flaw}"))
    return counts
