"""Private labelled text in: read, checked, split into what is trained on and what is never touched.

Here: the way from a ``DataConfig`` to two sets of records. Elsewhere: the keys (data_config.py), readers (sources.py),
what a cell may hold (cells.py), ids and the split rule (record_set.py), demo text (builtins_vader.py).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from safesynthdp import builtins_vader
from safesynthdp.cells import Cells, check_cells
from safesynthdp.data_config import DataConfig
from safesynthdp.errors import DataError, LedgerMismatch, UserError
from safesynthdp.fetching import Say, fetch, say_on_stderr
from safesynthdp.record_set import NUM_BUCKETS, Records, canonical_text, record_hashes, split_bucket, user_bucket
from safesynthdp.runs import RunDirectory
from safesynthdp.sources import Table, read_dataset, read_file

__all__ = [
    "DataConfig",
    "Records",
    "Split",
    "canonical_text",
    "load_split",
    "read_records",
    "split_bucket",
    "split_of_run",
]


@dataclass(frozen=True, kw_only=True)
class Split:
    """Two disjoint sets of records with one label set."""

    train: Records
    holdout: Records
    """Never seen by training, prompts, filters or tuning; empty if ``holdout_percent`` is 0."""


def load_split(data: DataConfig, *, say: Say = say_on_stderr) -> Split:
    """Read the configured records and split them.

    Guarantee:
        Which side a record falls on, and whether it is left out for an empty text, depends on that record (or its
        user) alone. ``max_records`` is the exception and stands in ``not_covered``; so does a label set that was read
        from the data.

    Args:
        data: Checked when it was made.
        say: Gets one line before a download.

    Raises:
        DataError: If a cell, a column or the file is not usable, or there is one label only.
        SafeSynthError: If a builtin or a dataset cannot be fetched.
    """
    table = _read_table(data, say)
    public = _public_labels(data)
    cells = check_cells(
        table,
        text_column=data.text_column,
        label_column=data.label_source,
        user_column=data.user_column,
        labels=public,
    )
    records, order = _assemble(cells, labels=public)
    records = _with_notes(records, data, cells)
    _refuse_single_label(records, data, table.name)
    for label in data.label_descriptions or {}:
        if label not in records.label_set:
            raise DataError(f"data.label_descriptions.{label} describes no label of {table.name}; correct it")
    buckets = _buckets(records, cells, order, table)
    is_train = [bucket < NUM_BUCKETS - data.holdout_percent for bucket in buckets]
    train = records.select(index for index, here in enumerate(is_train) if here)
    holdout = records.select(index for index, here in enumerate(is_train) if not here)
    train = _keep_members(_keep_at_most(train, data.max_records), data.membership_file)
    if not len(train):
        raise DataError(f"{table.name}: no record is left to train on; add records or lower data.holdout_percent")
    if data.holdout_percent and not len(holdout):
        line = f"data.holdout_percent={data.holdout_percent}, but no record fell on the held-out side: too few records"
        train = replace(train, warnings=(*train.warnings, line))
    return Split(train=train, holdout=holdout)


def read_records(
    path: str | Path,
    *,
    text_column: str = "text",
    label_column: str | None = "label",
    user_column: str | None = None,
    labels: Sequence[str] | None = None,
) -> Records:
    """Read one csv, jsonl or parquet file, real or synthetic, without splitting it.

    Args:
        path: The file.
        text_column: Column of the text.
        label_column: Column of the label; None reads no labels (all empty, label set empty).
        user_column: Column of the user id, if there is one.
        labels: The label set where it is public; a record outside it is an error.

    Raises:
        DataError: If the file, a column or a cell is not usable.
    """
    table = read_file(path, [c for c in (text_column, label_column, user_column) if c is not None])
    cells = check_cells(
        table, text_column=text_column, label_column=label_column, user_column=user_column, labels=labels
    )
    records, _ = _assemble(cells, labels=labels)
    return replace(records, warnings=_empty_warning(cells))


def split_of_run(run: RunDirectory) -> Split:
    """Read again what a finetune run was trained on.

    Raises:
        LedgerMismatch: If the records are no longer the ones the run names in its manifest.
        UserError: If the run has no data section (it is not the output of a finetune).
    """
    try:
        data = DataConfig(**run.config()["data"])
        then = str(run.manifest["data"]["fingerprint"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{run.path} does not say what it was trained on; give the output_dir of a finetune") from error
    split = load_split(data)
    if split.train.fingerprint != then:
        raise LedgerMismatch(
            f"{run.path}: its training records are not what they were (fingerprint {split.train.fingerprint[:12]}, "
            f"manifest {then[:12]}); restore the data named in its config.yaml"
        )
    return split


def _read_table(data: DataConfig, say: Say) -> Table:
    if data.builtin is not None:
        return builtins_vader.read_vader(fetch(data.builtin, say=say))
    columns = [c for c in (data.text_column, data.label_column, data.user_column) if c is not None]
    if data.dataset_name is not None:
        return read_dataset(data.dataset_name, data.dataset_config, data.dataset_split or "train", columns)
    assert data.train_file is not None  # DataConfig saw to it
    return read_file(data.train_file, columns)


def _public_labels(data: DataConfig) -> tuple[str, ...] | None:
    if data.labels is not None:
        return tuple(data.labels)
    return builtins_vader.LABEL_SETS[data.label_source] if data.builtin is not None else None


def _assemble(cells: Cells, *, labels: Sequence[str] | None) -> tuple[Records, list[int]]:
    """Return the records sorted by id, and the position each had in ``cells``."""
    found = cells.labels if cells.labels is not None else [""] * len(cells.texts)
    record_ids = record_hashes(cells.texts, found, cells.users)
    order = sorted(range(len(record_ids)), key=record_ids.__getitem__)
    label_set = labels if labels is not None else sorted(set(cells.labels or ()))
    users = cells.users
    records = Records(
        texts=tuple(cells.texts[i] for i in order),
        labels=tuple(found[i] for i in order),
        record_ids=tuple(record_ids[i] for i in order),
        user_ids=None if users is None else tuple(users[i] for i in order),
        label_set=tuple(label_set),
        label_set_is_public=labels is not None,
    )
    return records, order


def _buckets(records: Records, cells: Cells, order: Sequence[int], table: Table) -> list[int]:
    """A user has one side; without users a text has, and so have its near-copies."""
    if records.user_ids is not None:
        return [user_bucket(user) for user in records.user_ids]
    raw = table.columns.get(builtins_vader.RAW_TEXT)
    if raw is not None:
        return [split_bucket(str(raw[cells.rows[i]])) for i in order]
    return [split_bucket(text) for text in records.texts]


def _with_notes(records: Records, data: DataConfig, cells: Cells) -> Records:
    if records.label_set_is_public:
        return replace(records, warnings=_empty_warning(cells))
    line = f"data.labels is not set: the label set was read from the private column '{data.label_column}'"
    return replace(records, warnings=(line, *_empty_warning(cells)), not_covered=(line,))


def _empty_warning(cells: Cells) -> tuple[str, ...]:
    if not cells.num_empty:
        return ()
    noun = "record" if cells.num_empty == 1 else "records"
    return (f"{cells.num_empty} {noun} without text left out",)


def _refuse_single_label(records: Records, data: DataConfig, name: str) -> None:
    if len(records.label_set) == 1:
        raise DataError(
            f"{name}: all {len(records)} records have one label; set data.label_column to a column with at least two, "
            "or list every label in data.labels"
        )


def _keep_at_most(train: Records, max_records: int | None) -> Records:
    """Keep the first by id, which is a hash: the same ones in whatever order the file is.

    Adding a record may push another one out, so the line stands even where nothing was left out this time.
    """
    if max_records is None:
        return train
    line = f"data.max_records={max_records} is set: neighbours are defined on the records that were kept"
    return replace(
        train.select(range(min(max_records, len(train)))),
        warnings=(*train.warnings, line),
        not_covered=(*train.not_covered, line),
    )


def _keep_members(train: Records, membership_file: str | None) -> Records:
    if membership_file is None:
        return train
    table = read_file(membership_file, ["record_id", "member"])
    named, flags = list(table.columns["record_id"]), list(table.columns["member"])
    if any(not isinstance(flag, bool) for flag in flags):
        raise DataError(f"{membership_file}: column 'member' must hold true or false; write it as a parquet boolean")
    here, counts = set(train.record_ids), Counter(named)
    unknown, twice = [i for i in counts if i not in here], [i for i in counts if counts[i] > 1]
    if unknown or twice or len(counts) != len(here):
        raise DataError(
            f"{membership_file}: {len(unknown)} ids are unknown, {len(twice)} stand twice, "
            f"{len(here - counts.keys())} of {len(here)} training records are missing; write it again for this data"
        )
    members = {record_id for record_id, flag in zip(named, flags, strict=True) if flag}
    return train.select(i for i, record_id in enumerate(train.record_ids) if record_id in members)
