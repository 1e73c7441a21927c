"""From groups to the signature figure: which runs are in it, which levels they are read against, what is missing.

Here: the numbers. Elsewhere: the drawing (frontier_figure.py), what an audit may be compared with (audits.py).
"""

from collections.abc import Sequence
from decimal import Decimal

from safesynthdp.reporting.audits import audited_text, bounded, is_refuted, strongest, verdict_text, why_not_comparable
from safesynthdp.reporting.facts import AuditRow, Group, Metric, predicted
from safesynthdp.reporting.figures import Drawing
from safesynthdp.reporting.frontier_figure import Line, draw_frontier
from safesynthdp.reporting.guarantee import Guarantee
from safesynthdp.reporting.layout import Row, Table, table
from safesynthdp.reporting.tables import CLASSIFIERS, any_model, headline_model
from safesynthdp.reporting.wording import (
    LEFT_OUT,
    NOT_STATED,
    epsilon_text,
    interval_text,
    number_text,
    rate_text,
    value_text,
)

Parts = Sequence[tuple[Group, Guarantee]]
LEVELS = {
    "real": "real, all",
    "real_matched": "real, equal number",
    "dp_direct": "DP classifier",
    "majority": "most common label",
}
NOT_AUDITED = "not audited: no attack gave a lower bound"


def frontier_drawing(parts: Parts, *, identity: str) -> Drawing | None:
    """Return the figure; None where no run has a utility to stand on."""
    model = _model(parts)
    lines = [line for number, part in enumerate(parts, start=1) for line in _lines(number, *part, model=model)]
    if not lines:
        return None
    words = "; ".join(_spoken(line) for line in lines)
    name = CLASSIFIERS.get(model or "", model or "one classifier")
    return draw_frontier(
        lines,
        base=_base(parts, model),
        levels=_levels(parts, model),
        direct=_direct(parts, model),
        identity=identity,
        title=f"Utility against epsilon. {words}",
        caption=f"Accuracy of {name} on untouched real records, with its interval, against epsilon. Each line leads "
        "from the audited lower bound (open mark) to the claimed epsilon (filled mark); the tick is the highest bound "
        "that a perfect attack could have shown with these canaries or records. A log axis holds neither 0 nor "
        "infinity: both have columns of their own. Several channels of one run are set a little apart. A short line is "
        "no proof: an attack that fails proves nothing.",
    )


def frontier_notes(parts: Parts, *, is_public: bool = False) -> tuple[str, ...]:
    """Return what the figure cannot compare, and what it does not show."""
    notes = list[str]()
    for number, (group, guarantee) in enumerate(parts, start=1):
        name = f"Run {number}: " if len(parts) > 1 else ""
        rows = bounded(group)
        if not rows:
            words = f"audits are {LEFT_OUT}" if is_public and group.attacks else NOT_AUDITED
            notes.append(f"{name}{words}." if name else f"{words[0].upper()}{words[1:]}.")
        for row in rows:
            if (reason := why_not_comparable(row, guarantee)) is not None:
                what = row.title if row.pool is None else f"a shadow pool, channel {row.channel},"
                notes.append(f"{name}{what} is not in the figure: {reason}.")
    return (*dict.fromkeys(notes), *_differences(parts))


def runs_table(parts: Parts, names: Sequence[str], *, is_public: bool = False) -> Table:
    """Return one line a run: claimed, utility, audited."""
    model = _model(parts)
    rows = [
        _run_row(number, name, group, guarantee, model=model, is_public=is_public)
        for number, (name, (group, guarantee)) in enumerate(zip(names, parts, strict=True), start=1)
    ]
    titles = ("run", "epsilon claimed", "delta", "accuracy", "audited epsilon", "verdict of the audit")
    return table("The runs of this page", titles, rows, words=("accuracy", "audited epsilon", "verdict of the audit"))


def together_text(parts: Parts) -> str | None:
    """Return what several runs on the same records cost whoever sees all of them: plain sums, the last resort."""
    tuned = [guarantee for group, guarantee in parts if group.finetune is not None or guarantee.tuned]
    if len(tuned) < 2:
        return None
    prints = {a.data.get("fingerprint") for g in tuned for a in g.accesses if a.kind != "none"}
    shared = "read the same records" if len(prints) == 1 and None not in prints else "may share records"
    if any(g.epsilon is None for g in tuned) or len({(g.unit, g.adjacency) for g in tuned}) > 1:
        return (
            f"These runs {shared}, and their guarantees do not add up to one for all of them together. Each line "
            "speaks for one run alone, and only while the others stay inside."
        )
    epsilon = sum(g.epsilon or 0.0 for g in tuned)
    delta = float(sum(Decimal(repr(g.delta or 0.0)) for g in tuned))  # three times 1e-05 is 3e-05
    return (
        f"These runs {shared}. Whoever sees all of them is promised no more than epsilon {epsilon_text(epsilon)} at "
        f"delta {value_text(delta)} (plain sums). Choosing the best of them by numbers measured on private records is "
        "not paid for either."
    )


def _model(parts: Parts) -> str | None:
    evaluations = (e for group, _ in parts for e in group.evaluations)
    return next((found for e in evaluations if (found := headline_model(e)) is not None), None)


