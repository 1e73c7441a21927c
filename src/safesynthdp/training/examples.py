"""From records to token ids, and from token ids to a padded batch.

Here: encoding one record alone, padding. Elsewhere: which records a step takes (privacy/mechanisms.py), and which of
them share a micro-batch (micro_batching.py). Shapes: B rows, T padded length.

Guarantee:
    Everything here is record-local: what a record becomes depends on that record, the public template and the public
    tokenizer. Nothing is packed: no row holds two records.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safesynthdp.errors import ConfigError
from safesynthdp.models import PromptTemplate, token_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from safesynthdp.training.micro_batching import Shape


@dataclass(frozen=True, kw_only=True)
class Example:
    """One record as token ids: the label's prompt, the text, the end-of-text token."""

    input_ids: tuple[int, ...]
    """Prompt, text and end of text; a truncated text has no end."""
    num_prompt_tokens: int
    """The first of them carry no loss; at least 1."""
    is_truncated: bool
    """The text was longer than data.max_length allows."""

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A padded micro-batch; rows never interact, padding stands on the right."""

    input_ids_BT: Tensor
    """[B, T] int64."""
    position_ids_BT: Tensor
    """[B, T] int64, explicit in every row, so that no layer shares a row of positions."""
    target_mask_BT: Tensor
    """[B, T] bool: position t is predicted (from t - 1) and counts in the loss. Column 0 is always False."""
    first_target: int
    """The smallest t that is True in any row: no logits are needed before t - 1."""

    @property
    def rows(self) -> int:
        """B."""
        return self.input_ids_BT.shape[0]


def encode(
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    tokenizer: "PreTrainedTokenizerBase",
    template: PromptTemplate,
    max_length: int,
) -> list[Example]:
    """Return one example a record, in order.

    The text is encoded apart from the prompt, so the prompt of a label is the same tokens in training and sampling.
    The words of a special token inside a text are read as ordinary characters.

    Raises:
        ConfigError: If a prompt leaves no room for text within ``max_length``.
    """
    prompts = {label: prompt_ids(label, tokenizer=tokenizer, template=template) for label in sorted(set(labels))}
    longest = max((len(ids) for ids in prompts.values()), default=0)
    if longest + 2 > max_length:
        raise ConfigError(f"data.max_length={max_length} leaves no room after a prompt of {longest} tokens; raise it")
    end = token_id(tokenizer.eos_token_id)
    return [
        _example(prompts[label], ids, end=end, max_length=max_length)
        for label, ids in zip(labels, text_ids(texts, tokenizer=tokenizer), strict=True)
    ]


def text_ids(texts: Sequence[str], *, tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Return the tokens of each text, without any start or end."""
    if not texts:
        return []
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, split_special_tokens=True, verbose=False
    )["input_ids"]
    return [list(ids) for ids in encoded]


def prompt_ids(label: str, *, tokenizer: "PreTrainedTokenizerBase", template: PromptTemplate) -> tuple[int, ...]:
    """Return the tokens of a label's prompt, with the start-of-text token where the tokenizer adds one; never none."""
    ids = tuple(tokenizer(template.prompt(label), add_special_tokens=False)["input_ids"])
    start = tokenizer.bos_token_id if getattr(tokenizer, "add_bos_token", False) else None
    ids = ids if start is None else (token_id(start), *ids)
    if not ids:
        raise ConfigError("data.prompt_template encodes to no token; give it at least one word")
    return ids


def collate(
    examples: Sequence[Example],
    *,
    pad_token_id: int,
    device: torch.device | str = "cpu",
    shape: "Shape | None" = None,
) -> Batch:
    """Pad on the right; the mask is by length, never by token id, so a pad id inside a text is text.

    With ``shape``, rows without a text, and so without a target, fill what is missing.
    """
    if shape is not None:
        empty = Example(input_ids=(pad_token_id,), num_prompt_tokens=shape.first_target, is_truncated=False)
        examples = [*examples, *[empty] * (shape.rows - len(examples))]
    width = max(len(example) for example in examples) if shape is None else shape.width
    input_ids = torch.full((len(examples), width), pad_token_id, dtype=torch.int64)
    mask = torch.zeros((len(examples), width), dtype=torch.bool)
    for row, example in enumerate(examples):
        input_ids[row, : len(example)] = torch.tensor(example.input_ids)
        mask[row, example.num_prompt_tokens : len(example)] = True
    positions = torch.arange(width).repeat(len(examples), 1)
    return Batch(
        input_ids_BT=input_ids.to(device),
        position_ids_BT=positions.to(device),
        target_mask_BT=mask.to(device),
        first_target=shape.first_target if shape else min(example.num_prompt_tokens for example in examples),
    )


def _example(prompt: tuple[int, ...], text: Sequence[int], *, end: int, max_length: int) -> Example:
    whole = (*prompt, *text, end)
    return Example(input_ids=whole[:max_length], num_prompt_tokens=len(prompt), is_truncated=len(whole) > max_length)
