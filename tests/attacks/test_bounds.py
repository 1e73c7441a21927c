"""Epsilon lower bounds: exact cases, coverage, monotony and refusals."""

import math
import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from safesynthdp.attacks.bounds import (
    epsilon_clopper_pearson,
    epsilon_one_run,
    fair_coin_p_value,
    one_run_p_value,
)
from safesynthdp.errors import ConfigError


def one_run(m: int, r: int, v: int, delta: float = 0.0, alpha: float = 0.05) -> float:
    return epsilon_one_run(canaries=m, guesses=r, correct=v, delta=delta, alpha=alpha).epsilon_lower_bound


def p_value(m: int, r: int, v: int, epsilon: float, delta: float = 0.0) -> float:
    return one_run_p_value(canaries=m, guesses=r, correct=v, epsilon=epsilon, delta=delta)


def clopper_pearson(fp: int, n0: int, fn: int, n1: int, delta: float = 1e-5, alpha: float = 0.05) -> float:
    return epsilon_clopper_pearson(
        false_positives=fp, nonmembers=n0, false_negatives=fn, members=n1, delta=delta, alpha=alpha
    ).epsilon_lower_bound


@pytest.mark.parametrize(
    ("errors", "trials", "expected"),
    [(0, 100, 0.036217), (0, 1000, 0.003682), (1, 1000, 0.005559), (10, 1000, 0.018313), (1000, 1000, 1.0)],
)
def test_upper_limits_of_error_rates_are_the_known_ones(errors: int, trials: int, expected: float) -> None:
    bound = epsilon_clopper_pearson(
        false_positives=errors, nonmembers=trials, false_negatives=errors, members=trials, delta=1e-5, alpha=0.05
    )
    assert bound.fpr_upper == pytest.approx(expected, abs=1e-6)
    assert bound.fnr_upper == bound.fpr_upper


@pytest.mark.parametrize(
    ("m", "r", "v", "epsilon", "delta", "expected", "tolerance"),
    [
        (1000, 1000, 600, 0, 0, 1.3642e-10, 1e-14),
        (1000, 100, 80, 1, 0, 0.0715562, 1e-6),
        (1000, 100, 80, 1, 1e-5, 0.0730091, 1e-6),
        (1000, 100, 100, 3, 1e-5, 0.0104113, 1e-6),
        (1000, 1000, 530, 0, 0, 0.0310116, 1e-6),
    ],
)
def test_one_run_p_values_are_the_known_ones(
    m: int, r: int, v: int, epsilon: float, delta: float, expected: float, tolerance: float
) -> None:
    assert p_value(m, r, v, epsilon, delta) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(
    ("m", "r", "v", "delta", "expected"),
    [
        (1000, 100, 80, 0, 0.95839),
        (1000, 100, 80, 1e-5, 0.95532),
        (1000, 100, 100, 1e-5, 3.46538),
        (500, 100, 100, 1e-5, 3.47920),
        (100, 100, 100, 1e-5, 3.49022),
        (1000, 1000, 1000, 1e-5, 5.78228),
        (1000, 1000, 731, 0, 0.88060),
        (1000, 200, 150, 1e-5, 0.81997),
    ],
)
def test_one_run_bounds_are_the_known_ones(m: int, r: int, v: int, delta: float, expected: float) -> None:
    assert one_run(m, r, v, delta) == pytest.approx(expected, abs=1e-5)
    assert p_value(m, r, v, one_run(m, r, v, delta), delta) == pytest.approx(0.05, abs=1e-6)


def test_randomised_response_is_rejected_at_its_own_epsilon_from_755_on() -> None:
    rejected = [v for v in range(1001) if p_value(1000, 1000, v, 1.0) < 0.05]
    assert rejected == list(range(755, 1001))
    assert p_value(1000, 1000, 755, 1.0) == pytest.approx(0.046263, abs=1e-6)


