"""What an audit row says about a claim: which release it speaks for, whether it may be compared, whether it refutes.

Here: those three questions. Elsewhere: the rows (facts.py), the claims (guarantee.py), the exit code (command.py).
"""

from collections.abc import Sequence

from safesynthdp.reporting.facts import AuditRow, Group
from safesynthdp.reporting.guarantee import Claim, Guarantee
from safesynthdp.reporting.wording import epsilon_text, number_text

ARTIFACT_OF = {"model": "weights", "text": "synthetic_text"}
BASELINE = "baseline"
SAME_DELTA = 1e-9  # relative
SAME_EPSILON = 0.02
"""Relative. A pool finds its noise at its own number of records: equal targets give nearly equal prices."""


def is_baseline(row: AuditRow) -> bool:
    """Whether an attack looked at the texts alone, at no model and no synthetic text."""
    return row.channel == "none" or row.attack == BASELINE


def claim_for(row: AuditRow, guarantee: Guarantee) -> Claim | None:
    """Return the weakest claim about the release of a row's channel; None where nothing is claimed.

    Each release is audited in its own channel: a result about weights says nothing about text, and the other way.
    """
    if guarantee.problems:
        return None
    found = [claim for claim in guarantee.tuned if claim.artifact == ARTIFACT_OF.get(row.channel)]
    if not found or any(claim.epsilon is None for claim in found):
        return None
    return max(found, key=lambda claim: claim.epsilon or 0.0)


def why_not_comparable(row: AuditRow, guarantee: Guarantee) -> str | None:
    """Return why a bound and the claim are about different things; None if they may be set side by side."""
    if row.group_size not in (None, 1):
        return f"audits {row.group_size} records together, the claim is about one"
    claim = claim_for(row, guarantee)
    if row.pool is not None and (reason := _other_claim(row, claim)) is not None:
        return reason
    if claim is None or claim.delta is None or row.delta is None:
        return None
    if abs(row.delta - claim.delta) > SAME_DELTA * claim.delta:
        return f"its bound holds at delta {row.delta:g}, the claim at delta {claim.delta:g}"
    return None


def _other_claim(row: AuditRow, claim: Claim | None) -> str | None:
    """Return why the claim of a pool's models is not that of the run: only equal promises are set side by side."""
    ours, theirs = None if claim is None else claim.epsilon, row.epsilon_claimed
    if (ours is None) != (theirs is None):
        return f"the models of the pool claim {epsilon_text(theirs)}, this run {epsilon_text(ours)}"
    if ours is not None and theirs is not None and abs(ours - theirs) > SAME_EPSILON * ours:
        return f"the models of the pool claim epsilon {epsilon_text(theirs)}, this run {epsilon_text(ours)}"
    return None


def is_refuted(row: AuditRow, guarantee: Guarantee) -> bool:
    """Whether a row contradicts the claim: by its own verdict, or because its bound lies above the ledger's epsilon."""
    if row.benchmark_valid is False or is_baseline(row):
        return False
    if row.verdict == "refuted":
        return True
    claim = claim_for(row, guarantee)
    if claim is None or claim.epsilon is None or row.epsilon_lower_bound is None:
        return False
    claimed = claim.epsilon if row.pool is None or row.epsilon_claimed is None else row.epsilon_claimed
    return row.epsilon_lower_bound > claimed and why_not_comparable(row, guarantee) is None


def bounded(group: Group) -> list[AuditRow]:
    """Return the rows that give a lower bound on epsilon from a valid benchmark."""
    rows = [row for attack in group.attacks for row in attack.rows or ()]
    return [
        row
        for row in rows
        if row.epsilon_lower_bound is not None and row.benchmark_valid is not False and not is_baseline(row)
    ]


def strongest(rows: Sequence[AuditRow], guarantee: Guarantee) -> AuditRow | None:
    """Return the row that says most against the claim: one that refutes it, else the highest bound."""
    return max(rows, key=lambda row: (is_refuted(row, guarantee), row.epsilon_lower_bound or 0.0), default=None)


def strongest_of_pools(rows: Sequence[AuditRow], guarantee: Guarantee) -> list[AuditRow]:
    """Return of all tests of shadow pools the one of each channel that says most against the claim."""
    found = [row for row in rows if row.pool is not None and row.epsilon_lower_bound is not None]
    channels = dict.fromkeys(row.channel for row in found)
    best = (strongest([row for row in found if row.channel == channel], guarantee) for channel in channels)
    return [row for row in best if row is not None]


def refutation_text(row: AuditRow, guarantee: Guarantee) -> str:
    """Return what a refuting row says, in words."""
    claim = claim_for(row, guarantee)
    claimed = row.epsilon_claimed if claim is None or row.pool is not None else claim.epsilon
    bound = row.epsilon_lower_bound
    found = "its curve lies above the claimed one" if not bound else f"epsilon is at least {number_text(bound)}"
    return f"{row.title} refutes the claim ({found}, claimed {epsilon_text(claimed)})"


def audited_text(row: AuditRow) -> str:
    """Return the lower bound beside what a perfect attack would have shown, and the claim it was held against."""
    if row.epsilon_lower_bound is None:
        return "none"
    reach = f"at least {number_text(row.epsilon_lower_bound)} of at most {number_text(row.epsilon_attainable)}"
    return reach if row.epsilon_claimed is None else f"{reach}; claimed {epsilon_text(row.epsilon_claimed)}"


def verdict_text(row: AuditRow, guarantee: Guarantee) -> str:
    """Return the verdict in words; "passed" is none of them, and an audit without power says so."""
    if row.benchmark_valid is False:
        return "void: members differ as texts"
    if is_refuted(row, guarantee):
        return "refuted"
    if row.pool is not None and row.verdict is None and row.epsilon_claimed is not None:
        return "no verdict, see the notes"
    words = {"no_power": "no power: even a perfect attack could not have refuted it", None: "no claim compared"}
    return words.get(row.verdict, str(row.verdict))
