"""Composed losses against closed forms and against an accountant that is not ours."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as reference
from dp_accounting.privacy_accountant import NeighboringRelation
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from safesynthdp.privacy import composition
from safesynthdp.privacy.composition import COARSE_POINTS, composed_epsilon
from safesynthdp.privacy.conversions import discrete_exact, kov
from safesynthdp.privacy.losses import Adjacency, Direction, DiscreteGaussian, GaussianSteps, TwoPoint

RELATION = {
    "add_remove": NeighboringRelation.ADD_OR_REMOVE_ONE,
    "replace": NeighboringRelation.REPLACE_ONE,
}
CASES: list[tuple[float, float, int, float, Adjacency]] = [
    (1.0, 0.01, 1000, 1e-5, "add_remove"),
    (4.0, 0.25, 300, 1e-6, "add_remove"),
    (1.0, 0.01, 1000, 1e-5, "replace"),
    (2.0, 0.9, 7, 1e-6, "replace"),
    (0.8, 0.3, 1, 1e-5, "add_remove"),
]


def steps(noise: float, rate: float, count: int) -> GaussianSteps:
    return GaussianSteps(noise_multiplier=noise, sample_rate=rate, count=count)


def gaussian_epsilon(shift: float, delta: float) -> float:
    """The exact epsilon of N(0, 1) against N(shift, 1), Balle and Wang (2018)."""

    def excess(x: float) -> float:
        tail = math.exp(x + float(stats.norm.logcdf(-shift / 2 - x / shift)))
        return float(stats.norm.cdf(shift / 2 - x / shift)) - tail - delta

    root: Any = optimize.brentq(excess, 0, shift * shift / 2 + 40 * shift, xtol=1e-13)
    return float(root)


@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-10, 1e-15])
@pytest.mark.parametrize(("shift", "count"), [(0.05, 1), (1.0, 1000), (5.0, 10), (1.0, 100_000)])
def test_many_unsampled_steps_equal_one_gaussian_and_are_never_cheaper(shift: float, count: int, delta: float) -> None:
    exact = gaussian_epsilon(shift, delta)
    many = steps(math.sqrt(count) / shift, 1.0, count)
    found = composition._epsilon([many], delta, "remove", 2**17)  # not merged into one step
    assert exact <= found <= exact * (1 + 1e-3)


@pytest.mark.parametrize(("noise", "rate", "count", "delta", "adjacency"), CASES)
def test_epsilon_lies_between_the_bounds_of_an_independent_accountant(
    noise: float, rate: float, count: int, delta: float, adjacency: Adjacency
) -> None:
    def other(*, pessimistic: bool) -> float:
        single = reference.from_gaussian_mechanism(
            noise,
            sampling_prob=rate,
            pessimistic_estimate=pessimistic,
            use_connect_dots=pessimistic,
            value_discretization_interval=1e-3,
            neighboring_relation=RELATION[adjacency],
        )
        return float(single.self_compose(count).get_epsilon_for_delta(delta))

    found = composed_epsilon([steps(noise, rate, count)], delta=delta, adjacency=adjacency)
    assert other(pessimistic=False) <= found <= other(pessimistic=True) * (1 + 1e-5)
    assert found == pytest.approx(other(pessimistic=True), rel=1e-2)


@given(
    noise=st.floats(0.4, 20),
    rate=st.floats(1e-5, 1),
    count=st.integers(1, 20_000),
    delta=st.sampled_from([1e-3, 1e-6, 1e-9]),
    adjacency=st.sampled_from(["add_remove", "replace"]),
)
@settings(max_examples=4)
def test_epsilon_falls_with_noise_and_delta_and_rises_with_rate_and_steps(
    noise: float, rate: float, count: int, delta: float, adjacency: Adjacency
) -> None:
    def price(access: GaussianSteps, at: float = delta) -> float:
        return composed_epsilon([access], delta=at, adjacency=adjacency, points=2**12)

    slack = 1 + 1e-9
    epsilon = price(steps(noise, rate, count))
    assert price(steps(noise * 1.2, rate, count)) <= epsilon * slack
    assert price(steps(noise, rate / 1.5, count)) <= epsilon * slack
    assert price(steps(noise, rate, count), delta * 2) <= epsilon * slack
    assert price(steps(noise, rate, 2 * count)) >= epsilon / slack


@pytest.mark.parametrize("direction", ["remove", "add", "replace"])
@pytest.mark.parametrize(("noise", "rate"), [(0.7, 0.2), (2.0, 1.0)])
def test_a_grid_keeps_every_mass_and_reveals_at_least_the_true_pair(
    direction: Direction, noise: float, rate: float
) -> None:
    interval, tail = 0.05, 1e-3  # a coarse grid and heavy cuts, so that a lost mass shows
    grid = steps(noise, rate, 1).grid(direction, interval, tail)
    losses = grid.losses(interval)
    assert float(grid.masses.sum()) + grid.infinity == pytest.approx(1.0, abs=1e-12)
    assert float(grid.masses @ np.exp(-losses)) <= 1 + 1e-12
    assert grid.infinity <= tail * (1 + 1e-9)
    x = np.linspace(-30, 30, 600_001)
    weights = (0.0 if direction == "add" else rate), (0.0 if direction == "remove" else rate)
    upper, lower = (
        (1 - weight) * stats.norm.pdf(x, scale=noise) + weight * stats.norm.pdf(x, loc=centre, scale=noise)
        for weight, centre in zip(weights, (1, -1), strict=True)
    )
    for epsilon in (-1.0, 0.0, 0.013, 0.3, 1.0, 2.0):
        true = float(np.maximum(upper - math.exp(epsilon) * lower, 0).sum()) * 1e-4
        above = losses > epsilon
        found = grid.infinity + float(grid.masses[above] @ -np.expm1(epsilon - losses[above]))
        assert true - 1e-9 <= found <= true + 2 * tail


def test_one_more_step_always_costs_more() -> None:
    prices = [
        composed_epsilon([steps(1.0, 0.02, n)], delta=1e-6, adjacency="add_remove", points=2**13)
        for n in range(90, 110)
    ]
    assert all(before < after for before, after in itertools.pairwise(prices))


def test_a_coarser_grid_is_never_cheaper() -> None:
    access: list[GaussianSteps | TwoPoint] = [steps(0.8, 0.01, 500), TwoPoint(epsilon=0.3, count=2)]
    fine, rough = (composed_epsilon(access, delta=1e-6, adjacency="replace", points=n) for n in (2**18, 2**13))
    assert fine <= rough


@pytest.mark.parametrize(("epsilon", "count"), [(2.0, 1), (0.1, 2), (0.01, 40), (30.0, 1), (500.0, 2)])
def test_two_point_losses_equal_optimal_composition(epsilon: float, count: int) -> None:
    found = composed_epsilon([TwoPoint(epsilon=epsilon, count=count)], delta=1e-6, adjacency="replace")
    assert kov(epsilon, count, 1e-6) <= found * (1 + 1e-12)
    assert found == pytest.approx(kov(epsilon, count, 1e-6), rel=1e-4)


@pytest.mark.parametrize(("scale", "cells"), [(2.0, 1), (0.5, 2), (35.0, 1), (300.0, 2)])
def test_discrete_gaussian_losses_equal_the_exact_sum(scale: float, cells: int) -> None:
    found = composed_epsilon([DiscreteGaussian(scale=scale, count=cells)], delta=1e-6, adjacency="replace")
    assert discrete_exact(scale, cells, 1e-6) <= found * (1 + 1e-6)
    assert found == pytest.approx(discrete_exact(scale, cells, 1e-6), rel=1e-4)


def test_a_joint_price_is_at_least_each_part_and_at_most_their_sum() -> None:
    parts: list[GaussianSteps | TwoPoint | DiscreteGaussian] = [
        steps(1.0, 0.03, 300), TwoPoint(epsilon=0.5, count=1), DiscreteGaussian(scale=4.0, count=1),
    ]  # fmt: skip
    alone = [composed_epsilon([part], delta=1e-6, adjacency="add_remove", points=2**14) for part in parts]
    joint = composed_epsilon(parts, delta=1e-6, adjacency="add_remove", points=2**14)
    assert max(alone) < joint < sum(alone)


def test_extreme_noise_and_rates_give_finite_prices_or_zero() -> None:
    for access in (steps(0.05, 0.5, 3), steps(1e4, 0.01, 10), steps(1.0, 1e-9, 10), steps(0.3, 1 - 1e-12, 2)):
        epsilon = composed_epsilon([access], delta=1e-6, adjacency="add_remove", points=COARSE_POINTS)
        assert 0 <= epsilon < math.inf


@pytest.mark.slow
@given(
    noise=st.floats(0.4, 10),
    rate=st.floats(1e-4, 1),
    count=st.integers(1, 3000),
    delta=st.sampled_from([1e-3, 1e-5, 1e-8]),
    adjacency=st.sampled_from(["add_remove", "replace"]),
)
@settings(max_examples=25)
def test_epsilon_is_never_below_an_optimistic_accountant(
    noise: float, rate: float, count: int, delta: float, adjacency: Adjacency
) -> None:
    single = reference.from_gaussian_mechanism(
        noise,
        sampling_prob=rate,
        pessimistic_estimate=False,
        use_connect_dots=False,
        value_discretization_interval=1e-3,
        neighboring_relation=RELATION[adjacency],
    )
    optimistic = float(single.self_compose(count).get_epsilon_for_delta(delta))
    assume(optimistic < 700)  # above, the reference underflows
    assert optimistic <= composed_epsilon([steps(noise, rate, count)], delta=delta, adjacency=adjacency) + 1e-9
