"""The box at the top of a page: what is promised, and what was found beside it.

Here: which numbers stand in the box. Elsewhere: where they come from (guarantee.py, tables.py).
"""

from safesynthdp.reporting.attack_table import auc_text
from safesynthdp.reporting.audits import bounded, is_baseline, is_refuted, refutation_text, strongest, verdict_text
from safesynthdp.reporting.facts import Evaluation, Group, Metric
from safesynthdp.reporting.guarantee import SEEDED, Guarantee
from safesynthdp.reporting.layout import Fact, Verdict
from safesynthdp.reporting.ledger_tables import release_table
from safesynthdp.reporting.statement import ARTIFACTS
from safesynthdp.reporting.tables import CLASSIFIERS, MEMORISATION, any_model, headline_model
from safesynthdp.reporting.wording import (
    LEFT_OUT,
    NO_GUARANTEE,
    NOT_STATED,
    epsilon_text,
    interval_text,
    number_text,
    rate_text,
    value_text,
)

UNITS = {"record": "protects one record", "user": "protects all records of one user"}
NEIGHBOURS = {"add_remove": "neighbours: one added or removed", "replace": "neighbours: one exchanged"}
_CEILINGS = {"real_matched": "as much real text", "real": "all real text"}
_FLOORS = {"base_model": "untuned model", "majority": "most common label"}


def verdict(group: Group, guarantee: Guarantee, *, is_public: bool) -> Verdict:
    """Return the box: the guarantee of all releases at once, then utility, memorisation, attacks, or "not done"."""
    warnings = [SEEDED[0].upper() + SEEDED[1:] + "."] if guarantee.is_seeded else []
    if group.finetune is not None and group.finetune.stage.status != "finished":
        warnings.append("The finetune run is not finished; its ledger states what it has spent so far.")
    is_promise = guarantee.epsilon is not None
    return Verdict(
        about="Guarantee for whoever sees everything that is released",
        epsilon=f"epsilon {epsilon_text(guarantee.epsilon)}" if is_promise else NO_GUARANTEE,
        terms=_terms(guarantee),
        releases=release_table(guarantee.claims, with_check=False) if guarantee.claims else None,
        facts=(
            *_utility(group, is_public=is_public),
            *_findings(group),
            _memorisation(group, is_public=is_public),
            *_attack(group, guarantee, is_public=is_public),
        ),
        warnings=tuple(warnings),
        problems=(*guarantee.problems, *_refutations(group, guarantee)),
    )


def _terms(guarantee: Guarantee) -> tuple[str, ...]:
    if not guarantee.tuned:
        return ("no ledger of a finetune run or a sample says what was released",)
    if guarantee.problems:
        return ("the ledgers contradict themselves, so none of their epsilons counts",)
    if guarantee.epsilon is None:
        names = dict.fromkeys(ARTIFACTS.get(c.artifact, c.artifact) for c in guarantee.tuned if c.epsilon is None)
        return (f"the ledger promises nothing for: {', '.join(names)}",) if names else ()
    unit, adjacency = guarantee.unit or "", guarantee.adjacency or ""
    return (
        f"delta {value_text(guarantee.delta)}",
        UNITS.get(unit, f"unit {unit or NOT_STATED}"),
        NEIGHBOURS.get(adjacency, f"neighbours {adjacency or NOT_STATED}"),
    )


def _first(group: Group) -> Evaluation | None:
    return next((evaluation for evaluation in group.evaluations if evaluation.metrics is not None), None)


def _missing(group: Group, *, is_public: bool) -> str:
    return LEFT_OUT if is_public and _first(group) is not None else "not done"


def _utility(group: Group, *, is_public: bool) -> tuple[Fact, ...]:
    evaluation, missing = _first(group), _missing(group, is_public=is_public)
    model = None if evaluation is None else headline_model(evaluation)
    found = None if evaluation is None else any_model(evaluation, "accuracy", train_on="synthetic", model=model)
    if evaluation is None or found is None or found.value is None:
        return (Fact(name="Utility", value=missing),)
    name = CLASSIFIERS.get(model or "", model or "a classifier")
    return (
        Fact(name="Utility", value=f"accuracy {_number(found)} of {name} trained on synthetic text, tested on real"),
        Fact(name="Ceiling", value=_beside(evaluation, model, _CEILINGS, otherwise=missing)),
        Fact(name="Floor", value=_beside(evaluation, model, _FLOORS, otherwise=missing)),
    )  # fmt: skip


