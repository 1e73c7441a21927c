"""The attacks that need no shadow model, on one finetune run: which records, which scores, which rows.

Here: the draw, the table of scores and the rows of audit.json. Elsewhere: the signals (signals.py), the text baseline
(baseline.py), the metrics (metrics.py). An indicator only: members and non-members differ by a hash of their text,
not by coins, so no epsilon is bounded here.
"""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from safesynthdp.attacks.baseline import VOID_ALPHA, baseline_scores, benchmark_is_valid
from safesynthdp.attacks.metrics import Scores, auc, delong_interval, tpr_table
from safesynthdp.attacks.model_scores import Scorer
from safesynthdp.attacks.signals import ATTACKS, attack_scores
from safesynthdp.errors import DataError
from safesynthdp.records import Records, Split

if TYPE_CHECKING:
    import pyarrow as pa

BASELINE = "baseline"
CHANNELS = dict.fromkeys(ATTACKS, "model") | {BASELINE: "none"}
_FORMULAS = {
    "loss": "lp_target/n",
    "ref": "lp_target/n - lp_untuned/n",
    "zlib": f"(lp_target/n)/zlib_bytes, level 6, zlib {zlib.ZLIB_RUNTIME_VERSION}",
    "mink_20": "mean of the ceil(0.2 n) lowest l_i",
    "minkpp_20": "mean of the ceil(0.2 n) lowest (l_i - mu_i)/sigma_i",
    "ez": "log(P+.1) - log(N+.1), P and N over tokens where the target's top-1 is wrong",
    BASELINE: "logistic regression on tf-idf word 1-2-grams, log-odds out of 5 folds",
}
INDICATOR_NOTE = (
    "indicator only: members are the train split and non-members the holdout, split by a hash of the text and not by "
    "a coin for each record, so no epsilon bound is claimed from it"
)
VOID_NOTE = "void: the text alone tells members from non-members (99.9% interval), so no attack here proves a leak"
PRIVATE_NOTE = "computed on private data and outside the guarantee: these numbers are not a release, keep them private"
SEEDED_NOTE = "the run is seeded: no guarantee against whoever knows the seed"
USERS_NOTE = "the records of one user are not independent: the intervals, taken over records, are too narrow"
UNKNOWN_NOTE = "too few records for the text baseline to say whether the benchmark is valid"


@dataclass(frozen=True, kw_only=True)
class Target:
    """The run that is attacked, as far as a row states it."""

    target_id: str
    epsilon_claimed: float | None
    """Of the weights, from the ledger; None is no guarantee."""
    delta: float | None
    num_epochs: float | None
    """Mean number of times a record (or user) was drawn."""
    unit: str
    """Whom the ledger protects: record or user."""
    is_seeded: bool
    """The run's noise came from a seed that somebody may know."""


@dataclass(frozen=True, kw_only=True)
class Audited:
    """Equally many members and non-members, in an order that says nothing."""

    records: Records
    is_member: NDArray[np.bool_]


def draw(split: Split, *, max_records: int, seed: int) -> Audited:
    """Return at most ``max_records`` members and as many non-members.

    The records of a side with the smallest SHA-256 of ``draw-v1|{seed}|{record_id}`` are drawn, and the order of the
    result is by that hash too: any machine draws the same, whatever the order of the file.

    Raises:
        DataError: If a side is empty or a record id stands twice.
    """
    sides = [(split.train, True), (split.holdout, False)]
    size = min(max_records, *(len(side) for side, _ in sides))
    if size == 0:
        raise DataError(
            f"{len(split.train)} members and {len(split.holdout)} non-members: an attack needs both; train with "
            "data.holdout_percent above 0"
        )
    ranked = [
        (_rank(record_id, seed), record_id, is_member, index)
        for side, is_member in sides
        for index, record_id in enumerate(side.record_ids)
    ]
    if len({record_id for _, record_id, _, _ in ranked}) < len(ranked):
        raise DataError("a record_id stands twice in the run's data; scores are joined by record_id, so make it unique")
    chosen = sorted(row for _, is_member in sides for row in sorted(r for r in ranked if r[2] is is_member)[:size])
    return Audited(
        records=_gather(split, [(is_member, index) for _, _, is_member, index in chosen]),
        is_member=np.asarray([is_member for _, _, is_member, _ in chosen], dtype=np.bool_),
    )


def score(audited: Audited, *, target: Scorer, base: Scorer, seed: int) -> dict[str, Scores]:
    """Return the scores of every attack and of the text baseline, each in the order of ``audited``."""
    records = audited.records
    found = baseline_scores(records.texts, audited.is_member, seed=seed, user_ids=records.user_ids)
    of_model = attack_scores(
        target=target(records), base=base(records), texts=records.texts, record_ids=records.record_ids
    )
    return of_model | {BASELINE: found}


