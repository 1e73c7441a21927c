"""Intervals hold what they promise, and pairing pairs."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from safesynthdp.evaluation.intervals import effective_size, paired_difference, percentile, score, wilson

NO_DIVISION: dict[str, Any] = {"zero_division": 0}  # scikit-learn infers its type from the default, "warn"


@given(st.integers(1, 500), st.data())
def test_wilson_stays_in_the_unit_interval_and_holds_the_share(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert high - low > 0


def test_wilson_matches_a_published_value() -> None:
    low, high = wilson(81, 263)  # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_paired_difference_matches_a_published_value() -> None:
    # Newcombe (1998), Statistics in Medicine 17:2635, table III: e=36 both, f=12 first only, g=2 second only, h=0.
    first = np.array([1.0] * 48 + [0.0] * 2)
    second = np.array([1.0] * 36 + [0.0] * 12 + [1.0] * 2)
    low, high = paired_difference(first, second, effective_n=50)
    assert low == pytest.approx(0.0569, abs=5e-5)
    assert high == pytest.approx(0.3404, abs=5e-5)


@given(*[st.integers(0, 40)] * 4)
def test_paired_difference_equals_the_formula_of_the_two_by_two_table(both: int, one: int, two: int, none: int) -> None:
    n = both + one + two + none
    if n == 0:
        return
    first = np.repeat([1.0, 1.0, 0.0, 0.0], [both, one, two, none])
    second = np.repeat([1.0, 0.0, 1.0, 0.0], [both, one, two, none])
    share_1, share_2 = (both + one) / n, (both + two) / n
    (low_1, high_1), (low_2, high_2) = wilson(both + one, n), wilson(both + two, n)
    determinant: float = both * none - one * two
    determinant = max(determinant - n / 2, 0) if determinant > 0 else determinant
    margins = math.sqrt((both + one) * (two + none) * (both + two) * (one + none))
    phi = determinant / margins if margins else 0.0
    below = (share_1 - low_1) ** 2 - 2 * phi * (share_1 - low_1) * (high_2 - share_2) + (high_2 - share_2) ** 2
    above = (high_1 - share_1) ** 2 - 2 * phi * (high_1 - share_1) * (share_2 - low_2) + (share_2 - low_2) ** 2
    low, high = paired_difference(first, second, effective_n=n)
    assert low == pytest.approx(share_1 - share_2 - math.sqrt(max(below, 0)), abs=1e-6)
    assert high == pytest.approx(share_1 - share_2 + math.sqrt(max(above, 0)), abs=1e-6)


def test_the_interval_of_the_difference_covers_a_simulated_truth() -> None:
    rng, covered, trials = np.random.default_rng(0), 0, 400
    for _ in range(trials):
        shared = rng.random(150) < 0.02
        first, second = shared | (rng.random(150) < 0.05), shared | (rng.random(150) < 0.03)
        low, high = paired_difference(first.astype(float), second.astype(float), effective_n=150)
        covered += int(low <= 0.98 * 0.02 <= high)
    assert 0.92 <= covered / trials <= 0.99


def test_no_match_at_all_still_leaves_an_interval() -> None:
    nothing = np.zeros(200)
    low, high = paired_difference(nothing, nothing, effective_n=200)
    assert low < -0.01
    assert high > 0.01


def test_copies_count_as_one_witness() -> None:
    assert effective_size([1] * 50) == 50
    assert effective_size([50]) == 1
    assert effective_size([]) == 0


def test_accuracy_interval_covers_a_simulated_truth() -> None:
    rng, truth, covered, trials = np.random.default_rng(1), 0.8, 0, 200
    for _ in range(trials):
        labels = rng.integers(2, size=200)
        is_right = rng.random(200) < truth
        found = score(labels, [np.where(is_right, labels, 1 - labels)], num_classes=2, num_draws=400)
        low, high = percentile(found.accuracy_D)
        covered += int(low <= truth <= high)
    assert 0.90 <= covered / trials <= 0.99


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_scores_equal_scikit_learn(num_classes: int) -> None:
    rng = np.random.default_rng(num_classes)
    truth = np.concatenate([np.arange(num_classes), rng.integers(num_classes, size=60)])
    predicted = rng.integers(num_classes + 1, size=len(truth))  # the last number is a label outside the classes
    found = score(truth, [predicted], num_classes=num_classes, num_draws=50)
    labels = list(range(num_classes))
    assert found.accuracy == pytest.approx(accuracy_score(truth, predicted))
    assert found.macro_f1 == pytest.approx(f1_score(truth, predicted, labels=labels, average="macro", **NO_DIVISION))


def test_a_bootstrap_draw_equals_the_metric_of_the_resampled_records() -> None:
    rng = np.random.default_rng(3)
    truth, predicted = rng.integers(3, size=40), rng.integers(3, size=40)
    found = score(truth, [predicted], num_classes=3, num_draws=5)
    picked = np.random.default_rng([20_260, 0]).integers(40, size=(5, 40))
    for draw, rows in enumerate(picked):
        labels = sorted(set(truth[rows].tolist()))
        expected = f1_score(truth[rows], predicted[rows], labels=labels, average="macro", **NO_DIVISION)
        assert found.macro_f1_D[draw] == pytest.approx(expected)
        assert found.accuracy_D[draw] == pytest.approx(accuracy_score(truth[rows], predicted[rows]))


def test_draws_do_not_depend_on_the_memory_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    truth, predicted = rng.integers(2, size=30), rng.integers(2, size=30)
    whole = score(truth, [predicted], num_classes=2, num_draws=100)
    monkeypatch.setattr("safesynthdp.evaluation.intervals._BLOCK", 30 * 7)
    assert np.array_equal(whole.accuracy_D, score(truth, [predicted], num_classes=2, num_draws=100).accuracy_D)


def test_the_ratio_of_a_model_to_itself_has_no_spread() -> None:
    rng = np.random.default_rng(5)
    truth, predicted = rng.integers(2, size=100), rng.integers(2, size=100)
    first = score(truth, [predicted], num_classes=2, stream=0)
    second = score(truth, [predicted], num_classes=2, stream=1)
    assert percentile(first.accuracy_D / second.accuracy_D) == (1.0, 1.0)


def test_seeds_that_disagree_widen_the_interval() -> None:
    truth = np.zeros(2000, dtype=np.intp)
    right, wrong = truth.copy(), truth.copy()
    wrong[:1000] = 1
    narrow = percentile(score(truth, [wrong], num_classes=2).accuracy_D)
    wide = percentile(score(truth, [right, wrong], num_classes=2).accuracy_D)
    assert wide[1] - wide[0] > 3 * (narrow[1] - narrow[0])
    assert math.isclose(score(truth, [right, wrong], num_classes=2).accuracy, 0.75)
