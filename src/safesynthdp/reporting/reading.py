"""From the files of one run directory to the values of facts.py, checked where they come in.

Here: manifests, metrics.json, audit.json, synthetic.parquet and a finetune run's progress. Elsewhere: which directories
there are (collect.py) and the ledger (guarantee.py). A broken file is an error that names it, never an empty section.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safesynthdp.errors import SafeSynthError
from safesynthdp.reporting.copied import WORST, read_copied
from safesynthdp.reporting.facts import (
    Attack,
    AuditRow,
    Evaluation,
    Finetune,
    Metric,
    Sample,
    Stage,
    Step,
    Text,
)
from safesynthdp.reporting.roc import read_curves
from safesynthdp.runs import CONFIG, RunDirectory

METRICS, AUDIT, SCORES, SYNTHETIC = "metrics.json", "audit.json", "scores.parquet", "synthetic.parquet"
PROGRESS, HISTOGRAM = "metrics.jsonl", "label_histogram.json"
MAX_TEXTS = 60


def read_stage(run: RunDirectory) -> Stage:
    """Return what a run directory says about itself."""
    manifest = run.manifest
    config = run.config() if (run.path / CONFIG).is_file() else {}
    return Stage(
        path=run.path,
        kind=str(manifest["kind"]),
        status=str(manifest["status"]),
        run_id=str(manifest["run_id"]),
        manifest=manifest,
        config=config,
    )


def read_finetune(stage: Stage, *, lengths: tuple[int, ...] = ()) -> Finetune:
    """Read the progress and the label histogram of a finetune run; ``lengths`` are those of its records."""
    histogram = read_json(stage.path / HISTOGRAM)
    return Finetune(stage=stage, progress=_progress(stage.path / PROGRESS), histogram=histogram, lengths=lengths)


def read_evaluation(stage: Stage, *, with_copied: bool = False) -> Evaluation:
    """Read metrics.json; a row without ``publishable: true`` counts as private.

    ``with_copied`` reads the worst cases of memorisation too, which hold training records.
    """
    path = stage.path / METRICS
    value = read_json(path)
    rows = None if value is None else tuple(_metric(path, row) for row in _rows(path, value.get("metrics")))
    value = value or {}
    return Evaluation(
        stage=stage,
        metrics=rows,
        inputs=value.get("inputs") or {},
        settings=value.get("settings") or {},
        warnings=tuple(str(line) for line in value.get("warnings") or []),
        findings=tuple(_finding(line) for line in value.get("verdict") or []),
        copied=read_copied(stage.path / WORST) if with_copied and rows is not None else None,
    )


def read_attack(stage: Stage, *, with_curves: bool = True) -> Attack:
    """Read audit.json: a list of rows, or an object that holds them under ``rows``; curves from the scores."""
    path = stage.path / AUDIT
    if not path.is_file():
        return Attack(stage=stage, rows=None)
    value = _load(path)
    rows = value.get("rows") if isinstance(value, Mapping) else value
    curves = read_curves(stage.path / SCORES) if with_curves else ()
    return Attack(stage=stage, rows=tuple(_audit_row(path, row) for row in _rows(path, rows)), curves=curves)


def read_sample(stage: Stage, *, per_label: int, max_characters: int) -> Sample:
    """Read how many texts there are, and the first few of each label."""
    path = stage.path / SYNTHETIC
    is_untuned = stage.manifest.get("untuned") is True
    if not path.is_file():
        return Sample(stage=stage, is_untuned=is_untuned, num_texts=None, texts=())
    chosen, lengths = _first_texts(path, per_label=per_label)
    texts = tuple(
        Text(label=label, text=text[:max_characters], num_hidden=max(0, len(text) - max_characters))
        for label, text in chosen
    )
    return Sample(stage=stage, is_untuned=is_untuned, num_texts=len(lengths), texts=texts, lengths=lengths)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object; None if there is no file.

    Raises:
        SafeSynthError: If it is no JSON object, or holds NaN or infinity.
    """
    if not path.is_file():
        return None
    value = _load(path)
    if not isinstance(value, dict):
        raise SafeSynthError(f"{path} is not a JSON object; run the stage that wrote it again")
    return value


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:
        raise SafeSynthError(f"{path} is not valid JSON; run the stage that wrote it again") from error


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


def _rows(path: Path, value: Any) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(row, Mapping) for row in value):
        raise SafeSynthError(f"{path} holds no list of rows; run the stage that wrote it again")
    return value


