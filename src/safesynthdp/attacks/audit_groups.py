"""The table ``scores`` cut into what is audited together: one attack, one kind of record, one target.

Here: the cut, and the sum over a user's records. Elsewhere: the rows (audit_rows.py), which groups are tested at which
alpha (pool_audit.py). numpy and pyarrow only. Shapes: R units of a group.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from safesynthdp.attacks.metrics import Scores
from safesynthdp.attacks.pool_signals import coded
from safesynthdp.attacks.signals import named
from safesynthdp.errors import DataError

NATURAL = "natural"
COLUMNS = ("target_id", "record_id", "channel", "attack", "score", "member", "k_in", "k_out")
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Records that are audited together: natural ones, or canaries of one kind and number of copies."""

    name: str
    group_size: int


@dataclass(frozen=True, kw_only=True)
class Side:
    """One attack on one target: a score a unit, and the coins."""

    target_id: str
    scores: Scores
    """[R] finite; higher is more member-like."""
    is_member: Bools
    unit_ids: Sequence[str]
    is_calibration: Bools
    """Which units, were they out, would set a threshold: a fair hash of the id, so no look at scores or labels."""
    num_references: int


@dataclass(frozen=True, kw_only=True)
class Group:
    """One attack on one kind of record, all targets."""

    channel: str
    attack: str
    kind: Kind
    sides: Sequence[Side]


class Population:
    """Kind, unit and half of each record."""

    def __init__(self, record_ids: Sequence[str], records: pa.Table | None, *, unit: str) -> None:
        self.record_ids = record_ids
        kinds = dict.fromkeys(record_ids, Kind(name=NATURAL, group_size=1))
        units = {record_id: record_id for record_id in record_ids}
        if records is not None:
            kinds, units = _from_records(record_ids, records, unit=unit)
        self.kinds = list(dict.fromkeys(kinds.values()))
        self.kind_of = np.asarray([self.kinds.index(kinds[i]) for i in record_ids], dtype=np.int64)
        names = {name: number for number, name in enumerate(dict.fromkeys(units.values()))}
        self.unit_ids = list(names)
        self.unit_of = np.asarray([names[units[i]] for i in record_ids], dtype=np.int64)
        self.is_calibration = np.asarray([_half(name) for name in self.unit_ids], dtype=np.bool_)
        self._last = (np.zeros(0, dtype=np.int64), list[str]())

    def names(self, units: NDArray[np.int64]) -> Sequence[str]:
        """Return the ids of these units; sides of the same units share one list, or a large pool holds hundreds."""
        if not np.array_equal(units, self._last[0]):
            self._last = (units, [self.unit_ids[unit] for unit in units.tolist()])
        return self._last[1]


