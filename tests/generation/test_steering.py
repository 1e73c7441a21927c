"""What a bias by column does to the logits of a row: the same as looking every column up, one by one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safesynthdp.generation.steering import Steering
from safesynthdp.training.word_columns import WordColumns

V, L, END = 12, 2, 5


def some_columns(seed: int, num_buckets: int, num_lengths: int) -> WordColumns:
    """One bit for each token by chance: whatever a tokenizer's pieces are."""
    rng = np.random.default_rng(seed)
    return WordColumns(
        num_tokens=V,
        num_buckets=num_buckets,
        begins_V=(rng.random(V) < 0.7) & (np.arange(V) != END),
        ends_V=(rng.random(V) < 0.7) & (np.arange(V) != END),
        num_lengths=num_lengths,
        end_token=END,
    )


def following(columns: WordColumns, text: list[int]) -> list[int]:
    """The column that each token of the vocabulary would have after this text."""
    return [int(columns.columns([*text, token])[-1]) for token in range(V)]


a_token = st.integers(0, V - 1).filter(lambda token: token != END)
texts = st.lists(st.lists(a_token, min_size=6, max_size=6), min_size=1, max_size=4)
lengths = st.sampled_from([0, 5, 64])


@settings(max_examples=50)
@given(rows=texts, seed=st.integers(0, 2**16), num_buckets=st.sampled_from([0, V, 37]), num_lengths=lengths)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_each_logit_gets_the_bias_of_its_column(
    rows: list[list[int]], seed: int, num_buckets: int, num_lengths: int, dtype: torch.dtype
) -> None:
    columns, rng = some_columns(seed, num_buckets, num_lengths), torch.Generator().manual_seed(seed)
    bias_LC = torch.randn(L, columns.width, generator=rng)
    steering = Steering(bias_LC, columns)
    labels, slots_B = [row % L for row in range(len(rows))], torch.arange(len(rows))
    steering.begin(labels)
    for length in range(6):
        logits_BV = torch.randn(len(rows), V, generator=rng).to(dtype)
        expected = torch.stack(
            [
                logits_BV[row].to(torch.promote_types(dtype, torch.float32))
                + bias_LC[labels[row], following(columns, text[:length])]
                for row, text in enumerate(rows)
            ]
        )
        given_BV = logits_BV.clone()
        assert torch.equal(steering.steer(logits_BV, slots_B), expected)
        assert torch.equal(logits_BV, given_BV), "the model's own logits stay as they are"
        steering.follow(torch.tensor([text[length] for text in rows]), slots_B)


@settings(max_examples=50)
@given(rows=texts, seed=st.integers(0, 2**16), num_buckets=st.sampled_from([0, V, 37]), num_lengths=lengths)
def test_what_is_seen_is_seen_under_the_column_of_each_token(
    rows: list[list[int]], seed: int, num_buckets: int, num_lengths: int
) -> None:
    columns, rng = some_columns(seed, num_buckets, num_lengths), torch.Generator().manual_seed(seed)
    steering = Steering(torch.zeros(L, columns.width), columns, num_watched=len(rows))
    slots_B, expected_RC = torch.arange(len(rows)), torch.zeros(len(rows), columns.width)
    steering.begin([0] * len(rows))
    for length in range(6):
        weights_BV: Tensor = torch.rand(len(rows), V, generator=rng) + 0.1
        is_live_B = slots_B % 3 != length % 3
        steering.look(weights_BV, slots_B, is_live_B)
        for row in slots_B[is_live_B].tolist():
            shares_V = weights_BV[row] / weights_BV[row].sum()
            expected_RC[row].index_add_(0, torch.tensor(following(columns, rows[row][:length])), shares_V)
        steering.follow(torch.tensor([text[length] for text in rows]), slots_B)
    torch.testing.assert_close(steering.seen_RC, expected_RC)
