"""Who is where: a keyed hash of one's own id, and nothing else."""

import random
from collections import Counter

import pytest
from scipy import stats

from safesynthdp.errors import ConfigError
from safesynthdp.generation.partition import Batch, Partition
from safesynthdp.record_set import Records

LABELS = ("a", "b")


def records(count: int, *, users: bool = False) -> Records:
    rng = random.Random(0)
    return Records(
        texts=tuple(f"text {i}" for i in range(count)),
        labels=tuple(rng.choice(LABELS) for _ in range(count)),
        record_ids=tuple(f"{rng.getrandbits(128):032x}" for _ in range(count)),
        user_ids=tuple(f"user {i % 30}" for i in range(count)) if users else None,
        label_set=LABELS,
    )


def rule(*, grouped: bool, unit: str = "record", key: bytes = bytes(32), batches: int = 3) -> Partition:
    return Partition(secret=key, batches_per_label=batches, shards=5, is_grouped=grouped, unit=unit)


def places(batches: list[Batch], given: Records, *, by_shard: bool) -> dict[str, tuple[str, int]]:
    return {
        given.record_ids[i]: (batch.name, shard if by_shard else 0)
        for batch in batches
        for shard, members in batch.shards.items()
        for i in members
    }


@pytest.mark.parametrize("grouped", [True, False])
def test_another_records_coming_or_going_moves_nobody(grouped: bool) -> None:
    everyone = records(300)
    before = places(rule(grouped=grouped).batches(everyone), everyone, by_shard=grouped)
    assert len(before) == 300
    order = [i for i in range(300) if i not in (7, 100)]
    random.Random(1).shuffle(order)
    fewer = everyone.select(order)
    after = places(rule(grouped=grouped).batches(fewer), fewer, by_shard=grouped)
    assert after == {key: place for key, place in before.items() if key in after}


def test_each_record_is_a_shard_of_its_own_unless_they_are_grouped() -> None:
    everyone = records(300)
    alone = rule(grouped=False).batches(everyone)
    assert all(len(members) == 1 for batch in alone for members in batch.shards.values())
    grouped = rule(grouped=True).batches(everyone)
    assert all(set(batch.shards) <= set(range(5)) for batch in grouped)
    assert [batch.name for batch in alone] == [f"{label}/{i}" for label in LABELS for i in range(3)]
    assert all(everyone.labels[i] == batch.label for batch in alone for m in batch.shards.values() for i in m)


def test_places_are_even_and_known_to_the_key_only() -> None:
    everyone = records(3000)
    first = rule(grouped=True).one_batch(everyone)
    sizes = [len(members) for members in first.shards.values()]
    assert stats.chisquare(sizes).pvalue > 1e-4
    other = rule(grouped=True, key=b"k" * 32).one_batch(everyone)
    assert first.shards != other.shards
    counts = Counter(rule(grouped=True, batches=4).place(str(i))[0] for i in range(4000))
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4
    assert "0000000000" not in repr(rule(grouped=True))


def test_all_records_of_a_user_share_a_shard() -> None:
    everyone = records(300, users=True)
    assert everyone.user_ids is not None
    found: dict[str, set[int]] = {}
    for shard, members in rule(grouped=True, unit="user").one_batch(everyone).shards.items():
        for i in members:
            found.setdefault(everyone.user_ids[i], set()).add(shard)
    assert len(found) == 30
    assert all(len(shards) == 1 for shards in found.values())
    with pytest.raises(ConfigError, match="user_column"):
        rule(grouped=True, unit="user").batches(records(5))


def test_a_batch_without_records_is_still_a_batch() -> None:
    batches = rule(grouped=False).batches(records(0))
    assert [dict(batch.shards) for batch in batches] == [{}] * 6
