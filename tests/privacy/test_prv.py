"""Opacus' accountant as we ask it: against Opacus' own number and Google's accountant, and refused where it fails."""

import itertools
import math

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as reference
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from safesynthdp.errors import ConfigError
from safesynthdp.privacy import accounting, prv
from safesynthdp.privacy.accounting import dpsgd_epsilon
from safesynthdp.privacy.losses import GaussianSteps
from safesynthdp.privacy.second_opinion import least_epsilon

ACCOUNTANTS = ("prv", "pld", "rdp")
CASES = [
    (1.0, 0.01, 1000, 1e-5),
    (8.0, 0.2, 50, 1e-6),
    (0.6, 0.001, 400, 1e-8),
    (0.35, 0.05, 20, 1e-5),
    (30.0, 0.02, 500, 1e-5),
    (5.0, 1.0, 10, 1e-5),
]


def steps(noise: float, rate: float, count: int) -> GaussianSteps:
    return GaussianSteps(noise_multiplier=noise, sample_rate=rate, count=count)


def price(noise: float, rate: float, count: int, delta: float, accountant: str) -> float:
    return dpsgd_epsilon(noise_multiplier=noise, sample_rate=rate, steps=count, delta=delta, accountant=accountant)


def most_epsilon(noise: float, rate: float, count: int, delta: float) -> float:
    """Google's upper bound."""
    single = reference.from_gaussian_mechanism(noise, sampling_prob=rate, value_discretization_interval=5e-4)
    return float(single.self_compose(count).get_epsilon_for_delta(delta))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("noise", "rate", "count", "delta"), CASES)
def test_it_says_what_plain_opacus_says(noise: float, rate: float, count: int, delta: float) -> None:
    from opacus.accountants import PRVAccountant

    plain = PRVAccountant()
    plain.history = [(noise, rate, count)]
    ours = prv.upper_epsilon(steps(noise, rate, count), delta=delta, eps_error=0.01)
    assert ours == pytest.approx(plain.get_epsilon(delta, eps_error=0.01), abs=1e-5)


@pytest.mark.parametrize(("noise", "rate", "count", "delta"), CASES)
def test_every_accountant_lies_above_an_independent_lower_bound_and_not_far_above_the_upper_one(
    noise: float, rate: float, count: int, delta: float
) -> None:
    least = least_epsilon([steps(noise, rate, count)], delta=delta, adjacency="add_remove")
    most = most_epsilon(noise, rate, count, delta)
    assert least <= most
    for accountant in ACCOUNTANTS:
        assert least <= price(noise, rate, count, delta, accountant)
    assert price(noise, rate, count, delta, "pld") <= most * 1.01
    assert price(noise, rate, count, delta, "prv") <= most + 2 * prv.error(most) + 1e-4
    assert price(noise, rate, count, delta, "rdp") <= most * 1.6 + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.5, 0.8, 1.5, 5.0])
@pytest.mark.parametrize("rate", [1e-3, 0.02, 0.5])
@pytest.mark.parametrize("count", [1, 50, 2000])
@pytest.mark.parametrize("delta", [1e-5, 1e-8])
def test_no_accountant_is_below_an_independent_lower_bound_on_a_grid(
    noise: float, rate: float, count: int, delta: float
) -> None:
    if price(noise, rate, count, delta, "pld") > 400:  # the reference underflows, and prv ends
        with pytest.raises(ConfigError, match="use pld"):
            price(noise, rate, count, delta, "prv")
        return
    least = least_epsilon([steps(noise, rate, count)], delta=delta, adjacency="add_remove")
    for accountant in ACCOUNTANTS:
        assert least <= price(noise, rate, count, delta, accountant)


