"""``safesynthdp selftest evaluation``: does every metric see the defect it is meant to see?

Here: which defect must move which number and which finding must name it; the table. Elsewhere: the text
(selftest_corpora.py), the rules (verdict.py). Passed: each defect moves its number beyond the interval (the real-real
value lies outside it) and is named; fresh real text raises no finding. Quick needs no network and no model (tf-idf and
SVD); full reads the builtin ``vader`` and uses the sentence encoder and the language model that were fetched before.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from safesynthdp.evaluation.encoders import AUTO, TFIDF, choose_encoder
from safesynthdp.evaluation.estimates import SYNTHETIC
from safesynthdp.evaluation.fidelity import Settings, measure_fidelity
from safesynthdp.evaluation.fidelity_diversity import measure_diversity
from safesynthdp.evaluation.label_model import say_labels
from safesynthdp.evaluation.memorisation import measure_memorisation
from safesynthdp.evaluation.reference_lm import choose_reference
from safesynthdp.evaluation.rows import Row
from safesynthdp.evaluation.selftest_corpora import DEFECTS, SIZES, Pairs, World, make_world
from safesynthdp.evaluation.validity import measure_validity
from safesynthdp.evaluation.verdict import find_faults
from safesynthdp.progress import progress

BUCKETS = {"quick": 100, "full": 100}
REFERENCE_TEXTS = 150
SHOWN = (
    ("c2st_auc", SYNTHETIC, "encoder"),
    ("c2st_auc", SYNTHETIC, "words"),
    ("mauve", SYNTHETIC, "encoder"),
    ("frechet", SYNTHETIC, "encoder"),
    ("coverage", SYNTHETIC, "encoder"),
    ("distinct_2", SYNTHETIC, None),
    ("bits_per_byte", SYNTHETIC, "mean"),
    ("label_tv", SYNTHETIC, None),
    ("label_consistency", SYNTHETIC, None),
    ("length_ks", SYNTHETIC, "words"),
    ("exact_match", "real", None),
)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What must happen to a defect."""

    finding: str | None
    """Its name in the verdict; None for no finding at all."""
    moves: tuple[tuple[str, str | None], ...] = ()
    """Metrics (and which kind) of which at least one must leave the real-real value behind."""


EXPECTED = {
    "fresh real text": Expected(finding=None),
    "label collapse 90/10": Expected(finding="label_collapse", moves=(("label_tv", None),)),
    "30% label noise": Expected(finding="label_noise", moves=(("label_consistency", None),)),
    "mode collapse": Expected(finding="mode_collapse", moves=(("duplicate_share", "exact"),)),
    "word shuffle": Expected(finding="word_order", moves=(("c2st_auc", "encoder"), ("c2st_auc", "tfidf"))),
    "verbatim copy": Expected(finding="verbatim_copy", moves=(("exact_match", None),)),
    "truncation to 6 words": Expected(finding="truncation", moves=(("length_ks", "words"),)),
    "other-domain text": Expected(finding="other_domain", moves=(("mauve", "encoder"),)),
}


def run(*, level: str, seed: int, reference_model: str | None = AUTO) -> dict[str, Any]:
    """Return the matrix as facts: passed, failed, rows.

    Args:
        level: ``quick`` or ``full``.
        seed: Chooses all randomness.
        reference_model: As ``choose_reference`` takes it; quick uses none.

    Raises:
        SafeSynthError: If the builtin text cannot be fetched (level full).
    """
    world, settings = make_world(level, seed=seed), _settings(level, reference_model)
    found = list[dict[str, Any]]()
    with progress("sanity matrix", total=len(DEFECTS), unit="defects") as advance:
        for number, (name, spoil) in enumerate(DEFECTS.items()):
            synthetic = spoil(world, random.Random(1000 * seed + number))
            found.append(judge(name, world, synthetic, settings))
            advance(1)
    failed = [row["defect"] for row in found if not row["passed"]]
    return {
        "passed": not failed, "failed": failed, "rows": found, "size": SIZES[level], "buckets": settings.buckets,
        "encoder": settings.encoder.name, "text": "vader" if level == "full" else "made up",
        "reference_lm": None if settings.reference is None else settings.reference.name,
    }  # fmt: skip


def judge(name: str, world: World, synthetic: Pairs, settings: Settings) -> dict[str, Any]:
    """Return one line of the matrix."""
    rows, accuracy = measure(world, synthetic, settings)
    findings = [finding.name for finding in find_faults(rows)]
    expected = EXPECTED[name]
    moved = [row for wanted in expected.moves if (row := _pick(rows, *wanted)) is not None and _has_moved(row)]
    is_named = not findings if expected.finding is None else expected.finding in findings
    meant = moved[0] if moved else next((r for w in expected.moves if (r := _pick(rows, *w)) is not None), None)
    return {
        "defect": name, "expected": expected.finding, "findings": findings, "named": is_named,
        "moved": bool(moved) or not expected.moves, "passed": is_named and (bool(moved) or not expected.moves),
        "meant": None if meant is None else _facts(meant), "accuracy": accuracy,
        "values": {_heading(*wanted): _shown(rows, *wanted) for wanted in SHOWN},
    }  # fmt: skip


