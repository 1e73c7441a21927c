"""Which model of a pool is trained on which unit: complementary pairs, decided by a hash.

Here: the rule ("pairs-v1"), the table of bits, and reading it back. Elsewhere: who the units are (pool_data.py), what
is computed from the bits (pool_scores.py). A unit is a record, or a user with ``unit: user``. Models 2p and 2p + 1 are
a pair: a unit is in exactly one of them. The dedicated target has its own bits, and the number after the last pair.

Guarantee:
    A bit depends on (seed, pair, unit id) alone: any worker computes its own row, and adding or reordering units or
    models changes no bit. Without the pair of a target, its bits are independent of all that an attacker sees.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SCHEME = "pairs-v1"
AS_TRAINED = "as-trained"
"""Scheme of a dedicated target that was trained elsewhere: its bits are what it was trained on, and no coins."""
TARGET = "target"
"""The pair of the dedicated target in the rule."""
BITS = pa.schema(
    [
        ("model_id", pa.int64()),
        ("record_id", pa.string()),
        ("member", pa.bool_()),
        ("seed", pa.int64()),
        ("scheme", pa.string()),
    ]
)


def coin(seed: int, pair: int | str, unit_id: str) -> bool:
    """Return the bit of a unit: the lowest bit of the last byte of SHA-256 of ``assign-v1|{seed}|{pair}|{unit_id}``.

    >>> [int(coin(0, 0, f"r{i}")) for i in range(8)], [int(coin(0, 1, f"r{i}")) for i in range(8)]
    ([1, 1, 0, 0, 1, 0, 1, 0], [1, 0, 0, 0, 0, 1, 0, 0])
    """
    return bool(hashlib.sha256(f"assign-v1|{seed}|{pair}|{unit_id}".encode()).digest()[-1] & 1)


def pair_of(model_id: int, *, num_models: int) -> int | None:
    """Return the pair of a model; None for the dedicated target, which has the number ``num_models``.

    >>> [pair_of(model_id, num_models=4) for model_id in range(5)]
    [0, 0, 1, 1, None]
    """
    return None if model_id == num_models else model_id // 2


def members(seed: int, model_id: int, unit_ids: Sequence[str], *, num_models: int) -> NDArray[np.bool_]:
    """Return, for each unit, whether the model is trained on it; [units] bool."""
    pair = pair_of(model_id, num_models=num_models)
    bits = np.asarray([coin(seed, TARGET if pair is None else pair, unit) for unit in unit_ids], dtype=np.bool_)
    return ~bits if pair is not None and model_id % 2 else bits


def assignment_table(
    unit_of_record: Mapping[str, str],
    *,
    seed: int,
    num_models: int,
    with_target: bool,
    trained: Collection[str] | None = None,
) -> pa.Table:
    """Return the bits of every model and audited record, models in order, then the target.

    Args:
        unit_of_record: Record id to unit id, the audited records only: the others are in every model.
        seed: Of the rule.
        num_models: Models of the pool, without the target.
        with_target: Append the dedicated target as model ``num_models``.
        trained: The units that a target from elsewhere was trained on; None = the target has coins.
    """
    record_ids, units = list(unit_of_record), list(unit_of_record.values())
    models = range(num_models + with_target)
    bits = [members(seed, model_id, units, num_models=num_models) for model_id in models]
    schemes = [SCHEME] * len(models)
    if with_target and trained is not None:
        bits[-1], schemes[-1] = np.asarray([unit in trained for unit in units], dtype=np.bool_), AS_TRAINED
    rows = len(record_ids) * len(models)
    columns = {
        "model_id": np.repeat(np.arange(len(models), dtype=np.int64), len(record_ids)),
        "record_id": record_ids * len(models),
        "member": np.concatenate(bits) if bits else np.zeros(0, dtype=np.bool_),
        "seed": np.full(rows, seed, dtype=np.int64),
        "scheme": [scheme for scheme in schemes for _ in record_ids],
    }
    return pa.table(columns, schema=BITS)
