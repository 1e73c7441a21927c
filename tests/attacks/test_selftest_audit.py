"""The self-test of the audits passes as it ships, and fails when an audit peeks, guesses or forgets."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from safesynthdp.attacks import (
    audit_rows,
    bounds,
    guesses,
    pool_scores,
    selftest_audit,
    selftest_cases,
    selftest_exact,
    selftest_pools,
    selftest_worlds,
)
from safesynthdp.attacks.selftest_audit import run
from safesynthdp.attacks.selftest_command import main
from safesynthdp.attacks.selftest_rows import Check, at_most, near_check, share_check
from safesynthdp.cli import run as run_command


def passed(checks: Sequence[Check]) -> list[bool]:
    return [check.passed for check in checks]


def test_shares_are_judged_with_three_standard_errors_of_room() -> None:
    assert at_most(0.05, repetitions=400) == pytest.approx(0.0827, abs=1e-4)
    assert share_check("x", "y", wrong=33, repetitions=400).passed
    assert not share_check("x", "y", wrong=34, repetitions=400).passed
    assert near_check("x", "y", found=1.05, expected=1, tolerance=0.1).passed
    assert not near_check("x", "y", found=float("nan"), expected=1, tolerance=0.1).passed


def test_every_exact_case_comes_out() -> None:
    checks = selftest_exact.exact_checks()
    assert all(passed(checks)), checks
    assert {check.id for check in checks} == {*("A1", "A6", "B", "D", "E1", "E3", "E4", "E6", "F1", "G5")}


def test_a_threshold_picked_by_the_labels_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """What peers do: the number of guesses that looks best is tested as if it had been fixed."""

    def peeking(scores: Any, is_member: Any, **how: Any) -> guesses.Guesses:
        coins = is_member[np.argsort(-scores)]
        right = np.cumsum(coins)[: coins.size // 2] + np.cumsum(~coins[::-1])[: coins.size // 2]
        total = 2 * np.arange(1, coins.size // 2 + 1)
        best = 4 + int(np.argmax(((right - total / 2) / np.sqrt(total))[4:]))
        return guesses.Guesses(canaries=coins.size, guesses=int(total[best]), correct=int(right[best]))

    monkeypatch.setattr(selftest_worlds, "guess", peeking)
    monkeypatch.setattr(audit_rows, "guess", peeking)
    found = selftest_worlds.coverage_checks(repetitions=60, seed=0)[:2]
    together = [*found, selftest_worlds.permutation_check(repetitions=60, seed=0)]
    assert passed(together) == [False] * 3, together


def test_attacks_that_do_not_share_alpha_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safesynthdp.attacks.pool_audit._num_tests", lambda *_: 0.2)
    assert not selftest_worlds.permutation_check(repetitions=80, seed=0).passed


def test_a_bound_with_a_sign_error_in_delta_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = bounds.one_run_p_value

    def wrong(*, delta: float, **counts: Any) -> float:
        return right(delta=0.0, **counts)

    monkeypatch.setattr(selftest_exact, "one_run_p_value", wrong)
    checks = {check.id: check.passed for check in selftest_exact.exact_checks()}
    assert checks["E3"] is False
    assert checks["E4"] is True


def test_a_pool_whose_references_hold_the_pair_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_the_pair(model: int, models: Sequence[int], num_models: int) -> list[int]:
        return [other for other in models if other not in (model, num_models)]

    monkeypatch.setattr(selftest_pools, "SIZES", (8,))
    monkeypatch.setattr(selftest_pools, "TARGETS", 8)
    monkeypatch.setattr(selftest_pools, "RECORDS", 1500)
    monkeypatch.setattr(selftest_pools, "TOLERANCE", 0.02)
    assert all(passed(selftest_pools.pool_checks(seed=0)))
    monkeypatch.setattr(pool_scores, "_references", with_the_pair)
    checks = selftest_pools.pool_checks(seed=0)
    assert passed(checks) == [False, True, True]


def test_a_pool_that_scores_with_the_pair_kept_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest_pools, "score", lambda *_, **__: None)
    assert not selftest_pools._refusal().passed


def test_a_trainer_without_noise_that_passes_for_correct_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = next(case for case in selftest_cases.CASES if case.id == "P0")
    wrong = next(case for case in selftest_cases.CASES if case.id == "N4")
    swapped = (replace(right, trainer=wrong.trainer), replace(wrong, trainer=right.trainer))
    monkeypatch.setattr(selftest_cases, "CASES", [replace(case, engine="bookkeeping") for case in swapped])
    assert passed(selftest_audit.trainer_checks(repetitions=2, others=2, seed=0)) == [False, False]


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest_audit, "REPETITIONS", {"quick": 20, "full": 20})
    for name in ("pool_checks", "vector_checks", "count_checks", "reference_checks", "trainer_checks"):
        monkeypatch.setattr(selftest_audit, name, lambda **_: [])


def test_the_command_prints_a_row_a_check_and_one_json_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick(monkeypatch)
    assert run_command(main, ["audit"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["id", "looked", "at", "expected", "found", "result"]
    assert sum(line.rstrip().endswith(" ok") for line in lines) == len(lines) - 2
    assert run_command(main, ["audit", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {row["id"] for row in facts["parts"]["audit"]["rows"]} >= {"null", "RR", "gauss", "perm", "G7", "mono"}


def test_a_failed_check_is_named_and_the_exit_code_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick(monkeypatch)
    monkeypatch.setattr(
        selftest_audit, "monotone_check", lambda: near_check("mono", "z", found=2, expected=1, tolerance=0)
    )
    assert run_command(main, ["audit", "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["parts"]["audit"]["failed"] == ["mono (z)"]
    assert "selftest failed: audit mono (z)" in said.err


@pytest.mark.timeout(600)
def test_the_quick_level_passes_as_it_ships_and_looks_at_everything() -> None:
    result = run(level="quick", seed=0)
    assert result["passed"], result["failed"]
    assert np.all([row["passed"] for row in result["rows"]])
    worlds = {"null", "RR", "laplace", "gauss", "perm", "pool", "G1", "G2", "G3", "G7", "B4", "mono"}
    trainers = {"P0", *(f"N{number}" for number in range(1, 13))}
    assert {row["id"] for row in result["rows"]} >= worlds | trainers


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_full_level_passes_as_it_ships() -> None:
    result = run(level="full", seed=0)
    assert result["passed"], result["failed"]
