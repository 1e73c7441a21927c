"""What a sample cost: the ledger of a sample directory.

Here: which guarantee synthetic text inherits. Elsewhere: the ledger's format and arithmetic (privacy/ledger.py), the
accesses themselves (training/).

Guarantee:
    Drawing text reads the released weights, the released label counts and public settings, never a record: it is
    post-processing, whatever is drawn and however often. So the text costs what weights and label counts cost
    *together*. Text from a model that saw no record, with equal shares of public labels, costs nothing.
"""

import dataclasses
from typing import TYPE_CHECKING

from safesynthdp.errors import LedgerMismatch, UserError
from safesynthdp.generation.labels import LabelShares
from safesynthdp.privacy.command import round_up
from safesynthdp.privacy.ledger import Ledger, Release, is_understated, recompute, release_epsilon
from safesynthdp.runs import TOKENS

if TYPE_CHECKING:
    from safesynthdp.generation.token_targets import TokenTargets

TEXT = "synthetic_text"
_READS_RECORDS = ("dpsgd", "none")
PRETRAINING = "the base model's own pre-training data"
PRIVATE_LABELS = "the label set: it was read from the private label column, not given as data.labels"


def untuned_ledger(*, unit: str, adjacency: str, delta: float, label_set_is_public: bool) -> Ledger:
    """Return the ledger of text from the base model: no access, epsilon 0.

    Args:
        unit: Of the run it is compared with.
        adjacency: Likewise.
        delta: Likewise; nothing is spent at any delta.
        label_set_is_public: Otherwise the labels in the prompts were read from private records, and that is said.
    """
    release = Release(
        artifact=TEXT,
        epsilon=0.0,
        delta=delta,
        rule="post_processing",
        entries=(),
        not_covered=(PRETRAINING,) if label_set_is_public else (PRETRAINING, PRIVATE_LABELS),
    )
    return Ledger(unit=unit, adjacency=adjacency, releases=(release,))  # type: ignore[arg-type]  # checked when built


def sample_ledger(source: Ledger, shares: LabelShares) -> Ledger:
    """Return the ledger of text drawn from a run's weights with this label mix.

    Raises:
        UserError: If the run released no weights yet.
        LedgerMismatch: If the run's ledger promises more than its entries give, or does not pay for the label mix.
    """
    weights = released_weights(source)
    if weights is None:
        raise UserError("run: its ledger releases no weights yet; finish the run with the command that began it")
    _refuse_broken(source, weights)
    missing = tuple(name for name in _label_entries(source, shares, weights) if name not in weights.entries)
    release = dataclasses.replace(weights, artifact=TEXT, rule="post_processing")
    if missing:
        release = _jointly(source, weights, missing)
    return Ledger(unit=source.unit, adjacency=source.adjacency, entries=source.entries, releases=(release,))


def refuse_unpaid_tokens(ledger: Ledger, targets: "TokenTargets | None") -> None:
    """See that the text pays for the token counts it follows.

    Raises:
        LedgerMismatch: If they are not among the accesses of its release.
    """
    if targets is None:
        return
    release = next(release for release in ledger.releases if release.artifact == TEXT)
    if targets.is_exact and release.epsilon is None:
        return
    paid = [entry for entry in ledger.entries if entry.kind == "token_histogram" and entry.id in release.entries]
    if not any(entry.mechanism.get("noise_multiplier") == targets.noise_std for entry in paid):
        raise LedgerMismatch(
            f"{TOKENS} (noise {targets.noise_std:g}): the run's ledger does not pay for it; restore both, or use "
            "--token_matching_rounds 0"
        )


def released_weights(source: Ledger) -> Release | None:
    """Return the release of a run's weights; None while there is none."""
    return next((release for release in source.releases if release.artifact == "weights"), None)


def sentence(ledger: Ledger) -> str:
    """Return what the text of this ledger costs, in words; epsilon is rounded up."""
    release = next(release for release in ledger.releases if release.artifact == TEXT)
    if release.epsilon is None or release.delta is None:
        return "no formal guarantee"
    if not release.entries:
        return "epsilon=0: the model saw no private record"
    seeded = any(entry.randomness.get("seeded") for entry in ledger.entries)
    warning = "; seeded: no guarantee against whoever knows the seed" if seeded else ""
    return (
        f"epsilon={round_up(release.epsilon)} at delta={release.delta:g} per {ledger.unit}, {_source(ledger)}{warning}"
    )


def _source(ledger: Ledger) -> str:
    """Return whose guarantee the text carries."""
    release = next(release for release in ledger.releases if release.artifact == TEXT)
    if release.rule == "min":
        return "the smaller of the weights' and the output noise's, while the weights are withheld"
    predicted = any(entry.kind == "private_prediction" for entry in ledger.entries)
    return "by private prediction" if predicted else "as the weights"


def _jointly(source: Ledger, weights: Release, missing: tuple[str, ...]) -> Release:
    """Price the weights together with label counts that were not released with them."""
    entries = (*weights.entries, *missing)
    if weights.epsilon is None or weights.delta is None:
        return dataclasses.replace(weights, artifact=TEXT, rule="compose", entries=entries)
    epsilon, accountant = release_epsilon(source, entries, delta=weights.delta)
    return dataclasses.replace(
        weights, artifact=TEXT, rule="compose", entries=entries, epsilon=epsilon, accountant=accountant
    )


def _refuse_broken(source: Ledger, weights: Release) -> None:
    """Inherit nothing from a ledger that would not pass ``safesynthdp account ledger``."""
    reads = [entry.id for entry in source.entries if entry.kind in _READS_RECORDS]
    untraced = [name for name in reads if name not in weights.entries]
    if untraced:
        raise LedgerMismatch(f"run: its weights leave out entry {untraced[0]} of their ledger; restore the ledger")
    if is_understated(weights.epsilon, recompute(source, weights)):
        raise LedgerMismatch("run: its ledger states a smaller epsilon than its entries give; restore the ledger")


def _label_entries(source: Ledger, shares: LabelShares, weights: Release) -> list[str]:
    """Return the entries that pay for the label mix."""
    if shares.source == "uniform" or (shares.source == "exact" and weights.epsilon is None):
        return []
    paid = [entry.id for entry in source.entries if entry.kind == "label_histogram"]
    if shares.source != "discrete_laplace" or not paid:
        raise LedgerMismatch(
            f"labels={shares.source}: the run's ledger does not pay for its label counts; use --labels uniform"
        )
    return paid
