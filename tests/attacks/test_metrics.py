"""AUC, its interval and the rate at a low false-positive rate."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from safesynthdp.attacks.metrics import auc, delong_interval, measure, tpr_at_fpr, tpr_table
from safesynthdp.errors import DataError

Scores = NDArray[np.float64]
MEMBERS, NONMEMBERS = np.array([3.0, 2.0, 2.0, 0.0]), np.array([2.0, 1.0, 0.0, 0.0])
few = st.lists(st.integers(-3, 3), min_size=1, max_size=12).map(lambda values: np.asarray(values, dtype=np.float64))


def test_a_small_table_with_ties_gives_the_known_auc_and_rates() -> None:
    assert auc(MEMBERS, NONMEMBERS) == pytest.approx(0.75, abs=1e-12)
    assert tpr_at_fpr(MEMBERS, NONMEMBERS, 0.0) == 0.25
    assert tpr_at_fpr(MEMBERS, NONMEMBERS, 0.25) == 0.75


def test_equal_scores_are_chance_and_have_no_rate() -> None:
    same = np.zeros(1000)
    assert auc(same, same) == 0.5
    assert tpr_at_fpr(same, same, 0.01) == 0.0
    assert delong_interval(same, same, alpha=0.05) == (0.5, 0.5)


@pytest.mark.parametrize(("epsilon", "expected"), [(0.5, 0.622459), (1, 0.731059), (2, 0.880797), (4, 0.982014)])
def test_randomised_response_has_its_known_auc(epsilon: float, expected: float) -> None:
    """A score of 1 for a member with probability e^eps / (1 + e^eps), for a non-member with the rest."""
    num = 1_000_000
    ones = round(num * math.exp(epsilon) / (1 + math.exp(epsilon)))
    members, nonmembers = np.repeat([1.0, 0.0], [ones, num - ones]), np.repeat([1.0, 0.0], [num - ones, ones])
    assert auc(members, nonmembers) == pytest.approx(expected, abs=2e-6)
    assert float(np.mean(members > 0)) == pytest.approx(expected, abs=2e-6)
    above_fpr = 1 - expected + 1e-4  # at its own false-positive rate all ones count as hits
    assert tpr_at_fpr(members, nonmembers, above_fpr) == pytest.approx(expected, abs=2e-6)


@given(few, few)
def test_auc_is_the_share_of_pairs_won_with_ties_half(members: Scores, nonmembers: Scores) -> None:
    won = [1.0 if m > n else 0.5 if m == n else 0.0 for m in members for n in nonmembers]
    assert auc(members, nonmembers) == pytest.approx(sum(won) / len(won), abs=1e-12)


@given(few, few, st.floats(0, 1))
def test_a_rate_never_lets_more_false_positives_through_than_asked(m: Scores, n: Scores, fpr: float) -> None:
    rank = math.floor(fpr * n.size + 1e-9) + 1
    threshold = np.sort(n)[::-1][rank - 1] if rank <= n.size else -math.inf
    assert np.sum(n > threshold) <= fpr * n.size + 1e-6
    assert tpr_at_fpr(m, n, fpr) == np.mean(m > threshold)


@given(few, few)
def test_increasing_transforms_change_nothing(members: Scores, nonmembers: Scores) -> None:
    moved = np.exp(members) - 7, np.exp(nonmembers) - 7
    assert auc(*moved) == auc(members, nonmembers)
    assert delong_interval(*moved, alpha=0.1) == delong_interval(members, nonmembers, alpha=0.1)
    assert tpr_table(*moved) == tpr_table(members, nonmembers)


def test_the_interval_agrees_with_the_pairwise_definition_of_delong() -> None:
    rng = np.random.default_rng(0)
    members, nonmembers = rng.normal(0.5, 1, 40).round(1), rng.normal(0, 1, 30).round(1)
    wins = (members[:, None] > nonmembers) + 0.5 * (members[:, None] == nonmembers)
    variance = wins.mean(axis=1).var(ddof=1) / 40 + wins.mean(axis=0).var(ddof=1) / 30
    low, high = delong_interval(members, nonmembers, alpha=0.05)
    assert low == pytest.approx(wins.mean() - 1.959963985 * math.sqrt(variance), abs=1e-8)
    assert high == pytest.approx(wins.mean() + 1.959963985 * math.sqrt(variance), abs=1e-8)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(1), 0
    for _ in range(400):
        low, high = delong_interval(rng.normal(1, 1, 100), rng.normal(0, 1, 100), alpha=0.05)
        covered += low <= 0.760250 <= high  # Phi(1 / sqrt 2)
    assert 0.907 <= covered / 400 <= 0.99


def test_the_interval_stays_within_zero_and_one_and_a_single_record_says_nothing() -> None:
    low, high = delong_interval(np.array([0.0, 2.0]), np.array([1.0, 1.5]), alpha=1e-3)
    assert (low, high) == (0.0, 1.0)
    assert delong_interval(np.array([1.0]), np.zeros(9), alpha=0.05) == (0.0, 1.0)
    assert delong_interval(np.array([1.0, 2.0]), np.zeros(9), alpha=0.05) == (1.0, 1.0)


def test_the_lowest_rate_is_not_given_below_5000_nonmembers() -> None:
    members = np.arange(10.0)
    assert tpr_table(members, np.zeros(4999)) == {"0.1": 0.9, "0.01": 0.9, "0.001": None}
    assert tpr_table(members, np.zeros(5000))["0.001"] == 0.9


@given(few, few, st.sampled_from([0.05, 0.001]))
def test_measuring_all_at_once_gives_the_same_numbers(members: Scores, nonmembers: Scores, alpha: float) -> None:
    found = measure(members, nonmembers, alpha=alpha)
    assert found.auc == pytest.approx(auc(members, nonmembers), abs=1e-12)
    assert found.auc_interval == pytest.approx(delong_interval(members, nonmembers, alpha=alpha), abs=1e-12)
    assert found.tpr_at_fpr == tpr_table(members, nonmembers)


@settings(max_examples=20)
@given(few, few)
def test_swapping_the_sides_mirrors_the_auc(members: Scores, nonmembers: Scores) -> None:
    assert auc(members, nonmembers) + auc(nonmembers, members) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("bad", [np.array([]), np.array([math.nan]), np.array([math.inf])])
def test_no_scores_or_scores_that_are_not_finite_are_refused(bad: Scores) -> None:
    with pytest.raises(DataError):
        auc(MEMBERS, bad)
    with pytest.raises(DataError):
        tpr_at_fpr(bad, MEMBERS, 0.1)
