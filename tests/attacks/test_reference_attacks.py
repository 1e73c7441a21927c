"""Attacks with reference models: exact cases, order, refusals."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import norm

from safesynthdp.attacks.metrics import auc, tpr_at_fpr
from safesynthdp.attacks.reference_attacks import (
    VARIANCES,
    Bools,
    Floats,
    calibrated,
    exposure,
    lira,
    lira_offline,
    log_rmia,
    t_mid,
)
from safesynthdp.errors import ConfigError, SafeSynthError


def column(*values: float) -> Floats:
    return np.asarray(values, dtype=np.float64)[:, None]


def case(t: float, inside: list[float], outside: list[float]) -> tuple[Floats, Floats, Bools]:
    """One record."""
    return np.array([t]), column(*inside, *outside), np.array([[True]] * len(inside) + [[False]] * len(outside))


def world(*, shift: float, records: int, references: int, seed: int = 0) -> tuple[Floats, Floats, Bools, Bools]:
    """Offsets N(0, 9) a record, noise 1 a model, members ``shift`` higher; half of the references IN."""
    rng = np.random.default_rng(seed)
    is_in = np.argsort(rng.random((references, records)), axis=0) < references // 2
    is_member = rng.random(records) < 0.5
    offsets = rng.normal(0, 3, size=records)
    refs = offsets + rng.normal(size=(references, records)) + shift * is_in
    return offsets + rng.normal(size=records) + shift * is_member, refs, is_in, is_member


def test_a_target_half_way_between_two_equal_sides_scores_zero() -> None:
    for variance in VARIANCES:
        assert lira(*case(2, [2, 3, 4], [0, 1, 2]), variance=variance)[0] == pytest.approx(0, abs=1e-12)


def test_the_known_score_of_one_record_under_each_variance() -> None:
    one = case(2.2, [2, 2.5, 3], [0, 1, 2])
    assert lira(*one, variance="per_record")[0] == pytest.approx(1.233147, abs=1e-6)
    assert lira(*one, variance="shrunk")[0] == pytest.approx(0.81, abs=1e-12)
    assert lira(*one, variance="global")[0] == pytest.approx(0.81, abs=1e-12)


def test_the_shrunken_variance_lies_between_the_records_own_and_that_of_all() -> None:
    target, refs = np.array([1.0, 1.0]), np.array([[0.9, 2.0], [1.1, 4.0], [-0.1, -1.0], [0.1, 1.0]])
    is_in = np.array([[True] * 2] * 2 + [[False] * 2] * 2)
    own, common = np.array([0.02, 2.0]), 1.01
    v = (2 * own + 8 * common) / 10 * 1.5
    expected = norm.logpdf(target, [1.0, 3.0], np.sqrt(v)) - norm.logpdf(target, [0.0, 0.0], np.sqrt(v))
    np.testing.assert_allclose(lira(target, refs, is_in, variance="shrunk"), expected, atol=1e-12)


def test_the_sides_may_have_different_numbers_of_references() -> None:
    target, refs, is_in = case(2.0, [2, 3, 4], [0, 1])
    v = 2.5 / 3
    expected = norm.logpdf(2, 3, math.sqrt(v * 4 / 3)) - norm.logpdf(2, 0.5, math.sqrt(v * 1.5))
    assert lira(target, refs, is_in)[0] == pytest.approx(expected, abs=1e-12)


def test_offline_is_one_sided() -> None:
    assert lira_offline(*case(2, [9, 9], [0, 1, 2]), variance="per_record")[0] == pytest.approx(-0.172754, abs=1e-6)
    low, high = (lira_offline(*case(t, [], [0, 1, 2]), variance="per_record")[0] for t in (-40.0, 2.0))
    assert low < -800, "no member looks like this, and no digit is lost"
    assert low < high


@pytest.mark.parametrize(
    ("references", "expected_auc", "expected_rate"),
    [(1, 0.691462, 0.052698), (2, 0.718149, 0.065541), (4, 0.736455, 0.076083), (16, 0.753642, 0.087517)],
)
def test_subtracting_the_mean_of_k_references_has_its_known_power(
    references: int, expected_auc: float, expected_rate: float
) -> None:
    """Offsets N(0, 9), shift 1, noise 1: AUC = Phi(1 / sqrt(2 (1 + 1/K)))."""
    rng, size = np.random.default_rng(references), 200_000
    offsets, is_member = rng.normal(0, 3, size), rng.random(size) < 0.5
    refs = offsets + rng.normal(size=(references, size))
    scores = offsets + rng.normal(size=size) + is_member - refs.mean(axis=0)
    assert expected_auc == pytest.approx(float(ndtr(1 / math.sqrt(2 * (1 + 1 / references)))), abs=1e-6)
    assert auc(scores[is_member], scores[~is_member]) == pytest.approx(expected_auc, abs=4 * 0.0012)
    assert tpr_at_fpr(scores[is_member], scores[~is_member], 0.01) == pytest.approx(expected_rate, abs=4 * 0.0020)


def test_where_all_records_leak_alike_the_midpoint_is_the_best_and_per_record_variance_the_worst() -> None:
    target, refs, is_in, is_member = world(shift=1.0, records=40_000, references=8)

    def power(scores: Floats) -> float:
        return auc(scores[is_member], scores[~is_member])

    found = {variance: power(lira(target, refs, is_in, variance=variance)) for variance in VARIANCES}
    # The midpoint of 4 + 4 has variance 1/8, so t - mid tells by shift / sqrt(2 (1 + 1/8)).
    assert power(t_mid(target, refs, is_in)) == pytest.approx(float(ndtr(1 / math.sqrt(2 * 1.125))), abs=0.01)
    assert found["shrunk"] > found["per_record"] + 0.01
    assert power(t_mid(target, refs, is_in)) >= found["shrunk"] - 0.005


def test_where_some_records_are_memorised_shrinking_beats_a_variance_of_three_references() -> None:
    """30 % of the records move by 3 when they are members, at noise of different size; 4 + 4 references."""
    rng, size = np.random.default_rng(4), 40_000
    shift, noise = np.where(rng.random(size) < 0.3, 3.0, 0.0), rng.uniform(0.7, 1.3, size)
    is_in = np.argsort(rng.random((8, size)), axis=0) < 4
    is_member = rng.random(size) < 0.5
    refs = noise * rng.normal(size=(8, size)) + shift * is_in
    target = noise * rng.normal(size=size) + shift * is_member
    rates = {}
    for variance in VARIANCES:
        scores = lira(target, refs, is_in, variance=variance)
        rates[variance] = tpr_at_fpr(scores[is_member], scores[~is_member], 0.01)
    assert rates["shrunk"] > 1.5 * rates["per_record"]


def test_rmia_in_log_space_survives_sums_near_minus_a_thousand() -> None:
    refs = column(-1000, -1001, -1002)
    assert log_rmia(np.array([-999.0]), refs)[0] == pytest.approx(1.691006, abs=1e-6)
    used = np.array([[False], [True], [True]])
    offline = log_rmia(np.array([-999.0]), refs, is_used_KR=used)[0]
    assert offline == pytest.approx(2 - math.log((1 + math.exp(-1)) / 2), abs=1e-9)


def test_the_calibrated_form_is_the_share_of_the_population_left_behind() -> None:
    ratio = log_rmia(np.array([-2.0]), np.log(column(0.05, 0.1, 0.15)))
    assert ratio[0] == pytest.approx(0.302585, abs=1e-6)
    population = np.array([-0.5, 0.0, 0.2, 0.9])
    assert calibrated(ratio, population)[0] == 0.75
    assert calibrated(ratio, population, gamma=2)[0] == 0.25
    assert calibrated(np.array([0.2]), population)[0] == 0.5, "equal is not above"


def test_the_linear_form_loses_the_record_in_its_constant() -> None:
    """Why it is refused: ((1 + a) p + 1 - a) / 2 at sequence probabilities is a constant, and ranks by loss."""

    def linear(p_out: Any, a: float) -> Any:
        return ((1 + a) * p_out + 1 - a) / 2

    assert [linear(0.2, a) for a in (0.3, 1, 0)] == pytest.approx([0.48, 0.2, 0.6])
    target, refs, is_in, is_member = world(shift=1.0, records=20_000, references=8)
    target, refs = target - 60, refs - 60
    in_log_space = log_rmia(target, refs)
    out = np.where(is_in, 0, np.exp(refs)).sum(axis=0) / (~is_in).sum(axis=0)
    in_linear_space = target - np.log(linear(out, 0.3))
    by_loss = auc(target[is_member], target[~is_member])
    assert auc(in_linear_space[is_member], in_linear_space[~is_member]) == pytest.approx(by_loss, abs=1e-3)
    assert auc(in_log_space[is_member], in_log_space[~is_member]) > by_loss + 0.08


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.floats(-50, 50))
def test_adding_a_constant_to_every_model_changes_no_score(values: list[float], constant: float) -> None:
    """How hard a text is cancels, up to rounding."""
    rng = np.random.default_rng(0)
    target = np.asarray(values)
    refs, is_in = rng.normal(size=(6, target.size)), np.arange(6)[:, None] % 2 == np.zeros((1, target.size))
    for attack in (lira, lira_offline, t_mid):
        moved = attack(target + constant, refs + constant, is_in)
        np.testing.assert_allclose(moved, attack(target, refs, is_in), atol=1e-8)
    np.testing.assert_allclose(log_rmia(target + constant, refs + constant), log_rmia(target, refs), atol=1e-8)


def test_a_canary_ahead_of_all_fresh_candidates_has_ten_bits_and_ties_count_against_it() -> None:
    candidates = np.arange(1023.0)
    first = exposure(2000.0, candidates)
    assert (first.bits, first.rank, first.p_value) == (10.0, 1, 1 / 1024)
    assert exposure(1022.0, candidates).rank == 2
    assert exposure(-1.0, candidates).bits == 0.0
    assert exposure(0.0, np.zeros(1023)).p_value == 1.0


def test_the_exposure_of_a_canary_like_the_others_is_rarely_high() -> None:
    rng = np.random.default_rng(0)
    p_values = [exposure(rng.normal(), rng.normal(size=1023)).p_value for _ in range(400)]
    assert np.mean(np.asarray(p_values) <= 0.05) <= 0.083


@pytest.mark.parametrize("attack", [lira, lira_offline])
def test_references_that_all_agree_are_an_error_and_no_infinite_score(attack: Any) -> None:
    with pytest.raises(SafeSynthError, match="no spread"):
        attack(*case(1, [2, 2], [0, 0]))


def test_wrong_requests_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="1 references on one side"):
        lira(*case(1, [2], [0, 1, 2]))
    with pytest.raises(ConfigError, match="1 references without it"):
        lira_offline(*case(1, [2, 3], [0]))
    with pytest.raises(ConfigError, match="variance=median"):
        lira(*case(1, [2, 3], [0, 1]), variance="median")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="1023 candidates"):
        exposure(1.0, np.zeros(1022))
    with pytest.raises(SafeSynthError, match="NaN"):
        exposure(1.0, np.full(1023, math.nan))
    with pytest.raises(ConfigError, match="gamma=0"):
        calibrated(np.zeros(1), np.zeros(1), gamma=0)
