"""Output mechanisms as entries of a ledger.

Here: is an entry one that its ledger can price? Elsewhere: the arithmetic over entries (ledger.py).
"""

from collections.abc import Mapping
from typing import Any

from safesynthdp.errors import ConfigError, LedgerMismatch
from safesynthdp.privacy.losses import Adjacency
from safesynthdp.privacy.output_pricing import PricedOutput
from safesynthdp.privacy.output_registry import output_mechanism_from_entry


def priced_output(
    identity: str, entry: Mapping[str, Any], *, unit: str, adjacency: Adjacency, single: bool
) -> PricedOutput:
    """Return the priced mechanism of an entry.

    Args:
        identity: Of the entry, for messages.
        entry: Its numbers, under the flag names of ``account output``.
        unit: Of the ledger. All records of a user are in one shard, so only ``many`` speaks about users.
        adjacency: Of the ledger.
        single: Whether this entry must be about one model (kind output_mechanism) or about shards.

    Raises:
        LedgerMismatch: If the numbers are not those of a mechanism, or say nothing about this ledger's neighbours.
    """
    mechanism = output_mechanism_from_entry(entry)
    if mechanism.single != single:
        wanted = "one model (single)" if single else "disjoint shards"
        raise LedgerMismatch(f"ledger: {identity} has shards={mechanism.shards}, and its kind is about {wanted}")
    if unit == "user" and not single and mechanism.adjacency != "many":
        raise LedgerMismatch(
            f"ledger: {identity} has adjacency {mechanism.adjacency}, which protects a record; unit user needs many"
        )
    if adjacency == "replace" and not single and mechanism.adjacency == "many":
        raise LedgerMismatch(
            f"ledger: {identity} has adjacency many: an exchanged record may change two shards, and many pays for one; "
            "only add_remove can be priced"
        )
    try:
        return PricedOutput(mechanism=mechanism, adjacency=adjacency)
    except ConfigError as error:
        raise LedgerMismatch(f"ledger: {identity}: {error}") from error
