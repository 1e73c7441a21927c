"""Posterior means of noisy sums: nearer to the truth than the sums, than a threshold, and than the model alone."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from safesynthdp.generation import shrinkage
from safesynthdp.generation.shrinkage import shrink

C = 4000


def world(*, seed: int, total: float = 20_000.0, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Two labels whose truth strays from what is expected of them: (truth, expected)."""
    rng = np.random.default_rng(seed)
    common_C = 1 / np.arange(1, C + 1)
    own_LC = common_C * np.exp(rng.normal(size=(2, C)))
    truth_LC = own_LC * np.exp(spread * rng.normal(size=(2, C)))
    return total * truth_LC / truth_LC.sum(axis=1, keepdims=True), own_LC


def error(found_LC: np.ndarray, truth_LC: np.ndarray) -> float:
    """Total variation distance, the mean of both labels."""
    shares = [x / x.sum(axis=1, keepdims=True) for x in (found_LC, truth_LC)]
    return float(0.5 * np.abs(shares[0] - shares[1]).sum(axis=1).mean())


@pytest.mark.parametrize("noise_std", [1.0, 5.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_is_nearer_to_the_truth_than_the_model_or_the_cells_that_stand_out(noise_std: float, seed: int) -> None:
    truth_LC, own_LC = world(seed=seed)
    released_LC = truth_LC + noise_std * np.random.default_rng(seed + 10).normal(size=truth_LC.shape)
    found = error(shrink(released_LC, own_LC, noise_std=noise_std), truth_LC)
    assert found < error(own_LC, truth_LC)
    assert found < error(np.where(released_LC > 3 * noise_std, released_LC, 0.0), truth_LC)
    assert found < error(np.maximum(released_LC, 0.0), truth_LC)


def test_almost_no_noise_leaves_the_sums_as_they_are() -> None:
    truth_LC, own_LC = world(seed=4)
    found_LC = shrink(truth_LC, own_LC, noise_std=1e-4)
    assert found_LC == pytest.approx(truth_LC, rel=0.02)


def test_nothing_but_noise_says_nothing() -> None:
    _, own_LC = world(seed=5)
    told = 0
    for seed in range(20):
        noise_LC = 5.0 * np.random.default_rng(seed).normal(size=own_LC.shape)
        told += int(shrink(noise_LC, own_LC, noise_std=5.0).any(axis=1).sum())
    assert told <= 1, "of forty labels, at three standard deviations"


def test_a_cell_of_noise_that_nobody_expects_stays_small_and_one_that_is_expected_rises() -> None:
    truth_LC, own_LC = world(seed=6, spread=0.5)
    released_LC = truth_LC + 2.0 * np.random.default_rng(7).normal(size=truth_LC.shape)
    order = np.argsort(own_LC[0])
    unlikely, likely = order[0], order[C // 2]
    released_LC[0, [unlikely, likely]] = 9.0
    found_C = shrink(released_LC, own_LC, noise_std=2.0)[0]
    assert found_C[unlikely] < 1.0
    assert found_C[likely] > found_C[unlikely]


def test_a_label_that_was_not_drawn_is_not_told_anything() -> None:
    truth_LC, own_LC = world(seed=8)
    own_LC[1] = 0.0
    found_LC = shrink(truth_LC, own_LC, noise_std=1.0)
    assert found_LC[0].any()
    assert not found_LC[1].any()
    assert not shrink(truth_LC, np.zeros_like(own_LC), noise_std=1.0).any()


def test_tokens_that_a_model_never_draws_get_nothing_and_spoil_nothing() -> None:
    """As with top_k: most cells are expected exactly never, by one label or by all."""
    truth_LC, own_LC = world(seed=9)
    own_LC[0, ::2], own_LC[:, ::3] = 0.0, 0.0
    found_LC = shrink(truth_LC, own_LC, noise_std=1.0)
    assert np.isfinite(found_LC).all()
    assert not found_LC[:, ::3].any()
    assert found_LC.any(axis=1).all()


def test_a_flat_model_in_much_noise_is_left_alone() -> None:
    flat_LC = np.full((2, 200_000), 1.0)
    assert not shrink(flat_LC * 0.07, flat_LC, noise_std=5.0).any()


@settings(max_examples=40, deadline=None)
@example(released=-14.0, expected=117.0, spread=2.0)
@given(released=st.floats(-15, 400), expected=st.floats(0.05, 300), spread=st.sampled_from([0.5, 1.0, 2.0]))
def test_a_posterior_mean_is_the_integral_that_it_should_be(released: float, expected: float, spread: float) -> None:
    assume(released <= 5 or abs(np.log(released / expected)) < 3 * spread)

    def density(ratio: float) -> float:
        prior = -((ratio + spread**2 / 2) ** 2) / (2 * spread**2)
        return float(np.exp(prior - (released - expected * np.exp(ratio)) ** 2 / 2))

    peak = float(np.log(max(released, 1.0) / expected))
    cuts = sorted({-12.0, -(spread**2) / 2, *(peak + shift for shift in (-1, -0.1, 0, 0.1, 1)), 12.0})
    spans = list(pairwise(cuts))
    whole = sum(quad(density, low, high, limit=200)[0] for low, high in spans)
    first = sum(quad(lambda r: density(r) * np.exp(r), low, high, limit=200)[0] for low, high in spans)
    found, _ = shrinkage._posterior(np.array([released]), np.array([expected]), spread, 1.0)
    assert found[0] == pytest.approx(expected * first / whole, rel=0.03, abs=0.02)


def test_a_sum_that_noise_cannot_reach_is_followed_however_unexpected() -> None:
    found, _ = shrinkage._posterior(np.array([30.0]), np.array([1e-6]), 0.5, 1.0)
    assert 25 < found[0] <= 30
