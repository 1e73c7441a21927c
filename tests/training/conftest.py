"""Small models, made-up records, and the loop over single records that every engine is compared with.

``build`` makes a model by name, ``made_up`` ragged records, ``loop`` the truth (each unpadded record alone, plain
autograd, clip, add), ``run_engine`` the same sum through an engine, ``assert_equal`` compares both tensor by tensor.
``really_double`` keeps transformers in float64 where its own code falls to float32 (norms, rotary tables).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from safesynthdp.model_config import LoraConfig
from safesynthdp.models import make_trainable
from safesynthdp.training import engines
from safesynthdp.training.clipping import CLIP_MARGIN, trainable_parameters
from safesynthdp.training.examples import Example, collate
from safesynthdp.training.loss import record_losses
from safesynthdp.training.step import sum_clipped_gradients

VOCAB = 41
LENGTHS = (5, 11, 8, 3)

Sums = dict[str, Tensor]
Build = Callable[..., nn.Module]
MadeUp = Callable[..., list[Example]]
Loop = Callable[..., tuple[Sums, Tensor]]
RunEngine = Callable[..., tuple[Sums, Tensor]]
AssertEqual = Callable[..., None]

_SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
_GPT2: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
_KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "gpt2, tied": ("gpt2", _GPT2, None),
    "gpt2, untied": ("gpt2", _GPT2 | {"tie_word_embeddings": False}, None),
    "llama": ("llama", _SMALL, None),
    "llama, tied": ("llama", _SMALL | {"tie_word_embeddings": True}, None),
    "mistral": ("mistral", _SMALL, None),
    "qwen2": ("qwen2", _SMALL, None),
    "qwen3": ("qwen3", _SMALL, None),
    "phi": ("phi", _SMALL, None),
    "gpt_neox": ("gpt_neox", _SMALL, None),
    "olmo2": ("olmo2", _SMALL, None),
    "gemma3": ("gemma3_text", _SMALL, None),
    "cohere": ("cohere", _SMALL | {"use_qk_norm": True}, None),
    "llama, lora on q and v": ("llama", _SMALL, {"target_modules": ["q_proj", "v_proj"]}),
    "llama, rslora": ("llama", _SMALL, {"use_rslora": True, "lora_alpha": 7}),
    "llama, lora all-linear": ("llama", _SMALL, {}),
    "gpt2, lora all-linear": ("gpt2", _GPT2, {}),
}
"""Name to model_type, size, and what is set of LoRA (None: trained in full)."""


@pytest.fixture(scope="session")
def build() -> Build:
    """Return a maker of tiny models, as a run would train them, with nothing at its initial zero."""
    return build_model


def build_model(name: str, *, dtype: torch.dtype = torch.float64, base_dtype: torch.dtype | None = None) -> nn.Module:
    """Return a model of ``_KINDS`` in training mode; ``base_dtype`` is that of what is frozen."""
    kind, size, adapters = _KINDS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2, **size)
    lora = LoraConfig(lora_r=4, **adapters or {})
    base = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model = make_trainable(base, lora, seed=1, use_lora=adapters is not None)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, dtype=torch.float64).to(dtype) * 0.1)
            elif base_dtype is not None:
                parameter.data = parameter.data.to(base_dtype)
    return model.train()


@pytest.fixture(scope="session")
def made_up() -> MadeUp:
    """Return a maker of ragged records with prompts of 1 to 3 tokens and the pad id within their text."""

    def make(lengths: Sequence[int] = LENGTHS, *, seed: int = 0) -> list[Example]:
        generator = torch.Generator().manual_seed(seed)
        rows = [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in lengths]
        for ids in rows:
            ids[-1] = 0
        return [
            Example(input_ids=tuple(ids), num_prompt_tokens=min(1 + i % 3, len(ids) - 1), is_truncated=False)
            for i, ids in enumerate(rows)
        ]

    return make


@pytest.fixture(scope="session")
def loop() -> Loop:
    """Return the truth: clip each unpadded record's gradient, found by plain autograd, and add.

    Clipped are the records above the median norm, ``bound(norms)``: a factor of 1 and one below 1 are both tested.
    """

    def sum_of_singles(model: nn.Module, records: Sequence[Example]) -> tuple[Sums, Tensor]:
        trainable = trainable_parameters(model)
        total = {name: torch.zeros_like(p) for name, p in trainable.items()}
        singles = list[tuple[Tensor, ...]]()
        was_training = model.training
        model.eval()  # plain autograd.grad cannot cross a checkpoint
        for record in records:
            loss = record_losses(model, collate([record], pad_token_id=0))[0]
            singles.append(torch.autograd.grad(loss, list(trainable.values())))
        norms = torch.stack([torch.stack([g.square().sum() for g in grads]).sum().sqrt() for grads in singles])
        clip = float(norms.median()) * (1 - CLIP_MARGIN)
        for grads, norm in zip(singles, norms, strict=True):
            for name, grad in zip(trainable, grads, strict=True):
                total[name] += grad * min(1.0, clip / float(norm))
        model.train(was_training)
        return total, norms

    return sum_of_singles


@pytest.fixture(scope="session")
def run_engine() -> RunEngine:
    """Return the sum and norms by the named engine, attached and removed, in micro-batches of ``rows``."""

    def run(
        model: nn.Module, name: str, records: Sequence[Example], bound: float, *, rows: int | None = None
    ) -> tuple[Sums, Tensor]:
        engine = engines._ENGINES[name](model)
        sums = {key: torch.zeros_like(p) for key, p in trainable_parameters(model).items()}
        norms = list[Tensor]()
        rows = rows or len(records)
        try:
            for start in range(0, len(records), rows):
                batch = collate(records[start : start + rows], pad_token_id=0)
                with engine.tape(rows=batch.rows) as tape:
                    norms.append(tape.clip_into(sums, record_losses(model, batch), per_sample_max_grad_norm=bound))
        finally:
            engine.close()
        return sums, torch.cat(norms)

    return run


@pytest.fixture(scope="session")
def assert_equal() -> AssertEqual:
    """Return a comparison of norms and sums, each relative to its own size."""

    def check(found: tuple[Sums, Tensor], wanted: tuple[Sums, Tensor], *, tolerance: float) -> None:
        torch.testing.assert_close(found[1], wanted[1], rtol=tolerance, atol=0)
        whole = size(wanted[0])
        assert whole > 0
        for name, value in wanted[0].items():
            error = float((found[0][name] - value).norm()) / max(float(value.norm()), 1e-5 * whole)
            assert error <= tolerance, f"{name} is off by {error:.1e}"

    return check


def size(sums: Mapping[str, Tensor]) -> float:
    """Return the L2 norm over all tensors, in float64."""
    return math.sqrt(sum(float(total.double().square().sum()) for total in sums.values()))


@pytest.fixture
def really_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers' own norms and rotary tables, written in float32, compute in float64, in backward too."""
    for name in ("to", "float"):
        monkeypatch.setattr(torch.Tensor, name, _stays_double(getattr(torch.Tensor, name), name))


def _stays_double(unpatched: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
    """Leave a float64 tensor alone where it is asked to become float32."""

    def patched(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        wants_float32 = name == "float" or torch.float32 in (*args, kwargs.get("dtype"))
        return x if wants_float32 and x.dtype == torch.float64 else unpatched(x, *args, **kwargs)

    return patched


@pytest.fixture
def killed_in_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """A run within is killed in its n-th step, after it was counted."""

    @contextmanager
    def killed(step: int) -> Iterator[None]:
        calls = 0

        def patched(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step:
                raise KeyboardInterrupt
            return sum_clipped_gradients(*args, **kwargs)

        with monkeypatch.context() as context:
            context.setattr("safesynthdp.training.loop.sum_clipped_gradients", patched)
            yield

    return killed
