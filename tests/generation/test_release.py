"""Synthetic text never claims less than its weights and its label mix cost together."""

import dataclasses
from collections.abc import Callable

import pytest

from safesynthdp.errors import LedgerMismatch, UserError
from safesynthdp.generation.labels import LabelShares
from safesynthdp.generation.release import sample_ledger, sentence, untuned_ledger
from safesynthdp.privacy.ledger import Ledger, recompute_all

MakeLedger = Callable[..., Ledger]


def mix(source: str) -> LabelShares:
    return LabelShares(labels=("a", "b"), shares=(0.5, 0.5), source=source)


@pytest.mark.parametrize("source", ["uniform", "discrete_laplace"])
def test_text_costs_what_the_weights_cost_when_they_were_priced_with_the_counts(
    make_ledger: MakeLedger, source: str
) -> None:
    run = make_ledger(mode="dp", histogram="with weights")
    ledger = sample_ledger(run, mix(source))
    (text,), (weights,) = ledger.releases, run.releases
    assert text == dataclasses.replace(weights, artifact="synthetic_text", rule="post_processing")
    assert ledger.entries == run.entries


def test_counts_that_were_not_priced_with_the_weights_are_composed(make_ledger: MakeLedger) -> None:
    run = make_ledger(mode="dp", histogram="apart")
    (text,) = sample_ledger(run, mix("discrete_laplace")).releases
    together = make_ledger(mode="dp", histogram="with weights").releases[0]
    assert text.rule == "compose"
    assert text.entries == ("dpsgd", "counts")
    assert text.epsilon == together.epsilon
    assert text.epsilon is not None
    assert run.releases[0].epsilon is not None
    assert text.epsilon > run.releases[0].epsilon


def test_equal_shares_cost_nothing_beside_the_weights(make_ledger: MakeLedger) -> None:
    run = make_ledger(mode="dp", histogram="apart")
    (text,) = sample_ledger(run, mix("uniform")).releases
    assert (text.epsilon, text.entries) == (run.releases[0].epsilon, ("dpsgd",))


@pytest.mark.parametrize("histogram", [None, "apart", "with weights"])
def test_every_release_can_be_recomputed_from_its_own_file(make_ledger: MakeLedger, histogram: str | None) -> None:
    shares = mix("uniform" if histogram is None else "discrete_laplace")
    for release, epsilon in recompute_all(sample_ledger(make_ledger(mode="dp", histogram=histogram), shares)):
        assert release.epsilon == epsilon


@pytest.mark.parametrize("source", ["discrete_laplace", "exact", "anything else"])
def test_a_label_mix_nobody_paid_for_is_refused(make_ledger: MakeLedger, source: str) -> None:
    with pytest.raises(LedgerMismatch, match="--labels uniform"):
        sample_ledger(make_ledger(mode="dp", histogram=None), mix(source))


def test_exact_counts_beside_a_guarantee_are_refused_even_if_noisy_ones_were_paid(make_ledger: MakeLedger) -> None:
    with pytest.raises(LedgerMismatch, match="does not pay"):
        sample_ledger(make_ledger(mode="dp", histogram="with weights"), mix("exact"))


@pytest.mark.parametrize("source", ["exact", "uniform"])
def test_a_run_without_privacy_gives_text_without_a_guarantee(make_ledger: MakeLedger, source: str) -> None:
    ledger = sample_ledger(make_ledger(mode="none", histogram=None), mix(source))
    assert ledger.releases[0].epsilon is None
    assert sentence(ledger) == "no formal guarantee"


def test_a_run_that_states_too_small_an_epsilon_is_not_inherited_from(make_ledger: MakeLedger) -> None:
    run = make_ledger(mode="dp", histogram=None)
    epsilon = run.releases[0].epsilon
    assert epsilon is not None
    small = dataclasses.replace(run.releases[0], epsilon=epsilon * 0.99)
    with pytest.raises(LedgerMismatch, match="smaller epsilon"):
        sample_ledger(dataclasses.replace(run, releases=(small,)), mix("uniform"))


def test_weights_that_leave_out_their_training_are_not_inherited_from(make_ledger: MakeLedger) -> None:
    run = make_ledger(mode="dp", histogram="with weights")
    partly = dataclasses.replace(run.releases[0], entries=("counts",))
    with pytest.raises(LedgerMismatch, match="leave out entry dpsgd"):
        sample_ledger(dataclasses.replace(run, releases=(partly,)), mix("uniform"))


def test_a_run_that_released_nothing_is_refused(make_ledger: MakeLedger) -> None:
    run = dataclasses.replace(make_ledger(mode="dp", histogram=None), releases=())
    with pytest.raises(UserError, match="finish the run"):
        sample_ledger(run, mix("uniform"))


@pytest.mark.parametrize("is_public", [True, False])
def test_untuned_text_costs_nothing_and_says_where_its_labels_come_from(is_public: bool) -> None:
    ledger = untuned_ledger(unit="record", adjacency="add_remove", delta=1e-5, label_set_is_public=is_public)
    assert ledger.entries == ()
    assert recompute_all(ledger) == [(ledger.releases[0], 0.0)]
    assert any("label set" in line for line in ledger.releases[0].not_covered) is not is_public


def test_epsilon_is_rounded_up_for_people_and_a_seeded_run_is_marked(make_ledger: MakeLedger) -> None:
    ledger = sample_ledger(make_ledger(mode="dp", histogram=None), mix("uniform"))
    epsilon = ledger.releases[0].epsilon
    assert epsilon is not None
    said = float(sentence(ledger).split()[0].removeprefix("epsilon="))
    assert epsilon <= said < epsilon + 1e-4
    seeded = dataclasses.replace(ledger.entries[0], randomness={"source": "unsafe_seed", "seeded": True})
    assert "no guarantee against whoever knows the seed" in sentence(ledger.replace_entry(seeded))
    assert "seed" not in sentence(ledger)
