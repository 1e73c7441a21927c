"""The ledger as two tables: what is released, and the accesses that paid for it.

Here: one line a release, one line an access, with every number of its formula. Elsewhere: reading and recomputing
(guarantee.py).
"""

from collections.abc import Sequence

from safesynthdp.reporting.guarantee import Access, Claim
from safesynthdp.reporting.layout import Column, Row, Table
from safesynthdp.reporting.statement import ARTIFACTS, num_records_text
from safesynthdp.reporting.wording import NOT_STATED, epsilon_text, value_text

CAPTION = "What is released, and what it costs whoever sees it"


def release_table(claims: Sequence[Claim], *, with_check: bool) -> Table:
    """Return one line a release; with the recomputed epsilon beside the stored one if asked for."""
    columns = [Column(title="artifact"), Column(title="epsilon", is_number=True), Column(title="delta", is_number=True)]
    columns += [Column(title="recomputed", is_number=True)] if with_check else []
    columns += [Column(title="rule")]
    columns += [Column(title="entries"), Column(title="accountant")] if with_check else []
    rows = tuple(_release_row(claim, with_check=with_check) for claim in claims)
    return Table(caption=CAPTION, columns=tuple(columns), rows=rows)


def access_table(accesses: Sequence[Access]) -> Table:
    """Return one line an access to private records."""
    titles = ("entry", "kind", "mechanism", "records", "randomness")
    rows = tuple(_access_row(access) for access in accesses)
    return Table(caption="Accesses to private records", columns=tuple(Column(title=t) for t in titles), rows=rows)


def _release_row(claim: Claim, *, with_check: bool) -> Row:
    name = ARTIFACTS.get(claim.artifact, claim.artifact) + (" (untuned model)" if claim.is_untuned else "")
    cells = [name, epsilon_text(claim.epsilon), "none" if claim.delta is None else value_text(claim.delta)]
    if with_check:
        is_unknown = claim.recomputed is None and claim.epsilon is not None
        cells.append(NOT_STATED if is_unknown else epsilon_text(claim.recomputed))
    cells.append(claim.rule.replace("_", "-"))
    if with_check:
        cells += [", ".join(claim.entries) or "none", claim.accountant or NOT_STATED]
    return Row(cells=tuple(cells), tone="bad" if claim.problem else "faint" if claim.is_untuned else "")


def _access_row(access: Access) -> Row:
    mechanism, randomness = value_text(dict(access.mechanism)), value_text(dict(access.randomness))
    records = num_records_text(access) or NOT_STATED
    return Row(cells=(access.identity, access.kind.replace("_", " "), mechanism, records, randomness))
