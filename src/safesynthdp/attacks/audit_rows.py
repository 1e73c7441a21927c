"""One row of audit.json: what an attack measured, what it proves about epsilon, and what it does not.

Here: a row of one target, the pooled row of rotating targets, the row of the text baseline. Elsewhere: the groups
(audit_groups.py), the alpha of each test and the notes that hold for all rows (pool_audit.py), the bounds (bounds.py),
the curve test (claimed_curve.py).

Guarantee:
    ``epsilon_lower_bound`` of a target lies above the true epsilon with probability at most its alpha. Rotating
    targets share references, so their counts are never added: the pooled bound is the median of bounds that each fail
    with alpha / 2, and fails with at most alpha under any dependence (half of them would have to fail, Markov).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

import numpy as np
from scipy.special import betaincinv, ndtri, stdtrit

from safesynthdp.attacks.audit_groups import Group, Side
from safesynthdp.attacks.bounds import (
    UNFAIR,
    Bound,
    Verdict,
    epsilon_clopper_pearson,
    epsilon_one_run,
    fair_coin_p_value,
    one_run_p_value,
)
from safesynthdp.attacks.claimed_curve import ClaimTest, ErrorCounts, check_claim, count_errors
from safesynthdp.attacks.claims import AUDITABLE_ADJACENCY, Claim
from safesynthdp.attacks.guesses import guess
from safesynthdp.attacks.matching import match_test
from safesynthdp.attacks.metrics import REPORTED_FPR, Measured, measure
from safesynthdp.attacks.pool_attacks import EXPOSURE_ATTACK, MATCH_ATTACK, STORED_BESIDE
from safesynthdp.attacks.reference_attacks import exposure_p_value
from safesynthdp.errors import DataError

POOLED = "pooled"
DEFAULT_DELTA = 1e-5
METHODS = {MATCH_ATTACK: "match test", EXPOSURE_ATTACK: "rank exposure"}
"""Attacks that test "no leakage": a p-value, no epsilon, no verdict."""
NOT_NAMED = "another attack was named in the plan; this one has no verdict"
"""Its bound has no share of the alpha."""
UNDRAWN_NOTE = "no bound: this run was trained elsewhere, and its members were chosen by a split of texts, not by coins"
_GRID = (np.arange(64) + 0.5) / 64  # quantiles of each posterior
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Test:
    """How a group is tested."""

    claim: Claim | None
    alpha: float
    """Of this row; several attacks, kinds of record and families of targets share the alpha of the audit."""
    side: str
    """Guesses: both ends or the top."""
    gate: str
    """Which test decides the verdict: one-run or curve."""
    benchmark_valid: bool | None
    num_epochs: float | None
    notes: tuple[str, ...]
    has_verdict: bool
    """False for attacks beside the one the plan names."""
    undrawn: frozenset[str] = frozenset()
    """Targets whose members were not chosen by coins: nothing about epsilon follows from them."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was measured on one target, what its guesses prove, and the counts they rest on."""

    measured: Measured
    bound: Bound | None = None
    """None where the coins cannot have been fair."""
    p_value: float | None = None
    curve: ClaimTest | None = None
    counts: ErrorCounts | None = None
    unfair: str | None = None
    bits: Row | None = None
    """Exposures of canaries, for people."""


def target_row(group: Group, side: Side, proof: Proof, test: Test, *, is_rotating: bool) -> Row:
    """Return the row of one target; a rotating one has its bound at alpha / 2 and leaves the verdict to the pool."""
    alpha = test.alpha / 2 if is_rotating else test.alpha
    notes = [*_notes(group, test), *([proof.unfair] if proof.unfair else [])]
    row = _measured(group, [side], [proof], test, alpha=alpha) | _proved(proof, alpha)
    if not is_rotating:
        row["verdict"] = _verdict(group, test, [proof])
        notes += _why_none(group, test) if row["verdict"] is None else []
    else:
        notes.append("one of several rotating targets, its bound at alpha / 2: the pooled row has the verdict")
    return row | {"target_id": side.target_id, "notes": notes}


