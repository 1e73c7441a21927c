"""Made-up pools whose leak is known exactly, in the tables of a real one.

Here: bits by the real rule, signals with or without a leak. Elsewhere: what must find the leak, or find none
(selftest_audit.py). Shapes: M models, R records.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from safesynthdp.attacks.assignment import assignment_table

NUM_SCORED = 20
"""Scored tokens of every made-up record."""
OFFSET_DEVIATION = 3.0
"""How much records differ in difficulty, in standard deviations of what models differ by."""


def record_ids(num: int) -> list[str]:
    """Return r0, r1, ..."""
    return [f"r{index}" for index in range(num)]


def made_up_bits(num: int, *, models: int, with_target: bool = True, seed: int = 0) -> pa.Table:
    """Return the assignment of ``num`` records to ``models`` shadow models, and to a dedicated target."""
    return assignment_table({i: i for i in record_ids(num)}, seed=seed, num_models=models, with_target=with_target)


def made_up_signals(assignment: pa.Table, *, leak: float, seed: int = 0, channel: str = "model") -> pa.Table:
    """Return signals ``offset + noise + leak * member``: offset N(0, 9) a record, noise N(0, 1) a model and record.

    Args:
        assignment: Bits as ``made_up_bits`` gives them: models in order, records in order.
        leak: How much higher a member is; 0 makes signals that know nothing.
        seed: Of offsets and noise.
        channel: ``model`` gives lp_sum and num_scored, ``text`` ngram2_lp.
    """
    rng = np.random.default_rng(seed)
    ids = list(dict.fromkeys(assignment["record_id"].to_pylist()))
    member_MR = np.asarray(assignment["member"].to_numpy(zero_copy_only=False), dtype=np.float64).reshape(-1, len(ids))
    offsets_R = rng.normal(0, OFFSET_DEVIATION, size=len(ids))
    means_MR = offsets_R + rng.normal(size=member_MR.shape) + leak * member_MR
    models = range(len(member_MR))
    if channel == "text":
        return signal_rows(means_MR, ids, signal="ngram2_lp", channel=channel, models=models)
    counts_MR = np.full_like(means_MR, NUM_SCORED)
    parts = [("lp_sum", NUM_SCORED * means_MR), ("num_scored", counts_MR)]
    return pa.concat_tables([signal_rows(v, ids, signal=n, channel=channel, models=models) for n, v in parts])


def signal_rows(
    values_MR: NDArray[np.float64], ids: Sequence[str], *, signal: str, channel: str, models: Sequence[int]
) -> pa.Table:
    """Return a matrix as rows of the table ``signals``."""
    num_rows = values_MR.size
    codes = np.tile(np.arange(len(ids), dtype=np.int32), len(models))
    same = np.zeros(num_rows, dtype=np.int32)
    return pa.table(
        {
            "model_id": np.repeat(np.asarray(list(models), dtype=np.int64), len(ids)),
            "record_id": pa.DictionaryArray.from_arrays(codes, pa.array(list(ids), pa.string())),
            "channel": pa.DictionaryArray.from_arrays(same, pa.array([channel])),
            "signal": pa.DictionaryArray.from_arrays(same, pa.array([signal])),
            "value": np.asarray(values_MR, dtype=np.float64).reshape(-1),
        }
    )
