"""AUC and its interval against brute force and simulation; distances of lengths."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safesynthdp.evaluation.auc import area
from safesynthdp.evaluation.c2st import _halve, judge_on_words
from safesynthdp.evaluation.form import is_cut, ks_distance, ks_interval
from safesynthdp.evaluation.jackknife import around, clusters, deal_groups, standard_error

scores = st.lists(st.integers(0, 6), min_size=2, max_size=12)


def brute_force(positive: list[int], negative: list[int]) -> float:
    return float(np.mean([(p > n) + (p == n) / 2 for p in positive for n in negative]))


@given(scores, scores)
def test_the_area_is_the_share_of_pairs_in_the_right_order(positive: list[int], negative: list[int]) -> None:
    values = np.array(positive + negative, dtype=float)
    is_positive = np.arange(len(values)) < len(positive)
    found = area(values, is_positive, np.arange(len(values)))
    assert found.value == pytest.approx(brute_force(positive, negative))
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


@pytest.mark.parametrize(("shift", "truth"), [(0.0, 0.5), (1.0, 0.7602), (3.0, 0.98305)])
def test_the_interval_holds_the_true_area_as_often_as_it_says(shift: float, truth: float) -> None:
    """The AUC of two unit normals ``shift`` apart is Phi(shift / sqrt 2)."""
    inside = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        values, is_positive = rng.normal(size=200), np.arange(200) < 100
        found = area(values + shift * is_positive, is_positive, np.arange(200))
        inside += found.low <= truth <= found.high
    assert 0.92 <= inside / 400 <= 0.985


def test_copies_are_one_witness() -> None:
    rng = np.random.default_rng(1)
    values, is_positive = rng.normal(size=100), np.arange(100) < 50
    alone = area(values, is_positive, np.arange(100))
    copied = area(np.tile(values, 9), np.tile(is_positive, 9), np.tile(np.arange(100), 9))
    assert copied.value == pytest.approx(alone.value)
    assert copied.low == pytest.approx(alone.low, abs=1e-9)


def test_a_perfect_classifier_is_not_certain() -> None:
    found = area(np.arange(20.0), np.arange(20) >= 10, np.arange(20))
    assert found.value == found.high == 1
    assert 0.6 < found.low < 0.9


def test_copies_stay_in_one_half_whatever_their_case() -> None:
    number = clusters(["A film.", "b", "a  FILM!", "c", "d"] * 10)
    halves = _halve(number)
    assert all(len(set(halves[number == name])) == 1 for name in range(4))
    assert 0 < halves.sum() < len(halves)


def test_words_alone_do_not_see_their_order_and_pairs_of_words_do() -> None:
    rng = np.random.default_rng(2)
    kinds = [[f"{kind}{i}" for i in range(6)] for kind in ("who", "does", "what", "where")]
    texts = [" ".join(str(rng.choice(words)) for words in kinds) for _ in range(400)]
    real, shuffled = texts[:200], [" ".join(rng.permutation(text.split())) for text in texts[200:]]
    alone, together = (judge_on_words(real, shuffled, pairs=pairs) for pairs in (False, True))
    assert alone is not None
    assert together is not None
    assert alone.low < 0.55
    assert together.low > 0.7


def test_two_sides_of_one_text_say_nothing() -> None:
    assert judge_on_words(["a"] * 30, ["a"] * 30) is None
    nothing = judge_on_words(["!", "?", ".", ","] * 5, [";", ":", "-", "+"] * 5)
    assert nothing is not None
    assert (nothing.low, nothing.high) == (0, 1)


@given(scores, scores)
def test_the_distance_of_two_samples_is_the_one_scipy_finds(first: list[int], second: list[int]) -> None:
    from scipy.stats import ks_2samp

    ours = ks_distance(np.array(first, dtype=float), np.array(second, dtype=float))
    theirs: Any = ks_2samp(first, second)
    assert ours == pytest.approx(float(theirs.statistic))


def test_equal_populations_stay_inside_the_distance_interval() -> None:
    inside = 0
    for seed in range(400):
        first, second = np.random.default_rng(seed).normal(size=(2, 100))
        low, _ = ks_interval(ks_distance(first, second), 100, 100)
        inside += low == 0
    assert 0.92 <= inside / 400 <= 0.99


def test_a_text_that_ends_in_a_mark_is_not_cut() -> None:
    whole = ["A film.", 'She said "no!"', "(Why?)", "So it goes...", "", "  "]
    assert not any(map(is_cut, whole))
    assert all(map(is_cut, ["A film about", "a film,", "a (film)"]))


def test_the_jackknife_of_a_mean_is_its_textbook_standard_error() -> None:
    values = np.random.default_rng(3).normal(size=40)
    groups = np.arange(40)
    error = standard_error(lambda out: [float(values[~np.isin(groups, out)].mean())], groups.tolist(), corrected=False)
    assert error[0] == pytest.approx(values.std(ddof=1) / np.sqrt(40))


def test_the_jackknife_of_squares_is_corrected_for_what_it_counts_twice() -> None:
    """n |mean|^2 of 20 coordinates of noise is chi-squared with variance 40; the plain jackknife says twice that."""
    plain, corrected = list[float](), list[float]()
    groups = np.arange(100) % 10
    for seed in range(100):
        values = np.random.default_rng(seed).normal(size=(100, 20))

        def squares(out: tuple[int, ...], values: np.ndarray[Any, Any] = values) -> list[float]:
            return [float(100 * (values[~np.isin(groups, out)].mean(axis=0) ** 2).sum())]

        plain.append(float(standard_error(squares, range(10), corrected=False)[0]) ** 2)
        corrected.append(float(standard_error(squares, range(10))[0]) ** 2)
    assert 75 < np.mean(plain) < 120
    assert 35 < np.mean(corrected) < 60


def test_groups_keep_copies_together_and_are_of_like_size() -> None:
    number = clusters([f"text {i // 2}" for i in range(200)])
    groups = deal_groups(number)
    assert all(len(set(groups[number == name])) == 1 for name in range(100))
    assert set(np.bincount(groups)) == {20}


def test_an_interval_is_cut_to_what_is_possible() -> None:
    assert around(0.99, 0.1)[1] == 1
    assert around(0.5, 0.0) == (0.5, 0.5)
