"""Label histograms: golden vectors, and every bound against a brute-force sum."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safesynthdp.errors import ConfigError
from safesynthdp.privacy import conversions


def brute_force(masses: dict[int, float], shifts: list[int], delta: float) -> float:
    """Return epsilon of independent integer noise on cells that move by ``shifts``, from the joint distribution."""
    losses, weights = np.zeros(1), np.ones(1)
    total = sum(masses.values())
    for shift in shifts:
        inside = [y for y in masses if y - shift in masses]
        loss = np.array([math.log(masses[y] / masses[y - shift]) for y in inside])
        weight = np.array([masses[y] / total for y in inside])
        losses, weights = np.add.outer(losses, loss).ravel(), np.multiply.outer(weights, weight).ravel()
    low, high = 0.0, float(losses.max())
    for _ in range(80):
        middle = (low + high) / 2
        above = losses > middle
        reached = float(weights[above] @ -np.expm1(middle - losses[above])) <= delta
        low, high = (low, middle) if reached else (middle, high)
    return high


def laplace(scale: float) -> dict[int, float]:
    return {y: math.exp(-abs(y) / scale) for y in range(-80, 81)}


def gaussian(scale: float) -> dict[int, float]:
    reach = min(80, int(25 * scale))
    return {y: math.exp(-(y**2) / (2 * scale**2)) for y in range(-reach, reach + 1)}


def test_laplace_vector() -> None:
    found = conversions.laplace_conversions(scale=0.5, cells=1, delta=1e-6)
    assert found["pure"] == 2
    assert conversions.laplace_rho(scale=0.5, cells=1) == pytest.approx(1.523188, abs=1e-6)
    assert min(found.values()) == pytest.approx(1.999999, abs=1e-6)


def test_gaussian_vector() -> None:
    found = conversions.gaussian_conversions(scale=2.2360680, cells=1, delta=1e-6)
    assert conversions.gaussian_rho(scale=2.2360680, cells=1) == pytest.approx(0.1, rel=1e-6)
    assert found["cks"] == pytest.approx(2.141939, abs=1e-6)
    assert found["discrete_exact"] == pytest.approx(2.008754, abs=1e-6)
    assert conversions.discrete_exact(2.0, 1, 1e-6) == pytest.approx(2.2758, abs=1e-4)  # the continuous one is 2.2541


def test_the_tight_zcdp_of_one_pure_answer() -> None:
    assert conversions.pure_rho(1.0) == pytest.approx(0.462117, abs=1e-6)


@pytest.mark.parametrize("delta", [1e-2, 1e-6])
@pytest.mark.parametrize("scale", [0.4, 1.0, 3.3])
def test_kov_is_the_exact_price_of_one_and_of_two_laplace_cells(scale: float, delta: float) -> None:
    for shifts in ([1], [1, -1]):
        assert conversions.kov(1 / scale, len(shifts), delta) == pytest.approx(
            brute_force(laplace(scale), shifts, delta), rel=1e-6, abs=1e-9
        )


@pytest.mark.parametrize("delta", [1e-2, 1e-6])
@pytest.mark.parametrize("scale", [0.6, 2.0, 5.0])
def test_discrete_exact_is_the_exact_price_of_one_and_of_two_gaussian_cells(scale: float, delta: float) -> None:
    for shifts in ([1], [1, -1]):
        found = conversions.discrete_exact(scale, len(shifts), delta)
        truth = brute_force(gaussian(scale), shifts, delta)
        assert truth * (1 - 1e-9) <= found <= truth * (1 + 1e-6)


@given(scale=st.floats(0.05, 300), cells=st.sampled_from([1, 2]), delta=st.sampled_from([1e-2, 1e-5, 1e-9]))
@settings(max_examples=25)
def test_bounds_are_ordered_and_fall_with_scale_and_delta(scale: float, cells: int, delta: float) -> None:
    found = conversions.laplace_conversions(scale=scale, cells=cells, delta=delta)
    assert 0 <= found["kov"] <= found["pure"]
    assert found["cks_tight"] <= found["cks"] * (1 + 1e-9)
    for family in (conversions.laplace_conversions, conversions.gaussian_conversions):
        here = family(scale=scale, cells=cells, delta=delta)
        assert all(
            value <= here[k] * (1 + 1e-9) for k, value in family(scale=2 * scale, cells=cells, delta=delta).items()
        )
        assert all(
            value <= here[k] * (1 + 1e-9) for k, value in family(scale=scale, cells=cells, delta=2 * delta).items()
        )
    assert conversions.discrete_exact(scale, cells, delta) <= conversions.cks(cells / (2 * scale**2), delta) * (
        1 + 1e-9
    )


@given(rho=st.floats(1e-8, 1e3), delta=st.sampled_from([1e-2, 1e-6, 1e-12]))
@settings(max_examples=50)
def test_cks_is_the_minimum_over_all_orders(rho: float, delta: float) -> None:
    found = conversions.cks(rho, delta)
    orders = 1 + np.geomspace(1e-6, 1e9, 4001)
    grid = orders * rho + np.log1p(-1 / orders) - np.log(orders * delta) / (orders - 1)
    assert found <= max(0.0, float(grid.min())) * (1 + 1e-9)
    assert found >= max(0.0, float(grid.min())) * (1 - 1e-3) - 1e-6


def test_what_cannot_be_computed_is_refused() -> None:
    with pytest.raises(ConfigError, match="scale="):
        conversions.discrete_exact(1e7, 1, 1e-6)
    with pytest.raises(ConfigError, match="cells=3"):
        conversions.discrete_exact(1.0, 3, 1e-6)
