"""How the price of an output mechanism moves, alone, for groups, and together with other accesses."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safesynthdp.errors import ConfigError, LedgerMismatch
from safesynthdp.privacy import renyi
from safesynthdp.privacy.accounting import joint_epsilon
from safesynthdp.privacy.command import main
from safesynthdp.privacy.conversions import kov
from safesynthdp.privacy.joint import joint_price
from safesynthdp.privacy.ledger import Entry, Ledger, Release, is_understated, recompute, release_epsilon
from safesynthdp.privacy.losses import Adjacency, GaussianSteps
from safesynthdp.privacy.mechanisms import DPSGDMechanism, LabelHistogramMechanism, Softmax
from safesynthdp.privacy.output_conversions import gaussian_delta, gaussian_exact, rdp_curve
from safesynthdp.privacy.output_pricing import OutputMechanism, PricedOutput
from safesynthdp.privacy.output_registry import CLASSES, output_mechanism, output_mechanism_from_entry
from safesynthdp.privacy.second_opinion import refuse_contradiction

NUMBERS: dict[str, dict[str, float]] = {
    "softmax": {"clip": 1.0, "temperature": 1.0},
    "laplace": {"clip": 1.0, "scale": 1.5},
    "gaussian_l2": {"clip": 1.0, "scale": 0.8},
    "laplace_probs": {"scale": 0.6},
    "gaussian_probs": {"scale": 0.3},
    "uniform_mix": {"mixing": 0.3, "vocab_size": 300},
}
DELTA = 1e-6


def made(name: str, **changes: Any) -> OutputMechanism:
    base: dict[str, Any] = {"shards": 12, "tokens": 20, "texts_per_batch": 2, "adjacency": "null"}
    return output_mechanism(name, **(base | NUMBERS[name] | changes))


def price(mechanism: OutputMechanism, delta: float = DELTA) -> float:
    return mechanism.epsilon(delta=delta)


@pytest.mark.parametrize("name", NUMBERS)
@settings(max_examples=12)
@given(
    shards=st.integers(2, 400),
    tokens=st.integers(1, 200),
    size=st.floats(0.05, 20),
    adjacency=st.sampled_from(["null", "replace", "many"]),
    delta=st.floats(1e-9, 1e-3),
)
def test_epsilon_moves_the_right_way_in_every_parameter(
    name: str, shards: int, tokens: int, size: float, adjacency: str, delta: float
) -> None:
    numbers: dict[str, Any] = {"shards": shards, "tokens": tokens, "adjacency": adjacency}
    for key in ("scale", "temperature"):
        if key in NUMBERS[name]:
            numbers[key] = size
    base = made(name, **numbers)
    least = price(base, delta) - 1e-9
    assert price(dataclasses.replace(base, shards=shards + 3), delta) <= least + 2e-9
    assert price(dataclasses.replace(base, tokens=tokens + 5), delta) >= least
    assert price(dataclasses.replace(base, texts_per_batch=3), delta) >= least
    assert price(base, delta / 3) >= least
    known = {field.name for field in dataclasses.fields(base)}
    for key, rises in (("scale", False), ("temperature", False), ("clip", True), ("mixing", True)):
        if key in known and getattr(base, key) is not None:
            more = dataclasses.replace(base, **{key: getattr(base, key) * 1.3})
            assert (price(more, delta) >= least) if rises else (price(more, delta) <= least + 2e-9)
    if name == "uniform_mix":
        assert price(dataclasses.replace(base, vocab_size=900), delta) >= least  # type: ignore[call-arg]
    found = base.conversions(delta)
    if "kov" in found:
        assert found["kov"] <= found["pure"]
        assert found["cks_tight"] <= found["cks"] * (1 + 1e-9)
    if "rdp_curve" in found:
        assert found["rdp_curve"] <= found["cks_tight"] * (1 + 1e-7)
    assert base.rough_epsilon(delta) >= base.epsilon(delta=delta) * (1 - 1e-9)


@pytest.mark.parametrize("name", NUMBERS)
def test_doubling_tokens_or_texts_doubles_pure_epsilon_and_rho(name: str) -> None:
    base = made(name)
    for doubled in (dataclasses.replace(base, tokens=40), dataclasses.replace(base, texts_per_batch=4)):
        assert doubled.rho == pytest.approx(2 * base.rho, rel=1e-12)
        if base.pure_epsilon is not None:
            assert doubled.pure_epsilon == pytest.approx(2 * base.pure_epsilon, rel=1e-12)


@settings(max_examples=40)
@given(mu=st.floats(0.05, 60), delta=st.floats(1e-12, 0.3))
def test_the_gaussian_conversion_inverts(mu: float, delta: float) -> None:
    epsilon = gaussian_exact(mu, delta)
    if epsilon > 0:
        assert gaussian_delta(mu, epsilon) == pytest.approx(delta, rel=1e-9)
        assert gaussian_delta(mu, epsilon) <= delta * (1 + 1e-12)
    else:
        assert gaussian_delta(mu, 0.0) <= delta


@settings(max_examples=25)
@given(e=st.floats(0.01, 3), count=st.integers(1, 300), delta=st.floats(1e-10, 0.1))
def test_optimal_composition_of_pure_steps_inverts(e: float, count: int, delta: float) -> None:
    x = kov(e, count, delta)
    if x == 0:
        return
    total = 0.0
    for wins in range(count + 1):
        loss = (2 * wins - count) * e
        if loss > x:
            log_mass = (
                math.lgamma(count + 1)
                - math.lgamma(wins + 1)
                - math.lgamma(count - wins + 1)
                - wins * math.log1p(math.exp(-e))
                - (count - wins) * (e + math.log1p(math.exp(-e)))
            )
            total += math.exp(log_mass) * -math.expm1(x - loss)
    assert total == pytest.approx(delta, rel=1e-9)


def test_the_classic_gaussian_scale_is_not_enough_above_epsilon_one() -> None:
    """sigma = sqrt(2 ln(1.25/delta)) / epsilon holds below 1 only; our scales come from the exact formula."""
    epsilon, delta = 20.0, 1e-6
    sigma = math.sqrt(2 * math.log(1.25 / delta)) / epsilon
    assert gaussian_exact(1 / sigma, delta) > epsilon


def test_the_curve_never_says_less_for_a_smaller_range_that_is_split() -> None:
    assert rdp_curve(1e-3, 10**6, DELTA) <= rdp_curve(1.01e-3, 10**6, DELTA)
    assert rdp_curve(1.0, 1, DELTA) <= 1.0
    assert rdp_curve(1e-9, 1, DELTA) >= 0


@pytest.mark.parametrize("name", NUMBERS)
def test_a_group_costs_more_than_one_and_less_than_never(name: str) -> None:
    base = made(name)
    one, two = base.epsilon(delta=DELTA), min(base.group_conversions(DELTA, size=2).values())
    assert two > one
    assert min(base.group_conversions(DELTA, size=3).values()) > two
    found = base.group_conversions(DELTA, size=2)
    if base.pure_epsilon is not None:
        assert found["group_pure"] == 2 * base.pure_epsilon
    else:
        assert found["group_gaussian"] < found["group_rho"]


def test_the_group_rule_for_approximate_dp_is_the_textbook_one() -> None:
    from safesynthdp.privacy.output_conversions import group_delta_for

    found = group_delta_for(lambda d: math.log(1 / d) / 10, size=3, delta=1e-4)
    x = found / 3
    d = math.exp(-10 * x)
    assert d * math.expm1(3 * x) / math.expm1(x) == pytest.approx(1e-4, rel=1e-6)
    assert group_delta_for(lambda d: 1.0, size=2, delta=1e-4) == 2.0


# Together with other accesses.

HISTOGRAM = LabelHistogramMechanism(mechanism="laplace", scale=10.0, adjacency="add_remove")
TRAINING = DPSGDMechanism(
    num_records=120_000, expected_batch_size=4096, noise_multiplier=1.0, steps=300, per_sample_max_grad_norm=1.0
)


def priced(name: str, *, relation: Adjacency = "add_remove", **changes: Any) -> PricedOutput:
    return PricedOutput(mechanism=made(name, **changes), adjacency=relation)


@pytest.mark.parametrize("name", NUMBERS)
def test_together_costs_at_least_each_and_at_most_the_sum(name: str) -> None:
    output, other = priced(name), LabelHistogramMechanism(mechanism="laplace", scale=4.0)
    together, _ = joint_price([output, other], delta=DELTA, adjacency="add_remove")
    apart = [m.epsilon(delta=DELTA) for m in (output, other)]
    assert together >= max(apart) * (1 - 1e-6)
    assert together <= output.mechanism.epsilon(delta=DELTA / 2) + other.epsilon(delta=DELTA / 2) + 1e-6
    assert joint_price([output], delta=DELTA, adjacency="add_remove")[0] == apart[0]


def test_softmax_beside_training_is_the_smaller_of_two_bounds() -> None:
    softmax = priced("softmax", shards=40)
    rdp = renyi.epsilon([*softmax.accesses(), *TRAINING.accesses()], delta=DELTA)
    split = joint_epsilon([TRAINING], delta=DELTA / 2, adjacency="add_remove") + softmax.epsilon(delta=DELTA / 2)
    found, name = joint_price([softmax, TRAINING], delta=DELTA, adjacency="add_remove")
    assert found == min(rdp, split)
    assert name == "rdp" if rdp <= split else name.startswith("conversions and")
    assert found > TRAINING.epsilon(delta=DELTA)


def test_a_softmax_entry_is_never_free_and_never_becomes_privacy_losses() -> None:
    softmax = priced("softmax")
    assert joint_price([softmax, softmax], delta=DELTA, adjacency="add_remove")[0] > softmax.epsilon(delta=DELTA)
    with pytest.raises(ConfigError, match="no dominating pair"):
        joint_epsilon([softmax, HISTOGRAM], delta=DELTA, adjacency="add_remove")


def test_two_gaussian_outputs_compose_as_one_release_under_both_relations() -> None:
    for adjacency, relation in (("null", "add_remove"), ("replace", "replace"), ("many", "replace")):
        output = priced("gaussian_l2", relation=relation, adjacency=adjacency)  # type: ignore[arg-type]
        twice = dataclasses.replace(output.mechanism, texts_per_batch=4)
        found, _ = joint_price([output, output], delta=DELTA, adjacency=relation)  # type: ignore[arg-type]
        assert found == pytest.approx(twice.epsilon(delta=DELTA), rel=1e-3)
        assert found >= twice.epsilon(delta=DELTA) * (1 - 1e-6)
        refuse_contradiction([output, output], found, delta=DELTA, adjacency=relation)  # type: ignore[arg-type]


def test_the_second_accountant_bounds_pure_outputs_from_below() -> None:
    for name in ("laplace", "laplace_probs", "uniform_mix", "softmax"):
        output = priced(name, tokens=5)
        found, _ = joint_price([output, HISTOGRAM], delta=DELTA, adjacency="add_remove")
        refuse_contradiction([output, HISTOGRAM], found, delta=DELTA, adjacency="add_remove")


def test_a_relation_that_the_adjacency_says_nothing_about_is_refused() -> None:
    with pytest.raises(ConfigError, match="adjacency=replace"):
        priced("softmax", adjacency="replace")
    with pytest.raises(ConfigError, match="adjacency=null"):
        priced("softmax", relation="replace")


# Ledgers.


def entry(identity: str, kind: str, mechanism: Mapping[str, Any]) -> Entry:
    return Entry(id=identity, kind=kind, mechanism=dict(mechanism), randomness={"source": "os_entropy"})


SINGLE = output_mechanism("softmax", shards=1, single=True, clip=0.5, tokens=4, texts_per_batch=3, adjacency="many")
PREDICTION = output_mechanism("softmax", shards=32, clip=1.0, tokens=64, adjacency="null")
LEDGER = Ledger(
    unit="record",
    adjacency="add_remove",
    entries=(
        entry("dpsgd", "dpsgd", TRAINING.to_entry()),
        entry("counts", "label_histogram", HISTOGRAM.to_entry()),
        entry("output", "output_mechanism", SINGLE.to_entry()),
        entry("prediction", "private_prediction", PREDICTION.to_entry()),
        entry("plain", "none", {"steps": 3}),
    ),
)


def text(rule: str, *entries: str, artifact: str = "synthetic_text", epsilon: float | None = 0.0) -> Release:
    return Release(artifact=artifact, epsilon=epsilon, delta=DELTA, rule=rule, entries=entries)


def cost(*entries: str) -> float:
    found, _ = release_epsilon(LEDGER, entries, delta=DELTA)
    assert found is not None
    return found


@pytest.mark.parametrize("name", CLASSES)
def test_an_entry_read_back_is_the_mechanism_that_was_written(name: str) -> None:
    mechanism = made(name)
    entry = mechanism.to_entry()
    assert output_mechanism_from_entry(entry) == mechanism
    for key in entry:
        if key in ("temperature", "texts_per_batch", "single"):
            continue
        with pytest.raises(LedgerMismatch):
            output_mechanism_from_entry({k: v for k, v in entry.items() if k != key})
    with pytest.raises(LedgerMismatch, match="surprise"):
        output_mechanism_from_entry(entry | {"surprise": 1})
    with pytest.raises(LedgerMismatch, match="tokens"):
        output_mechanism_from_entry(entry | {"tokens": -1})


def test_text_under_the_rule_min_costs_the_smaller_of_both_guarantees() -> None:
    by_output, by_weights = SINGLE.epsilon(delta=DELTA), TRAINING.epsilon(delta=DELTA)
    assert recompute(LEDGER, text("min", "dpsgd", "output")) == min(by_output, by_weights)
    assert recompute(LEDGER, text("min", "plain", "output")) == by_output  # weights without any guarantee
    both = recompute(LEDGER, text("min", "dpsgd", "output", "counts"))
    assert both == min(cost("output", "counts"), cost("dpsgd", "counts"))
    assert both > recompute(LEDGER, text("min", "dpsgd", "output"))  # type: ignore[operator]


def test_min_needs_two_guarantees_on_one_output_never_two_accesses() -> None:
    for entries in (("dpsgd",), ("output",), ("dpsgd", "prediction"), ("dpsgd", "counts")):
        with pytest.raises(LedgerMismatch, match="rule min"):
            recompute(LEDGER, text("min", *entries))


def test_prediction_on_the_records_of_the_weights_composes() -> None:
    together = recompute(LEDGER, text("compose", "dpsgd", "prediction"))
    assert together is not None
    assert together > max(cost("dpsgd"), cost("prediction"))
    assert recompute(LEDGER, text("compose", "plain", "prediction")) is None


def test_weights_beside_a_min_claim_are_refused() -> None:
    claimed = dataclasses.replace(LEDGER, releases=(text("min", "dpsgd", "output", epsilon=99.0),))
    with pytest.raises(LedgerMismatch, match="restate the text"):
        claimed.with_release(text("compose", "dpsgd", artifact="weights", epsilon=9.0))
    restated = dataclasses.replace(LEDGER, releases=(text("post_processing", "dpsgd", epsilon=9.0),))
    assert restated.with_release(text("compose", "dpsgd", artifact="weights", epsilon=9.0))


def test_a_ledger_file_catches_an_epsilon_that_was_edited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safesynthdp.cli import run

    for release in (text("min", "dpsgd", "output"), text("compose", "prediction", "counts")):
        honest = recompute(LEDGER, release)
        assert honest is not None
        path = tmp_path / "ledger.json"
        dataclasses.replace(LEDGER, releases=(dataclasses.replace(release, epsilon=honest),)).write(path)
        assert run(main, ["ledger", str(path)]) == 0
        capsys.readouterr()
        dataclasses.replace(LEDGER, releases=(dataclasses.replace(release, epsilon=honest * 0.99),)).write(path)
        assert run(main, ["ledger", str(path)]) == 1
        assert "stored below" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "private_prediction", "mechanism": SINGLE.to_entry()}, "disjoint shards"),
        ({"kind": "output_mechanism", "mechanism": PREDICTION.to_entry()}, "one model"),
        ({"mechanism": made("softmax", adjacency="replace").to_entry()}, "adjacency=replace"),
        ({"mechanism": {**PREDICTION.to_entry(), "temperature": 0.0}}, "temperature"),
        ({"mechanism": {**PREDICTION.to_entry(), "mechanism": "heuristic"}}, "heuristic"),
    ],
)
def test_an_entry_that_cannot_be_priced_is_never_trusted(change: dict[str, Any], message: str) -> None:
    broken = dataclasses.replace(LEDGER.entry("prediction"), **change)
    with pytest.raises(LedgerMismatch, match=message):
        release_epsilon(LEDGER.replace_entry(broken), ["prediction"], delta=DELTA)


def test_one_record_a_shard_says_nothing_about_users() -> None:
    users = dataclasses.replace(LEDGER, unit="user")
    with pytest.raises(LedgerMismatch, match="unit user needs many"):
        release_epsilon(users, ["prediction"], delta=DELTA)
    many = dataclasses.replace(PREDICTION, adjacency="many")
    grouped = users.replace_entry(entry("prediction", "private_prediction", many.to_entry()))
    assert release_epsilon(grouped, ["prediction"], delta=DELTA)[0] == many.epsilon(delta=DELTA)


def test_is_understated_sees_null_and_small_numbers() -> None:
    assert is_understated(1.0, 2.0)
    assert not is_understated(None, 2.0)


def test_gaussian_steps_of_an_output_carry_the_relation_of_the_ledger() -> None:
    mechanism = made("gaussian_l2", adjacency="many")
    (add,), (replace,) = mechanism.accesses("add_remove"), mechanism.accesses("replace")
    assert isinstance(add, GaussianSteps)
    assert isinstance(replace, GaussianSteps)
    assert replace.noise_multiplier == 2 * add.noise_multiplier


@pytest.mark.slow
def test_the_second_accountant_answers_soon_however_many_steps_there_are() -> None:
    import time

    from safesynthdp.privacy.second_opinion import least_epsilon

    began = time.monotonic()
    for name in ("laplace", "laplace_probs", "gaussian_l2", "gaussian_probs", "uniform_mix", "softmax"):
        output = priced(name, tokens=100, texts_per_batch=1000)
        lower = least_epsilon(output.accesses(), delta=DELTA, adjacency="add_remove")
        assert lower <= output.epsilon(delta=DELTA) * (1 + 1e-6)
        refuse_contradiction([output], output.epsilon(delta=DELTA), delta=DELTA, adjacency="add_remove")
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(("scale", "clip"), [(1e-15, 1e15), (1e15, 1e-15)])
@pytest.mark.parametrize("name", ["softmax", "laplace", "gaussian_l2", "laplace_probs", "gaussian_probs"])
def test_the_ends_of_the_allowed_numbers_have_a_finite_price(name: str, scale: float, clip: float) -> None:
    numbers = {} if name == "softmax" else {"scale": scale}
    clips = {"clip": clip} if name in ("softmax", "laplace", "gaussian_l2") else {}
    found = output_mechanism(name, shards=10_000_000, tokens=1_000, adjacency="many", **numbers, **clips)
    for delta in (1e-6, 1e-310):
        prices = [*found.conversions(delta).values(), *found.group_conversions(delta, size=9).values()]
        assert all(math.isfinite(price) and price >= 0 for price in prices)


def test_noise_never_prices_text_beside_released_weights_whatever_the_rule_is_called() -> None:
    noise = output_mechanism("softmax", shards=1, single=True, clip=0.1, tokens=8, adjacency="many")
    entries = (
        Entry(id="none", kind="none", mechanism={}),
        Entry(id="noise", kind="output_mechanism", mechanism=noise.to_entry()),
    )
    weights = Release(artifact="weights", epsilon=None, delta=None, rule="compose", entries=("none",))
    text = Release(artifact="synthetic_text", epsilon=3.0, delta=1e-6, rule="compose", entries=("noise",))
    with pytest.raises(LedgerMismatch, match="output_mechanism alone"):
        Ledger(unit="record", adjacency="add_remove", entries=entries, releases=(weights, text))


def test_an_exchanged_record_may_change_two_shards_of_many_and_that_has_no_price() -> None:
    many = Softmax(shards=4, clip=1.0, tokens=1, adjacency="many")
    rows_RK, moved_RK = np.zeros((4, 2)), np.zeros((4, 2))
    rows_RK[:2], moved_RK[:2] = [9.0, -9.0], [-9.0, 9.0]
    ratios = np.log(many.probabilities(rows_RK, np.zeros(2)) / many.probabilities(moved_RK, np.zeros(2)))
    assert np.ptp(ratios) == pytest.approx(2 * many.eta)
    entry = Entry(id="p", kind="private_prediction", mechanism=many.to_entry())
    with pytest.raises(LedgerMismatch, match="two shards"):
        release_epsilon(Ledger(unit="record", adjacency="replace", entries=(entry,)), ["p"], delta=1e-6)
