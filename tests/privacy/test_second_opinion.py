"""Our price is never below another accountant's lower bound, and a price that is, is refused."""

import pytest

from safesynthdp.errors import SafeSynthError
from safesynthdp.privacy.accounting import joint_epsilon
from safesynthdp.privacy.losses import Adjacency
from safesynthdp.privacy.mechanisms import DPSGDMechanism, LabelHistogramMechanism
from safesynthdp.privacy.second_opinion import least_epsilon, refuse_contradiction

SETTINGS = [
    (0.6, 1000, 10, 20),
    (0.4, 19000, 128, 10),
    pytest.param((1.0, 5000, 50, 200), marks=pytest.mark.slow),
    pytest.param((2.0, 400, 400, 30), marks=pytest.mark.slow),
]


def steps(noise: float, records: int, batch: int, count: int, *, adjacency: Adjacency) -> DPSGDMechanism:
    return DPSGDMechanism(
        num_records=records,
        expected_batch_size=batch,
        noise_multiplier=noise,
        steps=count,
        per_sample_max_grad_norm=1.0,
        adjacency=adjacency,
    )


@pytest.mark.parametrize("adjacency", ["add_remove", "replace"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("histogram", [None, "laplace", "gaussian"])
def test_the_joint_price_lies_just_above_an_independent_lower_bound(
    adjacency: Adjacency, setting: tuple[float, int, int, int], histogram: str | None
) -> None:
    mechanisms: list[DPSGDMechanism | LabelHistogramMechanism] = [steps(*setting, adjacency=adjacency)]
    if histogram == "laplace":
        mechanisms.append(LabelHistogramMechanism(mechanism="laplace", scale=4.0, adjacency=adjacency))
    elif histogram == "gaussian":
        mechanisms.append(LabelHistogramMechanism(mechanism="gaussian", scale=4.0, adjacency=adjacency))
    price = joint_epsilon(mechanisms, delta=1e-5, adjacency=adjacency)
    accesses = [access for mechanism in mechanisms for access in mechanism.accesses()]
    least = least_epsilon(accesses, delta=1e-5, adjacency=adjacency)
    assert least <= price <= least + 0.06
    refuse_contradiction(mechanisms, price, delta=1e-5, adjacency=adjacency)


def test_a_price_that_forgets_a_fifth_of_the_steps_is_refused() -> None:
    mechanism = steps(1.0, 5000, 50, 200, adjacency="add_remove")
    understated = mechanism.with_steps(160).epsilon(delta=1e-5)
    with pytest.raises(SafeSynthError, match="accountants disagree"):
        refuse_contradiction([mechanism], understated, delta=1e-5, adjacency="add_remove")


def test_a_price_without_the_histogram_is_refused() -> None:
    mechanism = steps(0.6, 1000, 10, 20, adjacency="add_remove")
    histogram = LabelHistogramMechanism(mechanism="laplace", scale=1.0, adjacency="add_remove")
    with pytest.raises(SafeSynthError, match="accountants disagree"):
        refuse_contradiction([mechanism, histogram], mechanism.epsilon(delta=1e-5), delta=1e-5, adjacency="add_remove")


def test_no_access_costs_nothing() -> None:
    assert least_epsilon([], delta=1e-5, adjacency="add_remove") == 0
