"""The self-test flags each broken trainer, lets the shipped one pass, and fails when either changes."""

import dataclasses
import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import pytest
from scipy.stats import binom

from safesynthdp.attacks import canary_trainer, selftest_engine, selftest_layers
from safesynthdp.attacks.broken_trainers import NoNoise
from safesynthdp.attacks.canary_trainer import CLIP, CanaryTrainer
from safesynthdp.attacks.selftest_cases import CASES, ENGINES, EVERY_STEP, Case, play
from safesynthdp.attacks.selftest_command import main
from safesynthdp.attacks.selftest_engine import ALPHA, ask, errors, run_cases
from safesynthdp.cli import run
from safesynthdp.errors import UnsupportedLayer
from safesynthdp.privacy.mechanisms import DPSGDMechanism
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.training.clipping import CLIP_MARGIN, clip_factors

MU = 0.92493
CORRECT = [case for case in CASES if case.id == "P0"]
BROKEN = [case for case in CASES if case.id != "P0"]
Facts = dict[str, Any]


def case_of(identity: str) -> Case:
    return next(case for case in CASES if case.id == identity)


def name_of(case: Case) -> str:
    return f"{case.id}, {case.what}, {case.setting.what}, {case.engine}"


def with_cases(monkeypatch: pytest.MonkeyPatch, cases: Sequence[Case], *, repetitions: int = 2) -> None:
    monkeypatch.setattr(selftest_engine, "CASES", tuple(cases))
    monkeypatch.setattr(selftest_engine, "REPETITIONS", {"quick": repetitions, "full": repetitions})


def measured_mu(case: Case, *, repetitions: int) -> float:
    """Estimate mu by the distance of the two means, in standard deviations of the non-members."""
    inside, outside = list[np.ndarray[Any, Any]](), list[np.ndarray[Any, Any]]()
    for repetition in range(repetitions):
        scores, is_member = play(case, seed=1, repetition=repetition)
        inside.append(scores[is_member])
        outside.append(scores[~is_member])
    members, nonmembers = np.concatenate(inside), np.concatenate(outside)
    return float((members.mean() - nonmembers.mean()) / nonmembers.std())


def test_every_defect_and_every_engine_is_on_the_list() -> None:
    assert {case.id for case in CASES} == {"P0", *(f"N{i}" for i in range(1, 13))}
    assert {case.engine for case in CORRECT} == set(ENGINES) == {"hooks", "ghost", "bookkeeping"}
    assert {case.setting.what for case in BROKEN} == {case.setting.what for case in CORRECT}


@pytest.mark.parametrize("case", BROKEN, ids=name_of)
def test_a_broken_trainer_is_flagged_and_one_that_is_priced_right_is_not(case: Case) -> None:
    tests = [ask(case, errors(case, seed=2, repetition=repetition)) for repetition in range(3)]
    assert [test.is_rejected for test in tests] == [not case.is_claim_true] * 3


@pytest.mark.parametrize("case", CORRECT, ids=name_of)
def test_the_shipped_step_is_not_flagged_in_any_setting(case: Case) -> None:
    tests = [ask(case, errors(case, seed=2, repetition=repetition)) for repetition in range(3)]
    assert not any(test.is_rejected for test in tests)


def test_over_many_repetitions_the_shipped_step_is_rejected_no_more_often_than_alpha() -> None:
    alpha, repetitions, rejected = 0.1, 100, 0
    for repetition in range(repetitions):
        rejected += ask(CORRECT[2], errors(CORRECT[2], seed=3, repetition=repetition), alpha=alpha).is_rejected
    assert rejected / repetitions <= alpha + 3 * (alpha * (1 - alpha) / repetitions) ** 0.5


