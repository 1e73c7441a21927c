"""A file of scores and memberships, read without dropping or guessing anything.

Here: csv and parquet files with one row a record, and the refusals. Elsewhere: what is computed from them
(audit_command.py). A message names the data row (from 1, the header not counted) and the record id, never a value:
the wrong column may hold private text.
"""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from safesynthdp.errors import ConfigError, DataError

RECORD_ID = "record_id"
ONE_VALUE = ("target_id", "channel", "attack", "params_hash")
"""Columns that tell one attack on one target from another; a bound over several of them would mean nothing."""
_MEMBER = {"1": True, "true": True, "1.0": True, "0": False, "false": False, "0.0": False}
Columns = dict[str, list[object]]
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """One attack on one target: a score and a membership for each record, both classes present."""

    scores: NDArray[np.float64]
    """Finite; higher is more member-like."""
    is_member: NDArray[np.bool_]
    """Whether the record was trained on."""
    tie_keys: tuple[str, ...]
    """The record ids, or the row numbers where there are none; distinct."""


def read_score_table(path: Path, *, score_column: str, member_column: str) -> ScoreTable:
    """Read a csv or parquet file.

    Raises:
        ConfigError: If the file or a column is not there, or the file is neither csv nor parquet.
        DataError: If a score is missing, not a number or not finite, a membership is neither, an id is empty or
            stands twice, there are no rows, one class only, or several targets, channels or attacks.
    """
    columns = _read_columns(path, needed=(score_column, member_column), optional=(RECORD_ID, *ONE_VALUE))
    num_rows = len(columns[score_column])
    if not num_rows:
        raise DataError(f"{path}: no rows below the header; give one row a record")
    for name in ONE_VALUE:
        if (found := len(set(columns.get(name, ())))) > 1:
            raise DataError(f"{path}: column {name} holds {found} values; keep the rows of one, or use 'attack score'")
    keys = _tie_keys(columns, num_rows, path)
    ids = keys if RECORD_ID in columns else None
    scores = np.asarray(_convert(columns, score_column, _score, path=path, ids=ids), dtype=np.float64)
    is_member = np.asarray(_convert(columns, member_column, _member, path=path, ids=ids), dtype=np.bool_)
    if is_member.all() or not is_member.any():
        which = "members" if is_member.all() else "non-members"
        raise DataError(f"{path}: all {num_rows} records are {which}; an audit needs both")
    return ScoreTable(scores=scores, is_member=is_member, tie_keys=keys)


def _read_columns(path: Path, *, needed: Sequence[str], optional: Sequence[str]) -> Columns:
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; give a csv or parquet file of scores")
    if path.suffix.lower() not in readers:
        raise ConfigError(f"{path} ends in '{path.suffix}'; give a .csv or .parquet file")
    return readers[path.suffix.lower()](path, needed, optional)


def _read_csv(path: Path, needed: Sequence[str], optional: Sequence[str]) -> Columns:
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            rows = list(csv.reader(handle, strict=True))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path} is not valid csv ({error}); write it again with a csv library") from error
    while rows and not rows[-1]:
        rows.pop()
    if not rows:
        raise DataError(f"{path} is empty; give a header and one row a record")
    header, body = rows[0], rows[1:]
    for number, row in enumerate(body, start=1):
        if len(row) != len(header):
            raise DataError(f"{path}, row {number}: {len(row)} fields, the header has {len(header)}; repair the row")
    where = _positions(header, path, needed, optional)
    return {name: [row[index] for row in body] for name, index in where.items()}


def _read_parquet(path: Path, needed: Sequence[str], optional: Sequence[str]) -> Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            where = _positions(file.schema_arrow.names, path, needed, optional)
            table = file.read(columns=list(where))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet ({type(error).__name__}); write it again") from error
    return {name: table.column(name).to_pylist() for name in where}


def _positions(header: Sequence[str], path: Path, needed: Sequence[str], optional: Sequence[str]) -> dict[str, int]:
    """Return where each wanted column stands; a needed one must stand there, and none may stand twice."""
    for name in needed:
        if name not in header:
            raise ConfigError(f"{path} has no column {name}; it has {', '.join(header)}: name one with --*_column")
    wanted = dict.fromkeys([*needed, *(name for name in optional if name in header)])
    for name in wanted:
        if list(header).count(name) > 1:
            raise DataError(f"{path}: the column {name} stands twice; keep one")
    return {name: list(header).index(name) for name in wanted}


def _tie_keys(columns: Columns, num_rows: int, path: Path) -> tuple[str, ...]:
    if RECORD_ID not in columns:
        return tuple(str(number) for number in range(1, num_rows + 1))
    first_row = dict[str, int]()
    for number, value in enumerate(columns[RECORD_ID], start=1):
        key = "" if value is None else str(value)
        if not key.strip():
            raise DataError(f"{path}, row {number}: {RECORD_ID} is empty; give every record its id")
        if key in first_row:
            raise DataError(
                f"{path}, row {number} ({RECORD_ID} {key}): row {first_row[key]} has the same id; keep one row a record"
            )
        first_row[key] = number
    return tuple(first_row)


def _convert(
    columns: Columns, name: str, convert: Callable[[object], Value], *, path: Path, ids: Sequence[str] | None
) -> list[Value]:
    values = list[Value]()
    for index, value in enumerate(columns[name]):
        try:
            values.append(convert(value))
        except ValueError as error:
            who = f" ({RECORD_ID} {ids[index]})" if ids is not None else ""
            raise DataError(f"{path}, row {index + 1}{who}: {name} {error}") from None
    return values


def _score(value: object) -> float:
    """Return a finite float; a ValueError says what else the value is, without the value."""
    if value is None or value == "":
        raise ValueError("is empty; score every record")
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str) or "_" in str(value):
        raise ValueError("is not a number; name the column of scores with --score_column")
    try:
        number = float(value)
    except ValueError:
        raise ValueError("is not a number; name the column of scores with --score_column") from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"is {'NaN' if math.isnan(number) else 'infinite'}; repair the signal, do not drop the row")
    return number


def _member(value: object) -> bool:
    """Return the membership; a ValueError where the value is neither."""
    known = str(value).strip().casefold()
    if value is None or isinstance(value, bytes) or known not in _MEMBER:
        raise ValueError("is neither true nor false; write true/false or 1/0")
    return _MEMBER[known]
