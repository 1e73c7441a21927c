"""What an evaluation found besides utility, as tables: memorisation with its control, fidelity, diversity, validity.

Elsewhere: utility and the names of metrics (tables.py); which rows a public page may show (publish.py, before this).
"""

from collections.abc import Mapping, Sequence

from safesynthdp.reporting.facts import Evaluation, Metric
from safesynthdp.reporting.layout import Row, Table, table
from safesynthdp.reporting.tables import MEMORISATION, METRIC_NAMES, UTILITY, value_and_interval
from safesynthdp.reporting.wording import NOT_STATED, count_text, interval_text, rate_text

_MEAN = " (mean)"
_WITHOUT_CONTROL = ("nearest_in_train",)  # it is a comparison with the control itself
GROUPS = {
    "label_fidelity": "Label shares",
    "two_sample": "Can a classifier tell synthetic from real?",
    "divergence": "Distance between the two distributions",
    "form": "Form",
    "diversity": "Diversity",
    "validity": "Validity",
    "control": "Is the holdout a control? Training records against holdout",
}


def memorisation_table(evaluation: Evaluation) -> Table | None:
    """Return the shares of synthetic texts that repeat training records, beside the same for records never seen."""
    rows = [row for row in evaluation.metrics or () if row.group == MEMORISATION]
    if not rows:
        return None
    by_check = {name: {r.train_on: r for r in rows if r.name == name} for name in dict.fromkeys(r.name for r in rows)}
    caption = "Share of synthetic texts that have the same in common with ... [95% interval]"
    titles = ("what is shared", "training records", "held-out records (control)", "difference", "fresh real text",
              "a plain copy", "texts")  # fmt: skip
    return table(caption, titles, [_memorisation_row(name, found) for name, found in by_check.items()], words=())


def fidelity_table(evaluation: Evaluation, *, by_label: bool = True) -> Table | None:
    """Return a line for each measure of the synthetic text that is neither utility nor memorisation, labels last.

    What the same measure gives for real text stands in a column of its line, not in a line of its own.
    """
    rows = [row for row in evaluation.metrics or () if row.group not in (UTILITY, MEMORISATION)]
    rows = [row for row in rows if by_label or row.label is None]
    real = {_identity(row): row.value for row in rows if row.train_on == "real_matched"}
    shown = sorted(
        (r for r in rows if r.train_on not in ("real_matched", "base_model")), key=lambda r: r.label is not None
    )
    found = dict.fromkeys(row.group for row in shown)
    lines = list[Row]()
    for group in (*(g for g in GROUPS if g in found), *(g for g in found if g not in GROUPS)):
        lines.append(Row(cells=(GROUPS.get(group, group.replace("_", " ")), *[""] * 6), tone="group"))
        here = [row for row in shown if row.group == group]
        lines += [_other_row(row, real.get(_identity(row))) for row in here if row.value is not None]
        lines += _unmeasured([row for row in here if row.value is None])
    titles = ("metric", "value", "95% interval", "real text", "floor", "better", "n")
    caption = "Each number beside the same for real text in its place, and for something worthless (floor)"
    return table(caption, titles, lines, words=("better",)) if lines else None


def _identity(row: Metric) -> tuple[str | None, ...]:
    return row.group, row.name, row.model, row.label


def _title(row: Metric, label: str | None = None) -> str:
    """Return the metric in words, what it is about, and what measured it."""
    name = METRIC_NAMES.get(row.name, row.name.replace("_", " "))
    by = row.model or ""
    if by.endswith(_MEAN):  # the mean of what the other row compares the distributions of
        name, by = f"{name.split(',')[0]}, mean", by.removesuffix(_MEAN)
    about = label or row.label
    return f"{name}{'' if about is None else f', {about}'}{f' ({by})' if by else ''}"


def _unmeasured(rows: Sequence[Metric]) -> list[Row]:
    """Return one line for all labels that a measure could not tell about, with the reason."""
    alike: dict[tuple[str | None, ...], list[Metric]] = {}
    for row in rows:
        alike.setdefault((row.name, row.model, "all" if row.label is None else "label"), []).append(row)
    return [Row(cells=(_why(found), "n/a", *[""] * 5), tone="faint") for found in alike.values()]


def _why(rows: Sequence[Metric]) -> str:
    """Return what was not measured, for which labels, and why; reasons that differ are those of the first."""
    reasons, labels = dict.fromkeys(row.reason for row in rows), [row.label for row in rows if row.label is not None]
    reason = next(iter(reasons)) or "no reason was given"
    if not labels:
        return f"{_title(rows[0])}: {reason}"
    said = reason if len(reasons) == 1 else f"{labels[0]}: {reason}"
    return f"{_title(rows[0], 'by label')}: not measured for {', '.join(labels)}; {said}"


def _memorisation_row(name: str, found: Mapping[str | None, Metric]) -> Row:
    sample, difference = found.get("real_sample"), found.get("difference")
    shown = [found.get(against) for against in ("real_sample", "holdout", "difference")]
    absent = "n/a" if name in _WITHOUT_CONTROL else NOT_STATED
    cells = [absent if row is None else value_and_interval(row) for row in shown]
    limits = ("n/a", "n/a") if sample is None else (rate_text(sample.ceiling), rate_text(sample.floor))
    texts = "n/a" if sample is None else count_text(sample.n)
    is_leak = difference is not None and difference.low is not None and difference.low > 0
    return Row(cells=(METRIC_NAMES.get(name, name), *cells, *limits, texts), tone="bad" if is_leak else "")


def _other_row(row: Metric, real: float | None) -> Row:
    better = {"half": "0.5"}.get(row.direction or "", row.direction or "")
    interval = interval_text(row.low, row.high)
    ends = (rate_text(real if row.ceiling is None else row.ceiling), rate_text(row.floor))
    return Row(cells=(_title(row), rate_text(row.value), interval, *ends, better, count_text(row.n)))
