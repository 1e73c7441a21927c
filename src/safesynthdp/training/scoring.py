"""Per-token log-probabilities of many records under one model.

Here: the signal every membership attack and perplexity starts from. Elsewhere: what is made of it (attacks/).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from safesynthdp.training.examples import Example, collate, micro_batches
from safesynthdp.training.loss import target_log_probs


def token_log_probs(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    max_tokens_per_microbatch: int = 4096,
    progress: Callable[[int], None] | None = None,
) -> list[NDArray[np.float64]]:
    """Return, for each example, log p of its own text tokens and its end (never the prompt), in the order given.

    Args:
        model: A causal LM; it is put into eval mode.
        examples: Encoded in the training template, each alone.
        max_tokens_per_microbatch: Rows x padded length of a forward pass.
        progress: Called with the number of examples done since the last call.
    """
    device = next(model.parameters()).device
    scored: list[NDArray[np.float64]] = [np.empty(0)] * len(examples)
    model.eval()
    with torch.inference_mode():
        alone = [[example] for example in examples]
        for chosen in micro_batches(alone, max_tokens=max_tokens_per_microbatch, max_rows=None):
            batch = collate([examples[i] for i in chosen], pad_token_id=0, device=device)
            picked_BT = target_log_probs(model, batch).double().cpu().numpy()
            for row, index in enumerate(chosen):
                example = examples[index]
                scored[index] = picked_BT[row, example.num_prompt_tokens : len(example)].copy()
            if progress is not None:
                progress(len(chosen))
    return scored
