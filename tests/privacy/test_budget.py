"""What a target affords, to the exact step."""

import math

import pytest

from safesynthdp.errors import BudgetExhausted, ConfigError
from safesynthdp.privacy.budget import Budget
from safesynthdp.privacy.mechanisms import DPSGDMechanism, LabelHistogramMechanism

HISTOGRAM = LabelHistogramMechanism.from_epsilon(0.2, "add_remove")


def training(steps: int, noise: float = 1.0, accountant: str = "pld") -> DPSGDMechanism:
    return DPSGDMechanism(
        num_records=5000,
        expected_batch_size=250,
        noise_multiplier=noise,
        steps=steps,
        per_sample_max_grad_norm=1.0,
        accountant=accountant,
    )


def test_the_last_step_that_fits_is_exact() -> None:
    target = 2.0
    budget = Budget(target_epsilon=target, delta=1e-5)
    steps = budget.affordable_steps(training(16, noise=0.8), [HISTOGRAM])
    assert 1 <= steps < 16
    assert budget.spent([training(steps, noise=0.8), HISTOGRAM]) <= target
    assert budget.spent([training(steps + 1, noise=0.8), HISTOGRAM]) > target


def test_the_last_step_that_fits_is_exact_on_many_budgets() -> None:
    for target in (2.0, 2.7, 4.1, 6.0):
        budget = Budget(target_epsilon=target, delta=1e-5)
        steps = budget.affordable_steps(training(800, accountant="rdp"), [HISTOGRAM])
        spent = [budget.spent([training(n, accountant="rdp"), HISTOGRAM]) for n in (steps, steps + 1)]
        assert spent[0] <= target < spent[1]


def test_all_planned_steps_are_afforded_when_they_fit_and_without_a_target() -> None:
    assert Budget(target_epsilon=50.0, delta=1e-5).affordable_steps(training(10), [HISTOGRAM]) == 10
    assert Budget(target_epsilon=None, delta=1e-5).affordable_steps(training(10)) == 10


def test_a_budget_that_affords_no_step_says_what_one_costs() -> None:
    with pytest.raises(BudgetExhausted, match=r"^privacy.target_epsilon=0.01 affords no step: one costs epsilon=\d"):
        Budget(target_epsilon=0.01, delta=1e-9).affordable_steps(training(10, noise=0.5), [HISTOGRAM])


def test_the_noise_found_affords_exactly_the_steps_asked_for() -> None:
    budget = Budget(target_epsilon=1.5, delta=1e-5)
    noise = budget.find_noise_multiplier(
        num_records=5000, expected_batch_size=250, steps=120, per_sample_max_grad_norm=1.0, others=[HISTOGRAM]
    )
    assert budget.affordable_steps(training(120, noise), [HISTOGRAM]) == 120
    assert 1.5 / 1.01 <= budget.spent([training(120, noise), HISTOGRAM]) <= 1.5


def test_nothing_spends_nothing() -> None:
    budget = Budget(target_epsilon=1.0, delta=1e-5)
    assert budget.spent([]) == 0
    assert budget.spent([training(0)]) == 0
    assert budget.spent([HISTOGRAM]) == pytest.approx(0.2, rel=1e-3)


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_a_target_that_is_none_is_refused(target: float) -> None:
    with pytest.raises(ConfigError, match=r"^privacy.target_epsilon="):
        Budget(target_epsilon=target, delta=1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, math.nan, -1.0])
def test_a_delta_that_is_none_is_refused(delta: float) -> None:
    with pytest.raises(ConfigError, match=r"^privacy.target_delta="):
        Budget(target_epsilon=1.0, delta=delta)


def test_noise_for_no_target_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^privacy.target_epsilon is not set"):
        Budget(target_epsilon=None, delta=1e-5).find_noise_multiplier(
            num_records=10, expected_batch_size=1, steps=1, per_sample_max_grad_norm=1.0
        )
