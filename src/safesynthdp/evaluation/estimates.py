"""From a number with its interval to rows beside their ceiling and floor.

Here: what a metric is called, which way is better, and the rows of one number about synthetic text, real text in its
place and the untuned model's text. Elsewhere: the numbers (fidelity*.py), the row itself (rows.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from safesynthdp.evaluation.rows import Row, Source

SYNTHETIC, CEILING, BASE = "synthetic", "real_matched", "base_model"
_NO_CEILING = "no ceiling: the row of real_matched says why"  # which may tell a private count
_NO_FLOOR = "no floor: it has no worst value, and no --baseline with as many records was given"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number, or why there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int
    """How many records a side it was computed from."""
    seeds: int = 1
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number's name and meaning."""

    group: str
    name: str
    direction: Literal["higher", "lower", "half"]
    worst: float | None
    """Floor where there is no text of an untuned model; None if nothing bounds it."""
    compares: bool = True
    """Whether it compares with the holdout, or is about one set of texts alone."""


def rows(
    metric: Metric,
    found: Mapping[str, Estimate],
    *,
    model: str | None = None,
    label: str | None = None,
    also_reads: tuple[Source, ...] = (),
    constant_ceiling: float | None = None,
) -> list[Row]:
    """Return a row for each of ``synthetic``, ``real_matched`` and ``base_model`` that was measured.

    Args:
        metric: What was measured.
        found: ``train_on`` -> estimate; synthetic and real_matched must be there.
        model: Which classifier, encoder or unit.
        label: The class, for a number about one class.
        also_reads: What decided the size of the sample besides.
        constant_ceiling: The best there is by definition, where that is known without looking at real text.
    """
    ceiling = found[CEILING].value if constant_ceiling is None else constant_ceiling
    baseline = found[BASE].value if BASE in found else None
    floor = metric.worst if baseline is None else baseline
    made = list[Row]()
    for train_on, estimate in found.items():
        reason = estimate.reason
        if reason is None and (floor is None or ceiling is None):
            reason = _NO_FLOOR if ceiling is not None else _NO_CEILING
        made.append(
            Row(
                group=metric.group, name=metric.name, model=model, train_on=train_on, label=label,
                value=estimate.value, low=estimate.low, high=estimate.high, n=estimate.n, seeds=estimate.seeds,
                ceiling=ceiling, floor=floor, direction=metric.direction, reason=reason,
                reads=_reads(metric, train_on, also_reads),
            )
        )  # fmt: skip
    return made


def _reads(metric: Metric, train_on: str, also: tuple[Source, ...]) -> tuple[Source, ...]:
    """Return what the number was computed from; text of the untuned model is nobody's."""
    own: dict[str, tuple[Source, ...]] = {SYNTHETIC: ("synthetic",), CEILING: ("real",)}
    holdout: tuple[Source, ...] = ("holdout",) if metric.compares else ()
    return tuple(dict.fromkeys((*own.get(train_on, ()), *holdout, *also)))
