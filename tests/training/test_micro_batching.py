"""Under a base that rounds each shape of a batch otherwise, no record decides the shape another one is computed in."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from safesynthdp.errors import UnsupportedLayer
from safesynthdp.model_config import LoraConfig
from safesynthdp.models import make_trainable
from safesynthdp.training.bookkeeping import BookkeepingEngine
from safesynthdp.training.clipping import CLIP_MARGIN, trainable_parameters
from safesynthdp.training.config import HardwareConfig
from safesynthdp.training.engines import choose_engine
from safesynthdp.training.examples import Example, collate
from safesynthdp.training.micro_batching import Shape, shaped_micro_batches
from safesynthdp.training.precision import products, rounds_by_shape
from safesynthdp.training.step import sum_clipped_gradients, zero_sums

VOCAB = 41
lengths = st.integers(2, 70)
draws = st.lists(st.lists(lengths, min_size=1, max_size=3), max_size=30)


def example(length: int, seed: int = 0) -> Example:
    ids = torch.randint(1, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Example(input_ids=tuple(ids), num_prompt_tokens=1 + length % 2, is_truncated=False)


def shapes(units: Sequence[Sequence[Example]], *, longest: int = 1024) -> dict[int, Shape]:
    cut = shaped_micro_batches(units, max_tokens=256, max_rows=None, longest=longest)
    return {i: shape for positions, shape in cut for i in positions}


@given(draws)
def test_a_unit_has_the_shape_it_would_have_alone_whoever_else_is_drawn(draw: list[list[int]]) -> None:
    units = [[example(length) for length in unit] for unit in draw]
    found = shapes(units)
    assert sorted(found) == list(range(len(units))), "everybody is in one micro-batch"
    for i, unit in enumerate(units):
        assert found[i] == shapes([unit])[0]


@given(draws)
def test_a_micro_batch_holds_whole_units_of_one_size_that_fit_its_shape(draw: list[list[int]]) -> None:
    units = [[example(length) for length in unit] for unit in draw]
    for positions, shape in shaped_micro_batches(units, max_tokens=256, max_rows=None, longest=1024):
        counts = {len(units[i]) for i in positions}
        assert len(counts) == 1
        assert len(positions) * counts.pop() <= shape.rows
        assert shape.rows * shape.width <= max(256, shape.width * len(units[positions[0]]))
        assert all(len(row) <= shape.width for i in positions for row in units[i])
        assert all(row.num_prompt_tokens >= shape.first_target for i in positions for row in units[i])


def test_no_row_is_wider_than_the_model_has_positions_for() -> None:
    assert shapes([[example(20)]], longest=21)[0].width == 21
    assert shapes([[example(20)]], longest=64)[0].width == 32


def test_empty_rows_fill_a_shape_and_have_no_target() -> None:
    batch = collate([example(5)], pad_token_id=0, shape=Shape(rows=3, width=16, first_target=1))
    assert batch.input_ids_BT.shape == (3, 16)
    assert batch.first_target == 1
    assert batch.target_mask_BT.sum(dim=1).tolist() == [3, 0, 0]


def rounding_by_shape(base_dtype: torch.dtype) -> nn.Module:
    """Return a Llama with adapters that is visibly another function for each shape of its input."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    base = LlamaForCausalLM(config).to(base_dtype)  # type: ignore[arg-type]
    model = make_trainable(base, LoraConfig(lora_r=4), seed=1, use_lora=True)

    def other(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x_BTd = inputs[0]
        return (x_BTd * (1 + 0.5 * torch.rand(x_BTd.shape[-1], generator=seeded(x_BTd)).to(x_BTd)), *inputs[1:])

    def seeded(x_BTd: Tensor) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * x_BTd.shape[0] + x_BTd.shape[1])

    model.get_submodule("base_model.model.model.layers.1").register_forward_pre_hook(other)
    return model.train()


def clipped_sum(model: nn.Module, drawn: Sequence[Example], engine: str) -> Tensor:
    clipper = choose_engine(model, clipping_engine=engine, rows=8).engine
    sums = zero_sums(trainable_parameters(model))
    sum_clipped_gradients(
        model,
        clipper,
        sums,
        [[row] for row in drawn],
        per_sample_max_grad_norm=1e-2,
        hardware=HardwareConfig(max_tokens_per_microbatch=128),
        pad_token_id=0,
        dropout_seed=0,
    )
    return torch.cat([total.flatten() for total in sums.values()])


@pytest.mark.parametrize("engine", ["bookkeeping", "hooks", "ghost"])
def test_one_record_more_moves_the_sum_by_at_most_the_clip_even_if_every_shape_is_rounded_otherwise(
    engine: str,
) -> None:
    records = [example(length, seed) for seed, length in enumerate((3, 4, 5, 6, 7, 9, 12, 14, 20, 22, 31))]
    without, with_one = (
        clipped_sum(rounding_by_shape(torch.bfloat16), rows, engine) for rows in (records, [*records, example(60, 99)])
    )
    assert 0.99 * 1e-2 < float((with_one - without).norm()) <= 1e-2
    middle = clipped_sum(rounding_by_shape(torch.bfloat16), [*records[:4], *records[5:]], engine)
    assert float((middle - without).norm()) <= 1e-2


def test_a_float32_model_is_packed_tightly_and_a_bfloat16_base_is_seen() -> None:
    assert not rounds_by_shape(rounding_by_shape(torch.float32))
    assert rounds_by_shape(rounding_by_shape(torch.bfloat16))


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_norms_and_sums_are_full_products_whatever_the_passes_through_the_model_are(precision: str) -> None:
    """By the Gram route and by the other: a record releases at most C, and not less."""
    torch.manual_seed(0)
    for width, length in ((256, 4), (16, 200)):
        model = nn.Sequential(nn.Linear(width, width, bias=False))
        engine = BookkeepingEngine(model)
        sums = {"0.weight": torch.zeros(width, width)}
        with products(precision), engine.tape(rows=2) as tape:
            losses_B = model(torch.randn(2, length, width)).square().sum(dim=(1, 2))
            tape.clip_into(sums, losses_B * torch.tensor([1.0, 0.0]), per_sample_max_grad_norm=0.1)
        released = float(sums["0.weight"].double().norm())
        assert 0.1 * (1 - 1.001 * CLIP_MARGIN) <= released <= 0.1 * (1 - 0.999 * CLIP_MARGIN)


@pytest.mark.parametrize("engine", ["hooks", "ghost"])
def test_an_engine_whose_norms_would_be_rounded_is_refused_with_faster_products(engine: str) -> None:
    with products("medium"), pytest.raises(UnsupportedLayer, match="float32_matmul_precision=medium"):
        choose_engine(nn.Sequential(nn.Linear(2, 2)), clipping_engine=engine, rows=2)
    assert choose_engine(nn.Sequential(nn.Linear(2, 2)), clipping_engine=engine, rows=2).engine.name == engine


def test_faster_products_end_where_they_began_and_give_micro_batches_fixed_shapes() -> None:
    model = nn.Linear(2, 2)
    with products("medium"):
        assert rounds_by_shape(model)
    assert not rounds_by_shape(model)