@settings(max_examples=60)
@given(st.integers(1, 60), st.data(), st.floats(0, 4), st.floats(0, 0.2))
def test_the_p_value_is_its_formula_term_by_term(r: int, data: Any, epsilon: float, delta: float) -> None:
    v, m = data.draw(st.integers(0, r)), data.draw(st.integers(r, 3 * r))
    q = math.exp(epsilon) / (1 + math.exp(epsilon))
    mass = [stats.binom.pmf(k, r, q) for k in range(r + 1)]
    terms = [sum(mass[max(0, v - i) : v]) / i for i in range(1, v + 1)]
    expected = min(1.0, sum(mass[v:]) + 2 * m * delta * max(terms, default=0.0))
    assert p_value(m, r, v, epsilon, delta) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=60)
@given(st.integers(1, 2000), st.data(), st.sampled_from([0.0, 1e-6, 1e-4, 1e-2]))
def test_the_p_value_grows_with_epsilon_and_falls_with_right_guesses_below_one_half(
    r: int, data: Any, delta: float
) -> None:
    """Where it decides anything: the bisection needs a single crossing of alpha."""
    v = data.draw(st.integers(0, r))
    along = [p_value(r, r, v, epsilon, delta) for epsilon in np.linspace(0, 9, 40)]
    crossing = next((i for i, p in enumerate(along) if p >= 0.5), len(along))
    assert all(a <= b + 1e-12 for a, b in pairwise(along[: crossing + 1]))
    assert all(p >= 0.5 - 1e-9 for p in along[crossing:])
    if v < r and p_value(r, r, v, 1.0, delta) < 0.5:
        assert p_value(r, r, v + 1, 1.0, delta) <= p_value(r, r, v, 1.0, delta) + 1e-12


