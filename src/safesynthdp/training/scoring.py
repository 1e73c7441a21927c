"""Per-token log-probabilities of many records under one model.

Here: the signal every membership attack and perplexity starts from. Elsewhere: what is made of it (attacks/).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from safesynthdp.training.examples import Example, collate
from safesynthdp.training.loss import target_log_probs
from safesynthdp.training.micro_batching import micro_batches
from safesynthdp.training.ranks import Ranks
from safesynthdp.training.sharding import deal


def token_log_probs(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    max_tokens_per_microbatch: int = 4096,
    progress: Callable[[int], None] | None = None,
    ranks: Ranks | None = None,
) -> list[NDArray[np.float64]]:
    """Return, for each example, log p of its own text tokens and its end (never the prompt), in the order given.

    Args:
        model: A causal LM; it is put into eval mode.
        examples: Encoded in the training template, each alone.
        max_tokens_per_microbatch: Rows x padded length of a forward pass.
        progress: Called with the number of examples done since the last call.
        ranks: Deal the same micro-batches out and bring all numbers to every rank, the same bits; None = alone.
    """
    ranks = ranks or Ranks()
    device = next(model.parameters()).device
    scored: list[NDArray[np.float64]] = [np.empty(0)] * len(examples)
    model.eval()
    with torch.inference_mode():
        alone = [[example] for example in examples]
        planned = list(micro_batches(alone, max_tokens=max_tokens_per_microbatch, max_rows=None))
        costs = [len(chosen) * max(len(examples[i]) for i in chosen) for chosen in planned]
        for chosen in [planned[i] for i in deal(costs, world_size=ranks.world_size)[ranks.rank]]:
            batch = collate([examples[i] for i in chosen], pad_token_id=0, device=device)
            picked_BT = target_log_probs(model, batch).double().cpu().numpy()
            for row, index in enumerate(chosen):
                example = examples[index]
                scored[index] = picked_BT[row, example.num_prompt_tokens : len(example)].copy()
            if progress is not None:
                progress(len(chosen))
    return _from_all(scored, examples, ranks)


def _from_all(
    scored: list[NDArray[np.float64]], examples: Sequence[Example], ranks: Ranks
) -> list[NDArray[np.float64]]:
    """Fill in what other ranks scored: every number is one rank's, the others add zero."""
    if not ranks.are_several:
        return scored
    sizes = [len(example) - example.num_prompt_tokens for example in examples]
    flat = np.concatenate([np.zeros(0), *(s if len(s) else np.zeros(n) for s, n in zip(scored, sizes, strict=True))])
    ranks.add_up_facts(torch.from_numpy(flat))
    return np.split(flat, np.cumsum(sizes)[:-1]) if examples else []
