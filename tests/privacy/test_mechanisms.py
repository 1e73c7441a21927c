"""What is drawn is what is priced."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from safesynthdp.errors import ConfigError, LedgerMismatch
from safesynthdp.privacy.mechanisms import DPSGDMechanism, LabelHistogramMechanism, label_shares, poisson_draw
from safesynthdp.privacy.randomness import EntropySource, StepKeys

KEYS = StepKeys.from_unsafe_seed(11)


def training(**changes: Any) -> DPSGDMechanism:
    facts: dict[str, Any] = {
        "num_records": 1000,
        "expected_batch_size": 100,
        "noise_multiplier": 1.5,
        "steps": 10,
        "per_sample_max_grad_norm": 0.5,
    }
    return DPSGDMechanism(**{**facts, **changes})


def test_batch_sizes_are_binomial_in_mean_and_variance() -> None:
    mechanism = training(num_records=2000, expected_batch_size=300)
    sizes = np.array([len(mechanism.draw_batch(step=step, keys=KEYS)) for step in range(1500)])
    mean, variance = 300.0, 2000 * 0.15 * 0.85
    assert abs(sizes.mean() - mean) < 4 * math.sqrt(variance / len(sizes))
    assert 0.85 < sizes.var(ddof=1) / variance < 1.15
    assert len(set(sizes.tolist())) > 30, "a fixed batch size is not Poisson sampling"


def test_each_record_joins_alone_and_at_the_same_rate() -> None:
    mechanism = training(num_records=40, expected_batch_size=10)
    joined = np.zeros((2000, 40))
    for step in range(2000):
        joined[step, mechanism.draw_batch(step=step, keys=KEYS)] = 1
    assert stats.chisquare(joined.sum(axis=0)).pvalue > 1e-3
    correlations = np.asarray(np.corrcoef(joined.T))[np.triu_indices(40, 1)]
    assert np.abs(correlations).max() < 5 / math.sqrt(2000)
    between = np.asarray(np.corrcoef(joined[:-1].ravel(), joined[1:].ravel()))[0, 1]
    assert abs(between) < 5 / math.sqrt(joined.size)


def test_a_batch_has_each_index_once_in_order_and_depends_on_keys_and_step_alone() -> None:
    mechanism = training()
    drawn = mechanism.draw_batch(step=3, keys=KEYS)
    assert np.all(np.diff(drawn) > 0)
    assert drawn.dtype == np.intp
    assert np.array_equal(drawn, mechanism.with_steps(99).draw_batch(step=3, keys=KEYS))
    assert not np.array_equal(drawn, mechanism.draw_batch(step=4, keys=KEYS))
    assert not np.array_equal(drawn, mechanism.draw_batch(step=3, keys=KEYS.derive(1)))


def test_another_record_moves_nobody() -> None:
    few = poisson_draw(num_records=500, expected_batch_size=50, step=1, keys=KEYS)
    more = poisson_draw(num_records=1000, expected_batch_size=100, step=1, keys=KEYS)
    assert np.array_equal(few, more[more < 500])


def test_a_rate_of_one_takes_everybody_and_a_tiny_one_draws_empty_batches() -> None:
    assert len(training(expected_batch_size=1000).draw_batch(step=0, keys=KEYS)) == 1000
    assert len(training(expected_batch_size=1e-9).draw_batch(step=0, keys=KEYS)) == 0


@given(records=st.integers(1, 10**7), batch=st.integers(1, 10**7))
@settings(max_examples=100)
def test_the_sample_rate_is_exactly_the_quotient(records: int, batch: int) -> None:
    if batch > records:
        with pytest.raises(ConfigError, match=r"^expected_batch_size="):
            training(num_records=records, expected_batch_size=batch)
    else:
        assert training(num_records=records, expected_batch_size=batch).sample_rate == batch / records


def test_noise_has_the_standard_deviation_that_is_priced() -> None:
    drawn = training().noise(step=0, tensor=0, count=100_000, keys=KEYS)
    assert stats.kstest(drawn / (1.5 * 0.5), "norm").pvalue > 1e-3


def test_noise_depends_on_the_place_and_not_on_who_draws_it() -> None:
    mechanism = training()
    whole = mechanism.noise(step=5, tensor=2, count=1001, keys=KEYS)
    shards = [mechanism.noise(step=5, tensor=2, count=n, keys=KEYS, offset=o) for o, n in ((0, 333), (333, 668))]
    assert np.array_equal(whole, np.concatenate(shards))
    others = [
        mechanism.noise(step=6, tensor=2, count=1001, keys=KEYS),
        mechanism.noise(step=5, tensor=3, count=1001, keys=KEYS),
        mechanism.noise(step=5, tensor=2, count=1001, keys=KEYS.derive(1)),
    ]
    assert all(abs(np.corrcoef(whole, other)[0, 1]) < 0.15 for other in others)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_records", 0), ("num_records", 2.5), ("expected_batch_size", 0), ("expected_batch_size", math.nan),
        ("expected_batch_size", 1001), ("noise_multiplier", 0.0), ("noise_multiplier", math.inf),
        ("noise_multiplier", math.nan), ("steps", -1), ("per_sample_max_grad_norm", math.inf),
        ("per_sample_max_grad_norm", 0), ("accountant", "gdp"), ("adjacency", "many"),
    ],
)  # fmt: skip
def test_a_mechanism_that_cannot_be_priced_cannot_be_built(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{key}="):
        training(**{key: value})


def test_an_accountant_is_settled_when_a_mechanism_is_built_and_written_by_name() -> None:
    assert training().accountant == training().to_entry()["accountant"] == "prv"
    assert training(adjacency="replace").accountant == "pld"
    with pytest.raises(ConfigError, match=r"^accountant=prv knows only adjacency=add_remove"):
        training(adjacency="replace", accountant="prv")


def test_an_entry_from_before_accountants_were_named_keeps_its_price() -> None:
    entry = training().to_entry()
    del entry["accountant"]
    assert DPSGDMechanism.from_entry(entry) == training(accountant="pld")


def test_a_mechanism_survives_its_entry_and_json() -> None:
    for mechanism in (training(), training(accountant="rdp", steps=0), training(adjacency="replace")):
        assert DPSGDMechanism.from_entry(json.loads(json.dumps(mechanism.to_entry()))) == mechanism
    for histogram in (
        LabelHistogramMechanism(mechanism="laplace", scale=0.3),
        LabelHistogramMechanism(mechanism="gaussian", scale=7.0, adjacency="replace"),
    ):
        assert LabelHistogramMechanism.from_entry(json.loads(json.dumps(histogram.to_entry()))) == histogram


@pytest.mark.parametrize(
    "edit",
    [
        {"sample_rate": 0.01}, {"sampling": "shuffled"}, {"steps": None}, {"noise_multiplier": 0},
        {"noise_multiplier": "1"}, {"accountant": "gdp"}, {"accountant": "auto"}, {"momentum": 1},
        {"num_records": 10**9},
    ],
)  # fmt: skip
def test_an_edited_entry_is_refused(edit: dict[str, object]) -> None:
    with pytest.raises(LedgerMismatch, match=r"^ledger: "):
        DPSGDMechanism.from_entry({**training().to_entry(), **edit})


@pytest.mark.parametrize("key", ["num_records", "expected_batch_size", "noise_multiplier", "steps", "sample_rate"])
def test_an_entry_without_one_of_its_numbers_is_refused(key: str) -> None:
    entry = training().to_entry()
    del entry[key]
    with pytest.raises(LedgerMismatch, match=f"{key} is missing"):
        DPSGDMechanism.from_entry(entry)


@pytest.mark.parametrize("epsilon", [0.1, 1 / 3, 0.7, 2.0, 49.0, *(k / 7 for k in range(1, 60))])
def test_a_histogram_costs_no_more_than_asked_for(epsilon: float) -> None:
    for adjacency, cells in (("add_remove", 1), ("replace", 2)):
        histogram = LabelHistogramMechanism.from_epsilon(epsilon, adjacency)  # type: ignore[arg-type]
        assert histogram.cells == cells
        assert histogram.pure_epsilon is not None
        assert epsilon * (1 - 1e-12) <= histogram.pure_epsilon <= epsilon
        assert histogram.epsilon(delta=1e-6) <= epsilon


def test_histogram_noise_is_whole_fresh_and_the_priced_one() -> None:
    histogram = LabelHistogramMechanism(mechanism="laplace", scale=2.0)
    drawn = histogram.draw([0] * 4000, entropy=EntropySource.keyed(b"h" * 32))
    assert all(type(count) is int for count in drawn)
    e = 0.5
    assert np.var(drawn) == pytest.approx(2 * math.exp(-e) / (1 - math.exp(-e)) ** 2, rel=0.15)
    normal = LabelHistogramMechanism(mechanism="gaussian", scale=3.0)
    assert np.var(normal.draw([5] * 3000, entropy=EntropySource.keyed(b"g" * 32))) == pytest.approx(9.0, rel=0.15)
    assert histogram.draw([3] * 20, entropy=EntropySource()) != histogram.draw([3] * 20, entropy=EntropySource())


@pytest.mark.parametrize(
    ("key", "value"),
    [("mechanism", "exponential"), ("scale", 0), ("scale", math.nan), ("scale", 1e-9), ("adjacency", "null")],
)
def test_a_histogram_that_cannot_be_priced_cannot_be_built(key: str, value: object) -> None:
    facts: dict[str, Any] = {"mechanism": "laplace", "scale": 1.0, key: value}
    with pytest.raises(ConfigError, match=f"^{key}="):
        LabelHistogramMechanism(**facts)
    with pytest.raises(ConfigError, match=r"^counts="):
        LabelHistogramMechanism(mechanism="laplace", scale=1.0).draw([-1], entropy=EntropySource())


def test_shares_are_clamped_and_sum_to_one() -> None:
    assert label_shares([3, -2, 1]) == [0.75, 0.0, 0.25]
    assert label_shares([-3, 0]) == [0.5, 0.5]
    with pytest.raises(ConfigError):
        label_shares([])


def test_mechanisms_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        training().steps = 0  # type: ignore[misc]
