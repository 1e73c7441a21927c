"""A dry run predicts what a run needs and does none of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import LlamaConfig

from safesynthdp.cli import run as run_door
from safesynthdp.model_config import LoraConfig, ModelConfig
from safesynthdp.training import dry_run
from safesynthdp.training.clipping import trainable_parameters
from safesynthdp.training.command import main
from safesynthdp.training.config import FinetuneConfig

WORDS = [
    "--model.from_scratch.num_hidden_layers=2",
    "--model.from_scratch.hidden_size=64",
    '--data.labels=["a", "b"]',
    "--data.max_length=64",
    "--privacy.target_epsilon=4",
    "--privacy.target_delta=1e-3",
    "--train.expected_batch_size=8",
    "--train.max_steps=5",
]


def peak() -> int:
    """Return the most bytes this process has held; ru_maxrss would begin with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    records = tmp_path / "records.csv"
    records.write_text("text,label\n" + "".join(f"words of {i},{'ab'[i % 2]}\n" for i in range(60)))
    return [*WORDS, f"--data.train_file={records}", f"--output_dir={tmp_path / 'run'}"]


def shape_of(folder: Path, **sizes: Any) -> ModelConfig:
    """Write a config.json and nothing else: a model without weights."""
    LlamaConfig(tie_word_embeddings=False, **sizes).save_pretrained(folder)
    return ModelConfig(model_name_or_path=str(folder), dtype="bfloat16")


def only(model: ModelConfig, *, is_full: bool = False) -> FinetuneConfig:
    """Return the part of a config that the model depends on."""
    lora = LoraConfig(enabled=False) if is_full else LoraConfig(lora_r=16)
    return cast(FinetuneConfig, SimpleNamespace(model=model, lora=lora))


def test_a_dry_run_says_what_a_run_would_spend_and_writes_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_door(main, [*words, "--dry_run=true"]) == 0
    said = capsys.readouterr().out
    for part in ("frozen weights", "moments", "activations", "clipping", "5 steps", "noise multiplier", "epsilon="):
        assert part in said
    assert not (tmp_path / "run").exists()
    assert run_door(main, words) == 0
    assert said.split("noise multiplier ")[1].split(":")[0] in capsys.readouterr().out, "the run finds the same noise"


@pytest.mark.parametrize(
    ("name", "sizes", "billions"),
    [
        (
            "7b",
            {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
            6.74,
        ),
        pytest.param(
            "70b",
            {
                "hidden_size": 8192,
                "intermediate_size": 28672,
                "num_hidden_layers": 80,
                "num_attention_heads": 64,
                "num_key_value_heads": 8,
            },
            68.98,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_large_models_are_counted_without_their_weights_and_shards_make_them_fit(
    tmp_path: Path, name: str, sizes: dict[str, int], billions: float
) -> None:
    config = only(shape_of(tmp_path / name, vocab_size=32000, **sizes))
    model = dry_run.meta_model(config)
    whole = dry_run.footprint(model, rows=1, length=512, num_processes=8)
    shards = dry_run.footprint(model, rows=1, length=512, num_processes=8, sharding="frozen_base")
    base = whole.num_parameters - whole.num_trainable
    assert base / 1e9 == pytest.approx(billions, rel=2e-3)
    assert whole.frozen_weights == 2 * base
    assert whole.frozen_weights / 8 < shards.frozen_weights < whole.frozen_weights / 4
    assert whole.trained == 20 * whole.num_trainable
    assert shards.activations == whole.activations > 0
    assert peak() < 8 * 2**30, "no weight was ever held"


def test_full_shards_divide_what_is_trained_and_gather_two_layers_and_what_stands_outside_them(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = only(shape_of(tmp_path / "m", vocab_size=500, **sizes), is_full=True)
    model = dry_run.meta_model(config)
    whole = dry_run.footprint(model, rows=1, length=32, num_processes=4)
    full = dry_run.footprint(model, rows=1, length=32, num_processes=4, sharding="full")
    assert full.trained == whole.trained // 4
    layer = 4 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64)
    assert full.gathered == 2 * layer + 4 * (2 * 500 * 64 + 64)
    assert full.reduction == 4 * 500 * 64 * 5 // 4
    assert (full.activations, full.clipping) == (whole.activations, whole.clipping)


def test_activations_and_clipping_grow_with_the_micro_batch_and_weights_do_not(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = dry_run.meta_model(only(shape_of(tmp_path / "m", vocab_size=500, **sizes)))
    one, four = (dry_run.footprint(model, rows=rows, length=32) for rows in (1, 4))
    assert four.activations == pytest.approx(4 * one.activations, rel=0.05)
    assert four.clipping > one.clipping
    assert (four.frozen_weights, four.trained) == (one.frozen_weights, one.trained)
    assert one.reduction == 0, "one process reduces nothing"
    assert {p.device for p in trainable_parameters(model).values()} == {torch.device("meta")}