def pooled_row(group: Group, sides: Sequence[Side], proofs: Sequence[Proof], test: Test) -> Row:
    """Return the row of all rotating targets: medians of bounds at alpha / 2, twice the median of p-values."""
    row = _measured(group, sides, proofs, test, alpha=test.alpha) | _medians(proofs, test.alpha)
    row["verdict"] = _verdict(group, test, proofs)
    notes = [*_notes(group, test), "median over rotating targets, each bound at alpha / 2; their counts are not added"]
    notes += dict.fromkeys(proof.unfair for proof in proofs if proof.unfair)
    notes += _why_none(group, test) if row["verdict"] is None else []
    return row | {"target_id": POOLED, "auc_interval": _pair_interval(sides, proofs, alpha=test.alpha), "notes": notes}


def prove(group: Group, side: Side, test: Test, *, alpha: float) -> Proof:
    """Return the one-run bound and the curve test of one target, each at ``alpha``."""
    if side.is_member.all() or not side.is_member.any():
        raise DataError(
            f"attack={group.attack}: target {side.target_id} has members or non-members only; an audit needs both"
        )
    measured = measure(side.scores[side.is_member], side.scores[~side.is_member], alpha=alpha)
    if side.target_id in test.undrawn:
        return Proof(measured=measured, unfair=UNDRAWN_NOTE)
    heads, tosses = int(side.is_member.sum()), side.is_member.size
    fairness = fair_coin_p_value(heads=heads, tosses=tosses)
    if fairness < UNFAIR:
        said = f"no bound: {heads} members of {tosses} cannot come from fair coins (two-sided p = {fairness:.1e})"
        return Proof(measured=measured, unfair=said)
    if group.attack == MATCH_ATTACK:
        found = match_test(side.scores > 0, side.is_member)
        return Proof(measured=measured, p_value=found.p_value)
    if group.attack == EXPOSURE_ATTACK:
        return Proof(measured=measured, p_value=exposure_p_value(side.scores[side.is_member]), bits=_bits(side))
    promised = None if test.claim is None else test.claim.of_group(group.kind.group_size)
    epsilon, delta = promised or (0.0, _delta(test.claim))
    guesses = guess(side.scores, side.is_member, tie_keys=side.unit_ids, side="top" if test.side == "top" else "both")
    bound = epsilon_one_run(**asdict(guesses), delta=delta, alpha=alpha)
    p_value = one_run_p_value(**asdict(guesses), epsilon=epsilon, delta=delta)
    counts = _counts(side)
    curve = _curve(group, test, counts, alpha)
    return Proof(measured=measured, bound=bound, p_value=p_value, curve=curve, counts=counts)


def baseline_row(group: Group, side: Side, *, alpha: float, benchmark_valid: bool | None, notes: Sequence[str]) -> Row:
    """Return the row of the text baseline on one target; it has no claim and no bound."""
    test = Test(
        claim=None,
        alpha=alpha,
        side="both",
        gate="one-run",
        benchmark_valid=benchmark_valid,
        num_epochs=None,
        notes=tuple(notes),
        has_verdict=False,
    )
    measured = measure(side.scores[side.is_member], side.scores[~side.is_member], alpha=alpha)
    row = _measured(group, [side], [Proof(measured=measured)], test, alpha=alpha)
    return row | {"delta": None, "target_id": side.target_id, "method": "text baseline", "notes": list(notes)}


def _measured(group: Group, sides: Sequence[Side], proofs: Sequence[Proof], test: Test, *, alpha: float) -> Row:
    """Return what needs no claim: counts, AUC, rates; of several targets the mean, and the sum of the counts."""
    measured = [proof.measured for proof in proofs]
    num_members = [int(side.is_member.sum()) for side in sides]
    claim = test.claim
    promised = None if claim is None else claim.of_group(group.kind.group_size)
    return {
        "target_id": "",
        "channel": group.channel,
        "attack": group.attack,
        "num_members": sum(num_members),
        "num_nonmembers": sum(side.is_member.size for side in sides) - sum(num_members),
        "auc": fmean(one.auc for one in measured),
        "auc_interval": list(measured[0].auc_interval) if len(measured) == 1 else None,
        "tpr_at_fpr": {fpr: _mean_or_none([one.tpr_at_fpr[fpr] for one in measured]) for fpr in REPORTED_FPR},
        "epsilon_lower_bound": None,
        "epsilon_attainable": None,
        "epsilon_claimed": None if promised is None else promised[0],
        "group_size": group.kind.group_size,
        "method": _method(group, test),
        "alpha": alpha,
        "delta": _delta(claim) if promised is None else promised[1],
        "p_value": None,
        "curve_p_value": None,
        "verdict": None,
        "benchmark_valid": test.benchmark_valid,
        "estimates": {},
        "num_targets": len(sides),
        "num_references": max(side.num_references for side in sides),
        "num_epochs": test.num_epochs,
        "notes": [],
    }


