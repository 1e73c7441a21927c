"""``safesynthdp selftest audit``: do the audits find what is there, and nothing where there is nothing?

Here: which checks at which size, and the table. Elsewhere: the checks (selftest_exact.py, selftest_worlds.py,
selftest_pools.py), the broken trainers (selftest_cases.py; ``selftest engine`` asks more often, under every engine).

How often it is wrong: a share that has to be at most 5 % may be three standard errors above it, which a correct audit
exceeds once in 700; the bounds are conservative, so in fact far less often. The seed decides, so a seed that passes
passes everywhere.
"""

from typing import TYPE_CHECKING, Any

from safesynthdp.attacks.selftest_exact import exact_checks
from safesynthdp.attacks.selftest_pools import pool_checks
from safesynthdp.attacks.selftest_rows import Check
from safesynthdp.attacks.selftest_worlds import (
    count_checks,
    coverage_checks,
    curve_checks,
    monotone_check,
    permutation_check,
    reference_checks,
    vector_checks,
)
from safesynthdp.errors import SafeSynthError
from safesynthdp.progress import progress

if TYPE_CHECKING:
    from safesynthdp.attacks.selftest_cases import Case

REPETITIONS = {"quick": 400, "full": 1200}
TRAINERS = ("P0", "N1", "N4", "N11")
"""Right, no noise, half the noise, copies (against the claim for one and for four): asked most often."""
TRAINER_REPETITIONS = {"quick": 5, "full": 200}
OTHER_REPETITIONS = {"quick": 2, "full": 20}
"""Of the other defects, and of settings in which a repetition is many runs."""
Facts = dict[str, Any]


def run(*, level: str, seed: int) -> Facts:
    """Return the result: ``passed``, ``failed`` and one row a check."""
    size = REPETITIONS[level]
    parts = (
        exact_checks,
        lambda: coverage_checks(repetitions=size, seed=seed),
        lambda: [permutation_check(repetitions=size, seed=seed)],
        lambda: curve_checks(repetitions=size, seed=seed),
        lambda: pool_checks(seed=seed),
        lambda: vector_checks(repetitions=size, seed=seed),
        lambda: count_checks(seed=seed),
        lambda: reference_checks(seed=seed),
        lambda: [monotone_check()],
        lambda: trainer_checks(repetitions=TRAINER_REPETITIONS[level], others=OTHER_REPETITIONS[level], seed=seed),
    )
    checks = list[Check]()
    with progress("selftest audit", total=len(parts), unit="parts") as advance:
        for part in parts:
            checks += part()
            advance(1)
    failed = [f"{check.id} ({check.what})" for check in checks if not check.passed]
    rows = [{name: getattr(check, name) for name in Check.__dataclass_fields__} for check in checks]
    return {"passed": not failed, "failed": failed, "repetitions": size, "rows": rows}


def trainer_checks(*, repetitions: int, others: int, seed: int) -> list[Check]:
    """Return what the claimed-curve test says of the shipped private step and of the twelve broken ones.

    Args:
        repetitions: Of ``TRAINERS`` where all records are in every step.
        others: Of every other case.
        seed: Of all of them.
    """
    from safesynthdp.attacks.selftest_cases import CASES, DEFAULT_ENGINE, EVERY_STEP
    from safesynthdp.attacks.selftest_engine import one_thread

    checks = list[Check]()
    with one_thread():
        for case in CASES:
            if case.engine == DEFAULT_ENGINE:
                is_asked_often = case.id in TRAINERS and case.setting == EVERY_STEP
                checks.append(_trainer_check(case, repetitions if is_asked_often else others, seed=seed))
    return checks


def _trainer_check(case: "Case", repetitions: int, *, seed: int) -> Check:
    """A step that refuses to run is a broken one caught, and a correct one failed."""
    from safesynthdp.attacks.selftest_engine import ask, errors

    try:
        tests = [ask(case, errors(case, seed=seed, repetition=number)) for number in range(repetitions)]
        rejected, found = sum(test.is_rejected for test in tests), "rejected"
    except SafeSynthError:
        rejected, found = repetitions, "refused to run"
    wanted = 0 if case.is_claim_true else repetitions
    return Check(
        id=case.id,
        what=f"private step on canaries ({case.setting.what}), defect: {case.what}",
        expected=f"rejected {'0%' if case.is_claim_true else '100%'} +- 5%",
        found=found if found != "rejected" else f"{rejected / repetitions:.1%} of {repetitions}",
        passed=abs(rejected - wanted) <= 0.05 * repetitions,
    )


def show(result: Facts, screen: Any) -> None:
    """Print the table on a rich console."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("id", "looked at", "expected", "found", "result"):
        table.add_column(heading, no_wrap=True)
    for row in result["rows"]:
        table.add_row(row["id"], row["what"], row["expected"], row["found"], "ok" if row["passed"] else "FAILED")
    screen.print(table)
