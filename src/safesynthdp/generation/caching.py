"""What a model remembers of the rows it decodes: a growing key-value cache, or nothing.

Here: one step of every row, and dropping rows. Elsewhere: which token comes next (draws.py), when a row ends
(decoding.py). Shapes: B rows, L tokens so far, equal in all rows (so neither padding nor a mask), V
vocabulary.
"""

import inspect
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

_ROOM = 32
_CACHE_KEYWORDS = ("cache", "past_key_values")


class Memory(Protocol):
    """A model together with the rows it is in the middle of."""

    def start(self, prompts_BL: Tensor) -> Tensor:
        """Read the prompts and return [B, V] logits of the next token."""
        ...

    def append(self, tokens_B: Tensor) -> Tensor:
        """Append one token to every row and return [B, V] logits of the next."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may be named more than once."""
        ...


def memory_of(model: nn.Module) -> Memory:
    """Return the fastest memory the model can use."""
    return PlainMemory(model) if cache_keyword(model) is None else CachedMemory(model)


def cache_keyword(model: nn.Module) -> str | None:
    """Return under which name the model takes its cache: ``past_key_values``, in later transformers ``cache``."""
    known = inspect.signature(model.forward).parameters
    return next((name for name in _CACHE_KEYWORDS if name in known), None)


class CachedMemory:
    """Reads each token once: keys and values of earlier ones are kept."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._extra = last_logits_only(model)
        self._cache = roomy_cache(model)
        self._keyword = cache_keyword(model) or _CACHE_KEYWORDS[-1]

    def start(self, prompts_BL: Tensor) -> Tensor:
        """Read the prompts and return [B, V] logits of the next token."""
        return self._read(prompts_BL)

    def append(self, tokens_B: Tensor) -> Tensor:
        """Append one token to every row and return [B, V] logits of the next."""
        return self._read(tokens_B[:, None])

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self._cache.reorder_cache(rows)  # type: ignore[arg-type]  # any integer tensor selects rows

    def _read(self, tokens_BL: Tensor) -> Tensor:
        memory: dict[str, Any] = {self._keyword: self._cache, "use_cache": True}
        output = self._model(input_ids=tokens_BL, **memory, **self._extra)
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV


class PlainMemory:
    """Reads everything again for every token: for models without a cache of this kind, and the reference in tests."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._extra = last_logits_only(model)
        self._tokens_BL = torch.empty(0, 0, dtype=torch.int64)

    def start(self, prompts_BL: Tensor) -> Tensor:
        """Read the prompts and return [B, V] logits of the next token."""
        self._tokens_BL = prompts_BL
        return self._read()

    def append(self, tokens_B: Tensor) -> Tensor:
        """Append one token to every row and return [B, V] logits of the next."""
        self._tokens_BL = torch.cat([self._tokens_BL, tokens_B[:, None]], dim=1)
        return self._read()

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        self._tokens_BL = self._tokens_BL[rows]

    def _read(self) -> Tensor:
        logits_BV: Tensor = self._model(input_ids=self._tokens_BL, use_cache=False, **self._extra).logits[:, -1]
        return logits_BV


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values in a buffer with room to grow.

    The layer of transformers copies everything it holds for every token: a quarter of the time of a small model on a
    CPU. This one copies once in 32 tokens.
    """

    _rooms: list[Tensor]
    _used: int

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [B, heads, new, width] keys and values and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rooms = [key_states[:, :, :0], value_states[:, :, :0]]
            self._used = 0
        end = self._used + key_states.shape[-2]
        for which, new in enumerate((key_states, value_states)):
            if end > self._rooms[which].shape[-2]:
                self._rooms[which] = _with_room(self._rooms[which], self._used, end + _ROOM)
            self._rooms[which][:, :, self._used : end] = new
        self._show(end)
        return self._rooms[0][:, :, :end], self._rooms[1][:, :, :end]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, in this order; the room to grow stays."""
        if not self.is_initialized:
            return  # a layer that shares the keys of another one
        self._rooms = [_select_used(room, beam_idx, self._used) for room in self._rooms]
        self._show(self._used)

    def keep_first(self, count: int) -> None:
        """Forget all but the first tokens; the room they took stays."""
        if self.is_initialized:
            self._show(min(count, self._used))

    def _show(self, used: int) -> None:
        self._used = used
        self.keys, self.values = (room[:, :, :used] for room in self._rooms)


def roomy_cache(model: nn.Module) -> Cache:
    """Return an empty cache of the model's own layout; layers that only grow are given room."""
    cache = DynamicCache(config=model.config)  # type: ignore[arg-type]  # that of a transformers model
    cache.layers = [_roomy(layer) for layer in cache.layers]
    return cache


def _roomy(layer: Any) -> Any:
    return RoomyLayer() if type(layer) is DynamicLayer else layer  # type: ignore[no-untyped-call]


def _with_room(room: Tensor, used: int, size: int) -> Tensor:
    wider = room.new_empty((*room.shape[:2], size, room.shape[3]))
    wider[:, :, :used] = room[:, :, :used]
    return wider


def _select_used(room: Tensor, rows: Tensor, used: int) -> Tensor:
    chosen = room.new_empty((len(rows), *room.shape[1:]))
    chosen[:, :, :used] = room[:, :, :used].index_select(0, rows)
    return chosen


def last_logits_only(model: nn.Module) -> dict[str, int]:
    """Logits of all other positions are never looked at."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
