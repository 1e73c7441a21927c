"""A whole sample: which rows are left to draw, wave after wave, kept as they finish.

Here: the plan of rows and the loop over waves. Elsewhere: labels (labels.py), one wave (decoding.py), files (files.py).
"""

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from safesynthdp.errors import ConfigError
from safesynthdp.generation.caching import memory_of
from safesynthdp.generation.decoding import DrawnRow, Row, decode_wave, waves
from safesynthdp.generation.draws import Sampling
from safesynthdp.generation.settings import SampleConfig
from safesynthdp.generation.steering import Steering
from safesynthdp.generation.texts import SampledText, TextDecoder
from safesynthdp.models import LoadedModel
from safesynthdp.training.examples import prompt_ids
from safesynthdp.training.precision import fastest

_SECONDS_BETWEEN_PARTS = 30.0


def plan_rows(loaded: LoadedModel, labels: Sequence[str], *, max_new_tokens: int | None) -> list[Row]:
    """Return one row a label in ``labels``, with that label's prompt as it was in training.

    Raises:
        ConfigError: If a prompt and its text would be longer than the model can read.
    """
    prompts = {name: prompt_ids(name, tokenizer=loaded.tokenizer, template=loaded.template) for name in set(labels)}
    longest = max(len(prompt) for prompt in prompts.values())
    place = {name: i for i, name in enumerate(loaded.label_set)}
    reach = getattr(loaded.model.config, "max_position_embeddings", None)
    if max_new_tokens is None and longest >= loaded.max_length:
        raise ConfigError(f"max_new_tokens=null: a prompt of {longest} tokens fills data.max_length; give a number")
    if max_new_tokens is not None and reach is not None and longest + max_new_tokens > reach:
        raise ConfigError(
            f"max_new_tokens={max_new_tokens} passes the model's {reach} positions; give {reach - longest}"
        )
    return [
        Row(
            number=number,
            prompt=prompts[label],
            max_new_tokens=max_new_tokens or loaded.max_length - len(prompts[label]),
            label=place.get(label, 0),
        )
        for number, label in enumerate(labels)
    ]


def ready_model(loaded: LoadedModel, *, dtype: str | None, attn_implementation: str | None = None) -> torch.nn.Module:
    """Return the model to decode with: adapters merged into the base, in the precision and attention asked for.

    Raises:
        ConfigError: If the model has no such attention.
    """
    model: Any = loaded.model
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    if attn_implementation is not None:
        model.set_attn_implementation(attn_implementation)  # a model that has no choice only warns
        if model.config._attn_implementation != attn_implementation:
            raise ConfigError(
                f"attn_implementation={attn_implementation}: {type(model).__name__} has no choice; use null"
            )
    if dtype is not None:
        device = next(model.parameters()).device
        model = model.to(fastest(device) if dtype == "fastest" else getattr(torch, dtype))
    ready: torch.nn.Module = model.eval()
    return ready


def sample_texts(
    model: torch.nn.Module,
    loaded: LoadedModel,
    rows: Sequence[Row],
    config: SampleConfig,
    *,
    advance: Callable[[int], None],
    keep: Callable[[Sequence[SampledText]], None],
    steering: Steering | None = None,
) -> dict[int, SampledText]:
    """Draw every row and return the texts by number.

    Args:
        model: From ``ready_model``.
        loaded: Its tokenizer and end-of-text token.
        rows: What is left to draw.
        config: Temperature, truncation, batch size and seed.
        advance: Told how many texts ended, after every token.
        keep: Called with texts not kept before: about every half minute, after a wave, and when interrupted.
        steering: Added to the logits; None = the model as it is.
    """
    sampling = Sampling(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p)
    decoder, texts, basket = TextDecoder(loaded.tokenizer), dict[int, SampledText](), Basket(keep)

    def on_step(drawn: list[DrawnRow], _num_drawn: int) -> None:
        finished = [decoder(row) for row in drawn]
        texts.update({text.number: text for text in finished})
        basket.add(finished)
        advance(len(finished))

    try:
        for wave in waves(rows, batch_size=config.batch_size):
            decode_wave(
                model,
                wave,
                sampling=sampling,
                eos_token_id=loaded.eos_token_id,
                seed=config.seed,
                on_step=on_step,
                steering=steering,
            )
    finally:
        basket.empty()
    return texts


def longest_seconds(model: torch.nn.Module, rows: Sequence[Row], *, batch_size: int) -> float:
    """Return an upper estimate of the time for ``rows``: all run to their limit at the speed of two timed steps."""
    planned = waves(rows, batch_size=batch_size)
    if not planned:
        return 0.0
    wave = max(planned, key=len)
    memory, device = memory_of(model), next(model.parameters()).device
    with torch.inference_mode():
        memory.start(torch.tensor([wave[0].prompt], device=device))
        memory.select(torch.zeros(len(wave), dtype=torch.int64, device=device))
        tokens = torch.full((len(wave),), wave[0].prompt[-1], device=device)
        began = time.perf_counter()
        for _ in range(2):
            memory.append(tokens).argmax(dim=1).tolist()
    seconds = (time.perf_counter() - began) / 2
    return seconds * sum(group[0].max_new_tokens for group in planned)


def missing_rows(rows: Sequence[Row], done: Collection[int]) -> list[Row]:
    """Return the rows that no earlier process finished."""
    return [row for row in rows if row.number not in done]


class Basket:
    """Texts that are finished and not yet on disk."""

    def __init__(self, keep: Callable[[Sequence[SampledText]], None]) -> None:
        self._keep, self._texts, self._since = keep, list[SampledText](), time.monotonic()

    def add(self, texts: Sequence[SampledText]) -> None:
        """Take texts in; keep them all if half a minute has passed."""
        self._texts += texts
        if time.monotonic() - self._since >= _SECONDS_BETWEEN_PARTS:
            self.empty()

    def empty(self) -> None:
        """Keep what is there."""
        kept, self._texts, self._since = self._texts, [], time.monotonic()
        self._keep(kept)
