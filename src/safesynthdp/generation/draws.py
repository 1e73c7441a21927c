"""From logits to tokens: temperature, top-k, top-p, and one uniform number a token.

Here: the distribution and the draw. Elsewhere: the loop over positions (decoding.py). Shapes: B rows, V vocabulary,
T positions, K blocks of the vocabulary.

Row r takes its numbers from Philox keyed on (seed, r), position t the t-th of them, so a text depends on seed and row
alone: not on the batch it was in, nor on the rows beside it. Rounding is the limit: a batch of another size may change
the last bits of a logit, and a draw that falls exactly there changes with it (about one token in a million in float32).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safesynthdp.errors import SafeSynthError

_BLOCK = 256
_TEXT_STREAM = 1


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn. The defaults are the model's own distribution."""

    temperature: float = 1.0
    """Divides the logits; finite and above 0."""
    top_k: int = 0
    """Keep the k likeliest tokens (and ties with the k-th); 0 = all."""
    top_p: float = 1.0
    """Keep the smallest set of likeliest tokens with at least this probability, after top_k; 1 = all."""

    def weights(self, logits_BV: Tensor) -> Tensor:
        """Return [B, V] weights, proportional to the probabilities, 0 where a token is left out.

        In float32 whatever the model runs in (float64 for float64 logits). At the defaults rows sum to 1.
        """
        wide_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
        wide_BV = wide_BV if self.temperature == 1 else wide_BV / self.temperature
        if 0 < self.top_k < wide_BV.shape[1]:
            lowest_B1 = wide_BV.topk(self.top_k, dim=1).values[:, -1:]
            wide_BV = wide_BV.masked_fill(wide_BV < lowest_B1, -torch.inf)
        weights_BV = wide_BV.softmax(dim=1)
        return weights_BV if self.top_p == 1 else _nucleus(weights_BV, self.top_p)


def uniforms(rows: Sequence[int], *, seed: int, steps: int) -> NDArray[np.float64]:
    """Return [B, T] numbers in [0, 1): the first ``steps`` of each row's own stream."""
    return np.stack([stream(seed, _TEXT_STREAM, row).random(steps) for row in rows])


def stream(seed: int, *path: int) -> np.random.Generator:
    """Return the generator named by ``seed`` and ``path``; equal names give equal numbers, others unrelated ones."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=path)))


def draw(weights_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Return [B] token ids: the first whose cumulative weight passes ``uniform * total``.

    A token without weight is never drawn. The sum runs in float64 over blocks of the vocabulary, then inside the block
    that was hit: as exact as one long float64 sum, and several times faster.

    Args:
        weights_BV: [B, V], not negative; need not sum to 1.
        uniform_B: [B] float64 in [0, 1).

    Raises:
        SafeSynthError: If a row has no finite, positive total (the model gave NaN).
    """
    short = -weights_BV.shape[1] % _BLOCK
    padded_BV = torch.nn.functional.pad(weights_BV, (0, short)) if short else weights_BV
    blocks_BKV = padded_BV.view(len(padded_BV), -1, _BLOCK)
    upto_BK = blocks_BKV.sum(dim=2, dtype=torch.float64).cumsum(dim=1)
    total_B = upto_BK[:, -1]
    if not bool(((total_B > 0) & total_B.isfinite()).all()):
        raise SafeSynthError(
            "the model gives logits that are not finite; its weights are damaged or its dtype too narrow"
        )
    target_B1 = (uniform_B * total_B)[:, None]
    block_B1 = _first_above(upto_BK, target_B1)
    before_B1 = torch.where(block_B1 > 0, upto_BK.gather(1, (block_B1 - 1).clamp(min=0)), 0.0)
    rows = torch.arange(len(block_B1), device=weights_BV.device)
    inside_BV = blocks_BKV[rows, block_B1[:, 0]].double().cumsum(dim=1)
    token_B1: Tensor = block_B1 * _BLOCK + _first_above(inside_BV, target_B1 - before_B1)
    return token_B1[:, 0]


def _first_above(sums_BN: Tensor, target_B1: Tensor) -> Tensor:
    """Return [B, 1] the first position whose sum is above the target; rounding never moves it past the last weight."""
    last_B1 = torch.nextafter(sums_BN[:, -1:], torch.zeros_like(target_B1))
    return torch.searchsorted(sums_BN, torch.minimum(target_B1, last_B1), right=True)


def _nucleus(weights_BV: Tensor, top_p: float) -> Tensor:
    """Zero all but the likeliest tokens that together reach ``top_p``; the likeliest always stays."""
    sorted_BV, order_BV = weights_BV.sort(dim=1, descending=True)
    before_BV = sorted_BV.double().cumsum(dim=1) - sorted_BV
    kept_BV = sorted_BV.masked_fill(before_BV >= top_p, 0.0)
    return torch.zeros_like(weights_BV).scatter(1, order_BV, kept_BV)
