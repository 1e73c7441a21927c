"""From scores to guesses."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from safesynthdp.attacks.bounds import epsilon_one_run
from safesynthdp.attacks.guesses import Guesses, guess, num_guesses


def keys(num: int) -> list[str]:
    return [f"r{i}" for i in range(num)]


def bound_of(guesses: Guesses) -> float:
    return epsilon_one_run(
        canaries=guesses.canaries, guesses=guesses.guesses, correct=guesses.correct, delta=0, alpha=0.05
    ).epsilon_lower_bound


@pytest.mark.parametrize(("canaries", "expected"), [(2, 2), (19, 2), (20, 2), (40, 4), (59, 4), (1000, 100)])
def test_the_number_of_guesses_depends_on_the_number_of_records_alone(canaries: int, expected: int) -> None:
    assert num_guesses(canaries) == expected


def test_the_highest_are_guessed_in_and_the_lowest_out() -> None:
    scores = np.arange(40.0)
    is_member = np.zeros(40, dtype=np.bool_)
    is_member[[0, 38, 39]] = True
    assert guess(scores, is_member, tie_keys=keys(40)) == Guesses(canaries=40, guesses=4, correct=3)
    assert guess(scores, is_member, tie_keys=keys(40), side="top") == Guesses(canaries=40, guesses=4, correct=2)


def test_ties_are_not_broken_by_the_order_of_the_file() -> None:
    """Members listed first with all-equal scores must look like the noise they are."""
    shown = 0
    for draw in range(60):
        is_member = np.repeat([True, False], 500)
        found = guess(np.zeros(1000), is_member, tie_keys=[f"{draw}-{i}" for i in range(1000)])
        shown += bound_of(found) > 0
        assert found.guesses == 100
        assert 20 <= found.correct <= 80
    assert shown / 60 <= 0.14


def test_ties_at_a_cut_go_by_the_hash_of_the_key() -> None:
    names = keys(40)
    first = sorted(range(40), key=lambda i: hashlib.sha256(f"tie-v1|{names[i]}".encode()).hexdigest())
    is_member = np.zeros(40, dtype=np.bool_)
    is_member[first[:2]] = True  # IN is guessed on the two first hashes, OUT on the two last
    assert guess(np.zeros(40), is_member, tie_keys=names).correct == 4
    assert guess(np.zeros(40), ~is_member, tie_keys=names).correct == 0


@given(st.permutations(range(60)), st.integers(1, 6))
def test_the_order_of_the_file_does_not_matter(order: list[int], levels: int) -> None:
    scores: NDArray[np.float64] = np.asarray([i % levels for i in range(60)], dtype=np.float64)
    is_member = np.asarray([i * 7 % 13 < 6 for i in range(60)], dtype=np.bool_)
    names = keys(60)
    moved = guess(scores[order], is_member[order], tie_keys=[names[i] for i in order])
    assert moved == guess(scores, is_member, tie_keys=names)


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=80))
def test_increasing_transforms_of_the_score_change_no_guess(values: list[int]) -> None:
    scores = np.asarray(values, dtype=np.float64)
    is_member = np.arange(scores.size) % 2 == 0
    for side in ("both", "top"):
        plain = guess(scores, is_member, tie_keys=keys(scores.size), side=side)
        moved = guess(np.exp(scores) + 3, is_member, tie_keys=keys(scores.size), side=side)
        assert moved == plain


@pytest.mark.parametrize("canaries", [100, 1000])
def test_noise_scores_give_a_positive_bound_in_at_most_alpha_of_audits(canaries: int) -> None:
    rng = np.random.default_rng(canaries)
    shown = [
        bound_of(guess(rng.normal(size=canaries), rng.random(canaries) < 0.5, tie_keys=keys(canaries))) > 0
        for _ in range(400)
    ]
    assert np.mean(shown) <= 0.083


def test_permuted_labels_of_a_leaking_attack_show_nothing() -> None:
    rng = np.random.default_rng(5)
    is_member = rng.random(600) < 0.5
    scores = rng.normal(size=600) + 3 * is_member
    assert bound_of(guess(scores, is_member, tie_keys=keys(600))) > 1.5
    shown = [bound_of(guess(scores, rng.permutation(is_member), tie_keys=keys(600))) > 0 for _ in range(400)]
    assert np.mean(shown) <= 0.083
