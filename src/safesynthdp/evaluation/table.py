"""The result on a terminal: warnings and findings first, then utility with the memorisation rows beside it.

Here: layout. Elsewhere: the numbers, likeness to real text (likeness_table.py). Only counts, shares and names of inputs
are shown, never a text; whatever came from a file is printed without mark-up and without control characters.
"""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from safesynthdp.evaluation.downstream import FAMILIES
from safesynthdp.evaluation.likeness_table import show_likeness, show_verdict
from safesynthdp.evaluation.overlap import CHECKS

MIN_WIDTH = 128
FAMILIES_A_TABLE = 3
_TRAINED_ON = {
    "synthetic": "synthetic",
    "real_matched": "real, same n (ceiling)",
    "real": "real, all",
    "dp_direct": "real, with DP directly",
    "base_model": "untuned model (floor)",
    "shuffled_labels": "shuffled labels (floor)",
    "majority": "majority (floor)",
}
_RATIOS = {"real_matched": "accuracy / real, same n", "real": "accuracy / real, all"}
Rows = Sequence[dict[str, Any]]


def show(content: dict[str, Any], console: Console | None = None) -> None:
    """Print the content of metrics.json."""
    screen = console or Console(markup=False, highlight=False, emoji=False)
    screen.width = max(screen.width, MIN_WIDTH)  # on a narrower screen a number wraps; it is never cut
    rows, inputs = content["metrics"], content["inputs"]
    for line in content["warnings"]:
        screen.print(_plain(f"warning: {line}"), style="yellow", soft_wrap=True)
    sizes = ", ".join(f"{role} {facts['n_used']} ({facts['file']})" for role, facts in inputs.items())
    screen.print(_plain(f"records: {sizes}"), soft_wrap=True)
    show_verdict(content["verdict"], screen)
    if any(row["group"] == "utility" for row in rows):
        screen.print(
            f"\nUtility on {inputs['holdout']['n_used']} holdout records (95% intervals; F1 is macro)", soft_wrap=True
        )
        families = [family for family in FAMILIES if any(row["model"] == family for row in rows)]
        for start in range(0, len(families), FAMILIES_A_TABLE):
            screen.print(_utility(rows, families[start : start + FAMILIES_A_TABLE]))
        screen.print(_plain(_direct(content["settings"].get("dp_direct"))), soft_wrap=True)
    screen.print("\nMemorisation: share of synthetic texts that have the same ... as a record of", soft_wrap=True)
    screen.print(_memorisation(rows))
    screen.print(_lengths(inputs), soft_wrap=True)
    for line in _signs(rows):
        screen.print(line, soft_wrap=True)
    show_likeness(rows, screen)
    screen.print("Whatever reads real records is not private: keep this output inside.", soft_wrap=True)


def _utility(rows: Rows, families: Sequence[str]) -> Table:
    """One line for each training set, two columns for each family."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("trained on", no_wrap=True)
    for family in families:
        table.add_column(f"{family} accuracy", justify="right", no_wrap=True)
        table.add_column("F1", justify="right", no_wrap=True)
    for train_on, shown in _TRAINED_ON.items():
        cells = list[str]()
        for model in ("majority" if train_on == "majority" else family for family in families):
            cells.append(_interval(_find(rows, "accuracy", train_on, model=model)))
            cells.append(_number(_find(rows, "macro_f1", train_on, model=model), digits=3))
        table.add_row(shown, *cells)
    for train_on, shown in _RATIOS.items():
        ratios = [_interval(_find(rows, "accuracy_ratio", train_on, model=family)) for family in families]
        table.add_row(shown, *(cell for ratio in ratios for cell in (ratio, "")))
    return table


def _memorisation(rows: Rows) -> Table:
    """One line for each check."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for name in ("train*", "holdout", "difference", "if copied", "count"):
        table.add_column(name, justify="right", no_wrap=True)
    for check in CHECKS:
        difference, count = _find(rows, check.name, "difference"), _find(rows, check.name, "real")
        table.add_row(
            check.describe,
            _number(_find(rows, check.name, "real_sample"), digits=4),
            _number(_find(rows, check.name, "holdout"), digits=4),
            _interval(difference, form="+.4f"),
            "-" if difference is None else _short(difference["floor"], "+.4f"),
            "-" if count is None or count["value"] is None else f"{count['value']:.0f}",
        )
    return table


def _lengths(inputs: dict[str, Any]) -> str:
    shares = inputs["synthetic"]["long_enough"]
    parts = [f"{shares[check.name]:.0%} have {check.describe}" for check in CHECKS[1:]]
    return (
        "* random training records, as many as in the holdout. count: synthetic texts that match any training record.\n"
        f"  Only a long text can match: of the synthetic texts {' and '.join(parts)}."
    )


def _direct(promise: dict[str, Any] | str | None) -> str:
    """Say what direct DP training was allowed to spend, or why it was left out."""
    if not isinstance(promise, dict):
        return f"real, with DP directly: left out, {promise or 'it was not asked for'}"
    return (
        f"real, with DP directly: epsilon {promise['epsilon']:.4g} at delta {promise['delta']:g}, unit "
        f"{promise['unit']}, {promise['adjacency']}, from {promise['source']}; a comparison for the inside"
    )


def _signs(rows: Rows) -> list[Text]:
    """The longest run, the nearest record, and whether the holdout is a control; each beside fresh text and copies."""
    longest = _find(rows, "longest_common_substring", "real")
    nearest, control = _find(rows, "nearest_in_train", "real_sample"), _find(rows, "c2st_auc", "real_sample")
    found = list[str]()
    if longest is not None and longest["value"] is not None:
        run = f"{longest['value']:.0f} characters" if longest["value"] else "below 50 characters"
        found.append(
            f"Longest run shared with a training record: {run} "
            f"(fresh real text {longest['ceiling']:.0f}, a copy {longest['floor']:.0f})"
        )
    if nearest is not None:
        ends = f"fresh real text {_short(nearest['ceiling'], '.3f')}, a copy {_short(nearest['floor'], '.3f')}"
        found.append(f"Nearest real record is a training record: {_interval(nearest)} (.5 is no sign; {ends})")
    if control is not None and control["value"] is not None:
        found.append(f"Holdout told from training records: AUC {_interval(control)} (.5 is a good control)")
    return [Text(line) for line in found]


def _find(rows: Rows, name: str, train_on: str, *, model: str | None = None) -> dict[str, Any] | None:
    wanted = (name, train_on, model, None)
    return next((row for row in rows if (row["name"], row["train_on"], row["model"], row["label"]) == wanted), None)


def _interval(row: dict[str, Any] | None, *, form: str = ".3f") -> str:
    """Return ``value [low, high]``."""
    if row is None or row["value"] is None:
        return "-"
    value, low, high = (_short(row[key], form) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _number(row: dict[str, Any] | None, *, digits: int) -> str:
    return "-" if row is None or row["value"] is None else _short(row["value"], f".{digits}f")


def _short(value: float, form: str) -> str:
    """Return the number without the zero before the point."""
    text = f"{value:{form}}"
    return text.replace("0.", ".", 1) if abs(value) < 1 and text.lstrip("+-").startswith("0.") else text


def _plain(line: str) -> Text:
    """Return a line without control characters."""
    return Text("".join(character if character.isprintable() else "?" for character in line))
