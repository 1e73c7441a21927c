"""Which records stand out, and how sure that is: the risk of each record, with its spread over targets.

Here: the internal table. Elsewhere: the scores (pool_scores.py). Never part of a report: it names records of a private
data set, and a record at high risk is the more private for it.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from safesynthdp.attacks.audit_groups import groups

UNITS = {"channel": pa.string(), "attack": pa.string(), "record_id": pa.string()}


def record_risk(scores: pa.Table) -> pa.Table:
    """Return one row a channel, attack and record: how far it stands above non-members, in and out, over targets.

    ``risk_in`` is the mean, over the targets that were trained on the record, of the share of non-members with a
    lower score (ties half): 0.5 is chance, and 1 - risk_in the false-positive rate at which it is found. ``risk_out``
    is the same over targets without it: a record high in both is unusual, not leaked. ``*_sd`` is the standard
    deviation over targets, NaN with fewer than two.

    Columns: channel, attack, record_id, num_in, risk_in, risk_in_sd, num_out, risk_out, risk_out_sd.

    Raises:
        DataError: If the table is not usable.
    """
    parts = list[pa.Table]()
    for group in groups(scores, None, units={}):
        ids = list(dict.fromkeys(unit for side in group.sides for unit in side.unit_ids))
        place = {unit: index for index, unit in enumerate(ids)}
        ranks_TR = np.full((len(group.sides), len(ids)), np.nan)
        is_in_TR = np.zeros(ranks_TR.shape, dtype=np.bool_)
        for row, side in enumerate(group.sides):
            columns = [place[unit] for unit in side.unit_ids]
            others = np.sort(side.scores[~side.is_member])
            twice = sum(np.searchsorted(others, side.scores, side=edge) for edge in ("left", "right"))
            ranks_TR[row, columns] = twice / (2 * max(1, others.size))
            is_in_TR[row, columns] = side.is_member
        columns_of = {"channel": [group.channel] * len(ids), "attack": [group.attack] * len(ids), "record_id": ids}
        arrays = {name: pa.array(columns_of[name], kind) for name, kind in UNITS.items()}
        for name, here in (("in", is_in_TR), ("out", ~is_in_TR & ~np.isnan(ranks_TR))):
            arrays |= _columns(name, ranks_TR, here)
        parts.append(pa.table(arrays))
    return pa.concat_tables(parts)


def _columns(name: str, ranks_TR: NDArray[np.float64], here: NDArray[np.bool_]) -> dict[str, pa.Array]:
    count = here.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(here, ranks_TR, 0).sum(axis=0) / count
        squares = np.where(here, (ranks_TR - mean) ** 2, 0).sum(axis=0)
        spread = np.where(count > 1, np.sqrt(squares / (count - 1)), np.nan)
    return {
        f"num_{name}": pa.array(count.astype(np.int64)),
        f"risk_{name}": pa.array(mean),
        f"risk_{name}_sd": pa.array(spread),
    }
