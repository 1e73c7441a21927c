"""``safesynthdp selftest audit``: do the audits find what is there, and nothing where there is nothing?

Here: which checks at which size, and the table. Elsewhere: the checks (selftest_exact.py, selftest_worlds.py,
selftest_pools.py), the broken trainers (selftest_engine.py; all twelve run in ``selftest engine``).

How often it is wrong: a share that has to be at most 5 % may be three standard errors above it, which a correct audit
exceeds once in 700; the bounds are conservative, so in fact far less often. The seed decides, so a seed that passes
passes everywhere.
"""

from typing import Any

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
from safesynthdp.progress import progress

REPETITIONS = {"quick": 400, "full": 4000}
TRAINERS = ("P0", "N1", "N4", "N11")
"""Right, no noise, half the noise, copies (against the claim for one and for four)."""
TRAINER_REPETITIONS = {"quick": 5, "full": 200}
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
        lambda: trainer_checks(repetitions=TRAINER_REPETITIONS[level], seed=seed),
    )
    checks = list[Check]()
    with progress("selftest audit", total=len(parts), unit="parts") as advance:
        for part in parts:
            checks += part()
            advance(1)
    failed = [f"{check.id} ({check.what})" for check in checks if not check.passed]
    rows = [{name: getattr(check, name) for name in Check.__dataclass_fields__} for check in checks]
    return {"passed": not failed, "failed": failed, "repetitions": size, "rows": rows}


def trainer_checks(*, repetitions: int, seed: int) -> list[Check]:
    """Return what the claimed-curve test says of the shipped private step and of three broken ones."""
    from safesynthdp.attacks.selftest_cases import CASES, DEFAULT_ENGINE, EVERY_STEP
    from safesynthdp.attacks.selftest_engine import ask, errors, one_thread

    checks = list[Check]()
    cases = [c for c in CASES if c.id in TRAINERS and c.setting == EVERY_STEP and c.engine == DEFAULT_ENGINE]
    with one_thread():
        for case in cases:
            tests = [ask(case, errors(case, seed=seed, repetition=number)) for number in range(repetitions)]
            rejected = sum(test.is_rejected for test in tests)
            wanted = 0 if case.is_claim_true else repetitions
            allowed = 0.05 * repetitions
            checks.append(
                Check(
                    id=case.id,
                    what=f"private step on canaries, defect: {case.what}",
                    expected=f"rejected {'0%' if case.is_claim_true else '100%'} +- 5%",
                    found=f"{rejected / repetitions:.1%} of {repetitions}",
                    passed=abs(rejected - wanted) <= allowed,
                )
            )
    return checks


def show(result: Facts, screen: Any) -> None:
    """Print the table on a rich console."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("id", "looked at", "expected", "found", "result"):
        table.add_column(heading, no_wrap=True)
    for row in result["rows"]:
        table.add_row(row["id"], row["what"], row["expected"], row["found"], "ok" if row["passed"] else "FAILED")
    screen.print(table)
