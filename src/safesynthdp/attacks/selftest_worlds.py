"""Worlds whose true epsilon, or whose attacker's power, is known: what do the audits say of them?

Here: noise, randomised response, Laplace and Gaussian scores, averages of vectors, token counts, permuted labels.
Elsewhere: pools (selftest_pools.py), trainers (selftest_engine.py), closed forms (selftest_exact.py). Every draw comes
from the seed. Shapes: m records, n vectors of d coordinates.
"""

import math
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from safesynthdp.attacks.audit_rows import Row
from safesynthdp.attacks.bounds import epsilon_clopper_pearson, epsilon_one_run
from safesynthdp.attacks.claimed_curve import check_claim, count_errors, gaussian_tradeoff
from safesynthdp.attacks.claims import gaussian_epsilon
from safesynthdp.attacks.guesses import guess
from safesynthdp.attacks.made_up_pools import record_ids
from safesynthdp.attacks.metrics import Scores, auc, tpr_at_fpr
from safesynthdp.attacks.pool_audit import evaluate
from safesynthdp.attacks.selftest_rows import Check, near_check, share_check

DELTA, ALPHA = 1e-5, 0.05
CLAIM_MU = 0.92493
"""Epsilon 4 at delta 1e-5."""
Draw = Callable[[np.random.Generator, NDArray[np.bool_]], Scores]


def coverage_checks(*, repetitions: int, seed: int) -> list[Check]:
    """Return how often the one-run bound lies above the truth, in worlds where that is known."""
    mu_one = gaussian_epsilon(1.0, DELTA)
    worlds: list[tuple[str, str, int, float, Draw]] = [
        ("null", "noise, m = 100", 100, 0.0, lambda rng, coins: rng.normal(size=coins.size)),
        ("null", "noise, m = 1000", 1000, 0.0, lambda rng, coins: rng.normal(size=coins.size)),
        ("RR", "randomised response, epsilon 1", 1000, 1.0, _response),
        ("laplace", "Laplace noise, epsilon 1", 1000, 1.0, lambda rng, coins: coins + rng.laplace(size=coins.size)),
        ("gauss", "Gaussian noise, mu 1", 1000, mu_one, lambda rng, coins: coins + rng.normal(size=coins.size)),
    ]
    checks = list[Check]()
    for number, (identity, what, size, truth, draw) in enumerate(worlds):
        rng = np.random.default_rng([seed, 1, number])
        above = sum(_bound(draw, rng, size) > truth for _ in range(repetitions))
        checks.append(
            share_check(identity, f"one-run bound above the truth: {what}", wrong=above, repetitions=repetitions)
        )
    return checks


def permutation_check(*, repetitions: int, seed: int) -> Check:
    """Return how often any attack of a leaking table shows a leak after its labels were permuted."""
    rng = np.random.default_rng([seed, 2])
    size, shown = 200, 0
    is_member = rng.random(size) < 0.5
    attacks = {f"attack{number}": rng.normal(size=size) + shift * is_member for number, shift in enumerate((0, 1, 3))}
    if _largest(attacks, is_member) <= 0:
        return Check(id="perm", what="labels as they are", expected="a leak", found="none", passed=False)
    for _ in range(repetitions):
        shown += _largest(attacks, rng.permutation(is_member)) > 0
    return share_check("perm", "labels permuted, best of three attacks", wrong=shown, repetitions=repetitions)


def curve_checks(*, repetitions: int, seed: int) -> list[Check]:
    """Return what the claimed-curve test and the two bounds say of right noise, half the noise and none (m = 1000)."""
    found, rejected = dict[str, list[float]](), dict[str, int]()
    for number, (what, mu) in enumerate((("right", CLAIM_MU), ("half", 2 * CLAIM_MU), ("none", 1e6))):
        rng = np.random.default_rng([seed, 3, number])
        tests = [_curve_and_clopper_pearson(mu, rng) for _ in range(repetitions)]
        rejected[what], found[what] = sum(test[0] for test in tests), [test[1] for test in tests]
    attainable = epsilon_one_run(canaries=1000, guesses=100, correct=100, delta=DELTA, alpha=ALPHA).epsilon_attainable
    flagged = sum(bound > 4 for bound in found["half"])
    return [
        share_check("G7", "curve test on the right noise", wrong=rejected["right"], repetitions=repetitions),
        _at_least("G7", "curve test on half the noise", rejected["half"], repetitions, 0.95),
        _at_least("G7", "curve test without noise", rejected["none"], repetitions, 1.0),
        near_check("G7", "what one run can show of epsilon 4", found=attainable, expected=3.46538, tolerance=1e-4),
        share_check("G7", "Clopper-Pearson on half the noise", wrong=flagged, repetitions=repetitions, level=0.001),
    ]


