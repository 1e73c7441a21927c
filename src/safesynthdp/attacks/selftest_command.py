"""``safesynthdp selftest``: does what this machine runs do what it claims?

safesynthdp selftest                        # every part there is, about a minute on two CPU cores
safesynthdp selftest engine --level full    # ten times the repetitions, minutes
safesynthdp selftest --json                 # one JSON object, for machines

Here: flags, tables, exit code. Elsewhere: the parts (selftest_engine.py, selftest_audit.py,
evaluation/selftest_matrix.py: each has a ``run`` and, for people, a ``show``). Nothing is downloaded and no data is
read: the records are made up, and every number follows from ``--seed``; only ``evaluation --level full`` reads the
builtin ``vader``. Exit code 1 if anything failed.
"""

import argparse
import importlib
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from safesynthdp.errors import ConfigError, SafeSynthError

PARTS = {
    "engine": "safesynthdp.attacks.selftest_engine:run",
    "audit": "safesynthdp.attacks.selftest_audit:run",
    "evaluation": "safesynthdp.evaluation.selftest_matrix:run",  # by name: the room beside this one
}
LEVELS = ("quick", "full")
MIN_WIDTH = 165
NUMBERS = ("rejected", "median p", "p of all")
COLUMNS = ("id", "defect", "drawn; score", "engine", "expected", *NUMBERS, "caught by", "result")
Facts = dict[str, Any]


def main(argv: Sequence[str]) -> None:
    """Run the parts that are named, or all; print the result.

    Raises:
        ConfigError: If a part is named that does not exist.
        SafeSynthError: If anything failed; the result is printed first.
    """
    arguments = _parser().parse_args(list(argv))
    parts = _chosen(arguments.parts)
    began = time.monotonic()
    results = {name: _function(PARTS[name])(level=arguments.level, seed=arguments.seed) for name in parts}
    head = {"passed": all(result["passed"] for result in results.values())}
    facts = head | {"level": arguments.level, "seed": arguments.seed} | {"parts": results}
    if arguments.json:
        sys.stdout.write(json.dumps(facts, allow_nan=False) + "\n")
    else:
        _show(facts, seconds=time.monotonic() - began)
    failed = [f"{name} {what}" for name, result in results.items() for what in result["failed"]]
    if failed:
        raise SafeSynthError(f"selftest failed: {'; '.join(failed)}; do not rely on what this installation says")


def _chosen(named: Sequence[str]) -> list[str]:
    """Return the parts to run, each once, in their own order."""
    for name in named:
        if name not in PARTS:
            raise ConfigError(f"selftest {name} does not exist; what exists: {', '.join(PARTS)}")
    return [name for name in PARTS if name in named or not named]


def _function(where: str) -> Callable[..., Any]:
    module, function = where.split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _show(facts: Facts, *, seconds: float) -> None:
    from rich.console import Console

    from safesynthdp.progress import duration

    screen = Console(markup=False, highlight=False, emoji=False)
    screen.width = max(screen.width, MIN_WIDTH)  # nothing is cut on a narrower screen
    for name, result in facts["parts"].items():
        show = _show_engine if name == "engine" else _function(PARTS[name].replace(":run", ":show"))
        show(result, screen)
    screen.print(
        f"{'passed' if facts['passed'] else 'FAILED'}: {', '.join(facts['parts'])}, seed {facts['seed']}, "
        f"{duration(seconds)}",
        soft_wrap=True,
    )


def _show_engine(engine: Facts, screen: Any) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in COLUMNS:
        table.add_column(heading, no_wrap=True, justify="right" if heading in NUMBERS else "left")
    for row in engine["rows"]:
        table.add_row(
            row["id"],
            row["what"],
            row["setting"],
            row["engine"],
            row["expected"],
            "-" if row["rejected_share"] is None else f"{row['rejected_share']:.1%}",
            _p_value(row["p_value_median"]),
            _p_value(row["p_value_together"]),
            ", ".join(row["caught_by"]) or "-",
            "ok" if row["passed"] else "FAILED",
        )
    screen.print(table)
    checks = engine["checks"]
    right = sum(check["passed"] for check in checks)
    screen.print(f"start-up check and ledger: {right} of {len(checks)} answers as they must be", soft_wrap=True)
    screen.print(f"claimed curve at alpha {engine['alpha']:g}, {engine['repetitions']} repetitions", soft_wrap=True)


def _p_value(value: float | None) -> str:
    from safesynthdp.attacks.claimed_curve import P_VALUE_FLOOR

    if value is None:
        return "-"
    if value <= P_VALUE_FLOOR:
        return f"<{P_VALUE_FLOOR:.0e}"
    return f"{value:.1e}" if value < 0.01 else f"{value:.2f}"


class _Parser(argparse.ArgumentParser):
    """argparse that raises one line where it would print a page of usage and exit."""

    def error(self, message: str) -> NoReturn:
        text = re.sub(r"^argument (?:--)?([^:]+): ", r"\1: ", message)
        raise ConfigError(f"{text}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="safesynthdp selftest",
        description="Check this installation: broken trainers and spoilt text must be flagged, sound ones not.",
        allow_abbrev=False,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; none named = all of them")
    parser.add_argument("--level", choices=LEVELS, default="quick", help="quick: about a minute; full: many")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--seed", type=int, default=0, help="chooses all randomness (default: 0)")
    return parser
