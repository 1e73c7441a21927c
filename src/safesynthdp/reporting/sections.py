"""The sections of one run that show what was measured, and what stands in their place when it was not.

Here: frontier, utility, fidelity, memorisation, attacks, samples, progress. Elsewhere: their order, and the sections
about the ledger, settings and versions (page.py), the tables (tables.py), the verdict box (verdict.py).
"""

from dataclasses import replace

from safesynthdp.reporting.attack_figures import MAX_CURVES, draw_roc
from safesynthdp.reporting.attack_table import attack_table
from safesynthdp.reporting.audits import ARTIFACT_OF, is_baseline
from safesynthdp.reporting.copied import beside, copied_note
from safesynthdp.reporting.facts import Curve, Evaluation, Finetune, Group, Stage, Text
from safesynthdp.reporting.figures import Drawing
from safesynthdp.reporting.frontier import frontier_drawing, frontier_notes, missing_text
from safesynthdp.reporting.guarantee import Guarantee
from safesynthdp.reporting.layout import Fact, Section
from safesynthdp.reporting.likeness_tables import fidelity_table, memorisation_table
from safesynthdp.reporting.tables import recall_drawing, utility_drawing, utility_tables
from safesynthdp.reporting.utility_figures import draw_lengths, draw_progress
from safesynthdp.reporting.wording import count_text, value_text

BRIEF_CHARACTERS = 280
LEFT_OUT = "Left out of the public edition: computed from private records without an accounted mechanism."
BY_LABEL = "Numbers of single labels are in report.json, and on a page of this run alone."
NO_EVALUATION = "Not done: no evaluation of this run was given. safesynthdp evaluate makes one."
NO_ATTACK = "Not done: no attack on this run was given. safesynthdp attack makes one. A missing attack is no evidence."
NO_SAMPLE = "Not done: no text sampled from this run was given. safesynthdp sample makes some."


def frontier(group: Group, guarantee: Guarantee, slug: str, *, is_public: bool) -> Section:
    """Utility, claimed and audited epsilon of one run in one picture."""
    parts = [(group, guarantee)]
    drawing = frontier_drawing(parts, identity=f"{slug}-frontier")
    return Section(
        slug="frontier",
        title="Utility against epsilon",
        drawings=_present(drawing),
        notes=frontier_notes(parts, is_public=is_public),
        missing="" if drawing else missing_text(parts, is_public=is_public),
    )


def utility(group: Group, slug: str, *, is_public: bool, is_brief: bool) -> Section:
    """How well classifiers trained on the text do on real records; ``is_brief`` on a page of many runs."""
    found = _measured(group)
    drawings = _present(*(utility_drawing(e, identity=f"{slug}-utility", is_small=is_brief) for e in found[:1]))
    if not is_brief:
        drawings += _present(*(recall_drawing(e, identity=f"{slug}-recall") for e in found[:1]))
    tables = tuple(part for evaluation in found for part in utility_tables(evaluation))
    lead = ("Classifiers trained on each text, tested on real records that nothing else has seen.",)
    return Section(
        slug="utility",
        title="Utility",
        lead=lead if tables else (),
        drawings=drawings,
        tables=tables,
        notes=tuple(f"Warning of the evaluation: {line}" for e in group.evaluations for line in e.warnings),
        missing="" if tables else _why_empty(group, is_public=is_public),
    )


def fidelity(group: Group, slug: str, *, is_public: bool, is_brief: bool = False) -> Section:
    """How like real text it reads, and how varied it is; ``is_brief``, on a page of many runs, for all labels alone."""
    tables = tuple(part for e in _measured(group) if (part := fidelity_table(e, by_label=not is_brief)) is not None)
    findings = tuple(f"Finding of the evaluation: {line}" for e in group.evaluations for line in e.findings)
    drawing = _lengths(group, slug)
    missing = "" if tables else _why_empty(group, is_public=is_public)
    return Section(
        slug="fidelity",
        title="Fidelity and diversity",
        drawings=_present(drawing),
        tables=tables,
        notes=(*findings, *([BY_LABEL] if is_brief and tables else [])),
        missing=missing,
    )


def memorisation(group: Group, *, is_public: bool) -> Section:
    """What synthetic texts share with training records, beside the control."""
    tables = tuple(part for e in _measured(group) if (part := memorisation_table(e)) is not None)
    lead = (
        "Real texts share phrases with one another, so a share says nothing alone: the control compares the same "
        "synthetic texts with as many records that were never trained on. An interval of the difference above 0 means "
        "copied text.",
    )
    missing = "" if tables else _why_empty(group, is_public=is_public)
    copied = [e.copied for e in _measured(group) if e.copied is not None]
    return Section(
        slug="memorisation",
        title="Memorisation",
        lead=lead if tables else (),
        tables=tables,
        texts=tuple(beside(case) for cases in copied for case in cases),
        notes=tuple(dict.fromkeys(map(copied_note, copied))),
        missing=missing,
    )


