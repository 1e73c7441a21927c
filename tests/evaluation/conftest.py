"""Small template corpora with a known truth."""

import csv
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from safesynthdp.record_set import record_hashes
from safesynthdp.records import Records

Pairs = list[tuple[str, str]]
MakePairs = Callable[..., Pairs]
MakeRecords = Callable[[Sequence[tuple[str, str]]], Records]
WriteCsv = Callable[..., Path]

CUES = {
    "good": ["great", "superb", "lovely", "brilliant", "warm", "charming"],
    "bad": ["awful", "dull", "boring", "weak", "cold", "messy"],
    "odd": ["weird", "surreal", "strange", "uncanny", "absurd", "crooked"],
}
NOUNS = ["film", "plot", "actor", "scene", "ending", "script", "story", "camera", "music", "cast", "pace", "tone"]
FILLERS = ["the", "very", "really", "rather", "almost", "never", "always", "often", "quite", "truly", "of", "with"]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No builtin was fetched, so nothing here takes a model or the network unless a test names one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def make_pairs() -> MakePairs:
    """Return (text, label) pairs: about a third of the groups of three words carry a cue for the label."""

    def make(count: int, *, seed: int, labels: Sequence[str] = ("good", "bad"), cue: float = 0.3) -> Pairs:
        rng = random.Random(seed)

        def text(label: str) -> str:
            words = list[str]()
            for _ in range(rng.randint(6, 14)):
                words += [rng.choice(CUES[label] if rng.random() < cue else FILLERS)]
                words += [rng.choice(NOUNS), rng.choice(FILLERS)]
            return " ".join(words)

        return [(text(label), label) for label in rng.choices(labels, k=count)]

    return make


@pytest.fixture
def as_records() -> MakeRecords:
    """Return pairs as records."""

    def make(pairs: Sequence[tuple[str, str]]) -> Records:
        texts, labels = tuple(t for t, _ in pairs), tuple(label for _, label in pairs)
        ids = tuple(record_hashes(texts, labels, None))
        return Records(texts=texts, labels=labels, record_ids=ids, label_set=tuple(sorted(set(labels))))

    return make


@pytest.fixture
def write_csv(tmp_path: Path) -> WriteCsv:
    """Write pairs under a name and return the path."""

    def write(name: str, pairs: Sequence[tuple[str, str]], *, header: tuple[str, str] = ("text", "label")) -> Path:
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow(header)
            writer.writerows(pairs)
        return path

    return write
