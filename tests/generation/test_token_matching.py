"""Sampling that follows released token counts: closer to them, row by row the same, and never unpaid."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ByT5Tokenizer, LlamaForCausalLM

from safesynthdp.generation.decoding import DrawnRow, Row, decode_wave
from safesynthdp.generation.draws import Sampling
from safesynthdp.generation.steering import Steering
from safesynthdp.generation.token_matching import MOST_BIAS, Matched, matching_rounds
from safesynthdp.generation.token_targets import TokenTargets
from safesynthdp.training.examples import Example
from safesynthdp.training.token_counts import token_table
from safesynthdp.training.units import Units
from safesynthdp.training.word_columns import WordColumns

V, END = 259, 1
PLAIN = WordColumns.plain(V)
LENGTHS = WordColumns.of(ByT5Tokenizer(extra_ids=0), num_tokens=V, num_buckets=0)
PROMPTS = ((5, 6, 7), (5, 6, 9))


def targets(favourites: Sequence[Sequence[int]], *, noise_std: float = 0.01) -> TokenTargets:
    """Each label uses its favourites and the end of text."""
    sums_LC = np.zeros((len(favourites), V))
    for row, tokens in enumerate(favourites):
        sums_LC[row, list(tokens)] = 10.0
        sums_LC[row, END] = 5.0
    return TokenTargets(
        labels=("bad", "good"), columns=PLAIN, released_LC=sums_LC * PLAIN.weight_C, noise_std=noise_std
    )


def rows(count: int, *, limit: int = 12) -> list[Row]:
    return [Row(number=i, prompt=PROMPTS[i % 2], max_new_tokens=limit, label=i % 2) for i in range(count)]


def fit(model: LlamaForCausalLM, wanted: TokenTargets, *, limit: int = 12, **changes: Any) -> Matched:
    options: dict[str, Any] = {
        "sampling": Sampling(),
        "seed": 0,
        "rounds": 4,
        "num_records": 100,
        "batch_size": 64,
    } | changes
    *_, found = matching_rounds(
        model, rows(10, limit=limit), wanted, eos_token_id=END, advance=lambda _: None, **options
    )
    return found


def drawn(model: LlamaForCausalLM, wave: Sequence[Row], steering: Steering | None) -> dict[int, tuple[int, ...]]:
    found = list[DrawnRow]()
    decode_wave(
        model,
        wave,
        sampling=Sampling(),
        eos_token_id=END,
        seed=4,
        on_step=lambda ended, _: found.extend(ended),
        steering=steering,
    )
    return {row.number: row.tokens for row in found}


def test_each_label_uses_the_tokens_of_its_own_targets(model: LlamaForCausalLM) -> None:
    favourites = ((20, 21, 22), (40, 41))
    matched = fit(model, targets(favourites))
    assert matched.distances[-1] < matched.distances[0] / 3
    texts = drawn(model, rows(200), Steering(matched.bias_LC, PLAIN))
    for label, tokens in enumerate(favourites):
        used = Counter(token for number, text in texts.items() if number % 2 == label for token in text)
        share = sum(used[token] for token in tokens) / sum(used.values())
        assert share > 0.7, "an untouched model gives each about 1 / 259"


def expected(shares: dict[int, float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What a model that uses tokens with these shares is expected to use in 1,000 positions, both labels alike."""
    found_LC = np.zeros((2, V))
    for token, share in shares.items():
        found_LC[:, token] = 1000 * share
    return found_LC


def test_a_model_that_uses_what_was_released_is_left_alone() -> None:
    wanted = targets(((20,), (20,)), noise_std=0.0)
    used_LC = expected({20: 2 / 3, END: 1 / 3})
    assert np.abs(wanted.towards(used_LC, wanted.wanted(used_LC))).max() < 1e-9
    assert wanted.distances(used_LC, wanted.wanted(used_LC)).max() < 1e-9


def test_a_label_of_which_nothing_was_released_stays_as_it_is() -> None:
    nothing = dataclasses.replace(targets(((), ())), released_LC=np.zeros((2, V)), noise_std=5.0)
    used_LC = np.ones((2, V))
    wanted_LC = nothing.wanted(used_LC)
    assert not wanted_LC.any()
    assert not nothing.towards(used_LC, wanted_LC).any()
    assert not nothing.distances(used_LC, wanted_LC).any()


def test_a_label_that_was_not_drawn_stays_as_it_is() -> None:
    for noise_std in (0.0, 0.01):
        wanted = targets(((20,), (20,)), noise_std=noise_std)
        used_LC = expected({20: 0.5, END: 0.25, 30: 0.25})
        used_LC[1] = 0.0
        wanted_LC = wanted.wanted(used_LC)
        assert wanted_LC[0].any()
        assert not wanted_LC[1].any()
        assert not wanted.towards(used_LC, wanted_LC)[1].any()


