"""The form of the texts: lengths, and how surprising they are, as distributions.

Here: what is measured of a text, and the distance of two distributions of it. Elsewhere: bits per byte
(reference_lm.py), the rows (fidelity.py). Sources: Smirnov (1948) for the distance; Massart (1990) for its interval.
"""

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from safesynthdp.evaluation.rows import LEVEL

Floats = NDArray[np.float64]
_WORDS = re.compile(r"\w+")
_CLOSINGS = frozenset(".!?\u2026\u3002\uff01\uff1f")
_AFTER_CLOSING = "\"')]}*_ \u201d\u2019\u00bb"


def count_words(texts: Sequence[str]) -> Floats:
    r"""Return the number of ``\w+`` words of each text."""
    return np.array([len(_WORDS.findall(text)) for text in texts], dtype=np.float64)


def count_characters(texts: Sequence[str]) -> Floats:
    """Return the number of characters of each text."""
    return np.array([len(text) for text in texts], dtype=np.float64)


def is_cut(text: str) -> bool:
    """Return whether a text ends without a closing mark: where real text does not, it was cut.

    >>> is_cut("A film."), is_cut('He said "no!"'), is_cut("A film about")
    (False, False, True)
    """
    end = text.rstrip().rstrip(_AFTER_CLOSING)
    return bool(text.strip()) and (not end or end[-1] not in _CLOSINGS)


def ks_distance(first: Floats, second: Floats) -> float:
    """Return the largest difference of the two distribution functions, in [0, 1].

    >>> ks_distance(np.array([1.0, 2.0]), np.array([1.0, 3.0]))
    0.5
    """
    points = np.concatenate([first, second])
    shares = [np.searchsorted(np.sort(values), points, "right") / len(values) for values in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def ks_interval(distance: float, num_first: int, num_second: int) -> tuple[float, float]:
    """Return an interval of the distance of the two populations: the observed one plus and minus Smirnov's bound.

    The bound holds at the chosen level where the populations are equal (0 is then inside as often as it says), and by
    the triangle inequality roughly elsewhere; values with ties make it wider than it need be. A bootstrap would not
    do: the distance of two equal samples is biased away from 0.
    """
    half = math.sqrt(-math.log((1 - LEVEL) / 2) / 2 * (num_first + num_second) / (num_first * num_second))
    return max(0.0, distance - half), min(1.0, distance + half)
