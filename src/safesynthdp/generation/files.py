"""The files of a sample directory: finished rows while the work goes on, whole tables at its end.

Here: parts under state/ that make a run resumable, synthetic.parquet and synthetic.csv. Elsewhere: the ledger
(release.py), the manifest (runs.py). A part, like the result, is post-processing; it lies in state/ because it is not
the result.
"""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from safesynthdp.errors import SafeSynthError
from safesynthdp.generation.texts import SampledText
from safesynthdp.privacy.storage import write_atomically
from safesynthdp.runs import RunDirectory

PARQUET = "synthetic.parquet"
CSV = "synthetic.csv"
COLUMNS: tuple[str, ...] = ("text", "label", "record_id")
_PART = "rows-*.parquet"


def save_part(run: RunDirectory, texts: Sequence[SampledText]) -> None:
    """Keep finished rows; the file is named by the first of them, and no row is in two files."""
    if texts:
        table = pa.Table.from_pylist([dataclasses.asdict(text) for text in texts])
        _write_parquet(run.state / _PART.replace("*", f"{texts[0].number:09d}"), table)


def load_parts(run: RunDirectory) -> dict[int, SampledText]:
    """Return the rows an earlier process finished, by number.

    Raises:
        SafeSynthError: If a part is damaged.
    """
    found = dict[int, SampledText]()
    for path in sorted(run.state.glob(_PART)):
        try:
            texts = [SampledText(**row) for row in pq.read_table(path).to_pylist()]
        except (pa.ArrowException, OSError, TypeError) as error:
            raise SafeSynthError(f"{path} cannot be read back; delete it, and its rows are drawn again") from error
        found |= {text.number: text for text in texts}
    return found


def write_tables(run: RunDirectory, texts: Mapping[int, SampledText], labels: Sequence[str], *, with_csv: bool) -> None:
    """Write synthetic.parquet (and .csv), one line a row in the order of the plan."""
    rows = [
        {"text": texts[number].text, "label": label, "record_id": f"s-{number + 1:06d}"}
        for number, label in enumerate(labels)
    ]
    if with_csv:
        write_atomically(run.path / CSV, lambda target: _write_csv(target, rows))
    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    _write_parquet(run.path / PARQUET, pa.Table.from_pylist(rows, schema=schema))


def drop_parts(run: RunDirectory) -> None:
    """Remove what only served to resume."""
    for path in run.state.glob(_PART):
        path.unlink()


def _write_parquet(path: Path, table: pa.Table) -> None:
    write_atomically(path, lambda target: pq.write_table(table, target))


def _write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