def test_a_low_temperature_does_not_make_the_fit_swing(model: LlamaForCausalLM) -> None:
    found = fit(model, targets(((20, 21), (40,))), sampling=Sampling(temperature=0.4), rounds=6)
    assert found.distances[-1] < found.distances[0] / 2
    assert found.distances[-1] == pytest.approx(min(found.distances), abs=0.05)


def test_a_fit_that_goes_on_after_a_round_comes_to_the_same(model: LlamaForCausalLM) -> None:
    whole = fit(model, targets(((20, 21), (40,))))
    half = fit(model, targets(((20, 21), (40,))), rounds=2)
    again = fit(model, targets(((20, 21), (40,))), begun=half)
    assert again.distances == whole.distances
    assert torch.equal(again.bias_LC, whole.bias_LC)


@pytest.mark.parametrize("columns", [PLAIN, LENGTHS])
def test_texts_weigh_as_records_do_whatever_their_length(model: LlamaForCausalLM, columns: WordColumns) -> None:
    """A table of the model's own texts, counted as training counts records, leaves the model as it is."""
    wave = rows(600, limit=30)
    found = list[DrawnRow]()
    before_LC = torch.zeros(2, columns.width)
    before_LC[:, [END, *range(V, columns.width)]] = 3.2  # a text ends after about ten tokens
    decode_wave(
        model,
        wave,
        sampling=Sampling(),
        eos_token_id=END,
        seed=9,
        on_step=lambda ended, _: found.extend(ended),
        steering=Steering(before_LC, columns),
    )
    examples = [
        Example(
            input_ids=(0, *row.tokens, *([] if row.is_truncated else [END])),
            num_prompt_tokens=1,
            is_truncated=row.is_truncated,
        )
        for row in sorted(found, key=lambda row: row.number)
    ]
    labels = [("bad", "good")[row.label] for row in wave]
    units = Units(members=tuple((i,) for i in range(len(wave))))
    table_LC = token_table(examples, labels, label_set=("bad", "good"), columns=columns, units=units)
    wanted = TokenTargets(labels=("bad", "good"), columns=columns, released_LC=table_LC, noise_std=0.0)
    *_, fitted = matching_rounds(
        model,
        wave,
        wanted,
        sampling=Sampling(),
        eos_token_id=END,
        seed=0,
        rounds=1,
        num_records=600,
        batch_size=64,
        advance=lambda _: None,
        begun=Matched(bias_LC=before_LC, wanted_LC=torch.from_numpy(table_LC / columns.weight_C), distances=()),
    )
    frequent = table_LC / columns.weight_C > 8
    assert frequent.any()
    moved_LC = (fitted.bias_LC - before_LC).numpy()
    moved = moved_LC[frequent]
    assert moved.mean() == pytest.approx(0.0, abs=0.1)
    assert moved.std() < 0.25, "what is left is the chance of 600 texts"
    ends_LC = table_LC / columns.weight_C * (np.arange(columns.width) >= columns.first_length)
    ends_LC[:, END] = (table_LC / columns.weight_C)[:, END]
    moved_end = (moved_LC * ends_LC).sum(axis=1) / ends_LC.sum(axis=1)
    assert moved_end == pytest.approx(0.0, abs=0.15), "the end of text comes as often as it did"


def test_no_token_is_favoured_beyond_the_bound(model: LlamaForCausalLM) -> None:
    assert fit(model, targets(((20,), (40,))), rounds=8).bias_LC.abs().max() <= MOST_BIAS


def test_a_row_does_not_depend_on_the_rows_beside_it(model: LlamaForCausalLM) -> None:
    bias_LC = torch.randn(2, V, generator=torch.Generator().manual_seed(1))
    together = drawn(model, rows(8), Steering(bias_LC, PLAIN))
    for row in rows(8):
        assert drawn(model, [row], Steering(bias_LC, PLAIN))[row.number] == together[row.number]
    assert drawn(model, rows(8), Steering(torch.zeros(2, V), PLAIN)) == drawn(model, rows(8), None)


def test_what_is_looked_at_is_what_is_drawn_from_once_a_position(model: LlamaForCausalLM) -> None:
    steering = Steering(torch.zeros(2, V), PLAIN, num_watched=40)
    texts = drawn(model, rows(40), steering)
    for number, text in texts.items():
        positions = len(text) + (len(text) < 12)
        assert float(steering.seen_RC[number].sum()) == pytest.approx(positions, rel=1e-5)


def spelled(columns: WordColumns, text: str) -> list[int]:
    """Columns of the letters of a text, as the byte tokenizer has them."""
    found: list[int] = columns.columns([ord(letter) + 3 for letter in text]).tolist()
    return found


