"""The decoding loop under an output mechanism, whatever the logits come from.

Here: one token of every text, until all have ended. Elsewhere: where logits come from (checkpoint_source.py,
shard_source.py), the draw and its price (privacy/output_*.py). Shapes: G texts at once, R private rows of a text, V
vocabulary, K candidates.

Guarantee:
    Private logits reach a token only through ``mechanism.draw``. The candidates are chosen from public logits before
    private ones are looked at. A text ends at the end token or at ``tokens``, both public; all its tokens are charged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safesynthdp.generation.decoding import DrawnRow
from safesynthdp.privacy.mechanisms import Heuristic
from safesynthdp.privacy.output_draws import Decoding, TokenStep, TokenStream
from safesynthdp.privacy.output_pricing import OutputMechanism

_COMPACT_BELOW = 0.9


@dataclass(frozen=True, kw_only=True)
class Text:
    """One text to draw."""

    number: int
    """Its place in the output."""
    stream: TokenStream
    """Its randomness."""


@dataclass(frozen=True)
class Logits:
    """What the models say about the next token of every text."""

    public_GV: Tensor | None
    """None: there is no public model."""
    private: Sequence[Tensor]
    """[R, V] for each text: one row for each prompt that is present."""


class LogitSource(Protocol):
    """Models in the middle of G texts."""

    can_shrink: bool
    """Whether texts that have ended may be dropped from the batch."""

    def start(self) -> Logits:
        """Return the logits of the first tokens."""
        ...

    def append(self, tokens_G: Tensor) -> Logits:
        """Append a token to every text and return the logits of the next."""
        ...

    def select(self, kept_G: Tensor) -> None:
        """Keep these texts, in this order."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a token is drawn; everything in it is public."""

    mechanism: OutputMechanism | Heuristic
    end: int
    """Id of the end token."""
    tokens: int
    """Longest text, end included."""
    top_k: int | None = None
    """Candidates: likeliest tokens of the public model; None = all."""
    recentre: bool = False
    """See TokenStep."""
    decoding: Decoding = field(default_factory=Decoding)
    """Of a noisy vector."""

    def draw(self, public_V: NDArray[np.float64] | None, private_RV: Tensor, *, number: int, text: Text) -> int:
        """Return the id of one token."""
        if public_V is None or isinstance(self.mechanism, Heuristic):
            step = self._step(_wide(private_RV), None, number=number, text=text)
            return self.mechanism.draw(step)
        support_K = self.mechanism.support(public_V, end=self.end, top_k=self.top_k)
        chosen_RV = private_RV
        if len(support_K) < len(public_V):
            chosen_RV = private_RV.index_select(1, torch.from_numpy(support_K).to(private_RV.device))
        step = self._step(_wide(chosen_RV), public_V[support_K], number=number, text=text)
        return int(support_K[self.mechanism.draw(step)])

    def _step(
        self, private_RK: NDArray[np.float64], public_K: NDArray[np.float64] | None, *, number: int, text: Text
    ) -> TokenStep:
        return TokenStep(
            private_RK=private_RK,
            public_K=public_K,
            number=number,
            stream=text.stream,
            decoding=self.decoding,
            recentre=self.recentre,
        )


def decode_texts(
    source: LogitSource, texts: Sequence[Text], *, rule: Rule, on_step: Callable[[list[DrawnRow], int], None]
) -> None:
    """Draw all texts and hand each over as soon as it ends.

    Args:
        source: In the order of ``texts``.
        texts: What to draw.
        rule: How a token is drawn.
        on_step: Called after every token with the texts it ended and the number that drew one.
    """
    with torch.inference_mode():
        _decode(source, texts, rule, on_step)


def _decode(
    source: LogitSource, texts: Sequence[Text], rule: Rule, on_step: Callable[[list[DrawnRow], int], None]
) -> None:
    drawn: list[list[int]] = [[] for _ in texts]
    slots, logits = list(range(len(texts))), source.start()
    for number in range(rule.tokens):
        live = [slot for slot in slots if not _has_ended(drawn[slot], rule)]
        public_GV = None if logits.public_GV is None else _wide(logits.public_GV)
        for position, slot in enumerate(slots):
            if slot in live:
                public_V = None if public_GV is None else public_GV[position]
                token = rule.draw(public_V, logits.private[position], number=number, text=texts[slot])
                drawn[slot].append(token)
        ended = [slot for slot in live if _has_ended(drawn[slot], rule)]
        on_step([_finished(texts[slot], drawn[slot], rule) for slot in ended], len(live))
        left = len(live) - len(ended)
        if not left:
            return
        if source.can_shrink and left < _COMPACT_BELOW * len(slots):
            kept = [i for i, slot in enumerate(slots) if not _has_ended(drawn[slot], rule)]
            source.select(torch.tensor(kept))
            slots = [slots[i] for i in kept]
        last = [rule.end if _has_ended(drawn[slot], rule) else drawn[slot][-1] for slot in slots]
        logits = source.append(torch.tensor(last))


def _has_ended(tokens: Sequence[int], rule: Rule) -> bool:
    return len(tokens) == rule.tokens or (len(tokens) > 0 and tokens[-1] == rule.end)


def _finished(text: Text, tokens: Sequence[int], rule: Rule) -> DrawnRow:
    has_end = tokens[-1] == rule.end
    kept = tuple(tokens[:-1] if has_end else tokens)
    return DrawnRow(number=text.number, tokens=kept, is_truncated=not has_end)


def _wide(logits: Tensor) -> NDArray[np.float64]:
    """Return float64 on the CPU: from here on nothing is rounded to less."""
    wide: NDArray[np.float64] = logits.to("cpu").double().numpy()
    return wide
