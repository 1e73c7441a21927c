"""A row of ``selftest audit``: what was looked at, what had to come out, what did.

Here: the row, and the two rules by which shares of repetitions are judged. Elsewhere: the checks (selftest_exact.py,
selftest_worlds.py, selftest_pools.py).
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the table."""

    id: str
    what: str
    expected: str
    found: str
    passed: bool


def at_most(level: float, *, repetitions: int) -> float:
    """Return the largest share of repetitions that a probability of ``level`` explains: three standard errors above.

    >>> round(at_most(0.05, repetitions=400), 3)
    0.083
    """
    return level + 3 * math.sqrt(level * (1 - level) / repetitions)


def share_check(identity: str, what: str, *, wrong: int, repetitions: int, level: float = 0.05) -> Check:
    """Return the check that something wrong was seen in no more repetitions than ``level`` explains."""
    limit, share = at_most(level, repetitions=repetitions), wrong / repetitions
    return Check(
        id=identity,
        what=what,
        expected=f"at most {limit:.1%}",
        found=f"{share:.1%} of {repetitions}",
        passed=share <= limit,
    )


def near_check(identity: str, what: str, *, found: float, expected: float, tolerance: float) -> Check:
    """Return the check that a number is what it must be."""
    return Check(
        id=identity,
        what=what,
        expected=f"{expected:.6g} +- {tolerance:.1g}",
        found=f"{found:.6g}",
        passed=abs(found - expected) <= tolerance,
    )
