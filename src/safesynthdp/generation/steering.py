"""A bias on the logits of one wave, by label and column, and a look at what its rows were drawn from.

All rows of a wave are equally long as long as they are drawn, so the end of a text has one column at a time.

Elsewhere: which column a token has (training/word_columns.py), how the bias is found (token_matching.py), the loop
(decoding.py). Shapes: L labels, C columns, V vocabulary, M buckets, R rows of the wave, B of them still in the batch,
S of those still drawn, E lengths, T positions.

The buckets of one word so far are V neighbours, token by token, in a ring of M. A ring that is written out twice has
them as one slice, so a row inside a word is one multiplication with a mask and not V places to look up.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from safesynthdp.training.word_columns import NO_WORD, WordColumns


class Steering:
    """What one wave after another is steered by; ``begin`` comes first, then ``steer``, ``look`` and ``follow``."""

    def __init__(self, bias_LC: Tensor, columns: WordColumns, *, num_watched: int = 0) -> None:
        """Take [L, C] float32 on the device of the draws; ``num_watched`` rows of one wave are added up, row by row."""
        device, width, buckets = bias_LC.device, columns.num_tokens, columns.num_buckets
        self._columns = columns
        self._begins_V, self._ends_V = (torch.from_numpy(x).to(device) for x in (columns.begins_V, columns.ends_V))
        self._inner_V = self._begins_V.float()
        own_LV, ring_LM = bias_LC[:, :width], bias_LC[:, width : columns.first_length]
        self._ends_LE = bias_LC[:, columns.first_length :]
        if columns.num_lengths:
            own_LV = own_LV.index_fill(1, torch.tensor([columns.end_token], device=device), 0)
        self._own_KV = torch.cat([own_LV, own_LV * (1 - self._inner_V)])  # K = 2 L: outside a word, then inside one
        self._rings_LN = torch.cat([ring_LM, ring_LM], dim=1)  # N = 2 M
        self._label_R = self._state_R = torch.empty(0, dtype=torch.int64, device=device)
        self._length, self._end_shares = 0, list[tuple[Tensor, Tensor]]()
        self._seen_RV = torch.zeros(num_watched, width, dtype=torch.float32, device=device)
        self._seen_RN = torch.zeros(num_watched, 2 * buckets, dtype=torch.float32, device=device)

    @property
    def seen_RC(self) -> Tensor:
        """[R, C] how often each column was to be expected in each row of the wave: probabilities, added up."""
        buckets = self._columns.num_buckets
        ends_RE = self._seen_RV.new_zeros(len(self._seen_RV), self._ends_LE.shape[1])
        for length, ends_R in enumerate(self.ends_RT.unbind(dim=1)):
            ends_RE[:, self._columns.end_column(length) - self._columns.first_length] += ends_R
        return torch.cat([self._seen_RV, self._seen_RN[:, :buckets] + self._seen_RN[:, buckets:], ends_RE], dim=1)

    @property
    def ends_RT(self) -> Tensor:
        """[R, T] how likely each row was to end after 0, 1, ... tokens, where it was drawn; nothing without lengths."""
        ends_RT = self._seen_RV.new_zeros(len(self._seen_RV), len(self._end_shares))
        for length, (slots_S, share_S) in enumerate(self._end_shares):
            ends_RT[slots_S, length] = share_S
        return ends_RT

    def begin(self, labels: Sequence[int]) -> None:
        """Take the labels of the R rows of a wave, none of which is inside a word."""
        self._label_R = torch.tensor(labels, device=self._own_KV.device)
        self._state_R = torch.full_like(self._label_R, NO_WORD)
        self._length, self._end_shares = 0, []

    def steer(self, logits_BV: Tensor, slots_B: Tensor) -> Tensor:
        """Return [B, V] logits with the bias of each row's label and word so far, at least in float32."""
        label_B = self._label_R[slots_B]
        is_inside_B = self._state_R[slots_B] != NO_WORD
        own_BV = self._own_KV[label_B + len(self._rings_LN) * is_inside_B]
        steered_BV = own_BV.add_(logits_BV) if logits_BV.dtype != torch.float64 else logits_BV + own_BV
        for place, slot, begin in self._inside(slots_B):
            ring_V = self._rings_LN[self._label_R[slot], begin : begin + steered_BV.shape[1]]
            steered_BV[place].addcmul_(self._inner_V, ring_V)
        if self._columns.num_lengths:
            end, length = self._columns.end_token, self._columns.end_column(self._length) - self._columns.first_length
            steered_BV[:, end] += self._ends_LE[label_B, length]
        return steered_BV

    def look(self, weights_BV: Tensor, slots_B: Tensor, is_live_B: Tensor) -> None:
        """Add the probabilities of the rows that are still drawn."""
        if not len(self._seen_RV):
            return
        live_S = slots_B[is_live_B]
        live_SV = weights_BV[is_live_B]
        shares_SV = (live_SV / live_SV.sum(dim=1, keepdim=True)).to(self._seen_RV.dtype)
        for place, slot, begin in self._inside(live_S):
            self._seen_RN[slot, begin : begin + shares_SV.shape[1]].addcmul_(self._inner_V, shares_SV[place])
            shares_SV[place] *= ~self._begins_V
        if self._columns.num_lengths:
            end = self._columns.end_token
            self._end_shares.append((live_S, shares_SV[:, end].clone()))
            shares_SV[:, end] = 0
        self._seen_RV.index_add_(0, live_S, shares_SV)

    def follow(self, drawn_B: Tensor, slots_B: Tensor) -> None:
        """Take the tokens that were drawn."""
        self._length += 1
        if self._columns.num_buckets:
            begins_V, ends_V = self._begins_V, self._ends_V
            state_B = self._columns.follow(self._state_R[slots_B], drawn_B, begins_V=begins_V, ends_V=ends_V)
            self._state_R[slots_B] = state_B

    def _inside(self, slots_B: Tensor) -> Iterator[tuple[int, int, int]]:
        """Yield of each row inside a word its place, its slot, and where in the ring its buckets begin."""
        if not self._columns.num_buckets:
            return
        state_B = self._state_R[slots_B]
        places = (state_B != NO_WORD).nonzero()[:, 0]
        begins = self._columns.first_bucket(state_B[places])
        yield from zip(places.tolist(), slots_B[places].tolist(), begins.tolist(), strict=True)
