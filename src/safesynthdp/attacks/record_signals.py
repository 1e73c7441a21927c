"""The model channel's stored signals: one row a record and signal.

Here: which signals a model stores, and the check that all are numbers. Elsewhere: their formulas (signals.py), the
statistics they are made of (training/token_statistics.py), the attacks that read them (pool_scores.py). Nothing here
imports torch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from safesynthdp.attacks.signals import Statistics, error_zones, lowest_tokens, named
from safesynthdp.errors import SafeSynthError

if TYPE_CHECKING:
    import pyarrow as pa

STORED = ("lp_sum", "num_scored", "mink_20", "minkpp_20")
STORED_WITH_BASE = ("ez_pos", "ez_neg")
Floats = NDArray[np.float64]


def score_records(
    statistics: Sequence[Statistics], *, record_ids: Sequence[str], base_log_probs: Sequence[Floats] | None = None
) -> "pa.Table":
    """Return the table (record_id, signal, value float64) of one model.

    Args:
        statistics: Of each record under this model.
        record_ids: Their ids, distinct.
        base_log_probs: [n] a record, the same tokens under the untuned model; without it there is no EZ.

    Raises:
        SafeSynthError: If a record has no scored token, other tokens under the two models, or a value that is not
            finite; the message lists the records. Nothing is dropped.
    """
    import pyarrow as pa

    if len(set(record_ids)) < len(record_ids) or len(record_ids) != len(statistics):
        raise SafeSynthError(f"{len(statistics)} records were scored under {len(set(record_ids))} ids; each needs one")
    _refuse([i for i, s in zip(record_ids, statistics, strict=True) if not s.log_probs.size], "have no scored token")
    columns = _of_model(statistics)
    if base_log_probs is not None:
        columns |= _with_base(statistics, base_log_probs, record_ids)
    for name, values in columns.items():
        _refuse(
            [record_ids[int(i)] for i in np.flatnonzero(~np.isfinite(values))], f"have a {name} that is NaN or infinite"
        )
    ids = pa.array(list(record_ids) * len(columns), pa.string()).dictionary_encode()
    signals = pa.array([name for name in columns for _ in record_ids], pa.string()).dictionary_encode()
    return pa.table({"record_id": ids, "signal": signals, "value": np.concatenate(list(columns.values()))})


def score_sums(statistics: Sequence[Statistics], *, record_ids: Sequence[str]) -> "pa.Table":
    """Return the rows of ``lp_sum`` alone: all that is asked of records that no model was trained on.

    Raises:
        SafeSynthError: If a value is not finite, or a record has no scored token.
    """
    import pyarrow as pa

    pairs = list(zip(record_ids, statistics, strict=True))
    _refuse([i for i, s in pairs if not s.log_probs.size], "have no scored token")
    sums = np.asarray([s.log_probs.sum(dtype=np.float64) for s in statistics], dtype=np.float64)
    _refuse([i for i, value in zip(record_ids, sums, strict=True) if not np.isfinite(value)], "have no finite lp_sum")
    return pa.table(
        {
            "record_id": pa.array(list(record_ids), pa.string()),
            "signal": pa.array(["lp_sum"] * len(pairs), pa.string()),
            "value": sums,
        }
    )


def _of_model(statistics: Sequence[Statistics]) -> dict[str, Floats]:
    sums = [float(record.log_probs.sum(dtype=np.float64)) for record in statistics]
    sizes = [float(record.log_probs.size) for record in statistics]
    plain = {"lp_sum": np.asarray(sums, dtype=np.float64), "num_scored": np.asarray(sizes, dtype=np.float64)}
    return plain | lowest_tokens(statistics)


def _with_base(
    statistics: Sequence[Statistics], base: Sequence[Floats], record_ids: Sequence[str]
) -> dict[str, Floats]:
    rows = list(zip(record_ids, statistics, base, strict=True))
    _refuse([i for i, s, b in rows if s.log_probs.size != b.size], "have other tokens under the untuned model")
    return dict(zip(STORED_WITH_BASE, error_zones(statistics, base), strict=True))


def _refuse(record_ids: Sequence[str], what: str) -> None:
    if record_ids:
        raise SafeSynthError(
            f"{len(record_ids)} records {what} ({named(record_ids)}); nothing is dropped: "
            "repair the model or the record"
        )
