"""The ledger: what was spent, on which data, by what; one JSON file that is enough to compute every epsilon again.

Here: entries, releases, and the arithmetic over them. Elsewhere: reading and checking the file (ledger_file.py), the
prices (accounting.py), the mechanisms (mechanisms.py). Epsilon is only ever read from a ledger.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safesynthdp.errors import LedgerMismatch
from safesynthdp.privacy import ledger_file
from safesynthdp.privacy.accounting import Priced, accountant_version
from safesynthdp.privacy.joint import joint_price
from safesynthdp.privacy.losses import Adjacency
from safesynthdp.privacy.mechanisms import DPSGDMechanism, LabelHistogramMechanism
from safesynthdp.privacy.output_ledger import priced_output
from safesynthdp.privacy.token_histogram import TokenHistogramMechanism

TOLERANCE = 1e-6
"""Relative: a stored epsilon below the recomputed one by more than this is a defect."""
_NO_GUARANTEE = "none"
_OUTPUT = "output_mechanism"
_WEIGHTS = ("dpsgd", _NO_GUARANTEE)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One access to private data."""

    id: str
    kind: str
    """dpsgd, label_histogram, token_histogram, private_prediction, output_mechanism, or none (no guarantee at all)."""
    mechanism: Mapping[str, Any]
    """Every number its formula needs, under the flag names of ``account``."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """fingerprint, num_records, num_records_is_public."""
    randomness: Mapping[str, Any] = field(default_factory=dict)
    """source, seeded."""
    parents: tuple[str, ...] = ()
    """Entries whose private outcome this access used: who pays for it pays for them."""

    def with_mechanism(self, mechanism: Mapping[str, Any]) -> "Entry":
        """Return the entry with other numbers, for example one more step."""
        return dataclasses.replace(self, mechanism=dict(mechanism))


@dataclass(frozen=True, kw_only=True)
class Release:
    """One artifact and its price."""

    artifact: str
    """weights, synthetic_text, label_histogram or token_histogram."""
    epsilon: float | None
    """None: no formal guarantee."""
    delta: float | None
    rule: str
    """compose, post_processing or min."""
    entries: tuple[str, ...]
    """Ids of the accesses it can be traced to; none: it used no private data."""
    accountant: Mapping[str, Any] = field(default_factory=dict)
    not_covered: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All accesses and all releases of one run, its parents' included. Checked when built."""

    unit: str
    """record or user: what a neighbour differs by."""
    adjacency: Adjacency
    entries: tuple[Entry, ...] = ()
    releases: tuple[Release, ...] = ()

    def __post_init__(self) -> None:
        ledger_file.check(self.to_json())

    @classmethod
    def read(cls, path: Path) -> "Ledger":
        """Read and check ``ledger.json``.

        Raises:
            LedgerMismatch: If it is not a whole ledger of version 1 with finite numbers.
        """
        value = ledger_file.load(path)
        return cls(
            unit=value["unit"],
            adjacency=value["adjacency"],
            entries=tuple(Entry(**{**entry, "parents": tuple(entry["parents"])}) for entry in value["entries"]),
            releases=tuple(
                Release(**{**r, "entries": tuple(r["entries"]), "not_covered": tuple(r["not_covered"])})
                for r in value["releases"]
            ),
        )

    def write(self, path: Path) -> None:
        """Write the file whole, flushed to disk, or not at all."""
        ledger_file.save(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``ledger.json``."""
        return {
            "version": ledger_file.VERSION,
            "unit": self.unit,
            "adjacency": self.adjacency,
            "entries": [{**vars(entry), "parents": list(entry.parents)} for entry in self.entries],
            "releases": [
                {**vars(r), "entries": list(r.entries), "not_covered": list(r.not_covered)} for r in self.releases
            ],
        }

    def has(self, identity: str) -> bool:
        """Return whether there is an entry of this id."""
        return any(entry.id == identity for entry in self.entries)

    def entry(self, identity: str) -> Entry:
        """Return the entry of this id.

        Raises:
            LedgerMismatch: If there is none.
        """
        for entry in self.entries:
            if entry.id == identity:
                return entry
        raise LedgerMismatch(f"ledger: entry {identity} is missing; restore the ledger")

    def with_entry(self, entry: Entry) -> "Ledger":
        """Return the ledger with one more access."""
        return dataclasses.replace(self, entries=(*self.entries, entry))

    def replace_entry(self, entry: Entry) -> "Ledger":
        """Return the ledger with the entry of the same id replaced.

        Raises:
            LedgerMismatch: If there is none, or the steps already counted would shrink.
        """
        counted, now = self.entry(entry.id).mechanism.get("steps", 0), entry.mechanism.get("steps", 0)
        if now < counted:
            raise LedgerMismatch(f"ledger: steps of {entry.id} would fall from {counted} to {now}; nothing is unspent")
        return dataclasses.replace(self, entries=tuple(entry if e.id == entry.id else e for e in self.entries))

    def with_release(self, release: Release) -> "Ledger":
        """Return the ledger with one more artifact."""
        return dataclasses.replace(self, releases=(*self.releases, release))


def release_epsilon(ledger: Ledger, entries: Iterable[str], *, delta: float) -> tuple[float | None, dict[str, str]]:
    """Return epsilon of what can be traced to ``entries``, and the accountant that says so.

    Entries are taken with their parents, each once, and composed. None when one of them has no guarantee; 0 when there
    are none.

    Raises:
        LedgerMismatch: If an entry is missing or its kind cannot be computed here. It is never trusted instead.
    """
    traced = _traced(ledger, entries)
    if any(entry.kind == _NO_GUARANTEE for entry in traced):
        return None, accountant_version(_NO_GUARANTEE)
    mechanisms = [_mechanism(ledger, entry) for entry in traced]
    epsilon, name = joint_price(mechanisms, delta=delta, adjacency=ledger.adjacency)
    return epsilon, accountant_version(name)


def least_epsilon(ledger: Ledger, entries: Iterable[str], *, delta: float) -> tuple[float | None, dict[str, str]]:
    """Return epsilon of one output that carries two guarantees: rule ``min``.

    One reads the output mechanism and ignores how the weights came about: it holds for every pair of models. The other
    reads the weights and ignores the mechanism: it is post-processing. Everything else (a label histogram) is paid
    with either. Only while the weights are withheld.

    Raises:
        LedgerMismatch: If there are not two guarantees on the output.
    """
    traced = _traced(ledger, entries)
    by_output = [entry.id for entry in traced if entry.kind == _OUTPUT]
    by_weights = [entry.id for entry in traced if entry.kind in _WEIGHTS]
    if not by_output or not by_weights:
        raise LedgerMismatch(
            "ledger: rule min needs a second guarantee on the same output, an output_mechanism beside the weights; "
            "restore the entries or use compose"
        )
    others = [entry.id for entry in traced if entry.id not in (*by_output, *by_weights)]
    found = [release_epsilon(ledger, [*side, *others], delta=delta) for side in (by_output, by_weights)]
    return min(found, key=lambda pair: math.inf if pair[0] is None else pair[0])


def confirm(ledger: Ledger, entries: Iterable[str], epsilon: float | None, *, delta: float) -> None:
    """Ask the second accountant before a price is written; None claims nothing and needs no confirmation.

    Raises:
        SafeSynthError: If the price is below what an independent lower bound allows.
    """
    from safesynthdp.privacy.second_opinion import refuse_contradiction

    if epsilon is not None:
        mechanisms = [_mechanism(ledger, entry) for entry in _traced(ledger, entries)]
        refuse_contradiction(mechanisms, epsilon, delta=delta, adjacency=ledger.adjacency)


def recompute(ledger: Ledger, release: Release) -> float | None:
    """Return the epsilon of a release from its entries alone; what it says of itself is not read.

    Raises:
        LedgerMismatch: If it cannot be computed.
    """
    _refuse_untraced(ledger, release)
    if release.delta is None:
        if release.epsilon is not None:
            raise LedgerMismatch(f"ledger: {release.artifact} has an epsilon without a delta; restore the ledger")
        return None
    price = least_epsilon if release.rule == "min" else release_epsilon
    return price(ledger, release.entries, delta=release.delta)[0]


def _refuse_untraced(ledger: Ledger, release: Release) -> None:
    """Weights come from every training in their ledger; nothing that has accesses beside it comes from none of them."""
    if release.artifact == "weights":
        named = {entry.id for entry in _traced(ledger, release.entries)}
        left_out = [entry.id for entry in ledger.entries if entry.kind in _WEIGHTS and entry.id not in named]
    else:
        left_out = [] if release.entries else [entry.id for entry in ledger.entries]
    if left_out:
        raise LedgerMismatch(f"ledger: {release.artifact} leaves out entry {left_out[0]}; restore the ledger")


def recompute_all(ledger: Ledger) -> list[tuple[Release, float | None]]:
    """Return every release with its recomputed epsilon."""
    return [(release, recompute(ledger, release)) for release in ledger.releases]


def is_understated(stored: float | None, recomputed: float | None) -> bool:
    """Return whether a stored epsilon promises more than its entries give."""
    if stored is None:
        return False
    return recomputed is None or stored < recomputed * (1 - TOLERANCE)


def _traced(ledger: Ledger, identities: Iterable[str]) -> list[Entry]:
    """Return the distinct entries and all their ancestors."""
    found: dict[str, Entry] = {}
    waiting = list(identities)
    while waiting:
        identity = waiting.pop()
        if identity not in found:
            found[identity] = ledger.entry(identity)
            waiting.extend(found[identity].parents)
    return [entry for entry in ledger.entries if entry.id in found]


def _mechanism(ledger: Ledger, entry: Entry) -> Priced:
    """Return the priced object of an entry."""
    if entry.kind in (_OUTPUT, "private_prediction"):
        single = entry.kind == _OUTPUT
        return priced_output(entry.id, entry.mechanism, unit=ledger.unit, adjacency=ledger.adjacency, single=single)
    numbers = {"adjacency": ledger.adjacency, **entry.mechanism}
    if numbers["adjacency"] != ledger.adjacency:
        raise LedgerMismatch(
            f"ledger: {entry.id} has adjacency {numbers['adjacency']}, not {ledger.adjacency}; they do not compose"
        )
    if entry.kind == "label_histogram":
        return LabelHistogramMechanism.from_entry(numbers)
    if entry.kind == "token_histogram":
        return TokenHistogramMechanism.from_entry(numbers)
    if entry.kind != "dpsgd":
        raise LedgerMismatch(f"ledger: entry {entry.id} of kind {entry.kind} cannot be computed by this version")
    mechanism = DPSGDMechanism.from_entry(numbers)
    known = entry.data.get("num_records")
    if ledger.unit == "record" and known is not None and known != mechanism.num_records:
        raise LedgerMismatch(
            f"ledger: {entry.id} is priced for num_records={mechanism.num_records}, its data has {known}; restore it"
        )
    return mechanism
