"""Claims: of one record, of a group, as a curve, and out of a ledger."""

import math
from typing import Any

import pytest

from safesynthdp.attacks.claimed_curve import check_claim
from safesynthdp.attacks.claims import Claim, claim_of_release, gaussian_epsilon
from safesynthdp.errors import ConfigError
from safesynthdp.privacy.ledger import Ledger
from safesynthdp.runs import LEDGER, RunDirectory


@pytest.mark.parametrize(
    ("mu", "delta", "epsilon"),
    [
        (0.5, 1e-5, 1.99309),
        (0.5, 1e-6, 2.25408),
        (1.0, 1e-5, 4.37718),
        (1.0, 1e-6, 4.88655),
        (2.0, 1e-5, 9.99726),
        (2.0, 1e-6, 10.99715),
        (5.0, 1e-5, 33.10373),
        (10.0, 1e-5, 91.81729),
    ],
)
def test_a_gaussian_claim_has_its_known_epsilon(mu: float, delta: float, epsilon: float) -> None:
    assert gaussian_epsilon(mu, delta) == pytest.approx(epsilon, abs=1e-5)


def test_copies_multiply_the_mu_of_a_gaussian_claim() -> None:
    claim = Claim(epsilon=4.37718, delta=1e-5, noise_multiplier=2.0, sample_rate=1.0, steps=4)
    assert claim.of_group(1) == (4.37718, 1e-5)
    epsilon, delta = claim.of_group(5) or (0, 0)
    assert epsilon == pytest.approx(33.10373, abs=1e-5)
    assert delta == 1e-5


def test_copies_multiply_epsilon_and_swell_delta_where_the_claim_is_a_pair() -> None:
    claim = Claim(epsilon=0.5, delta=1e-5)
    epsilon, delta = claim.of_group(3) or (0, 0)
    assert epsilon == 1.5
    assert delta == pytest.approx(1e-5 * (1 + math.exp(0.5) + math.exp(1.0)), rel=1e-12)
    epsilon, delta = Claim(epsilon=0.0, delta=1e-5).of_group(3) or (1, 1)
    assert epsilon == 0.0
    assert delta == pytest.approx(3e-5)


def test_a_group_so_large_that_delta_reaches_one_is_promised_nothing() -> None:
    assert Claim(epsilon=8.0, delta=1e-5).of_group(3) is None
    assert Claim(epsilon=800.0, delta=1e-5).of_group(2) is None
    assert Claim(epsilon=None, delta=None).of_group(1) is None
    with pytest.raises(ConfigError, match="group_size=0"):
        Claim(epsilon=1.0, delta=0.0).of_group(0)


def test_the_curve_is_that_of_the_steps_where_they_are_all_there_is_and_of_the_pair_elsewhere() -> None:
    steps = Claim(epsilon=4.37718, delta=1e-5, noise_multiplier=2.0, sample_rate=1.0, steps=4).tradeoff
    pair = Claim(epsilon=4.37718, delta=1e-5).tradeoff
    assert steps is not None
    assert pair is not None
    assert steps(0.1) > pair(0.1) + 0.1, "the pair allows an attacker more"
    assert Claim(epsilon=None, delta=None).tradeoff is None


@pytest.mark.parametrize(
    "claim",
    [
        Claim(epsilon=720.0, delta=1e-5),
        Claim(epsilon=5e4, delta=1e-5),
        Claim(epsilon=5e4, delta=1e-5, noise_multiplier=0.02, sample_rate=0.1, steps=100),
    ],
)
def test_a_claim_so_large_that_no_float_holds_its_ratio_allows_every_attack(claim: Claim) -> None:
    assert claim.tradeoff is not None
    assert [claim.tradeoff(rate) for rate in (1e-4, 0.1)] == [0.0, 0.0]
    counts = {"false_positives": 0, "nonmembers": 500, "false_negatives": 0, "members": 500}
    assert check_claim(**counts, tradeoff=claim.tradeoff, alpha=0.05).verdict == "no_power"


def test_the_claim_of_a_run_is_read_from_its_ledger(finished_run: RunDirectory) -> None:
    claim = claim_of_release(Ledger.read(finished_run.path / LEDGER), "weights")
    assert (claim.epsilon, claim.delta, claim.adjacency, claim.unit) == (3.0, 1e-5, "add_remove", "record")
    assert claim.noise_multiplier == 1.0
    assert claim.steps is not None
    assert not claim.is_seeded
    with pytest.raises(ConfigError, match="artifact=synthetic_text"):
        claim_of_release(Ledger.read(finished_run.path / LEDGER), "synthetic_text")


@pytest.mark.parametrize("wrong", [{"mu": 0.0}, {"mu": math.inf}, {"delta": 0.0}, {"delta": 1.0}])
def test_a_gaussian_claim_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give mu above 0"):
        gaussian_epsilon(**({"mu": 1.0, "delta": 1e-5} | wrong))