def _beside(evaluation: Evaluation, model: str | None, wanted: dict[str, str], *, otherwise: str) -> str:
    rows = {
        words: any_model(evaluation, "accuracy", train_on=train_on, model=model) for train_on, words in wanted.items()
    }
    parts = [f"{_number(row)} {words}" for words, row in rows.items() if row is not None and row.value is not None]
    return "; ".join(parts) or otherwise


def _number(row: Metric) -> str:
    return f"{rate_text(row.value)} {interval_text(row.low, row.high)}".strip()


def _memorisation(group: Group, *, is_public: bool) -> Fact:
    evaluation = _first(group)
    rows = [r for r in (evaluation.metrics or () if evaluation else ()) if r.group == MEMORISATION]
    differences = [row for row in rows if row.train_on == "difference" and row.value is not None]
    if not differences:
        return Fact(name="Memorisation", value=_missing(group, is_public=is_public))
    leaks = [row for row in differences if row.low is not None and row.low > 0]
    if leaks:
        names = ", ".join(row.name for row in leaks)
        return Fact(
            name="Memorisation", value=f"more shared with training records than with the control: {names}", tone="bad"
        )
    return Fact(
        name="Memorisation",
        value=f"no sign of it: {len(differences)} differences to the control, each with an interval that reaches 0",
    )


def _attack(group: Group, guarantee: Guarantee, *, is_public: bool) -> tuple[Fact, ...]:
    rows = [row for attack in group.attacks for row in attack.rows or () if row.auc is not None]
    attacks, controls = [r for r in rows if not is_baseline(r)], [r for r in rows if is_baseline(r)]
    if not attacks:
        words = LEFT_OUT if is_public and group.attacks else "not done"
        return Fact(name="Attack", value=words), _audit(group, guarantee, is_public=is_public)
    worst = max(attacks, key=lambda row: row.auc or 0.0)
    control = f"AUC {auc_text(controls[0])}; 0.5 is chance" if controls else "not done: the benchmark may be void"
    return (
        Fact(name="Attack", value=f"AUC {auc_text(worst)} by {worst.title}, the highest of {len(attacks)}"),
        Fact(name="Texts alone, no model", value=control),
        _audit(group, guarantee, is_public=is_public),
    )


def _audit(group: Group, guarantee: Guarantee, *, is_public: bool) -> Fact:
    best = strongest(bounded(group), guarantee)
    if best is None:
        missing = LEFT_OUT if is_public and group.attacks else "not done: no lower bound was computed"
        return Fact(name="Audited epsilon", value=missing)
    bound, attainable = number_text(best.epsilon_lower_bound), number_text(best.epsilon_attainable)
    alpha = best.joint_alpha or best.alpha  # the highest of several bounds is as sure as all of them together
    sure = "" if alpha is None else f" ({100 * (1 - alpha):g}% sure)"
    return Fact(
        name="Audited epsilon",
        value=f"at least {bound}{sure}, of at most {attainable} within reach of a perfect attack; channel "
        f"{best.channel}; verdict: {verdict_text(best, guarantee)}",
        tone="bad" if is_refuted(best, guarantee) else "",
    )


def _findings(group: Group) -> tuple[Fact, ...]:
    """What the evaluation itself names as wrong."""
    found = [line for evaluation in group.evaluations for line in evaluation.findings]
    return (Fact(name="Findings", value="\n".join(found), tone="bad"),) if found else ()


def _refutations(group: Group, guarantee: Guarantee) -> list[str]:
    rows = [row for attack in group.attacks for row in attack.rows or ()]
    return [f"REFUTED: {refutation_text(row, guarantee)}." for row in rows if is_refuted(row, guarantee)]