def attacks(group: Group, guarantee: Guarantee, slug: str, *, is_public: bool) -> Section:
    """What was attacked, how well that went, and what it proves."""
    rows = [row for attack in group.attacks for row in attack.rows or ()]
    if not rows:
        unfinished = "Not done: the attack did not finish. The same command goes on where it stopped."
        missing = NO_ATTACK if not group.attacks else LEFT_OUT if is_public else unfinished
        return Section(slug="attacks", title="Attacks", missing=missing)
    lead = (
        "Each attack ranks training records against records never trained on. If the texts alone tell them apart "
        "(first line), the benchmark is void. Attack scores are outside the guarantee.",
    )
    by_note = {
        note: [r.attack for r in rows if note in r.notes] for note in dict.fromkeys(n for r in rows for n in r.notes)
    }
    notes = [f"{', '.join(dict.fromkeys(attacks))}: {note}" for note, attacks in by_note.items()]
    if not any(is_baseline(row) for row in rows):
        notes.append("No control: nothing looked at the texts alone, so the benchmark itself may be void.")
    return Section(
        slug="attacks",
        title="Attacks",
        lead=lead,
        drawings=_rocs(group, guarantee, slug),
        tables=(attack_table(rows, guarantee),),
        notes=tuple(notes),
    )


def samples(group: Group, *, is_public: bool, is_brief: bool = False) -> Section:
    """The first synthetic texts of each label; ``is_brief``, on a page of many runs, the beginning of each."""
    tuned = [sample for sample in group.samples if not sample.is_untuned]
    texts = [_cut(text) if is_brief else text for sample in tuned[:1] for text in sample.texts]
    by_label: dict[str, list[Text]] = {}
    for text in texts:
        by_label.setdefault(text.label, []).append(text)
    if not tuned:
        return Section(slug="samples", title="Samples", missing=NO_SAMPLE)
    if not texts:
        unfinished = "Not done: the sample holds no text yet. The same command goes on where it stopped."
        without = "Left out of the public edition: no formal guarantee covers this text."
        return Section(slug="samples", title="Samples", missing=without if is_public else unfinished)
    lead = (
        f"The first texts of each label, as generated, out of {count_text(tuned[0].num_texts)}. Nothing was picked or "
        "mended; control characters are written out.",
    )
    shown = tuple((label, tuple(found)) for label, found in by_label.items())
    return Section(slug="samples", title="Samples", lead=lead, texts=shown, facts=_counts(tuned[0].stage))


def progress(finetune: Finetune | None, slug: str, *, is_public: bool) -> Section:
    """Loss and clipping by step: private."""
    title = "Training progress"
    if finetune is None or not finetune.progress:
        without = "Not done: no finetune run was given." if finetune is None else "Not done: no step was logged."
        return Section(
            slug="progress", title=title, missing=LEFT_OUT if is_public and finetune is not None else without
        )
    caption = "Computed on private records, outside the guarantee: for the owner of the data only."
    drawing = draw_progress(finetune.progress, identity=f"{slug}-progress", caption=caption)
    return Section(slug="progress", title=title, drawings=(drawing,))


def _measured(group: Group) -> list[Evaluation]:
    return [evaluation for evaluation in group.evaluations if evaluation.metrics is not None]


def _why_empty(group: Group, *, is_public: bool) -> str:
    if not group.evaluations:
        return NO_EVALUATION
    if not _measured(group):
        return "Not done: the evaluation did not finish. The same command goes on where it stopped."
    return LEFT_OUT if is_public else "Not done: the evaluation holds no such row; its warnings may say why."


def _lengths(group: Group, slug: str) -> Drawing | None:
    """Synthetic beside real lengths; the public edition knows no real ones."""
    tuned = next((sample.lengths for sample in group.samples if not sample.is_untuned and sample.lengths), ())
    untuned = next((sample.lengths for sample in group.samples if sample.is_untuned and sample.lengths), ())
    real = group.finetune.lengths if group.finetune is not None else ()
    if not tuned:
        return None
    series = {"synthetic": tuned, "real (training)": real, "untuned model": untuned}
    missing = "" if real else " Real lengths are not shown: private here, or the records could not be read again."
    return draw_lengths(series, identity=f"{slug}-lengths", caption=f"How long the texts are, in words.{missing}")


def _rocs(group: Group, guarantee: Guarantee, slug: str) -> tuple[Drawing, ...]:
    """One figure a channel: the ceiling is the claim about the release of that channel."""
    curves = [found for attack in group.attacks for found in attack.curves if found.fpr]
    channels = [name for name in ARTIFACT_OF if any(found.channel == name for found in curves)]
    return tuple(_roc(curves, channel, guarantee, slug) for channel in channels)


def _roc(curves: list[Curve], channel: str, guarantee: Guarantee, slug: str) -> Drawing:
    shown = [found for found in curves if found.channel in (channel, "none")]
    claims = [c for c in guarantee.tuned if c.artifact == ARTIFACT_OF[channel] and not guarantee.problems]
    claim = None
    if claims and all(c.epsilon is not None and c.delta is not None for c in claims):
        claim = max((c.epsilon or 0.0, c.delta or 0.0) for c in claims)
    over = (
        "No ceiling: nothing is claimed about this release."
        if claim is None
        else "But for chance, no attack can reach the grey."
    )
    left_out = len(shown) - MAX_CURVES
    more = f" {left_out} more attacks are in the table only." if left_out > 0 else ""
    caption = f"Members found against false alarms, on logarithmic axes. {over}{more}"
    return draw_roc(shown, claim=claim, channel=channel, identity=f"{slug}-roc-{channel}", caption=caption)


def _cut(text: Text) -> Text:
    hidden = max(0, len(text.text) - BRIEF_CHARACTERS)
    return replace(text, text=text.text[:BRIEF_CHARACTERS], num_hidden=text.num_hidden + hidden)


def _counts(stage: Stage) -> tuple[Fact, ...]:
    counts = stage.manifest.get("counts") or {}
    return (Fact(name="of these", value=value_text(dict(counts))),) if counts else ()


def _present(*drawings: Drawing | None) -> tuple[Drawing, ...]:
    return tuple(drawing for drawing in drawings if drawing is not None)
