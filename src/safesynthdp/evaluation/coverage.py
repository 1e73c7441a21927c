"""How much of the real text the synthetic text reaches: recall in the space of embeddings.

Here: coverage and its value for two samples of one distribution. Elsewhere: the rows (fidelity.py). Source: Naeem et
al. (2020), arXiv:2002.09797, equation 8. Shapes: M real texts, N synthetic texts, D dimensions.
"""

import numpy as np
from numpy.typing import NDArray

from safesynthdp.evaluation.threads import one_thread

NEIGHBOURS = 5
_BLOCK = 1000
Points = NDArray[np.float32]


def covered(real_MD: Points, synthetic_ND: Points, *, neighbours: int = NEIGHBOURS) -> NDArray[np.bool_]:
    """Return which real texts have a synthetic one no further away than their k-th nearest real neighbour, [M].

    The mean is the coverage. Work grows with M (M + N) D, memory with a block of rows.
    """
    found = np.zeros(len(real_MD), dtype=np.bool_)
    with one_thread():
        for start in range(0, len(real_MD), _BLOCK):
            rows = real_MD[start : start + _BLOCK]
            among_real = squared_distances(rows, real_MD)
            among_real[np.arange(len(rows)), np.arange(start, start + len(rows))] = np.inf
            radius = np.partition(among_real, neighbours - 1, axis=1)[:, neighbours - 1]
            nearest = squared_distances(rows, synthetic_ND).min(axis=1)
            found[start : start + _BLOCK] = nearest <= radius + 1e-6
    return found


def expected_coverage(num_real: int, num_synthetic: int, *, neighbours: int = NEIGHBOURS) -> float:
    """Return the mean coverage when both sides come from one continuous distribution.

    None of the N is among the k nearest of the other M - 1 + N texts with probability
    ``prod_(i=0..k-1) (M-1-i) / (M-1+N-i)``.

    >>> round(expected_coverage(2000, 2000), 5)
    0.96887
    """
    missed = 1.0
    for i in range(neighbours):
        missed *= (num_real - 1 - i) / (num_real - 1 + num_synthetic - i)
    return 1 - missed


def nearest_cosines(points_ND: Points) -> NDArray[np.float64]:
    """Return the cosine of every text with its nearest other text of the same set, [N]; rows have length 1."""
    found = np.empty(len(points_ND))
    with one_thread():
        for start in range(0, len(points_ND), _BLOCK):
            cosines = points_ND[start : start + _BLOCK] @ points_ND.T
            rows = np.arange(len(cosines))
            cosines[rows, start + rows] = -np.inf
            found[start : start + _BLOCK] = cosines.max(axis=1)
    return np.clip(found, -1.0, 1.0)


def squared_distances(first: Points, second: Points) -> NDArray[np.float32]:
    """Return ``|a - b|^2`` of all pairs."""
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None, :]
    return np.asarray(np.maximum(squares - 2 * (first @ second.T), 0.0), dtype=np.float32)
