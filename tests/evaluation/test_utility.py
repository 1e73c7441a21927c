"""What a classifier learns from synthetic text, between its floor and its ceiling."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from safesynthdp.errors import ConfigError
from safesynthdp.evaluation.direct import Promise
from safesynthdp.evaluation.downstream import Settings, parse_families, predict
from safesynthdp.evaluation.inputs import Corpora
from safesynthdp.evaluation.rows import Row, find
from safesynthdp.evaluation.utility import Result, measure_utility
from safesynthdp.evaluation.validity import measure_validity, total_variation
from safesynthdp.records import Records

Make = Callable[..., Any]


def number(value: float | None) -> float:
    """A number that must be there."""
    assert value is not None
    return value


def value(rows: list[Row], name: str, **which: Any) -> float:
    """The value of one row that must be there."""
    row = find(rows, name, **which)
    assert row is not None
    return number(row.value)


def measure(corpora: Corpora, *, families: tuple[str, ...] = ("lr", "nb"), seeds: int = 2) -> Result:
    """All utility rows."""
    return measure_utility(corpora, families=families, seeds=seeds, progress=lambda _: None)


@pytest.mark.parametrize("encoder", [None, "given"])
def test_what_embeds_stands_beside_direct_training_on_the_same_vectors(
    result: Result, corpora: Corpora, encoder: str | None
) -> None:
    def embed(texts: Sequence[str]) -> Any:
        return np.array([[float("great" in text), float("dull" in text), 1.0] for text in texts], dtype=np.float32)

    promise = Promise(epsilon=8.0, delta=1e-5, unit="record", adjacency="add_remove", source="test")
    rows = measure_utility(
        corpora, families=("nb", "emb"), seeds=1, progress=lambda _: None, promise=promise,
        settings=Settings(embed=embed if encoder else None),
    ).rows  # fmt: skip
    beside = find(rows, "accuracy", train_on="dp_direct", model="emb")
    assert beside is not None
    assert (beside.value is None) == (encoder is None)
    assert beside.value is not None or "--embedding_model" in str(beside.reason)
    assert find(result.rows, "accuracy", train_on="dp_direct", model="emb") is None, "emb was not asked for"


@pytest.fixture(scope="module")
def corpora() -> Corpora:
    """Fresh text of the right distribution in the place of S, with a baseline that has no cue."""
    rng = random.Random(0)

    def records(count: int, cue: float) -> Records:
        labels = rng.choices(["good", "bad"], k=count)
        cues = {"good": "great lovely warm superb", "bad": "dull awful weak messy"}
        words = ["film", "plot", "actor", "scene", "ending", "script", "story", "camera"]
        texts = [
            " ".join(rng.choice(cues[label].split() if rng.random() < cue else words) for _ in range(12))
            for label in labels
        ]
        ids = tuple(f"{i:x}-{count}" for i in range(count))
        return Records(texts=tuple(texts), labels=tuple(labels), record_ids=ids, label_set=("bad", "good"))

    return Corpora(
        real=records(500, 0.2), synthetic=records(150, 0.2), holdout=records(300, 0.2), baseline=records(200, 0.0)
    )


@pytest.fixture(scope="module")
def result(corpora: Corpora) -> Result:
    """All rows of it."""
    return measure(corpora)


def test_good_synthetic_text_comes_close_to_its_ceiling(result: Result) -> None:
    for model in ("lr", "nb"):
        row = find(result.rows, "accuracy", train_on="synthetic", model=model)
        assert row is not None
        assert abs(number(row.value) - number(row.ceiling)) < 0.08
        assert number(row.value) > number(row.floor) + 0.2
        assert number(row.low) < number(row.value) < number(row.high)
        ratio = find(result.rows, "accuracy_ratio", train_on="real_matched", model=model)
        assert ratio is not None
        assert number(ratio.low) < 1.05
        assert number(ratio.high) > 0.95


def test_shuffled_labels_fall_to_the_floor(result: Result) -> None:
    for model in ("lr", "nb"):
        assert value(result.rows, "accuracy", train_on="shuffled_labels", model=model) < 0.65
        assert value(result.rows, "accuracy", train_on="synthetic", model=model) > 0.8


def test_text_without_cues_falls_to_the_floor(result: Result) -> None:
    assert value(result.rows, "accuracy", train_on="base_model", model="lr") < 0.65


def test_every_row_has_a_ceiling_and_a_floor_and_says_what_it_reads(result: Result) -> None:
    for row in result.rows:
        assert row.ceiling is not None, row
        assert row.floor is not None, row
        assert "holdout" in row.reads
        assert ("real" in row.reads) == (row.train_on in ("real", "real_matched", "dp_direct")), row
        assert row.n > 0


def test_equal_n_means_the_size_of_the_synthetic_text(result: Result) -> None:
    assert result.train_sizes == {
        "synthetic": 150,
        "real": 500,
        "real_matched": 150,
        "base_model": 150,
        "shuffled_labels": 150,
    }
    matched = find(result.rows, "accuracy", train_on="real_matched", model="lr")
    assert matched is not None
    assert matched.seeds == 2


def test_a_class_absent_from_the_synthetic_text_counts_in_macro_f1(make_pairs: Make, as_records: Make) -> None:
    three = ("good", "bad", "odd")
    corpora = Corpora(
        real=as_records(make_pairs(300, seed=1, labels=three)),
        synthetic=as_records(make_pairs(200, seed=2)),
        holdout=as_records(make_pairs(240, seed=3, labels=three)),
    )
    rows = measure(corpora, families=("lr",)).rows
    assert value(rows, "recall", train_on="synthetic", model="lr", label="odd") == 0
    assert value(rows, "recall", train_on="real", model="lr", label="odd") > 0.7
    accuracy = value(rows, "accuracy", train_on="synthetic", model="lr")
    assert value(rows, "macro_f1", train_on="synthetic", model="lr") < accuracy < 0.75


def test_a_label_outside_the_set_is_a_wrong_answer_and_nothing_else(make_pairs: Make, as_records: Make) -> None:
    strange = [(text, "strange") for text, _ in make_pairs(100, seed=2)]
    corpora = Corpora(
        real=as_records(make_pairs(200, seed=1)),
        synthetic=as_records(strange),
        holdout=as_records(make_pairs(100, seed=3)),
    )
    result = measure(corpora, families=("lr",))
    assert value(result.rows, "accuracy", train_on="synthetic", model="lr") == 0
    row = find(result.rows, "accuracy", train_on="synthetic", model="lr")
    assert row is not None
    assert number(row.high) > 0.01  # all wrong is not certainty
    assert "utility: synthetic: it has one class only" in result.warnings


def test_without_a_baseline_its_rows_say_so(make_pairs: Make, as_records: Make) -> None:
    part = as_records(make_pairs(60, seed=1))
    result = measure(Corpora(real=part, synthetic=part, holdout=as_records(make_pairs(60, seed=2))), families=("nb",))
    row = find(result.rows, "accuracy", train_on="base_model", model="nb")
    assert row is not None
    assert row.value is None
    assert "--baseline" in (row.reason or "")


def test_more_synthetic_than_real_text_is_said(make_pairs: Make, as_records: Make) -> None:
    real, holdout = as_records(make_pairs(50, seed=1)), as_records(make_pairs(60, seed=2))
    result = measure(
        Corpora(real=real, synthetic=as_records(make_pairs(80, seed=3)), holdout=holdout), families=("nb",)
    )
    assert any("the ceiling is all of real" in line for line in result.warnings)
    matched = value(result.rows, "accuracy", train_on="real_matched", model="nb")
    assert matched == value(result.rows, "accuracy", train_on="real", model="nb")


def test_text_without_words_predicts_its_most_common_label() -> None:
    found = predict(["!!", "??", "..."], ["b", "a", "b"], test=["good film"], families=("lr", "nb"))
    assert found.classes == {"lr": ["b"], "nb": ["b"]}
    assert "no words" in found.problems[0]


def test_the_vocabulary_comes_from_the_training_side_only() -> None:
    texts, labels = ["good film", "bad film"] * 5, ["good", "bad"] * 5
    alone = predict(texts, labels, test=["good plot"], families=("nb",)).classes
    among = predict(texts, labels, test=["good plot"] + ["bad plot bad"] * 50, families=("nb",)).classes
    assert alone["nb"][0] == among["nb"][0] == "good"


def test_unknown_families_are_refused() -> None:
    for wrong in ("lr,bert", "", "lr,lr"):
        with pytest.raises(ConfigError, match="downstream"):
            parse_families(wrong)
    assert parse_families(" nb, lr ") == ("nb", "lr")


def test_total_variation_of_known_shares() -> None:
    assert total_variation(["a"] * 9 + ["b"], ["a", "b"]) == pytest.approx(0.4)
    assert total_variation(["a"], ["b"]) == 1


def test_validity_counts_what_is_unusable(make_pairs: Make, as_records: Make) -> None:
    synthetic = [("", "good"), (" \n", "bad"), ("a film", "good"), ("A film!", "good"), ("b film", "?")]
    corpora = Corpora(
        real=as_records(make_pairs(50, seed=1)),
        synthetic=as_records(synthetic),
        holdout=as_records([("x", "good"), ("y", "bad")]),
    )
    rows = measure_validity(corpora, seeds=2, with_labels=True)
    assert value(rows, "empty_share", train_on="synthetic") == pytest.approx(2 / 5)
    assert value(rows, "duplicate_share", train_on="synthetic", model="exact") == pytest.approx(
        2 / 5
    )  # two empty, two films
    assert value(rows, "invalid_label_share", train_on="synthetic") == pytest.approx(1 / 5)
    assert value(rows, "label_tv", train_on="synthetic") == pytest.approx((0.1 + 0.3 + 0.2) / 2)
