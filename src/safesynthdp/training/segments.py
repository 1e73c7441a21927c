"""A run that goes on under another promise: what may change, and what its earlier part costs.

Here: which keys of a config must stay, whether the promise changed, and the mechanisms that were spent before.
Elsewhere: the ledger's entry of each part (spending.py), the budget of the next one (plan.py).

Guarantee:
    Steps that were charged stay charged, under the mechanism that ran. The next part gets an entry of its own, fresh
    masks and fresh noise, and every price is composed over all parts. A change is priced as if it had been fixed before
    the run; one that was decided by looking at private results is not covered beyond that, and the ledger says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safesynthdp.errors import ConfigError, LedgerMismatch
from safesynthdp.privacy.ledger import Entry, Ledger
from safesynthdp.privacy.mechanisms import DPSGDMechanism

FIRST = "dpsgd"
GUARANTEE_VERSION = 1
"""Of the code that draws, clips and adds noise. Raise it with a change after which old and new steps must not share an
entry of a ledger; whatever else changes in the code, a resumed run takes fresh keys (session.py)."""
SEGMENT = "segment"
"""The key of manifest.json that says which part is running, from the second on."""
NOT_COVERED = (
    "settings that changed on the way: all parts are composed, each as if it had been fixed before the run; that "
    "private results (metrics, weights) led to the change is not counted"
)
_MUST_STAY = (
    "model",
    "lora",
    "data.labels",
    "privacy.mode",
    "privacy.unit",
    "privacy.max_records_per_user",
    "privacy.adjacency",
    "privacy.label_histogram_epsilon",
    "privacy.token_histogram_share",
    "privacy.token_histogram_word_buckets",
    "privacy.unsafe_seed",
)
_PROMISE = ("privacy", "data", "train.expected_batch_size", "train.max_steps", "train.num_train_epochs")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One part of a run: the steps between two changes of the promise."""

    number: int = 1
    noise_multiplier: float | None = None
    """As settled when it was opened; None = not settled yet."""

    @property
    def entry_id(self) -> str:
        """Its entry in the ledger."""
        return FIRST if self.number == 1 else f"{FIRST}-{self.number}"

    def to_json(self) -> dict[str, Any]:
        """Return what manifest.json says."""
        return {"number": self.number, "noise_multiplier": self.noise_multiplier}


def refuse_other_model(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse what a run cannot change on its way.

    Raises:
        ConfigError: Naming the key.
    """
    for key in _MUST_STAY:
        if _at(before, key) != _at(now, key):
            raise ConfigError(
                f"{key}: a run that goes on cannot change it; restore it, or start another run in a new output_dir"
            )


def promise_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether masks, noise or price are to be others than before."""
    return any(_at(before, key) != _at(now, key) for key in _PROMISE)


def refuse_other_guarantee(manifest: Mapping[str, Any], *, may_differ: bool) -> bool:
    """Return whether the steps before were made by code with another guarantee.

    Raises:
        LedgerMismatch: If they were, and no new part of the run was asked for.
    """
    before = manifest.get("guarantee_version", GUARANTEE_VERSION)
    if before != GUARANTEE_VERSION and not may_differ:
        raise LedgerMismatch(
            f"resume: guarantee_version (of the code that draws, clips and adds noise) is {GUARANTEE_VERSION}, this "
            f"run began with {before}; install what it began with, or let it go on with --resume_with_new_segment true"
        )
    return bool(before != GUARANTEE_VERSION)


def training_entries(ledger: Ledger) -> list[Entry]:
    """Return the entries of the parts, in the order they ran."""
    return [entry for entry in ledger.entries if entry.id == FIRST or entry.id.startswith(f"{FIRST}-")]


def earlier_mechanisms(ledger: Ledger, segment: Segment) -> tuple[DPSGDMechanism, ...]:
    """Return what ran, with the steps that were charged, before a part.

    Raises:
        LedgerMismatch: If the ledger does not hold exactly the parts that the manifest says.
    """
    found = training_entries(ledger)
    names = [Segment(number=i + 1).entry_id for i in range(len(found))]
    if [entry.id for entry in found] != names or not segment.number - 1 <= len(found) <= segment.number:
        raise LedgerMismatch(
            f"resume: the ledger holds {len(found)} parts of the training, manifest.json says part {segment.number}; "
            "restore both, or start another run in a new output_dir"
        )
    earlier = found[: segment.number - 1]
    return tuple(DPSGDMechanism.from_entry({"adjacency": ledger.adjacency, **entry.mechanism}) for entry in earlier)


def total_steps(mechanisms: Sequence[DPSGDMechanism]) -> int:
    """Return how many steps were charged."""
    return sum(mechanism.steps for mechanism in mechanisms)


def _at(values: Mapping[str, Any], key: str) -> Any:
    found: Any = values
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None  # a key that an older config had not
    return found
