"""Labelled records in an order that owes nothing to the file, and the side of the split each one falls on.

Here: ``Records``, their ids and fingerprint, the record-local split. Elsewhere: reading and checking (records.py).
An id is a hash of a private record: whoever can guess the record can confirm the guess, so ids and fingerprints are as
private as the text.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

_ID_LENGTH = 32  # hex characters, 128 bits
_WORDS = re.compile(r"\w+")
NUM_BUCKETS = 100


@dataclass(frozen=True, kw_only=True)
class Records:
    """Parallel columns, sorted by id when they are read. A repr shows counts only: no private text in a traceback."""

    texts: tuple[str, ...] = field(repr=False)
    labels: tuple[str, ...] = field(repr=False)
    """Empty strings where the file was read without labels."""
    record_ids: tuple[str, ...] = field(repr=False)
    """Distinct; equal records share the hash and are numbered -1, -2, ... from the second on."""
    user_ids: tuple[str, ...] | None = field(default=None, repr=False)
    label_set: tuple[str, ...] = field(default=(), repr=False)
    """As configured, else sorted; may hold labels that no record has."""
    label_set_is_public: bool = False
    """The label set was known without looking at the records."""
    warnings: tuple[str, ...] = field(default=(), repr=False)
    """One line each, for people."""
    not_covered: tuple[str, ...] = ()
    """What the guarantee of a run on these records leaves out; the ledger repeats it."""

    def __post_init__(self) -> None:
        """Check that the columns are parallel."""
        columns = (self.texts, self.labels, self.record_ids, self.user_ids)
        if len({len(column) for column in columns if column is not None}) != 1:
            raise ValueError("texts, labels, record_ids and user_ids must have one length")

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"Records({len(self)} records, {len(self.label_set)} labels)"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the sorted ids, which cover text, label and user, hex; the order of records does not matter."""
        return hashlib.sha256("\n".join(["records-v1", *sorted(self.record_ids)]).encode()).hexdigest()

    def select(self, indices: Iterable[int]) -> "Records":
        """Return the records at ``indices``, in that order, with the same label set, ids and notes."""
        chosen = [int(index) for index in indices]
        users = self.user_ids
        return replace(
            self,
            texts=tuple(self.texts[i] for i in chosen),
            labels=tuple(self.labels[i] for i in chosen),
            record_ids=tuple(self.record_ids[i] for i in chosen),
            user_ids=None if users is None else tuple(users[i] for i in chosen),
        )

    def label_counts(self) -> dict[str, int]:
        """Return how many records each label of the label set has (private numbers)."""
        counts = Counter(self.labels)
        return {label: counts[label] for label in self.label_set}


def canonical_text(text: str) -> str:
    r"""Return the text as the split sees it: NFKC, casefolded, its ``\w+`` words joined by one space.

    A text without words ("!") keeps its characters with the white space collapsed.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_WORDS.findall(folded)) or " ".join(folded.split())


def split_bucket(text: str) -> int:
    """Return the bucket of a text, 0 to 99: the first 8 bytes of SHA-256 of its canonical form, mod 100.

    Guarantee:
        The bucket depends on this text alone. Adding or removing another record moves nothing, and copies that
        differ in case, punctuation or spacing share a bucket.
    """
    return _bucket(canonical_text(text))


def user_bucket(user_id: str) -> int:
    """Return the bucket of a user, 0 to 99; it depends on the id alone, character by character."""
    return _bucket(user_id)


def record_hashes(texts: Sequence[str], labels: Sequence[str], users: Sequence[str] | None) -> list[str]:
    """Return one id a record from its content alone; of equal records the second is numbered -1, the third -2."""
    owners: Sequence[str | None] = [None] * len(texts) if users is None else users
    seen, ids = Counter[str](), list[str]()
    for base in (_record_hash(*record) for record in zip(texts, labels, owners, strict=True)):
        ids.append(f"{base}-{seen[base]}" if seen[base] else base)
        seen[base] += 1
    return ids


def _record_hash(text: str, label: str, user: str | None) -> str:
    digest = hashlib.sha256()
    for part in (text, label) if user is None else (text, label, user):
        content = part.encode()
        digest.update(len(content).to_bytes(8, "big") + content)  # lengths first: ("ab", "c") is not ("a", "bc")
    return digest.hexdigest()[:_ID_LENGTH]


def _bucket(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % NUM_BUCKETS
