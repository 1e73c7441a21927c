"""Where a token is counted: under itself; inside a word, under the word so far; the end, under the length of the text.

A word of several tokens ("n", "ok", "ia") is not known by them one by one: they occur in other words too. So a token
that goes on with a word is counted in a bucket named by the tokens of that word up to it. The buckets are a public
hash, as the feature hashing of Weinberger et al. (2009), arXiv:0902.2206; nothing here reads a record but the one it is
given. The token that ends a text is counted under how many tokens stand before it, four columns an octave. Used by the
table (training/token_counts.py) and by the bias (generation/steering.py). Shapes: V tokens, M buckets, E lengths, C = V
+ M + E columns, R rows, T tokens of a text, W tokens that begin with a letter, digit or underscore.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from safesynthdp.errors import ConfigError
from safesynthdp.models import token_id

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

NO_WORD = -1
"""The state of a row whose last token ends no word that could go on."""
_PRIME = 2**31 - 1
_MULTIPLIER, _STEP = 1_103_515_245, 1_640_531_527
"""Below 2^31, so that a product of two states fits 64 bits."""
_RARE, _LEAST_WEIGHT = 3000, 0.1
LENGTHS = 64
"""E: up to 2^16 tokens."""
_AN_OCTAVE = 4
_END_WEIGHT = 0.5
"""A record has one end: a tenth of it, as a frequent token has, would drown where it is told apart by length."""
_IN_WORD = re.compile(r"\w")


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one text adds to the columns."""

    columns_U: NDArray[np.int64]
    """The U columns it uses, rising."""
    counts_U: NDArray[np.float64]
    norm: float
    """L2 norm of its counts times their weights; 1 for an empty text."""