@pytest.mark.parametrize("canaries", [100, 1000])
def test_pure_noise_gives_a_positive_bound_in_at_most_alpha_of_audits(canaries: int) -> None:
    rng = np.random.default_rng(canaries)
    right = rng.binomial(canaries // 10, 0.5, size=400)
    assert np.mean([one_run(canaries, canaries // 10, int(v)) > 0 for v in right]) <= 0.083


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_randomised_response_is_bounded_above_its_epsilon_in_at_most_alpha_of_audits(epsilon: float) -> None:
    rng = np.random.default_rng(7)
    right = rng.binomial(500, 1 / (1 + math.exp(-epsilon)), size=400)
    bounds = [one_run(500, 500, int(v)) for v in right]
    assert np.mean(np.asarray(bounds) > epsilon) <= 0.083
    assert np.median(bounds) > 0.7 * epsilon, "a bound that never comes near the truth would also pass"


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_independent_trials_are_bounded_above_their_epsilon_in_at_most_alpha_of_audits(epsilon: float) -> None:
    rng, wrong = np.random.default_rng(3), 1 / (1 + math.exp(epsilon))
    draws = rng.binomial(2000, wrong, size=(400, 2))
    bounds = [clopper_pearson(int(fp), 2000, int(fn), 2000, delta=0) for fp, fn in draws]
    assert np.mean(np.asarray(bounds) > epsilon) <= 0.083
    assert np.median(bounds) > 0.7 * epsilon


def test_bounds_fall_with_errors_and_grow_with_trials() -> None:
    falling = [clopper_pearson(fp, 500, 20, 500) for fp in range(0, 500, 25)]
    assert falling == sorted(falling, reverse=True)
    falling = [clopper_pearson(20, 500, fn, 500) for fn in range(0, 500, 25)]
    assert falling == sorted(falling, reverse=True)
    growing = [clopper_pearson(n // 20, n, n // 20, n) for n in (20, 100, 500, 2500)]
    assert growing == sorted(growing)
    assert growing[0] < growing[-1]
    growing = [one_run(m, m // 10, m * 8 // 100) for m in (100, 500, 2500, 12500)]
    assert growing == sorted(growing)
    growing = [one_run(1000, 100, v, 1e-5) for v in range(0, 101, 5)]
    assert growing == sorted(growing)
    falling = [one_run(1000, 100, 90, delta) for delta in (0, 1e-6, 1e-4, 1e-3, 1e-2, 0.5)]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] == 0.0


def test_no_more_than_the_attainable_bound_is_ever_shown() -> None:
    bound = epsilon_one_run(canaries=1000, guesses=100, correct=62, delta=1e-5, alpha=0.05)
    assert bound.epsilon_attainable == pytest.approx(3.46538, abs=1e-5)
    assert 0 < bound.epsilon_lower_bound < bound.epsilon_attainable
    trials = epsilon_clopper_pearson(
        false_positives=3, nonmembers=1000, false_negatives=5, members=500, delta=1e-5, alpha=0.05
    )
    perfect = clopper_pearson(0, 1000, 0, 500)
    assert trials.epsilon_attainable == perfect
    assert trials.epsilon_lower_bound < perfect


def test_every_verdict_has_its_case() -> None:
    bound = epsilon_one_run(canaries=1000, guesses=100, correct=80, delta=1e-5, alpha=0.05)  # .955 of at most 3.465
    assert bound.verdict(None) is None
    assert bound.verdict(0.9) == "refuted"
    assert bound.verdict(bound.epsilon_lower_bound) == "consistent"
    assert bound.verdict(3.4) == "consistent"
    assert bound.verdict(bound.epsilon_attainable) == "no_power"
    assert bound.verdict(4.0) == "no_power"


def test_a_million_guesses_are_bounded_within_five_seconds() -> None:
    started = time.monotonic()
    bound = one_run(10**6, 10**6, 600_000, 1e-7)
    assert time.monotonic() - started < 5
    assert bound == pytest.approx(math.log(0.6 / 0.4), abs=0.01)
    assert bound < math.log(0.6 / 0.4)


def test_a_million_guesses_cost_no_digits() -> None:
    v, q = 731_700, math.e / (1 + math.e)
    exact = stats.binom.sf(v - 1, 10**6, q)
    k = np.arange(v - 1, v - 20_000, -1)
    largest = np.max(np.cumsum(stats.binom.pmf(k, 10**6, q)) / (v - k))
    assert p_value(10**6, 10**6, v, 1.0, 1e-8) == pytest.approx(exact + 0.02 * largest, rel=1e-6)


def test_no_guesses_and_no_right_guesses_show_nothing() -> None:
    assert one_run(10, 0, 0, 1e-5) == 0.0
    assert one_run(10, 10, 0, 1e-5) == 0.0
    assert clopper_pearson(10, 10, 10, 10) == 0.0
    assert clopper_pearson(10, 10, 0, 10) == 0.0


@settings(max_examples=40)
@given(st.integers(1, 300), st.data())
def test_the_fair_coin_test_is_the_two_sided_binomial_test(tosses: int, data: Any) -> None:
    heads = data.draw(st.integers(0, tosses))
    exact = stats.binomtest(heads, tosses, 0.5).pvalue
    assert fair_coin_p_value(heads=heads, tosses=tosses) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"correct": 101}, "correct=101"),
        ({"correct": -1}, "correct=-1"),
        ({"guesses": 1001}, "guesses=1001"),
        ({"canaries": 0}, "canaries=0"),
        ({"canaries": 10**9}, "canaries=1000000000"),
        ({"delta": 1.0}, "delta=1.0"),
        ({"delta": -1e-9}, "delta=-1e-09"),
        ({"delta": math.nan}, "delta=nan"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"alpha": 1.0}, "alpha=1.0"),
        ({"alpha": math.nan}, "alpha=nan"),
    ],
)
def test_one_run_numbers_out_of_range_are_refused_by_name(changed: dict[str, Any], name: str) -> None:
    arguments: dict[str, Any] = {"canaries": 1000, "guesses": 100, "correct": 80, "delta": 0.0, "alpha": 0.05}
    with pytest.raises(ConfigError, match=f"^{name} "):
        epsilon_one_run(**(arguments | changed))


@pytest.mark.parametrize("epsilon", [-0.1, math.inf, math.nan])
def test_a_p_value_at_an_epsilon_that_is_none_is_refused(epsilon: float) -> None:
    with pytest.raises(ConfigError, match=r"^epsilon="):
        p_value(10, 10, 5, epsilon)


@pytest.mark.parametrize(
    ("counts", "name"),
    [
        ((11, 10, 0, 10), "false_positives=11"),
        ((0, 10, 11, 10), "false_negatives=11"),
        ((-1, 10, 0, 10), "false_positives=-1"),
        ((0, 0, 0, 10), "nonmembers=0"),
        ((0, 10, 0, 0), "members=0"),
    ],
)
def test_error_counts_out_of_range_are_refused_by_name(counts: tuple[int, int, int, int], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} "):
        clopper_pearson(*counts)
