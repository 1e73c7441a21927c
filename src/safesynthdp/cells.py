"""From raw cells to texts, labels and user ids, each row judged by itself.

Here: what a cell may hold. Elsewhere: reading cells (sources.py). Every rule looks at one record, so adding or removing
another changes nothing; a message names row and column, never the value.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from safesynthdp.errors import DataError
from safesynthdp.sources import Table

MAX_FOUND_LABELS = 1000  # more distinct values than this, and the column is no label column
MAX_FOUND_LABEL_LENGTH = 200
_NAN_TEXTS = ("nan", "NaN", "NAN")  # how a missing value looks after a trip through text


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Parallel checked columns in the order of the source."""

    texts: list[str] = field(repr=False)
    labels: list[str] | None = field(repr=False)
    users: list[str] | None = field(repr=False)
    rows: list[int] = field(repr=False)
    """Index of each in the table."""
    num_empty: int
    """Records left out because their text is empty or white space."""


def check_cells(
    table: Table, *, text_column: str, label_column: str | None, user_column: str | None, labels: Sequence[str] | None
) -> Cells:
    """Check every cell; leave out records without text.

    Args:
        table: Raw columns.
        text_column: Must hold text, UTF-8.
        label_column: Text, whole numbers or booleans; None reads no labels.
        user_column: Text or whole numbers; None reads no users.
        labels: The only labels allowed; None allows any.

    Raises:
        DataError: If a cell is missing, of another type or outside ``labels``, or no text is left.
    """
    texts = _column(table, text_column, _text)
    found = None if label_column is None else _column(table, label_column, _label_reader(labels))
    users = None if user_column is None else _column(table, user_column, _name)
    if found is not None and label_column is not None:
        _refuse_foreign_labels(table, found, label_column=label_column, labels=labels)
    rows = [index for index, text in enumerate(texts) if text.strip()]
    if not rows:
        raise DataError(f"{table.name}: column '{text_column}' is empty in all {len(texts)} records; name another one")
    return Cells(
        texts=[texts[i] for i in rows],
        labels=None if found is None else [found[i] for i in rows],
        users=None if users is None else [users[i] for i in rows],
        rows=rows,
        num_empty=len(texts) - len(rows),
    )


class _BadCellError(ValueError):
    """What is wrong with a cell, without the cell."""


def _column(table: Table, column: str, read: Callable[[object], str]) -> list[str]:
    values = list[str]()
    for index, cell in enumerate(table.columns[column]):
        try:
            value = read(cell)
            value.encode()  # a lone surrogate from "\ud800" in JSON cannot be written anywhere
        except UnicodeEncodeError as error:
            raise DataError(f"{table.where(index)}: '{column}' is not valid Unicode; fix or drop the row") from error
        except _BadCellError as error:
            raise DataError(f"{table.where(index)}: '{column}' {error}") from error
        values.append(value)
    return values


def _text(cell: object) -> str:
    if isinstance(cell, str):
        return cell
    if _is_missing(cell):
        raise _BadCellError("is missing (null or NaN); drop the row or set text_column")
    raise _BadCellError(f"is {type(cell).__name__}, not text; set text_column to a column of text")


def _label_reader(labels: Sequence[str] | None) -> Callable[[object], str]:
    allowed = set(labels or ())

    def read(cell: object) -> str:
        if isinstance(cell, str) and cell in _NAN_TEXTS and cell not in allowed:
            raise _BadCellError("is NaN; drop the row, or list it in data.labels if it is meant")
        return _name(cell)

    return read


def _name(cell: object) -> str:
    """A label or a user id."""
    if isinstance(cell, str):
        if not cell.strip():
            raise _BadCellError("is empty; fill it in, drop the row or set another column")
        return cell
    if _is_missing(cell):
        raise _BadCellError("is missing (null or NaN); fill it in, drop the row or set another column")
    if isinstance(cell, bool | int) or (isinstance(cell, float) and math.isfinite(cell)):
        return str(cell)
    raise _BadCellError(f"is {type(cell).__name__}, not text or a whole number; set another column")


def _is_missing(cell: object) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _refuse_foreign_labels(table: Table, found: list[str], *, label_column: str, labels: Sequence[str] | None) -> None:
    if labels is not None:
        allowed = set(labels)
        foreign = [index for index, label in enumerate(found) if label not in allowed]
        if foreign:
            raise DataError(
                f"{table.where(foreign[0])}: '{label_column}' is not among data.labels, as in {len(foreign)} of "
                f"{len(found)} records; complete data.labels or drop them"
            )
        return
    distinct = set(found)
    if len(distinct) > MAX_FOUND_LABELS or max(map(len, distinct), default=0) > MAX_FOUND_LABEL_LENGTH:
        raise DataError(
            f"{table.name}: column '{label_column}' holds {len(distinct)} different values or very long ones, so it "
            "reads like text, not labels; set label_column, or list them in data.labels if they are meant"
        )
