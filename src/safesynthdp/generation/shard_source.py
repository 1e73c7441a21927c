"""Logits of many shards at once: sources (b), records in context, and (c), adapters.

Here: rows, calls and their fixed shapes. Elsewhere: the loop (output_decoding.py), padding (padded.py).

Guarantee:
    The public branch has calls of its own with no private row in them. Private rows of one batch never share a call
    with those of another, and every call has a public number of rows and tokens, filled up with dummy rows: removing a
    record of one batch changes no bit of any other. Shapes: G texts, R rows of a call, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from safesynthdp.errors import SafeSynthError, UserError
from safesynthdp.generation.output_decoding import Logits
from safesynthdp.generation.padded import PaddedMemory

_ROUTED = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The private rows of one text."""

    rows: Sequence[tuple[int, ...] | None]
    """One prompt a shard; None where a shard has no record, so that the others keep their places."""
    public: tuple[int, ...]
    """The same words without a record."""


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Public numbers."""

    rows_per_call: int
    width: int
    """Of private prompts."""
    public_width: int


class ShardSource:
    """G texts, each with its own private rows; the prompts are read once and used for several texts in turn."""

    can_shrink = False

    def __init__(
        self,
        model: nn.Module,
        texts: Sequence[Prompts],
        *,
        shapes: Shapes,
        has_public: bool = True,
        forward: Callable[..., Any] | None = None,
    ) -> None:
        self._texts, self._shapes = texts, shapes
        self._public = PaddedMemory(model) if has_public else None
        self._calls = [
            [PaddedMemory(model, forward=forward) for _ in range(-(-max(len(text.rows), 1) // shapes.rows_per_call))]
            for text in texts
        ]
        self._is_started = False
        self.forward_tokens = 0

    def start(self) -> Logits:
        """Read all prompts, or go back to them."""
        if self._is_started:
            public_GV = None if self._public is None else self._public.restart()
            return self._logits(public_GV, [[call.restart() for call in calls] for calls in self._calls])
        self._is_started = True
        shapes = self._shapes
        public = [text.public for text in self._texts]
        public_GV = None if self._public is None else self._public.start(public, width=shapes.public_width)
        found = list[list[Tensor]]()
        for text, calls in zip(self._texts, self._calls, strict=True):
            rows = [text.public if row is None else row for row in text.rows]
            rows += [text.public] * (len(calls) * shapes.rows_per_call - len(rows))
            cuts = [rows[i * shapes.rows_per_call :][: shapes.rows_per_call] for i in range(len(calls))]
            found.append([call.start(cut, width=shapes.width) for call, cut in zip(calls, cuts, strict=True)])
        return self._logits(public_GV, found)

    def append(self, tokens_G: Tensor) -> Logits:
        """Append each text's token to all its rows."""
        public_GV = None if self._public is None else self._public.append(tokens_G)
        found = [
            [call.append(token.expand(self._shapes.rows_per_call)) for call in calls]
            for token, calls in zip(tokens_G, self._calls, strict=True)
        ]
        self.forward_tokens += sum(len(calls) for calls in self._calls) * self._shapes.rows_per_call
        self.forward_tokens += 0 if self._public is None else len(self._texts)
        return self._logits(public_GV, found)

    def select(self, kept_G: Tensor) -> None:
        """Refuse: shapes are public and stay (``can_shrink``)."""
        raise SafeSynthError(f"{len(kept_G)} texts cannot be kept apart from the others; this is a defect")

    def _logits(self, public_GV: Tensor | None, found: Sequence[Sequence[Tensor]]) -> Logits:
        private = list[Tensor]()
        for text, calls in zip(self._texts, found, strict=True):
            present = [i for i, row in enumerate(text.rows) if row is not None]
            private.append(torch.cat(list(calls))[present])
        return Logits(public_GV=public_GV, private=private)


def refuse_shared_rows(model: nn.Module) -> None:
    """Refuse models in which one row can change another.

    Raises:
        UserError: For expert routing with a capacity, and for quantised models.
    """
    config: Any = model.config
    parts = [config, *(part for part in vars(config).values() if hasattr(part, "__dict__"))]
    for part, name in ((part, name) for part in parts for name in _ROUTED):
        if (getattr(part, name, None) or 0) > 1:
            raise UserError(
                f"model: {name}={getattr(part, name)}: routing between experts lets one record's row reach "
                "another's; choose a dense model"
            )
    if getattr(config, "quantization_config", None) is not None:
        raise UserError("model: its weights are quantised and may share a scale across rows; choose another model")
