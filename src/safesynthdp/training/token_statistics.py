"""What one model says of every token of a record: log-probability, the moments around it, whether it came first.

Here: one forward pass a micro-batch, dealt out over the ranks, four numbers a token brought to the host. Elsewhere:
what attacks make of the four (attacks/signals.py). Source: Zhang et al. (2024), arXiv:2404.02936, for the moments.
Shapes: B rows, K kept positions, N scored tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from safesynthdp.training.examples import Batch, Example, collate
from safesynthdp.training.loss import target_logits, wide
from safesynthdp.training.micro_batching import micro_batches
from safesynthdp.training.ranks import Ranks
from safesynthdp.training.sharding import deal

LEAST_DEVIATION = 1e-6
"""A sharper distribution than this has no spread to divide by."""
_COLUMNS = 4
_TOKENS_AT_ONCE = 512  # of whole-vocabulary work: three float32 buffers of this many rows
_LEAST_LOG_PROB = -1e4  # exp is 0 here, and 0 times this is 0 where 0 times -infinity is not


@dataclass(frozen=True, kw_only=True)
class TokenStatistics:
    """Of one record's n own scored tokens: never the prompt, never padding."""

    log_probs: NDArray[np.float64]
    """[n] log p(token | tokens before it)."""
    means: NDArray[np.float64]
    """[n] ``mu = sum_v p_v log p_v`` over the vocabulary."""
    deviations: NDArray[np.float64]
    """[n] ``sigma = sqrt(sum_v p_v (log p_v - mu)^2)``, at least ``LEAST_DEVIATION``."""
    is_top: NDArray[np.bool_]
    """[n] whether no other token was more probable."""


def token_statistics(
    model: nn.Module,
    examples: Sequence[Example],
    *,
    max_tokens_per_microbatch: int = 4096,
    progress: Callable[[int], None] | None = None,
    ranks: Ranks | None = None,
) -> list[TokenStatistics]:
    """Return the statistics of each example, in the order given.

    Logits become float32 (float64 stays) before the log-softmax. The moments are taken on the model's device, a few
    hundred tokens at a time, so no second copy of all logits is ever held.

    Args:
        model: A causal LM; it is put into eval mode.
        examples: Encoded in the training template, each alone.
        max_tokens_per_microbatch: Rows x padded length of a forward pass; memory only.
        progress: Called with the number of examples done since the last call.
        ranks: Deal the same micro-batches out and bring all numbers to every rank, the same bits; None = alone.
    """
    ranks = ranks or Ranks()
    device = next(model.parameters()).device
    scored: list[NDArray[np.float64] | None] = [None] * len(examples)
    model.eval()
    with torch.inference_mode():
        alone = [[example] for example in examples]
        planned = list(micro_batches(alone, max_tokens=max_tokens_per_microbatch, max_rows=None))
        costs = [len(chosen) * max(len(examples[i]) for i in chosen) for chosen in planned]
        for chosen in [planned[i] for i in deal(costs, world_size=ranks.world_size)[ranks.rank]]:
            batch = collate([examples[i] for i in chosen], pad_token_id=0, device=device)
            for index, columns_4n in zip(chosen, _look(model, batch), strict=True):
                scored[index] = columns_4n
            if progress is not None:
                progress(len(chosen))
    rows = _from_all(scored, examples, ranks)
    return [TokenStatistics(log_probs=r[0], means=r[1], deviations=r[2], is_top=r[3].astype(np.bool_)) for r in rows]


def _from_all(
    scored: Sequence[NDArray[np.float64] | None], examples: Sequence[Example], ranks: Ranks
) -> list[NDArray[np.float64]]:
    """Fill in what other ranks scored: every number is one rank's, the others add zero."""
    shapes = [(_COLUMNS, len(example) - example.num_prompt_tokens) for example in examples]
    whole = [np.zeros(shape) if row is None else row for row, shape in zip(scored, shapes, strict=True)]
    if not ranks.are_several or not whole:
        return whole
    flat = np.concatenate([row.reshape(-1) for row in whole])
    ranks.add_up_facts(torch.from_numpy(flat))
    parts = np.split(flat, np.cumsum([rows * tokens for rows, tokens in shapes])[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _look(model: nn.Module, batch: Batch) -> list[NDArray[np.float64]]:
    """Return the four columns of each row's scored tokens, [4, n] each."""
    logits_BKV, targets_BK = target_logits(model, batch)
    mask_BK = batch.target_mask_BT[:, -targets_BK.shape[1] :]
    columns_4N = torch.stack([column.double() for column in _moments(logits_BKV, targets_BK, mask_BK)])
    return [part.cpu().numpy() for part in torch.split(columns_4N, mask_BK.sum(dim=1).tolist(), dim=1)]


def _moments(logits_BKV: Tensor, targets_BK: Tensor, mask_BK: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the four columns of all scored tokens, row after row, [N] each."""
    rows, positions = mask_BK.nonzero(as_tuple=True)
    parts = list[tuple[Tensor, Tensor, Tensor, Tensor]]()
    for start in range(0, len(rows), _TOKENS_AT_ONCE):
        here = slice(start, start + _TOKENS_AT_ONCE)
        logits_NV = wide(logits_BKV[rows[here], positions[here]])
        targets_N1 = targets_BK[rows[here], positions[here]][:, None]
        logs_NV = logits_NV.log_softmax(dim=1)
        picked_N1 = logs_NV.gather(1, targets_N1)
        is_top_N = (logs_NV <= picked_N1).all(dim=1)
        logs_NV = logs_NV.clamp(min=_LEAST_LOG_PROB)
        probabilities_NV = logs_NV.exp()
        means_N = (probabilities_NV * logs_NV).sum(dim=1)
        squares_N = (probabilities_NV * (logs_NV - means_N[:, None]).square()).sum(dim=1)
        parts.append((picked_N1[:, 0], means_N, squares_N.sqrt().clamp(min=LEAST_DEVIATION), is_top_N))
    if not parts:
        empty = logits_BKV.new_empty(0)
        return empty, empty, empty, empty.bool()
    log_probs, means, deviations, is_top = (torch.cat(column) for column in zip(*parts, strict=True))
    return log_probs, means, deviations, is_top
