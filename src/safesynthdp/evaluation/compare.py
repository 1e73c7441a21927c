"""Everything about likeness to real text in one call: fidelity, diversity, validity.

Here: the encoder and the reference model of a config, and the order of work. Elsewhere: the rows (fidelity.py,
fidelity_diversity.py, validity.py), utility and memorisation.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from safesynthdp.evaluation.encoders import choose_encoder
from safesynthdp.evaluation.fidelity import Settings, measure_fidelity
from safesynthdp.evaluation.fidelity_diversity import measure_diversity
from safesynthdp.evaluation.inputs import Corpora
from safesynthdp.evaluation.reference_lm import choose_reference
from safesynthdp.evaluation.rows import Row
from safesynthdp.evaluation.validity import measure_validity

Lap = Callable[[str, str], None]


class Wanted(Protocol):
    """The part of the config that is read here."""

    @property
    def embedding_model(self) -> str:
        """As ``choose_encoder`` takes it."""
        ...

    @property
    def fast(self) -> bool:
        """Without layers."""
        ...

    @property
    def reference_model(self) -> str | None:
        """As ``choose_reference`` takes it."""
        ...

    @property
    def mauve_buckets(self) -> int:
        """Buckets of MAUVE."""
        ...

    @property
    def max_records(self) -> int:
        """Cap of a draw."""
        ...

    @property
    def seeds(self) -> int:
        """Draws."""
        ...

    @property
    def label_column(self) -> str | None:
        """None measures without labels."""
        ...


@dataclass(frozen=True, kw_only=True)
class Result:
    """Rows, what decided them, and what the user has to know."""

    rows: list[Row]
    settings: dict[str, Any]
    warnings: list[str] = field(default_factory=list)


def measure_likeness(corpora: Corpora, wanted: Wanted, *, progress: Lap) -> Result:
    """Return the rows of fidelity, diversity and validity.

    Args:
        corpora: The records.
        wanted: The evaluate config.
        progress: Gets a stage and what was done in it.

    Raises:
        ConfigError: If the encoder or the reference model cannot be used.
        SafeSynthError: If a builtin cannot be fetched, or the cache cannot be written.
    """
    reference, why_not = choose_reference(wanted.reference_model)
    settings = Settings(
        encoder=choose_encoder(wanted.embedding_model, fast=wanted.fast),
        reference=reference,
        no_reference=why_not,
        buckets=wanted.mauve_buckets,
        max_records=wanted.max_records,
        seeds=wanted.seeds,
    )
    fidelity = measure_fidelity(corpora, settings, progress=lambda what: progress("fidelity", what))
    rows = fidelity.rows + measure_diversity(
        corpora, fidelity.drawn, fidelity.pairs, settings.encoder, max_records=wanted.max_records
    )
    progress("diversity", "counted phrases and copies")
    rows += measure_validity(corpora, seeds=wanted.seeds, with_labels=wanted.label_column is not None)
    progress("validity", "counted empty and cut texts, copies and labels")
    return Result(rows=rows, settings=settings.facts(), warnings=fidelity.warnings + _malformed(corpora))


def _malformed(corpora: Corpora) -> list[str]:
    count = sum(
        any((not c.isprintable() and not c.isspace()) or c == "\ufffd" for c in t) for t in corpora.synthetic.texts
    )
    if not count:
        return []
    return [f"synthetic: {count} of {len(corpora.synthetic)} texts hold control or replacement characters"]
