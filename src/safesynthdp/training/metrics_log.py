"""``metrics.jsonl``: one private line a step, for the steps that are in the weights.

Here: appending a line, and what a run that goes on keeps. Elsewhere: what a line says (step.py), how it is drawn
(reporting). Losses and drawn sizes are computed from private records: the file is for its owner alone (mode 0600).
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safesynthdp.privacy.storage import disk_error, write_text
from safesynthdp.training.step import StepFacts

METRICS = "metrics.jsonl"


def append_line(path: Path, facts: StepFacts, *, step: int, seconds: float) -> None:
    """Append the line of a step.

    Raises:
        SafeSynthError: If the disk refuses.
    """
    line: dict[str, Any] = {"step": step, "seconds": round(seconds, 3), **asdict(facts)}
    try:
        _append(path, json.dumps(line) + "\n")
    except OSError as error:
        raise disk_error(path, error) from error


def cut_back(path: Path, *, step: int) -> None:
    """Drop lines of later steps, which will be taken again, and a line that a full disk or a power cut tore."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
    if kept != lines:
        write_text(path, "".join(kept), private=True)


def _append(path: Path, text: str) -> None:
    if not path.exists():
        path.touch(mode=0o600)
    with path.open("a", encoding="utf-8") as handle:
        handle.write(text)


def _step_of(line: str) -> float:
    """Return the step of a line; beyond all for what is none."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
