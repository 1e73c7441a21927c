"""From four paths to four sets of records, or one line that says why not.

Here: files and run directories, and what is suspicious about them together. Elsewhere: reading one file (records.py).
Real records are read strictly. Synthetic text is not: an empty text, a missing label or a broken character is a finding
about the generator, so it is kept and counted (validity.py) and never dropped or refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safesynthdp.errors import ConfigError, DataError, MissingColumn, UserError
from safesynthdp.record_set import record_hashes
from safesynthdp.records import Records, Split, read_records, split_of_run
from safesynthdp.runs import RunDirectory, parent_of
from safesynthdp.sources import read_file

SYNTHETIC = "synthetic.parquet"
MAX_LABELS_SHOWN = 100
DEFAULT_LABEL_COLUMN = "label"
ROLES = ("real", "synthetic", "holdout", "baseline")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where the text and the label of one file stand."""

    text: str = "text"
    label: str | None = DEFAULT_LABEL_COLUMN
    """None: read no labels. A file without the default column is read without labels, and that is said; a column that
    was named has to be there."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """One of the four inputs: its records and where they come from."""

    name: str
    """Name of the file or run directory, without the folders above it."""
    num_read: int
    """Records in the file, those without text included."""
    records: Records
    run: RunDirectory | None = None
    notes: tuple[str, ...] = ()
    """What was missing; one line each."""

    def facts(self) -> dict[str, Any]:
        """Return what metrics.json says about this input."""
        labels = sorted(set(self.records.labels) - {""})
        return {
            "file": self.name,
            "run_id": None if self.run is None else self.run.manifest["run_id"],
            "fingerprint": self.records.fingerprint,
            "n": self.num_read,
            "n_used": len(self.records),
            "labels": labels[:MAX_LABELS_SHOWN],
        }


@dataclass(frozen=True, kw_only=True)
class Corpora:
    """The records of an evaluation."""

    real: Records
    """T: what the generator was trained on."""
    synthetic: Records
    """S."""
    holdout: Records
    """H: real records that nothing was trained or tuned on."""
    baseline: Records | None = None
    """Text of the untuned model."""

    @property
    def baseline_has_labels(self) -> bool:
        """Whether a classifier can be trained on the baseline."""
        return self.baseline is not None and has_labels(self.baseline)


def has_labels(records: Records) -> bool:
    """Return whether any record has a label."""
    return any(label.strip() for label in records.labels)


def load_inputs(paths: Mapping[str, str | None], columns: Mapping[str, Columns]) -> dict[str, Input]:
    """Read every role that has a path.

    Args:
        paths: Role -> file or run directory; None for a role that was not given.
        columns: Role -> where text and label stand. Synthetic and baseline may have ``text`` and ``label`` instead.

    Raises:
        UserError: If a path is not what its role needs.
    """
    splits, found = dict[Path, Split](), dict[str, Input]()
    for role, path in ((role, paths[role]) for role in ROLES):
        if path is None:
            continue
        try:
            if role in ("real", "holdout"):
                found[role] = _real(role, Path(path), splits, columns[role])
            else:
                found[role] = _synthetic(Path(path), columns[role])
        except UserError as error:
            raise type(error)(f"{role}: {error}") from error
    _refuse_wrong_samples(found)
    return found


def find_suspicions(inputs: Mapping[str, Input], *, label_column: str | None) -> list[str]:
    """Return one line for whatever makes the numbers mean less than they seem to."""
    lines = [
        f"{role}: {line}" for role, given in inputs.items() if given.run is None for line in given.records.warnings
    ]
    lines += [f"{role}: {note}" for role, given in inputs.items() for note in given.notes]
    lines += _run_suspicions(inputs)
    if label_column is None:
        return lines
    return lines + _label_suspicions(inputs)


def _real(role: str, path: Path, splits: dict[Path, Split], columns: Columns) -> Input:
    """A file, or the matching side of the split of a run that read records itself (finetune, predict)."""
    if not path.is_dir():
        records, notes = _read_strictly(path, columns)
        num_read = len(read_file(path, [columns.text])) if records.warnings else len(records)
        return Input(name=path.name, num_read=num_read, records=records, notes=notes)
    run = RunDirectory.open(path)
    if "fingerprint" not in run.manifest.get("data", {}):
        run = RunDirectory.open(path, kind="finetune")
    if run.path not in splits:
        splits[run.path] = split_of_run(run)
    records = splits[run.path].train if role == "real" else splits[run.path].holdout
    if not len(records):
        raise DataError(f"{path} kept no records back (data.holdout_percent is 0); give a file of untouched records")
    if columns.label is None:
        records = _records(list(records.texts), [""] * len(records))
    return Input(name=run.path.name, num_read=len(records), records=records, run=run)


def _read_strictly(path: Path, columns: Columns) -> tuple[Records, tuple[str, ...]]:
    """Return the records, and a note if the label column that nobody named is not there."""
    try:
        return read_records(path, text_column=columns.text, label_column=columns.label), ()
    except MissingColumn as error:
        if columns.label != DEFAULT_LABEL_COLUMN:
            raise
        records = read_records(path, text_column=columns.text, label_column=None)  # or the text is missing too
        return records, (_no_label_note(error),)


def _synthetic(path: Path, columns: Columns) -> Input:
    """A file, or the text of a sample run."""
    run = RunDirectory.open(path, kind="sample") if path.is_dir() else None
    if run is not None and not run.is_finished:
        raise UserError(f"{path} is not finished; run the same `safesynthdp sample` command again first")
    file = path if run is None else run.path / SYNTHETIC
    texts, labels, notes = _lenient_columns(file, columns)
    if not any(text.strip() for text in texts):
        raise DataError(f"{file}: none of its {len(texts)} records holds text; name another file or text_column")
    records = _records(texts, labels)
    return Input(name=path.resolve().name, num_read=len(texts), records=records, run=run, notes=notes)


def _lenient_columns(file: Path, columns: Columns) -> tuple[list[str], list[str], tuple[str, ...]]:
    """Return texts and labels, and a note if there are none; what is not text becomes an empty string."""
    own = Columns(label=None if columns.label is None else DEFAULT_LABEL_COLUMN)
    problem: MissingColumn | None = None
    for choice in dict.fromkeys((columns, own)):
        try:
            return *_read_leniently(file, choice), ()
        except MissingColumn as error:
            problem = problem or error
    assert problem is not None
    if columns.label != DEFAULT_LABEL_COLUMN:
        raise MissingColumn(f"{problem} (label_column null evaluates without labels)") from problem
    return *_read_leniently(file, Columns(text=columns.text, label=None)), (_no_label_note(problem),)


def _read_leniently(file: Path, columns: Columns) -> tuple[list[str], list[str]]:
    table = read_file(file, [columns.text] if columns.label is None else [columns.text, columns.label])
    texts = [_clean(cell) if isinstance(cell, str) else "" for cell in table.columns[columns.text]]
    labels = [""] * len(texts) if columns.label is None else [_label(cell) for cell in table.columns[columns.label]]
    return texts, labels


def _no_label_note(error: MissingColumn) -> str:
    return f"read without labels: {error}; name another with --label_column"


def _records(texts: list[str], labels: list[str]) -> Records:
    """Return the records in an order that owes nothing to the file."""
    ids = record_hashes(texts, labels, None)
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return Records(
        texts=tuple(texts[i] for i in order),
        labels=tuple(labels[i] for i in order),
        record_ids=tuple(ids[i] for i in order),
        label_set=tuple(sorted(set(labels) - {""})),
    )


def _label(cell: object) -> str:
    """Return a label as records.py writes it; "" for a missing one."""
    if isinstance(cell, bool | int | str) or (isinstance(cell, float) and cell == cell):
        return _clean(str(cell))
    return ""


def _clean(text: str) -> str:
    """Replace lone surrogates, which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _refuse_wrong_samples(inputs: Mapping[str, Input]) -> None:
    """Tuned text in the row that says epsilon = 0 would be a false promise."""
    baseline = inputs.get("baseline")
    if baseline is not None and baseline.run is not None and not baseline.run.manifest.get("untuned"):
        raise ConfigError("baseline: was sampled from a tuned model; sample one with `safesynthdp sample --untuned`")


