"""Who is drawn: records, or users with one record each.

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

    @classmethod
    def of(cls, records: Records, *, unit: str) -> "Units":
        """Group records by user if ``unit`` is 'user'; otherwise every record is a unit of its own."""
        if unit == "record":
            return cls(members=tuple((i,) for i in range(len(records))))
        if records.user_ids is None:
            raise ConfigError(f"privacy.unit={unit} needs records that name their user; set data.user_column")
        groups = dict[str, list[int]]()
        for index, user in enumerate(records.user_ids):
            groups.setdefault(user, []).append(index)
        return cls(members=tuple(tuple(groups[user]) for user in sorted(groups)))

    def __len__(self) -> int:
        return len(self.members)

    def draw(self, plan: PrivacyPlan, *, step: int, keys: StepKeys) -> list[int]:
        """Return the positions of the records of one Poisson draw: each unit at most once, one record a unit.

        Guarantee:
            A unit joins with probability ``expected_batch_size / num_units``, independent of every other. Its record
            is a keyed choice among its own, so a user moves a step by at most one clipped gradient.
        """
        return [self._choice(int(unit), step=step, keys=keys) for unit in plan.draw(step=step, keys=keys)]

    def label_counts(self, labels: Sequence[str], label_set: Sequence[str], *, keys: StepKeys) -> list[int]:
        """Return how many units show each label, each unit by one keyed record, so one unit moves one cell by one."""
        position = {label: i for i, label in enumerate(label_set)}
        counts: NDArray[np.int64] = np.zeros(len(label_set), dtype=np.int64)
        for unit in range(len(self)):
            counts[position[labels[self._choice(unit, step=0, keys=keys, domain="label")]]] += 1
        return [int(count) for count in counts]

    def _choice(self, unit: int, *, step: int, keys: StepKeys, domain: str = "user_record") -> int:
        members = self.members[unit]
        if len(members) == 1:
            return members[0]
        word = words(keys.sampling, domain=domain, step=step, tensor=0, count=1, offset=unit)[0]
        return members[int(word) * len(members) >> 64]
