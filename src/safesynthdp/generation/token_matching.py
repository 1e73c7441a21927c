"""Sampling that uses each token as often as the private texts of its label do, as far as that was released.

Here: the released frequencies, one bias on the logits a label and token, and the rounds that fit it. Elsewhere: the
counts and their noise (training/token_counts.py, privacy/token_histogram.py), the loop over positions (decoding.py).
Everything reads released numbers and the model: post-processing. Source: matching moments by an exponential tilt, as in
Khalifa et al. (2021), arXiv:2012.11635, here per token and label on frequencies with differential privacy. Shapes: L
labels, B rows, V vocabulary.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from safesynthdp.errors import LedgerMismatch
from safesynthdp.generation.decoding import DrawnRow, Row, Steering, decode_wave, waves
from safesynthdp.generation.draws import Sampling
from safesynthdp.runs import TOKENS, RunDirectory

MOST_BIAS = 6.0
"""Nats by which a token is favoured or held back at most."""
_FIRST_ROW = 10**9
"""Rows of the rounds are numbered from here: their random numbers are not those of the sample."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TokenTargets:
    """What the private texts use, as far as it was released."""

    labels: tuple[str, ...]
    sums_LV: Floats
    """Released sums; 0 where a cell did not stand out of the noise."""
    least: float
    """Cells that were not released lie below this, by all that is known; 0 where the sums are exact."""
    source: str
    """gaussian (paid for in the run's ledger) or exact (a run without privacy)."""

    def towards(self, expected_LV: Floats) -> tuple[Floats, Floats]:
        """Return the change of the bias, [L, V], and how far off the labels were, [L] total variation distances.

        A token that was released is drawn towards its share. Of one that was not only ``least`` is known: used more
        often than that it is held back to it, else it is left alone. A label of which nothing was released stays.

        Args:
            expected_LV: How often each token was to be expected over the positions that were drawn.
        """
        change_LV, far_L = np.zeros_like(self.sums_LV), np.zeros(len(self.labels))
        for row, (sums_V, expected_V) in enumerate(zip(self.sums_LV, expected_LV, strict=True)):
            mass, positions = sums_V.sum(), expected_V.sum()
            if mass <= 0 or positions <= 0:
                continue
            now_V = expected_V * (mass / positions)
            wanted_V = np.where(sums_V > 0, sums_V, np.minimum(now_V, self.least))
            wanted_V *= mass / wanted_V.sum()
            one = mass / positions  # what a single position weighs
            change_LV[row] = np.log((wanted_V + one) / (now_V + one))
            far_L[row] = 0.5 * np.abs(wanted_V - now_V).sum() / mass
        return change_LV, far_L


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A fitted bias, and how it came about."""

    bias_LV: Tensor
    """[L, V] float32, added to the logits before temperature and truncation."""
    distances: tuple[float, ...]
    """Mean total variation distance over the labels, at the beginning of each round."""


def read_targets(run: RunDirectory, labels: Sequence[str], *, vocab_size: int) -> TokenTargets | None:
    """Return what a run released of its tokens; None where it has no such file.

    Raises:
        LedgerMismatch: If the file does not fit the run.
    """
    path = run.path / TOKENS
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        sums_LV = _table(found["sums"], labels, vocab_size=vocab_size)
        least, source = float(found["least"]), str(found["source"])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise LedgerMismatch(f"{path} does not fit the run; restore it") from error
    is_whole = np.isfinite(sums_LV).all() and (sums_LV >= 0).all() and 0 <= least < math.inf
    if found["vocab_size"] != vocab_size or not is_whole or source not in ("gaussian", "exact"):
        raise LedgerMismatch(f"{path} does not fit the run; restore it")
    return TokenTargets(labels=tuple(labels), sums_LV=sums_LV, least=least, source=source)


def matching_rounds(
    model: nn.Module,
    rows: Sequence[Row],
    targets: TokenTargets,
    *,
    sampling: Sampling,
    eos_token_id: int,
    seed: int,
    rounds: int,
    num_records: int,
    batch_size: int,
    advance: Callable[[int], None],
) -> Iterator[Matched]:
    """Fit the bias: draw, look at the probabilities that were drawn from, move towards the targets; yield, and again.

    Args:
        model: In eval mode, the one that is sampled.
        rows: Rows of the sample; each label they name is drawn equally often, with its prompt and limit.
        targets: What to match.
        sampling: As in the sample: what is matched is what comes out after temperature and truncation.
        eos_token_id: Ends a row.
        seed: Of the draws.
        rounds: How often.
        num_records: Texts a round, over all labels.
        batch_size: Texts decoded at once.
        advance: Told how many texts ended.
    """
    device = next(model.parameters()).device
    patterns = list({row.label: row for row in rows}.values())
    bias_LV, distances = torch.zeros(targets.sums_LV.shape, dtype=torch.float32), list[float]()

    def on_step(finished: list[DrawnRow], _: int) -> None:
        advance(len(finished))

    for number in range(rounds):
        steering = Steering.watching(bias_LV.to(device))
        first = _FIRST_ROW * (number + 1)
        drawn = [
            Row(number=first + i, prompt=p.prompt, max_new_tokens=p.max_new_tokens, label=p.label)
            for i, p in enumerate(patterns[k % len(patterns)] for k in range(max(num_records, len(patterns))))
        ]
        for wave in waves(drawn, batch_size=batch_size):
            decode_wave(
                model,
                wave,
                sampling=sampling,
                eos_token_id=eos_token_id,
                seed=seed,
                on_step=on_step,
                steering=steering,
            )
        change_LV, far_L = targets.towards(steering.expected_LV.double().cpu().numpy())
        bias_LV = (bias_LV + torch.from_numpy(change_LV).float()).clamp(-MOST_BIAS, MOST_BIAS)
        distances.append(float(far_L[[p.label for p in patterns]].mean()))
        yield Matched(bias_LV=bias_LV, distances=tuple(distances))


def _table(sums: dict[str, dict[str, Any]], labels: Sequence[str], *, vocab_size: int) -> Floats:
    """Return the sums of the labels in their order, [L, V]."""
    if set(sums) != set(labels):
        raise KeyError("labels")
    table_LV = np.zeros((len(labels), vocab_size), dtype=np.float64)
    for row, label in enumerate(labels):
        for token, value in sums[label].items():
            if not 0 <= int(token) < vocab_size:
                raise IndexError(token)
            table_LV[row, int(token)] = float(value)
    return table_LV
