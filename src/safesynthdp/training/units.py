"""Who is drawn: records, or users with a few records each.

Here: from a drawn unit to a record, and the label counts that the histogram counts. Elsewhere: the draw's probability
and price (privacy/mechanisms.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safesynthdp.errors import ConfigError
from safesynthdp.privacy.randomness import StepKeys, words
from safesynthdp.records import Records
from safesynthdp.training.plan import PrivacyPlan


@dataclass(frozen=True, kw_only=True)
class Units:
    """The privacy units in a fixed order (by id), each with the positions of its records."""

    members: tuple[tuple[int, ...], ...]
    max_records: int = 1
    """At most this many records of a unit join a step."""

    @classmethod
    def of(cls, records: Records, *, unit: str, max_records: int = 1) -> "Units":
        """Group records by user if ``unit`` is 'user'; otherwise every record is a unit of its own."""
        if unit == "record":
            return cls(members=tuple((i,) for i in range(len(records))))
        if records.user_ids is None:
            raise ConfigError(f"privacy.unit={unit} needs records that name their user; set data.user_column")
        groups = dict[str, list[int]]()
        for index, user in enumerate(records.user_ids):
            groups.setdefault(user, []).append(index)
        return cls(members=tuple(tuple(groups[user]) for user in sorted(groups)), max_records=max_records)

    def __len__(self) -> int:
        return len(self.members)

    def draw(self, plan: PrivacyPlan, *, step: int, keys: StepKeys) -> list[tuple[int, ...]]:
        """Return, for each unit of one Poisson draw, the positions of its records: no unit and no record twice.

        Guarantee:
            A unit joins with probability ``expected_batch_size / num_units``, independent of every other. Its records
            are a keyed choice among its own, and together they make one clipped gradient.
        """
        drawn = plan.draw(step=step, keys=keys)
        return [
            self._choice(int(unit), self.max_records, step=step, keys=keys, domain="user_records") for unit in drawn
        ]

    def label_counts(self, labels: Sequence[str], label_set: Sequence[str], *, keys: StepKeys) -> list[int]:
        """Return how many units show each label, each unit by one keyed record, so one unit moves one cell by one."""
        position = {label: i for i, label in enumerate(label_set)}
        counts: NDArray[np.int64] = np.zeros(len(label_set), dtype=np.int64)
        for unit in range(len(self)):
            (chosen,) = self._choice(unit, 1, step=0, keys=keys, domain="label")
            counts[position[labels[chosen]]] += 1
        return [int(count) for count in counts]

    def _choice(self, unit: int, most: int, *, step: int, keys: StepKeys, domain: str) -> tuple[int, ...]:
        """Return a uniformly random subset of the unit's records: those with the smallest words."""
        members = self.members[unit]
        if len(members) <= most:
            return members
        drawn = words(keys.sampling, domain=domain, step=step, tensor=unit, count=len(members))
        return tuple(members[i] for i in sorted(np.argsort(drawn, kind="stable")[:most].tolist()))