def groups(scores: pa.Table, records: pa.Table | None, *, units: Mapping[str, str]) -> Iterator[Group]:
    """Yield the groups of a table, in its order.

    Args:
        scores: Rows of several attacks and targets.
        records: record_id, unit_id, group_size, canary_kind; None = natural records, each its own unit.
        units: Channel -> whom its claim protects, record or user; a user's scores are added up.

    Raises:
        DataError: If a column is missing, a score is not finite, a record stands twice for one target and attack, or a
            user has records in and out.
    """
    missing = [name for name in COLUMNS if name not in scores.column_names]
    if missing:
        raise DataError(f"scores: no column {', '.join(missing)}; write the table with attack score")
    found_in = {name: coded(scores[name], table="scores") for name in ("record_id", "channel", "attack")}
    words = {name: [str(word) for word in column.dictionary.to_pylist()] for name, column in found_in.items()}
    places = {name: column.indices.to_numpy(zero_copy_only=False) for name, column in found_in.items()}
    populations = {u: Population(words["record_id"], records, unit=u) for u in sorted({"record", *units.values()})}
    code = places["channel"].astype(np.int16) * len(words["attack"]) + places["attack"]
    for found in dict.fromkeys(code[np.sort(np.unique(code, return_index=True)[1])].tolist()):
        channel, attack = words["channel"][found // len(words["attack"])], words["attack"][found % len(words["attack"])]
        here = code == found
        part = scores.select(["target_id", "score", "member", "k_in", "k_out"]).filter(pa.array(here))
        yield from _of_attack(
            channel, attack, part, places["record_id"][here], populations[units.get(channel, "record")]
        )


def _of_attack(
    channel: str, attack: str, part: pa.Table, record_of: NDArray[np.int32], population: Population
) -> Iterator[Group]:
    """Yield the groups of one attack: its rows by kind of record, and these by target."""
    targets_of = coded(part["target_id"], table="scores")
    names, target_of = (
        [str(name) for name in targets_of.dictionary.to_pylist()],
        targets_of.indices.to_numpy(zero_copy_only=False),
    )
    values = np.asarray(part["score"].to_numpy(), dtype=np.float64)
    is_member = np.asarray(part["member"].to_numpy(zero_copy_only=False), dtype=np.bool_)
    references = np.asarray(part["k_in"].to_numpy(), dtype=np.int64) + part["k_out"].to_numpy()
    broken = [population.record_ids[int(record)] for record in record_of[~np.isfinite(values)]]
    _refuse(broken, "a score that is NaN or infinite")
    for number, kind in enumerate(population.kinds):
        is_chosen = population.kind_of[record_of] == number
        targets = dict.fromkeys(target_of[is_chosen].tolist())
        split = [np.flatnonzero(is_chosen & (target_of == target)) for target in targets]
        sides = [
            _side(names[target], record_of[r], values[r], is_member[r], references[r], population)
            for target, r in zip(targets, split, strict=True)
        ]
        if sides:
            yield Group(channel=channel, attack=attack, kind=kind, sides=sides)


def _side(
    target_id: str,
    records: NDArray[np.int32],
    scores: Scores,
    is_member: Bools,
    references: NDArray[np.int64],
    population: Population,
) -> Side:
    twice = int((np.bincount(records) > 1).sum())
    if twice:
        raise DataError(f"scores: {twice} records stand twice for target {target_id}")
    units, unit_of = np.unique(population.unit_of[records], return_inverse=True)
    sums = np.bincount(unit_of, weights=scores, minlength=len(units))
    inside = np.bincount(unit_of, weights=is_member, minlength=len(units))
    sizes = np.bincount(unit_of, minlength=len(units))
    _refuse([population.unit_ids[u] for u in units[(inside > 0) & (inside < sizes)]], "records both in and out")
    return Side(
        target_id=target_id,
        scores=sums.astype(np.float64),
        is_member=inside > 0,
        unit_ids=population.names(units),
        is_calibration=population.is_calibration[units],
        num_references=int(references.max(initial=0)),
    )


def _from_records(record_ids: Sequence[str], records: pa.Table, *, unit: str) -> tuple[dict[str, Kind], dict[str, str]]:
    known = records["record_id"].to_pylist()
    copies = records["group_size"].to_pylist() if "group_size" in records.column_names else [1] * len(known)
    named_kinds = records["canary_kind"].to_pylist() if "canary_kind" in records.column_names else [None] * len(known)
    units = records["unit_id"].to_pylist() if unit == "user" else known
    kinds = {
        record_id: Kind(name=kind or NATURAL, group_size=int(size or 1))
        for record_id, kind, size in zip(known, named_kinds, copies, strict=True)
    }
    _refuse([record_id for record_id in record_ids if record_id not in kinds], "no row in the table of records")
    unit_of = dict(zip(known, map(str, units), strict=True))
    return {i: kinds[i] for i in record_ids}, {i: unit_of[i] for i in record_ids}


def _half(unit_id: str) -> bool:
    return bool(hashlib.sha256(f"half-v1|{unit_id}".encode()).digest()[-1] & 1)


def _refuse(ids: Sequence[str], what: str) -> None:
    if ids:
        raise DataError(f"scores: {len(ids)} have {what} ({named(list(ids))}); nothing is dropped, repair them")
