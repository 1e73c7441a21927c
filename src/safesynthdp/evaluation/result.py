"""The directory of an evaluation: opened, found finished, summed up, shown; and the clock of its stages.

Here: what is known without measuring anything. Elsewhere: the numbers (command.py names who makes them), the rules that
metrics.json keeps (schema.py), the console (table.py). Progress goes to stderr, results to stdout.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from safesynthdp.config import to_mapping
from safesynthdp.errors import ConfigError, LedgerMismatch
from safesynthdp.evaluation.downstream import parse_families
from safesynthdp.evaluation.evaluate_config import EvaluateConfig
from safesynthdp.evaluation.inputs import Input
from safesynthdp.evaluation.rows import Row, find
from safesynthdp.runs import RunDirectory

METRICS, WORST = "metrics.json", "memorisation_worst.jsonl"


def open_output(config: EvaluateConfig, inputs: dict[str, Input]) -> RunDirectory:
    """Inputs were read before, so that a wrong column leaves no directory behind that a better try would meet."""
    parents = {given.run.path: given.run for given in inputs.values() if given.run is not None}
    return RunDirectory.create(
        config.output_dir, kind="evaluate", config=settings_of(config), parents=list(parents.values())
    )


def settings_of(config: EvaluateConfig) -> dict[str, Any]:
    """Return the config without what only says how the result is shown."""
    return {key: value for key, value in to_mapping(config).items() if key != "json"}


def read_finished(run: RunDirectory, inputs: dict[str, Input]) -> dict[str, Any]:
    """Return the earlier result if it is about the same records."""
    try:
        content: dict[str, Any] = json.loads((run.path / METRICS).read_text(encoding="utf-8"))
        then = {role: facts["fingerprint"] for role, facts in content["inputs"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LedgerMismatch(f"{run.path / METRICS} is damaged; give another output_dir") from error
    changed = sorted(role for role, given in inputs.items() if then.get(role) != given.records.fingerprint)
    if changed:
        raise ConfigError(
            f"output_dir={run.path} holds an evaluation of other records ({', '.join(changed)} changed since); "
            "give another directory"
        )
    return content


def headline(content: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers that a list of runs shows: the first family's accuracy and the longest word overlap."""
    rows = [Row(**row | {"reads": tuple(row["reads"])}) for row in content["metrics"]]
    family = parse_families(content["settings"]["downstream"])[0]
    accuracy = find(rows, "accuracy", train_on="synthetic", model=family)
    macro_f1 = find(rows, "macro_f1", train_on="synthetic", model=family)
    overlap = find(rows, "ngram_13", train_on="difference")
    found = dict[str, Any](model=family)
    for name, row in (("accuracy", accuracy), ("macro_f1", macro_f1), ("ngram_13_difference", overlap)):
        if row is not None:
            found[name] = {key: getattr(row, key) for key in ("value", "low", "high", "ceiling", "floor")}
    return found


def show_result(content: dict[str, Any], *, as_json: bool) -> None:
    """Print tables, or metrics.json itself."""
    if as_json:
        sys.stdout.write(json.dumps(content, indent=2, allow_nan=False) + "\n")
        return
    from safesynthdp.evaluation.table import show

    show(content)


@dataclass(kw_only=True)
class Clock:
    """Seconds by stage, and one line for each."""

    laps: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.monotonic)

    def lap(self, stage: str, what: str) -> None:
        """Add the time since the last lap to ``stage`` and say what was done in it."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self.laps[stage] = round(self.laps.get(stage, 0.0) + seconds, 3)
        self.say(f"{seconds:7.1f} s  {stage}: {what}")

    def say(self, line: str) -> None:
        """Write one line for people, beside the results."""
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
