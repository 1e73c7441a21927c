"""Records become rows, rows become micro-batches, and one noisy sum comes out whatever the micro-batches."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import ByT5Tokenizer, GPT2Config, GPT2LMHeadModel

from safesynthdp.errors import ConfigError
from safesynthdp.models import PromptTemplate, token_id
from safesynthdp.privacy.mechanisms import DPSGDMechanism
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.training.clipping import trainable_parameters
from safesynthdp.training.config import HardwareConfig
from safesynthdp.training.examples import Example, collate, encode
from safesynthdp.training.micro_batching import pack
from safesynthdp.training.opacus_engines import HooksEngine
from safesynthdp.training.step import add_noise, set_gradients, sum_clipped_gradients, zero_sums

TOKENIZER = ByT5Tokenizer(extra_ids=0)
TEMPLATE = PromptTemplate(text="{label}:\n")


def encoded(*texts: str, label: str = "a", max_length: int = 64) -> list[Example]:
    return encode(texts, [label] * len(texts), tokenizer=TOKENIZER, template=TEMPLATE, max_length=max_length)


def test_an_example_is_prompt_text_and_end_and_carries_loss_on_text_and_end_alone() -> None:
    (example,) = encoded("hi")
    prompt = tuple(TOKENIZER("a:\n", add_special_tokens=False)["input_ids"])
    text = tuple(TOKENIZER("hi", add_special_tokens=False)["input_ids"])
    assert example.input_ids == (*prompt, *text, TOKENIZER.eos_token_id)
    batch = collate([example], pad_token_id=0)
    assert batch.target_mask_BT[0].tolist() == [False] * len(prompt) + [True] * 3


def test_a_long_record_is_cut_and_counted_and_does_not_learn_to_end_there() -> None:
    example, short = encoded("x" * 10_000, "y", max_length=32)
    assert (len(example), example.is_truncated, short.is_truncated) == (32, True, False)
    assert example.input_ids[-1] != TOKENIZER.eos_token_id


@pytest.mark.parametrize("text", ["\U0001f600 emoji", "\u202eright to left", "nul \x00 byte", "</s> <pad> in words"])
def test_any_text_is_encoded_without_special_tokens_of_its_own(text: str) -> None:
    (example,) = encoded(text, max_length=200)
    inner = example.input_ids[example.num_prompt_tokens : -1]
    assert not set(inner) & {token_id(TOKENIZER.eos_token_id), token_id(TOKENIZER.pad_token_id)}
    assert TOKENIZER.decode(list(inner)) == text


def test_a_prompt_that_leaves_no_room_is_refused_by_the_key_that_sets_it() -> None:
    with pytest.raises(ConfigError, match=r"data\.max_length=8"):
        encoded("text", label="a very long label indeed", max_length=8)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200), st.none() | st.integers(1, 7))
def test_packing_keeps_every_record_once_and_within_the_budget(
    lengths: list[int], budget: int, rows: int | None
) -> None:
    batches = pack(lengths, max_tokens=budget, max_rows=rows)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
        assert rows is None or len(batch) <= rows


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=259, n_positions=64, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    model: torch.nn.Module = GPT2LMHeadModel(shape)
    return model.double().train()


def summed(examples: list[Example], **hardware: Any) -> tuple[dict[str, torch.Tensor], Any]:
    model = small_model()
    engine = HooksEngine(model)
    sums = {name: torch.zeros_like(p) for name, p in trainable_parameters(model).items()}
    facts = sum_clipped_gradients(
        model,
        engine,
        sums,
        [[example] for example in examples],
        per_sample_max_grad_norm=0.7,
        hardware=HardwareConfig(**hardware),
        pad_token_id=0,
        dropout_seed=0,
    )
    engine.close()
    return sums, facts


def test_physical_batching_does_not_change_the_update() -> None:
    examples = encoded("one", "a much longer text than the others", "three", "four and a bit", "x")
    whole, facts = summed(examples)
    assert facts.batch_size == 5
    for hardware in ({"physical_batch_size": 1}, {"physical_batch_size": 2}, {"max_tokens_per_microbatch": 40}):
        split, _ = summed(examples, **hardware)
        for name, value in whole.items():
            torch.testing.assert_close(split[name], value, rtol=1e-10, atol=1e-12)


def test_an_empty_draw_leaves_zeros_and_is_still_noised() -> None:
    sums, facts = summed([])
    assert facts.batch_size == 0
    assert all(not bool(total.any()) for total in sums.values())
    flat = {"w": torch.zeros(200_000)}
    add_noise(flat, mechanism=mechanism(), keys=StepKeys.fresh(), step=3)
    assert float(flat["w"].std()) == pytest.approx(2.0 * 0.5, rel=0.01)


def mechanism() -> DPSGDMechanism:
    return DPSGDMechanism(
        num_records=1000, expected_batch_size=10, noise_multiplier=2.0, steps=5, per_sample_max_grad_norm=0.5
    )


def test_noise_differs_between_steps_tensors_runs_and_incarnations_and_repeats_only_on_replay() -> None:
    keys = StepKeys.from_unsafe_seed(1)

    def block(step: int, tensor: int, of: StepKeys) -> np.ndarray[Any, Any]:
        return mechanism().noise(step=step, tensor=tensor, count=64, keys=of)

    blocks = [block(0, 0, keys), block(1, 0, keys), block(0, 1, keys), block(0, 0, keys.derive(1))]
    blocks += [block(0, 0, StepKeys.fresh()), block(0, 0, StepKeys.from_unsafe_seed(2))]
    for i, first in enumerate(blocks):
        for second in blocks[i + 1 :]:
            assert not np.intersect1d(first, second).size
    assert np.array_equal(block(0, 0, keys), blocks[0])


def test_the_update_is_divided_by_the_public_batch_size_whatever_was_drawn() -> None:
    model = torch.nn.Linear(3, 2, bias=False)
    trainable = dict(model.named_parameters())
    sums = zero_sums(trainable)
    sums["weight"] += 6.0
    set_gradients(trainable, sums, divisor=64)
    assert model.weight.grad is not None
    assert torch.equal(model.weight.grad, torch.full((2, 3), 6.0 / 64))


def test_drawn_batches_have_binomial_sizes_and_never_a_record_twice() -> None:
    keys, plan = StepKeys.fresh(), mechanism()
    draws = [plan.draw_batch(step=step, keys=keys) for step in range(3000)]
    sizes = np.array([len(draw) for draw in draws])
    assert all(len(np.unique(draw)) == len(draw) for draw in draws)
    assert sizes.mean() == pytest.approx(10, abs=5 * math.sqrt(9.9 / 3000))
    assert sizes.var() == pytest.approx(9.9, rel=0.15)
