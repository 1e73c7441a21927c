"""The model channel's stored signals: one row a record and signal.

Here: which signals a model stores, and the check that all are numbers. Elsewhere: their formulas (signals.py), the
statistics they are made of (training/token_statistics.py), the attacks that read them (pool_scores.py). Nothing here
imports torch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from safesynthdp.attacks.signals import error_zone, min_k, named
from safesynthdp.errors import SafeSynthError

if TYPE_CHECKING:
    import pyarrow as pa

STORED = ("lp_sum", "num_scored", "mink_20", "minkpp_20")
STORED_WITH_BASE = ("ez_pos", "ez_neg")
Floats = NDArray[np.float64]


class Statistics(Protocol):
    """What ``token_statistics`` returns for a record; n scored tokens."""

    @property
    def log_probs(self) -> Floats:
        """[n] log p of its tokens."""
        ...

    @property
    def means(self) -> Floats:
        """[n] mean of log p over the vocabulary."""
        ...

    @property
    def deviations(self) -> Floats:
        """[n] standard deviation of log p, above 0."""
        ...

    @property
    def is_top(self) -> NDArray[np.bool_]:
        """[n] whether the token was the most probable."""
        ...


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


def _of_model(statistics: Sequence[Statistics]) -> dict[str, Floats]:
    found: dict[str, list[float]] = {name: [] for name in STORED}
    for record in statistics:
        found["lp_sum"].append(float(record.log_probs.sum(dtype=np.float64)))
        found["num_scored"].append(float(record.log_probs.size))
        found["mink_20"].append(min_k(record.log_probs))
        found["minkpp_20"].append(min_k((record.log_probs - record.means) / record.deviations))
    return {name: np.asarray(values, dtype=np.float64) for name, values in found.items()}


def _with_base(
    statistics: Sequence[Statistics], base: Sequence[Floats], record_ids: Sequence[str]
) -> dict[str, Floats]:
    rows = list(zip(record_ids, statistics, base, strict=True))
    _refuse([i for i, s, b in rows if s.log_probs.size != b.size], "have other tokens under the untuned model")
    sums = np.asarray([error_zone(s.log_probs, b, is_top=s.is_top) for _, s, b in rows], dtype=np.float64)
    return dict(zip(STORED_WITH_BASE, sums.reshape(-1, 2).T.copy(), strict=True))


def _refuse(record_ids: Sequence[str], what: str) -> None:
    if record_ids:
        raise SafeSynthError(
            f"{len(record_ids)} records {what} ({named(record_ids)}); nothing is dropped: "
            "repair the model or the record"
        )
