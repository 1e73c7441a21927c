"""Mechanisms inside ``model.generate``: the token that was drawn is the one that is written."""

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM

from safesynthdp.errors import BudgetExhausted, ConfigError
from safesynthdp.generation.processors import OutputMechanismProcessor, PublicRows, refuse_generation_config
from safesynthdp.privacy.mechanisms import Softmax
from safesynthdp.privacy.output_draws import OutputKey
from safesynthdp.privacy.output_pricing import OutputMechanism

SHARDS = Softmax(shards=3, clip=2.0, tokens=6, texts_per_batch=2, adjacency="many")
SINGLE = Softmax(shards=1, single=True, clip=2.0, tokens=6, texts_per_batch=2, adjacency="many")
ROWS = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13], [5, 9, 7], [8, 6, 10], [2, 3, 4]])
PUBLIC = [[50, 51], [50, 52]]


def config(**changes: Any) -> GenerationConfig:
    values: dict[str, Any] = {"max_new_tokens": 6, "eos_token_id": 1, "pad_token_id": 0, "top_k": 0, "use_cache": True}
    return GenerationConfig(**(values | changes))  # type: ignore[no-untyped-call]


def generate(
    model: Any, rows: torch.Tensor, settings: GenerationConfig, processor: OutputMechanismProcessor
) -> torch.Tensor:
    tokens: torch.Tensor = model.generate(rows, generation_config=settings, logits_processor=[processor])
    return tokens


def generated(model: LlamaForCausalLM, mechanism: OutputMechanism, *, seed: int, **changes: Any) -> torch.Tensor:
    settings = config(**changes)
    processor = OutputMechanismProcessor(
        mechanism,
        generation_config=settings,
        public=PublicRows(model, PUBLIC),
        top_k=30,
        key=OutputKey.from_unsafe_seed(seed),
    )
    return generate(model, ROWS if mechanism.shards == 3 else ROWS[:2], settings, processor)


def test_all_shards_of_a_text_get_the_same_tokens_whatever_generate_does_next(model: LlamaForCausalLM) -> None:
    greedy = generated(model, SHARDS, seed=1, do_sample=False)[:, 3:]
    assert torch.equal(greedy[0], greedy[1])
    assert torch.equal(greedy[0], greedy[2])
    assert torch.equal(greedy[3], greedy[4])
    assert not torch.equal(greedy[0], greedy[3])
    assert torch.equal(generated(model, SHARDS, seed=1, do_sample=True)[:, 3:], greedy)
    assert not torch.equal(generated(model, SHARDS, seed=2, do_sample=False)[:, 3:], greedy)


def test_it_draws_what_our_own_loop_draws(model: LlamaForCausalLM) -> None:
    from safesynthdp.generation.checkpoint_source import CheckpointSource
    from safesynthdp.generation.decoding import DrawnRow
    from safesynthdp.generation.output_decoding import Rule, Text, decode_texts

    settings = config(do_sample=False)
    key = OutputKey.from_unsafe_seed(4)
    processor = OutputMechanismProcessor(
        SINGLE,
        generation_config=settings,
        public=PublicRows(model, [row.tolist() for row in ROWS[:2]]),
        top_k=30,
        key=key,
    )
    found = generate(model, ROWS[:2], settings, processor)[:, 3:].tolist()
    own = list[DrawnRow]()
    decode_texts(
        CheckpointSource(model, model, [tuple(row.tolist()) for row in ROWS[:2]]),
        [Text(number=i, stream=key.stream(f"text/{i}")) for i in range(2)],
        rule=Rule(mechanism=SINGLE, end=1, tokens=6, top_k=30),
        on_step=lambda rows, _: own.extend(rows),
    )
    for row in own:
        assert found[row.number][: len(row.tokens)] == list(row.tokens)