def measure(world: World, synthetic: Pairs, settings: Settings) -> tuple[list[Row], float | None]:
    """Return every row that the verdict reads, and the accuracy on H of a classifier of the synthetic text."""
    corpora = world.corpora(synthetic)
    fidelity = measure_fidelity(corpora, settings, progress=lambda what: None)
    rows = fidelity.rows + measure_diversity(
        corpora, fidelity.drawn, fidelity.pairs, settings.encoder, max_records=settings.max_records
    )
    rows += measure_validity(corpora, seeds=settings.seeds, with_labels=True)
    rows += measure_memorisation(corpora, progress=lambda what: None).rows
    said = say_labels(corpora.synthetic.texts, corpora.synthetic.labels, about=corpora.holdout.texts)
    if said is None:
        return rows, None
    return rows, sum(a == b for a, b in zip(said, corpora.holdout.labels, strict=True)) / len(said)


def show(facts: dict[str, Any], screen: Any) -> None:
    """Print the matrix on a rich console."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("text", "meant to see it", "value", "real", "findings", "result"):
        table.add_column(heading, no_wrap=heading != "findings")
    for row in facts["rows"]:
        meant = row["meant"]
        table.add_row(
            row["defect"],
            "-" if meant is None else f"{meant['name']} {meant['model'] or ''}".strip(),
            "-" if meant is None else f"{meant['value']:.3f} [{meant['low']:.3f}, {meant['high']:.3f}]",
            "-" if meant is None else f"{meant['ceiling']:.3f}",
            ", ".join(row["findings"]) or "none",
            "ok" if row["passed"] else "FAILED",
        )
    screen.print(table)
    screen.print(
        f"evaluation: {facts['text']} text, {facts['size']} records a side, encoder {facts['encoder']}, "
        f"reference model {facts['reference_lm'] or 'none'}",
        soft_wrap=True,
    )


def markdown(facts: dict[str, Any]) -> list[str]:
    """Return the matrix as lines of a Markdown table, for the docs."""
    headings = ["text given as synthetic", "TSTR", *facts["rows"][0]["values"], "verdict"]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for row in facts["rows"]:
        values = ["-" if value is None else f"{value:.3f}" for value in (row["accuracy"], *row["values"].values())]
        lines.append("| " + " | ".join([row["defect"], *values, ", ".join(row["findings"]) or "none"]) + " |")
    return lines


def _settings(level: str, reference_model: str | None = None) -> Settings:
    if level == "quick":
        encoder, reference, why = choose_encoder(TFIDF), None, "level quick uses none"
        return Settings(
            encoder=encoder, reference=reference, no_reference=why, buckets=BUCKETS[level], seeds=1,
        )  # fmt: skip
    model, reason = choose_reference(reference_model)
    return Settings(
        encoder=choose_encoder(AUTO), reference=model, no_reference=reason, buckets=BUCKETS[level], seeds=1,
        reference_texts=REFERENCE_TEXTS,
    )  # fmt: skip


def _pick(rows: Sequence[Row], name: str, kind: str | None, *, train_on: str | None = None) -> Row | None:
    """Return a row about all labels; ``encoder`` is whichever encoder, ``mean`` the mean of the reference model."""
    places = (train_on,) if train_on else (SYNTHETIC, "difference")
    for row in rows:
        if row.name == name and row.label is None and row.train_on in places and _is_kind(row, kind):
            return row
    return None


def _is_kind(row: Row, kind: str | None) -> bool:
    if kind == "encoder":
        return row.model not in ("tfidf", "words")
    if kind == "mean":
        return (row.model or "").endswith("(mean)")
    return row.model == kind


def _has_moved(row: Row) -> bool:
    """Whether the real-real value lies outside the interval."""
    numbers = (row.value, row.low, row.high, row.ceiling)
    if any(number is None for number in numbers):
        return False
    return not (row.low or 0.0) <= (row.ceiling or 0.0) <= (row.high or 0.0)


def _facts(row: Row) -> dict[str, Any]:
    return {key: getattr(row, key) for key in ("name", "model", "value", "low", "high", "ceiling")}


def _shown(rows: Sequence[Row], name: str, train_on: str, kind: str | None) -> float | None:
    row = _pick(rows, name, kind, train_on=train_on)
    return None if row is None else row.value


def _heading(name: str, train_on: str, kind: str | None) -> str:
    return f"{name} ({kind})" if kind else name
