"""Rounding cannot lift a record over the clip: large matrices, tokens that cancel, a base in bfloat16."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from opacus.grad_sample.linear import compute_linear_norm_sample
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from safesynthdp.errors import UnsupportedLayer
from safesynthdp.model_config import LoraConfig
from safesynthdp.models import make_trainable
from safesynthdp.training import bookkeeping, layer_gradients, opacus_engines
from safesynthdp.training.clipping import CLIP_MARGIN, clip_factors, squared_norms
from safesynthdp.training.layer_gradients import Outer
from safesynthdp.training.opacus_engines import GhostEngine
from safesynthdp.training.precision import fastest, products, slow_format
from safesynthdp.training.selfcheck import check_engine

VOCAB = 41


def size(sums: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(total.double().square().sum()) for total in sums.values()))


@pytest.mark.parametrize("tokens", [1, 3, 600])
def test_a_large_matrix_releases_at_most_the_clip_by_either_route(tokens: int) -> None:
    """4.7 million elements, where a float32 ``norm()`` on a CPU is 6.5e-5 too small."""
    model = nn.Sequential(nn.Linear(2048, 2304, bias=False))
    x = torch.randn(1, tokens, 2048, generator=torch.Generator().manual_seed(0))
    for ratio in (0.0, math.inf):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(layer_gradients, "KEEP_RATIO", ratio)
            engine = bookkeeping.BookkeepingEngine(model)
            sums = {"0.weight": torch.zeros(2304, 2048)}
            with engine.tape(rows=1) as tape:
                tape.clip_into(sums, model(x).square().sum(dim=(1, 2)), per_sample_max_grad_norm=0.1)
            engine.close()
        assert 0.1 * (1 - 3 * CLIP_MARGIN) <= size(sums) <= 0.1


def test_norms_of_large_gradients_are_right_to_float32_rounding_and_not_the_unsafe_side_of_it() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 2304, 2048), (5, 2048, 2048)):  # added at once, and row by row
        grads_U = torch.randn(shape, generator=generator)
        truth_U = torch.stack([row.double().square().sum() for row in grads_U])
        assert float((squared_norms(grads_U).double() / truth_U - 1).abs().max()) < 2e-6


@pytest.mark.parametrize("width", [16, 256, 1024, 5000])
@pytest.mark.parametrize("tokens", [1, 2, 8, 64])
def test_a_gram_matrix_is_off_by_no_more_than_the_rounding_that_is_added(width: int, tokens: int) -> None:
    """Equal features are the worst case: every rounding of a sum goes the same way."""
    for seed in range(10):
        value = torch.rand(1, tokens, 1, generator=torch.Generator().manual_seed(seed)) + 0.5
        found = layer_gradients.gram(value.expand(1, tokens, width).contiguous()).double()
        error = found / (value.double() @ value.double().mT * width) - 1
        assert float(error.abs().max()) <= layer_gradients.rounding(torch.float32, width)


def cancelling(seed: int) -> Outer:
    """Return 64 tokens of 8 units whose products a_t g_t^T all but cancel: a large spread, a tiny sum."""
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(8, 64, 8, generator=generator, dtype=torch.float64)
    rows = torch.randn(8, 64, 8, generator=generator, dtype=torch.float64)
    rows -= columns @ torch.linalg.lstsq(columns, rows).solution
    rows += columns @ torch.linalg.lstsq(columns, torch.full_like(rows, 1e-5)).solution
    return Outer(rows.float(), columns.float())


def systematic(seed: int) -> Outer:
    """Return two tokens of 8 units, wide and constant, so that all roundings of a product go one way; they cancel."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(8, 2, 1, generator=generator) + 0.5
    g = torch.randn(8, 2, 1, generator=generator)
    left = (torch.rand(8, 1, generator=generator) * 4e-6).sqrt() * (a * g).abs().sum(dim=1)
    g[:, 1] = (left - a[:, 0] * g[:, 0]) / a[:, 1]
    return Outer(g * torch.full((4096,), 0.3), a * torch.full((1024,), 0.1 + 0.01 * seed))


def worst_release(records: Sequence[Outer], bound: float) -> float:
    """Return the largest norm, in float64, that a unit adds to the sum, relative to the bound."""
    worst = 0.0
    for outer in records:
        norms_U = outer.squares().sqrt()
        factors_U = clip_factors(norms_U, per_sample_max_grad_norm=bound)
        grads_U = outer.rows_USp.double().mT @ outer.columns_USd.double()
        worst = max(worst, float((grads_U.square().sum(dim=(1, 2)).sqrt() * factors_U.double()).max()) / bound)
    return worst


