"""Ids and sides of the split come from one record alone; the order of a file leaves no trace."""

import hashlib
import random
import string
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safesynthdp.record_set import Records, canonical_text, record_hashes, split_bucket, user_bucket

WORDS = st.lists(st.text(string.ascii_letters + string.digits + "\u00e9\u00df\u03a3", min_size=1), min_size=1)


@pytest.mark.parametrize(
    ("text", "bucket"), [("Yay. Another good phone interview.", 51), ("Touch\u00e9!", 22), ("!", 48)]
)
def test_the_split_has_not_moved_since_it_was_pinned(text: str, bucket: int) -> None:
    assert split_bucket(text) == bucket


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("  Two,\twords!\n", "two words"),
        ("\uff26\uff55\uff4c\uff4c \ufb01t", "full fit"),
        ("STRASSE stra\u00dfe", "strasse strasse"),
        ("it's", "it s"),
        (" ?!  ... ", "?! ..."),
        ("\U0001f600", "\U0001f600"),
        ("", ""),
    ],
)
def test_the_canonical_form_is_words_without_case_and_punctuation(text: str, canonical: str) -> None:
    assert canonical_text(text) == canonical


@given(WORDS, st.sampled_from([" ", ", ", "\n\n", " - ", "! "]), st.sampled_from([str.upper, str.lower, str.swapcase]))
def test_near_copies_share_a_bucket(words: list[str], separator: str, change_case: Callable[[str], str]) -> None:
    variant = separator.join(change_case(word) for word in words)
    assert split_bucket(f" {variant}. ") == split_bucket(" ".join(words))


@given(st.text())
def test_every_text_has_a_bucket_from_0_to_99(text: str) -> None:
    assert 0 <= split_bucket(text) < 100
    assert 0 <= user_bucket(text) < 100


def test_users_are_told_apart_character_by_character() -> None:
    assert len({user_bucket(user) for user in ("u-1", "u 1", "U-1")}) == 3


def test_buckets_are_spread_evenly() -> None:
    counts = [0] * 100
    for number in range(20_000):
        counts[split_bucket(f"text {number}")] += 1
    assert min(counts) > 130
    assert max(counts) < 270


RECORD = st.tuples(st.sampled_from(["a", "b", "ab", "", "c"]), st.sampled_from(["x", "y", "bx"]))


@given(st.lists(RECORD), st.randoms(use_true_random=False))
def test_ids_are_distinct_and_follow_the_content_not_the_order(
    records: list[tuple[str, str]], rng: random.Random
) -> None:
    shuffled = rng.sample(records, len(records))
    ids, other = ([*record_hashes([r[0] for r in rows], [r[1] for r in rows], None)] for rows in (records, shuffled))
    assert len(set(ids)) == len(ids)
    assert sorted(zip(ids, records, strict=True)) == sorted(zip(other, shuffled, strict=True))


@given(st.lists(RECORD, unique=True))
def test_different_records_have_different_hashes(records: list[tuple[str, str]]) -> None:
    ids = record_hashes([r[0] for r in records], [r[1] for r in records], None)
    assert not any("-" in record_id for record_id in ids)
    assert len(set(ids)) == len(records)


def test_an_id_is_the_hash_of_the_lengths_and_bytes_and_copies_are_numbered() -> None:
    content = (3).to_bytes(8, "big") + "a\u00e9".encode() + (1).to_bytes(8, "big") + b"x"
    base = hashlib.sha256(content).hexdigest()[:32]
    assert record_hashes(["a\u00e9"] * 3, ["x"] * 3, None) == [base, f"{base}-1", f"{base}-2"]


def test_the_user_is_part_of_a_record() -> None:
    assert len(set(record_hashes(["a", "a"], ["x", "x"], ["u", "v"]))) == 2
    assert record_hashes(["a"], ["x"], None) != record_hashes(["a"], ["x"], [""])


def records(texts: str, labels: str, users: str | None = None) -> Records:
    return Records(
        texts=tuple(texts),
        labels=tuple(labels),
        record_ids=tuple(record_hashes(texts, labels, users)),
        user_ids=None if users is None else tuple(users),
        label_set=("x", "y", "z"),
        label_set_is_public=True,
        warnings=("w",),
        not_covered=("n",),
    )


def test_the_fingerprint_follows_the_records_and_not_their_order() -> None:
    first = records("abc", "xyx")
    assert first.fingerprint == records("cab", "xxy").fingerprint == first.select([2, 0, 1]).fingerprint
    others = [
        records("abd", "xyx"),
        records("abc", "xyy"),
        records("ab", "xy"),
        records("abca", "xyxx"),
        records("abc", "xyx", "uuu"),
    ]
    assert first.fingerprint not in {other.fingerprint for other in others}
    assert len(first.fingerprint) == 64


def test_a_selection_keeps_columns_together_and_notes() -> None:
    chosen = records("abc", "xyx", "uvw").select([2, 0])
    assert (chosen.texts, chosen.labels, chosen.user_ids) == (("c", "a"), ("x", "x"), ("w", "u"))
    assert chosen.record_ids == tuple(record_hashes("ca", "xx", "wu"))
    assert (chosen.label_set, chosen.label_set_is_public) == (("x", "y", "z"), True)
    assert (chosen.warnings, chosen.not_covered) == (("w",), ("n",))


def test_label_counts_hold_labels_without_records() -> None:
    assert records("abc", "xyx").label_counts() == {"x": 2, "y": 1, "z": 0}


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        Records(texts=("a",), labels=(), record_ids=("i",))


def test_a_repr_shows_counts_and_no_text() -> None:
    shown = repr(records("abc", "xyx", "uvw"))
    assert shown == "Records(3 records, 3 labels)"
