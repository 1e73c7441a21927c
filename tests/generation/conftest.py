"""A two-layer random Llama with the byte tokenizer, and a run directory as training leaves it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

from safesynthdp.models import LoadedModel, PromptTemplate
from safesynthdp.privacy.ledger import Entry, Ledger, Release, release_epsilon
from safesynthdp.privacy.mechanisms import DPSGDMechanism, LabelHistogramMechanism
from safesynthdp.privacy.storage import write_json
from safesynthdp.runs import CHECKPOINT, LEDGER, RunDirectory

EOS = 1


def tiny_llama() -> LlamaForCausalLM:
    """In float64, so that no draw falls into the rounding; weights large enough for texts to differ."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    model: LlamaForCausalLM = LlamaForCausalLM(config).double()
    model.train(False)
    return model


@pytest.fixture(scope="session")
def model() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture
def fresh_model() -> LlamaForCausalLM:
    """One that a test may change."""
    return tiny_llama()


@pytest.fixture
def load() -> Callable[[LlamaForCausalLM], LoadedModel]:
    def loaded(model: LlamaForCausalLM) -> LoadedModel:
        return LoadedModel(
            model=model,
            tokenizer=ByT5Tokenizer(extra_ids=0),
            template=PromptTemplate(),
            max_length=40,
            eos_token_id=EOS,
            label_set=("bad", "good"),
        )

    return loaded


HISTOGRAM = LabelHistogramMechanism.from_epsilon(0.1, adjacency="add_remove")
TRAINING = DPSGDMechanism(
    num_records=1000,
    expected_batch_size=50,
    noise_multiplier=1.0,
    steps=20,
    per_sample_max_grad_norm=1.0,
    accountant="pld",
    adjacency="add_remove",
)


def a_ledger(*, mode: str, histogram: str | None) -> Ledger:
    """As training writes it; ``histogram`` is released with the weights, apart from them, or not at all."""
    dp = mode == "dp"
    training = Entry(
        id="dpsgd",
        kind="dpsgd" if dp else "none",
        mechanism=TRAINING.to_entry() if dp else {"steps": 20},
        data={"fingerprint": "f" * 64, "num_records": 1000, "num_records_is_public": True},
        randomness={"source": "os_entropy", "seeded": False},
    )
    ledger = Ledger(unit="record", adjacency="add_remove", entries=(training,))
    if histogram is not None:
        entry = Entry(
            id="counts", kind="label_histogram", mechanism=HISTOGRAM.to_entry(), data=training.data, randomness={}
        )
        ledger = ledger.with_entry(entry)
    entries = ("dpsgd", "counts") if histogram == "with weights" else ("dpsgd",)
    epsilon, accountant = release_epsilon(ledger, entries, delta=1e-5)
    release = Release(
        artifact="weights",
        epsilon=epsilon,
        delta=1e-5,
        rule="compose",
        entries=entries,
        accountant=accountant,
        not_covered=("something",),
    )
    return ledger.with_release(release)


@pytest.fixture
def make_ledger() -> Callable[..., Ledger]:
    return a_ledger


@pytest.fixture
def make_run(tmp_path: Path, model: LlamaForCausalLM) -> Callable[..., RunDirectory]:
    """A finished fine-tuning run on disk, with random weights."""

    def made(*, mode: str = "dp", histogram: str | None = "with weights", finish: bool = True) -> RunDirectory:
        config = {
            "model": {"from_scratch": {"hidden_size": 64, "num_attention_heads": 4}, "dtype": "float32"},
            "data": {"prompt_template": None, "max_length": 24},
            "privacy": {"mode": mode, "unit": "record", "adjacency": "add_remove", "target_delta": 1e-5},
            "train": {"seed": 0},
        }
        run = RunDirectory.create(tmp_path / "run", kind="finetune", config=config)
        run.update(data={"label_set": ["bad", "good", "so so"], "label_set_is_public": True})
        run.begin()
        content = {"labels": ["bad", "good", "so so"], "noisy_counts": [5, 3, 0], "shares": [0.625, 0.375, 0.0]}
        if histogram is not None:
            source = "discrete_laplace" if mode == "dp" else "exact"
            write_json(run.path / "label_histogram.json", content | {"source": source})
        if finish:
            a_ledger(mode=mode, histogram=histogram if mode == "dp" else None).write(run.path / LEDGER)
            model.save_pretrained(run.path / CHECKPOINT)
            run.finish()
        return run

    return made
