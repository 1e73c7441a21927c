"""The claimed-curve test rejects what cannot be true, and seldom what is."""

import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtr

from safesynthdp.attacks.claimed_curve import (
    P_VALUE_FLOOR,
    ClaimTest,
    Tradeoff,
    check_claim,
    count_errors,
    gaussian_tradeoff,
    profile_tradeoff,
    sampled_gaussian_tradeoff,
)
from safesynthdp.errors import ConfigError, DataError

MU = 0.92493
RATES = np.linspace(0.0, 1.0, 101)
COUNTS = {"nonmembers": 250, "members": 500}


def ask(mu: float, claim: Tradeoff, rng: np.random.Generator, *, alpha: float, size: int = 1000) -> ClaimTest:
    """Scores N(0, 1) without and N(mu, 1) with the canary, by fair coins."""
    is_member = rng.random(size) < 0.5
    scores = rng.normal(size=size) + mu * is_member
    outside = scores[~is_member]
    half = outside.size // 2
    counts = count_errors(calibration=outside[:half], nonmembers=outside[half:], members=scores[is_member])
    return check_claim(**asdict(counts), tradeoff=claim, alpha=alpha)


def rejected_share(mu: float, claim: Tradeoff, *, alpha: float, repetitions: int) -> float:
    rng = np.random.default_rng(0)
    return float(np.mean([ask(mu, claim, rng, alpha=alpha).is_rejected for _ in range(repetitions)]))


def test_a_gaussian_claim_has_the_curve_of_two_normals_one_mu_apart() -> None:
    f = gaussian_tradeoff(MU)
    for threshold in (-1.0, 0.3, 2.0):
        assert f(float(ndtr(-threshold))) == pytest.approx(float(ndtr(threshold - MU)), abs=1e-12)
    assert (f(0.0), f(1.0)) == (1.0, 0.0)
    assert [gaussian_tradeoff(0.0)(x) for x in (0.2, 0.7)] == pytest.approx([0.8, 0.3])


@pytest.mark.parametrize(("mu", "epsilon"), [(0.5, 1.99309), (1.0, 4.37718), (2.0, 9.99726)])
def test_a_gaussian_curve_touches_the_line_of_its_own_epsilon_and_delta(mu: float, epsilon: float) -> None:
    f, line = gaussian_tradeoff(mu), profile_tradeoff([(epsilon, 1e-5)])
    rates = np.geomspace(1e-9, 0.5, 4000)
    gaps = [f(float(x)) - line(float(x)) for x in rates]
    assert min(gaps) >= -1e-10
    assert min(gaps) == pytest.approx(0.0, abs=1e-8)


def test_a_pure_epsilon_has_the_curve_of_randomised_response() -> None:
    f, ratio = profile_tradeoff([(1.0, 0.0)]), math.e
    for x in RATES:
        power = min(ratio * x, 1 - (1 - x) / ratio)
        assert 1 - f(float(x)) == pytest.approx(min(1.0, power), abs=1e-12)


def test_the_profile_of_the_accountant_gives_back_the_gaussian_curve_from_below() -> None:
    exact, f = gaussian_tradeoff(MU), sampled_gaussian_tradeoff(noise_multiplier=1 / MU, sample_rate=0.999999, steps=1)
    gaps = [exact(float(x)) - f(float(x)) for x in RATES]
    assert min(gaps) >= -1e-5
    assert max(gaps) < 5e-3


def test_the_sampled_curve_allows_the_best_attack_on_one_sampled_step_and_hardly_more() -> None:
    rate, noise = 0.3, 0.8
    f = sampled_gaussian_tradeoff(noise_multiplier=noise, sample_rate=rate, steps=1)
    for threshold in np.linspace(-2.5, 1.5, 41):
        fpr = float(ndtr(-threshold / noise))
        tpr = (1 - rate) * fpr + rate * float(ndtr((1 - threshold) / noise))
        assert tpr - 1e-6 <= 1 - f(fpr)
        if fpr < 0.3:  # above, a record added tells more than one removed, and f covers both
            assert 1 - f(fpr) <= tpr + 0.01


def test_sampling_makes_the_claim_stronger_and_more_steps_weaker() -> None:
    def power(rate: float, steps: int) -> NDArray[np.float64]:
        f = sampled_gaussian_tradeoff(noise_multiplier=1.0, sample_rate=rate, steps=steps)
        return np.array([1 - f(float(x)) for x in RATES[1:-1]])

    once, ten_times, always = power(0.1, 1), power(0.1, 10), power(1.0, 10)
    assert (once < ten_times).all()
    assert (ten_times < always).all()


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from([gaussian_tradeoff(1.3), profile_tradeoff([(0.5, 0.01)])]))
def test_a_curve_falls_and_stays_below_blind_guessing(x: float, y: float, f: Tradeoff) -> None:
    low, high = sorted((x, y))
    assert f(high) <= f(low) + 1e-12
    assert 0.0 <= f(low) <= 1 - low + 1e-12


@pytest.mark.parametrize("alpha", [0.05, 0.3])
def test_a_true_claim_is_rejected_no_more_often_than_alpha(alpha: float) -> None:
    repetitions = 400
    allowed = alpha + 3 * math.sqrt(alpha * (1 - alpha) / repetitions)
    assert rejected_share(MU, gaussian_tradeoff(MU), alpha=alpha, repetitions=repetitions) <= allowed


