"""Rows decode alone: the cache, the batch, its order and its size change nothing."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from safesynthdp.generation.caching import CachedMemory, PlainMemory, RoomyLayer, memory_of
from safesynthdp.generation.decoding import DrawnRow, Row, decode_wave, waves
from safesynthdp.generation.draws import Sampling, draw, uniforms

EOS = 1
PROMPT: tuple[int, ...] = (104, 108, 61, 13)
OTHER: tuple[int, ...] = (101, 100, 61, 13)
GREEDY = Sampling(top_k=1)


def decode(
    model: nn.Module, rows: Sequence[Row], *, batch_size: int = 64, sampling: Sampling | None = None, **options: object
) -> dict[int, DrawnRow]:
    found = dict[int, DrawnRow]()
    for wave in waves(rows, batch_size=batch_size):
        decode_wave(
            model,
            wave,
            sampling=sampling or Sampling(),
            eos_token_id=EOS,
            seed=5,
            on_step=lambda drawn, _: found.update({row.number: row for row in drawn}),
            **options,  # type: ignore[arg-type]
        )
    assert sorted(found) == sorted(row.number for row in rows)
    return found


def some_rows(count: int, *, limit: int = 48) -> list[Row]:
    return [Row(number=i, prompt=(PROMPT, OTHER)[i % 2], max_new_tokens=limit) for i in range(count)]


def likely_to_end(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """About one token in eight ends the text, wherever it stands."""

    class Ending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.config = model, model.config

        def forward(self, past_key_values: object = None, **inputs: object) -> object:
            output = self.inner(past_key_values=past_key_values, **inputs)
            output.logits[..., EOS] = output.logits.logsumexp(dim=-1) - 2.0
            return output

    return Ending()  # type: ignore[return-value]


@pytest.mark.filterwarnings("error:.*is deprecated")
def test_the_installed_transformers_is_read_token_by_token_and_not_anew(model: LlamaForCausalLM) -> None:
    """Version 5.24 renamed the cache of ``forward``; whoever looks for the old name alone loses it in silence."""
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=300, n_positions=64))
    lengths = list[int]()
    for known in (model, gpt2.train(False)):
        watch = known.register_forward_pre_hook(
            lambda _module, _args, inputs: lengths.append(inputs["input_ids"].shape[1]), with_kwargs=True
        )
        memory = memory_of(known)
        with torch.inference_mode():
            memory.start(torch.tensor([PROMPT]))
            memory.append(torch.tensor([7]))
        watch.remove()
    assert lengths == [len(PROMPT), 1] * 2


def test_cached_decoding_equals_decoding_without_a_cache_token_by_token(model: LlamaForCausalLM) -> None:
    rows = some_rows(6, limit=80)
    ending = likely_to_end(model)
    cached = decode(ending, rows, memory=CachedMemory(ending))
    assert cached == decode(ending, rows, memory=PlainMemory(ending))
    assert len({row.tokens for row in cached.values()}) == 6


def test_decoding_equals_a_naive_loop_over_one_row(model: LlamaForCausalLM) -> None:
    numbers = uniforms([3], seed=5, steps=30)
    tokens = list(OTHER)
    with torch.inference_mode():
        for number in numbers[0]:
            weights = torch.softmax(model(input_ids=torch.tensor([tokens])).logits[:, -1], dim=1)
            tokens.append(int(draw(weights, torch.tensor([number]))))
            if tokens[-1] == EOS:
                break
    drawn = decode(model, some_rows(4, limit=30))[3]
    assert [*drawn.tokens, *([] if drawn.is_truncated else [EOS])] == tokens[len(OTHER) :]


def test_gpt2_with_learned_positions_decodes_the_same_with_and_without_a_cache() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3)
    model = GPT2LMHeadModel(config).double()
    model.train(False)
    rows = some_rows(4, limit=40)
    assert decode(model, rows, memory=CachedMemory(model)) == decode(model, rows, memory=PlainMemory(model))


def test_a_model_with_a_sliding_window_decodes_the_same_with_and_without_a_cache() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=7,
        initializer_range=0.3,
    )
    model = MistralForCausalLM(config).double()
    model.train(False)
    rows = some_rows(4, limit=30)
    assert decode(model, rows, memory=CachedMemory(model)) == decode(model, rows, memory=PlainMemory(model))


@pytest.mark.parametrize("compact_below", [0.0, 0.5, 1.0])
def test_retiring_rows_does_not_change_the_others(model: LlamaForCausalLM, compact_below: float) -> None:
    rows = some_rows(24)
    ending = likely_to_end(model)
    alone = {row.number: decode(ending, [row])[row.number] for row in rows}
    assert decode(ending, rows, compact_below=compact_below) == alone
    lengths = {len(row.tokens) for row in alone.values()}
    assert len(lengths) > 5, "rows must end at different times, or this tests nothing"


def test_finished_rows_leave_the_batch(model: LlamaForCausalLM) -> None:
    widths = list[int]()
    ending = likely_to_end(model)

    class Watching(CachedMemory):
        def append(self, tokens_B: torch.Tensor) -> torch.Tensor:
            widths.append(len(tokens_B))
            return super().append(tokens_B)

    decode(ending, some_rows(24), memory=Watching(ending))
    assert widths[0] >= 20
    assert widths[-1] <= 4
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_the_batch_size_does_not_change_the_text(model: LlamaForCausalLM, batch_size: int) -> None:
    rows = some_rows(20)
    ending = likely_to_end(model)
    assert decode(ending, rows, batch_size=batch_size) == decode(ending, rows, batch_size=20)


def test_prompts_of_different_lengths_never_share_a_wave() -> None:
    rows = [Row(number=i, prompt=(5,) * (1 + i % 3), max_new_tokens=9) for i in range(30)]
    cut = waves(rows, batch_size=4)
    assert sorted(row.number for wave in cut for row in wave) == list(range(30))
    assert all(len({len(row.prompt) for row in wave}) == 1 and len(wave) <= 4 for wave in cut)
    assert max(map(len, cut)) - min(map(len, cut)) <= 1, "no wave is left with a single row"


def test_a_prompt_is_read_once_for_all_its_rows(model: LlamaForCausalLM) -> None:
    shapes = list[tuple[int, ...]]()

    class Watching(CachedMemory):
        def start(self, prompts_BL: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(prompts_BL.shape))
            return super().start(prompts_BL)

    decode(model, some_rows(24, limit=2), memory=Watching(model))
    assert shapes == [(2, 4)]


def test_a_row_stops_at_the_end_token_and_does_not_contain_it(model: LlamaForCausalLM) -> None:
    ending = likely_to_end(model)
    drawn = decode(ending, some_rows(24, limit=200)).values()
    assert all(not row.is_truncated and EOS not in row.tokens for row in drawn)


def test_an_end_token_drawn_last_is_no_truncation(model: LlamaForCausalLM) -> None:
    free = decode(model, [Row(number=0, prompt=PROMPT, max_new_tokens=5)])[0]
    assert free.is_truncated
    assert len(free.tokens) == 5
    ending = likely_to_end(model)
    whole = decode(ending, [Row(number=0, prompt=PROMPT, max_new_tokens=200)])[0]
    exact = decode(ending, [Row(number=0, prompt=PROMPT, max_new_tokens=len(whole.tokens) + 1)])[0]
    short = decode(ending, [Row(number=0, prompt=PROMPT, max_new_tokens=len(whole.tokens))])[0]
    assert exact == whole
    assert short.is_truncated
    assert short.tokens == whole.tokens


def test_the_models_generation_config_has_no_say(model: LlamaForCausalLM, fresh_model: LlamaForCausalLM) -> None:
    rows = some_rows(8, limit=20)
    before = decode(model, rows)
    told = fresh_model
    for name, value in {"do_sample": False, "top_k": 1, "top_p": 0.01, "temperature": 0.01, "max_length": 5}.items():
        setattr(told.generation_config, name, value)
    told.generation_config.eos_token_id = list(range(259))
    assert decode(told, rows) == before
    assert decode(model, rows, sampling=GREEDY) != before


def test_a_cache_with_room_holds_what_the_one_of_transformers_holds() -> None:
    from transformers.cache_utils import DynamicLayer

    torch.manual_seed(0)
    ours, theirs = RoomyLayer(), DynamicLayer()  # type: ignore[no-untyped-call]
    for length in (5, 1, 40, 1, 1):
        new = torch.randn(6, 2, length, 4), torch.randn(6, 2, length, 4)
        for mine, reference in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(mine, reference)
    for rows in (torch.tensor([0, 0, 5, 2, 2, 1, 3]), torch.tensor([6, 1])):
        ours.reorder_cache(rows)
        theirs.reorder_cache(rows)  # type: ignore[arg-type]
    new = torch.randn(2, 2, 1, 4), torch.randn(2, 2, 1, 4)
    for mine, reference in zip(ours.update(*new), theirs.update(*new), strict=True):
        assert torch.equal(mine, reference)
    assert ours.get_seq_length() == theirs.get_seq_length() == 49


def test_the_models_own_layers_get_room(model: LlamaForCausalLM) -> None:
    memory = CachedMemory(model)
    assert all(type(layer) is RoomyLayer for layer in memory._cache.layers)
    assert len(memory._cache.layers) == 2