def _run_suspicions(inputs: Mapping[str, Input]) -> list[str]:
    """Runs that do not belong together."""
    sample, real, holdout = inputs["synthetic"].run, inputs["real"].run, inputs["holdout"].run
    found = list[str]()
    if sample is not None and sample.manifest.get("untuned"):
        found.append("synthetic: was sampled from the untuned model, which saw no record; give it as --baseline")
    trained = None if sample is None else parent_of(sample, kind="finetune")
    if trained is not None and real is not None and trained.manifest["run_id"] != real.manifest["run_id"]:
        found.append("real: is another run than the one that synthetic was sampled from; its copies stay unseen")
    if holdout is not None and real is not None and holdout.manifest["run_id"] != real.manifest["run_id"]:
        found.append("holdout: belongs to another run than real; check that real was not trained on it")
    return found


def _label_suspicions(inputs: Mapping[str, Input]) -> list[str]:
    known, found = set(inputs["holdout"].records.labels) - {""}, list[str]()
    for role in ("real", "synthetic", "baseline"):
        given = inputs.get(role)
        if given is None or not known or not has_labels(given.records):
            continue
        labels = set(given.records.labels) - {""}
        if not labels & known:
            found.append(f"{role}: none of its {len(labels)} labels is one of the holdout's {len(known)}: spelling?")
        elif labels != known:
            found.append(
                f"{role}: {len(known - labels)} of the holdout's {len(known)} labels are missing, "
                f"{len(labels - known)} are not in the holdout"
            )
    return found
