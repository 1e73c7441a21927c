"""Where a token is counted: by itself, inside a word by the word so far, at the end of a text by its length."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from safesynthdp.errors import ConfigError
from safesynthdp.training.word_columns import LENGTHS, NO_WORD, WordColumns

V, M, END = 259, 1024, 1
TOKENIZER = ByT5Tokenizer(extra_ids=0)
COLUMNS = WordColumns.of(TOKENIZER, num_tokens=V, num_buckets=M)
a_text = st.lists(st.integers(0, V - 1), max_size=30)


def ids(text: str) -> list[int]:
    found: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return found


def test_without_buckets_every_token_is_counted_by_itself() -> None:
    alone = WordColumns.of(TOKENIZER, num_tokens=V, num_buckets=0, num_lengths=0)
    assert alone.columns(ids("nokia")).tolist() == ids("nokia")
    assert alone.width == V


def test_a_word_begins_under_its_own_token_and_goes_on_in_buckets() -> None:
    found = COLUMNS.columns(ids("ok no, x_1"))
    is_bucket = found >= V
    assert is_bucket.tolist() == [False, True, False, False, True, False, False, False, True, True]
    assert found.max() < COLUMNS.width


def test_the_same_ending_of_two_words_is_counted_apart_and_that_of_one_word_together() -> None:
    nokia, sepia, again = (COLUMNS.columns(ids(text))[-2:].tolist() for text in ("a nokia", "a sepia", "no: nokia"))
    assert nokia == again
    assert not set(nokia) & set(sepia)


def test_special_tokens_belong_to_no_word() -> None:
    padding = 0
    assert padding == TOKENIZER.pad_token_id
    found = COLUMNS.columns([*ids("ab"), padding, *ids("cd")])
    assert found[2] == padding
    assert found[3] == ids("c")[0], "a word begins anew"


@settings(max_examples=100)
@given(text=a_text, begins=st.integers(0, 2**32 - 1))
def test_decoding_follows_the_words_as_counting_does(text: list[int], begins: int) -> None:
    """One bit for each token by chance: whatever a tokenizer's pieces are."""
    rng = np.random.default_rng(begins)
    columns = WordColumns(num_tokens=V, num_buckets=M, begins_V=rng.random(V) < 0.7, ends_V=rng.random(V) < 0.7)
    begins_V, ends_V = torch.from_numpy(columns.begins_V), torch.from_numpy(columns.ends_V)
    state_R, found = torch.tensor([NO_WORD, NO_WORD]), list[int]()
    for token in text:
        token_R = torch.tensor([token, 7])
        goes_on = int(state_R[0]) != NO_WORD and bool(begins_V[token])
        bucket = (int(columns.first_bucket(state_R)[0]) + token) % M
        found.append(V + bucket if goes_on else token)
        state_R = columns.follow(state_R, token_R, begins_V=begins_V, ends_V=ends_V)
    assert found == columns.columns(text).tolist()


def test_no_two_tokens_after_one_word_share_a_bucket() -> None:
    go_on = np.flatnonzero(COLUMNS.begins_V).tolist()
    for word in ("a", "xyzzyx", "b" * 50):
        after = [int(COLUMNS.columns([*ids(word), token])[-1]) for token in go_on]
        assert min(after) >= V
        assert len(set(after)) == len(go_on) > 20


def test_words_of_many_tokens_stay_within_64_bits() -> None:
    found = COLUMNS.columns(ids("z" * 400))
    assert ((found >= V) & (found < COLUMNS.width))[1:].all()
    assert len(set(found.tolist())) > 300, "not one bucket again and again"


@pytest.mark.parametrize("buckets", [0, M])
def test_the_end_of_a_text_is_counted_by_its_length_and_nothing_else_is(buckets: int) -> None:
    columns = WordColumns.of(TOKENIZER, num_tokens=V, num_buckets=buckets)
    before = WordColumns.of(TOKENIZER, num_tokens=V, num_buckets=buckets, num_lengths=0)
    found = {length: columns.columns([*ids("ok, " * 200)[:length], END]) for length in (0, 1, 3, 22, 23, 700)}
    ends = [int(columns_T[-1]) for columns_T in found.values()]
    assert ends == [columns.end_column(length) for length in found]
    assert sorted(ends) == ends, "longer texts, later columns"
    assert len(set(ends)) == 5, "22 and 23 tokens are as good as one length"
    assert columns.width - LENGTHS == before.width <= ends[0]
    for length, columns_T in found.items():
        assert columns_T[:-1].tolist() == before.columns(ids("ok, " * 200)[:length]).tolist()
        assert int(before.columns([END])[0]) == END


def test_texts_of_any_length_have_a_column_that_grows_with_it_by_a_fifth_or_less() -> None:
    columns = WordColumns.of(TOKENIZER, num_tokens=V)
    at = [columns.end_column(length) for length in range(70_000)]
    assert at == sorted(at)
    assert at[-1] == columns.width - 1
    longest = {column: length for length, column in enumerate(at)}
    first = {column: length for length, column in reversed(list(enumerate(at)))}
    assert all(longest[c] + 1 <= 1.2 * (first[c] + 1) for c in longest if c < columns.width - 1)


@settings(max_examples=100)
@given(text=a_text, num_lengths=st.sampled_from([LENGTHS, 3]))
def test_the_norms_of_every_ending_are_those_of_the_texts_that_end_there(text: list[int], num_lengths: int) -> None:
    columns = WordColumns.of(TOKENIZER, num_tokens=V, num_buckets=M, num_lengths=num_lengths)
    text = [token for token in text if token != END]
    expected = [columns.contribution([*text[:length], END]).norm for length in range(len(text) + 1)]
    np.testing.assert_allclose(columns.end_norms(text), expected, rtol=1e-12)


class SpaceDropping:
    """As SentencePiece: a space at the beginning of a text is dropped, one inside is kept."""

    all_special_ids = (0,)
    eos_token_id = 0
    pieces = ("</s>", "a", "▁a", "b", ".", "▁")

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, text: str, **_: Any) -> list[int]:
        return [self.pieces.index("▁" + text)]

    def decode(self, tokens: list[int], **_: Any) -> str:
        return "".join(self.pieces[token] for token in tokens).replace("▁", " ").removeprefix(" ")

    def batch_decode(self, rows: list[list[int]], **options: Any) -> list[str]:
        return [self.decode(row, **options) for row in rows]


def test_a_tokenizer_that_drops_a_leading_space_still_shows_where_words_begin() -> None:
    columns = WordColumns.of(SpaceDropping(), num_tokens=8, num_buckets=16)  # type: ignore[arg-type]
    assert np.flatnonzero(columns.begins_V).tolist() == [1, 3]
    assert np.flatnonzero(columns.ends_V).tolist() == [1, 2, 3]


def test_by_default_there_are_at_least_twice_as_many_buckets_as_tokens() -> None:
    assert WordColumns.of(TOKENIZER, num_tokens=V).num_buckets == 1024
    assert WordColumns.of(TOKENIZER, num_tokens=512).num_buckets == 1024


@pytest.mark.parametrize("buckets", [100, -1])
def test_fewer_buckets_than_tokens_are_refused(buckets: int) -> None:
    with pytest.raises(ConfigError, match=rf"token_histogram_word_buckets={buckets} is below the 259 logits"):
        WordColumns.of(TOKENIZER, num_tokens=V, num_buckets=buckets)
