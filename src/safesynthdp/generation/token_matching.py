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
from safesynthdp.generation.decoding import DrawnRow, Row, Steering, decode_wave, draw_device, waves
from safesynthdp.generation.draws import Sampling
from safesynthdp.runs import TOKENS, RunDirectory
from safesynthdp.training.ranks import Ranks
from safesynthdp.training.sharding import deal

MOST_BIAS = 6.0
"""Nats by which a token is favoured or held back at most."""
_PSEUDO = 0.25
"""Expected count that is added on both sides: less than about one position of evidence moves a token little."""
_LOST = 3.0
"""A total that is not this many standard deviations above 0 says nothing."""
_OWN = 0.25
"""How much of what a label's rare tokens get is the model's own word for that label. Where it was measured (four kinds
of short texts, a model of 135 million), the weight under which unseen text was likeliest lay between 0.1 and 0.25."""
_MOST_UNTILT = 500.0
"""Nats; at a temperature near 0 a bias is beyond what exp can hold, and no token it holds back is ever expected."""
_FIRST_ROW = 10**9
"""Rows of the rounds are numbered from here: their random numbers are not those of the sample."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class TokenTargets:
    """What the private texts use, as far as it was released."""

    labels: tuple[str, ...]
    sums_LV: Floats
    """Released sums; 0 where a cell did not stand out of the noise."""
    totals_L: Floats
    """Sums over all cells of a label, released or not, with the noise of all of them."""
    least_L: Floats
    """Cells of a label that were not released lie below this, by all that is known; 0 where the sums are exact."""
    noise_std: float
    """Of the noise of one cell; 0 where the sums are exact."""
    source: str
    """gaussian (paid for in the run's ledger) or exact (a run without privacy)."""

    def towards(self, expected_LV: Floats, bias_LV: Floats) -> tuple[Floats, Floats]:
        """Return the change of the bias, [L, V], and how far off the labels were, [L] (see ``distances``).

        A label of which nothing was released stays as it is.

        Args:
            expected_LV: How often each token was to be expected, in the weights of the table: each text scaled by the
                L2 norm of its token counts.
            bias_LV: Under which it was expected.
        """
        wanted_LV, change_LV = self.wanted(expected_LV, bias_LV), np.zeros_like(self.sums_LV)
        for row in np.flatnonzero(wanted_LV.any(axis=1)):
            wanted_V, expected_V = wanted_LV[row], expected_LV[row]
            now_V = expected_V * (wanted_V.sum() / expected_V.sum())
            one = wanted_V.sum() * _PSEUDO / expected_V.sum()
            change_LV[row] = np.log((wanted_V + one) / (now_V + one))
        return change_LV, self.distances(expected_LV, wanted_LV)

    def wanted(self, expected_LV: Floats, bias_LV: Floats | None = None) -> Floats:
        """Return the sums that the labels should have, [L, V], in the scale of the table; a row of 0: nothing is known.

        A released token has what was released. The others share what is left of the label's total: to one part as the
        model would have them for this label, to the larger part as it has them on average over the labels that did not
        release them, for of rare tokens a model knows less than it says. None gets more than ``least_L``: more would
        have been released. Where the total is lost in the noise, together they keep the share they have.

        Args:
            expected_LV: How often each token is to be expected; a row of 0 where a label was not drawn.
            bias_LV: Under which it is; it is taken out again to see what the model alone would have.
        """
        rest_LV, wanted_LV = self._rest_shares(expected_LV, bias_LV), np.zeros_like(self.sums_LV)
        for row, sums_V in enumerate(self.sums_LV):
            is_sure_V, mass = sums_V > 0, sums_V.sum()
            seen = expected_LV[row][is_sure_V].sum()
            if mass <= 0 or seen <= 0:
                continue
            total, lost = self.totals_L[row], _LOST * self.noise_std * math.sqrt(len(sums_V))
            others = expected_LV[row].sum() - seen
            rest = max(total - mass, 0.0) if total > lost else others * (mass / seen)
            wanted_LV[row] = sums_V + np.minimum(rest * rest_LV[row], self.least_L[row])
        return wanted_LV

    def distances(self, expected_LV: Floats, wanted_LV: Floats) -> Floats:
        """Return [L] total variation distances, all tokens that a label did not release taken as one; 0 if unknown."""
        far_L = np.zeros(len(self.labels))
        for row in np.flatnonzero(wanted_LV.any(axis=1) & expected_LV.any(axis=1)):
            is_sure_V, total = self.sums_LV[row] > 0, wanted_LV[row].sum()
            off_V = wanted_LV[row] - expected_LV[row] * (total / expected_LV[row].sum())
            far_L[row] = 0.5 * (np.abs(off_V[is_sure_V]).sum() + abs(off_V[~is_sure_V].sum())) / total
        return far_L

    def _rest_shares(self, expected_LV: Floats, bias_LV: Floats | None) -> Floats:
        """Return how the tokens that a label did not release share what is left, [L, V], each row adding up to 1 or 0.

        Each row of expectations is one mixture: ``_OWN`` of the label's own, the rest of the labels' average.
        """
        is_rest_LV = (self.sums_LV <= 0) & (expected_LV > 0).any(axis=1, keepdims=True)
        untilted = 1.0 if bias_LV is None else np.exp(np.minimum(-bias_LV, _MOST_UNTILT))
        own_LV = _shares(np.where(is_rest_LV, expected_LV * untilted, 0.0))
        pool_V = own_LV.sum(axis=0) / np.maximum(is_rest_LV.sum(axis=0), 1)
        return _shares(np.where(is_rest_LV, _OWN * own_LV + (1 - _OWN) * pool_V, 0.0))


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A fitted bias, and how it came about."""

    bias_LV: Tensor
    """[L, V] float32 on the CPU, added to the logits before temperature and truncation."""
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
        totals_L, least_L = (np.array([float(found[key][label]) for label in labels]) for key in ("totals", "least"))
        noise_std, source = float(found["noise_std"]), str(found["source"])
        is_ours = found["vocab_size"] == vocab_size and source == ("gaussian" if noise_std > 0 else "exact")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise LedgerMismatch(f"{path} does not fit the run; restore it") from error
    numbers = np.concatenate([sums_LV.reshape(-1), least_L, [noise_std]])
    is_whole = np.isfinite(totals_L).all() and np.isfinite(numbers).all() and (numbers >= 0).all()
    if not is_whole or not is_ours:
        raise LedgerMismatch(f"{path} does not fit the run; restore it")
    return TokenTargets(
        labels=tuple(labels), sums_LV=sums_LV, totals_L=totals_L, least_L=least_L, noise_std=noise_std, source=source
    )


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
    begun: Matched | None = None,
    ranks: Ranks | None = None,
) -> Iterator[Matched]:
    """Fit the bias: draw, look at the probabilities that were drawn from, move towards the targets; yield, and again.

    Args:
        model: In eval mode, the one that is sampled.
        rows: Rows of the sample; the labels they name are drawn in turn, each with its prompt and limit.
        targets: What to match.
        sampling: As in the sample: what is matched is what comes out after temperature and truncation.
        eos_token_id: Ends a row.
        seed: Of the draws.
        rounds: How often, those of ``begun`` included.
        num_records: Texts a round, over all labels; at least one a label.
        batch_size: Texts decoded at once.
        advance: Told how many texts ended here.
        begun: What earlier rounds of the same fit came to.
        ranks: Deal the same waves out, and add up what all have seen; None = alone.
    """
    ranks = ranks or Ranks()
    patterns = list({row.label: row for row in rows}.values())
    found = begun or Matched(bias_LV=torch.zeros(targets.sums_LV.shape, dtype=torch.float32), distances=())
    for number in range(len(found.distances), rounds):
        first = _FIRST_ROW * (number + 1)
        drawn = [
            Row(number=first + i, prompt=p.prompt, max_new_tokens=p.max_new_tokens, label=p.label)
            for i, p in enumerate(patterns[k % len(patterns)] for k in range(max(num_records, len(patterns))))
        ]
        planned = waves(drawn, batch_size=batch_size)
        mine = deal([len(wave) for wave in planned], world_size=ranks.world_size)[ranks.rank]
        expected_LV = torch.zeros(targets.sums_LV.shape, dtype=torch.float64)
        with ranks.together():
            for which in mine:
                _draw(model, planned[which], expected_LV, found.bias_LV, sampling, eos_token_id, seed, advance)
        ranks.add_up_facts(expected_LV)
        change_LV, far_L = targets.towards(expected_LV.numpy(), found.bias_LV.double().numpy() / sampling.temperature)
        # the bias is added before the logits are divided by the temperature
        bias_LV = found.bias_LV + sampling.temperature * torch.from_numpy(change_LV).float()
        distance = float(far_L[[p.label for p in patterns]].mean())
        found = Matched(bias_LV=bias_LV.clamp(-MOST_BIAS, MOST_BIAS), distances=(*found.distances, distance))
        yield found


def _draw(
    model: nn.Module,
    wave: Sequence[Row],
    expected_LV: Tensor,
    bias_LV: Tensor,
    sampling: Sampling,
    eos_token_id: int,
    seed: int,
    advance: Callable[[int], None],
) -> None:
    """Draw a wave and add what it was drawn from, each text in the weight that a record of its tokens has."""
    steering = Steering(bias_LV.to(draw_device(model)), num_watched=len(wave))
    place = {row.number: i for i, row in enumerate(wave)}
    weight_R, ended_R = torch.zeros(2, len(wave), dtype=torch.float32)

    def on_step(finished: list[DrawnRow], _: int) -> None:
        for row in finished:
            tokens = [*row.tokens, *([] if row.is_truncated else [eos_token_id])]
            counts = np.unique(tokens, return_counts=True)[1]
            weight_R[place[row.number]] = 1 / math.sqrt(float(counts @ counts))
            ended_R[place[row.number]] = float(not row.is_truncated)
        advance(len(finished))

    decode_wave(
        model, wave, sampling=sampling, eos_token_id=eos_token_id, seed=seed, on_step=on_step, steering=steering
    )
    steering.seen_RV[:, eos_token_id] = ended_R.to(steering.seen_RV.device)  # it decides the weight, so it is counted
    label_R = torch.tensor([row.label for row in wave])
    weighted_RV = steering.seen_RV * weight_R.to(steering.seen_RV.device)[:, None]
    expected_LV.index_add_(0, label_R, weighted_RV.cpu().double())


def _shares(rows_LV: Floats) -> Floats:
    """Return each row divided by its sum; a row of 0 stays one."""
    sums_L1 = rows_LV.sum(axis=1, keepdims=True)
    return np.asarray(rows_LV / np.where(sums_L1 > 0, sums_L1, 1.0))


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
