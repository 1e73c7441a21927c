"""The records of a pool: which are in every model, which are audited by a coin, which are made up.

Here: choosing roles, and the one file that all models read. Elsewhere: the coins (assignment.py), canaries
(canaries.py), reading the file (records.py). A unit is a record, or a user with ``unit: user``.

Guarantee:
    Roles are settled before any coin, from texts and a hash alone. A unit is audited only if none of its texts stands
    in another unit, on either side of the split: else a copy would make a non-member a member.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from safesynthdp.errors import DataError, SafeSynthError
from safesynthdp.privacy.storage import write_atomically
from safesynthdp.record_set import record_hashes
from safesynthdp.records import DataConfig, Records, Split, canonical_text, load_split

Role = Literal["base", "audit", "canary"]
TEXT, LABEL, USER = "text", "label", "user"


class MadeUp(Protocol):
    """A canary, as far as a pool looks at it."""

    @property
    def record_id(self) -> str:
        """Its name among the canaries."""
        ...

    @property
    def text(self) -> str:
        """What is put in."""
        ...

    @property
    def label(self) -> str:
        """One of the label set."""
        ...

    @property
    def kind(self) -> str:
        """How it was made."""
        ...

    @property
    def group_size(self) -> int:
        """How many copies go in together."""
        ...


@dataclass(frozen=True, kw_only=True)
class PoolRecord:
    """One record as the pool's tables name it; a canary stands for all its copies."""

    record_id: str
    text: str
    label: str
    user_id: str | None
    role: Role
    unit_id: str
    group_size: int = 1
    canary_kind: str | None = None


@dataclass(frozen=True, kw_only=True)
class PoolData:
    """Every record of a pool."""

    records: tuple[PoolRecord, ...]
    """By id."""
    rows: tuple[tuple[str, str], ...]
    """(id in the training file, record_id) of every row of it, by id; copies of a canary are rows of their own."""

    @property
    def audited(self) -> tuple[PoolRecord, ...]:
        """The records that a coin decides on."""
        return tuple(record for record in self.records if record.role != "base")

    def nominal(self, *, unit: str) -> int:
        """Return the planned size in units: all that is in every model and half of what coins decide on."""
        if unit == "user":
            audited = len({record.unit_id for record in self.audited})
            return len({record.unit_id for record in self.records}) - audited + audited // 2
        tossed = sum(record.group_size for record in self.audited)
        return len(self.rows) - tossed + tossed // 2

    @property
    def fingerprint(self) -> str:
        """SHA-256 over ids, roles, units and group sizes."""
        lines = sorted("|".join((r.record_id, r.role, r.unit_id, str(r.group_size))) for r in self.records)
        return hashlib.sha256("\n".join(["pool-v1", *lines]).encode()).hexdigest()