@pytest.mark.parametrize(
    ("identity", "times"), [("P0", 1), ("N2", 10), ("N3", 10), ("N4", 2), ("N6", 10), ("N7", 2), ("N11", 4)]
)
def test_a_defect_multiplies_mu_by_what_theory_says(identity: str, times: float) -> None:
    """So the world is the one that is claimed, and each defect is the one that is named."""
    is_clipped = identity not in ("N2", "N6")
    wanted = MU * times * (1 - CLIP_MARGIN if is_clipped else 1)
    standard_error = ((4 + wanted**2 / 2) / 10_000) ** 0.5
    assert measured_mu(case_of(identity), repetitions=10) == pytest.approx(wanted, abs=4 * standard_error)


def test_all_engines_release_the_same_on_the_same_keys() -> None:
    is_present, keys = np.arange(1000) % 2 == 0, StepKeys.from_unsafe_seed(0)
    released = [
        CanaryTrainer(EVERY_STEP.world, engine_of, is_present=is_present, keys=keys).train()
        for engine_of in ENGINES.values()
    ]
    for other in released[1:]:
        np.testing.assert_allclose(other, released[0], rtol=0, atol=1e-9)


def test_without_noise_a_canary_moves_its_own_coordinate_by_the_clip_over_the_divisor() -> None:
    world, is_present = EVERY_STEP.world, np.arange(1000) % 3 == 0
    for engine_of in ENGINES.values():
        trainer = NoNoise(world, engine_of, is_present=is_present, keys=StepKeys.from_unsafe_seed(0))
        wanted = CLIP * (1 - CLIP_MARGIN) / world.expected_batch_size
        np.testing.assert_allclose(trainer.train(), np.tile(wanted * is_present, (4, 1)), rtol=1e-5)
        trainer.close()


def test_no_two_cases_or_repetitions_share_coins_or_noise() -> None:
    played = [play(case, seed=0, repetition=repetition) for case in CORRECT[:2] for repetition in range(2)]
    for i, (scores, is_member) in enumerate(played):
        assert 400 < is_member.sum() < 600
        for other_scores, other_member in played[:i]:
            assert (is_member != other_member).any()
            assert abs(np.corrcoef(scores[~is_member], other_scores[: (~is_member).sum()])[0, 1]) < 0.25


def test_alpha_makes_a_false_alarm_of_a_correct_row_rarer_than_one_in_a_thousand() -> None:
    assert binom.sf(1, 20, ALPHA) < 2e-4  # more than 5 % of 20
    assert binom.sf(10, 200, ALPHA) < 1e-12


def test_the_start_up_check_and_the_ledger_flag_what_they_can_see_and_nothing_correct() -> None:
    found = selftest_layers.findings()
    assert all(finding.passed for finding in found)
    flagged = {(finding.check, finding.id) for finding in found if finding.is_flagged}
    assert flagged == {
        *(("start-up check", identity) for identity in ("N2", "N6", "N10", "N12")),
        *(("ledger", identity) for identity in ("N1", "N9")),
    }
    assert {finding.engine for finding in found if finding.check == "start-up check"} == set(ENGINES)


