"""One noisy table of token counts: its price is that of its noise, and no difference of tables goes without noise."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from safesynthdp.errors import ConfigError, LedgerMismatch
from safesynthdp.privacy.accounting import Priced, joint_epsilon
from safesynthdp.privacy.command import main as account
from safesynthdp.privacy.ledger import Entry, Ledger, Release, recompute, release_epsilon
from safesynthdp.privacy.losses import Adjacency
from safesynthdp.privacy.mechanisms import DPSGDMechanism, LabelHistogramMechanism
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.privacy.second_opinion import least_epsilon
from safesynthdp.privacy.token_histogram import TokenHistogramMechanism

KEYS = StepKeys.from_unsafe_seed(3)
BOTH: tuple[Adjacency, ...] = ("add_remove", "replace")


def delta_of(mu: float, epsilon: float) -> float:
    """The textbook formula, written once more."""
    return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))


@pytest.mark.parametrize(("epsilon", "noise"), [(1.0, 3.731), (2.0, 1.994), (4.0, 1.081), (8.0, 0.6)])
def test_noise_for_an_epsilon_is_that_of_the_analytic_gaussian_mechanism(epsilon: float, noise: float) -> None:
    found = TokenHistogramMechanism.from_epsilon(epsilon, delta=1e-5, adjacency="add_remove")
    assert found.noise_multiplier == pytest.approx(noise, abs=5e-4)


@settings(max_examples=60)
@given(epsilon=st.floats(0.05, 30), log_delta=st.floats(-9, -3), adjacency=st.sampled_from(BOTH))
def test_the_noise_found_costs_at_most_the_epsilon_and_hardly_less(
    epsilon: float, log_delta: float, adjacency: Adjacency
) -> None:
    delta = 10**log_delta
    found = TokenHistogramMechanism.from_epsilon(epsilon, delta=delta, adjacency=adjacency)
    assert found.epsilon(delta=delta) <= epsilon * (1 + 1e-9)
    assert found.epsilon(delta=delta) >= epsilon * (1 - 1e-5)
    distance = math.sqrt(2) if adjacency == "replace" else 1.0
    assert delta_of(distance / found.noise_multiplier, epsilon) <= delta * (1 + 1e-6)


@pytest.mark.parametrize("adjacency", BOTH)
@pytest.mark.parametrize("noise", [0.3, 1.0, 7.0])
def test_the_joint_price_of_one_alone_agrees_with_its_own_and_with_a_second_accountant(
    adjacency: Adjacency, noise: float
) -> None:
    mechanism = TokenHistogramMechanism(noise_multiplier=noise, adjacency=adjacency)
    twice = joint_epsilon([mechanism, mechanism], delta=1e-5, adjacency=adjacency)
    root_two = TokenHistogramMechanism(noise_multiplier=noise / math.sqrt(2), adjacency=adjacency)
    assert twice == pytest.approx(root_two.epsilon(delta=1e-5), rel=2e-3)
    assert twice >= root_two.epsilon(delta=1e-5) * (1 - 1e-9), "an upper bound"
    assert least_epsilon(mechanism.accesses(), delta=1e-5, adjacency=adjacency) <= mechanism.epsilon(delta=1e-5)


def test_beside_training_and_labels_it_costs_more_than_any_part_and_less_than_the_sum() -> None:
    training = DPSGDMechanism(
        num_records=1000, expected_batch_size=50, noise_multiplier=1.0, steps=20, per_sample_max_grad_norm=1.0
    )
    parts: list[Priced] = [
        training,
        LabelHistogramMechanism.from_epsilon(0.1, adjacency="add_remove"),
        TokenHistogramMechanism(noise_multiplier=2.0),
    ]
    together = joint_epsilon(parts, delta=1e-5, adjacency="add_remove")
    alone = [part.epsilon(delta=1e-5) for part in parts]
    assert max(alone) < together < sum(alone)


def test_the_same_table_gets_the_same_noise_and_another_table_unrelated_noise() -> None:
    mechanism = TokenHistogramMechanism(noise_multiplier=1.5)
    table_LV = np.zeros((2, 20_000))
    other_LV = table_LV.copy()
    other_LV[1, 7] = 1.0
    first, again, other = (mechanism.draw(t, keys=KEYS) for t in (table_LV, table_LV.copy(), other_LV))
    assert (first == again).all(), "a run that is killed and begun again releases one table"
    difference = (other - first) - (other_LV - table_LV)
    assert difference.std() == pytest.approx(1.5 * math.sqrt(2), rel=0.05), "noise that cancels would show the record"
    assert abs(np.corrcoef(first[0], first[1])[0, 1]) < 0.03, "each label has noise of its own"


def test_every_cell_gets_noise_of_the_stated_size_also_an_empty_one() -> None:
    drawn = TokenHistogramMechanism(noise_multiplier=0.8).draw(np.full((3, 50_000), 2.0), keys=KEYS) - 2.0
    assert (drawn != 0).all()
    assert drawn.mean() == pytest.approx(0.0, abs=0.01)
    assert drawn.std() == pytest.approx(0.8, rel=0.01)


@pytest.mark.parametrize("noise", [0.0, -1.0, math.nan, math.inf, 0.009, 1.1e6])
def test_noise_without_a_meaning_is_refused(noise: float) -> None:
    with pytest.raises(ConfigError, match="noise_multiplier"):
        TokenHistogramMechanism(noise_multiplier=noise)


def test_a_ledger_recomputes_it_and_refuses_one_that_it_cannot_price() -> None:
    entry = Entry(
        id="token_histogram", kind="token_histogram", mechanism=TokenHistogramMechanism(noise_multiplier=2.0).to_entry()
    )
    ledger = Ledger(unit="record", adjacency="add_remove", entries=(entry,))
    found, _ = release_epsilon(ledger, ["token_histogram"], delta=1e-5)
    assert found == TokenHistogramMechanism(noise_multiplier=2.0).epsilon(delta=1e-5)
    broken = Ledger(
        unit="record", adjacency="add_remove", entries=(entry.with_mechanism({"noise_multiplier": 2.0, "clip": 1}),)
    )
    with pytest.raises(LedgerMismatch, match="clip"):
        release_epsilon(broken, ["token_histogram"], delta=1e-5)
    replaced = Ledger(unit="record", adjacency="replace", entries=(entry,))
    with pytest.raises(LedgerMismatch, match="adjacency"):
        release_epsilon(replaced, ["token_histogram"], delta=1e-5)


def test_a_release_that_leaves_the_token_histogram_out_of_all_its_entries_is_refused() -> None:
    entry = Entry(
        id="token_histogram", kind="token_histogram", mechanism=TokenHistogramMechanism(noise_multiplier=2.0).to_entry()
    )
    text = Release(artifact="synthetic_text", epsilon=0.0, delta=1e-5, rule="post_processing", entries=())
    ledger = Ledger(unit="record", adjacency="add_remove", entries=(entry,), releases=(text,))
    with pytest.raises(LedgerMismatch, match="leaves out entry token_histogram"):
        recompute(ledger, text)


def test_the_command_gives_the_price_of_noise_and_the_noise_for_a_price(capsys: pytest.CaptureFixture[str]) -> None:
    account(["tokens", "--epsilon", "4", "--delta", "1e-5", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["noise_multiplier"] == pytest.approx(1.0812, abs=1e-4)
    account(["tokens", "--noise_multiplier", str(found["noise_multiplier"]), "--delta", "1e-5", "--json"])
    assert json.loads(capsys.readouterr().out)["epsilon"] == pytest.approx(4.0, rel=1e-6)
    with pytest.raises(ConfigError, match="exactly one"):
        account(["tokens", "--delta", "1e-5"])
