"""Canaries: what each kind is, that it is reproducible, and that its id is that of the record."""

from pathlib import Path
from typing import Any

import pytest

from safesynthdp.attacks.canaries import KINDS, PREFIX_WORDS, SUFFIX_WORDS, make_canaries
from safesynthdp.attacks.matching import MATCH_WORDS
from safesynthdp.errors import ConfigError
from safesynthdp.records import canonical_text, read_records

TEXTS = [" ".join(f"w{(7 * i + 3 * j) % 97}" for j in range(15)) for i in range(80)]
LABELS = ["good", "bad", "odd"]
OWN = [LABELS[i % 3] for i in range(80)]
GIVEN: dict[str, Any] = {"labels": LABELS, "texts": TEXTS, "text_labels": OWN}


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_its_own_distinct_canaries_again(kind: str) -> None:
    made = make_canaries(kind, 20, seed=1, **GIVEN)
    assert made == make_canaries(kind, 20, seed=1, **GIVEN)
    assert made != make_canaries(kind, 20, seed=2, **GIVEN)
    assert len({canonical_text(canary.text) for canary in made}) == 20
    assert {canary.label for canary in made} <= set(LABELS)
    assert {(canary.kind, canary.group_size) for canary in made} == {(kind, 1)}


def test_the_id_is_the_one_the_record_gets_when_it_is_read(tmp_path: Path) -> None:
    made = make_canaries("random_tokens", 5, seed=0, labels=LABELS)
    lines = ["text,label", *(f"{canary.text},{canary.label}" for canary in made), ""]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    assert set(read_records(tmp_path / "t.csv").record_ids) == {canary.record_id for canary in made}


def test_natural_canaries_are_records_as_they_are_and_mislabelled_ones_never_have_their_own_label() -> None:
    own = dict(zip(TEXTS, OWN, strict=True))
    assert all(own[canary.text] == canary.label for canary in make_canaries("natural", 60, seed=0, **GIVEN))
    assert all(own[canary.text] != canary.label for canary in make_canaries("mislabelled", 60, seed=0, **GIVEN))


def test_a_text_canary_begins_like_a_record_and_ends_like_none() -> None:
    beginnings = {" ".join(text.split()[:PREFIX_WORDS]) for text in TEXTS}
    known = " | ".join(TEXTS)
    for canary in make_canaries("text_suffix", 20, seed=0, labels=LABELS, texts=TEXTS):
        words = canary.text.split()
        assert " ".join(words[:PREFIX_WORDS]) in beginnings
        assert len(words) == PREFIX_WORDS + SUFFIX_WORDS
        assert " ".join(words[PREFIX_WORDS:]) not in known
    assert SUFFIX_WORDS >= MATCH_WORDS, "or the match test could not see it"


def test_invented_canaries_are_no_given_text() -> None:
    first = make_canaries("random_tokens", 3, seed=0, labels=LABELS)
    again = make_canaries("random_tokens", 3, seed=0, labels=LABELS, texts=[first[1].text])
    assert first[1].text not in {canary.text for canary in again}


def test_copies_are_named_by_the_group_and_no_text_is_in_a_repr() -> None:
    (canary,) = make_canaries("random_tokens", 1, seed=0, labels=LABELS, group_size=4)
    assert canary.group_size == 4
    assert canary.text not in repr(canary)


@pytest.mark.parametrize(
    ("kind", "changed", "words"),
    [
        ("loud", {}, "canaries.kind=loud"),
        ("natural", {"text_labels": None}, "text_labels"),
        ("mislabelled", {"texts": [], "text_labels": []}, "text_labels"),
        ("mislabelled", {"labels": ["good"]}, "one label only"),
        ("natural", {"text_labels": ["good"]}, "one label a text"),
        ("sampled", {"texts": TEXTS[:3], "text_labels": None}, "3 different texts for 9"),
        ("text_suffix", {"texts": ["a b c"], "text_labels": None}, "3 different words"),
        ("random_tokens", {"labels": []}, "0 labels"),
        ("random_tokens", {"group_size": 0}, "group_size=0"),
    ],
)
def test_what_a_kind_lacks_is_named(kind: str, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_canaries(kind, 9, seed=0, **(GIVEN | changed))