def _utility(group: Group, model: str | None, *, train_on: str = "synthetic") -> Metric | None:
    rows = (any_model(e, "accuracy", train_on=train_on, model=model) for e in group.evaluations)
    return next((row for row in rows if row is not None and row.value is not None), None)


def _lines(number: int, group: Group, guarantee: Guarantee, *, model: str | None) -> list[Line]:
    utility = _utility(group, model)
    if utility is None or utility.value is None:
        return []
    rows = [row for row in bounded(group) if why_not_comparable(row, guarantee) is None]
    by_channel = [(c, strongest([r for r in rows if r.channel == c], guarantee)) for c in _channels(rows)]
    by_channel = by_channel or [("", None)]  # one line a channel: neither result speaks for the other
    by_prediction = predicted(group)
    return [_line(number, channel, utility, guarantee, row, is_predicted=by_prediction) for channel, row in by_channel]


def _channels(rows: Sequence[AuditRow]) -> list[str]:
    return list(dict.fromkeys(row.channel for row in rows))


def _line(
    number: int, channel: str, utility: Metric, guarantee: Guarantee, row: AuditRow | None, *, is_predicted: bool
) -> Line:
    return Line(
        number=number,
        channel=channel,
        utility=utility.value or 0.0,
        low=utility.low,
        high=utility.high,
        claimed=guarantee.epsilon,
        bound=None if row is None else row.epsilon_lower_bound,
        attainable=None if row is None else row.epsilon_attainable,
        is_refuted=row is not None and is_refuted(row, guarantee),
        is_predicted=is_predicted,
    )


def _base(parts: Parts, model: str | None) -> tuple[float, float | None, float | None] | None:
    rows = (_utility(group, model, train_on="base_model") for group, _ in parts)
    row = next((row for row in rows if row is not None), None)
    return None if row is None or row.value is None else (row.value, row.low, row.high)


def _levels(parts: Parts, model: str | None) -> list[tuple[str, float]]:
    """The first run's levels; of several runs each has a DP classifier of its own epsilon (``_direct``)."""
    found = list[tuple[str, float]]()
    for train_on, name in LEVELS.items():
        rows = (_utility(group, model, train_on=train_on) for group, _ in parts)
        value = next((row.value for row in rows if row is not None), None)
        if value is not None and (train_on != "dp_direct" or len(parts) == 1):
            found.append((name, value))
    return found


def _direct(parts: Parts, model: str | None) -> list[tuple[float, float]]:
    if len(parts) == 1:
        return []
    rows = [(guarantee.epsilon, _utility(group, model, train_on="dp_direct")) for group, guarantee in parts]
    return [(e, row.value) for e, row in rows if e is not None and row is not None and row.value is not None]


def _differences(parts: Parts) -> list[str]:
    """Return what differs between runs and so keeps their epsilons from being compared."""
    tuned = [guarantee for _, guarantee in parts if guarantee.epsilon is not None]
    facts = {
        "delta": dict.fromkeys(value_text(g.delta) for g in tuned),
        "unit": dict.fromkeys(g.unit or NOT_STATED for g in tuned),
        "adjacency": dict.fromkeys(g.adjacency or NOT_STATED for g in tuned),
    }
    return [
        f"The runs differ in {name} ({', '.join(values)}): compare only those with the same {name}."
        for name, values in facts.items()
        if len(values) > 1
    ]


def _run_row(number: int, name: str, group: Group, guarantee: Guarantee, *, model: str | None, is_public: bool) -> Row:
    utility, row = _utility(group, model), strongest(bounded(group), guarantee)
    no_utility = LEFT_OUT if is_public and _is_evaluated(group) else "not done"
    no_audit = LEFT_OUT if is_public and group.attacks else "not audited"
    refuted = row is not None and is_refuted(row, guarantee)
    cells = (
        f"{number}. {name}",
        epsilon_text(guarantee.epsilon),
        "none" if guarantee.delta is None else value_text(guarantee.delta),
        no_utility if utility is None else f"{rate_text(utility.value)} {interval_text(utility.low, utility.high)}",
        no_audit if row is None else audited_text(row).split(";")[0],
        no_audit if row is None else verdict_text(row, guarantee),
    )
    return Row(cells=cells, tone="bad" if refuted or guarantee.problems else "")


def _spoken(line: Line) -> str:
    claimed = "no formal guarantee" if line.claimed is None else f"claimed epsilon {epsilon_text(line.claimed)}"
    channel = f" ({line.channel})" if line.channel else ""
    audit = "not audited" if line.bound is None else f"audited at least {number_text(line.bound)}"
    reach = "" if line.attainable is None else f" of at most {number_text(line.attainable)}"
    refuted = ", REFUTED" if line.is_refuted else ""
    return f"run {line.number}{channel}: accuracy {rate_text(line.utility)}, {claimed}, {audit}{reach}{refuted}"


def _is_evaluated(group: Group) -> bool:
    return any(evaluation.metrics is not None for evaluation in group.evaluations)


def missing_text(parts: Parts, *, is_public: bool) -> str:
    """Return why there is no figure."""
    if is_public and any(_is_evaluated(group) for group, _ in parts):
        return (
            "Left out of the public edition: utility is measured on held-out records, and the evaluation was not run "
            "with --holdout_is_public."
        )
    return "Not done: no evaluation of this run gives a utility. safesynthdp evaluate makes one."