def audit_rows(
    scores: Mapping[str, Scores], is_member: NDArray[np.bool_], *, target: Target, alpha: float
) -> list[dict[str, Any]]:
    """Return one row of audit.json an attack; every key is there, None where there is nothing to say."""
    valid = benchmark_is_valid(scores[BASELINE], is_member)
    notes = _notes(target, valid)
    rows = list[dict[str, Any]]()
    for attack, values in scores.items():
        members, nonmembers = values[is_member], values[~is_member]
        level = VOID_ALPHA if attack == BASELINE else alpha
        rows.append(
            {
                "target_id": target.target_id,
                "channel": CHANNELS[attack],
                "attack": attack,
                "num_members": members.size,
                "num_nonmembers": nonmembers.size,
                "auc": auc(members, nonmembers),
                "auc_interval": list(delong_interval(members, nonmembers, alpha=level)),
                "tpr_at_fpr": tpr_table(members, nonmembers),
                "epsilon_lower_bound": None,
                "epsilon_attainable": None,
                "epsilon_claimed": None if attack == BASELINE else target.epsilon_claimed,
                "group_size": 1 if target.unit == "record" else None,
                "method": "text baseline" if attack == BASELINE else "tier 0, no shadow model",
                "alpha": level,
                "delta": None if attack == BASELINE else target.delta,
                "p_value": None,
                "curve_p_value": None,
                "verdict": None,
                "benchmark_valid": valid,
                "estimates": {},
                "num_targets": 1,
                "num_references": 0,
                "num_epochs": target.num_epochs,
                "notes": notes,
            }
        )
    return rows


def headline(scores: Mapping[str, Scores], is_member: NDArray[np.bool_], *, alpha: float) -> dict[str, Any]:
    """Return the attack with the highest AUC; picked with the labels, so its interval is at ``alpha`` / attacks."""
    sides = {attack: (scores[attack][is_member], scores[attack][~is_member]) for attack in ATTACKS}
    best = max(ATTACKS, key=lambda attack: auc(*sides[attack]))
    level = alpha / len(ATTACKS)
    return {
        "attack": best,
        "auc": auc(*sides[best]),
        "auc_interval": list(delong_interval(*sides[best], alpha=level)),
        "alpha": level,
        "picked_from": len(ATTACKS),
        "benchmark_valid": benchmark_is_valid(scores[BASELINE], is_member),
    }


def scores_table(
    scores: Mapping[str, Scores], audited: Audited, *, target_id: str, parameters: Mapping[str, Any]
) -> "pa.Table":
    """Return one row a record and attack, without text.

    ``params_hash`` is the SHA-256 of the attack's formula and the parameters of the draw.
    """
    import pyarrow as pa

    record_ids, size = audited.records.record_ids, audited.is_member.size
    attacks = list(scores)
    hashes = {attack: _params_hash({"formula": _FORMULAS[attack], **parameters}) for attack in attacks}
    columns = {
        "target_id": pa.array([target_id] * size * len(attacks), pa.string()),
        "record_id": pa.array(list(record_ids) * len(attacks), pa.string()),
        "channel": pa.array(_repeat([CHANNELS[attack] for attack in attacks], size), pa.string()),
        "attack": pa.array(_repeat(attacks, size), pa.string()),
        "params_hash": pa.array(_repeat([hashes[attack] for attack in attacks], size), pa.string()),
        "score": pa.array(np.concatenate([scores[attack] for attack in attacks]), pa.float64()),
        "member": pa.array(np.tile(audited.is_member, len(attacks)), pa.bool_()),
        "k_in": pa.array(np.zeros(size * len(attacks), dtype=np.int64)),
        "k_out": pa.array(np.zeros(size * len(attacks), dtype=np.int64)),
    }
    return pa.table(columns)


def _notes(target: Target, valid: bool | None) -> list[str]:
    said = [
        (INDICATOR_NOTE, True),
        (PRIVATE_NOTE, True),
        (VOID_NOTE, valid is False),
        (UNKNOWN_NOTE, valid is None),
        (USERS_NOTE, target.unit == "user"),
        (SEEDED_NOTE, target.is_seeded),
    ]
    return [note for note, applies in said if applies]


def _gather(split: Split, places: Sequence[tuple[bool, int]]) -> Records:
    """Return the records at (is member, index), in that order, as one ``Records``."""

    def take(column: str) -> tuple[str, ...] | None:
        values_of = {True: getattr(split.train, column), False: getattr(split.holdout, column)}
        if None in values_of.values():
            return None
        return tuple(values_of[is_member][index] for is_member, index in places)

    columns = {column: take(column) for column in ("texts", "labels", "record_ids", "user_ids")}
    return dataclasses.replace(split.train, **columns)  # type: ignore[arg-type]  # user_ids alone may be None


def _repeat(values: Sequence[str], times: int) -> list[str]:
    return [value for value in values for _ in range(times)]


def _rank(record_id: str, seed: int) -> bytes:
    return hashlib.sha256(f"draw-v1|{seed}|{record_id}".encode()).digest()


def _params_hash(parameters: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