def test_without_a_public_model_the_scores_are_recentred(model: LlamaForCausalLM) -> None:
    settings = config(do_sample=False)
    processor = OutputMechanismProcessor(SINGLE, generation_config=settings, recentre=True)
    found = generate(model, ROWS[:2], settings, processor)
    assert found.shape[1] > 3
    with pytest.raises(ConfigError, match="top_k=5 needs a public model"):
        OutputMechanismProcessor(SINGLE, generation_config=settings, recentre=True, top_k=5)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"top_k": 50}, "top_k"),
        ({"top_p": 0.9}, "top_p"),
        ({"min_p": 0.1}, "min_p"),
        ({"typical_p": 0.9}, "typical_p"),
        ({"temperature": 0.7}, "temperature"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size"),
        ({"num_beams": 4}, "num_beams"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences"),
        ({"bad_words_ids": [[3]]}, "bad_words_ids"),
        ({"suppress_tokens": [3]}, "suppress_tokens"),
        ({"max_new_tokens": 7}, "max_new_tokens"),
        ({"max_new_tokens": None}, "max_new_tokens"),
    ],
)
def test_a_generation_config_that_reshapes_private_logits_is_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=f"generation_config.{key}"):
        refuse_generation_config(config(**changes), tokens=6)


def test_more_texts_or_a_second_call_than_was_priced_are_refused(model: LlamaForCausalLM) -> None:
    settings = config(do_sample=False)
    with pytest.raises(BudgetExhausted, match="texts_per_batch=2"):
        OutputMechanismProcessor(SINGLE, generation_config=settings, num_texts=3, recentre=True)
    processor = OutputMechanismProcessor(SINGLE, generation_config=settings, recentre=True)
    with pytest.raises(ConfigError, match="num_texts=2 with shards=1 needs 2 rows, generate brings"):
        generate(model, ROWS, settings, processor)
    processor = OutputMechanismProcessor(SINGLE, generation_config=settings, recentre=True)
    generate(model, ROWS[:2], settings, processor)
    with pytest.raises(BudgetExhausted, match="make a new one"):
        generate(model, ROWS[:2], settings, processor)
    odd = OutputMechanismProcessor(SHARDS, generation_config=settings, recentre=True)
    with pytest.raises(ConfigError, match="shards=3"):
        generate(model, ROWS[:2], settings, odd)


@pytest.mark.parametrize("repeat", [{"num_return_sequences": 3, "do_sample": True}, {"num_beams": 3}])
def test_rows_that_generate_repeats_on_its_own_are_refused_since_a_record_would_count_twice(
    model: Any, repeat: dict[str, Any]
) -> None:
    """Given as keywords they pass the config by: three copies of two rows look like two texts of three shards."""
    settings = config()
    two = OutputMechanismProcessor(SHARDS, generation_config=settings, num_texts=1, recentre=True)
    with pytest.raises(ConfigError, match="repeat records"):
        model.generate(ROWS[:3], generation_config=settings, logits_processor=[two], **repeat)


@pytest.mark.parametrize("recentre", [False, True])
def test_a_row_can_be_left_out_and_only_then_is_the_price_that_of_null(model: LlamaForCausalLM, recentre: bool) -> None:
    null = Softmax(shards=3, clip=2.0, tokens=6, adjacency="null")
    settings = config(do_sample=False)

    def drawn(rows: torch.Tensor, present: list[bool] | None) -> torch.Tensor:
        processor = OutputMechanismProcessor(
            null,
            generation_config=settings,
            public=PublicRows(model, PUBLIC[:1]),
            present=present,
            recentre=recentre,
            key=OutputKey.from_unsafe_seed(1),
        )
        return generate(model, rows, settings, processor)[:, 3:]

    with pytest.raises(ConfigError, match="present is missing"):
        drawn(ROWS[:3], None)
    with pytest.raises(ConfigError, match="present names 2 rows"):
        drawn(ROWS[:3], [True, False])
    without = drawn(ROWS[:3], [True, False, True])
    other = ROWS[:3].clone()
    other[1] = 77
    assert torch.equal(drawn(other, [True, False, True]), without)
    assert not torch.equal(drawn(ROWS[:3], [True, True, True]), without)