def test_a_word_of_several_tokens_is_learnt_as_a_word(model: LlamaForCausalLM) -> None:
    """Label 0 says "ab", label 1 "cb" and "ad": its b and its a are frequent too, but not one after the other."""
    columns = WordColumns.of(ByT5Tokenizer(extra_ids=0), num_tokens=V, num_buckets=4 * V)
    released_LC = np.zeros((2, columns.width))
    for row, words in enumerate((("ab", "ab"), ("cb", "ad"))):
        for word in words:
            for column in (*spelled(columns, word), ord(" ") + 3):
                released_LC[row, column] += 10.0
        released_LC[row, END] = 4.0
    wanted = TokenTargets(
        labels=("bad", "good"), columns=columns, released_LC=released_LC * columns.weight_C, noise_std=0.01
    )
    matched = fit(model, wanted, rounds=8, num_records=200)
    texts = drawn(model, rows(200), Steering(matched.bias_LC, columns))
    pairs = [Counter(p for n, text in texts.items() if n % 2 == row for p in pairwise(text)) for row in (0, 1)]
    ab, cb, ad = ((ord(first) + 3, ord(second) + 3) for first, second in ("ab", "cb", "ad"))
    assert pairs[0][ab] > 5 * pairs[1][ab]
    assert min(pairs[1][cb], pairs[1][ad]) > 5 * max(pairs[0][cb], pairs[0][ad], 1)


def lengths_like(model: LlamaForCausalLM, asked: Sequence[Sequence[int]], columns: WordColumns) -> list[Counter[int]]:
    """Fit labels whose texts have these lengths, of any of forty letters, and count lengths of 200 texts of each."""
    released_LC = np.zeros((2, columns.width))
    for row, lengths in enumerate(asked):
        for length in lengths:
            released_LC[row, columns.end_column(length) if columns.num_lengths else END] += 50.0
            released_LC[row, 20:60] += 50.0 * length / 40
    wanted = TokenTargets(
        labels=("bad", "good"), columns=columns, released_LC=released_LC * columns.weight_C, noise_std=0.01
    )
    matched = fit(model, wanted, rounds=8, num_records=400, limit=20)
    texts = drawn(model, rows(400, limit=20), Steering(matched.bias_LC, columns))
    return [Counter(len(text) for number, text in texts.items() if number % 2 == row) for row in (0, 1)]


def test_texts_become_as_long_as_those_of_their_label_and_end_in_time(model: LlamaForCausalLM) -> None:
    """One bias for the end spreads lengths as waiting times are spread, many of them past the limit."""
    asked = ((3, 4, 5), (9, 10, 11))
    by_length, by_one = (lengths_like(model, asked, columns) for columns in (LENGTHS, PLAIN))
    for row, lengths in enumerate(asked):
        near, before = (sum(found[row][n] for n in range(lengths[0], lengths[-1] + 4)) for found in (by_length, by_one))
        assert near > 0.7 * 200
        assert near > 1.2 * before
    assert by_length[1][20] < 20, "texts that did not end"
    assert by_one[1][20] > 30


def test_rows_inside_words_do_not_depend_on_the_rows_beside_them(model: LlamaForCausalLM) -> None:
    columns = WordColumns.of(ByT5Tokenizer(extra_ids=0), num_tokens=V, num_buckets=V)
    bias_LC = torch.randn(2, columns.width, generator=torch.Generator().manual_seed(1))
    bias_LC[:, ord("a") : ord("z")] += 2  # words come about
    together = drawn(model, rows(8), Steering(bias_LC, columns))
    assert together != drawn(model, rows(8), Steering(bias_LC[:, :V].contiguous(), PLAIN))
    for row in rows(8):
        assert drawn(model, [row], Steering(bias_LC, columns))[row.number] == together[row.number]


def test_what_is_looked_at_lies_in_the_columns_that_texts_are_counted_in(model: LlamaForCausalLM) -> None:
    """The expectation over many rows is what was drawn, up to chance: nothing is counted twice or elsewhere."""
    columns = WordColumns.of(ByT5Tokenizer(extra_ids=0), num_tokens=V, num_buckets=V)
    bias_LC = torch.zeros(2, columns.width)
    bias_LC[:, [ord(letter) + 3 for letter in "abc"]] = 6.0
    bias_LC[:, V:] = 4.0  # words go on
    steering = Steering(bias_LC, columns, num_watched=400)
    texts = drawn(model, rows(400), steering)
    counts_C = np.zeros(columns.width)
    for text in texts.values():
        whole = [*text, *([END] if len(text) < 12 else [])]
        counts_C += np.bincount(columns.columns(whole), minlength=columns.width)
    seen_C = steering.seen_RC.sum(dim=0).double().numpy()
    assert seen_C.sum() == pytest.approx(counts_C.sum(), rel=1e-4)
    often = seen_C > 20
    assert often[V:].any()
    assert often[:V].any()
    assert np.abs(counts_C - seen_C)[often].max() < 6 * np.sqrt(seen_C[often].max())
