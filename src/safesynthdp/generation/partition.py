"""Which record goes where: a keyed hash of its own id decides, and nothing else.

Here: batches and shards. Elsewhere: prompts and models of a shard (shard_prompts.py, shard_adapters.py).

Guarantee:
    The place of a record depends on its id (or its user's), the secret key and public numbers. Another record's coming
    or going moves nobody; neither list order, nor text length, nor how many share a place plays a part. So batches
    are disjoint sets of records and compose in parallel, and one record changes one shard.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from safesynthdp.errors import ConfigError
from safesynthdp.privacy.randomness import derive_key
from safesynthdp.records import Records


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One set of shards: all texts drawn from it are paid for by its own records."""

    label: str
    """What its texts are about; all its records carry it."""
    number: int
    """Among the batches of its label."""
    shards: Mapping[int, tuple[int, ...]] = field(repr=False)
    """Positions of records, by shard; a shard without records is not there."""

    @property
    def name(self) -> str:
        """Names the randomness of its texts; public."""
        return f"{self.label}/{self.number}"


@dataclass(frozen=True, kw_only=True)
class Partition:
    """The rule that sends a record to a batch and a shard."""

    secret: bytes = field(repr=False)
    """Drawn once for a run, kept in ``state/``."""
    batches_per_label: int
    """Public."""
    shards: int
    """Public."""
    is_grouped: bool
    """Several records share a shard. Otherwise each record of a batch is a shard of its own, however many there are."""
    unit: str
    """record or user: whose id is hashed."""

    def batches(self, records: Records) -> list[Batch]:
        """Return every batch of every label of the public label set, empty ones too, in a public order."""
        found: dict[tuple[str, int], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for position, identity in enumerate(_identities(records, self.unit)):
            batch, shard = self.place(identity)
            group = found[records.labels[position], batch]
            group[shard if self.is_grouped else len(group)].append(position)
        return [
            Batch(label=label, number=number, shards=_frozen(found.get((label, number), {})))
            for label in records.label_set
            for number in range(self.batches_per_label)
        ]

    def one_batch(self, records: Records) -> Batch:
        """Return all records as one batch of groups, whatever their labels."""
        groups: dict[int, list[int]] = defaultdict(list)
        for position, identity in enumerate(_identities(records, self.unit)):
            groups[self.place(identity)[1]].append(position)
        return Batch(label="", number=0, shards=_frozen(groups))

    def place(self, identity: str) -> tuple[int, int]:
        """Return batch and shard of an id."""
        digest = hashlib.blake2b(identity.encode(), digest_size=32, key=self.secret, person=b"partition").digest()
        batch, shard = int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:], "big")
        return batch * self.batches_per_label >> 128, shard * self.shards >> 128


def partition_key(secret: bytes) -> bytes:
    """Return the key of the partition, apart from that of the noise."""
    return derive_key(secret, "partition")


def _identities(records: Records, unit: str) -> tuple[str, ...]:
    if unit == "record":
        return records.record_ids
    if records.user_ids is None:
        raise ConfigError("privacy.unit=user needs records that name their user; set data.user_column")
    return records.user_ids


def _frozen(groups: Mapping[int, list[int]]) -> dict[int, tuple[int, ...]]:
    return {shard: tuple(groups[shard]) for shard in sorted(groups)}