def _metric(path: Path, row: Mapping[str, Any]) -> Metric:
    floats = {key: _number(path, row, key) for key in ("value", "low", "high", "level", "ceiling", "floor")}
    seeds = row.get("seeds")
    return Metric(
        group=str(row.get("group")),
        name=str(row.get("name")),
        model=_word(row, "model"),
        train_on=_word(row, "train_on"),
        label=_word(row, "label"),
        n=_whole(path, row, "n"),
        seeds=len(seeds) if isinstance(seeds, list) else _whole(path, row, "seeds"),
        direction=_word(row, "direction"),
        reads=tuple(str(role) for role in row.get("reads") or []),
        publishable=row.get("publishable") is True,
        reason=_word(row, "reason"),
        **floats,
    )


def _audit_row(path: Path, row: Mapping[str, Any]) -> AuditRow:
    interval, notes = row.get("auc_interval"), row.get("notes") or []
    rates = row.get("tpr_at_fpr") or {}
    valid = row.get("benchmark_valid")
    return AuditRow(
        target_id=str(row.get("target_id")),
        channel=str(row.get("channel")),
        attack=str(row.get("attack")),
        auc_interval=(float(interval[0]), float(interval[1])) if interval else None,
        tpr_at_fpr={str(key): _number(path, rates, key) for key in rates},
        method=_word(row, "method"),
        verdict=_word(row, "verdict"),
        benchmark_valid=valid if isinstance(valid, bool) else None,
        notes=(notes,) if isinstance(notes, str) else tuple(str(note) for note in notes),
        auc=_number(path, row, "auc"),
        epsilon_lower_bound=_number(path, row, "epsilon_lower_bound"),
        epsilon_attainable=_number(path, row, "epsilon_attainable"),
        epsilon_claimed=_number(path, row, "epsilon_claimed"),
        alpha=_number(path, row, "alpha"),
        delta=_number(path, row, "delta"),
        num_epochs=_number(path, row, "num_epochs"),
        curve_p_value=_number(path, row, "curve_p_value"),
        role=_word(row, "role"),
        num_members=_whole(path, row, "num_members"),
        num_nonmembers=_whole(path, row, "num_nonmembers"),
        group_size=_whole(path, row, "group_size"),
        num_targets=_whole(path, row, "num_targets"),
        num_references=_whole(path, row, "num_references"),
    )


def _finding(value: Any) -> str:
    """A finding is a line, or an object with a name (``finding``) and words (``says``); its evidence is in the rows."""
    if not isinstance(value, Mapping):
        return str(value)
    name = str(value.get("finding") or value.get("name") or "finding").replace("_", " ")
    words = next((value[key] for key in ("says", "text", "reason") if value.get(key)), None)
    return name if words is None else f"{name}: {words}"


def _number(path: Path, row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SafeSynthError(f"{path}: {key} is not a finite number; run the stage that wrote it again")
    return float(value)


def _whole(path: Path, row: Mapping[str, Any], key: str) -> int | None:
    value = _number(path, row, key)
    return None if value is None else int(value)


def _word(row: Mapping[str, Any], key: str) -> str | None:
    return None if row.get(key) is None else str(row[key])


def _first_texts(path: Path, *, per_label: int) -> tuple[list[tuple[str, str]], tuple[int, ...]]:
    """Return the first texts of each label, and how many words every text has."""
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, columns=["label", "text"])
    except (pyarrow.ArrowException, OSError) as error:
        raise SafeSynthError(f"{path} is not a table with the columns label and text; sample again") from error
    by_label: dict[str, list[str]] = {}
    texts = [str(text) for text in table["text"].to_pylist()]
    for label, text in zip(table["label"].to_pylist(), texts, strict=True):
        kept = by_label.setdefault(str(label), [])
        if len(kept) < per_label:
            kept.append(text)
    chosen = [(label, text) for label in sorted(by_label) for text in by_label[label]]
    return chosen[:MAX_TEXTS], tuple(len(text.split()) for text in texts)


def _progress(path: Path) -> tuple[Step, ...]:
    if not path.is_file():
        return ()
    steps = list[Step]()
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            step = Step(step=int(row["step"]), loss=_finite(row.get("loss")), clip_share=_finite(row.get("clip_share")))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # a line cut short by a killed process, or a loss that is no number: nothing to draw
        steps.append(step)
    return tuple(steps)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