def test_the_result_is_one_json_object_the_same_for_the_same_seed_and_without_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the self-test went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with_cases(monkeypatch, [case_of("P0"), case_of("N4")])
    printed = list[str]()
    for _ in range(2):
        assert run(main, ["engine", "--json", "--seed", "5"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    facts = json.loads(printed[0])
    assert (facts["passed"], facts["level"], facts["seed"]) == (True, "quick", 5)
    rows = facts["parts"]["engine"]["rows"]
    assert [(row["id"], row["rejected_share"], row["passed"]) for row in rows] == [("P0", 0.0, True), ("N4", 1.0, True)]
    assert rows[1]["caught_by"] == ["claimed curve"]


def test_the_table_names_every_case_and_who_caught_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_cases(monkeypatch, [case_of(identity) for identity in ("P0", "N2", "N8", "N9")])
    monkeypatch.setenv("COLUMNS", "60")
    assert run(main, ["engine"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["P0"].split()[-2:] == ["-", "ok"]
    assert "claimed curve, start-up check" in lines["N2"]
    assert "claimed curve, ledger" in lines["N9"]
    assert "passed:" in lines
    assert not any("\u2026" in line for line in lines.values()), "a cell is cut"


def test_a_shipped_step_with_half_the_noise_fails_the_self_test(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The negative control of the self-test: it must see a defect in the code that ships."""
    noise = DPSGDMechanism.noise

    def half(self: DPSGDMechanism, **where: Any) -> Any:
        return noise(self, **where) / 2

    monkeypatch.setattr(DPSGDMechanism, "noise", half)
    with_cases(monkeypatch, CORRECT[:3])
    assert run(main, ["engine", "--json"]) == 1
    said = capsys.readouterr()
    rows = json.loads(said.out)["parts"]["engine"]["rows"]
    assert [row["passed"] for row in rows] == [False] * 3
    assert said.err.splitlines()[-1].startswith("error: selftest failed: engine P0 (hooks")


def test_a_shipped_clip_that_lets_more_through_fails_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    def loose(norms: Any, *, per_sample_max_grad_norm: float) -> Any:
        return clip_factors(norms, per_sample_max_grad_norm=2 * per_sample_max_grad_norm)

    monkeypatch.setattr("safesynthdp.training.bookkeeping.clip_factors", loose)
    result = run_cases([CORRECT[2]], repetitions=2, seed=0)
    assert not result["passed"]
    assert result["failed"] == ["P0 (bookkeeping: none: as shipped)", "P0 (start-up check, bookkeeping)"]


def test_a_broken_trainer_that_goes_unflagged_fails_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    blunt = dataclasses.replace(case_of("N4"), trainer=CanaryTrainer)
    with_cases(monkeypatch, [blunt])
    assert run(main, ["engine", "--json"]) == 1


def test_a_start_up_check_that_sees_nothing_fails_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest_layers, "check_engine", lambda *_, **__: None)
    result = run_cases([case_of("N2")], repetitions=1, seed=0)
    assert not result["passed"]
    assert "N2 (start-up check, hooks)" in result["failed"]
    assert result["rows"][0]["caught_by"] == ["claimed curve"]


def test_an_engine_that_refuses_the_canaries_fails_a_correct_row_and_catches_a_broken_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: CanaryTrainer, present: object) -> NoReturn:
        raise UnsupportedLayer("table.weight has no rule")

    monkeypatch.setattr(canary_trainer.CanaryTrainer, "add_up", refuse)
    rows = run_cases([case_of("P0"), case_of("N4")], repetitions=1, seed=0)["rows"]
    assert [row["passed"] for row in rows] == [False, True]
    assert [row["refusal"] for row in rows] == ["table.weight has no rule"] * 2
    assert rows[1]["caught_by"] == ["the step itself"]


def test_noise_that_is_short_by_a_sixth_shows_in_all_repetitions_together() -> None:
    class Short(CanaryTrainer):
        def add_noise(self, step: int) -> None:
            self.mechanism = self.with_noise_times(0.83) if step == 0 else self.mechanism
            super().add_noise(step)

    case = dataclasses.replace(case_of("P0"), trainer=Short)
    row = run_cases([case], repetitions=20, seed=0)["rows"][0]
    assert row["rejected_share"] <= 0.05
    assert row["p_value_together"] < 1e-4
    assert not row["passed"]


@pytest.mark.parametrize("words", [["audits"], ["engine", "audited"], ["nonsense"]])
def test_a_part_that_does_not_exist_is_one_line_that_says_which_do(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "what exists: engine" in said.err


@pytest.mark.parametrize("words", [["--level", "slow"], ["--seed", "x"], ["--sed", "1"]])
def test_a_wrong_flag_is_one_line_and_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, words) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_asks_for_torch_only_when_it_runs() -> None:
    code = "import sys, safesynthdp.attacks.selftest_command\nassert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_quick_level_passes_as_it_ships(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["engine", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["parts"]["engine"]["rows"]
    assert len(rows) == len(CASES)
