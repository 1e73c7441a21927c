"""n-gram models of a corpus: what a text channel attack reads off released text.

Here: one vocabulary for all corpora, Laplace-smoothed n-gram models, the log-probability of each record. Elsewhere:
the attacks that compare corpora (pool_scores.py), long matches (matching.py). Source: Meeus et al. (2025),
arXiv:2502.14921. numpy only. Shapes: R texts, W words of all texts together, V words of the vocabulary.

``P(w | h) = (c(h w) + 1) / (c(h) + V)``, where c(h) counts h as a context; a record's score is the sum of log P over
its words and its end mark. A word that is not in the vocabulary is the one unknown word.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safesynthdp.errors import DataError
from safesynthdp.records import canonical_text

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
ORDERS = (2, 3)
"""Word n-grams of these lengths are stored."""
UNKNOWN, END, START = 0, 1, 2
"""The unknown word and the end mark are words of the vocabulary; the start mark is only ever a context."""
_MARKS = 3


@dataclass(frozen=True)
class Vocabulary:
    """Words and their numbers, built once from all records, members and non-members alike.

    A vocabulary per corpus would make scores of two corpora incomparable; one built from members alone would leak.
    """

    numbers: dict[str, int]

    @classmethod
    def build(cls, texts: Iterable[str]) -> "Vocabulary":
        """Number the words of ``texts``; the order of the texts does not matter."""
        words = sorted({word for text in texts for word in words_of(text)})
        return cls({word: number for number, word in enumerate(words, start=_MARKS)})

    @property
    def size(self) -> int:
        """V: the words, the unknown word and the end mark."""
        return len(self.numbers) + 2

    def encode(self, texts: Sequence[str], *, order: int) -> "Encoded":
        """Return the numbers of the words, each text with order - 1 start marks and one end mark."""
        rows = [[START] * (order - 1) + [self.numbers.get(w, UNKNOWN) for w in words_of(t)] + [END] for t in texts]
        lengths = np.asarray([len(row) for row in rows], dtype=np.int64)
        flat = np.fromiter((number for row in rows for number in row), dtype=np.int64, count=int(lengths.sum()))
        return Encoded(flat, lengths)


@dataclass(frozen=True)
class Encoded:
    """Texts as numbers, one after the other."""

    words_W: Ids
    lengths_R: Ids
    """Of each text, marks included."""

    def windows(self, length: int, *, base: int) -> tuple[Ids, Ids]:
        """Return the code of each run of ``length`` words within a text, and the number of its text.

        Raises:
            DataError: If the vocabulary is too large for codes of 63 bits.
        """
        if base**length > np.iinfo(np.int64).max:
            raise DataError(f"{length}-grams over {base} words have no code of 63 bits; audit fewer records at once")
        count = max(0, len(self.words_W) - length + 1)
        codes = np.zeros(count, dtype=np.int64)
        for offset in range(length):
            codes = codes * base + self.words_W[offset : offset + count]
        text_of = np.repeat(np.arange(len(self.lengths_R)), self.lengths_R)
        is_whole = text_of[:count] == text_of[length - 1 : length - 1 + count]
        return codes[is_whole], text_of[:count][is_whole]


@dataclass(frozen=True)
class NgramModel:
    """Counts of one corpus."""

    order: int
    vocabulary_size: int
    """V of the smoothing."""
    base: int
    """Larger than every number of a word: codes are numbers to this base."""
    grams: tuple[Ids, Ids]
    """Sorted codes of the n-grams seen, and how often."""
    contexts: tuple[Ids, Ids]
    """The same of their first n - 1 words."""

    @classmethod
    def fit(cls, corpus: Encoded, *, order: int, vocabulary_size: int, base: int) -> "NgramModel":
        """Count a corpus.

        Args:
            corpus: Encoded with this order, or without marks.
            order: n, at least 2.
            vocabulary_size: V.
            base: Larger than every number of a word.
        """
        codes, _ = corpus.windows(order, base=base)
        grams, contexts = (np.unique(found, return_counts=True) for found in (codes, codes // base))
        return cls(order, vocabulary_size, base, (grams[0], grams[1]), (contexts[0], contexts[1]))

    def log_probs(self, texts: Encoded) -> Floats:
        """Return ``sum log P(w | h)`` over the n-grams of each text, [R]; 0 for a text without any."""
        codes, text_of = texts.windows(self.order, base=self.base)
        seen, context = _count(self.grams, codes), _count(self.contexts, codes // self.base)
        logs = np.log(seen + 1.0) - np.log(context + float(self.vocabulary_size))
        return np.bincount(text_of, weights=logs, minlength=len(texts.lengths_R)).astype(np.float64)


def ngram_signals(corpus: Sequence[str], texts: Sequence[str], *, vocabulary_texts: Sequence[str]) -> dict[str, Floats]:
    """Return ``ngram2_lp`` and ``ngram3_lp`` of each text under models of ``corpus``, [R] each.

    Args:
        corpus: The released texts.
        texts: The audited records, R of them.
        vocabulary_texts: All records of the pool, IN and OUT alike, the same for every corpus.

    Raises:
        DataError: If the corpus is empty.
    """
    if not corpus:
        raise DataError("the corpus that is attacked has no text; generate again with num_records above 0")
    vocabulary, found = Vocabulary.build(vocabulary_texts), dict[str, Floats]()
    for order in ORDERS:
        counted = {"order": order, "vocabulary_size": vocabulary.size, "base": vocabulary.size + 1}
        model = NgramModel.fit(vocabulary.encode(corpus, order=order), **counted)
        found[f"ngram{order}_lp"] = model.log_probs(vocabulary.encode(texts, order=order))
    return found


def words_of(text: str) -> list[str]:
    """Return the words of the canonical form: case, punctuation and white space do not count."""
    return canonical_text(text).split()


def _count(counted: tuple[Ids, Ids], codes: Ids) -> NDArray[np.int64]:
    """Return how often each code was seen."""
    known, times = counted
    if not known.size:
        return np.zeros(codes.size, dtype=np.int64)
    place = np.minimum(np.searchsorted(known, codes), known.size - 1)
    found: NDArray[np.int64] = np.where(known[place] == codes, times[place], 0)
    return found
