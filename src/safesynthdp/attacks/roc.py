"""ROC curves of attacks for a log-log page, with what the claim allows and what chance gives.

Here: the step points of measured curves, the ceiling of a claim, the diagonal, as rows. Elsewhere: the drawing
(reporting/), the scores (pool_scores.py), the claims (claims.py). Steps are conservative, as in the tables: the
true-positive rate at a false-positive rate is that of the highest threshold that reaches it, nothing is interpolated.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from safesynthdp.attacks.audit_groups import groups
from safesynthdp.attacks.claims import Claim
from safesynthdp.attacks.metrics import Scores

LOWEST_FPR = 1e-4
_CEILING_POINTS = 81
Row = dict[str, Any]


def roc_rows(scores: pa.Table, claims: Mapping[str, Claim], *, records: pa.Table | None = None) -> list[Row]:
    """Return one row a curve: channel, attack, target_id, kind, group_size, fpr, tpr, each of the last two a list.

    ``kind`` is that of the records, or ``ceiling`` (what the claim of a channel allows a group of this size) or
    ``chance``.

    Raises:
        DataError: If the table is not usable.
    """
    found = list(groups(scores, records, units={channel: claim.unit for channel, claim in claims.items()}))
    rows = list[Row]()
    for group in found:
        for side in group.sides:
            points = roc_points(side.scores[side.is_member], side.scores[~side.is_member])
            head: Row = {"channel": group.channel, "attack": group.attack, "target_id": side.target_id}
            rows.append(head | {"kind": group.kind.name, "group_size": group.kind.group_size} | points)
    for channel, size in dict.fromkeys((group.channel, group.kind.group_size) for group in found):
        both: Row = {"channel": channel, "attack": None, "target_id": None, "group_size": size}
        grid = np.geomspace(LOWEST_FPR, 1, _CEILING_POINTS)
        rows.append(both | {"kind": "chance", "fpr": grid.tolist(), "tpr": grid.tolist()})
        if channel in claims and (top := ceiling(claims[channel], grid, group_size=size)) is not None:
            rows.append(both | {"kind": "ceiling", "fpr": grid.tolist(), "tpr": top})
    return rows


def roc_points(members: Scores, nonmembers: Scores) -> dict[str, list[float]]:
    """Return the corners of the curve from a false-positive rate of 1e-4 on: ``fpr`` and ``tpr``, both rising.

    ``tpr`` holds from its ``fpr`` up to the next. The first point says what is reached at 1e-4 or below.
    """
    cuts = np.unique(np.concatenate([members, nonmembers]))[::-1]
    above_out = nonmembers.size - np.searchsorted(np.sort(nonmembers), cuts, side="left")
    above_in = members.size - np.searchsorted(np.sort(members), cuts, side="left")
    fpr, tpr = above_out / nonmembers.size, above_in / members.size
    is_last = np.append(fpr[1:] > fpr[:-1], True)  # of equal rates the highest
    fpr, tpr = fpr[is_last], tpr[is_last]
    low = fpr <= LOWEST_FPR
    first = float(tpr[low].max(initial=0.0))
    return {"fpr": [LOWEST_FPR, *fpr[~low].tolist()], "tpr": [first, *tpr[~low].tolist()]}


def ceiling(claim: Claim, fpr: Scores, *, group_size: int = 1) -> list[float] | None:
    """Return the largest true-positive rate that a claim allows at each false-positive rate; None without a claim.

    For copies ``1 - f`` is applied that many times.
    """
    tradeoff = claim.tradeoff
    if tradeoff is None:
        return None
    allowed = [float(rate) for rate in fpr]
    for _ in range(group_size):
        allowed = [min(1.0, max(rate, 1 - tradeoff(rate))) for rate in allowed]
    return allowed