def vector_checks(*, repetitions: int, seed: int) -> list[Check]:
    """Return the power of the best attack on a mean of vectors, without and with noise, beside its closed form."""
    checks = list[Check]()
    for number, (n, d) in enumerate(((100, 100), (100, 25), (1000, 100), (50, 200))):
        rng = np.random.default_rng([seed, 4, number])
        draws = max(4, repetitions * 100 // n)
        slack = 0.004 + 4 * 0.5 / math.sqrt(n * draws)
        for noisy, what in ((False, "mean"), (True, "sum and noise")):
            known = float(ndtr(math.sqrt(d / (2 * n - 1 + 2 * d * noisy))))
            sides = [_vectors(rng, n, d, noise=math.sqrt(d) * noisy) for _ in range(draws)]
            found = float(np.mean([auc(*side) for side in sides]))
            where = f"{what} of {n} in {d}"
            checks.append(
                near_check("G2" if noisy else "G1", f"AUC, {where}", found=found, expected=known, tolerance=slack)
            )
            if not noisy:
                rate = float(ndtr((math.sqrt(d) + math.sqrt(n) * ndtri(0.01)) / math.sqrt(n - 1)))
                inside, outside = (np.concatenate(side) for side in zip(*sides, strict=True))
                found = tpr_at_fpr(inside, outside, 0.01)
                checks.append(near_check("G1", f"TPR@1%, {where}", found=found, expected=rate, tolerance=2 * slack))
    rng = np.random.default_rng([seed, 5])
    truth, above = gaussian_epsilon(1.0, DELTA), 0
    for _ in range(repetitions):
        coins = rng.random(1000) < 0.5
        above += _bound(lambda g, c: 10 * c + g.normal(0, 10, size=c.size), rng, coins.size) > truth
    checks.append(share_check("G2", "bound above the truth, all others known", wrong=above, repetitions=repetitions))
    return checks


def count_checks(*, seed: int) -> list[Check]:
    """Return the power of counting a canary's token among 1000 released ones, beside its closed form."""
    checks = list[Check]()
    known = (((0.01, 0.005), 0.903761, 0.005330, 0.302650), ((0.002, 0.001), 0.711718, 0.003637, 0.052472))
    for number, (thetas, area, fpr, tpr) in enumerate(known):
        rng = np.random.default_rng([seed, 6, number])
        members, nonmembers = (rng.binomial(1000, theta, size=200_000).astype(np.float64) for theta in thetas)
        reached = tpr_at_fpr(members, nonmembers, fpr + 4 * math.sqrt(fpr / 200_000))
        checks += [
            near_check(
                "G3",
                f"AUC of a token's count, rate {thetas[0]}",
                found=auc(members, nonmembers),
                expected=area,
                tolerance=0.004,
            ),
            near_check("G3", f"TPR at FPR {fpr:.2%}", found=reached, expected=tpr, tolerance=0.005),
        ]
    return checks


def reference_checks(*, seed: int) -> list[Check]:
    """Return the power of subtracting the mean of K references (offsets N(0, 9), shift 1, noise 1)."""
    checks = list[Check]()
    known = {1: (0.691462, 0.052698), 2: (0.718149, 0.065541), 4: (0.736455, 0.076083), 8: (0.747507, 0.083250)}
    known |= {16: (0.753642, 0.087517), 0: (0.760250, 0.092362)}  # 0: the offset itself is known
    for references, (area, rate) in known.items():
        rng, size = np.random.default_rng([seed, 7, references]), 100_000
        offsets, is_member = rng.normal(0, 3, size), rng.random(size) < 0.5
        means = offsets + (rng.normal(size=size) / math.sqrt(references) if references else 0.0)
        scores = offsets + rng.normal(size=size) + is_member - means
        members, nonmembers = scores[is_member], scores[~is_member]
        what = f"with {references} references" if references else "with the offset known"
        checks += [
            near_check("B4", f"AUC {what}", found=auc(members, nonmembers), expected=area, tolerance=0.0065),
            near_check(
                "B4", f"TPR@1% {what}", found=tpr_at_fpr(members, nonmembers, 0.01), expected=rate, tolerance=0.012
            ),
        ]
    return checks


def monotone_check() -> Check:
    """Return whether bounds fall with errors, grow with trials at fixed rates, and ignore increasing transforms."""
    by_fp = [_clopper_pearson(fp, 500, 20, 500) for fp in range(0, 500, 25)]
    by_fn = [_clopper_pearson(20, 500, fn, 500) for fn in range(0, 500, 25)]
    by_size = [_clopper_pearson(n // 20, n, n // 20, n) for n in (20, 100, 500, 2500)]
    one_run = [
        epsilon_one_run(canaries=m, guesses=m // 10, correct=m * 8 // 100, delta=0, alpha=ALPHA).epsilon_lower_bound
        for m in (100, 500, 2500)
    ]
    scores = np.random.default_rng(0).normal(size=400)
    coins = np.arange(400) % 2 == 0
    both = [guess(values, coins, tie_keys=record_ids(400)) for values in (scores, np.exp(scores) + 7)]
    right = [
        by_fp == sorted(by_fp, reverse=True),
        by_fn == sorted(by_fn, reverse=True),
        by_size == sorted(by_size),
        one_run == sorted(one_run),
        both[0] == both[1],
    ]
    found = f"{sum(right)} of {len(right)}"
    return Check(
        id="mono",
        what="bounds move the right way",
        expected=f"{len(right)} of {len(right)}",
        found=found,
        passed=all(right),
    )


def _bound(draw: Draw, rng: np.random.Generator, size: int) -> float:
    coins = rng.random(size) < 0.5
    found = guess(draw(rng, coins), coins, tie_keys=record_ids(size))
    return epsilon_one_run(**asdict(found), delta=DELTA, alpha=ALPHA).epsilon_lower_bound


def _response(rng: np.random.Generator, coins: NDArray[np.bool_]) -> Scores:
    """Tell each coin truthfully with probability e / (1 + e)."""
    is_true = rng.random(coins.size) < 1 / (1 + math.exp(-1.0))
    scores: Scores = np.where(is_true, coins, ~coins).astype(np.float64)
    return scores


def _largest(attacks: dict[str, Scores], is_member: NDArray[np.bool_]) -> float:
    """Return the largest bound over the attacks, through the whole path from table to rows."""
    size = is_member.size
    table = pa.table(
        {
            "target_id": ["target"] * (size * len(attacks)),
            "record_id": record_ids(size) * len(attacks),
            "channel": ["model"] * (size * len(attacks)),
            "attack": [name for name in attacks for _ in range(size)],
            "score": np.concatenate(list(attacks.values())),
            "member": np.tile(is_member, len(attacks)),
            "k_in": np.zeros(size * len(attacks), dtype=np.int32),
            "k_out": np.zeros(size * len(attacks), dtype=np.int32),
        }
    )
    rows: list[Row] = evaluate(table, {}, alpha=ALPHA)
    return max(float(row["epsilon_lower_bound"]) for row in rows)


def _curve_and_clopper_pearson(mu: float, rng: np.random.Generator) -> tuple[bool, float]:
    is_member = rng.random(1000) < 0.5
    scores = rng.normal(size=1000) + mu * is_member
    outside = scores[~is_member]
    half = outside.size // 2
    counts = asdict(count_errors(calibration=outside[:half], nonmembers=outside[half:], members=scores[is_member]))
    test = check_claim(**counts, tradeoff=gaussian_tradeoff(CLAIM_MU), alpha=ALPHA)
    bound = epsilon_clopper_pearson(**counts, delta=DELTA, alpha=ALPHA)
    return test.is_rejected, bound.epsilon_lower_bound


def _vectors(rng: np.random.Generator, n: int, d: int, *, noise: float) -> tuple[Scores, Scores]:
    """Return scores x . sum of n members and of n fresh vectors, uniform on the sphere of radius sqrt(d)."""
    both = rng.normal(size=(2 * n, d))
    both *= math.sqrt(d) / np.linalg.norm(both, axis=1, keepdims=True)
    released = both[:n].sum(axis=0) + noise * rng.normal(size=d)
    scores: Scores = both @ released
    return scores[:n], scores[n:]


def _at_least(identity: str, what: str, count: int, repetitions: int, least: float) -> Check:
    share = count / repetitions
    return Check(
        id=identity,
        what=what,
        expected=f"at least {least:.0%}",
        found=f"{share:.1%} of {repetitions}",
        passed=share >= least,
    )


def _clopper_pearson(false_positives: int, nonmembers: int, false_negatives: int, members: int) -> float:
    return epsilon_clopper_pearson(
        false_positives=false_positives,
        nonmembers=nonmembers,
        false_negatives=false_negatives,
        members=members,
        delta=DELTA,
        alpha=ALPHA,
    ).epsilon_lower_bound
