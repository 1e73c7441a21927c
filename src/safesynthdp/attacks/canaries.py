"""Records made to be found: if a canary cannot be told in from out, ordinary records are safer still.

Here: texts of each kind. Elsewhere: who is put in (assignment.py), what they show (reference_attacks.py, ngram.py), the
bounds (pool_audit.py). Sources: Carlini et al. (2019), arXiv:1802.08232; Meeus et al. (2025), arXiv:2502.14921, for
the text channel.

A canary is put in once by default. One put in k times is protected as a group of k, and is only ever compared with the
claim for such a group. Non-member canaries are used nowhere: not by the tokenizer, deduplication, early stopping or
the choice of hyper-parameters. Fresh candidates for an exposure are canaries of the same kind under another seed.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from safesynthdp.errors import ConfigError
from safesynthdp.record_set import record_hashes
from safesynthdp.records import canonical_text

KINDS = ("natural", "random_tokens", "mislabelled", "text_suffix", "sampled")
RANDOM_WORDS, SUFFIX_WORDS, PREFIX_WORDS = 12, 10, 8
"""Words of a canary of random tokens; of an improbable end (long enough for the match test); of a usual beginning."""
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_TRIES = 100


@dataclass(frozen=True, kw_only=True)
class Canary:
    """One made-up record; ``group_size`` equal copies of it are put in, or none."""

    record_id: str
    """The id that a file with this text and label gets when it is read (without a user column)."""
    text: str = field(repr=False)
    label: str = field(repr=False)
    kind: str
    group_size: int


def make_canaries(
    kind: str,
    count: int,
    *,
    seed: int,
    labels: Sequence[str],
    texts: Sequence[str] = (),
    text_labels: Sequence[str] | None = None,
    group_size: int = 1,
) -> list[Canary]:
    """Return ``count`` canaries with texts that differ from one another and from ``texts`` as far as the kind allows.

    ``natural``: texts as they are, with their labels. ``random_tokens``: words of random letters. ``mislabelled``: a
    text with another label than its own. ``text_suffix``: a usual beginning, then words drawn evenly from all words of
    ``texts``. ``sampled``: texts that a language model wrote (temperature 0.8 or more), with random labels.

    Args:
        kind: One of ``KINDS``.
        count: How many, at least 1.
        seed: The same seed gives the same canaries; not a secret.
        labels: The public label set.
        texts: Records outside all training data, or model-written texts for ``sampled``; not for random_tokens.
        text_labels: Their own labels; for natural and mislabelled.
        group_size: Copies of each that are put in together.

    Raises:
        ConfigError: If the kind does not exist or what it needs is missing or too little.
    """
    if kind not in KINDS:
        raise ConfigError(f"canaries.kind={kind} does not exist; choose one of {', '.join(KINDS)}")
    if count < 1 or group_size < 1 or not labels:
        raise ConfigError(
            f"canaries: count={count}, group_size={group_size}, {len(labels)} labels; give 1 or more each"
        )
    if text_labels is not None and len(text_labels) != len(texts):
        raise ConfigError(f"canaries: {len(texts)} texts and {len(text_labels)} labels of them; give one label a text")
    digest = hashlib.sha256(f"canary-v1|{kind}|{seed}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    makers: dict[str, Callable[[], list[tuple[str, str]]]] = {
        "natural": lambda: _taken(kind, count, rng, texts, _owned(kind, texts, text_labels)),
        "random_tokens": lambda: _invented(kind, count, rng, labels, texts, lambda: _random_words(rng)),
        "mislabelled": lambda: _mislabelled(kind, count, rng, labels, texts, text_labels),
        "text_suffix": lambda: _suffixed(kind, count, rng, labels, texts),
        "sampled": lambda: _taken(kind, count, rng, texts, _drawn(rng, labels, len(texts))),
    }
    made = makers[kind]()
    record_ids = record_hashes([text for text, _ in made], [label for _, label in made], None)
    return [
        Canary(record_id=i, text=text, label=label, kind=kind, group_size=group_size)
        for i, (text, label) in zip(record_ids, made, strict=True)
    ]


def _taken(
    kind: str, count: int, rng: np.random.Generator, texts: Sequence[str], text_labels: Sequence[str]
) -> list[tuple[str, str]]:
    """Return ``count`` of the given texts, no two with one canonical form."""
    first = {canonical_text(text): index for index, text in reversed(list(enumerate(texts)))}
    if len(first) < count:
        raise ConfigError(f"canaries.kind={kind}: {len(first)} different texts for {count} canaries; give more texts")
    chosen = rng.permutation(sorted(first.values()))[:count]
    return [(texts[int(index)], text_labels[int(index)]) for index in chosen]


def _mislabelled(
    kind: str,
    count: int,
    rng: np.random.Generator,
    labels: Sequence[str],
    texts: Sequence[str],
    text_labels: Sequence[str] | None,
) -> list[tuple[str, str]]:
    if len(set(labels)) < 2:
        raise ConfigError(f"canaries.kind={kind}: one label only, so no wrong one; choose another kind")
    taken = _taken(kind, count, rng, texts, _owned(kind, texts, text_labels))
    others = ([other for other in labels if other != label] for _, label in taken)
    return [(text, str(rng.choice(wrong))) for (text, _), wrong in zip(taken, others, strict=True)]


def _suffixed(
    kind: str, count: int, rng: np.random.Generator, labels: Sequence[str], texts: Sequence[str]
) -> list[tuple[str, str]]:
    words = sorted({word for text in texts for word in text.split()})
    if len(words) < 2 * SUFFIX_WORDS:
        raise ConfigError(f"canaries.kind={kind}: {len(words)} different words in texts; give more public texts")

    def make() -> str:
        beginning = texts[int(rng.integers(len(texts)))].split()[:PREFIX_WORDS]
        return " ".join([*beginning, *rng.choice(words, size=SUFFIX_WORDS).tolist()])

    return _invented(kind, count, rng, labels, texts, make)


def _invented(
    kind: str,
    count: int,
    rng: np.random.Generator,
    labels: Sequence[str],
    texts: Sequence[str],
    make: Callable[[], str],
) -> list[tuple[str, str]]:
    """Return texts that no two canaries and no given text share."""
    known, made = {canonical_text(text) for text in texts}, list[str]()
    for _ in range(_TRIES * count):
        text = make()
        if canonical_text(text) not in known:
            known.add(canonical_text(text))
            made.append(text)
        if len(made) == count:
            return list(zip(made, _drawn(rng, labels, count), strict=True))
    raise ConfigError(f"canaries.kind={kind}: {len(made)} different canaries came of {count}; give more public texts")


def _random_words(rng: np.random.Generator) -> str:
    lengths = rng.integers(4, 10, size=RANDOM_WORDS)
    return " ".join("".join(rng.choice(list(_LETTERS), size=int(length))) for length in lengths)


def _drawn(rng: np.random.Generator, labels: Sequence[str], count: int) -> list[str]:
    return [labels[int(index)] for index in rng.integers(len(labels), size=count)]


def _owned(kind: str, texts: Sequence[str], text_labels: Sequence[str] | None) -> Sequence[str]:
    if text_labels is None or not texts:
        raise ConfigError(f"canaries.kind={kind} needs texts and text_labels, the labels they have; give both")
    return text_labels
