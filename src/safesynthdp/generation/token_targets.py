"""What a run released of its token counts, and what its texts should therefore use.

Here: the released table as sampling reads it, how far texts are from it, and which way. Elsewhere: the file
(token_file.py), the posterior means (shrinkage.py), the rounds (token_matching.py). Everything reads released numbers
and the model: post-processing. Shapes: L labels, C columns (word_columns.py; "token" stands for one here).

Expectations and wanted sums have one scale: each text by its counts over their weighted norm, as a record in the table,
but every column at weight 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from safesynthdp.errors import LedgerMismatch
from safesynthdp.generation.shrinkage import STANDS_OUT, shrink
from safesynthdp.runs import TOKENS, RunDirectory
from safesynthdp.training.token_file import EXACT, TokenFile
from safesynthdp.training.word_columns import WordColumns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PSEUDO = 0.25
"""Expected count that is added on both sides: less than about one position of evidence moves a token little."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TokenTargets:
    """What the private texts use, as far as it was released."""

    labels: tuple[str, ...]
    columns: WordColumns
    released_LC: Floats
    """Sums in the weights of the columns, with the noise of every cell."""
    noise_std: float
    """Of the noise of one cell; 0 where the sums are exact."""

    @property
    def is_exact(self) -> bool:
        """Of a run without privacy."""
        return self.noise_std == 0

    @property
    def stands_out_LC(self) -> NDArray[np.bool_]:
        """Which cells hold more than noise, one by one."""
        is_out_LC: NDArray[np.bool_] = self.released_LC > STANDS_OUT * self.noise_std
        return is_out_LC

    def wanted(self, expected_LC: Floats) -> Floats:
        """Return the sums that the labels should have, [L, C]; a row of 0: nothing is known of that label.

        Args:
            expected_LC: How often each token is to be expected of the model as it is; 0 where a label was not drawn.
        """
        weight_C = self.columns.weight_C
        if self.is_exact:
            return self.released_LC / weight_C * expected_LC.any(axis=1, keepdims=True)
        return shrink(self.released_LC, expected_LC * weight_C, noise_std=self.noise_std) / weight_C

    def towards(self, expected_LC: Floats, wanted_LC: Floats) -> Floats:
        """Return the change of the bias that leads from one to the other, [L, C]; 0 where nothing is known.

        The end of a text is compared among those that are as long and have not ended, those that were cut included:
        whoever outlives the longest record would never end otherwise.
        """
        change_LC, columns = np.zeros_like(expected_LC), self.columns
        for row in np.flatnonzero(wanted_LC.any(axis=1) & expected_LC.any(axis=1)):
            scale = wanted_LC[row].sum() / expected_LC[row].sum()
            one, now_C = scale * _PSEUDO, scale * expected_LC[row]
            change_LC[row] = np.log((wanted_LC[row] + one) / (now_C + one))
            if columns.num_lengths:
                longer_E, longer_now_E = _longer(wanted_LC[row], columns), _longer(now_C, columns)
                change_LC[row, columns.first_length :] -= np.log((longer_E + one) / (longer_now_E + one))
        return change_LC

    def distances(self, expected_LC: Floats, wanted_LC: Floats) -> Floats:
        """Return [L] total variation distances, all tokens that do not stand out taken as one; 0 if unknown."""
        far_L, stands_out_LC = np.zeros(len(self.labels)), self.stands_out_LC
        for row in np.flatnonzero(wanted_LC.any(axis=1) & expected_LC.any(axis=1)):
            is_sure_C, total = stands_out_LC[row], wanted_LC[row].sum()
            off_C = wanted_LC[row] - expected_LC[row] * (total / expected_LC[row].sum())
            far_L[row] = 0.5 * (np.abs(off_C[is_sure_C]).sum() + abs(off_C[~is_sure_C].sum())) / total
        return far_L


def _longer(sums_C: Floats, columns: WordColumns) -> Floats:
    """Return [E] how many texts are longer than each length: they end later, or were cut."""
    ends_E = sums_C[columns.first_length :]
    longer_E: Floats = ends_E[::-1].cumsum()[::-1] - ends_E + sums_C[columns.end_token]
    return longer_E


def read_targets(
    run: RunDirectory, labels: Sequence[str], *, tokenizer: "PreTrainedTokenizerBase", num_tokens: int
) -> TokenTargets | None:
    """Return what a run released of its tokens; None where it has no such file.

    Args:
        run: The run that is sampled.
        labels: Of the run, in its order.
        tokenizer: Of the run.
        num_tokens: The width of its model's logits.

    Raises:
        LedgerMismatch: If the file does not fit the run.
    """
    path = run.path / TOKENS
    if not path.is_file():
        return None
    found = TokenFile.read(path)
    is_whole = np.isfinite(found.sums_LC).all() and (found.source != EXACT or (found.sums_LC >= 0).all())
    if found.labels != tuple(labels) or found.vocab_size != num_tokens or not is_whole:
        raise LedgerMismatch(f"{path} does not fit the run; restore it")
    return TokenTargets(
        labels=tuple(labels),
        columns=WordColumns.of(
            tokenizer, num_tokens=num_tokens, num_buckets=found.word_buckets, num_lengths=found.lengths
        ),
        released_LC=found.sums_LC.astype(np.float64),
        noise_std=found.noise_std,
    )
