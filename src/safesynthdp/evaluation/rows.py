"""One number of metrics.json: its value, its interval, what it could have been, and who may see it.

Here: the row and what makes it publishable. Elsewhere: the numbers (utility.py, memorisation.py, validity.py).

A row is publishable if nothing in it was computed from private records: never where it reads ``real``, and where it
reads ``holdout`` only if the user said that the holdout is public. The ceiling of most rows is a number about real
text, so a publishable row carries none: the row with ``train_on: real_matched`` has it and is not publishable.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Source = Literal["real", "holdout", "synthetic"]
LEVEL = 0.95
_CONSTANT_CEILING = ("empty_share", "invalid_label_share")  # 0 by definition, not measured on real text


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number; the fields are the keys of a row in metrics.json, all of them always present."""

    group: str
    """utility, label_fidelity, validity or memorisation."""
    name: str
    """What was measured: ``accuracy``, ``ngram_13``..."""
    model: str | None = None
    """The downstream classifier; None where there is none."""
    train_on: str
    """What the classifier was trained on; the module that makes the row says what else it can be."""
    label: str | None = None
    """The class, for a number about one class."""
    value: float | None
    """The number; None has a ``reason``."""
    low: float | None = None
    """Lower end of the interval; None where no honest interval exists."""
    high: float | None = None
    """Upper end of the interval."""
    level: float = LEVEL
    """Confidence level of the interval."""
    n: int
    """How many records the value is a mean over."""
    seeds: int = 1
    """How many draws (subsample, permutation) the value is a mean over."""
    ceiling: float | None = None
    """The same number with real text in the place of the synthetic text, at equal n."""
    floor: float | None = None
    """The same number for something worthless."""
    direction: Literal["higher", "lower", "half"]
    """Which way is better."""
    reads: tuple[Source, ...]
    """Which inputs the value, interval and floor were computed from."""
    publishable: bool = False
    """Whether the row may leave the private side; set by ``decide_publishable``."""
    reason: str | None = None
    """Why a field is null."""


def decide_publishable(rows: Sequence[Row], *, holdout_is_public: bool) -> list[Row]:
    """Return the rows with ``publishable`` set; a publishable row loses a ceiling that was measured on real text."""
    return [_decide(row, private={"real"} if holdout_is_public else {"real", "holdout"}) for row in rows]


def to_mapping(row: Row) -> dict[str, Any]:
    """Return the row as plain JSON values.

    Raises:
        ValueError: If a number is NaN or infinite, or a null value comes without a reason.
    """
    numbers = (row.value, row.low, row.high, row.ceiling, row.floor)
    if not all(number is None or math.isfinite(number) for number in numbers):
        raise ValueError(f"{row.group}/{row.name}/{row.train_on}: a number is not finite")
    if row.value is None and row.reason is None:
        raise ValueError(f"{row.group}/{row.name}/{row.train_on}: a null value needs a reason")
    return asdict(row) | {"reads": list(row.reads)}


def find(
    rows: Sequence[Row], name: str, *, train_on: str, model: str | None = None, label: str | None = None
) -> Row | None:
    """Return the row with this name, or None."""
    wanted = (name, train_on, model, label)
    return next((row for row in rows if (row.name, row.train_on, row.model, row.label) == wanted), None)


def _decide(row: Row, *, private: set[str]) -> Row:
    if private & set(row.reads):
        return replace(row, publishable=False)
    if row.ceiling is None or row.name in _CONSTANT_CEILING:
        return replace(row, publishable=True)
    reason = row.reason or "the ceiling is left out: it was measured on real records (see real_matched)"
    return replace(row, publishable=True, ceiling=None, reason=reason)
