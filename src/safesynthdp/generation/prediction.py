"""Text by private prediction: batches of records, one after the other, into texts.

Here: from records and a public model to drawn texts. Elsewhere: config (predict_config.py), the order of the stage
(predict_command.py), the loop over tokens (output_decoding.py), calls and shapes (shard_source.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from safesynthdp.errors import ConfigError
from safesynthdp.generation.decoding import DrawnRow
from safesynthdp.generation.output_config import CLIPPED, refuse_private_truncation
from safesynthdp.generation.output_decoding import Rule, Text, decode_texts
from safesynthdp.generation.partition import Batch, Partition, partition_key
from safesynthdp.generation.predict_config import PredictConfig
from safesynthdp.generation.shard_adapters import ShardAdapters, train_all
from safesynthdp.generation.shard_prompts import PromptMaker
from safesynthdp.generation.shard_source import Prompts, Shapes, ShardSource
from safesynthdp.models import PromptTemplate, token_id
from safesynthdp.privacy.mechanisms import Heuristic
from safesynthdp.privacy.output_draws import Decoding, OutputKey
from safesynthdp.privacy.output_pricing import OutputMechanism
from safesynthdp.records import Records
from safesynthdp.training.examples import encode, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything one run of private prediction works with."""

    config: PredictConfig
    mechanism: OutputMechanism | Heuristic
    records: Records = field(repr=False)
    model: nn.Module = field(repr=False)
    tokenizer: "PreTrainedTokenizerBase" = field(repr=False)
    key: OutputKey
    on_step: Callable[[list[DrawnRow], int], None]
    """Called after every token."""

    @property
    def rule(self) -> Rule:
        """How a token is drawn."""
        output = self.config.output
        decoding = Decoding(temperature=self.config.temperature, top_k=self.config.top_k, top_p=self.config.top_p)
        if output is not None:
            decoding = refuse_private_truncation(
                output, temperature=self.config.temperature, top_k=self.config.top_k, top_p=self.config.top_p
            )
        return Rule(
            mechanism=self.mechanism,
            end=token_id(self.tokenizer.eos_token_id),
            tokens=self.config.tokens,
            top_k=None if output is None else output.public_top_k,
            recentre=output is None or output.is_recentred,
            decoding=decoding,
        )

    @property
    def has_public(self) -> bool:
        """Whether public logits are looked at; without a clip they stand in for a shard that has no record."""
        if self.config.output is None:
            return False
        return self.config.output.needs_public_model or self.config.output.mechanism not in CLIPPED

    def partition(self) -> Partition:
        """Return the rule that sends records to batches and shards."""
        output = self.config.output
        return Partition(
            secret=partition_key(self.key.secret),
            batches_per_label=self.config.batches_per_label,
            shards=2 if output is None else output.shards,
            is_grouped=output is not None and output.grouping == "many",
            unit=self.config.privacy.unit,
        )


def plan_texts(config: PredictConfig, labels: Sequence[str]) -> list[str]:
    """Return the label of every text, by number; a function of public numbers.

    In context, texts of one batch follow one another; adapters take the labels in turn.
    """
    if config.heuristic is not None:
        return [label for label in labels for _ in range(config.heuristic.texts_per_label)]
    assert config.output is not None
    if config.source == "adapters":
        return [labels[i % len(labels)] for i in range(config.output.texts_per_batch)]
    each = config.batches_per_label * config.output.texts_per_batch
    return [label for label in labels for _ in range(each)]


def draw_in_context(job: Job, done: Mapping[int, Any]) -> int:
    """Draw every text that is not done, batch after batch, and return the number of tokens the models read."""
    assert job.config.output is not None
    maker = _maker(job)
    each, read = job.config.output.texts_per_batch, 0
    batches = list(enumerate(job.partition().batches(job.records)))
    waiting = [(i, batch) for i, batch in batches if any(i * each + k not in done for k in range(each))]
    for group in _cuts(waiting, job.config.batches_at_once):
        source = ShardSource(
            job.model,
            [_in_context(job, maker, batch) for _, batch in group],
            shapes=Shapes(rows_per_call=job.config.call_rows, width=maker.width, public_width=maker.public_width),
            has_public=job.has_public,
        )
        for k in range(each):
            texts = [Text(number=i * each + k, stream=job.key.stream(f"batch/{batch.name}/{k}")) for i, batch in group]
            decode_texts(source, texts, rule=job.rule, on_step=job.on_step)
        read += source.forward_tokens
    return read


