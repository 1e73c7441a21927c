"""Which texts share something with which: exact copies, 13 words in a row, 50 characters in a row.

Here: hashes of windows, and who meets whom. Elsewhere: the control and the rows (memorisation.py).

A window is hashed to 64 bits with constants that never change (Python's ``hash`` is salted per process). Two windows
that differ get the same hash with probability 2^-64 or so: 10^6 against 10^6 windows meet by chance once in 10^7 runs.
Shapes: P probes (synthetic texts), Q pool records (real texts), M masks (which pool records take part).
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safesynthdp.records import canonical_text

NGRAM_WORDS = 13
RUN_CHARACTERS = 50
_BLOCK = 8_000_000
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_FOLD = np.uint64(0xD6E8FEB86659FD93)
Hashes = NDArray[np.uint64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]
Windows = Callable[[Sequence[str]], Iterator[tuple[Hashes, Ints]]]


@dataclass(frozen=True)
class Check:
    """One way in which two texts can be the same."""

    name: str
    describe: str
    """What two texts share, in words; always in a row."""
    windows: Windows
    """Texts to blocks of (hash, number of its text)."""

    def share_long_enough(self, texts: Sequence[str]) -> float:
        """Return the share of texts that have at least one window: the others cannot match."""
        return float(self.long_enough(texts).mean()) if texts else 0.0

    def long_enough(self, texts: Sequence[str]) -> Bools:
        """Return which texts have at least one window."""
        has_window = np.zeros(len(texts), dtype=np.bool_)
        for _, text_of in self.windows(texts):
            has_window[text_of] = True
        return has_window


def find_matches(check: Check, *, probes: Sequence[str], pool: Sequence[str], masks_MQ: Bools) -> Bools:
    """Return [M, P]: whether a probe shares a window with any pool record inside the mask.

    Work and memory grow with the number of windows, not with pairs, so a phrase that stands in every record is no
    trouble. The pool is hashed again for each block of probes: memory stays bounded for any input.
    """
    matches_MP = np.zeros((len(masks_MQ), len(probes)), dtype=np.bool_)
    for probe_hashes, probe_of in check.windows(probes):
        known, known_of = np.unique(probe_hashes, return_inverse=True)
        met, record_of = meet(known, check.windows(pool))
        for mask_Q, matches_P in zip(masks_MQ, matches_MP, strict=True):
            is_met = np.zeros(len(known), dtype=np.bool_)
            is_met[met[mask_Q[record_of]]] = True
            matches_P[probe_of[is_met[known_of]]] = True
    return matches_MP


def window_hashes(codes: Hashes, length: int) -> Hashes:
    """Return the hash of every ``length`` codes in a row, [n - length + 1].

    A window of 2 k codes is hashed from its two halves, so 50 codes cost 8 passes over the array, not 50.
    """
    if len(codes) < length:
        return np.empty(0, dtype=np.uint64)
    count = len(codes) - length + 1
    level = _mix(codes)
    result, covered, span = level[:0], 0, 1
    while span <= length:
        if length & span:
            part = level[covered : covered + count]
            result = part if not covered else _mix(result * _FOLD + part)
            covered += span
        if 2 * span <= length:
            level = _mix(level[:-span] * _FOLD + level[span:])
        span *= 2
    return result


def meet(known: Hashes, pool: Iterator[tuple[Hashes, Ints]]) -> tuple[Ints, Ints]:
    """Return the pairs (position in ``known``, pool record) of all pool windows whose hash is known."""
    positions, records = [np.empty(0, dtype=np.intp)], [np.empty(0, dtype=np.intp)]
    for hashes, record_of in pool:
        position = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        is_known = known[position] == hashes
        positions.append(position[is_known])
        records.append(record_of[is_known])
    return np.concatenate(positions), np.concatenate(records)


def _mix(values: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele et al. 2014): a bijection in which every input bit moves every output bit."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def _copies(texts: Sequence[str]) -> Iterator[tuple[Hashes, Ints]]:
    """One hash for each text that is not empty."""
    kept = [number for number, text in enumerate(texts) if text.strip()]
    if kept:
        yield np.array([_digest(canonical_text(texts[number])) for number in kept]), np.array(kept, dtype=np.intp)


def _ngrams(texts: Sequence[str]) -> Iterator[tuple[Hashes, Ints]]:
    """Runs of casefolded words."""
    digests = dict[str, np.uint64]()
    for first, block in _blocks(texts):
        words = [canonical_text(text).split() for text in block]
        for word in {word for record in words for word in record} - digests.keys():
            digests[word] = _digest(word)
        codes = np.array([digests[word] for record in words for word in record], dtype=np.uint64)
        yield from _inside(codes, [len(record) for record in words], NGRAM_WORDS, first)


def _runs(texts: Sequence[str]) -> Iterator[tuple[Hashes, Ints]]:
    """Runs of characters; white space of any kind and length counts as one space."""
    for first, block in _blocks(texts):
        plain = [" ".join(text.split()) for text in block]
        points = np.frombuffer("".join(plain).encode("utf-32-le", "surrogatepass"), dtype="<u4")
        yield from _inside(points.astype(np.uint64), [len(text) for text in plain], RUN_CHARACTERS, first)


CHECKS = (
    Check("exact_match", "whole text", _copies),
    Check(f"ngram_{NGRAM_WORDS}", f"{NGRAM_WORDS} words", _ngrams),
    Check(f"chars_{RUN_CHARACTERS}", f"{RUN_CHARACTERS} characters", _runs),
)


def _inside(codes: Hashes, lengths: Sequence[int], window: int, first: int) -> Iterator[tuple[Hashes, Ints]]:
    """Yield the windows that lie inside one text; nothing if there are none."""
    hashes = window_hashes(codes, window)
    text_of = np.repeat(np.arange(first, first + len(lengths), dtype=np.intp), lengths)
    is_inside = text_of[: len(hashes)] == text_of[len(text_of) - len(hashes) :]
    if is_inside.any():
        yield hashes[is_inside], text_of[: len(hashes)][is_inside]


def _blocks(texts: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield (number of the first text, texts) with a bounded number of characters; a longer text stands alone."""
    first, size = 0, 0
    for number, text in enumerate(texts):
        if size and size + len(text) > _BLOCK:
            yield first, texts[first:number]
            first, size = number, 0
        size += len(text)
    if first < len(texts):
        yield first, texts[first:]


def _digest(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()))
