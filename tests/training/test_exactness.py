"""Every engine gives the clipped sum that a loop over single unpadded records gives, by plain autograd."""

import math
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from safesynthdp.errors import UnsupportedLayer
from safesynthdp.training import bookkeeping, layer_gradients
from safesynthdp.training.bookkeeping import BookkeepingEngine
from safesynthdp.training.clipping import trainable_parameters
from safesynthdp.training.examples import collate
from safesynthdp.training.loss import record_losses

FULL = ("gpt2, tied", "gpt2, untied", "llama", "llama, tied", "qwen3", "gemma3", "cohere")
OTHERS = ("mistral", "qwen2", "phi", "gpt_neox", "olmo2")
ADAPTED = ("llama, lora on q and v", "llama, rslora", "llama, lora all-linear", "gpt2, lora all-linear")
TIED = ("gpt2, tied", "llama, tied", "gemma3", "cohere")


def median(wanted: tuple[dict[str, Tensor], Tensor]) -> float:
    """Return the bound that ``loop`` clips at."""
    return float(wanted[1].median())


def engines_of(*names: str) -> list[Any]:
    """Return (engine, model) pairs that are accepted; the refusals have tests of their own."""
    pairs = [("bookkeeping", name) for name in names]
    pairs += [("hooks", name) for name in names if name != "gemma3"]
    pairs += [("ghost", name) for name in names if name not in TIED]
    return [pytest.param(*pair, id="-".join(pair)) for pair in pairs]


@pytest.mark.usefixtures("really_double")
@pytest.mark.parametrize(("engine", "name"), engines_of(*FULL, *OTHERS, *ADAPTED))
def test_the_clipped_sum_of_ragged_records_equals_a_loop_over_them_in_float64(
    build: Any, made_up: Any, loop: Any, run_engine: Any, assert_equal: Any, engine: str, name: str
) -> None:
    model, records = build(name), made_up()
    wanted = loop(model, records)
    bound = median(wanted)
    for rows in (None, 1, 2):
        assert_equal(run_engine(model, engine, records, bound, rows=rows), wanted, tolerance=1e-10)


@pytest.mark.parametrize(("engine", "name"), engines_of("gpt2, tied", "llama", "qwen3", "llama, lora all-linear"))
def test_in_float32_the_difference_stays_within_rounding(
    build: Any, made_up: Any, loop: Any, run_engine: Any, assert_equal: Any, engine: str, name: str
) -> None:
    model, records = build(name, dtype=torch.float32), made_up()
    wanted = loop(model, records)
    assert_equal(run_engine(model, engine, records, median(wanted)), wanted, tolerance=1e-5)


@pytest.mark.usefixtures("really_double")
@pytest.mark.parametrize("ratio", [0.0, math.inf], ids=["Gram", "formed"])
@pytest.mark.parametrize("name", [*FULL, "llama, lora all-linear", "gpt2, lora all-linear"])
def test_both_routes_of_a_matrix_give_the_same_gradient(
    build: Any,
    made_up: Any,
    loop: Any,
    run_engine: Any,
    assert_equal: Any,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    ratio: float,
) -> None:
    model, records = build(name), made_up()
    monkeypatch.setattr(layer_gradients, "KEEP_RATIO", ratio)
    wanted = loop(model, records)
    assert_equal(run_engine(model, "bookkeeping", records, median(wanted)), wanted, tolerance=1e-10)


@pytest.mark.usefixtures("really_double")
def test_the_route_of_a_matrix_follows_each_batch_and_not_the_first_one(
    build: Any, made_up: Any, loop: Any, assert_equal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, routes = build("llama"), list[bool]()
    unpatched = layer_gradients.is_formed

    def spy(**shape: int) -> bool:
        if (shape["rows"], shape["columns"]) == (24, 16):  # gate_proj and up_proj
            routes.append(unpatched(**shape))
        return unpatched(**shape)

    monkeypatch.setattr(bookkeeping, "is_formed", spy)
    engine = BookkeepingEngine(model)
    for lengths in ((3, 2), (60, 41), (3, 3), (5, 4), (90, 7)):
        records = made_up(lengths)
        wanted = loop(model, records)
        sums = {key: torch.zeros_like(p) for key, p in trainable_parameters(model).items()}
        with engine.tape(rows=len(records)) as tape:
            losses_B = record_losses(model, collate(records, pad_token_id=0))
            norms_B = tape.clip_into(sums, losses_B, per_sample_max_grad_norm=median(wanted))
        assert_equal((sums, norms_B), wanted, tolerance=1e-10)
    assert routes == [formed for formed in (False, True, False, True, True) for _ in range(4)]


@pytest.mark.usefixtures("really_double")
@pytest.mark.parametrize("name", ["gpt2, tied", "llama", "llama, lora all-linear"])
@pytest.mark.parametrize(
    ("engine", "reentrant"), [("bookkeeping", True), ("bookkeeping", False), ("hooks", True), ("ghost", True)]
)
def test_gradient_checkpointing_changes_nothing(
    build: Any, made_up: Any, loop: Any, run_engine: Any, assert_equal: Any, name: str, engine: str, reentrant: bool
) -> None:
    model = build("gpt2, untied" if engine == "ghost" and name == "gpt2, tied" else name)
    records = made_up()
    wanted = loop(model, records)
    bound = median(wanted)
    checkpoint(model, reentrant=reentrant)
    for rows in (None, 1):
        assert_equal(run_engine(model, engine, records, bound, rows=rows), wanted, tolerance=1e-10)


def checkpoint(model: nn.Module, *, reentrant: bool) -> None:
    """Turn gradient checkpointing on, as a run does, and make sure that it is on."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    base.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        base.enable_input_require_grads()
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


@pytest.mark.parametrize("name", TIED)
def test_ghost_refuses_tied_weights_by_both_names(build: Any, name: str) -> None:
    with pytest.raises(UnsupportedLayer, match=r"embed.*weight|wte\.weight and lm_head\.weight are one tied"):
        build_ghost(build(name))


def build_ghost(model: nn.Module) -> None:
    from safesynthdp.training.opacus_engines import GhostEngine

    GhostEngine(model)


@pytest.mark.usefixtures("really_double")
def test_without_the_cross_term_of_a_tie_the_norms_would_be_wrong(
    build: Any, made_up: Any, loop: Any, run_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case is one where the term matters, so the equalities above test it."""
    model, records = build("llama, tied"), made_up()
    _, norms = loop(model, records)

    def without(self: layer_gradients.Tied) -> Tensor:
        return self.table.squares() + self.head.squares()

    monkeypatch.setattr(layer_gradients.Tied, "squares", without)
    _, found = run_engine(model, "bookkeeping", records, 1.0)
    assert float(((found - norms) / norms).abs().max()) > 1e-3