def compose(
    split: Split, canaries: Sequence[MadeUp], *, num_audit: int, seed: int, unit: str, both_sides: bool = False
) -> PoolData:
    """Choose who is audited among the training side, and add the canaries.

    Args:
        split: Of the recipe's records; of the holdout only copies of training texts matter.
        canaries: Made up, each with a text that no record has.
        num_audit: At most so many natural units: those with the smallest hash of seed and id.
        seed: Of that choice.
        unit: record or user.
        both_sides: Audit as many units of the holdout (at most half of it) as of the training side: the target is a
            run that exists, which has all of the one and none of the other.

    Raises:
        DataError: If fewer than two units can be audited, or a canary is also a record.
    """
    train = split.train
    units = _units(train, unit)
    lone = [sorted(names, key=lambda name: _rank(name, seed)) for names in _lone_units(split, unit)]
    share = min(num_audit // 2, len(lone[0]), len(lone[1]) // 2) if both_sides else num_audit
    audited, held = set(lone[0][:share]), set(lone[1][:share] if both_sides else [])
    if len(audited) + len(canaries) < 2:
        raise DataError(
            f"num_audit={num_audit}: {len(audited)} of {len(set(units))} {unit}s can be audited (those without a copy "
            "of their text elsewhere); add canaries or records"
        )
    natural = [
        PoolRecord(
            record_id=train.record_ids[i],
            text=train.texts[i],
            label=train.labels[i],
            user_id=None if train.user_ids is None else train.user_ids[i],
            role="audit" if units[i] in audited else "base",
            unit_id=units[i],
        )
        for i in range(len(train))
    ]
    if both_sides and not audited:
        raise DataError(
            f"num_audit={num_audit}: the holdout has no two {unit}s without a copy; train with a larger holdout_percent"
        )
    outside = split.holdout
    natural += [
        PoolRecord(
            record_id=outside.record_ids[i],
            text=outside.texts[i],
            label=outside.labels[i],
            user_id=None if outside.user_ids is None else outside.user_ids[i],
            role="audit",
            unit_id=name,
        )
        for i, name in enumerate(_units(outside, unit))
        if name in held
    ]
    made_up = [_canary(canary, unit=unit, has_users=train.user_ids is not None) for canary in canaries]
    _refuse_copies(split, made_up)
    rows = [(record.record_id, record.record_id) for record in natural]
    rows += [(row, record.record_id) for record in made_up for row in _row_ids(record)]
    records = sorted([*natural, *made_up], key=lambda record: record.record_id)
    return PoolData(records=tuple(records), rows=tuple(sorted(rows)))


def choose_population(reference: Records, *, num_population: int, seed: int) -> Records:
    """Return at most so many records that no model is trained on: those with the smallest hash of seed and id."""
    ranked = sorted(range(len(reference)), key=lambda i: _rank(reference.record_ids[i], seed))
    return reference.select(sorted(ranked[:num_population]))


def write_training_file(path: Path, data: PoolData, *, labels: Sequence[str] | None) -> None:
    """Write the file that all models of the pool read, one line a row, and check that it is read back as meant.

    Raises:
        SafeSynthError: If the ids differ when the file is read.
    """
    by_id = {record.record_id: record for record in data.records}
    lines = [by_id[record_id] for _, record_id in data.rows]
    columns = {TEXT: [line.text for line in lines], LABEL: [line.label for line in lines]}
    users = [line.user_id for line in lines if line.user_id is not None]
    table = pa.table(columns | ({USER: users} if users else {}))
    write_atomically(path, lambda target: pq.write_table(table, target), private=True)
    config = training_data_config(path, labels=labels, has_users=bool(users))
    if sorted(load_split(config).train.record_ids) != [row for row, _ in data.rows]:
        raise SafeSynthError(f"{path}: the pool's records are not read back under the ids they were planned with")


def training_data_config(path: Path, *, labels: Sequence[str] | None, has_users: bool) -> DataConfig:
    """Return how the pool's training file is read: everything is on the training side."""
    return DataConfig(
        train_file=str(path),
        text_column=TEXT,
        label_column=LABEL,
        user_column=USER if has_users else None,
        labels=None if labels is None else list(labels),
        holdout_percent=0,
    )


def membership_table(rows: Sequence[tuple[str, str]], is_member: Mapping[str, bool]) -> pa.Table:
    """Return the membership file of one model: every row of the training file; base records are members.

    Args:
        rows: (id in the training file, record_id).
        is_member: The bit of every audited record.
    """
    member = [is_member.get(record_id, True) for _, record_id in rows]
    return pa.table({"record_id": [row for row, _ in rows], "member": pa.array(member, pa.bool_())})


def _canary(canary: MadeUp, *, unit: str, has_users: bool) -> PoolRecord:
    """A canary is its own user, and its id is that of its content, as for any record."""
    owner = f"canary {canary.record_id}" if has_users else None
    (record_id,) = record_hashes([canary.text], [canary.label], None if owner is None else [owner])
    return PoolRecord(
        record_id=record_id,
        text=canary.text,
        label=canary.label,
        user_id=owner,
        role="canary",
        unit_id=owner if unit == "user" and owner is not None else record_id,
        group_size=canary.group_size,
        canary_kind=canary.kind,
    )


def _row_ids(record: PoolRecord) -> list[str]:
    """Return the ids that the copies of a canary get when the training file is read."""
    copies = record.group_size
    users = None if record.user_id is None else [record.user_id] * copies
    return record_hashes([record.text] * copies, [record.label] * copies, users)


def _refuse_copies(split: Split, made_up: Sequence[PoolRecord]) -> None:
    texts = Counter(canonical_text(text) for text in split.train.texts)
    texts.update(canonical_text(record.text) for record in made_up)
    if any(texts[canonical_text(record.text)] > 1 for record in made_up):
        raise DataError(
            f"canaries.kind={made_up[0].canary_kind}: a canary has the text of a record or of another canary; give "
            "another seed, or ask for fewer"
        )


def _units(records: Records, unit: str) -> list[str]:
    return list(records.user_ids if unit == "user" and records.user_ids is not None else records.record_ids)


def _lone_units(split: Split, unit: str) -> tuple[list[str], list[str]]:
    """Return the units of each side none of whose texts stands in another unit, on either side."""
    sides = [_units(records, unit) for records in (split.train, split.holdout)]
    owners = defaultdict[str, set[tuple[int, str]]](set)
    for side, (names, records) in enumerate(zip(sides, (split.train, split.holdout), strict=True)):
        for text, owner in zip(records.texts, names, strict=True):
            owners[canonical_text(text)].add((side, owner))
    shared = {owner for who in owners.values() if len(who) > 1 for owner in who}
    first, second = ([n for n in sorted(set(names)) if (side, n) not in shared] for side, names in enumerate(sides))
    return first, second


def _rank(unit: str, seed: int) -> bytes:
    return hashlib.sha256(f"audit-v1|{seed}|{unit}".encode()).digest()
