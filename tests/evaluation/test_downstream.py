"""Every family learns what can be learnt, from the training side only, the same each time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from safesynthdp.errors import ConfigError
from safesynthdp.evaluation.downstream import FAMILIES, Settings, predict
from safesynthdp.evaluation.inputs import Corpora
from safesynthdp.evaluation.rows import find
from safesynthdp.evaluation.training_sets import make_training_sets
from safesynthdp.evaluation.utility import measure_utility

Make = Callable[..., Any]
WITHOUT_FILES = ("lr", "nb", "svm", "rf", "emb", "gru", "cnn")


def accuracy(family: str, train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]], **more: Any) -> float:
    """Share of right answers."""
    texts, labels = zip(*train, strict=True)
    found = predict(texts, labels, test=[text for text, _ in test], families=(family,), **more)
    return float(np.mean([said == label for said, (_, label) in zip(found.classes[family], test, strict=True)]))


@pytest.fixture(autouse=True)
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safesynthdp.evaluation.downstream_neural.MIN_STEPS", 30)
    monkeypatch.setattr("safesynthdp.evaluation.downstream_neural.NUM_EPOCHS", 6)
    monkeypatch.setattr("safesynthdp.evaluation.downstream_neural.BATCH", 32)
    monkeypatch.setattr("safesynthdp.evaluation.downstream_sparse.NUM_TREES", 40)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow) if name in ("gru", "cnn") else name for name in WITHOUT_FILES]
)
def test_a_family_learns_from_labels_and_not_from_shuffled_ones(family: str, make_pairs: Make) -> None:
    train, test = make_pairs(200, seed=1), make_pairs(150, seed=2)
    assert accuracy(family, train, test) > 0.85
    labels = [label for _, label in make_pairs(200, seed=9)]  # as many of each, on the wrong texts
    assert accuracy(family, [(text, label) for (text, _), label in zip(train, labels, strict=True)], test) < 0.75


@pytest.mark.parametrize("family", WITHOUT_FILES)
def test_hostile_texts_and_a_class_with_one_record_do_not_stop_a_family(family: str, make_pairs: Make) -> None:
    hostile = [("", "good"), ("!!", "bad"), ("x" * 300_000, "good"), ("\ud800 \x00", "bad"), ("a b c", "rare")]
    texts, labels = zip(*make_pairs(60, seed=1), *hostile, strict=True)
    found = predict(texts, labels, test=["", "great film", "\U0001f600" * 50_000], families=(family,))
    assert len(found.classes[family]) == 3


def test_a_network_is_the_same_for_the_same_seed_and_leaves_the_generator_alone(
    make_pairs: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr("safesynthdp.evaluation.downstream_neural.MIN_STEPS", 3)
    monkeypatch.setattr("safesynthdp.evaluation.downstream_neural.NUM_EPOCHS", 1)
    texts, labels = zip(*make_pairs(30, seed=1), strict=True)
    test = [text for text, _ in make_pairs(60, seed=2, cue=0.05)]
    before = torch.get_rng_state()
    runs = [predict(texts, labels, test=test, families=("cnn", "gru"), seed=seed).classes for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert torch.equal(before, torch.get_rng_state())


def test_without_an_encoder_emb_says_what_it_reads_and_with_one_it_reads_that(make_pairs: Make) -> None:
    texts, labels = zip(*make_pairs(60, seed=1), strict=True)
    assert "SVD" in predict(texts, labels, test=["x"], families=("emb",)).problems[0]

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([[1.0, "great" in text] for text in texts], dtype=np.float32)

    own = [("great", "good"), ("poor", "bad")] * 5
    found = predict(*zip(*own, strict=True), test=["a great x", "y"], families=("emb",), settings=Settings(embed=embed))
    assert found.classes["emb"] == ["good", "bad"]
    assert found.problems == ()


@pytest.fixture
def tiny_encoder(tmp_path: Path) -> str:
    """A pretrained encoder that knows nothing, as files."""
    import torch
    from transformers import BertConfig, BertModel, ByT5Tokenizer

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=259, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=512, pad_token_id=0,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "encoder")
    ByT5Tokenizer(extra_ids=0).save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


def test_an_encoder_from_a_folder_is_fine_tuned(
    tiny_encoder: str, make_pairs: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safesynthdp.evaluation.downstream_encoder.LEARNING_RATE", 3e-3)
    train = [("aaaa", "good"), ("zzzz", "bad")] * 40
    assert accuracy("encoder", train, train[:10], settings=Settings(encoder=tiny_encoder)) == 1
    with pytest.raises(ConfigError, match="downstream_encoder=/nowhere"):
        accuracy("encoder", train, train[:2], settings=Settings(encoder="/nowhere"))


def test_a_cap_makes_seeds_draw_samples_and_is_said(make_pairs: Make, as_records: Make) -> None:
    corpora = Corpora(
        real=as_records(make_pairs(400, seed=1)),
        synthetic=as_records(make_pairs(300, seed=2)),
        holdout=as_records(make_pairs(200, seed=3)),
    )
    settings = Settings(max_train_records=100)
    (synthetic, *_) = make_training_sets(corpora)
    assert synthetic.num_draws("lr", seeds=3, settings=settings) == 3
    assert synthetic.num_draws("lr", seeds=3, settings=Settings()) == 1
    assert synthetic.num_draws("rf", seeds=3, settings=Settings()) == 3
    assert len(synthetic.draw(0, at_most=100)[0]) == 100
    assert synthetic.draw(0, at_most=100) != synthetic.draw(1, at_most=100)
    result = measure_utility(corpora, families=("nb", "rf"), seeds=3, progress=lambda _: None, settings=settings)
    row = find(result.rows, "accuracy", train_on="synthetic", model="nb")
    assert row is not None
    assert (row.seeds, row.n) == (3, 100)
    assert any("nb 100, rf 25" in line for line in result.warnings)
    assert any("random part of the holdout" in line for line in result.warnings)


def test_every_family_says_what_it_is() -> None:
    assert set(FAMILIES) == {*WITHOUT_FILES, "encoder"}
