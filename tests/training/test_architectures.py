"""Each architecture is exact with the engine that a run would get, or refused by name with the way out."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from safesynthdp.clippable import refuse_trainables
from safesynthdp.errors import UnsupportedLayer

ROOT = Path(__file__).parents[2]
TOLERANCE = 2e-5  # float32


def _script() -> ModuleType:
    """Return benchmarks/architectures.py, which holds the table and writes the page; nothing imports a benchmark."""
    path = ROOT / "benchmarks/architectures.py"
    spec = importlib.util.spec_from_file_location("measured_architectures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = _script()
EXPERTS = ("mixtral", "qwen3_moe", "olmoe", "llama4_text")
TIED = {"gpt2", "smollm3", "bloom", "cohere", "cohere2", "starcoder2", "mamba", "gpt_neo", "gpt_bigcode"}
FULL = [kind for kind in SCRIPT.ARCHITECTURES if kind not in (*EXPERTS, "opt")]
FEW = ("gpt2", "llama", "qwen3", "gemma2", "falcon", "gpt_neo", "cohere")


def some(kinds: list[str]) -> list[object]:
    return [pytest.param(kind, marks=() if kind in FEW else pytest.mark.slow) for kind in kinds]


@pytest.mark.parametrize("kind", some(FULL))
def test_a_full_fine_tune_is_exact_with_the_engine_that_auto_picks(kind: str) -> None:
    engine, error = SCRIPT.measure(kind, use_lora=False)
    assert error < TOLERANCE
    assert engine == ("hooks" if kind == "mamba" else "bookkeeping")


@pytest.mark.parametrize("kind", some(list(SCRIPT.ARCHITECTURES)))
def test_adapters_are_exact_with_the_engine_that_auto_picks(kind: str) -> None:
    engine, error = SCRIPT.measure(kind, use_lora=True)
    assert error < TOLERANCE
    assert engine == "bookkeeping"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["hooks", "ghost"])
@pytest.mark.parametrize("kind", list(SCRIPT.ARCHITECTURES))
@pytest.mark.parametrize("use_lora", [True, False])
def test_an_opacus_engine_is_exact_or_refuses_by_name(kind: str, engine: str, use_lora: bool) -> None:
    refused = {"gemma", "gemma2", "gemma3_text", "falcon", "opt", *EXPERTS} | (TIED if engine == "ghost" else set())
    if use_lora or kind not in refused:
        assert SCRIPT.measure(kind, use_lora=use_lora, clipping_engine=engine)[1] < TOLERANCE
        return
    with pytest.raises(UnsupportedLayer, match=r"use (bookkeeping|LoRA)"):
        SCRIPT.measure(kind, use_lora=use_lora, clipping_engine=engine)


@pytest.mark.parametrize("kind", EXPERTS)
def test_experts_are_refused_by_path_and_adapters_on_them_too(kind: str) -> None:
    with pytest.raises(UnsupportedLayer, match=r"model\.layers\.0\.\w+ \(\w+\) routes tokens across records; use LoRA"):
        SCRIPT.measure(kind, use_lora=False)
    with pytest.raises(UnsupportedLayer, match=r"lora_.* belongs to experts.*lora\.target_modules=\["):
        SCRIPT.measure(kind, use_lora=True, target_modules="all-linear")


def test_experts_of_an_unknown_kind_are_refused_with_adapters_as_well() -> None:
    SCRIPT.ARCHITECTURES["granitemoe"] = SCRIPT.ARCHITECTURES["mixtral"]
    for use_lora in (False, True):
        with pytest.raises(UnsupportedLayer, match=r"routes tokens across records; choose a dense model"):
            SCRIPT.measure("granitemoe", use_lora=use_lora)
    del SCRIPT.ARCHITECTURES["granitemoe"]


def test_layers_that_flatten_records_are_refused_in_full_and_by_name_under_adapters() -> None:
    with pytest.raises(UnsupportedLayer, match=r"model \(opt\) cannot be trained in full.*lora\.target_modules"):
        SCRIPT.measure("opt", use_lora=False)
    with pytest.raises(UnsupportedLayer, match=r"fc\d\.lora_.* sees \d+ rows in a batch of 3.*lora\.target_modules"):
        SCRIPT.measure("opt", use_lora=True, target_modules="all-linear")


@pytest.mark.parametrize(
    ("kind", "engine", "named"),
    [
        ("falcon", "hooks", r"clipping_engine=hooks cannot train model \(falcon\) in full.*use bookkeeping"),
        ("gemma2", "hooks", r"embed_tokens \(Gemma2TextScaledWordEmbedding\).*use LoRA"),
        ("mamba", "bookkeeping", r"mixer\.A_log \(MambaMixer\) has no rule.*use hooks"),
        ("gpt2", "ghost", r"wte\.weight and lm_head\.weight are one tied parameter.*use bookkeeping"),
    ],
)
def test_an_engine_that_cannot_says_which_can(kind: str, engine: str, named: str) -> None:
    with pytest.raises(UnsupportedLayer, match=named):
        SCRIPT.measure(kind, use_lora=False, clipping_engine=engine)


def test_batch_norm_is_refused_by_path() -> None:
    from safesynthdp.clippable import refuse_model

    model = SCRIPT.build("llama", use_lora=False)
    model.model.extra = nn.BatchNorm1d(4)
    with pytest.raises(UnsupportedLayer, match=r"model\.extra \(BatchNorm1d\) mixes the records"):
        refuse_model(model, use_lora=False)


def test_what_is_trained_in_another_precision_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False)).to(torch.bfloat16)
    with pytest.raises(UnsupportedLayer, match=r"0\.weight is torch\.bfloat16"):
        refuse_trainables(model)


def test_the_page_names_every_architecture_that_is_measured_and_no_other() -> None:
    page = (ROOT / "docs/howto/architectures.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")]
    assert rows[1:] == list(SCRIPT.ARCHITECTURES)
