"""From scores to guesses, without a look at the labels.

Here: how many guesses, which records they fall on, and how many are right. Elsewhere: what they prove (bounds.py).
The number of guesses is fixed by the number of records alone, and ties at a cut are ordered by a hash of the record
id: a stable sort of a file that lists members first would turn all-equal scores into a perfect attack.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Side = Literal["both", "top"]


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """The counts that the one-run bound takes."""

    canaries: int
    """Records with a coin each (m)."""
    guesses: int
    """Records guessed on (r), fixed before the labels are seen."""
    correct: int
    """Right guesses (v)."""


def num_guesses(canaries: int) -> int:
    """Return ``max(2, 2 floor(m / 20))``: a tenth of the records, half of them at each end."""
    return max(2, 2 * (canaries // 20))


def guess(
    scores: NDArray[np.float64], is_member: NDArray[np.bool_], *, tie_keys: Sequence[str], side: Side = "both"
) -> Guesses:
    """Guess IN for the highest scores and OUT for the lowest, and count the right guesses.

    The order is by falling score, then by the SHA-256 of ``tie-v1|{key}``; IN is guessed from its front, OUT from its
    back.

    Args:
        scores: One finite score a record, at least two; higher is more member-like.
        is_member: The coin of each record; used to count only.
        tie_keys: What tells records apart, one distinct key a record.
        side: ``both`` ends, half of the guesses each, or all guesses IN at the ``top``.
    """
    total = num_guesses(scores.size)
    num_in = total if side == "top" else total // 2
    chosen_in = _first(-scores, num_in, tie_keys, reverse=False)
    chosen_out = _first(scores, total - num_in, tie_keys, reverse=True)
    correct = int(is_member[chosen_in].sum()) + int((~is_member[chosen_out]).sum())
    return Guesses(canaries=scores.size, guesses=total, correct=correct)


def _first(values: NDArray[np.float64], count: int, keys: Sequence[str], *, reverse: bool) -> NDArray[np.intp]:
    """Return the indices of the ``count`` smallest values; those equal to the last of them by hash."""
    if count == 0:
        return np.empty(0, dtype=np.intp)
    cut = np.partition(values, count - 1)[count - 1]
    before, tied = np.flatnonzero(values < cut), np.flatnonzero(values == cut)
    needed = count - before.size
    if needed < tied.size:
        ordered = sorted(tied.tolist(), key=lambda index: _tie_rank(keys[index]), reverse=reverse)
        tied = np.asarray(ordered[:needed], dtype=np.intp)
    return np.concatenate([before, tied])


def _tie_rank(key: str) -> bytes:
    return hashlib.sha256(f"tie-v1|{key}".encode()).digest()
