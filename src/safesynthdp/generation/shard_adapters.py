"""One small adapter a shard, trained without noise on the shard's own records, all of them side by side.

Here: low-rank layers that hold S adapters, their training one shard after the other, and the pass in which row i goes
through adapter i. Elsewhere: who is in a shard (partition.py), decoding (shard_source.py). Source: LoRA, Hu et al.
(2021), arXiv:2106.09685. Shapes: S shards, T tokens, D inputs, P outputs, K rank.

Guarantee:
    Adapter i is a function of the records of shard i and of public numbers. No adapter is ever released: each is the
    non-private memory of its shard, and only ``many`` prices speak about text drawn through them.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from safesynthdp.errors import ConfigError, UnsupportedLayer
from safesynthdp.generation.draws import stream
from safesynthdp.generation.shard_config import ShardTraining
from safesynthdp.model_config import LoraConfig
from safesynthdp.training.examples import Example, collate
from safesynthdp.training.loss import record_losses
from safesynthdp.training.micro_batching import pack

_ORDER_STREAM = 7
_MAX_TOKENS = 2048


class ShardLinear(nn.Module):
    """A frozen linear layer with S low-rank additions."""

    def __init__(self, base: nn.Linear, *, shards: int, rank: int, scaling: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.scaling = base, scaling
        bound = 1 / math.sqrt(base.in_features)
        first_KD = (torch.rand(rank, base.in_features, generator=generator) * 2 - 1) * bound
        device = base.weight.device
        self.down_SKD = first_KD.expand(shards, -1, -1).clone().to(device)
        self.up_SPK = torch.zeros(shards, base.out_features, rank, device=device)
        self.mode: int | str = "off"
        self.trained: tuple[nn.Parameter, nn.Parameter] | None = None

    def forward(self, rows_STD: Tensor) -> Tensor:
        """Return ``base(x)``, plus the addition of the row's own adapter when they are on."""
        plain: Tensor = self.base(rows_STD)
        if self.mode == "off":
            return plain
        if self.trained is not None:
            down_KD, up_PK = self.trained
            return plain + self.scaling * (rows_STD.float() @ down_KD.T @ up_PK.T).to(plain.dtype)
        hidden_STK = torch.bmm(rows_STD.float(), self.down_SKD.transpose(1, 2))
        added_STP = torch.bmm(hidden_STK, self.up_SPK.transpose(1, 2))
        return plain + self.scaling * added_STP.to(plain.dtype)

    def begin(self, shard: int) -> list[nn.Parameter]:
        """Give the adapter of one shard to an optimizer."""
        self.mode = "one"
        self.trained = (nn.Parameter(self.down_SKD[shard].clone()), nn.Parameter(self.up_SPK[shard].clone()))
        return list(self.trained)

    def end(self, shard: int) -> None:
        """Take it back."""
        assert self.trained is not None
        self.down_SKD[shard], self.up_SPK[shard] = (value.detach() for value in self.trained)
        self.trained, self.mode = None, "off"


class ShardAdapters:
    """A base model with S adapters in its linear layers; off unless they are asked for."""

    def __init__(self, model: nn.Module, lora: LoraConfig, *, shards: int, seed: int) -> None:
        self.model, self.shards = model, shards
        model.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        scaling = lora.lora_alpha / (math.sqrt(lora.lora_r) if lora.use_rslora else lora.lora_r)
        self.layers = dict[str, ShardLinear]()
        for name, linear in _targets(model, lora.target_modules):
            layer = ShardLinear(linear, shards=shards, rank=lora.lora_r, scaling=scaling, generator=generator)
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, layer)
            self.layers[name] = layer

    def forward(self, **inputs: Any) -> Any:
        """Call the model with row i through adapter i; there are exactly S rows."""
        if len(inputs["input_ids"]) != self.shards:
            raise ConfigError(f"shards={self.shards}: {len(inputs['input_ids'])} rows; each adapter needs its own")
        self._switch("rows")
        try:
            return self.model(**inputs)
        finally:
            self._switch("off")

    def train(
        self,
        shard: int,
        examples: Sequence[Example],
        training: ShardTraining,
        *,
        pad_token_id: int,
    ) -> None:
        """Train one adapter on its own records; without records it stays the base model."""
        if not examples:
            return
        device = next(self.model.parameters()).device
        parameters = [p for layer in self.layers.values() for p in layer.begin(shard)]
        optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=0.0)
        for chosen in _batches(len(examples), training, shard=shard):
            optimizer.zero_grad()
            own = [examples[i] for i in chosen]
            for rows in pack([len(example) for example in own], max_tokens=_MAX_TOKENS):
                batch = collate([own[i] for i in rows], pad_token_id=pad_token_id, device=device)
                (record_losses(self.model, batch).sum() / len(chosen)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        for layer in self.layers.values():
            layer.end(shard)

    def tensors(self) -> dict[str, Tensor]:
        """Return all adapters, for ``state/``."""
        found = dict[str, Tensor]()
        for name, layer in self.layers.items():
            found |= {f"{name}.down": layer.down_SKD, f"{name}.up": layer.up_SPK}
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Read what ``tensors`` gave."""
        for name, layer in self.layers.items():
            layer.down_SKD, layer.up_SPK = (
                tensors[f"{name}.{part}"].to(layer.base.weight.device) for part in ("down", "up")
            )

    def _switch(self, mode: str) -> None:
        for layer in self.layers.values():
            layer.mode = mode


def train_all(
    adapters: ShardAdapters,
    examples: Mapping[int, Sequence[Example]],
    training: ShardTraining,
    *,
    pad_token_id: int,
    advance: Callable[[int], None],
) -> None:
    """Train the adapters one after the other; nothing passes from one to the next."""
    was_training = adapters.model.training
    adapters.model.train(False)  # dropout would draw from a generator that all shards share
    for shard in range(adapters.shards):
        adapters.train(shard, examples.get(shard, ()), training, pad_token_id=pad_token_id)
        advance(1)
    adapters.model.train(was_training)


def _batches(num_records: int, training: ShardTraining, *, shard: int) -> Iterator[list[int]]:
    """Yield the positions of each step: shuffled passes, cut into batches."""
    rng, order = stream(training.seed, _ORDER_STREAM, shard), list[int]()
    size = min(training.batch_size, num_records)
    for _ in range(training.max_steps):
        if len(order) < size:
            order += [int(i) for i in rng.permutation(num_records)]
        yield order[:size]
        order = order[size:]


def _targets(model: nn.Module, wanted: list[str] | str) -> list[tuple[str, nn.Linear]]:
    find_head: Any = getattr(model, "get_output_embeddings", None)
    head = None if find_head is None else find_head()
    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
    if isinstance(wanted, str) and wanted == "all-linear":
        return linears
    names = [wanted] if isinstance(wanted, str) else wanted
    found = [(name, module) for name, module in linears if name.rsplit(".", 1)[-1] in names]
    if not found:
        raise UnsupportedLayer(f"lora.target_modules={wanted}: the model has no such linear layer; name others")
    return found
