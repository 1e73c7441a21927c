"""Defects of other people's trainers that no other test here guards; the list is in test_defect_catalogue.py."""

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from safesynthdp.cli import run as run_door
from safesynthdp.model_config import LoraConfig
from safesynthdp.models import make_trainable
from safesynthdp.privacy.ledger import Ledger
from safesynthdp.privacy.mechanisms import DPSGDMechanism
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.training import engines
from safesynthdp.training.clipping import trainable_parameters
from safesynthdp.training.command import main
from safesynthdp.training.config import HardwareConfig
from safesynthdp.training.examples import Example, collate
from safesynthdp.training.loss import record_losses
from safesynthdp.training.step import add_noise, set_gradients, sum_clipped_gradients, zero_sums

SUM = "safesynthdp.training.loop.sum_clipped_gradients"
ENGINES = ("bookkeeping", "hooks", "ghost")


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., list[str]]:
    """Return a maker of command lines for a tiny run over 90 records."""
    path = tmp_path / "records.csv"
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["text", "label", "owner"])
        writer.writerows([f"text number {i} of {i % 7}", ("good", "bad")[i % 2], f"user {i % 30}"] for i in range(90))

    def build(output_dir: Path, **changes: Any) -> list[str]:
        values = {
            "model.from_scratch.num_hidden_layers": 1,
            "model.from_scratch.hidden_size": 16,
            "model.from_scratch.num_attention_heads": 2,
            "data.train_file": path,
            "data.user_column": "owner",
            "data.labels": '["good", "bad"]',
            "data.max_length": 48,
            "privacy.target_epsilon": 8,
            "privacy.target_delta": 1e-3,
            "train.expected_batch_size": 8,
            "train.max_steps": 6,
            "train.save_steps": 2,
            "output_dir": output_dir,
        } | {key.replace("__", "."): value for key, value in changes.items()}
        return [word for key, value in values.items() for word in (f"--{key}", str(value))]

    return build


Arguments = Callable[..., list[str]]


