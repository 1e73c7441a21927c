"""The text baseline of a pool: each target's bits guessed from the records' texts alone.

Here: its rows of the table ``scores`` (channel none). Elsewhere: the classifier (baseline.py), what a baseline off
chance does to the verdicts (pool_audit.py). scikit-learn is imported when it runs.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from safesynthdp.attacks.baseline import baseline_scores
from safesynthdp.attacks.pool_signals import Bits
from safesynthdp.errors import DataError

MAX_RECORDS = 4000
"""Drawn by hash where there are more: 4000 put the 99.9% interval of the AUC within 0.03 of it."""
ATTACK, CHANNEL = "baseline", "none"
_HASHED = hashlib.sha256(b"logistic regression on tf-idf word 1-2-grams, log-odds out of 5 folds").hexdigest()


def baseline_table(
    bits: Bits,
    texts: Mapping[str, str],
    *,
    seed: int,
    target_ids: Sequence[str],
    unit_of: Mapping[str, str] | None = None,
) -> pa.Table:
    """Return one row a target and drawn record.

    Args:
        bits: Who is in which model.
        texts: record_id -> text of every audited record.
        seed: Of the draw and the folds; not a secret.
        target_ids: "0", "1", ..., "target".
        unit_of: record_id -> user, where users are the units; texts of a user share a fold.

    Raises:
        DataError: If a record has no text here.
    """
    missing = sum(record_id not in texts for record_id in bits.record_ids)
    if missing:
        raise DataError(f"the text baseline has no text for {missing} of {len(bits.record_ids)} audited records")
    drawn = np.asarray(_drawn(bits.record_ids, seed), dtype=np.intp)
    ids = [bits.record_ids[int(index)] for index in drawn]
    users = None if unit_of is None else [unit_of[record_id] for record_id in ids]
    parts = list[pa.Table]()
    for target_id in target_ids:
        model = bits.num_models if target_id == "target" else int(target_id)
        is_in = bits.is_in_MR[model, drawn]
        scores = baseline_scores([texts[i] for i in ids], is_in, seed=seed, user_ids=users)
        size = len(ids)
        none = np.zeros(size, dtype=np.int16)
        parts.append(
            pa.table(
                {
                    "target_id": [target_id] * size,
                    "record_id": ids,
                    "channel": [CHANNEL] * size,
                    "attack": [ATTACK] * size,
                    "params_hash": [_HASHED] * size,
                    "score": scores,
                    "member": is_in,
                    "k_in": none,
                    "k_out": none,
                }
            )
        )
    return pa.concat_tables(parts)


def _drawn(record_ids: Sequence[str], seed: int) -> list[int]:
    if len(record_ids) <= MAX_RECORDS:
        return list(range(len(record_ids)))
    ranked = sorted(
        range(len(record_ids)), key=lambda i: hashlib.sha256(f"baseline-v1|{seed}|{record_ids[i]}".encode()).digest()
    )
    return sorted(ranked[:MAX_RECORDS])
