"""Before the first step: do all processes together add up what one process does?

Here: the comparison, on made-up records. Elsewhere: whether one process adds up the right thing (selfcheck.py).
"""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from safesynthdp.errors import SafeSynthError
from safesynthdp.training.clipping import ClippingEngine
from safesynthdp.training.config import HardwareConfig
from safesynthdp.training.examples import Example
from safesynthdp.training.full_shards import trained_here
from safesynthdp.training.ranks import Ranks
from safesynthdp.training.selfcheck import FLOAT32_TOLERANCE
from safesynthdp.training.selfcheck_records import as_if_trained, lengths_of, made_up_records, rank_0_alone_gives
from safesynthdp.training.step import sum_clipped_gradients, zero_sums


def check_ranks(model: nn.Module, engine: ClippingEngine, *, ranks: Ranks, vocab_size: int, pad_token_id: int) -> None:
    """Compare the sum over all ranks with that of one process, for a draw of all records, of one, and of none.

    Raises:
        SafeSynthError: If the ranks together add up something else.
    """
    if not ranks.are_several:
        return
    trainable = trained_here(model, ranks)

    def add_up(drawn: Sequence[Example], sums: Mapping[str, Tensor], who: Ranks) -> None:
        sum_clipped_gradients(
            model,
            engine,
            sums,
            [[example] for example in drawn],
            per_sample_max_grad_norm=math.inf if engine.name == "plain" else 1.0,
            hardware=HardwareConfig(physical_batch_size=2),
            pad_token_id=pad_token_id,
            dropout_seed=0,
            ranks=who,
        )

    lone = Ranks(shards=ranks.shards, is_sharded=ranks.shards is not None)
    with as_if_trained(model, trainable):
        made = made_up_records(vocab_size=vocab_size, pad_token_id=pad_token_id)
        for drawn in (made * ranks.world_size, made[:1], []):
            alone, together = zero_sums(trainable), zero_sums(trainable)
            with rank_0_alone_gives(ranks):
                add_up(drawn, alone, lone)
            add_up(drawn, together, ranks)
            differences = [total - alone[name] for name, total in together.items()]
            found = [*lengths_of(differences, ranks), *lengths_of(alone.values(), ranks)]
            for name, error, size in zip(together, found[: len(together)], found[len(together) :], strict=True):
                if not error <= FLOAT32_TOLERANCE * size:
                    raise SafeSynthError(
                        f"{name}: {ranks.world_size} processes add up another gradient than one does; run on one "
                        "process, or check that all machines and devices are alike"
                    )
