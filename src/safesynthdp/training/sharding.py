"""Who does which micro-batch.

Here: dealing the micro-batches of one global draw to the ranks. Elsewhere: cutting them (examples.py), adding the
sums (ranks.py). Every rank computes the whole deal from the same draw, so nothing is sent and no record is done twice.
"""

from collections.abc import Sequence


def deal(costs: Sequence[int], *, world_size: int) -> list[list[int]]:
    """Return for each rank the positions it works on, each exactly once, ascending; a rank may get none.

    The dearest goes first, always to the rank that has least to do (the lowest of equals): at most 4/3 of the best
    split. The sum over the ranks does not depend on the deal, so neither does the guarantee.

    >>> deal([5, 4, 3, 2], world_size=2)
    [[0, 3], [1, 2]]
    """
    shares: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for position in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = loads.index(min(loads))
        shares[rank].append(position)
        loads[rank] += costs[position]
    return [sorted(share) for share in shares]
