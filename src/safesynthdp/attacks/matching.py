"""Long word runs that a released corpus shares with an audited record and with no reference text.

Here: who shares one, and the test of "no leakage" that follows. Elsewhere: n-gram models (ngram.py), bounds on epsilon
(bounds.py): this gives none. numpy and scipy.special only.

If nothing leaks, which M records happen to match is independent of their coins, so of the M matches the number of
members is Bin(M, 1/2).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from safesynthdp.attacks.ngram import words_of
from safesynthdp.errors import DataError

MATCH_WORDS = 8
"""Fewer words in a row are said by chance."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
Hashes = NDArray[np.uint64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class MatchTest:
    """A test of "no leakage"; it says nothing about epsilon."""

    matched: int
    """M: audited records that share a long run with the corpus."""
    members: int
    """a: members among them."""
    p_value: float
    """``P[Bin(M, 1/2) >= a]``; 1 without a match."""


def long_matches(
    corpus: Sequence[str], texts: Sequence[str], *, reference: Sequence[str] = (), words: int = MATCH_WORDS
) -> Bools:
    """Return [R]: whether a text shares ``words`` words in a row with the corpus, in a run no reference text has.

    Runs are compared by a 64-bit hash with fixed constants: 10^6 against 10^6 different runs meet by chance once in
    10^7 audits.

    Args:
        corpus: The released texts.
        texts: The audited records, R of them.
        reference: Texts that were never trained on; a run that stands there is common knowledge.
        words: Length of a run, at least 2.

    Raises:
        DataError: If ``words`` is below 2.
    """
    if words < 2:
        raise DataError(f"words={words}: one word alone is no run; give at least 2, such as {MATCH_WORDS}")
    released, _ = _runs(corpus, words)
    telling = np.setdiff1d(released, _runs(reference, words)[0])
    runs, text_of = _runs(texts, words)
    found = np.zeros(len(texts), dtype=np.bool_)
    found[text_of[np.isin(runs, telling)]] = True
    return found


def match_test(is_matched: Bools, is_member: Bools) -> MatchTest:
    """Test whether more of the matched records are members than fair coins explain."""
    matched, members = int(is_matched.sum()), int((is_matched & is_member).sum())
    p_value = 1.0 if members == 0 else float(betainc(members, matched - members + 1, 0.5))
    return MatchTest(matched=matched, members=members, p_value=p_value)


def _runs(texts: Sequence[str], words: int) -> tuple[Hashes, NDArray[np.int64]]:
    """Return the hash of each run of ``words`` words, and the number of its text."""
    numbers, codes, lengths = dict[str, int](), list[int](), list[int]()
    for text in texts:
        found = words_of(text)
        lengths.append(len(found))
        for word in found:
            if word not in numbers:
                numbers[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
            codes.append(numbers[word])
    flat = np.asarray(codes, dtype=np.uint64)
    count = max(0, flat.size - words + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(words):
            hashes = (hashes ^ flat[offset : offset + count]) * _MULTIPLIER
            hashes ^= hashes >> np.uint64(29)
    text_of = np.repeat(np.arange(len(texts)), lengths)
    is_whole = text_of[:count] == text_of[words - 1 : words - 1 + count]
    return hashes[is_whole], text_of[:count][is_whole]