@given(
    noise=st.floats(0.5, 50),
    rate=st.floats(1e-4, 1),
    count=st.integers(1, 20_000),
    delta=st.sampled_from([1e-5, 1e-7]),
    accountant=st.sampled_from(ACCOUNTANTS),
)
@settings(max_examples=12)
def test_one_more_step_always_costs_more_by_every_accountant(
    noise: float, rate: float, count: int, delta: float, accountant: str
) -> None:
    assume(accountant != "prv" or price(noise, rate, count + 2, delta, "pld") < 300)  # the end of its range
    prices = [price(noise, rate, count + more, delta, accountant) for more in range(3)]
    if prices[0] > 0:
        assert all(before < after for before, after in itertools.pairwise(prices))


def test_many_steps_are_still_strictly_dearer_one_by_one() -> None:
    for accountant in ACCOUNTANTS:
        prices = [price(20.0, 0.1, count, 1e-6, accountant) for count in range(20_000, 20_004)]
        assert all(before < after for before, after in itertools.pairwise(prices))


def test_the_mean_loss_is_the_one_that_opacus_finds_by_quadrature_and_exact_where_that_is_not() -> None:
    from opacus.accountants.analysis.prv import PoissonSubsampledGaussianPRV, TruncatedPrivacyRandomVariable

    for noise, rate in [(1.0, 0.1), (0.5, 0.02), (3.0, 0.5)]:
        found = TruncatedPrivacyRandomVariable(PoissonSubsampledGaussianPRV(rate, noise), -60.0, 60.0).mean()
        assert prv.mean_loss(steps(noise, rate, 1)) == pytest.approx(float(found), abs=1e-6)
    for noise in (0.05, 1.0, 300.0):
        assert prv.mean_loss(steps(noise, 1.0, 1)) == pytest.approx(1 / (2 * noise**2), rel=1e-9)


def test_the_error_never_falls_when_epsilon_rises_and_is_opacus_own_in_the_middle() -> None:
    errors = [prv.error(epsilon) for epsilon in np.geomspace(1e-4, 500, 400)]
    assert all(before <= after for before, after in itertools.pairwise(errors))
    assert prv.error(1.34) == prv.error(10.0) == 0.01
    assert prv.error(0.02) == pytest.approx(0.002)
    assert all(prv.error(epsilon) <= 0.01 * epsilon for epsilon in (0.4, 0.9649, 1.5, 200.0))


def test_a_small_epsilon_is_not_hidden_by_the_error() -> None:
    found = price(40.0, 0.01, 500, 1e-5, "prv")
    assert found < 1.2 * price(40.0, 0.01, 500, 1e-5, "pld") < 0.02


@pytest.mark.parametrize(
    ("noise", "rate", "count", "delta"),
    [(2.0, 0.01, 50_000, 1e-12), (0.03, 0.1, 10, 1e-5)],
)
def test_out_of_its_range_it_raises_and_names_the_way_out(noise: float, rate: float, count: int, delta: float) -> None:
    with pytest.raises(ConfigError, match=r"^accountant=prv.*use pld$"):
        price(noise, rate, count, delta, "prv")
    assert 0 < price(noise, rate, count, delta, "pld") < math.inf


def test_a_grid_that_memory_cannot_hold_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prv, "_MOST_POINTS", 10_000)
    with pytest.raises(ConfigError, match=r"^accountant=prv needs too much memory for steps=1001 .*use pld$"):
        price(1.0, 0.01, 1001, 1e-5, "prv")


@pytest.mark.parametrize("drift", [-0.011, 0.011])
def test_a_value_that_the_other_accountant_does_not_confirm_is_refused(
    drift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = prv.upper_epsilon

    def wrong(access: GaussianSteps, *, delta: float, eps_error: float) -> float:
        return honest(access, delta=delta, eps_error=eps_error) + drift

    accounting._price.cache_clear()
    monkeypatch.setattr(prv, "upper_epsilon", wrong)
    with pytest.raises(ConfigError, match=r"^accountant=prv says epsilon="):
        price(1.0, 0.01, 1000, 1e-5, "prv")
    accounting._price.cache_clear()