def dies_at(step: int) -> Callable[..., Any]:
    """Raise as a kill would, in the middle of a step: nothing after it runs."""
    calls = 0

    def patched(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step + 1:
            raise KeyboardInterrupt
        return sum_clipped_gradients(*args, **kwargs)

    return patched


def test_steps_that_draw_nobody_happen_are_counted_and_are_noise_alone(
    tmp_path: Path, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, zero, noised = list[int](), list[bool](), list[bool]()

    def spy_sum(model: Any, engine: Any, sums: Any, drawn: Any, **kwargs: Any) -> Any:
        facts = sum_clipped_gradients(model, engine, sums, drawn, **kwargs)
        sizes.append(len(drawn))
        zero.append(not any(bool(total.any()) for total in sums.values()))
        return facts

    def spy_noise(sums: Any, **kwargs: Any) -> None:
        add_noise(sums, **kwargs)
        noised.append(all(bool(total.any()) for total in sums.values()))

    monkeypatch.setattr(SUM, spy_sum)
    monkeypatch.setattr("safesynthdp.training.loop.add_noise", spy_noise)
    words = arguments(tmp_path / "run", privacy__unsafe_seed=3, train__expected_batch_size=1, train__max_steps=12)
    assert run_door(main, words) == 0
    assert (
        len(sizes) == len(noised) == 12 == Ledger.read(tmp_path / "run/ledger.json").entry("dpsgd").mechanism["steps"]
    )
    assert 0 in sizes
    assert max(sizes) > 0
    assert zero == [size == 0 for size in sizes]
    assert all(noised)


def test_noise_alone_moves_weights_by_its_own_spread_in_float32_whatever_the_base(build: Any) -> None:
    model = build("llama, lora all-linear", dtype=torch.float32, base_dtype=torch.bfloat16)
    trainable = trainable_parameters(model)
    before = torch.cat([p.detach().flatten().clone() for p in trainable.values()])
    mechanism = DPSGDMechanism(
        num_records=100, expected_batch_size=10, noise_multiplier=2.0, steps=9, per_sample_max_grad_norm=0.5
    )
    moved = list[torch.Tensor]()
    for step in range(9):
        sums = zero_sums(trainable)
        add_noise(sums, mechanism=mechanism, keys=StepKeys.from_unsafe_seed(1), step=step)
        set_gradients(trainable, sums, divisor=10)
        torch.optim.SGD(trainable.values(), lr=1.0).step()
        after = torch.cat([p.detach().flatten().clone() for p in trainable.values()])
        moved.append(after - before)
        before = after
    spread = torch.stack(moved)
    assert spread.dtype == torch.float32
    assert float(spread.std()) == pytest.approx(2.0 * 0.5 / 10, rel=5 / math.sqrt(2 * spread.numel()))
    assert abs(float(spread.mean())) < 5 * 0.1 / math.sqrt(spread.numel())
    assert len(torch.unique(spread)) > 0.98 * spread.numel(), "noise in bfloat16 would have few distinct values"


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_with_a_record_that_is_not_finite_is_the_batch_without_it(
    build: Any, made_up: Any, engine: str, poison: float
) -> None:
    model = build("gpt2, untied", dtype=torch.float32)
    fine = [
        Example(input_ids=tuple(i % 40 for i in r.input_ids), num_prompt_tokens=1, is_truncated=False)
        for r in made_up((6, 9, 12, 4))
    ]
    broken = Example(input_ids=(3, 40, 5, 6, 7), num_prompt_tokens=1, is_truncated=False)
    model.get_input_embeddings().weight.data[40] = poison
    attached = engines._ENGINES[engine](model)

    def summed(records: list[Example]) -> Any:
        sums = zero_sums(trainable_parameters(model))
        hardware = HardwareConfig()
        facts = sum_clipped_gradients(
            model,
            attached,
            sums,
            [[record] for record in records],
            per_sample_max_grad_norm=0.5,
            hardware=hardware,
            pad_token_id=0,
            dropout_seed=0,
        )
        return sums, facts

    wanted, _ = summed(fine)
    found, facts = summed([*fine[:2], broken, *fine[2:]])
    assert (facts.num_dropped, facts.batch_size) == (1, 5)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    nothing, facts = summed([broken, broken])
    assert facts.num_dropped == 2
    assert not any(bool(total.any()) for total in nothing.values())


@pytest.mark.parametrize("engine", ENGINES)
def test_after_two_steps_without_noise_every_adapter_has_moved(made_up: Any, engine: str) -> None:
    """At B = 0 the first step can move B alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=41, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    model = make_trainable(LlamaForCausalLM(shape), LoraConfig(lora_r=2), seed=1, use_lora=True).train()
    trainable = trainable_parameters(model)
    before = {name: p.detach().clone() for name, p in trainable.items()}
    attached = engines._ENGINES[engine](model)
    optimizer = torch.optim.SGD(trainable.values(), lr=0.1)
    for _ in range(2):
        sums = zero_sums(trainable)
        with attached.tape(rows=4) as tape:
            losses_B = record_losses(model, collate(made_up(), pad_token_id=0))
            tape.clip_into(sums, losses_B, per_sample_max_grad_norm=1.0)
        set_gradients(trainable, sums, divisor=4)
        optimizer.step()
    still = [name for name, p in trainable.items() if torch.equal(before[name], p)]
    assert not still


CHANGED = {
    "privacy.target_epsilon": "7",
    "privacy.target_delta": "1e-4",
    "privacy.per_sample_max_grad_norm": "0.5",
    "privacy.unit": "user",
    "privacy.accountant": "rdp",
    "privacy.unsafe_seed": "9",
    "privacy.label_histogram_epsilon": "0.5",
    "train.expected_batch_size": "9",
    "train.max_steps": "7",
    "train.learning_rate": "0.5",
    "train.seed": "4",
    "data.max_length": "47",
    "lora.enabled": "true",
}


def test_an_interrupted_run_is_not_resumed_under_any_other_setting_of_the_signal(
    tmp_path: Path, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(SUM, dies_at(2))
        assert run_door(main, arguments(tmp_path / "run", privacy__unsafe_seed=3)) == 130
    state = (tmp_path / "run/ledger.json").read_bytes()
    for key, value in CHANGED.items():
        words = [*arguments(tmp_path / "run", privacy__unsafe_seed=3), f"--{key}", value]
        assert run_door(main, words) == 2, key
        assert "another config" in capsys.readouterr().err
    assert (tmp_path / "run/ledger.json").read_bytes() == state
    assert run_door(main, arguments(tmp_path / "run", privacy__unsafe_seed=3)) == 0


def test_adapters_killed_and_resumed_are_the_same_bytes_as_trained_straight(
    tmp_path: Path, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"privacy__unsafe_seed": 3, "lora__enabled": "true"}
    assert run_door(main, arguments(tmp_path / "straight", **changes)) == 0
    with monkeypatch.context() as patched:
        patched.setattr(SUM, dies_at(3))
        assert run_door(main, arguments(tmp_path / "broken", **changes)) == 130
    assert run_door(main, arguments(tmp_path / "broken", **changes)) == 0
    name = "checkpoint/adapter_model.safetensors"
    assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    assert any(bool(tensor.any()) for key, tensor in load_file(tmp_path / "broken" / name).items() if "lora_B" in key)


@pytest.mark.parametrize(
    "key",
    [
        "privacy.adaptive_clipping",
        "privacy.max_grad_norm",
        "train.load_best_model_at_end",
        "train.early_stopping_patience",
        "train.gradient_accumulation_steps",
        "lora.modules_to_save",
        "lora.use_dora",
    ],
)
def test_what_would_spend_unpriced_or_untie_weights_is_not_offered(
    tmp_path: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    assert run_door(main, [*arguments(tmp_path / "run"), f"--{key}", "1"]) == 2
    assert key in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


UNPATCHED = """
import json, sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(**json.loads(sys.argv[1])))
ids = torch.arange(24).view(2, 12) % 41
loss = model(input_ids=ids).logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]).sum()
loss.backward()
grads = [float(p.grad.double().norm()) for p in model.parameters()]
assert not any(name.startswith(("safesynthdp", "opacus")) for name in sys.modules)
print(json.dumps([float(loss.detach()), *grads]))
"""


@pytest.mark.slow
def test_under_every_engine_the_model_computes_what_it_does_in_a_process_without_us() -> None:
    """A rule or a hook that alters the forward pass would be missed by a loop that runs under it too."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(vocab_size=41, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    words = [sys.executable, "-W", "ignore", "-c", UNPATCHED, shape.to_json_string()]
    wanted = json.loads(subprocess.run(words, capture_output=True, text=True, check=True, timeout=100).stdout)
    for name in ENGINES:
        torch.manual_seed(0)
        model: nn.Module = LlamaForCausalLM(shape).train()
        engine = engines._ENGINES[name](model)
        sums = zero_sums(trainable_parameters(model))
        ids = torch.arange(24).view(2, 12) % 41
        with engine.tape(rows=2) as tape:
            log_probs = model(input_ids=ids, position_ids=torch.arange(12).repeat(2, 1)).logits.log_softmax(-1)
            losses_B = log_probs[:, :-1].gather(2, ids[:, 1:, None]).sum(dim=(1, 2))
            tape.clip_into(sums, losses_B, per_sample_max_grad_norm=math.inf)
        found = [float(losses_B.detach().sum()), *(float(total.double().norm()) for total in sums.values())]
        assert found == pytest.approx(wanted, rel=1e-5)
