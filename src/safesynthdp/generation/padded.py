"""Rows of a fixed, public shape: prompts of different lengths beside one another, with keys and values kept.

Here: left padding to a public width, one token more, back to the prompts. Elsewhere: rows of equal prompts
(caching.py), which rows there are (shard_source.py). Shapes: R rows, W padded prompt tokens, V vocabulary.

Guarantee:
    A row never attends to another row, and the shape of every call is public: R, W and the number of tokens drawn so
    far. So what one record does to the row of another is nothing, not even through rounding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from safesynthdp.errors import ConfigError
from safesynthdp.generation.caching import RoomyLayer, cache_keyword, last_logits_only, roomy_cache

_FILLER = 0


class PaddedMemory:
    """A model in the middle of R rows that all continue with the same number of tokens.

    Args:
        model: In eval mode; its config says how the cache is laid out.
        forward: What is called in place of the model, for example with adapters switched on.
    """

    def __init__(self, model: nn.Module, *, forward: Callable[..., Any] | None = None) -> None:
        self._model, self._forward = model, forward or model
        self._device = next(model.parameters()).device
        self._cache: Any = None
        self._extra = last_logits_only(model)
        self._keyword = cache_keyword(model) or "past_key_values"
        self._first_RV = torch.empty(0)
        self._prompts_RW = self._prompt_mask_RW = torch.empty(0, 0, dtype=torch.int64)
        self._mask_RL = self._prompt_mask_RW

    def start(self, prompts: Sequence[Sequence[int]], *, width: int) -> Tensor:
        """Read the prompts, once, and return [R, V] logits of the next token.

        Raises:
            ConfigError: If a prompt is longer than the public width.
        """
        if any(not 0 < len(prompt) <= width for prompt in prompts):
            raise ConfigError(f"width={width} is not the length of the longest prompt; prompts must fit it")
        padded = [[_FILLER] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self._prompts_RW = torch.tensor(padded, device=self._device)
        self._prompt_mask_RW = torch.tensor(mask, device=self._device)
        return self._begin()

    def append(self, tokens_R: Tensor) -> Tensor:
        """Append one token to every row and return [R, V] logits of the next."""
        positions_R1 = self._mask_RL.sum(dim=1, keepdim=True)
        ones_R1 = torch.ones_like(self._mask_RL[:, :1])
        self._mask_RL = torch.cat([self._mask_RL, ones_R1], dim=1)
        return self._read(tokens_R.to(self._device)[:, None], positions_R1)

    def restart(self) -> Tensor:
        """Go back to the prompts, without reading them again where the model's cache only grows."""
        layers = self._cache.layers
        if not all(isinstance(layer, RoomyLayer) for layer in layers):
            return self._begin()
        for layer in layers:
            layer.keep_first(self._prompts_RW.shape[1])
        self._mask_RL = self._prompt_mask_RW
        return self._first_RV

    def _begin(self) -> Tensor:
        self._cache = roomy_cache(self._model)
        self._mask_RL = self._prompt_mask_RW
        self._first_RV = self._read(self._prompts_RW, (self._mask_RL.cumsum(dim=1) - 1).clamp(min=0))
        return self._first_RV

    def _read(self, tokens_RL: Tensor, positions_RL: Tensor) -> Tensor:
        output = self._forward(
            input_ids=tokens_RL,
            attention_mask=self._mask_RL,
            position_ids=positions_RL,
            use_cache=True,
            **{self._keyword: self._cache},
            **self._extra,
        )
        logits_RV: Tensor = output.logits[:, -1]
        return logits_RV