def test_tokens_that_cancel_cannot_hide_a_record_from_the_clip() -> None:
    records = [cancelling(seed) for seed in range(20)]
    assert worst_release(records, bound=1e-7) <= 1


def test_products_that_all_round_one_way_cannot_hide_a_record_from_the_clip() -> None:
    assert worst_release([systematic(seed) for seed in range(2)], bound=1e-4) <= 1


def release_by_ghost(outer: Outer, unit: int, bound: float) -> float:
    """Return what one unit's gradient adds to the sum of the ghost engine, relative to the bound."""
    rows_1Sp, columns_1Sd = outer.rows_USp[unit : unit + 1], outer.columns_USd[unit : unit + 1]
    layer = nn.Linear(columns_1Sd.shape[2], rows_1Sp.shape[2], bias=False).train()
    engine = GhostEngine(layer)
    sums = {"weight": torch.zeros_like(layer.weight)}
    with engine.tape(rows=1) as tape:
        losses_B = (layer(columns_1Sd) * rows_1Sp).sum(dim=(1, 2))
        tape.clip_into(sums, losses_B, per_sample_max_grad_norm=bound)
    engine.close()
    return size(sums) / bound


def test_ghost_clips_records_whose_products_cancel_or_round_one_way_and_opacus_own_norms_would_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def worst() -> tuple[float, float]:
        cancelled = max(release_by_ghost(cancelling(seed), unit, 1e-7) for seed in range(6) for unit in range(8))
        drifted = max(release_by_ghost(systematic(0), unit, 1e-4) for unit in range(8))
        return cancelled, drifted

    assert max(worst()) <= 1
    monkeypatch.setattr(opacus_engines, "linear_norms", compute_linear_norm_sample)
    assert min(worst()) > 1.02


def test_without_the_rounding_bound_both_kinds_of_record_would_pass_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases are ones where the bound matters, so the two tests above test it."""
    monkeypatch.setattr(layer_gradients, "rounding", lambda dtype, *widths: 0.0)
    assert worst_release([cancelling(seed) for seed in range(20)], bound=1e-7) > 2
    assert worst_release([systematic(seed) for seed in range(2)], bound=1e-4) > 1.5
    monkeypatch.setattr(layer_gradients, "rounding", lambda dtype, *widths: 8 * torch.finfo(dtype).eps)
    monkeypatch.setattr(layer_gradients, "_BLOCK", 1 << 20)
    assert worst_release([systematic(seed) for seed in range(2)], bound=1e-4) > 1.02


def test_the_rounding_bound_leaves_ordinary_records_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    for tokens in (8, 128):
        rows = torch.randn(4, tokens, 1536, generator=generator)
        outer = Outer(rows, torch.randn(4, tokens, 576, generator=generator))
        truth_U = (outer.rows_USp.double().mT @ outer.columns_USd.double()).square().sum(dim=(1, 2)).sqrt()
        torch.testing.assert_close(outer.squares().sqrt().double(), truth_U, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["llama, lora all-linear", "llama, rslora", "gpt2, lora all-linear"])
def test_adapters_in_float32_on_a_frozen_base_in_bfloat16_stay_within_the_clip(
    build: Any, made_up: Any, loop: Any, run_engine: Any, name: str
) -> None:
    model = build(name, dtype=torch.float32, base_dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.float32, torch.bfloat16}
    records = made_up()
    _, wanted = loop(model, records)
    sums, norms = run_engine(model, "bookkeeping", records, 1.0)
    assert all(total.dtype == torch.float32 for total in sums.values())
    torch.testing.assert_close(norms, wanted, rtol=2e-2, atol=0)
    for bound in (1e-3, float(norms.min()) / 2):
        for rows in ([records[0]], records[:2]):
            without, _ = run_engine(model, "bookkeeping", rows[1:], bound) if rows[1:] else (None, None)
            whole, _ = run_engine(model, "bookkeeping", rows, bound)
            moved = whole if without is None else {key: whole[key] - without[key] for key in whole}
            assert size(moved) <= bound * (1 + (3e-2 if without else 0))  # other shapes round the base otherwise


@pytest.mark.parametrize("name", ["llama, lora all-linear", "llama, rslora", "gpt2, lora all-linear"])
def test_the_start_up_check_passes_adapters_on_a_frozen_base_in_bfloat16(build: Any, name: str) -> None:
    model = build(name, dtype=torch.float32, base_dtype=torch.bfloat16)
    engine = bookkeeping.BookkeepingEngine(model)
    check_engine(model, engine, vocab_size=VOCAB, pad_token_id=0)


def adapters(at_layer_1: Callable[[Tensor], Tensor] | None = None, *, base: torch.dtype = torch.bfloat16) -> nn.Module:
    """Return a Llama with adapters whose second layer sees what ``at_layer_1`` makes of its input, [B, T, d]."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2
    )
    whole = LlamaForCausalLM(config)
    for parameter in whole.parameters():
        parameter.data = parameter.data.to(base)
    model = make_trainable(whole, LoraConfig(lora_r=4), seed=1, use_lora=True)
    if at_layer_1 is not None:
        layer = model.get_submodule("base_model.model.model.layers.1")
        layer.register_forward_pre_hook(lambda _, inputs: (at_layer_1(inputs[0]), *inputs[1:]))
    return model.train()


