"""The findings and the numbers of likeness on a terminal, each beside its real-real value and its floor.

Here: layout. Elsewhere: utility and memorisation (table.py), the numbers (fidelity.py, validity.py).
"""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

GROUPS = ("two_sample", "divergence", "form", "diversity", "label_fidelity", "validity")
_BETTER = {"higher": "higher", "lower": "lower", "half": ".5 is best"}
Rows = Sequence[dict[str, Any]]


def show_verdict(findings: Sequence[dict[str, Any]], screen: Console) -> None:
    """Print what was found, by name, before any number."""
    if not findings:
        screen.print("\nFindings: none. That is not praise: read each number against its ceiling.", soft_wrap=True)
        return
    screen.print("\nFindings:", style="bold")
    for finding in findings:
        screen.print(f"  {finding['finding']}: {finding['says']}", style="red", soft_wrap=True)


def show_likeness(rows: Rows, screen: Console) -> None:
    """Print every number about all labels together; by label they stand in metrics.json."""
    chosen = [row for row in rows if row["group"] in GROUPS and row["label"] is None and row["train_on"] == "synthetic"]
    if not chosen:
        return
    screen.print("\nLikeness to real text (95% intervals; real: other real text in the place of the synthetic)")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, side in (("", "left"), ("by", "left"), ("synthetic", "right"), ("real", "right"), ("floor", "right")):
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=True)
    table.add_column("n a side", justify="right", no_wrap=True)
    table.add_column("better", no_wrap=True)
    real = {_about(row): row["value"] for row in rows if row["train_on"] == "real_matched"}
    for row in chosen:
        if row["value"] is not None:
            table.add_row(*_cells(row, real.get(_about(row))))
    screen.print(table)


def _about(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["group"], row["name"], row["model"], row["label"]


def _cells(row: dict[str, Any], real: float | None) -> list[str | Text]:
    """The real-real value comes from its own row where the row itself may be published and so has lost it."""
    interval = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return [
        row["name"],
        Text("".join(c if c.isprintable() else "?" for c in row["model"] or "")),
        f"{row['value']:.3f}{interval}",
        _number(real if row["ceiling"] is None else row["ceiling"]),
        _number(row["floor"]),
        str(row["n"]),
        _BETTER[row["direction"]],
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
