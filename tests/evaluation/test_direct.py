"""Direct DP training: what it may move, what it adds, and that it is worth something."""

import math
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safesynthdp.errors import ConfigError, LedgerMismatch
from safesynthdp.evaluation import direct_regression as regression
from safesynthdp.evaluation.direct import Promise, predict_directly, predict_embedded_directly, promise_of
from safesynthdp.evaluation.direct_bayes import NaiveBayesMechanism, analytic_gaussian, classify, count_table
from safesynthdp.evaluation.hashed_words import hashed_words, unit_rows
from safesynthdp.evaluation.inputs import Input
from safesynthdp.privacy.accounting import find_noise_multiplier
from safesynthdp.privacy.ledger import Entry, Ledger, Release
from safesynthdp.privacy.losses import Adjacency
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.records import Records
from safesynthdp.training.units import Units

Make = Callable[..., Any]
FEATURES = 64
TEXTS = st.lists(st.text(alphabet="abcdef ", max_size=30), min_size=1, max_size=6)


def table(texts: list[str], classes: list[int], units: list[tuple[int, ...]] | None = None) -> Any:
    """The sums without noise of three classes."""
    features = unit_rows(hashed_words(texts, num_features=FEATURES), num_features=FEATURES)
    members = units or [(i,) for i in range(len(texts))]
    return count_table(features, np.array(classes), members, 3)


def mechanism(adjacency: Adjacency = "add_remove", epsilon: float = 1.0) -> NaiveBayesMechanism:
    """Naive Bayes at delta 1e-5."""
    return NaiveBayesMechanism(epsilon=epsilon, delta=1e-5, adjacency=adjacency)


@given(texts=TEXTS, data=st.data())
@settings(max_examples=60)
def test_one_record_moves_the_table_by_no_more_than_its_sensitivity(texts: list[str], data: st.DataObject) -> None:
    classes = data.draw(st.lists(st.integers(-1, 3), min_size=len(texts), max_size=len(texts)))
    with_all, without = table(texts, classes), table([*texts[1:], ""], [*classes[1:], -1])
    assert np.linalg.norm(with_all - without) <= mechanism().sensitivity
    other = data.draw(st.text(alphabet="abcdef ", max_size=30)), data.draw(st.integers(0, 2))
    replaced = table([other[0], *texts[1:]], [other[1], *classes[1:]])
    assert np.linalg.norm(with_all - replaced) <= mechanism("replace").sensitivity


def test_the_sensitivities_are_those_of_the_design_and_are_reached() -> None:
    assert mechanism().sensitivity == pytest.approx(1.118, abs=1e-3)
    assert mechanism("replace").sensitivity == pytest.approx(1.581, abs=1e-3)
    moved = np.linalg.norm(table(["a"], [0]) - table(["a"], [1]))
    assert moved == pytest.approx(mechanism("replace").sensitivity)


def test_a_user_moves_the_table_no_more_than_a_record_however_many_records_it_has() -> None:
    texts, classes = ["a b", "c", "d e f", "a", "b"] * 4, [0, 1, 2, 0, 0] * 4
    one_user = table(texts, classes, [tuple(range(20))])
    assert np.linalg.norm(one_user) <= mechanism().sensitivity
    same = table(["a b"] * 20, [0] * 20, [tuple(range(20))])
    assert np.linalg.norm(same) == pytest.approx(mechanism().sensitivity)


def test_a_label_outside_the_public_list_adds_nothing() -> None:
    assert not table(["a b", "c"], [-1, 3]).any()


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 50.0])
def test_the_noise_is_what_an_independent_accountant_asks_for(epsilon: float) -> None:
    ours = analytic_gaussian(epsilon=epsilon, delta=1e-5)
    theirs = find_noise_multiplier(
        target_epsilon=epsilon, delta=1e-5, sample_rate=1.0, steps=1, accountant="pld", adjacency="add_remove"
    )
    assert ours == pytest.approx(theirs, rel=3e-3)


def test_the_noise_that_is_drawn_has_the_standard_deviation_that_is_priced() -> None:
    zeros = np.zeros((3, 4001))
    drawn = mechanism().release(zeros, keys=StepKeys.from_unsafe_seed(1))
    assert drawn.std() == pytest.approx(1.118 * 3.731, rel=0.03)
    assert (drawn != mechanism().release(zeros, keys=StepKeys.from_unsafe_seed(2))).any()


def test_without_a_promise_there_is_no_noise_to_choose() -> None:
    for epsilon, delta in ((0.0, 1e-5), (math.inf, 1e-5), (1.0, 0.0)):
        with pytest.raises(ConfigError, match="dp_direct_epsilon"):
            analytic_gaussian(epsilon=epsilon, delta=delta)


def test_naive_bayes_learns_from_an_exact_table() -> None:
    texts = ["good good film", "bad film", "odd film"] * 20
    found = table(texts, [0, 1, 2] * 20)
    test = unit_rows(hashed_words(["good", "bad", "odd"], num_features=FEATURES), num_features=FEATURES)
    assert classify(found, test).tolist() == [0, 1, 2]


