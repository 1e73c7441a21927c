"""From a file or a dataset to raw columns, or one line that says why not.

Here: which reader, parquet, ``datasets``; ``Table``. Elsewhere: csv and jsonl (text_files.py), what a cell may hold
(cells.py). Rows are counted from 1, the header not among them. A message names columns and row numbers, never a cell.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safesynthdp.errors import ConfigError, DataError, MissingColumn, SafeSynthError

_SHOWN_NAME = re.compile(r"[\w.;:/|-]{1,40}")  # without spaces: a csv without a header has a private text up there
_SHOWN_COLUMNS = 20


@dataclass(frozen=True, kw_only=True)
class Table:
    """Raw columns of one source; cells are whatever the reader gave."""

    name: str
    """The file or dataset, for messages."""
    columns: Mapping[str, Sequence[object]] = field(repr=False)
    lines: Sequence[int] | None = field(default=None, repr=False)
    """In which line of the file each row begins, for readers that know."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def where(self, index: int) -> str:
        """Name the place of a row for a message."""
        line = "" if self.lines is None else f" (line {self.lines[index]})"
        return f"{self.name}, row {index + 1}{line}"


def read_file(path: str | Path, columns: Sequence[str]) -> Table:
    """Read ``columns`` of a .csv, .jsonl (or .json, one object a line) or .parquet file.

    Raises:
        DataError: If it is missing, of another kind, not UTF-8, malformed, empty, or lacks a column.
    """
    from safesynthdp.text_files import read_csv, read_jsonl

    path = Path(path)
    readers = {".csv": read_csv, ".jsonl": read_jsonl, ".json": read_jsonl, ".parquet": _read_parquet}
    if path.is_dir():
        raise DataError(f"{path} is a directory; give a .csv, .jsonl or .parquet file")
    if not path.exists():
        raise DataError(f"{path}: there is no such file; check the path")
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: files that end in '{path.suffix}' are not read; convert it to .csv, .jsonl, .parquet")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; give a file with records")
        table = readers[path.suffix.lower()](path, columns)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or 'damaged file'}); check the file") from error
    if len(table) == 0:
        raise DataError(f"{path} holds no records, only a header; give a file with records")
    return table


def require_columns(name: str, wanted: Sequence[str], found: Sequence[str]) -> None:
    """Refuse a source without a wanted column, and show those it has as far as they look like names.

    Raises:
        MissingColumn: With the missing column and the names found.
        DataError: If a wanted column stands there twice.
    """
    for column in wanted:
        if found.count(column) > 1:
            raise DataError(f"{name} has the column '{column}' {found.count(column)} times; rename all but one")
        if column not in found:
            shown = [c for c in found if _SHOWN_NAME.fullmatch(c)][:_SHOWN_COLUMNS]
            hidden = len(found) - len(shown)
            more = f" and {hidden} not shown (is the first line a header?)" if hidden else ""
            raise MissingColumn(f"{name} has no column '{column}'; it has: {', '.join(shown) or 'none'}{more}")


def _read_parquet(path: Path, columns: Sequence[str]) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as opened:
            require_columns(str(path), columns, opened.schema_arrow.names)
            read = opened.read(columns=list(columns))
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable parquet file; write it again") from error
    return _from_arrow(str(path), read, columns)


def read_dataset(name: str, config: str | None, split: str, columns: Sequence[str]) -> Table:
    """Read ``columns`` of one split of what ``datasets.load_dataset`` finds under ``name``; class labels by name.

    Raises:
        ConfigError: If the dataset has no such configuration or split.
        DataError: If it is not there, cannot be built, or lacks a column.
        SafeSynthError: If the hub cannot be reached.
    """
    found = _load_dataset(name, config, split)
    require_columns(name, columns, found.column_names)
    if len(found) == 0:
        raise DataError(f"data.dataset_name={name}: split '{split}' holds no records; name another data.dataset_split")
    table = _from_arrow(name, found.with_format("arrow")[:], columns)
    return Table(name=name, columns={c: _class_names(table, c, found.features[c]) for c in columns})


def _load_dataset(name: str, config: str | None, split: str) -> Any:
    import datasets
    import pyarrow
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    missing = f"data.dataset_name={name}: no such dataset here or on the hub; give a local folder or data.train_file"
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its errors quote what they could not parse
    try:
        found = datasets.load_dataset(name, config, split=split)
    except (DatasetNotFoundError, FileNotFoundError) as error:
        raise DataError(missing) from error
    except (ConnectionError, TimeoutError) as error:
        raise _hub_error(name) from error
    except (DatasetsError, pyarrow.ArrowException) as error:
        raise DataError(
            f"data.dataset_name={name} cannot be built ({type(error).__name__}); check its files"
        ) from error
    except ValueError as error:
        if "BuilderConfig" in str(error) or "Config name is missing" in str(error):
            raise ConfigError(f"data.dataset_config={config}: {_first_line(error)}") from error
        if "Unknown split" in str(error) or "Bad split" in str(error):
            raise ConfigError(f"data.dataset_split={split}: {_first_line(error)}") from error
        raise DataError(f"data.dataset_name={name} cannot be read ({type(error).__name__}); check its files") from error
    except (OSError, RuntimeError) as error:
        raise _hub_error(name) from error
    finally:
        datasets.logging.set_verbosity(verbosity)
    return found


def _hub_error(name: str) -> SafeSynthError:
    return SafeSynthError(
        f"data.dataset_name={name}: the hub cannot be reached; check the network, or give a local folder, "
        "data.train_file or data.builtin"
    )


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _from_arrow(name: str, read: Any, columns: Sequence[str]) -> Table:
    return Table(name=name, columns={column: _cells(name, column, read.column(column)) for column in columns})


def _cells(name: str, column: str, values: Any) -> list[object]:
    """Arrow strings need not be UTF-8: say which one is not."""
    try:
        return list(values.to_pylist())
    except UnicodeDecodeError:
        pass
    for index in range(len(values)):
        try:
            values[index].as_py()
        except UnicodeDecodeError as error:
            raise DataError(f"{name}, row {index + 1}: column '{column}' is not UTF-8; convert to UTF-8") from error
    raise DataError(f"{name}: column '{column}' is not UTF-8; convert to UTF-8")


def _class_names(table: Table, column: str, feature: Any) -> list[object]:
    """Turn the integers of a ``ClassLabel`` into its names; -1 means unlabelled there."""
    names = getattr(feature, "names", None)
    values = list(table.columns[column])
    if names is None:
        return values
    return [names[v] if isinstance(v, int) and 0 <= v < len(names) else None for v in values]
