"""What the start-up checks run on: made-up records, a model as if trained, and lengths over ranks.

Here: the pieces that selfcheck.py (one process) and selfcheck_ranks.py (all together) share. No private record.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from safesynthdp.training.examples import Example
from safesynthdp.training.ranks import Ranks

_LENGTHS = (7, 12, 9)
_FILLING = 0.005
"""Standard deviation of what stands in for zeros: adapters of this size leave a trained model the function it is, so
that rounding is not blown up by it, and give A a fifth of the gradient (SmolLM2-135M)."""


def made_up_records(*, vocab_size: int, pad_token_id: int) -> list[Example]:
    """Three records of random tokens, with the pad token inside one of them."""
    generator = torch.Generator().manual_seed(1)
    made = list[Example]()
    for row, length in enumerate(_LENGTHS):
        ids = torch.randint(vocab_size, (length,), generator=generator).tolist()
        if row == 0:
            ids[3] = pad_token_id
        made.append(Example(input_ids=tuple(ids), num_prompt_tokens=2, is_truncated=False))
    return made


def dropout_rates(model: nn.Module) -> list[tuple[nn.Module, str, float]]:
    """Return every rate of dropout in a model: its module, its attribute, its value."""
    return [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, float) and ("drop" in name.lower() or isinstance(module, nn.Dropout))
    ]


@contextmanager
def as_if_trained(model: nn.Module, trainable: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Without dropout and with nothing at zero; weights and rates are restored on leaving."""
    before = {name: parameter.detach().clone() for name, parameter in trainable.items()}
    rates = dropout_rates(model)
    generator = torch.Generator().manual_seed(0)
    try:
        for module, name, _ in rates:
            setattr(module, name, 0.0)
        with torch.no_grad():
            for parameter in trainable.values():
                if not bool(parameter.any()):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * _FILLING)
        yield
    finally:
        for module, name, rate in rates:
            setattr(module, name, rate)
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(before[name])
                parameter.grad = None


def lengths_of(tensors: Iterable[Tensor], ranks: Ranks) -> list[float]:
    """Return the L2 norm of each tensor, whole if ranks hold parts of it."""
    squares = [float(tensor.double().square().sum()) for tensor in tensors]
    return [math.sqrt(total) for total in (ranks.total(squares) if ranks.shards else squares)]


def rank_0_alone_gives(ranks: Ranks) -> AbstractContextManager[None]:
    """Where sums are sharded and all ranks run the same records: count them once."""
    return ranks.shards.giving_nothing(unless=ranks.shards.ranks.is_main) if ranks.shards else nullcontext()
