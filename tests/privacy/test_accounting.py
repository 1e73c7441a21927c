"""Golden prices, refusals, and the search for noise."""

import math

import pytest

from safesynthdp.errors import ConfigError
from safesynthdp.privacy.accounting import (
    Priced,
    accountant_version,
    dpsgd_epsilon,
    find_noise_multiplier,
    joint_accountant,
    joint_epsilon,
)
from safesynthdp.privacy.losses import Adjacency, TwoPoint
from safesynthdp.privacy.mechanisms import DPSGDMechanism, LabelHistogramMechanism

TV_12A = {"noise_multiplier": 1.0, "sample_rate": 4096 / 120000, "steps": 300, "delta": 1e-6}
GOLDEN = [
    (1.0, 0.01, 1000, 1e-5, 1.8282, 1.8384, 2.1014),
    (0.6, 0.005, 2000, 1e-6, 6.3526, 6.3630, 7.4013),
    (1.5, 0.1, 500, 1e-5, 8.3716, 8.3820, 9.0941),
    (4.0, 0.25, 300, 1e-6, 5.5529, 5.5632, 5.9487),
    (0.8, 256 / 50000, 585, 1e-5, 1.3631, 1.3732, 2.0008),
]


def training(**changes: object) -> DPSGDMechanism:
    facts: dict[str, object] = {
        "num_records": 120000,
        "expected_batch_size": 4096,
        "noise_multiplier": 1.0,
        "steps": 300,
        "per_sample_max_grad_norm": 1.0,
    }
    return DPSGDMechanism(**{**facts, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(("noise", "rate", "steps", "delta", "pld", "prv", "rdp"), GOLDEN)
def test_epsilon_matches_the_golden_table(
    noise: float, rate: float, steps: int, delta: float, pld: float, prv: float, rdp: float
) -> None:
    def price(accountant: str) -> float:
        return dpsgd_epsilon(noise_multiplier=noise, sample_rate=rate, steps=steps, delta=delta, accountant=accountant)

    assert price("pld") == pytest.approx(pld, rel=1e-4)
    assert price("prv") == pytest.approx(prv, abs=1e-4)
    assert price("auto") == price("prv")
    assert price("pld") < price("prv") < price("rdp")
    assert price("rdp") == pytest.approx(rdp, rel=0.02)


def test_the_vectors_of_the_calculator() -> None:
    assert dpsgd_epsilon(**TV_12A, accountant="pld") == pytest.approx(4.4484, rel=1e-4)  # type: ignore[arg-type]
    assert dpsgd_epsilon(**TV_12A, accountant="rdp") == pytest.approx(4.953, rel=1e-2)  # type: ignore[arg-type]
    common = {"noise_multiplier": 0.51, "steps": 100, "delta": 3.3333333e-5, "accountant": "pld"}
    assert dpsgd_epsilon(sample_rate=20 / 30000, **common) == pytest.approx(0.9649, rel=1e-4)  # type: ignore[arg-type]
    assert dpsgd_epsilon(sample_rate=1.0, **common) == pytest.approx(269.5177, rel=1e-6)  # type: ignore[arg-type]


def test_replacing_a_record_costs_more_than_removing_one() -> None:
    found = dpsgd_epsilon(noise_multiplier=1.0, sample_rate=0.01, steps=1000, delta=1e-5, adjacency="replace")
    assert found == pytest.approx(2.8434, rel=1e-4)


def test_no_steps_cost_nothing() -> None:
    assert dpsgd_epsilon(noise_multiplier=1.0, sample_rate=0.1, steps=0, delta=1e-5) == 0


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("noise_multiplier", 0.0), ("noise_multiplier", -1.0), ("noise_multiplier", math.inf),
        ("noise_multiplier", math.nan), ("noise_multiplier", None), ("sample_rate", 0.0), ("sample_rate", 1.0001),
        ("sample_rate", math.nan), ("steps", -1), ("steps", 1.5), ("steps", True), ("steps", 10**9), ("delta", 0.0),
        ("delta", 1.0), ("delta", -1e-6), ("delta", math.nan), ("accountant", "gdp"), ("accountant", "magic"),
        ("adjacency", "null"),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_refused_by_name_and_never_clamped(flag: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{flag}="):
        dpsgd_epsilon(**{**TV_12A, flag: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_replace_is_refused_by_accountants_that_do_not_know_it(accountant: str) -> None:
    with pytest.raises(ConfigError, match=f"accountant={accountant} knows only adjacency=add_remove"):
        dpsgd_epsilon(**TV_12A, accountant=accountant, adjacency="replace")  # type: ignore[arg-type]


def test_a_joint_price_is_the_vector_and_below_the_sum() -> None:
    histogram = LabelHistogramMechanism(mechanism="laplace", scale=10.0)
    joint = joint_epsilon([training(), histogram], delta=1e-6, adjacency="add_remove")
    assert joint == pytest.approx(4.4721, abs=1e-4)
    assert joint < training().epsilon(delta=1e-6) + histogram.epsilon(delta=1e-6)


def test_a_joint_price_of_one_mechanism_is_its_own() -> None:
    histogram = LabelHistogramMechanism(mechanism="gaussian", scale=3.0)
    for idle in ([], [training(steps=0)]):
        found = joint_epsilon([histogram, *idle], delta=1e-6, adjacency="add_remove")
        assert found == histogram.epsilon(delta=1e-6)
    alone = training(accountant="rdp")
    assert joint_epsilon([alone], delta=1e-6, adjacency="add_remove") == alone.epsilon(delta=1e-6)
    assert joint_epsilon([], delta=1e-6, adjacency="add_remove") == 0


def test_a_joint_price_by_rdp_is_above_the_one_by_pld() -> None:
    for histogram in (
        LabelHistogramMechanism(mechanism="laplace", scale=5.0),
        LabelHistogramMechanism(mechanism="gaussian", scale=5.0),
    ):
        by_rdp = joint_epsilon([training(accountant="rdp"), histogram], delta=1e-6, adjacency="add_remove")
        assert by_rdp > training(accountant="rdp").epsilon(delta=1e-6)
        assert by_rdp > joint_epsilon([training(), histogram], delta=1e-6, adjacency="add_remove")


def test_two_trainings_on_the_same_records_cost_more_than_one_and_less_than_two() -> None:
    one = training().epsilon(delta=1e-6)
    assert one < joint_epsilon([training(), training()], delta=1e-6, adjacency="add_remove") < 2 * one


@pytest.mark.parametrize("accountant", ["prv", "pld", "rdp"])
def test_segments_of_a_training_cost_what_their_steps_cost_together(accountant: str) -> None:
    segments = [training(steps=steps, accountant=accountant) for steps in (100, 0, 37, 163)]
    whole = training(accountant=accountant)
    assert joint_epsilon(segments, delta=1e-6, adjacency="add_remove") == whole.epsilon(delta=1e-6)
    assert joint_accountant(segments) == accountant


def test_segments_under_other_noise_or_beside_a_histogram_are_priced_by_pld_and_say_so() -> None:
    histogram = LabelHistogramMechanism(mechanism="laplace", scale=10.0)
    split: list[Priced] = [training(steps=100), histogram, training(steps=200)]
    other: list[Priced] = [training(steps=100), training(steps=200, noise_multiplier=1.1)]
    for mechanisms in (split, other):
        assert joint_accountant(mechanisms) == "pld"
    joint = joint_epsilon(split, delta=1e-6, adjacency="add_remove")
    assert joint == pytest.approx(joint_epsilon([training(), histogram], delta=1e-6, adjacency="add_remove"), rel=1e-9)
    assert joint_epsilon(other, delta=1e-6, adjacency="add_remove") < training().epsilon(delta=1e-6)


def test_mixed_neighbour_relations_are_refused() -> None:
    with pytest.raises(ConfigError, match="adjacency=replace cannot be composed"):
        joint_epsilon([training(adjacency="replace")], delta=1e-6, adjacency="add_remove")


@pytest.mark.parametrize(
    ("target", "rate", "steps", "accountant", "adjacency"),
    [
        (0.02, 0.02, 300, "prv", "add_remove"),
        (3.0, 0.01, 500, "prv", "add_remove"),
        (100.0, 0.05, 100, "prv", "add_remove"),
        (0.05, 0.01, 300, "pld", "add_remove"),
        (2.0, 0.02, 1000, "pld", "replace"),
        (50.0, 0.01, 500, "rdp", "add_remove"),
    ],
)
def test_the_noise_found_meets_the_target_and_wastes_no_percent(
    target: float, rate: float, steps: int, accountant: str, adjacency: Adjacency
) -> None:
    common = {"delta": 1e-6, "sample_rate": rate, "steps": steps, "accountant": accountant, "adjacency": adjacency}
    noise = find_noise_multiplier(target_epsilon=target, **common)  # type: ignore[arg-type]
    spent = dpsgd_epsilon(noise_multiplier=noise, **common)  # type: ignore[arg-type]
    assert target / 1.01 <= spent <= target


def test_the_noise_found_covers_the_other_accesses_too() -> None:
    histogram = LabelHistogramMechanism(mechanism="laplace", scale=10.0)
    noise = find_noise_multiplier(
        target_epsilon=2.0, delta=1e-6, sample_rate=4096 / 120000, steps=300, others=histogram.accesses()
    )
    spent = joint_epsilon([training(noise_multiplier=noise), histogram], delta=1e-6, adjacency="add_remove")
    assert 2.0 / 1.01 <= spent <= 2.0


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_a_target_that_the_others_spend_alone_is_refused(accountant: str) -> None:
    with pytest.raises(ConfigError, match=r"^target_epsilon=1.0 is spent by the other accesses"):
        find_noise_multiplier(
            target_epsilon=1.0, delta=1e-6, sample_rate=0.1, steps=10, accountant=accountant,
            others=[TwoPoint(epsilon=1.5, count=1)],
        )  # fmt: skip


def test_a_target_that_no_noise_reaches_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"^target_epsilon="):
        find_noise_multiplier(target_epsilon=0.001, delta=1e-6, sample_rate=0.1, steps=10, accountant="prv")
    with pytest.raises(ConfigError, match=r"^target_epsilon="):  # never drawn but with probability delta
        find_noise_multiplier(target_epsilon=1.0, delta=1e-2, sample_rate=1e-6, steps=10)
    with pytest.raises(ConfigError, match=r"^target_epsilon=nan"):
        find_noise_multiplier(target_epsilon=math.nan, delta=1e-6, sample_rate=0.1, steps=10)


def test_an_accountant_says_which_version_it_is() -> None:
    assert accountant_version("pld")["name"] == "pld"
    assert accountant_version("prv")["version"].startswith("opacus ")
    assert accountant_version("pld")["version"].startswith("safesynthdp ")


@pytest.mark.slow
@pytest.mark.parametrize("accountant", ["prv", "pld", "rdp"])
@pytest.mark.parametrize("target", [0.02, 0.05, 0.1, 0.5, 1.0, 4.0, 8.0, 50.0, 100.0])
@pytest.mark.parametrize(("rate", "steps"), [(1e-4, 50), (0.001, 5000), (0.01, 20_000), (0.1, 100), (1.0, 20)])
def test_the_search_is_right_on_a_grid(target: float, rate: float, steps: int, accountant: str) -> None:
    common = {"delta": 1e-6, "sample_rate": rate, "steps": steps, "accountant": accountant}
    noise = find_noise_multiplier(target_epsilon=target, **common)  # type: ignore[arg-type]
    spent = dpsgd_epsilon(noise_multiplier=noise, **common)  # type: ignore[arg-type]
    assert target / 1.01 <= spent <= target