def hashed() -> tuple[Any, list[Any]]:
    """A model of words, and 40 records of one to five of them."""
    return regression.HashedRegression(FEATURES, 3), [np.arange(1 + i % 5, dtype=np.int64) for i in range(40)]


def embedded() -> tuple[Any, list[Any]]:
    """A model of vectors, and 40 of length 1, among them one that is unlike all others."""
    vectors = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    vectors[6] = -1
    return regression.EmbeddedRegression(5, 3), list(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


@pytest.mark.parametrize("make", [hashed, embedded])
def test_one_record_moves_a_private_step_by_no_more_than_the_clip(
    make: Callable[[], tuple[Any, list[Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights after one noiseless step, with and without one record."""
    classes = np.array([i % 3 for i in range(40)])
    monkeypatch.setattr(regression, "STEPS", 1)
    full = regression.make_mechanism(epsilon=4.0, delta=1e-5, adjacency="add_remove", num_units=40)
    monkeypatch.setattr(regression, "add_noise", lambda *args, **kwargs: None)
    after = list[Any]()
    for labels in (classes, np.where(np.arange(40) == 6, regression.IGNORED, classes)):
        model, rows = make()
        regression.train(
            model, rows, labels, Units(members=tuple((i,) for i in range(40))), mechanism=full,
            learning_rate=1.0, keys=StepKeys.from_unsafe_seed(0),
        )  # fmt: skip
        after.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))
    assert 6 in full.draw_batch(step=0, keys=StepKeys.from_unsafe_seed(0))  # else the test compares nothing
    moved = float((after[0] - after[1]).norm()) * full.expected_batch_size
    assert 0 < moved <= regression.CLIP


def test_the_price_of_the_regression_is_the_promise() -> None:
    relations: tuple[Adjacency, ...] = ("add_remove", "replace")
    for adjacency in relations:
        found = regression.make_mechanism(epsilon=2.0, delta=1e-5, adjacency=adjacency, num_units=500)
        assert 1.9 < found.epsilon(delta=1e-5) <= 2.0


def test_noise_reaches_every_weight_and_padding_weighs_nothing() -> None:
    model = regression.HashedRegression(FEATURES, 2)
    torch.nn.init.normal_(model.table.weight)
    short, long = np.array([3], dtype=np.int64), np.arange(9, dtype=np.int64)
    alone, beside = model([short]), model([short, long])[:1]
    assert torch.allclose(alone, beside, atol=1e-6)


@pytest.fixture
def pairs() -> tuple[Records, Records]:
    """A large training set and a holdout whose label is a word."""
    rng = random.Random(0)

    def records(count: int) -> Records:
        labels = [rng.choice(["bad", "good"]) for _ in range(count)]
        texts = [f"{label} film {rng.choice('abcdefgh')}" for label in labels]
        ids = tuple(f"{count}-{i}" for i in range(count))
        return Records(texts=tuple(texts), labels=tuple(labels), record_ids=ids, label_set=("bad", "good"))

    return records(3000), records(200)


def accuracy(records: tuple[Records, Records], epsilon: float, *, classes: tuple[str, ...] = ("bad", "good")) -> Any:
    """Accuracy of each model, mean over two draws of the noise."""
    real, holdout = records
    promise = Promise(epsilon=epsilon, delta=1e-5, unit="record", adjacency="add_remove", source="test")
    found = predict_directly(real, holdout.texts, classes, promise=promise, seeds=2, progress=lambda _: None)
    truth = np.array([classes.index(label) for label in holdout.labels])
    return {model: np.mean([(said == truth).mean() for said in draws]) for model, draws in found.items()}


def test_direct_training_learns_at_a_large_epsilon_and_nothing_at_a_tiny_one(pairs: tuple[Records, Records]) -> None:
    assert min(accuracy(pairs, 8.0).values()) > 0.95
    assert max(accuracy(pairs, 0.001).values()) < 0.9


def embedded_accuracy(records: tuple[Records, Records], epsilon: float, *, max_records: int = 20_000) -> float:
    """Accuracy on vectors that tell the label from the first letter, mean over eight draws of the noise."""
    real, holdout = records
    promise = Promise(epsilon=epsilon, delta=1e-5, unit="record", adjacency="add_remove", source="test")
    found = predict_embedded_directly(
        real, holdout.texts, ("bad", "good"), embed=first_letter, max_records=max_records, promise=promise, seeds=8,
        progress=lambda _: None,
    )  # fmt: skip
    truth = np.array([("bad", "good").index(label) for label in holdout.labels])
    return float(np.mean([(said == truth).mean() for said in found]))


def first_letter(texts: Sequence[str]) -> Any:
    """A public encoder."""
    return np.array([[1.0, 0.0] if text.startswith("good") else [0.0, 1.0] for text in texts], dtype=np.float32)


def test_direct_training_on_vectors_learns_at_a_large_epsilon_and_nothing_at_a_tiny_one(
    pairs: tuple[Records, Records],
) -> None:
    assert embedded_accuracy(pairs, 8.0) > 0.95
    assert embedded_accuracy(pairs, 0.0005) < 0.9


def test_of_too_many_records_each_stays_or_goes_by_its_own_text(
    pairs: tuple[Records, Records], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[list[str]]()

    def encoder(texts: Sequence[str]) -> Any:
        seen.append(list(texts))
        return np.ones((len(texts), 2), dtype=np.float32)

    monkeypatch.setattr(sys.modules[__name__], "first_letter", encoder)
    real, holdout = pairs
    unlike = Records(
        texts=tuple(f"{text} {i}" for i, text in enumerate(real.texts)), labels=real.labels,
        record_ids=real.record_ids, label_set=real.label_set,
    )  # fmt: skip
    for train in (unlike, unlike.select(range(1, 3000))):
        embedded_accuracy((train, holdout), 8.0, max_records=1000)
    all_but_one, kept = seen[2], seen[0]
    assert 900 < len(kept) < 1100
    assert set(all_but_one) >= set(kept) - {unlike.texts[0]}, "no other record was driven out"


def test_a_user_unit_without_user_ids_is_refused(pairs: tuple[Records, Records]) -> None:
    promise = Promise(epsilon=1.0, delta=1e-5, unit="user", adjacency="add_remove", source="test")
    with pytest.raises(ConfigError, match="user"):
        predict_directly(pairs[0], ["x"], ("bad", "good"), promise=promise, seeds=1, progress=lambda _: None)


def sample(path: Path | None, records: Records) -> Input:
    """The synthetic input, from a run if there is a path."""
    run = None if path is None else cast(Any, SimpleNamespace(path=path))
    return Input(name="sample", num_read=len(records), records=records, run=run)


def ledger(path: Path, **release: Any) -> None:
    """A ledger with one training and one release of text."""
    numbers = {
        "num_records": 1000, "expected_batch_size": 100, "noise_multiplier": 1.0, "steps": 50,
        "per_sample_max_grad_norm": 1.0, "accountant": "pld", "sample_rate": 0.1,
    }  # fmt: skip
    data = {"fingerprint": "x", "num_records": 1000, "num_records_is_public": True}
    entry = Entry(
        id="e", kind="dpsgd", mechanism=numbers, data=data, randomness={"source": "os", "seeded": False}, parents=()
    )
    facts: dict[str, Any] = {"artifact": "synthetic_text", "delta": 1e-5, "rule": "post_processing", "entries": ("e",)}
    facts |= {"accountant": {"name": "pld", "version": "1"}} | release
    found = Ledger(unit="record", adjacency="add_remove", entries=(entry,), releases=(Release(**facts),))
    found.write(path / "ledger.json")


def test_the_budget_is_read_from_the_ledger_of_the_sample(tmp_path: Path, pairs: tuple[Records, Records]) -> None:
    ledger(tmp_path, epsilon=9.0)
    found = promise_of(sample(tmp_path, pairs[1]), epsilon=None, delta=1e-5, adjacency="replace")
    assert isinstance(found, Promise)
    assert (found.epsilon, found.delta, found.unit, found.adjacency) == (9.0, 1e-5, "record", "add_remove")


def test_a_ledger_that_promises_too_much_is_refused(tmp_path: Path, pairs: tuple[Records, Records]) -> None:
    ledger(tmp_path, epsilon=0.5)
    with pytest.raises(LedgerMismatch, match="below what its entries cost"):
        promise_of(sample(tmp_path, pairs[1]), epsilon=None, delta=1e-5, adjacency="replace")


def test_without_a_budget_the_reason_is_said(tmp_path: Path, pairs: tuple[Records, Records]) -> None:
    ledger(tmp_path, epsilon=None, delta=None)
    for given_input, reason in (
        (sample(None, pairs[1]), "without a ledger"),
        (sample(tmp_path, pairs[1]), "no formal"),
    ):
        found = promise_of(given_input, epsilon=None, delta=1e-5, adjacency="add_remove")
        assert isinstance(found, str)
        assert reason in found
    own = promise_of(sample(None, pairs[1]), epsilon=3.0, delta=1e-6, adjacency="replace")
    assert isinstance(own, Promise)
    assert (own.epsilon, own.delta, own.adjacency) == (3.0, 1e-6, "replace")


@pytest.mark.slow
def test_naive_bayes_gives_the_reference_numbers_on_vader() -> None:
    from safesynthdp.records import DataConfig, load_split

    split = load_split(DataConfig(builtin="vader"))
    classes = tuple(sorted(set(split.holdout.labels)))
    for epsilon, least in ((1.0, 0.70), (2.0, 0.77), (4.0, 0.79), (8.0, 0.83)):
        found = accuracy((split.train, split.holdout), epsilon, classes=classes)
        assert least < found["nb"] < least + 0.05
        assert found["lr"] > 0.74
