"""Before the first step: is what the engine adds up really a sum of clipped per-record gradients?

Here: three made-up ragged records through the real model and engine, against a loop over single records. No private
record is touched and nothing is spent. Elsewhere: static refusals by name (models.py).
"""

import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from safesynthdp.errors import UnsupportedLayer
from safesynthdp.training.clipping import ClippingEngine, trainable_parameters
from safesynthdp.training.examples import Example, collate
from safesynthdp.training.loss import record_losses
from safesynthdp.training.step import zero_sums

RELATIVE_TOLERANCE = 1e-3
_LENGTHS = (7, 12, 9)


def check_engine(model: nn.Module, engine: ClippingEngine, *, vocab_size: int, pad_token_id: int) -> None:
    """Compare the engine with single records: norms, clipped sum, and that every trainable is reached.

    Adapters start at B = 0, where every gradient of A is 0 and a defect would hide: they are filled at random for the
    check and restored after it.

    Raises:
        UnsupportedLayer: Naming the first parameter whose gradient is wrong, and the way out.
    """
    trainable = trainable_parameters(model)
    before = {name: parameter.detach().clone() for name, parameter in trainable.items()}
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    rates = [module.p for module in dropouts]
    generator = torch.Generator().manual_seed(0)
    try:
        for module in dropouts:
            module.p = 0.0
        _fill_zero_tensors(trainable, generator)
        examples = _made_up(vocab_size=vocab_size, pad_token_id=pad_token_id, generator=generator)
        _compare(model, engine, examples, pad_token_id=pad_token_id)
    finally:
        for module, rate in zip(dropouts, rates, strict=True):
            module.p = rate
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(before[name])
                parameter.grad = None


def _compare(model: nn.Module, engine: ClippingEngine, examples: Sequence[Example], *, pad_token_id: int) -> None:
    trainable = trainable_parameters(model)
    device = next(iter(trainable.values())).device
    with engine.paused():
        singles = [_single_gradient(model, example, pad_token_id=pad_token_id) for example in examples]
    norms = torch.stack([torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt() for grads in singles])
    bound = float(norms.median())
    sums = zero_sums(trainable)
    losses_B = record_losses(model, collate(examples, pad_token_id=pad_token_id, device=device))
    found_B = engine.clip_into(sums, losses_B, per_sample_max_grad_norm=bound)
    if not torch.allclose(found_B.to(norms.device), norms, rtol=RELATIVE_TOLERANCE):
        raise UnsupportedLayer(f"{_worst(sums, singles)}: per-record norms are wrong in a batch; freeze it or use LoRA")
    for name, total in sums.items():
        scales = [min(1.0, bound / float(norm)) for norm in norms]
        expected = sum(
            (grads[name] * scale for grads, scale in zip(singles, scales, strict=True)), torch.zeros_like(total)
        )
        if not bool(expected.any()):
            raise UnsupportedLayer(
                f"{name} is trainable but no record reaches it; freeze it or change lora.target_modules"
            )
        error = float((total - expected).norm() / expected.norm())
        if not error < 3 * RELATIVE_TOLERANCE:  # the clip's own margin is 1e-3
            raise UnsupportedLayer(f"{name}: the clipped sum is off by {error:.1e}; freeze it or use LoRA")


def _single_gradient(model: nn.Module, example: Example, *, pad_token_id: int) -> dict[str, Tensor]:
    """Return the gradient of one unpadded record's loss by plain autograd, every engine hook at rest."""
    trainable = trainable_parameters(model)
    device = next(iter(trainable.values())).device
    model.eval()  # without checkpointing, which plain autograd.grad cannot cross
    loss = record_losses(model, collate([example], pad_token_id=pad_token_id, device=device))[0]
    grads = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
    model.train()
    named = zip(trainable.items(), grads, strict=True)
    return {name: torch.zeros_like(p) if g is None else g.detach().float() for (name, p), g in named}


def _worst(sums: Mapping[str, Tensor], singles: Sequence[Mapping[str, Tensor]]) -> str:
    """Name the parameter whose sum is furthest from the loop's, for the error message."""

    def distance(name: str) -> float:
        plain = torch.stack([grads[name] for grads in singles]).sum(dim=0)
        return float((sums[name] / sums[name].norm().clamp(min=1e-12) - plain / plain.norm().clamp(min=1e-12)).norm())

    return max(sums, key=distance)


def _fill_zero_tensors(trainable: Mapping[str, nn.Parameter], generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in trainable.values():
            if not bool(parameter.any()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


def _made_up(*, vocab_size: int, pad_token_id: int, generator: torch.Generator) -> list[Example]:
    """Three records of random tokens, with the pad token inside one of them."""
    made = list[Example]()
    for row, length in enumerate(_LENGTHS):
        ids = torch.randint(vocab_size, (length,), generator=generator).tolist()
        if row == 0:
            ids[3] = pad_token_id
        made.append(Example(input_ids=tuple(ids), num_prompt_tokens=2, is_truncated=False))
    return made


def seconds_per_token(
    model: nn.Module, engine: ClippingEngine, *, rows: int, length: int, vocab_size: int, pad_token_id: int
) -> float:
    """Time one clipped micro-batch of made-up records and return seconds per token."""
    trainable = trainable_parameters(model)
    device = next(iter(trainable.values())).device
    ids = torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(0)).tolist()
    made = [Example(input_ids=tuple(row), num_prompt_tokens=1, is_truncated=False) for row in ids]
    began = time.monotonic()
    losses_B = record_losses(model, collate(made, pad_token_id=pad_token_id, device=device))
    bound = math.inf if engine.name == "plain" else 1.0
    engine.clip_into(zero_sums(trainable), losses_B, per_sample_max_grad_norm=bound)
    return (time.monotonic() - began) / (rows * length)
