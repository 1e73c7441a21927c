"""Frechet distance, coverage, nearest neighbours and diversity, where the truth is known."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from safesynthdp.evaluation.coverage import covered, expected_coverage, nearest_cosines
from safesynthdp.evaluation.diversity import cut_tokens, distinct_n, duplicates, near_duplicates, token_lists
from safesynthdp.evaluation.frechet import error_of_distance, frechet_distance


def normal(count: int, *, seed: int, dimensions: int = 6) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)


def test_the_frechet_distance_is_the_formula_with_a_matrix_root() -> None:
    first, second = normal(300, seed=0), normal(300, seed=1) @ np.diag([1, 2, 3, 1, 1, 0.5]).astype(np.float32) + 1
    covariances = [np.cov(points.T) for points in (first, second)]
    shift = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    spread = np.trace(sum(covariances)) - 2 * np.trace(np.real(sqrtm(covariances[0] @ covariances[1])))
    assert frechet_distance(first, second) == pytest.approx(float(shift + spread), rel=1e-4)


def test_a_cosine_of_means_would_not_see_what_the_covariance_sees() -> None:
    first, second = normal(2000, seed=0), 3 * normal(2000, seed=1)
    assert frechet_distance(first, second) == pytest.approx(6 * (3 - 1) ** 2, rel=0.1)


def test_a_set_has_no_distance_from_itself_and_shifting_moves_it_by_the_square() -> None:
    points = normal(200, seed=0)
    assert frechet_distance(points, points) < 1e-9
    assert frechet_distance(points, points + 2) == pytest.approx(6 * 4, rel=1e-5)


def test_the_error_of_a_distance_is_its_spread_over_samples() -> None:
    distances, errors = list[float](), list[float]()
    for seed in range(40):
        first, second = normal(200, seed=2 * seed), normal(200, seed=2 * seed + 1) + np.float32(0.5)
        groups = np.arange(200) % 10
        distances.append(frechet_distance(first, second))
        errors.append(error_of_distance(first, second, (groups, groups)))
    assert np.mean(errors) == pytest.approx(np.std(distances, ddof=1), rel=0.35)


def test_two_samples_of_one_distribution_cover_each_other_as_often_as_the_closed_form_says() -> None:
    shares = [covered(normal(200, seed=2 * s), normal(200, seed=2 * s + 1)).mean() for s in range(30)]
    assert np.mean(shares) == pytest.approx(expected_coverage(200, 200), abs=0.01)
    fewer = [covered(normal(200, seed=2 * s), normal(50, seed=2 * s + 1)).mean() for s in range(30)]
    assert np.mean(fewer) == pytest.approx(expected_coverage(200, 50), abs=0.03)
    assert expected_coverage(2000, 2000) == pytest.approx(0.96887, abs=5e-6)


def test_a_single_mode_covers_little_and_blocks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    real, mode = normal(150, seed=0), np.tile(normal(1, seed=1), (150, 1))
    found = covered(real, mode)
    assert found.mean() < 0.2
    monkeypatch.setattr("safesynthdp.evaluation.coverage._BLOCK", 7)
    assert (covered(real, mode) == found).all()


def test_the_nearest_neighbour_is_another_text() -> None:
    points = np.eye(3, dtype=np.float32)[[0, 1, 1, 2]]
    assert nearest_cosines(points).tolist() == [0, 1, 1, 0]


def test_distinct_n_counts_inside_one_text_only() -> None:
    lists = [["a", "b"], ["b", "a"], []]
    assert distinct_n(lists, 1) == pytest.approx(2 / 4)
    assert distinct_n(lists, 2) == pytest.approx(1)
    assert distinct_n(lists, 3) is None


def test_tokens_are_cut_to_one_number_for_all_sets() -> None:
    texts = ["one two three", "four five", "SIX!"] * 10
    lists = token_lists(texts, seed=0, max_tokens=17)
    assert sum(map(len, lists)) == 17
    assert sum(map(len, cut_tokens(lists, 5))) == 5
    assert {word for words in lists for word in words} <= {"one", "two", "three", "four", "five", "six"}


def test_copies_and_near_copies_are_found_and_others_are_not() -> None:
    texts = [
        "The quick brown fox jumps over the lazy dog near the river bank.",
        "Nothing here is like anything else at all.",
        "the quick brown fox, jumps over the lazy dog near the river bank",
        "The quick brown fox jumps over the lazy dog near the river banks!",
        "A wholly other sentence about rain and wind.",
        "",
        " ",
    ]
    assert duplicates(texts).tolist() == [False, False, True, False, False, False, True]
    assert near_duplicates(texts).tolist() == [False, False, True, True, False, False, True]
