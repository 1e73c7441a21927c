"""CSV and JSON lines to raw columns.

Here: decoding and the two formats, strict: a stray quote or a short row is an error, since a lenient reader joins or
shifts records in silence. Elsewhere: which reader is used (sources.py), what a cell may hold (cells.py).
"""

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from safesynthdp.errors import DataError
from safesynthdp.sources import Table, require_columns


def read_csv(path: Path, columns: Sequence[str]) -> Table:
    """Read a comma-separated file with a header; quoted fields may hold line breaks, a byte order mark is skipped.

    Raises:
        DataError: If it is not UTF-8, a row is longer or shorter than the header, or a quote stays open.
    """
    rows = _csv_rows(path)
    _, header = next(rows, (1, []))
    require_columns(str(path), columns, header)
    places = [header.index(column) for column in columns]
    lines, cells = list[int](), [list[object]() for _ in columns]
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"{path}, row {len(lines) + 1} (line {line}) has {len(row)} fields, the header has {len(header)}; "
                "put fields that hold commas or line breaks in double quotes"
            )
        lines.append(line)
        for place, column_cells in zip(places, cells, strict=True):
            column_cells.append(row[place])
    return Table(name=str(path), columns=dict(zip(columns, cells, strict=True)), lines=lines)


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line each row begins in, and its fields; blank lines are no rows."""
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), strict=True)
    limit = csv.field_size_limit(sys.maxsize)  # the default refuses texts above 128 KiB
    begins = 1
    try:
        for row in reader:
            if row:
                yield begins, row
            begins = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {begins}: not valid CSV ({error}); check the double quotes there") from error
    finally:
        csv.field_size_limit(limit)


def read_jsonl(path: Path, columns: Sequence[str]) -> Table:
    """Read one JSON object a line; blank lines are skipped, and so are keys that were not asked for.

    Raises:
        DataError: If a line is not a JSON object or lacks a key.
    """
    lines, cells = list[int](), [list[object]() for _ in columns]
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        value = _object(path, number, line)
        if not lines:
            require_columns(str(path), columns, list(value))
        for column, column_cells in zip(columns, cells, strict=True):
            if column not in value:
                raise DataError(
                    f"{path}, row {len(lines) + 1} (line {number}) has no '{column}'; add it or drop the row"
                )
            column_cells.append(value[column])
        lines.append(number)
    return Table(name=str(path), columns=dict(zip(columns, cells, strict=True)), lines=lines)


def _object(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number} is not valid JSON; write one object a line") from error
    if not isinstance(value, dict):
        found = "a list" if isinstance(value, list) else "no object"
        raise DataError(f"{path}, line {number} holds {found}; write one JSON object a line")
    return value


def _decoded(path: Path) -> str:
    """Return the file's text without a byte order mark."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line} (byte {error.start}) is not UTF-8; convert to UTF-8") from error
