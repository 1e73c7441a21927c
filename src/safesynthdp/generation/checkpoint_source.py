"""Logits of one tuned model, with or without its base model beside it.

Here: source (a) of the decoding loop. Elsewhere: the loop (output_decoding.py), what a bound on one model is worth
(docs/guarantees.md). Shapes: G texts, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from safesynthdp.generation.caching import Memory, memory_of
from safesynthdp.generation.decoding import DrawnRow, Row, waves
from safesynthdp.generation.output_decoding import Logits, Rule, Text, decode_texts
from safesynthdp.privacy.output_draws import OutputKey


class CheckpointSource:
    """One row a text through the tuned model, and the same tokens through the public model if there is one."""

    can_shrink = True

    def __init__(self, tuned: nn.Module, public: nn.Module | None, prompts: Sequence[tuple[int, ...]]) -> None:
        self._prompts = prompts
        self._device = next(tuned.parameters()).device
        self._tuned = memory_of(tuned)
        self._public = None if public is None else memory_of(public)

    def start(self) -> Logits:
        """Read every distinct prompt once, then give each text a copy of what was remembered of its own."""
        distinct = list(dict.fromkeys(self._prompts))
        position = {prompt: i for i, prompt in enumerate(distinct)}
        own_G = torch.tensor([position[prompt] for prompt in self._prompts], device=self._device)
        return self._logits(lambda memory: _started(memory, torch.tensor(distinct, device=self._device), own_G))

    def append(self, tokens_G: Tensor) -> Logits:
        """Append a token to every text."""
        return self._logits(lambda memory: memory.append(tokens_G.to(self._device)))

    def select(self, kept_G: Tensor) -> None:
        """Keep these texts."""
        for memory in (self._tuned, self._public):
            if memory is not None:
                memory.select(kept_G.to(self._device))

    def _logits(self, read: Callable[[Memory], Tensor]) -> Logits:
        public_GV = None if self._public is None else read(self._public)
        private_GV = read(self._tuned)
        return Logits(public_GV=public_GV, private=[private_GV[i : i + 1] for i in range(len(private_GV))])


def draw_texts(
    tuned: nn.Module,
    public: nn.Module | None,
    rows: Sequence[Row],
    *,
    rule: Rule,
    key: OutputKey,
    batch_size: int,
    on_step: Callable[[list[DrawnRow], int], None],
) -> None:
    """Draw every row, in waves of equal prompt lengths; a row's randomness is named by its number."""
    for wave in waves(rows, batch_size=batch_size):
        texts = [Text(number=row.number, stream=key.stream(f"text/{row.number}")) for row in wave]
        source = CheckpointSource(tuned, public, [row.prompt for row in wave])
        decode_texts(source, texts, rule=rule, on_step=on_step)


def _started(memory: Memory, prompts_PL: Tensor, own_G: Tensor) -> Tensor:
    logits_PV = memory.start(prompts_PL)
    memory.select(own_G)
    return logits_PV[own_G]
