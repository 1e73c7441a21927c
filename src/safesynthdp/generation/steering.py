"""A bias on the logits of one wave, by label and column, and a look at what its rows were drawn from.

Elsewhere: which column a token has (training/word_columns.py), how the bias is found (token_matching.py), the loop
(decoding.py). Shapes: L labels, C columns, V vocabulary, R rows of the wave, B of them still in the batch, I of those
inside a word, W tokens that go on with a word.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from safesynthdp.training.word_columns import NO_WORD, WordColumns


class Steering:
    """What one wave after another is steered by; ``begin`` comes first, then ``steer``, ``look`` and ``follow``."""

    def __init__(self, bias_LC: Tensor, columns: WordColumns, *, num_watched: int = 0) -> None:
        """Take [L, C] float32 on the device of the draws; ``num_watched`` rows of one wave are added up, row by row."""
        device = bias_LC.device
        self._bias_LC, self._columns = bias_LC, columns
        self._begins_V, self._ends_V = (torch.from_numpy(x).to(device) for x in (columns.begins_V, columns.ends_V))
        self._inner_W = self._begins_V.nonzero()[:, 0]
        self._label_R = self._state_R = torch.empty(0, dtype=torch.int64, device=device)
        self.seen_RC = torch.zeros(num_watched, bias_LC.shape[1], dtype=torch.float32, device=device)
        """[R, C] how often each column was to be expected in each row of the wave: probabilities, added up."""

    def begin(self, labels: Sequence[int]) -> None:
        """Take the labels of the R rows of a wave, none of which is inside a word."""
        self._label_R = torch.tensor(labels, device=self._bias_LC.device)
        self._state_R = torch.full_like(self._label_R, NO_WORD)

    def steer(self, logits_BV: Tensor, slots_B: Tensor) -> Tensor:
        """Return [B, V] logits with the bias of each row's label and word so far, at least in float32."""
        wide_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
        label_B = self._label_R[slots_B]
        steered_BV = wide_BV + self._bias_LC[label_B, : wide_BV.shape[1]]
        inside_I, column_IW = self._inside(slots_B)
        if len(inside_I):
            here_IW = (inside_I[:, None], self._inner_W)
            steered_BV[here_IW] = wide_BV[here_IW] + self._bias_LC[label_B[inside_I, None], column_IW]
        return steered_BV

    def look(self, weights_BV: Tensor, slots_B: Tensor, is_live_B: Tensor) -> None:
        """Add the probabilities of the rows that are still drawn."""
        if not len(self.seen_RC):
            return
        live_S = slots_B[is_live_B]
        live_SV = weights_BV[is_live_B]
        shares_SV = (live_SV / live_SV.sum(dim=1, keepdim=True)).to(self.seen_RC.dtype)
        inside_I, column_IW = self._inside(live_S)
        if len(inside_I):
            here_IW = (inside_I[:, None], self._inner_W)
            self.seen_RC[live_S[inside_I, None], column_IW] += shares_SV[here_IW]
            shares_SV[here_IW] = 0.0
        self.seen_RC[:, : shares_SV.shape[1]].index_add_(0, live_S, shares_SV)

    def follow(self, drawn_B: Tensor, slots_B: Tensor) -> None:
        """Take the tokens that were drawn."""
        if len(self._inner_W):
            begins_V, ends_V = self._begins_V, self._ends_V
            state_B = self._columns.follow(self._state_R[slots_B], drawn_B, begins_V=begins_V, ends_V=ends_V)
            self._state_R[slots_B] = state_B

    def _inside(self, slots_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return [I] which of these rows are inside a word, and [I, W] the columns of the tokens that go on with it."""
        state_B = self._state_R[slots_B]
        inside_I = (state_B != NO_WORD).nonzero()[:, 0]
        if not len(self._inner_W) or not len(inside_I):
            return inside_I[:0], inside_I[:0, None]
        return inside_I, self._columns.buckets(state_B[inside_I], self._inner_W)
