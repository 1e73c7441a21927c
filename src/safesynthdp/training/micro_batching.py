"""Which records share a micro-batch.

Here: sorted by length and cut by a token budget, or in lots whose shape no other record decides. Elsewhere: the draw
(privacy/mechanisms.py), padding (examples.py), who works on which (sharding.py). A unit is a record, or a user's
records of one draw. Shapes: rows x padded length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from safesynthdp.training.examples import Example

_WIDTHS, _PROMPTS, _MOST_ROWS = 16, 8, 32


@dataclass(frozen=True, kw_only=True, order=True)
class Shape:
    """The size of a micro-batch, from one unit's own lengths and public numbers alone."""

    rows: int
    """Rows with a text and, where there are too few, empty ones."""
    width: int
    """Tokens a row."""
    first_target: int
    """Logits before this position are not computed."""


def micro_batches(units: Sequence[Sequence[Example]], *, max_tokens: int, max_rows: int | None) -> Iterator[list[int]]:
    """Yield positions into ``units``, micro-batch by micro-batch, shortest first; nothing for an empty draw.

    Units of one micro-batch have equally many records. The budget counts rows x padded length.
    """
    for count in sorted({len(unit) for unit in units}):
        same = [i for i, unit in enumerate(units) if len(unit) == count]
        lengths = [max(len(example) for example in units[i]) for i in same]
        rows = None if max_rows is None else max(1, max_rows // count)
        for chosen in pack(lengths, max_tokens=max(1, max_tokens // count), max_rows=rows):
            yield [same[i] for i in chosen]


def pack(lengths: Sequence[int], *, max_tokens: int, max_rows: int | None = None) -> list[list[int]]:
    """Return positions into ``lengths``, sorted by length and cut so that rows x longest <= ``max_tokens``.

    A single record longer than the budget gets a batch of its own. The sum of clipped gradients does not depend on
    the cut, so neither does the guarantee.
    """
    batches = list[list[int]]()
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        last = batches[-1] if batches else []
        fits = last and (len(last) + 1) * lengths[index] <= max_tokens and (max_rows is None or len(last) < max_rows)
        if fits:
            last.append(index)
        else:
            batches.append([index])
    return batches


def shaped_micro_batches(
    units: Sequence[Sequence[Example]], *, max_tokens: int, max_rows: int | None, longest: int
) -> Iterator[tuple[list[int], Shape]]:
    """Yield positions into ``units``, each micro-batch with the shape that each of its units would have alone.

    Guarantee:
        A base in bfloat16 rounds each shape of a batch otherwise: up to 4 % of a gradient on SmolLM2-135M (CPU;
        4e-6 in float32), and not at all at one shape, whatever stands in the other rows. If other records decided the
        shape, one more or less would move the gradients of all, and the sum by more than C.

    Args:
        units: The draw.
        max_tokens: Rows x padded length.
        max_rows: At most so many records.
        longest: The most tokens the model has positions for (``longest_input``).
    """
    shapes = [_own_shape(unit, max_tokens=max_tokens, max_rows=max_rows, longest=longest) for unit in units]
    for shape, count in sorted({(shape, len(unit)) for shape, unit in zip(shapes, units, strict=True)}):
        alike = [i for i, unit in enumerate(units) if (shapes[i], len(unit)) == (shape, count)]
        lot = shape.rows // count
        for begin in range(0, len(alike), lot):
            yield alike[begin : begin + lot], shape


def longest_input(model: nn.Module) -> int:
    """Return for how many tokens a model has positions; many where its configuration does not say."""
    return int(getattr(getattr(model, "config", None), "max_position_embeddings", None) or 1 << 30)


def _own_shape(unit: Sequence[Example], *, max_tokens: int, max_rows: int | None, longest: int) -> Shape:
    """Round a unit's length up and its prompt's down, and give it the rows that fit, whole units."""
    length, prompt = max(len(example) for example in unit), min(example.num_prompt_tokens for example in unit)
    width = max(length, min(-(-length // _WIDTHS) * _WIDTHS, longest))
    rows = min(max_tokens // width, max_rows or _MOST_ROWS, _MOST_ROWS)
    return Shape(
        rows=max(1, rows // len(unit)) * len(unit),
        width=width,
        first_target=max(1, prompt // _PROMPTS * _PROMPTS),
    )
