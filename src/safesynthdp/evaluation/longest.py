"""The longest run of characters that a text shares with a record, for texts that share 50 of them.

Here: the records that a flagged text has most in common with, and the length of what they share. Elsewhere: who is
flagged (overlap.py), the rows (memorisation.py). White space of any kind and length counts as one space. Caps, stated
because pairs are quadratic: at most ``MAX_FLAGGED`` flagged texts, drawn at random, each with the ``MAX_PARTNERS``
records that share the most 50-character windows with it, and the first ``MAX_CHARACTERS`` of a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safesynthdp.evaluation.overlap import CHECKS, RUN_CHARACTERS, meet, window_hashes

MAX_FLAGGED = 500
MAX_PARTNERS = 8
MAX_CHARACTERS = 20_000
FLAG_SEED = 7_210
_RUNS = CHECKS[-1]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


@dataclass(frozen=True)
class Shared:
    """A run that a text shares with one record."""

    record: int
    """Position in the pool."""
    length: int
    """Characters."""


def draw_flagged(is_flagged: Bools, *, at_most: int = MAX_FLAGGED) -> Ints:
    """Return the positions of the flagged texts, or of a random part of them."""
    flagged = np.flatnonzero(is_flagged)
    if len(flagged) <= at_most:
        return flagged
    return np.sort(np.random.default_rng(FLAG_SEED).choice(flagged, size=at_most, replace=False))


def find_shared(probes: Sequence[str], pool: Sequence[str]) -> list[list[Shared]]:
    """Return for each probe what it shares with records of the pool, the longest run first; nothing below 50."""
    if not probes:
        return []
    plain = [plain_text(text) for text in probes]
    hashes, probe_of = _windows(plain)
    known, known_of = np.unique(hashes, return_inverse=True)
    if not len(known):
        return [[] for _ in probes]
    met, record_of = meet(known, _RUNS.windows(pool))
    order = np.argsort(met, kind="stable")
    met, record_of = met[order], record_of[order]
    found = list[list[Shared]]()
    for number, text in enumerate(plain):
        first, last = np.searchsorted(probe_of, [number, number + 1])
        mine = np.unique(known_of[first:last])
        starts, ends = np.searchsorted(met, mine, "left"), np.searchsorted(met, mine, "right")
        parts = [record_of[start:end] for start, end in zip(starts, ends, strict=True) if start < end]
        found.append(_longest(text, _most_common(parts), pool))
    return found


def longest_common(first: str, second: str) -> int:
    """Return the length of the longest common substring of two plain texts, 0 if it is below 50 characters.

    A run of n characters holds n - 49 windows of 50, one after the other: the longest such row of windows bounds the
    length and nearly always is it. Where a repeated phrase breaks that, bisection finds it: a common run of n
    characters holds one of n - 1. Runs are compared as 64-bit hashes.
    """
    codes = (_codes(first), _codes(second))
    is_shared = np.isin(window_hashes(codes[0], RUN_CHARACTERS), window_hashes(codes[1], RUN_CHARACTERS))
    if not is_shared.any():
        return 0
    breaks = np.flatnonzero(~np.concatenate([[False], is_shared, [False]]))
    low, high = RUN_CHARACTERS, int(np.diff(breaks).max()) - 1 + RUN_CHARACTERS - 1
    if _share(codes, high):
        return high
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _share(codes, middle) else (low, middle - 1)
    return low


def mean_lengths(shared: Sequence[Sequence[Shared]], masks_MQ: Bools) -> Floats:
    """Return for each probe the longest run with a record inside a mask, a mean over the masks; 0 below 50."""
    means = np.zeros(len(shared), dtype=np.float64)
    for number, runs in enumerate(shared):
        if runs:
            records, lengths = np.array([r.record for r in runs]), np.array([r.length for r in runs])
            means[number] = (masks_MQ[:, records] * lengths).max(axis=1).mean()
    return means


def plain_text(text: str) -> str:
    """Return the first characters with white space collapsed."""
    return " ".join(text[: 2 * MAX_CHARACTERS].split())[:MAX_CHARACTERS]


def _codes(text: str) -> NDArray[np.uint64]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)


def _share(codes: Sequence[NDArray[np.uint64]], length: int) -> bool:
    return len(np.intersect1d(window_hashes(codes[0], length), window_hashes(codes[1], length))) > 0


def _windows(plain: Sequence[str]) -> tuple[NDArray[np.uint64], Ints]:
    blocks = list(_RUNS.windows(plain))
    hashes = np.concatenate([np.empty(0, dtype=np.uint64), *(hashes for hashes, _ in blocks)])
    return hashes, np.concatenate([np.empty(0, dtype=np.intp), *(probe_of for _, probe_of in blocks)])


def _most_common(parts: Sequence[Ints]) -> list[int]:
    """Return the records that stand most often among the parts."""
    if not parts:
        return []
    records, counts = np.unique(np.concatenate(parts), return_counts=True)
    return [int(record) for record in records[np.argsort(-counts, kind="stable")[:MAX_PARTNERS]]]


def _longest(text: str, records: Sequence[int], pool: Sequence[str]) -> list[Shared]:
    runs = [Shared(record, longest_common(text, plain_text(pool[record]))) for record in records]
    return sorted((run for run in runs if run.length), key=lambda run: (-run.length, run.record))
