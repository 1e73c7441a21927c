"""What one record can do to the sum: at most the clip, and nothing to what the others add."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safesynthdp.training import bookkeeping, engines, opacus_engines
from safesynthdp.training.clipping import CLIP_MARGIN, clip_factors, trainable_parameters
from safesynthdp.training.examples import Example, collate
from safesynthdp.training.loss import record_losses

VOCAB = 41
MODELS = ("gpt2, untied", "llama", "llama, lora all-linear")
ACCEPTED = [
    *((engine, name) for engine in ("bookkeeping", "hooks", "ghost") for name in MODELS),
    ("bookkeeping", "gpt2, tied"),
    ("hooks", "gpt2, tied"),
    ("bookkeeping", "gemma3"),
]


def size(sums: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(total.double().square().sum()) for total in sums.values()))


@pytest.mark.parametrize(("engine", "name"), ACCEPTED)
def test_one_record_releases_at_most_the_clip_alone_and_among_others(
    build: Any, made_up: Any, run_engine: Any, engine: str, name: str
) -> None:
    model, records = build(name, dtype=torch.float32), made_up()
    _, norms = run_engine(model, engine, records, 1.0)
    for bound in (1e-3, float(norms.min()) / 2, 1e6):
        whole, _ = run_engine(model, engine, records, bound)
        for i, record in enumerate(records):
            alone, _ = run_engine(model, engine, [record], bound)
            assert size(alone) <= bound
            assert size(alone) == pytest.approx(min(float(norms[i]), bound * (1 - CLIP_MARGIN)), rel=1e-3)
            without, _ = run_engine(model, engine, [r for r in records if r is not record], bound)
            moved = size({key: whole[key].double() - without[key].double() for key in whole})
            assert moved <= bound * (1 + 1e-5)


CHANGES = ("content", "length", "prompt", "padding id")


def changed(record: Example, how: str) -> Example:
    ids, prompt = record.input_ids, record.num_prompt_tokens
    if how == "content":
        ids = tuple((i * 7 + 3) % VOCAB for i in ids)
    elif how == "length":
        ids = ids[:5]
    elif how == "prompt":
        prompt += 2
    else:
        ids = (*ids[:4], 0, 0, *ids[6:])
    return Example(input_ids=ids, num_prompt_tokens=prompt, is_truncated=False)


def contribution(
    model: nn.Module, engine: str, records: Sequence[Example], row: int, monkeypatch: pytest.MonkeyPatch
) -> list[Tensor]:
    """Return what one row of a batch adds to the sum: the engine as it is, with the factors of the others at 0."""

    def isolate(norms_U: Tensor, *, per_sample_max_grad_norm: float) -> Tensor:
        factors_U = clip_factors(norms_U, per_sample_max_grad_norm=per_sample_max_grad_norm)
        return torch.where(torch.arange(len(norms_U)) == row, factors_U, 0.0)

    attached = engines._ENGINES[engine](model)
    sums = {key: torch.zeros_like(p) for key, p in trainable_parameters(model).items()}
    with monkeypatch.context() as patched, attached.tape(rows=len(records)) as tape:
        patched.setattr(bookkeeping, "clip_factors", isolate)
        patched.setattr(opacus_engines, "clip_factors", isolate)
        losses_B = record_losses(model, collate(records, pad_token_id=0))
        norms_B = tape.clip_into(sums, losses_B, per_sample_max_grad_norm=0.5)
    attached.close()
    return [losses_B[row].detach(), norms_B[row], *sums.values()]


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize(("engine", "name"), ACCEPTED)
def test_changing_another_record_leaves_my_clipped_gradient_bit_identical(
    build: Any, made_up: Any, monkeypatch: pytest.MonkeyPatch, engine: str, name: str, how: str
) -> None:
    model = build(name, dtype=torch.float32)
    records = made_up((9, 10, 13, 7))  # row 2 keeps the padded width
    prompts = [Example(input_ids=r.input_ids, num_prompt_tokens=1, is_truncated=False) for r in records]
    records = [prompts[0], records[1], prompts[2], prompts[3]]  # and row 0 the first column of the logits
    others = [records[0], changed(records[1], how), *records[2:]]
    for row in (0, 2, 3):
        before = contribution(model, engine, records, row, monkeypatch)
        after = contribution(model, engine, others, row, monkeypatch)
        assert size({str(i): total for i, total in enumerate(before[2:])}) > 0
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    mine = contribution(model, engine, records, 1, monkeypatch)
    theirs = contribution(model, engine, others, 1, monkeypatch)
    assert not torch.equal(mine[1], theirs[1]), "the change itself must be seen"
