"""Sampling that uses each token as often as the private texts of its label do, as far as that was released.

Here: one bias on the logits a label and column, and the rounds that fit it. Elsewhere: the targets (token_targets.py),
the counts and their noise (training/token_counts.py, privacy/token_histogram.py), what a column is
(training/word_columns.py), the loop over positions (decoding.py, steering.py).
Everything reads released numbers and the model: post-processing. Source: matching moments by an exponential tilt, as in
Khalifa et al. (2021), arXiv:2012.11635, here per token and label on frequencies with differential privacy. Shapes: L
labels, B rows, R rows of a wave, C columns.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from safesynthdp.generation.decoding import DrawnRow, Row, decode_wave, draw_device, waves
from safesynthdp.generation.draws import Sampling
from safesynthdp.generation.steering import Steering
from safesynthdp.generation.token_targets import TokenTargets
from safesynthdp.training.ranks import Ranks
from safesynthdp.training.sharding import deal
from safesynthdp.training.word_columns import WordColumns

MOST_BIAS = 6.0
"""Nats by which a token is favoured or held back at most."""
_FIRST_ROW = 10**9
"""Rows of the rounds are numbered from here: their random numbers are not those of the sample."""


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A fitted bias, and how it came about."""

    bias_LC: Tensor
    """[L, C] float32 on the CPU, added to the logits before temperature and truncation."""
    wanted_LC: Tensor
    """[L, C] float64: what it is fitted to, settled in the first round from what the model alone would use."""
    distances: tuple[float, ...]
    """Mean total variation distance over the labels, at the beginning of each round."""


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
    found = begun
    for number in range(len(found.distances) if found else 0, rounds):
        bias_LC = found.bias_LC if found else torch.zeros(targets.released_LC.shape, dtype=torch.float32)
        first = _FIRST_ROW * (number + 1)
        drawn = [
            Row(number=first + i, prompt=p.prompt, max_new_tokens=p.max_new_tokens, label=p.label)
            for i, p in enumerate(patterns[k % len(patterns)] for k in range(max(num_records, len(patterns))))
        ]
        planned = waves(drawn, batch_size=batch_size)
        mine = deal([len(wave) for wave in planned], world_size=ranks.world_size)[ranks.rank]
        expected_LC = torch.zeros(targets.released_LC.shape, dtype=torch.float64)
        with ranks.together():
            for which in mine:
                wave = planned[which]
                steering = Steering(bias_LC.to(draw_device(model)), targets.columns, num_watched=len(wave))
                _draw(model, wave, expected_LC, steering, targets.columns, sampling, eos_token_id, seed, advance)
        ranks.add_up_facts(expected_LC)
        wanted_LC = found.wanted_LC.numpy() if found else targets.wanted(expected_LC.numpy())
        change_LC = targets.towards(expected_LC.numpy(), wanted_LC)
        # the bias is added before the logits are divided by the temperature
        bias_LC = bias_LC + sampling.temperature * torch.from_numpy(change_LC).float()
        far_L = targets.distances(expected_LC.numpy(), wanted_LC)
        found = Matched(
            bias_LC=bias_LC.clamp(-MOST_BIAS, MOST_BIAS),
            wanted_LC=torch.from_numpy(wanted_LC),
            distances=(*(found.distances if found else ()), float(far_L[[p.label for p in patterns]].mean())),
        )
        yield found


def _draw(
    model: nn.Module,
    wave: Sequence[Row],
    expected_LC: Tensor,
    steering: Steering,
    columns: WordColumns,
    sampling: Sampling,
    eos_token_id: int,
    seed: int,
    advance: Callable[[int], None],
) -> None:
    """Draw a wave and add what it was drawn from, each text in the weight that a record of its tokens has.

    The end of a text decides that weight, so it is taken at each position in the weight of the text that would end
    there; without lengths it is counted.
    """
    place = {row.number: i for i, row in enumerate(wave)}
    weight_R, ended_R = torch.zeros(2, len(wave), dtype=torch.float32)
    drawn_R = [list[int]() for _ in wave]

    def on_step(finished: list[DrawnRow], _: int) -> None:
        for row in finished:
            tokens = [*row.tokens, *([] if row.is_truncated else [eos_token_id])]
            weight_R[place[row.number]] = 1 / columns.contribution(tokens, is_cut=row.is_truncated).norm
            ended_R[place[row.number]] = float(not row.is_truncated)
            drawn_R[place[row.number]] = list(row.tokens)
        advance(len(finished))

    decode_wave(
        model, wave, sampling=sampling, eos_token_id=eos_token_id, seed=seed, on_step=on_step, steering=steering
    )
    seen_RC = steering.seen_RC.cpu()
    seen_RC *= weight_R[:, None]
    if columns.num_lengths:
        seen_RC[:, columns.first_length :] = _ends(steering.ends_RT.cpu(), drawn_R, columns)
        seen_RC[:, eos_token_id] = (1 - ended_R) * weight_R
    else:
        seen_RC[:, eos_token_id] = ended_R * weight_R
    expected_LC.index_add_(0, torch.tensor([row.label for row in wave]), seen_RC.double())


def _ends(ends_RT: Tensor, drawn_R: Sequence[Sequence[int]], columns: WordColumns) -> Tensor:
    """Return [R, E] how often each length was to be expected, each position in the weight of a text that ends there."""
    ends_RE = torch.zeros(len(drawn_R), columns.num_lengths)
    length_T = torch.tensor([columns.end_column(length) - columns.first_length for length in range(ends_RT.shape[1])])
    for row, tokens in enumerate(drawn_R):
        weight_T = torch.from_numpy(1 / columns.end_norms(tokens)).float()[: ends_RT.shape[1]]
        ends_RE[row].index_add_(0, length_T[: len(weight_T)], ends_RT[row, : len(weight_T)] * weight_T)
    return ends_RE
