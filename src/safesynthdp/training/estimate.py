"""How long the planned steps will take, from one made-up micro-batch.

Here: the measurement and the line that says it. Elsewhere: memory, and models that are not loaded (dry_run.py).
"""

import math
import statistics
import time

import torch
from torch import nn

from safesynthdp.progress import duration
from safesynthdp.runs import RunDirectory
from safesynthdp.training.clipping import ClippingEngine
from safesynthdp.training.config import FinetuneConfig
from safesynthdp.training.examples import Example
from safesynthdp.training.full_shards import trained_here
from safesynthdp.training.preparing import Prepared, vocab_size_of
from safesynthdp.training.ranks import Ranks
from safesynthdp.training.step import clip_units, zero_sums


def say_estimate(config: FinetuneConfig, run: RunDirectory, ready: Prepared, *, steps: int) -> None:
    """Time one made-up micro-batch and say how long the planned steps will take."""
    batch = config.train.expected_batch_size
    length = max(8, round(statistics.fmean(len(example) for example in ready.examples)))
    rows = max(1, min(32, batch, config.hardware.max_tokens_per_microbatch // length))
    pace = seconds_per_token(
        ready.model,
        ready.engine,
        rows=rows,
        length=length,
        vocab_size=vocab_size_of(ready.model),
        pad_token_id=ready.pad_token_id,
        ranks=ready.ranks,
    )
    seconds = pace * length * batch * max(steps, 0) / ready.ranks.world_size
    run.say(f"about {duration(seconds)} for {steps} steps of {batch} records on average")


def seconds_per_token(
    model: nn.Module,
    engine: ClippingEngine,
    *,
    rows: int,
    length: int,
    vocab_size: int,
    pad_token_id: int,
    ranks: Ranks | None = None,
) -> float:
    """Time one clipped micro-batch of made-up records and return seconds per token."""
    trainable = trained_here(model, ranks or Ranks())
    device = next(iter(trainable.values())).device
    ids = torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(0)).tolist()
    made = [[Example(input_ids=tuple(row), num_prompt_tokens=1, is_truncated=False)] for row in ids]
    bound, pad = math.inf if engine.name == "plain" else 1.0, pad_token_id
    sums = zero_sums(trainable)
    began = time.monotonic()
    clip_units(model, engine, sums, made, per_sample_max_grad_norm=bound, pad_token_id=pad, device=device)
    return (time.monotonic() - began) / (rows * length)