def _proved(proof: Proof, alpha: float) -> Row:
    return {
        "epsilon_lower_bound": None if proof.bound is None else proof.bound.epsilon_lower_bound,
        "epsilon_attainable": None if proof.bound is None else proof.bound.epsilon_attainable,
        "p_value": proof.p_value,
        "curve_p_value": None if proof.curve is None else proof.curve.p_value,
        "estimates": proof.bits or {}
        if proof.counts is None or proof.bound is None
        else _estimates(proof.counts, proof.bound.delta, alpha),
    }


def _medians(proofs: Sequence[Proof], alpha: float) -> Row:
    bounds = [proof.bound for proof in proofs if proof.bound is not None]
    whole = len(bounds) == len(proofs)
    p_values, curves = ([p.p_value for p in proofs], [None if p.curve is None else p.curve.p_value for p in proofs])
    return {
        "epsilon_lower_bound": median(bound.epsilon_lower_bound for bound in bounds) if whole and bounds else None,
        "epsilon_attainable": median(bound.epsilon_attainable for bound in bounds) if whole and bounds else None,
        "p_value": _twice_the_median(p_values),
        "curve_p_value": _twice_the_median(curves),
        "estimates": {},
    }


def _verdict(group: Group, test: Test, proofs: Sequence[Proof]) -> Verdict | None:
    """Return the verdict of one target, or of rotating ones by their medians; None where none can be given."""
    if _why_none(group, test):
        return None
    promised = test.claim.of_group(group.kind.group_size) if test.claim is not None else None
    if promised is None:
        return None
    if test.gate == "curve":
        curves = [proof.curve for proof in proofs if proof.curve is not None]
        if len(curves) < len(proofs) or not curves:
            return None
        if median(float(curve.is_rejected) for curve in curves) > (0.5 if len(curves) > 1 else 0):
            return "refuted"
        return "consistent" if median(float(curve.can_reject) for curve in curves) > 0 else "no_power"
    bounds = [proof.bound for proof in proofs if proof.bound is not None]
    if len(bounds) < len(proofs) or not bounds:
        return None
    if median(bound.epsilon_lower_bound for bound in bounds) > promised[0]:
        return "refuted"
    return "no_power" if median(bound.epsilon_attainable for bound in bounds) <= promised[0] else "consistent"


def _why_none(group: Group, test: Test) -> list[str]:
    """Return why a row can have no verdict; empty where it can."""
    claim = test.claim
    reasons = [
        ("no claim for this channel, so no verdict", claim is None or claim.epsilon is None),
        (
            f"the claim is for {claim.adjacency if claim else ''} neighbours and coins audit {AUDITABLE_ADJACENCY}; "
            "no verdict",
            claim is not None and claim.adjacency != AUDITABLE_ADJACENCY,
        ),
        (
            f"{group.kind.group_size} copies: the claim promises nothing for such a group, so no verdict",
            claim is not None and claim.epsilon is not None and claim.of_group(group.kind.group_size) is None,
        ),
        ("void: the text alone tells members from non-members, so no verdict", test.benchmark_valid is False),
        ("the text baseline was not scored or had too few records, so no verdict", test.benchmark_valid is None),
        (NOT_NAMED, not test.has_verdict),
        ("a test of no leakage, not of epsilon; no verdict", group.attack in METHODS),
        ("it orders records as another attack does, which has the verdict", group.attack in STORED_BESIDE),
    ]
    return [reason for reason, applies in reasons if applies]


