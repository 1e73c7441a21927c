"""Adapters side by side: row i through adapter i, and nothing from one shard to another."""

import copy
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from safesynthdp.errors import ConfigError, UnsupportedLayer
from safesynthdp.generation.shard_adapters import ShardAdapters, train_all
from safesynthdp.generation.shard_config import ShardTraining
from safesynthdp.model_config import LoraConfig
from safesynthdp.training.examples import Example

LORA = LoraConfig(lora_r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
TRAINING = ShardTraining(max_steps=3, batch_size=2, learning_rate=1e-2)


def examples(*words: str) -> list[Example]:
    return [Example(input_ids=(9, *word.encode(), 1), num_prompt_tokens=1, is_truncated=False) for word in words]


SHARDS = {0: examples("one", "two", "three"), 1: examples("four"), 3: examples("five", "six")}


def trained(model: LlamaForCausalLM, shards: dict[int, list[Example]]) -> ShardAdapters:
    adapters = ShardAdapters(copy.deepcopy(model), LORA, shards=4, seed=0)
    train_all(adapters, shards, TRAINING, pad_token_id=0, advance=lambda _: None)
    return adapters


def test_an_adapter_depends_on_the_records_of_its_own_shard_alone(model: LlamaForCausalLM) -> None:
    first = trained(model, SHARDS).tensors()
    other = trained(model, SHARDS | {1: examples("something", "else"), 3: []}).tensors()
    for name, tensor in first.items():
        assert torch.equal(tensor[0], other[name][0])
        if name.endswith("up"):
            assert not torch.equal(tensor[1], other[name][1])
            assert not tensor[2].any()  # no records: the base model
            assert tensor[3].any()
            assert not other[name][3].any()


def test_row_i_goes_through_adapter_i_and_the_base_model_is_back_afterwards(model: LlamaForCausalLM) -> None:
    adapters = trained(model, SHARDS)
    tokens = torch.tensor([[5, 6, 7]]).expand(4, -1)
    with torch.inference_mode():
        base = model(input_ids=tokens).logits
        rows = adapters.forward(input_ids=tokens).logits
        torch.testing.assert_close(adapters.model(input_ids=tokens).logits, base, atol=0, rtol=0)
        torch.testing.assert_close(rows[2], base[2], atol=1e-9, rtol=1e-9)
        assert all(not torch.allclose(rows[i], base[i], atol=1e-6) for i in (0, 1, 3))
        swapped = tokens.clone()
        swapped[1:] = 77
        assert torch.equal(adapters.forward(input_ids=swapped).logits[0], rows[0])


def test_an_adapter_is_the_lora_that_peft_knows(model: LlamaForCausalLM) -> None:
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    adapters = trained(model, SHARDS)
    peft: Any = get_peft_model(
        copy.deepcopy(model), PeftConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
    ).double()
    tensors = adapters.tensors()
    with torch.no_grad():
        for name, module in peft.base_model.model.named_modules():
            if hasattr(module, "lora_A"):
                module.lora_A["default"].weight.copy_(tensors[f"{name}.down"][0])
                module.lora_B["default"].weight.copy_(tensors[f"{name}.up"][0])
    tokens = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        expected = peft.eval()(input_ids=tokens).logits[0]
        rows = adapters.forward(input_ids=tokens.expand(4, -1)).logits
    torch.testing.assert_close(rows[0], expected, atol=1e-5, rtol=1e-5)


def test_training_teaches_the_shard_its_own_words(model: LlamaForCausalLM) -> None:
    from safesynthdp.training.examples import collate
    from safesynthdp.training.loss import record_losses

    longer = ShardTraining(max_steps=60, batch_size=1, learning_rate=3e-2)
    adapters = ShardAdapters(copy.deepcopy(model), LORA, shards=2, seed=0)
    train_all(adapters, {0: examples("hello"), 1: examples("world")}, longer, pad_token_id=0, advance=lambda _: None)
    batch = collate(examples("hello"), pad_token_id=0)
    with torch.inference_mode():
        before = float(record_losses(model, batch))
        logits = adapters.forward(input_ids=batch.input_ids_BT.expand(2, -1)).logits.log_softmax(dim=2)
    own, other = (-logits[i, :-1].gather(1, batch.input_ids_BT[0, 1:, None]).mean() for i in (0, 1))
    assert own < before
    assert own < other


def test_wrong_rows_and_unknown_layers_are_refused(model: LlamaForCausalLM) -> None:
    with pytest.raises(ConfigError, match="shards=4"):
        trained(model, {}).forward(input_ids=torch.tensor([[1]]))
    with pytest.raises(UnsupportedLayer, match="no_such"):
        ShardAdapters(copy.deepcopy(model), LoraConfig(target_modules=["no_such"]), shards=2, seed=0)
