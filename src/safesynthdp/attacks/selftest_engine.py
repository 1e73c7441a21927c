"""``safesynthdp selftest engine``: are broken trainers flagged, and is the shipped one not?

Here: repetitions of every case through the claimed-curve test, and the verdict on them. Elsewhere: the cases
(selftest_cases.py), what the checks of training say without statistics (selftest_layers.py), the command
(selftest_command.py).

How often it is wrong: a true claim is rejected with probability at most ``ALPHA`` a repetition, independently. So a
correct row has more than 5 % of its repetitions rejected, which is 2 of 20, with probability at most
``C(20, 2) ALPHA^2 = 1.9e-4`` (quick), and 11 of 200 with at most ``C(200, 11) ALPHA^11 < 1e-15`` (full). Beside that
the errors of all repetitions are added up and tested once at ``ALPHA_TOGETHER``. Only there does a smaller defect of
the shipped step show: noise that is short by 15 % (quick) or 6 % (full), where one repetition misses 30 %.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from statistics import median
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from safesynthdp.attacks.canary_trainer import World
from safesynthdp.attacks.claimed_curve import (
    ClaimTest,
    ErrorCounts,
    Tradeoff,
    check_claim,
    count_errors,
    sampled_gaussian_tradeoff,
)
from safesynthdp.attacks.selftest_cases import CASES, Case, play
from safesynthdp.attacks.selftest_layers import Finding, findings
from safesynthdp.errors import SafeSynthError
from safesynthdp.progress import progress

ALPHA = 1e-3
"""Error probability of the test in one repetition."""
ALPHA_TOGETHER = 1e-4
"""Error probability of the test on the summed errors of all repetitions; their thresholds differ, and by concavity of
the curve an average over thresholds lies below it."""
REPETITIONS = {"quick": 20, "full": 200}
LEAST_SHARE_OF_BROKEN, MOST_SHARE_OF_CORRECT = 0.95, 0.05
Facts = dict[str, Any]


def run(*, level: str, seed: int) -> Facts:
    """Return the result of the whole self-test: ``passed`` and one row a case."""
    return run_cases(CASES, repetitions=REPETITIONS[level], seed=seed)


def run_cases(cases: Sequence[Case], *, repetitions: int, seed: int) -> Facts:
    """Test each case ``repetitions`` times.

    A row passes if the test rejects at least 95 % of a broken trainer's repetitions, at most 5 % of a correct one's
    and not all of these together. A step that refuses to run is a broken one caught, and a correct one failed. Beside
    that, the checks of training must flag what they can see, and nothing correct.
    """
    rows = list[Facts]()
    with one_thread(), progress("selftest engine", total=len(cases) * repetitions, unit="repetitions") as advance:
        flagged = findings()
        for case in cases:
            found, refusal = list[ErrorCounts](), None
            try:
                for repetition in range(repetitions):
                    found.append(errors(case, seed=seed, repetition=repetition))
                    advance(1)
            except SafeSynthError as error:
                refusal = str(error)
            rows.append(_row(case, found, refusal, flagged))
    missed = [finding.name for finding in flagged if not finding.passed]
    failed = [*dict.fromkeys(_name(row) for row in rows if not row["passed"]), *missed]
    return {
        "passed": not failed,
        "failed": failed,
        "alpha": ALPHA,
        "alpha_together": ALPHA_TOGETHER,
        "repetitions": repetitions,
        "rows": rows,
        "checks": [asdict(finding) | {"passed": finding.passed} for finding in flagged],
    }


def errors(case: Case, *, seed: int, repetition: int) -> ErrorCounts:
    """Train, score and count once. The first half of the non-members sets the threshold.

    The order of canaries has nothing to do with their scores, so neither have the halves.
    """
    scores, is_member = play(case, seed=seed, repetition=repetition)
    outside = scores[~is_member]
    half = outside.size // 2
    return count_errors(calibration=outside[:half], nonmembers=outside[half:], members=scores[is_member])


def ask(case: Case, counts: ErrorCounts, *, alpha: float = ALPHA) -> ClaimTest:
    """Test the claim of a case: the curve of the mechanism that is priced, for its number of copies."""
    return check_claim(**asdict(counts), tradeoff=_claim(case.setting.world), alpha=alpha, group_size=case.group_size)


@contextmanager
def one_thread() -> Iterator[None]:
    """Thousands of small products: a second thread waits more than it works."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=16)
def _claim(world: World) -> Tradeoff:
    """Return the curve of the mechanism that is priced, for one record."""
    priced = world.mechanism
    return sampled_gaussian_tradeoff(
        noise_multiplier=priced.noise_multiplier, sample_rate=priced.sample_rate, steps=priced.steps
    )


def _row(case: Case, found: Sequence[ErrorCounts], refusal: str | None, flagged: Iterable[Finding]) -> Facts:
    checks = sorted({finding.check for finding in flagged if finding.id == case.id and finding.is_flagged})
    head = {
        "id": case.id,
        "what": case.what,
        "setting": case.setting.what,
        "engine": case.engine,
        "group_size": case.group_size,
        "expected": "accepted" if case.is_claim_true else "rejected",
        "refusal": refusal,
    }
    numbers = dict[str, float | None].fromkeys(("rejected_share", "p_value_median", "p_value_together"))
    if refusal is not None:
        return head | numbers | {"caught_by": ["the step itself", *checks], "passed": not case.is_claim_true}
    tests, together = [ask(case, counts) for counts in found], ask(case, _sum(found), alpha=ALPHA_TOGETHER)
    share = sum(test.is_rejected for test in tests) / len(tests)
    numbers = {
        "rejected_share": share,
        "p_value_median": median(test.p_value for test in tests),
        "p_value_together": together.p_value,
    }
    if case.is_claim_true:
        is_accepted = share <= MOST_SHARE_OF_CORRECT and not together.is_rejected
        return head | numbers | {"caught_by": [], "passed": is_accepted}
    is_rejected = share >= LEAST_SHARE_OF_BROKEN
    return head | numbers | {"caught_by": ["claimed curve"] * is_rejected + checks, "passed": is_rejected}


def _sum(found: Sequence[ErrorCounts]) -> ErrorCounts:
    return ErrorCounts(
        false_positives=sum(counts.false_positives for counts in found),
        nonmembers=sum(counts.nonmembers for counts in found),
        false_negatives=sum(counts.false_negatives for counts in found),
        members=sum(counts.members for counts in found),
    )


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['id']} ({row['engine']}: {row['what']})"