def _notes(group: Group, test: Test) -> list[str]:
    claim = test.claim
    said = [
        (f"records: {group.kind.name}", True),
        ("the curve test takes canary scores for independent, which those of one model are only nearly", True),
        (f"{group.kind.group_size} copies of each, compared with the claim for a group", group.kind.group_size > 1),
        ("the run is seeded: no guarantee against whoever knows the seed", claim is not None and claim.is_seeded),
    ]
    return [*(note for note, applies in said if applies), *test.notes]


def _method(group: Group, test: Test) -> str:
    if group.attack in METHODS:
        return METHODS[group.attack]
    return "claimed curve" if test.gate == "curve" else f"one-run, {test.side}"


def _bits(side: Side) -> Row:
    """Return the median exposure of the canaries that were in and of those that were out."""
    sides = {"in": side.scores[side.is_member], "out": side.scores[~side.is_member]}
    return {f"exposure_bits_{name}": float(np.median(bits)) for name, bits in sides.items()}


def _delta(claim: Claim | None) -> float:
    return DEFAULT_DELTA if claim is None or claim.delta is None else claim.delta


def _counts(side: Side) -> ErrorCounts | None:
    calibration = side.scores[~side.is_member & side.is_calibration]
    nonmembers = side.scores[~side.is_member & ~side.is_calibration]
    members = side.scores[side.is_member]
    if not (calibration.size and nonmembers.size and members.size):
        return None
    return count_errors(calibration=calibration, nonmembers=nonmembers, members=members)


def _curve(group: Group, test: Test, counts: ErrorCounts | None, alpha: float) -> ClaimTest | None:
    if counts is None or test.claim is None or test.claim.tradeoff is None:
        return None
    return check_claim(**asdict(counts), tradeoff=test.claim.tradeoff, alpha=alpha, group_size=group.kind.group_size)


def _estimates(counts: ErrorCounts, delta: float, alpha: float) -> Row:
    """Return figures that are no bounds: mu if the truth were Gaussian, and a Bayesian interval (Jeffreys priors)."""
    limits = epsilon_clopper_pearson(**asdict(counts), delta=delta, alpha=alpha)
    mu = float(ndtri(1 - limits.fpr_upper) - ndtri(limits.fnr_upper))
    fp, n0, fn, n1 = (float(value) for value in asdict(counts).values())
    fpr = betaincinv(fp + 0.5, n0 - fp + 0.5, _GRID)[:, None]
    fnr = betaincinv(fn + 0.5, n1 - fn + 0.5, _GRID)[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.fmax((1 - delta - fnr) / fpr, (1 - delta - fpr) / fnr)
        drawn = np.log(np.fmax(ratios, 1.0))
    low, high = np.quantile(drawn, [alpha / 2, 1 - alpha / 2])
    return {
        "label": "estimates, not bounds",
        "gaussian_mu": mu if math.isfinite(mu) else None,
        "bayesian_epsilon_interval": [float(low), float(high)],
    }


def _pair_interval(sides: Sequence[Side], proofs: Sequence[Proof], *, alpha: float) -> list[float] | None:
    """Return the t-interval over pair means; None with fewer than two pairs of which both models are targets."""
    found = {side.target_id: proof.measured.auc for side, proof in zip(sides, proofs, strict=True)}
    pairs = sorted({int(name) // 2 for name in found})
    means = [
        (found[str(2 * pair)] + found[str(2 * pair + 1)]) / 2
        for pair in pairs
        if {str(2 * pair), str(2 * pair + 1)} <= found.keys()
    ]
    if len(means) < 2:
        return None
    spread = float(np.std(means, ddof=1)) / math.sqrt(len(means))
    half = float(stdtrit(len(means) - 1, 1 - alpha / 2)) * spread
    return [max(0.0, fmean(means) - half), min(1.0, fmean(means) + half)]


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return fmean(given) if len(given) == len(values) else None


def _twice_the_median(values: Sequence[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return min(1.0, 2 * median(given)) if given and len(given) == len(values) else None
