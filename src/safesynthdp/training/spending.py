"""The ledger of a run while it runs: what may have been seen is on disk before it is computed.

Here: opening, charging and closing the entries of one training run. Elsewhere: the ledger's format and arithmetic
(privacy/ledger.py).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safesynthdp.errors import LedgerMismatch
from safesynthdp.privacy.ledger import Entry, Ledger, Release, confirm, release_epsilon
from safesynthdp.training.config import PrivacyConfig
from safesynthdp.training.plan import PrivacyPlan
from safesynthdp.training.segments import FIRST, Segment, earlier_mechanisms, total_steps

TRAINING = FIRST
HISTOGRAM = "label_histogram"
TOKEN_HISTOGRAM = "token_histogram"


@dataclass(kw_only=True)
class Spending:
    """The ledger file of a run, rewritten whole at every step."""

    path: Path | None
    """None on a rank that only follows: rank 0 writes, and the others wait for it before they draw."""
    ledger: Ledger
    plan: PrivacyPlan
    delta: float
    segment: Segment = field(default_factory=Segment)
    """The part of the run that is being paid for; earlier ones have entries of their own, which stay as they are."""

    @classmethod
    def open(
        cls,
        path: Path | None,
        *,
        plan: PrivacyPlan,
        privacy: PrivacyConfig,
        data: Mapping[str, Any],
        seeded: bool,
        segment: Segment | None = None,
        has_spent: bool = False,
    ) -> "Spending":
        """Read the ledger of a run that goes on, or begin one; nothing is spent yet.

        A ``segment`` that has no entry yet gets one beside those of the parts before it. ``has_spent``: the run
        directory shows that the ledger was written once.

        Raises:
            LedgerMismatch: If the ledger on disk was written for other records or another mechanism; the message
                names the field. Also if it is gone, since what was spent cannot be known without it.
        """
        segment = segment or Segment()
        begun = _begin(plan, privacy, data, seeded=seeded, segment=segment)
        if has_spent and path is not None and not path.is_file():
            raise LedgerMismatch(
                f"resume: {path} is missing, so what this run has spent is unknown; restore it, or start another run "
                "in a new output_dir: what this one spent stays spent"
            )
        if path is not None and path.is_file():
            found = Ledger.read(path)
            earlier = total_steps(earlier_mechanisms(found, segment))
            if earlier != plan.steps_before:
                raise LedgerMismatch(f"resume: {earlier} steps were spent before, the plan says {plan.steps_before}")
            if not found.has(segment.entry_id):
                found = found.with_entry(begun.entry(segment.entry_id))
            _refuse_drift(found, begun, segment)
            begun = found
        return cls(path=path, ledger=begun, plan=plan, delta=privacy.target_delta, segment=segment)

    @property
    def steps(self) -> int:
        """Steps that may have been observed so far, over all parts of the run."""
        return self.plan.steps_before + _steps(self._entry)

    @property
    def _entry(self) -> Entry:
        return self.ledger.entry(self.segment.entry_id)

    @property
    def opens_part(self) -> bool:
        """A later part of the run, none of whose steps is counted yet: it gets masks and noise of its own."""
        return self.segment.number > 1 and not _steps(self._entry)

    def record(self) -> None:
        """Put the ledger on disk before anything is spent: from here on one that is missing was lost."""
        if self.path is not None and not self.path.is_file():
            self._write()

    def charge(self, steps: int) -> None:
        """Count ``steps`` of the run on disk before the last of them is drawn; a replayed step is already counted."""
        if steps <= self.steps:
            return
        counted = {**self._entry.mechanism, "steps": steps - self.plan.steps_before}
        self.ledger = self.ledger.replace_entry(self._entry.with_mechanism(counted))
        self._write()

    def charge_histogram(self) -> None:
        """Count the label histogram on disk before it is drawn."""
        if self.plan.histogram is not None:
            self._charge_once(HISTOGRAM, self.plan.histogram.to_entry())

    def charge_tokens(self) -> None:
        """Count the token histogram on disk before it is drawn; without privacy its price is that of the training."""
        if self.plan.tokens is not None:
            self._charge_once(TOKEN_HISTOGRAM, self.plan.tokens.to_entry())

    def _charge_once(self, name: str, mechanism: dict[str, Any]) -> None:
        if self.ledger.has(name):
            return
        training = self._entry
        seeded = bool(training.randomness.get("seeded"))
        entry = Entry(
            id=name,
            kind=name,
            mechanism=mechanism,
            data=training.data,
            randomness=_randomness("keyed", seeded=seeded),  # whatever generator the steps use
            parents=(),
        )
        self.ledger = self.ledger.with_entry(entry)
        self._write()

    def close(self) -> Release:
        """Write what the run releases, composed over everything it spent, and return the release of the weights.

        Raises:
            SafeSynthError: If a second accountant contradicts the price; then nothing is released.
        """
        entries = tuple(entry.id for entry in self.ledger.entries)
        epsilon, accountant = release_epsilon(self.ledger, entries, delta=self.delta)
        confirm(self.ledger, entries, epsilon, delta=self.delta)
        self.ledger = dataclasses.replace(self.ledger, releases=())  # a run killed right here closes again
        artifacts = ["weights", *(name for name in (HISTOGRAM, TOKEN_HISTOGRAM) if self.ledger.has(name))]
        for artifact in artifacts:
            release = Release(
                artifact=artifact,
                epsilon=epsilon,
                delta=self.delta,
                rule="compose",
                entries=entries,
                accountant=accountant,
                not_covered=self.plan.not_covered,
            )
            self.ledger = self.ledger.with_release(release)
        self._write()
        return next(release for release in self.ledger.releases if release.artifact == "weights")

    def _write(self) -> None:
        if self.path is not None:
            self.ledger.write(self.path)


def _begin(
    plan: PrivacyPlan, privacy: PrivacyConfig, data: Mapping[str, Any], *, seeded: bool, segment: Segment
) -> Ledger:
    dp = plan.mechanism is not None
    entry = Entry(
        id=segment.entry_id,
        kind="dpsgd" if dp else "none",
        mechanism=(plan.mechanism.to_entry() if plan.mechanism else {}) | {"steps": 0},
        data=dict(data),
        randomness=_randomness(privacy.noise_generator if dp else "keyed", seeded=seeded),
        parents=(),
    )
    return Ledger(unit=privacy.unit, adjacency=privacy.adjacency, entries=(entry,), releases=())


def _randomness(generator: str, *, seeded: bool) -> dict[str, Any]:
    """Return where the noise comes from; a seed taints whatever it feeds."""
    source = {"keyed": "os_entropy", "device": "device_generator"}[generator]
    return {"source": "unsafe_seed" if seeded else source, "seeded": seeded}


def _refuse_drift(found: Ledger, wanted: Ledger, segment: Segment) -> None:
    """Refuse to go on under another promise than the one the ledger was begun with."""
    old, new = found.entry(segment.entry_id), wanted.entry(segment.entry_id)
    pairs = [
        ("unit", found.unit, wanted.unit),
        ("adjacency", found.adjacency, wanted.adjacency),
        ("kind", old.kind, new.kind),
        *((key, old.mechanism.get(key), value) for key, value in new.mechanism.items() if key != "steps"),
        *((key, old.data.get(key), value) for key, value in new.data.items()),
        *((key, old.randomness.get(key), value) for key, value in new.randomness.items()),
    ]
    for key, then, now in pairs:
        if then != now:
            raise LedgerMismatch(
                f"resume: {key} is {now}, the ledger says {then}; restore it or change output_dir, or let the run go "
                "on with --resume_with_new_segment true"
            )


def _steps(entry: Entry) -> int:
    return int(entry.mechanism["steps"])
