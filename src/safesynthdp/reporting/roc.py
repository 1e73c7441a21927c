"""ROC curves from the scores of an attack, and the ceiling that a claim puts over them.

Here: scores.parquet to points for a log-log figure. Elsewhere: the attacks and their audit rows (attacks/), the figure
(attack_figures.py). Source of the ceiling: Kairouz, Oh, Viswanath (2015), arXiv:1311.0776, for (epsilon, delta).
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safesynthdp.errors import SafeSynthError
from safesynthdp.reporting.facts import Curve

LOWEST_FPR = 1e-4
POINTS = 41  # ten a decade
_COLUMNS = ["target_id", "channel", "attack", "score", "member"]


def read_curves(path: Path, *, target_id: str | None = None) -> tuple[Curve, ...]:
    """Return one curve an attack and channel, over ``target_id`` or all targets together; none without a file.

    Raises:
        SafeSynthError: If the file is not a table of scores.
    """
    if not path.is_file():
        return ()
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, columns=_COLUMNS)
    except (pyarrow.ArrowException, OSError) as error:
        raise SafeSynthError(f"{path} is not a table of scores; attack again in a new directory") from error
    is_target = np.asarray([found == target_id for found in table["target_id"].to_pylist()], dtype=bool)
    if is_target.any():
        table = table.filter(pyarrow.array(is_target))
    channels, attacks = (np.asarray(table[name].to_pylist(), dtype=object) for name in ("channel", "attack"))
    scores = np.asarray(table["score"].to_numpy(), dtype=np.float64)
    is_member = np.asarray(table["member"].to_numpy(), dtype=bool)
    names = dict.fromkeys(zip(channels.tolist(), attacks.tolist(), strict=True))
    found = ((name, (channels == name[0]) & (attacks == name[1])) for name in names)
    return tuple(
        curve(scores[rows], is_member[rows], channel=str(channel), attack=str(attack))
        for (channel, attack), rows in found
    )


def curve(scores: NDArray[np.float64], is_member: NDArray[np.bool_], *, channel: str, attack: str) -> Curve:
    """Return the share of members strictly above the threshold of each false-positive rate.

    The threshold for rate a is the (floor(a n) + 1)-th largest of n non-member scores, as in the tables: no point lies
    between two that were measured, and none below 1 / n.

    Args:
        scores: [R] float64, higher = more member-like.
        is_member: [R] bool.
        channel: What the attacker holds.
        attack: Its name.
    """
    others = np.sort(scores[~is_member])[::-1]
    members = np.sort(scores[is_member])
    if not others.size or not members.size:
        return Curve(attack=attack, channel=channel, fpr=(), tpr=(), num_nonmembers=int(others.size))
    lowest = max(LOWEST_FPR, 1 / others.size)
    rates = np.geomspace(lowest, 1.0, POINTS)
    cuts = np.minimum(np.floor(rates * others.size + 1e-9).astype(np.int64), others.size - 1)
    above = members.size - np.searchsorted(members, others[cuts], side="right")
    tpr = above / members.size
    tpr[-1] = 1.0  # everything is called a member
    return Curve(
        attack=attack,
        channel=channel,
        fpr=tuple(float(rate) for rate in rates),
        tpr=tuple(float(rate) for rate in tpr),
        num_nonmembers=int(others.size),
    )


def ceiling(fpr: Sequence[float], *, epsilon: float, delta: float) -> tuple[float, ...]:
    """Return the highest true-positive rate that an (epsilon, delta) guarantee lets any attack reach.

    ``min(1, e^eps x + delta, 1 - e^-eps (1 - delta - x))``.

    >>> [round(rate, 4) for rate in ceiling([0.01, 0.5], epsilon=1.0, delta=0.0)]
    [0.0272, 0.8161]
    """
    up = math.exp(min(epsilon, 700.0))
    return tuple(min(1.0, up * x + delta, 1.0 - (1.0 - delta - x) / up) for x in fpr)