def test_twice_the_mu_is_rejected_where_no_epsilon_bound_would_see_it() -> None:
    assert rejected_share(2 * MU, gaussian_tradeoff(MU), alpha=1e-3, repetitions=100) >= 0.95


def test_halves_that_look_at_the_scores_would_reject_true_claims() -> None:
    rng = np.random.default_rng(0)
    claim = gaussian_tradeoff(MU)
    cheated = 0
    for _ in range(50):
        is_member = rng.random(1000) < 0.5
        scores = rng.normal(size=1000) + MU * is_member
        outside = np.sort(scores[~is_member])[::-1]  # a file sorted by score: its first half sets the threshold
        half = outside.size // 2
        counts = count_errors(calibration=outside[:half], nonmembers=outside[half:], members=scores[is_member])
        cheated += check_claim(**asdict(counts), tradeoff=claim, alpha=0.05).is_rejected
    assert cheated > 40  # why count_errors asks for halves drawn blindly


def test_equal_scores_reject_nothing() -> None:
    same = np.zeros(300)
    counts = count_errors(calibration=same, nonmembers=same, members=same)
    assert (counts.false_positives, counts.false_negatives) == (0, 300)
    test = check_claim(**asdict(counts), tradeoff=gaussian_tradeoff(0.0), alpha=0.05)
    assert test.p_value > 0.05
    assert test.verdict == "consistent"


def test_the_threshold_is_the_ninety_percent_quantile_and_must_be_passed_strictly() -> None:
    calibration = np.arange(20.0)  # the third largest is 17
    counts = count_errors(
        calibration=calibration, nonmembers=np.array([17.0, 17.5, 3.0]), members=np.array([17.0, 18.0, 19.0, 40.0])
    )
    assert asdict(counts) == {"false_positives": 1, "nonmembers": 3, "false_negatives": 1, "members": 4}


@pytest.mark.parametrize("copies", [2, 4])
def test_a_group_multiplies_mu(copies: int) -> None:
    counts = {"false_positives": 25, "false_negatives": 120, **COUNTS}
    grouped = check_claim(**counts, tradeoff=gaussian_tradeoff(0.4), alpha=0.05, group_size=copies)
    direct = check_claim(**counts, tradeoff=gaussian_tradeoff(0.4 * copies), alpha=0.05)
    assert grouped.tpr_claimed == pytest.approx(direct.tpr_claimed, abs=1e-9)
    assert grouped.group_size == copies


def test_the_p_value_is_the_smallest_alpha_that_rejects() -> None:
    counts = {"false_positives": 25, "false_negatives": 240, **COUNTS}
    p = check_claim(**counts, tradeoff=gaussian_tradeoff(MU), alpha=0.05).p_value
    assert 1e-6 < p < 0.5
    assert check_claim(**counts, tradeoff=gaussian_tradeoff(MU), alpha=1.01 * p).is_rejected
    assert not check_claim(**counts, tradeoff=gaussian_tradeoff(MU), alpha=0.99 * p).is_rejected


def test_the_p_value_has_a_floor_and_a_ceiling() -> None:
    perfect = check_claim(false_positives=0, false_negatives=0, **COUNTS, tradeoff=gaussian_tradeoff(MU), alpha=0.05)
    nothing = check_claim(false_positives=250, false_negatives=0, **COUNTS, tradeoff=gaussian_tradeoff(0), alpha=0.05)
    assert (perfect.p_value, perfect.verdict) == (P_VALUE_FLOOR, "refuted")
    assert (nothing.p_value, nothing.is_rejected) == (1.0, False)


def test_more_false_positives_or_negatives_never_reject_more() -> None:
    def p(false_positives: int, false_negatives: int) -> float:
        return check_claim(
            false_positives=false_positives,
            false_negatives=false_negatives,
            **COUNTS,
            tradeoff=gaussian_tradeoff(MU),
            alpha=0.05,
        ).p_value

    by_positives, by_negatives = [p(k, 200) for k in range(5, 80, 15)], [p(25, k) for k in range(100, 320, 40)]
    assert by_positives == sorted(by_positives)
    assert by_negatives == sorted(by_negatives)
    assert by_positives[0] < by_positives[-1]


def test_a_test_that_nothing_can_fail_says_so() -> None:
    test = check_claim(
        false_positives=0,
        nonmembers=5,
        false_negatives=0,
        members=5,
        tradeoff=gaussian_tradeoff(5.0),
        alpha=0.05,
    )
    assert test.verdict == "no_power"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"group_size": 0}, "group_size"),
        ({"alpha": 1.0}, "alpha"),
        ({"false_positives": 251}, "false_positives"),
        ({"members": 0}, "members"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(changed: dict[str, float], named: str) -> None:
    given_numbers = {"false_positives": 1, "false_negatives": 0, "alpha": 0.05, **COUNTS} | changed
    with pytest.raises(ConfigError, match=named):
        check_claim(**given_numbers, tradeoff=gaussian_tradeoff(1.0))  # type: ignore[arg-type]


def test_a_mu_that_is_no_number_and_a_score_that_is_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="mu=inf"):
        gaussian_tradeoff(math.inf)
    with pytest.raises(DataError, match="NaN"):
        count_errors(calibration=np.zeros(3), nonmembers=np.array([math.nan]), members=np.zeros(3))