@dataclass(frozen=True, kw_only=True)
class WordColumns:
    """The columns of one tokenizer; everything in it is public."""

    num_tokens: int
    """V: the width of the model's logits."""
    num_buckets: int
    """M; 0: a token has its own column wherever it stands."""
    begins_V: NDArray[np.bool_] = field(repr=False)
    """Tokens that go on with a word when one stands before them."""
    ends_V: NDArray[np.bool_] = field(repr=False)
    """Tokens after which a word may go on."""
    num_lengths: int = 0
    """E; 0: the end of a text is a token like any other."""
    end_token: int = -1
    """The token that ends a text, told by its length where E is not 0; its own column then holds cut texts."""

    @classmethod
    def plain(cls, num_tokens: int) -> "WordColumns":
        """Return one column a token."""
        nowhere_V = np.zeros(num_tokens, dtype=np.bool_)
        return cls(num_tokens=num_tokens, num_buckets=0, begins_V=nowhere_V, ends_V=nowhere_V)

    @classmethod
    def of(
        cls,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        num_tokens: int,
        num_buckets: int | None = None,
        num_lengths: int = LENGTHS,
    ) -> "WordColumns":
        """Return the columns of a tokenizer, whose special tokens belong to no word.

        Args:
            tokenizer: Whose pieces decide where words begin.
            num_tokens: V.
            num_buckets: M; None = the least power of two that is twice V or more.
            num_lengths: E.

        Raises:
            ConfigError: If there are fewer buckets than tokens: two tokens after one word could share one.
        """
        if num_buckets is None:
            num_buckets = 1 << (2 * num_tokens - 1).bit_length()
        if num_buckets != 0 and num_buckets < num_tokens:
            raise ConfigError(
                f"privacy.token_histogram_word_buckets={num_buckets} is below the {num_tokens} logits of the model; "
                "give at least so many, null for twice as many, or 0"
            )
        begins_V, ends_V = np.zeros((2, num_tokens), dtype=np.bool_)
        special = set(tokenizer.all_special_ids)
        for token, piece in enumerate(_pieces(tokenizer, min(num_tokens, len(tokenizer))) if num_buckets else ()):
            if piece and token not in special:
                begins_V[token], ends_V[token] = (bool(_IN_WORD.match(piece[at])) for at in (0, -1))
        return cls(
            num_tokens=num_tokens,
            num_buckets=num_buckets,
            begins_V=begins_V,
            ends_V=ends_V,
            num_lengths=num_lengths,
            end_token=token_id(tokenizer.eos_token_id),
        )

    @property
    def width(self) -> int:
        """C."""
        return self.first_length + self.num_lengths

    @property
    def first_length(self) -> int:
        """The column of the end of an empty text."""
        return self.num_tokens + self.num_buckets

    @cached_property
    def weight_C(self) -> NDArray[np.float64]:
        """How much a column weighs, above 0 and at most 1.

        A record's contribution has norm 1, and half of it would go to commas and articles, which are known well through
        any noise. Vocabularies list their tokens about as they are frequent in public text (byte-pair encoding in the
        order of its merges), so a token weighs by the root of its place in the list, up to where words are rare.
        """
        place_V = np.arange(1, self.num_tokens + 1, dtype=np.float64)
        weight_V = np.clip(np.sqrt(place_V / min(_RARE, self.num_tokens)), _LEAST_WEIGHT, 1.0)
        if self.num_lengths:
            weight_V[self.end_token] = _END_WEIGHT
        return np.concatenate([weight_V, np.ones(self.num_buckets), np.full(self.num_lengths, _END_WEIGHT)])

    def contribution(self, tokens: Sequence[int], *, is_cut: bool = False) -> Contribution:
        """Return what a text adds; one that was cut and has no end is counted as that, where lengths are counted."""
        columns_T = self.columns(tokens)
        if is_cut and self.num_lengths:
            columns_T = np.append(columns_T, self.end_token)
        columns_U, counts_U = np.unique(columns_T, return_counts=True)
        weighted_U = counts_U * self.weight_C[columns_U]
        norm = math.sqrt(float(weighted_U @ weighted_U)) or 1.0
        return Contribution(columns_U=columns_U, counts_U=counts_U.astype(np.float64), norm=norm)

    def columns(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        """Return [T] the column of each token of a text, which begins outside any word."""
        columns_T = self._in_words(tokens) if self.num_buckets else np.array(tokens, dtype=np.int64)
        if self.num_lengths:
            for place in np.flatnonzero(np.asarray(tokens) == self.end_token):
                columns_T[place] = self.end_column(int(place))
        return columns_T

    def end_column(self, length: int) -> int:
        """Return the column of the end of a text of so many tokens."""
        return self.first_length + min(int(_AN_OCTAVE * math.log2(length + 1)), self.num_lengths - 1)

    def end_norms(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Return [T + 1] the norm of a text's contribution if it had ended after its first 0, 1, ... T tokens."""
        squares, counts, norms = _END_WEIGHT**2, Counter[int](), list[float]()
        for column in [*self.columns(tokens).tolist(), None]:
            norms.append(math.sqrt(squares))
            if column is not None:
                squares += self.weight_C[column] ** 2 * (2 * counts[column] + 1)
                counts[column] += 1
        return np.asarray(norms)

    def _in_words(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        found, state = np.empty(len(tokens), dtype=np.int64), NO_WORD
        for place, token in enumerate(int(token) for token in tokens):
            goes_on = state != NO_WORD and bool(self.begins_V[token])
            found[place] = self.num_tokens + (state + token) % self.num_buckets if goes_on else token
            state = _next(state if goes_on else 0, token) if self.ends_V[token] else NO_WORD
        return found

    def first_bucket(self, state_R: "Tensor") -> "Tensor":
        """Return [R] the bucket of token 0 after the words of these states; of token t it is t further on, round M."""
        return state_R % self.num_buckets

    def follow(self, state_R: "Tensor", tokens_R: "Tensor", *, begins_V: "Tensor", ends_V: "Tensor") -> "Tensor":
        """Return [R] the states after these tokens; the same numbers as ``columns`` goes through."""
        before_R = state_R * ((state_R != NO_WORD) & begins_V[tokens_R])
        after_R: Tensor = _next(before_R, tokens_R).where(ends_V[tokens_R], NO_WORD)
        return after_R


def _next(state: Any, token: Any) -> Any:
    return (state * _MULTIPLIER + (token + 1) * _STEP) % _PRIME


def _pieces(tokenizer: "PreTrainedTokenizerBase", count: int) -> list[str]:
    """Return what each token adds to a text that ends with a letter: some tokenizers drop a space at the beginning."""
    options = {"clean_up_tokenization_spaces": False}
    letter = tokenizer.encode("a", add_special_tokens=False)
    length = len(tokenizer.decode(letter, **options))
    return [text[length:] for text in tokenizer.batch_decode([[*letter, t] for t in range(count)], **options)]
