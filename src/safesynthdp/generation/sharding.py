"""A sample drawn by several processes: the same waves as one process would draw, dealt out.

Here: who decodes which wave, and bringing the texts to rank 0. Elsewhere: one wave (decoding.py), files (files.py).
A wave keeps its rows, so every batch is the one of a single process and the texts are the same bit by bit.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch

from safesynthdp.generation.decoding import Row, waves
from safesynthdp.generation.sampling import sample_texts
from safesynthdp.generation.settings import SampleConfig
from safesynthdp.generation.steering import Steering
from safesynthdp.generation.texts import SampledText
from safesynthdp.models import LoadedModel
from safesynthdp.training.ranks import Ranks
from safesynthdp.training.sharding import deal


def sample_on_ranks(
    model: torch.nn.Module,
    loaded: LoadedModel,
    rows: Sequence[Row],
    config: SampleConfig,
    *,
    ranks: Ranks,
    advance: Callable[[int], None],
    keep: Callable[[Sequence[SampledText]], None],
    steering: Steering | None = None,
) -> dict[int, SampledText]:
    """Draw every row, wave by wave in rounds, and return all texts by number, on every rank.

    Args:
        model: From ``ready_model``, the same on every rank.
        loaded: Its tokenizer and end-of-text token.
        rows: What is left to draw, the same on every rank.
        config: Temperature, truncation, batch size and seed.
        ranks: Who takes part.
        advance: Told how many texts ended, on any rank.
        keep: Called with the texts of a round; only rank 0 needs to write them.
        steering: Added to the logits, the same on every rank.
    """
    if not ranks.are_several:
        return sample_texts(model, loaded, rows, config, advance=advance, keep=keep, steering=steering)
    planned = waves(rows, batch_size=config.batch_size)
    dealt = deal([len(wave) * wave[0].max_new_tokens for wave in planned], world_size=ranks.world_size)
    texts = dict[int, SampledText]()
    for number in range(max(len(share) for share in dealt)):
        mine = dealt[ranks.rank]
        drawn = dict[int, SampledText]()
        with ranks.together():
            if number < len(mine):
                wave = planned[mine[number]]
                drawn = sample_texts(model, loaded, wave, config, advance=_ignore, keep=_ignore, steering=steering)
        everyone = ranks.gather([dataclasses.asdict(text) for text in drawn.values()])
        found = [SampledText(**text) for share in everyone for text in share]
        with ranks.together():
            keep(found)
        advance(len(found))
        texts.update({text.number: text for text in found})
    return texts


def _ignore(_: object) -> None:
    """Count and keep nothing here: the round is told as a whole."""