def draw_from_adapters(job: Job, adapters: ShardAdapters, done: Mapping[int, Any]) -> int:
    """Draw every text that is not done through trained adapters, and return the number of tokens the models read."""
    assert job.config.output is not None
    template = PromptTemplate.of(vars(job.config.data))
    labels, read = job.records.label_set, 0
    prompts = {label: prompt_ids(label, tokenizer=job.tokenizer, template=template) for label in labels}
    width = max(len(prompt) for prompt in prompts.values())
    plan = plan_texts(job.config, labels)
    waiting = [(number, label) for number, label in enumerate(plan) if number not in done]
    shapes = Shapes(rows_per_call=job.config.call_rows, width=width, public_width=width)
    for group in _cuts(waiting, job.config.batches_at_once):
        source = ShardSource(
            job.model,
            [Prompts(rows=[prompts[x]] * job.config.output.shards, public=prompts[x]) for _, x in group],
            shapes=shapes,
            has_public=job.has_public,
            forward=adapters.forward,
        )
        texts = [Text(number=number, stream=job.key.stream(f"text/{number}")) for number, _ in group]
        decode_texts(source, texts, rule=job.rule, on_step=job.on_step)
        read += source.forward_tokens
    return read


def train_adapters(job: Job, adapters: ShardAdapters, *, advance: Callable[[int], None]) -> None:
    """Train one adapter a shard on the shard's own records."""
    template = PromptTemplate.of(vars(job.config.data))
    examples = encode(
        job.records.texts,
        job.records.labels,
        tokenizer=job.tokenizer,
        template=template,
        max_length=job.config.data.max_length,
    )
    shards = job.partition().one_batch(job.records).shards
    train_all(
        adapters,
        {shard: [examples[i] for i in members] for shard, members in shards.items()},
        job.config.adapters,
        pad_token_id=token_id(job.tokenizer.pad_token_id or 0),
        advance=advance,
    )


def draw_heuristic(job: Job, done: Mapping[int, Any]) -> int:
    """Draw text from one prompt full of private records each, with noise that guarantees nothing."""
    settings = job.config.heuristic
    assert settings is not None
    maker, read = _maker(job, records=settings.demonstrations), 0
    plan = plan_texts(job.config, job.records.label_set)
    waiting = [(number, label) for number, label in enumerate(plan) if number not in done]
    shapes = Shapes(rows_per_call=1, width=maker.width, public_width=maker.public_width)
    for group in _cuts(waiting, job.config.batches_at_once):
        prompts = [
            Prompts(rows=[maker.private(x, _demonstrations(job, x, number))], public=maker.public(x))
            for number, x in group
        ]
        source = ShardSource(job.model, prompts, shapes=shapes, has_public=False)
        texts = [Text(number=number, stream=job.key.stream(f"text/{number}")) for number, _ in group]
        decode_texts(source, texts, rule=job.rule, on_step=job.on_step)
        read += source.forward_tokens
    return read


def refuse_long_prompts(job: Job) -> None:
    """Refuse what would run past the model's positions.

    Raises:
        ConfigError: Naming the key.
    """
    reach = getattr(job.model.config, "max_position_embeddings", None)
    if reach is None or job.config.source == "adapters":
        return
    several = 1 if job.config.heuristic is None else job.config.heuristic.demonstrations
    if _maker(job, records=several).width + job.config.tokens > reach:
        raise ConfigError(
            f"prompts.max_record_tokens={job.config.prompts.max_record_tokens} and the tokens drawn pass the model's "
            f"{reach} positions; lower one of them"
        )


def _in_context(job: Job, maker: PromptMaker, batch: Batch) -> Prompts:
    assert job.config.output is not None
    rows: list[tuple[int, ...] | None] = [
        maker.private(batch.label, [job.records.texts[i] for i in members]) for members in batch.shards.values()
    ]
    if job.config.output.grouping == "many":
        own = dict(zip(batch.shards, rows, strict=True))
        rows = [own.get(shard) for shard in range(job.config.output.shards)]
    return Prompts(rows=rows, public=maker.public(batch.label))


def _demonstrations(job: Job, label: str, number: int) -> list[str]:
    """Return records of a label, chosen by the key."""
    assert job.config.heuristic is not None
    own = [i for i, name in enumerate(job.records.labels) if name == label]
    stream = job.key.stream(f"demonstrations/{number}")
    order = sorted(own, key=lambda i: stream.uniform(i))
    return [job.records.texts[i] for i in order[: job.config.heuristic.demonstrations]]


def _maker(job: Job, *, records: int = 1) -> PromptMaker:
    prompts = replace(job.config.prompts, max_record_tokens=records * job.config.prompts.max_record_tokens)
    return PromptMaker(
        prompts,
        tokenizer=job.tokenizer,
        labels=job.records.label_set,
        called=PromptTemplate.of(vars(job.config.data)).words,
    )


def _cuts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]


def device_of() -> torch.device:
    """Return the accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")