def start_up_check(model: nn.Module) -> None:
    check_engine(model, bookkeeping.BookkeepingEngine(model), vocab_size=VOCAB, pad_token_id=0)


def test_the_start_up_check_passes_a_base_in_bfloat16_that_rounds_each_shape_of_a_batch_otherwise() -> None:
    start_up_check(adapters(lambda x_BTd: x_BTd * (1 + 0.01 * x_BTd.shape[1])))


def test_the_start_up_check_passes_a_base_in_bfloat16_that_rounds_one_record_of_a_batch_quite_otherwise() -> None:
    """As measured on AMX: the one whose attention is on an edge came out at a third of its norm."""

    def on_an_edge(x_BTd: Tensor) -> Tensor:
        return x_BTd if len(x_BTd) == 1 else torch.cat([x_BTd[:1], x_BTd[1:2] * 3, x_BTd[2:]])

    start_up_check(adapters(on_an_edge))


def only_with_reduced_products(x_BTd: Tensor) -> Tensor:
    return x_BTd if torch.get_float32_matmul_precision() == "highest" else x_BTd * (1 + 0.3 * len(x_BTd))


def three_percent_more_in_a_batch(x_BTd: Tensor) -> Tensor:
    return x_BTd * (1 + 0.03 * (len(x_BTd) > 1))


def test_reduced_products_may_round_each_shape_otherwise_if_full_ones_make_batch_and_records_one_function() -> None:
    with products("medium"):
        start_up_check(adapters(only_with_reduced_products, base=torch.float32))
        with pytest.raises(UnsupportedLayer, match="in a batch than alone"):
            start_up_check(adapters(three_percent_more_in_a_batch, base=torch.float32))


def test_the_start_up_check_refuses_a_base_in_bfloat16_that_reads_the_padding() -> None:
    with pytest.raises(UnsupportedLayer, match="reads the padding"):
        start_up_check(adapters(lambda x_BTd: x_BTd + 0.02 * x_BTd[:, -1:]))


def test_the_start_up_check_refuses_a_base_in_bfloat16_that_is_another_function_of_a_whole_batch() -> None:
    with pytest.raises(UnsupportedLayer, match="in a batch than alone"):
        start_up_check(adapters(lambda x_BTd: x_BTd / len(x_BTd) ** 2))


def test_the_start_up_check_refuses_norms_under_a_base_in_bfloat16_that_are_three_percent_low(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    norms = bookkeeping.BookkeepingTape.norms
    monkeypatch.setattr(bookkeeping.BookkeepingTape, "norms", lambda self: norms(self) * 0.97)
    with pytest.raises(UnsupportedLayer, match="norms are wrong"):
        start_up_check(adapters())


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx2": True, "avx512_f": True, "amx_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_the_fastest_format_of_a_processor_follows_from_its_instructions(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert fastest(torch.device("cpu")) == expected
    held = nn.Linear(2, 2).to(torch.bfloat16)
    assert (slow_format(held) is None) == (expected == torch.bfloat16)
    assert slow_format(held.float()) is None


def test_without_a_word_from_torch_a_processor_counts_as_one_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert fastest(torch.device("cpu")) == torch.float32
    assert fastest(torch.device("meta")) == torch.float32
