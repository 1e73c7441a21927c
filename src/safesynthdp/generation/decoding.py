"""From prompts to finished rows of tokens: a loop of our own around the model.

Here: waves of rows that share a prompt length, retiring rows at the end-of-text token, and making the batch smaller
when many are done. Elsewhere: memory (caching.py), the draw (draws.py), the text (texts.py). ``model.generate`` is not
used: it takes silent defaults (top_k, top_p, penalties) from a model's generation config. Shapes: B rows still in the
batch, L prompt tokens, T new tokens, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from safesynthdp.generation.caching import Memory, memory_of
from safesynthdp.generation.draws import Sampling, draw, uniforms
from safesynthdp.generation.steering import Steering

_COMPACT_BELOW = 0.9


@dataclass(frozen=True, kw_only=True)
class Row:
    """One text to draw."""

    number: int
    """Its place in the output; with the seed it names the row's random numbers."""
    prompt: tuple[int, ...]
    """The label's prompt as token ids; not empty."""
    max_new_tokens: int
    """The end-of-text token included."""
    label: int = 0
    """Position of its label among the run's; names its row of a bias."""


@dataclass(frozen=True, kw_only=True)
class DrawnRow:
    """One text as token ids, without prompt and end."""

    number: int
    """The row it answers."""
    tokens: tuple[int, ...]
    """What was drawn before the end."""
    is_truncated: bool
    """No end-of-text token came within the row's limit."""


def draw_device(model: nn.Module) -> torch.device:
    """Return where tokens are drawn: with the model, but for one that knows no float64."""
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "mps" else device


def waves(rows: Iterable[Row], *, batch_size: int) -> list[list[Row]]:
    """Return groups of at most ``batch_size`` rows with equal prompt lengths and limits, as even as they can be cut.

    Equal prompt lengths need no padding and no mask, whichever labels they belong to.
    """
    alike = defaultdict[tuple[int, int], list[Row]](list)
    for row in rows:
        alike[len(row.prompt), row.max_new_tokens].append(row)
    return [wave for group in alike.values() for wave in _even_cuts(group, batch_size)]


def decode_wave(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    sampling: Sampling,
    eos_token_id: int,
    seed: int,
    on_step: Callable[[list[DrawnRow], int], None],
    memory: Memory | None = None,
    compact_below: float = _COMPACT_BELOW,
    steering: Steering | None = None,
) -> None:
    """Draw one text a row and hand each over as soon as it ends.

    Guarantee:
        What a row becomes depends on the model, ``sampling``, its prompt, ``seed`` and its own number; the other rows
        can change it only through the rounding of a batched product.

    Args:
        model: In eval mode.
        rows: Of one prompt length and one limit.
        sampling: Temperature and truncation.
        eos_token_id: Ends a row.
        seed: Of the draws.
        on_step: Called after every token with the rows it finished and the number of rows that drew one.
        memory: What reads the tokens; by default the fastest this model can use.
        compact_below: The batch is made smaller once less than this share of it is unfinished.
        steering: Added to the logits before ``sampling``.
    """
    with torch.inference_mode():
        _decode(model, rows, sampling, eos_token_id, seed, on_step, memory or memory_of(model), compact_below, steering)


def _decode(
    model: nn.Module,
    rows: Sequence[Row],
    sampling: Sampling,
    eos_token_id: int,
    seed: int,
    on_step: Callable[[list[DrawnRow], int], None],
    memory: Memory,
    compact_below: float,
    steering: Steering | None,
) -> None:
    limit, model_device, device = rows[0].max_new_tokens, next(model.parameters()).device, draw_device(model)
    uniform_RT = torch.from_numpy(uniforms([row.number for row in rows], seed=seed, steps=limit)).to(device)
    tokens_RT = torch.full((len(rows), limit), eos_token_id, dtype=torch.int64, device=device)
    logits_BV = _start(memory, rows, model_device)
    slots_B = torch.arange(len(rows), device=device)  # the row that each slot of the batch holds
    is_live_B = torch.ones(len(rows), dtype=torch.bool, device=device)
    if steering is not None:
        steering.begin([row.label for row in rows])
    for step in range(limit):
        weights_BV = _weights(logits_BV.to(device), sampling, steering, slots_B, is_live_B)
        drawn_B = draw(weights_BV, uniform_RT[slots_B, step])
        drawn_B = torch.where(is_live_B, drawn_B, eos_token_id)
        tokens_RT[slots_B, step] = drawn_B
        if steering is not None:
            steering.follow(drawn_B, slots_B)
        is_last = step + 1 == limit
        ends_B = is_live_B & (is_last | (drawn_B == eos_token_id))
        num_drawn = int(is_live_B.sum())
        is_live_B = is_live_B & ~ends_B
        on_step(_finished(rows, slots_B[ends_B], tokens_RT[:, : step + 1], eos_token_id), num_drawn)
        num_live = num_drawn - int(ends_B.sum())
        if num_live == 0:
            return
        if num_live < compact_below * len(slots_B):
            kept = is_live_B.nonzero()[:, 0]
            memory.select(kept.to(model_device))
            slots_B, drawn_B, is_live_B = slots_B[kept], drawn_B[kept], is_live_B[kept]
        logits_BV = memory.append(drawn_B.to(model_device))


def _weights(
    logits_BV: Tensor,
    sampling: Sampling,
    steering: Steering | None,
    slots_B: Tensor,
    is_live_B: Tensor,
) -> Tensor:
    """Return what the next tokens are drawn from, [B, V]."""
    if steering is None:
        return sampling.weights(logits_BV)
    weights_BV = sampling.weights(steering.steer(logits_BV, slots_B))
    steering.look(weights_BV, slots_B, is_live_B)
    return weights_BV


def _start(memory: Memory, rows: Sequence[Row], device: torch.device) -> Tensor:
    """Read every distinct prompt once, then give each row a copy of what was remembered of its own."""
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    position = {prompt: i for i, prompt in enumerate(prompts)}
    logits_PV = memory.start(torch.tensor(prompts, device=device))
    own_B = torch.tensor([position[row.prompt] for row in rows], device=device)
    memory.select(own_B)
    return logits_PV[own_B]


def _finished(rows: Sequence[Row], ended_E: Tensor, tokens_RT: Tensor, eos_token_id: int) -> list[DrawnRow]:
    """Return the rows that drew their last token in this step."""
    drawn = list[DrawnRow]()
    for slot, tokens in zip(ended_E.tolist(), tokens_RT[ended_E].tolist(), strict=True):
        has_end = tokens[-1] == eos_token_id
        kept = tuple(tokens[:-1] if has_end else tokens)
        drawn.append(DrawnRow(number=rows[slot].number, tokens=kept, is_truncated=not has_end))
    return drawn


def _even_cuts(group: list[Row], batch_size: int) -> list[list[Row]]:
    parts = -(-len(group) // batch_size)
    edges = [len(group) * i // parts for i in range(parts + 1)]
    return [group[low:high] for low, high in pairwise(edges)]
