"""How sure a number is that must not be bootstrapped: leave out one group of records at a time.

Here: groups, the standard error, the interval. Elsewhere: the numbers (mauve.py, frechet.py, diversity.py). Resampling
with replacement makes copies, and copies move MAUVE, the Frechet distance and distinct-n: a bootstrap interval of these
need not even hold its own estimate. Leaving records out makes none. Where two sets are alike such a number is quadratic
in the noise and the plain jackknife says 1.4 times the truth, so its second differences are taken off.
Sources: Tukey (1958); Efron and Stein (1981), Annals of Statistics 9:586, equation 4.2. Shapes: N records, G groups,
K numbers.
"""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from safesynthdp.evaluation.rows import LEVEL
from safesynthdp.records import canonical_text

NUM_GROUPS = 10
GROUP_SEED = 7_300
Ints = NDArray[np.intp]
Floats = NDArray[np.float64]
Interval = tuple[float, float]


def clusters(texts: Sequence[str]) -> Ints:
    """Return the number of each text's canonical form, [N]: copies share one.

    >>> clusters(["A film.", "b", "a film"]).tolist()
    [0, 1, 0]
    """
    numbers = dict[str, int]()
    return np.array([numbers.setdefault(canonical_text(text), len(numbers)) for text in texts], dtype=np.intp)


def deal_groups(cluster_N: Ints, *, num_groups: int = NUM_GROUPS, seed: int = 0) -> Ints:
    """Return the group of each record, [N]; copies of one text are one witness, so they share a group."""
    names, cluster_N = np.unique(cluster_N, return_inverse=True)
    order = np.random.default_rng([GROUP_SEED, seed]).permutation(len(names))
    return np.asarray((order % num_groups)[cluster_N], dtype=np.intp)


def standard_error(
    measure: Callable[[tuple[int, ...]], Sequence[float]], groups: Sequence[int], *, corrected: bool = True
) -> Floats:
    """Return the standard error of each number, [K].

    The plain variance is ``(G-1)/G sum_g (t_g - mean t)^2``. From it goes ``1/(G(G-1)) sum_gh (q_gh - mean q)^2`` with
    ``q_gh = G t - (G-1)(t_g + t_h) + (G-2) t_gh``: what the terms of second order count twice. The result is kept
    between one half of the plain variance (all of second order) and the whole (none).

    Args:
        measure: The K numbers without the groups it is given.
        groups: The groups there are.
        corrected: Measure without each pair of groups too, G (G-1) / 2 times more.
    """
    whole = np.asarray(measure(()), dtype=np.float64)
    if len(groups) < 3:
        return np.zeros_like(whole)
    without = {group: np.asarray(measure((group,)), dtype=np.float64) for group in groups}
    num, single_GK = len(groups), np.array(list(without.values()))
    plain_K = (num - 1) / num * ((single_GK - single_GK.mean(axis=0)) ** 2).sum(axis=0)
    if not corrected:
        return np.asarray(np.sqrt(plain_K), dtype=np.float64)
    second = np.array(
        [
            num * whole - (num - 1) * (without[a] + without[b]) + (num - 2) * np.asarray(measure((a, b)))
            for a, b in combinations(groups, 2)
        ]
    )
    twice_K = ((second - second.mean(axis=0)) ** 2).sum(axis=0) / (num * (num - 1))
    return np.asarray(np.sqrt(np.clip(plain_K - twice_K, plain_K / 2, plain_K)), dtype=np.float64)


def around(
    value: float, error: float, *, num_groups: int = NUM_GROUPS, low: float = 0.0, high: float = 1.0
) -> Interval:
    """Return ``value`` plus and minus Student's quantile times its standard error, cut to [low, high]."""
    from scipy.stats import t

    half = float(t.ppf((1 + LEVEL) / 2, num_groups - 1)) * error
    return max(low, value - half), min(high, value + half)
