"""From collected facts to the sections of the page, in the order a privacy reader asks for them.

Here: which section says what, and what stands in its place when a stage was not done. Elsewhere: the verdict box
(verdict.py), the tables (tables.py), the privacy statement (statement.py), the looks (templates/).
"""

from collections.abc import Sequence

from safesynthdp.reporting.facts import Evaluation, Finetune, Group, Stage, Text
from safesynthdp.reporting.figures import draw_progress
from safesynthdp.reporting.guarantee import Guarantee
from safesynthdp.reporting.layout import Article, Fact, Page, Section
from safesynthdp.reporting.ledger_tables import access_table, release_table
from safesynthdp.reporting.statement import statement
from safesynthdp.reporting.tables import attack_table, memorisation_table, other_table, utility_drawing, utility_tables
from safesynthdp.reporting.verdict import verdict
from safesynthdp.reporting.wording import NOT_STATED, count_text, value_text

LEFT_OUT = "Left out of the public edition: computed from private records without an accounted mechanism."
NO_EVALUATION = "Not done: no evaluation of this run was given. safesynthdp evaluate makes one."
NO_ATTACK = "Not done: no attack on this run was given. safesynthdp attack makes one. A missing attack is no evidence."
NO_SAMPLE = "Not done: no text sampled from this run was given. safesynthdp sample makes some."
SHOWN_STATUS = {"created": "created, not begun", "interrupted": "not finished", "finished": "finished"}


def build_page(parts: Sequence[tuple[Group, Guarantee]], *, is_public: bool, dropped: Sequence[str]) -> Page:
    """Return the page of every group, with what its ledgers say."""
    articles = tuple(
        _article(group, guarantee, slug=f"run{number}", is_public=is_public)
        for number, (group, guarantee) in enumerate(parts, start=1)
    )
    title = f"SafeSynthDP report: {articles[0].title}" if len(articles) == 1 else "SafeSynthDP report"
    return Page(title=title, is_public=is_public, articles=articles, dropped=tuple(dict.fromkeys(dropped)))


def _article(group: Group, guarantee: Guarantee, *, slug: str, is_public: bool) -> Article:
    finetune = group.finetune
    sections = [
        _utility(group, slug, is_public=is_public),
        _other(group, is_public=is_public),
        _memorisation(group, is_public=is_public),
        _attacks(group, is_public=is_public),
        _samples(group, is_public=is_public),
        _progress(finetune, slug, is_public=is_public),
        _ledger(guarantee),
        _settings(group),
        _versions(group, is_public=is_public),
        Section(slug="statement", title="Privacy statement", facts=statement(group, guarantee)),
    ]
    return Article(
        slug=slug,
        title=_title(group, is_public=is_public),
        subtitle=_subtitle(finetune),
        verdict=verdict(group, guarantee, is_public=is_public),
        sections=tuple(sections),
    )


def _title(group: Group, *, is_public: bool) -> str:
    if group.finetune is None:
        return "Stages that belong to no finetune run"
    stage = group.finetune.stage
    return f"Run {stage.run_id[:8]}" if is_public else stage.path.name


def _subtitle(finetune: Finetune | None) -> str:
    if finetune is None:
        return "Their finetune run is neither among the directories given nor where it was."
    stage = finetune.stage
    model = (stage.config.get("model") or {}).get("model_name_or_path") or "a model trained from random weights"
    mode = (stage.config.get("privacy") or {}).get("mode")
    how = "fine-tuned without privacy" if mode == "none" else "fine-tuned with DP-SGD"
    when = str(stage.manifest.get("finished") or stage.manifest.get("created") or "date not stated")
    return f"{model}, {how}; {SHOWN_STATUS.get(stage.status, stage.status)}, {when[:10]}"


def _measured(group: Group) -> list[Evaluation]:
    return [evaluation for evaluation in group.evaluations if evaluation.metrics is not None]


def _why_empty(group: Group, *, is_public: bool) -> str:
    if not group.evaluations:
        return NO_EVALUATION
    if not _measured(group):
        return "Not done: the evaluation did not finish. The same command goes on where it stopped."
    return LEFT_OUT if is_public else "Not done: the evaluation holds no such row; its warnings may say why."


def _utility(group: Group, slug: str, *, is_public: bool) -> Section:
    found = _measured(group)
    drawings = [drawing for e in found[:1] if (drawing := utility_drawing(e, identity=f"{slug}-utility")) is not None]
    tables = tuple(part for evaluation in found for part in utility_tables(evaluation))
    warnings = tuple(f"Warning of the evaluation: {line}" for e in group.evaluations for line in e.warnings)
    return Section(
        slug="utility",
        title="Utility",
        lead=("Classifiers trained on each text, tested on real records that nothing else has seen.",)
        if tables
        else (),
        drawing=drawings[0] if drawings else None,
        tables=tables,
        notes=warnings,
        missing="" if tables else _why_empty(group, is_public=is_public),
    )


def _other(group: Group, *, is_public: bool) -> Section:
    tables = tuple(part for e in _measured(group) if (part := other_table(e)) is not None)
    missing = "" if tables else _why_empty(group, is_public=is_public)
    return Section(slug="fidelity", title="Labels and validity", tables=tables, missing=missing)


def _memorisation(group: Group, *, is_public: bool) -> Section:
    tables = tuple(part for e in _measured(group) if (part := memorisation_table(e)) is not None)
    lead = (
        "Real texts share phrases with one another, so a share says nothing alone: the control compares the same "
        "synthetic texts with as many records that were never trained on. An interval of the difference above 0 means "
        "copied text.",
    )
    missing = "" if tables else _why_empty(group, is_public=is_public)
    return Section(
        slug="memorisation", title="Memorisation", lead=lead if tables else (), tables=tables, missing=missing
    )


def _attacks(group: Group, *, is_public: bool) -> Section:
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
    notes = tuple(f"{', '.join(dict.fromkeys(attacks))}: {note}" for note, attacks in by_note.items())
    return Section(slug="attacks", title="Attacks", lead=lead, tables=(attack_table(rows),), notes=notes)


def _samples(group: Group, *, is_public: bool) -> Section:
    tuned = [sample for sample in group.samples if not sample.is_untuned]
    texts = [text for sample in tuned[:1] for text in sample.texts]
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


def _counts(stage: Stage) -> tuple[Fact, ...]:
    counts = stage.manifest.get("counts") or {}
    return (Fact(name="of these", value=value_text(dict(counts))),) if counts else ()


def _progress(finetune: Finetune | None, slug: str, *, is_public: bool) -> Section:
    title = "Training progress"
    if finetune is None or not finetune.progress:
        without = "Not done: no finetune run was given." if finetune is None else "Not done: no step was logged."
        return Section(
            slug="progress", title=title, missing=LEFT_OUT if is_public and finetune is not None else without
        )
    caption = "Computed on private records, outside the guarantee: for the owner of the data only."
    drawing = draw_progress(finetune.progress, identity=f"{slug}-progress", caption=caption)
    return Section(slug="progress", title=title, drawing=drawing)


def _ledger(guarantee: Guarantee) -> Section:
    if not guarantee.claims and not guarantee.accesses:
        return Section(slug="ledger", title="Ledger", missing="Not done: no ledger was given; no formal guarantee.")
    lead = (
        "Every access to the private records, and what each artifact made from them costs whoever sees it. Recomputed "
        "from the entries when this page was made; epsilons are rounded up.",
    )
    tables = (release_table(guarantee.claims, with_check=True), access_table(guarantee.accesses))
    return Section(slug="ledger", title="Ledger", lead=lead, tables=tables)


def _settings(group: Group) -> Section:
    facts = [
        Fact(name=f"{stage.kind}: {name}" if stage.kind != "finetune" else name, value=value)
        for stage in group.stages
        for name, value in _flat(stage)
    ]
    return Section(
        slug="settings", title="Settings", facts=tuple(facts), missing="" if facts else "No settings were given."
    )


def _flat(stage: Stage) -> list[tuple[str, str]]:
    """Return each section of a config on one line; a seed that breaks the guarantee is never printed."""
    lines = list[tuple[str, str]]()
    loose: dict[str, object] = {}
    for name, value in stage.config.items():
        if isinstance(value, dict):
            shown = {key: _setting(key, inner) for key, inner in value.items() if inner is not None}
            lines.append((name, value_text(shown)))
        elif value is not None:
            loose[name] = value
    return ([("settings", value_text(loose))] if loose else []) + lines


def _setting(key: str, value: object) -> object:
    return "set, see config.yaml" if key == "unsafe_seed" else value


def _versions(group: Group, *, is_public: bool) -> Section:
    facts = [fact for stage in group.stages for fact in _stage_facts(stage, is_public=is_public)]
    return Section(slug="versions", title="Versions, data and commands", facts=tuple(facts))


def _stage_facts(stage: Stage, *, is_public: bool) -> list[Fact]:
    manifest, name = stage.manifest, stage.kind
    facts = [Fact(name=f"{name} {stage.run_id[:8]}", value=SHOWN_STATUS.get(stage.status, stage.status))]
    if stage.kind == "finetune":
        facts.append(Fact(name=f"{name}: hardware", value=value_text(manifest.get("hardware"))))
        facts.append(Fact(name=f"{name}: data", value=value_text(manifest.get("data"))))
    facts.append(Fact(name=f"{name}: versions", value=value_text(manifest.get("versions"))))
    facts.append(Fact(name=f"{name}: commit", value=str(manifest.get("commit") or NOT_STATED)))
    if not is_public:
        facts.append(Fact(name=f"{name}: command", value=_command(manifest.get("command"))))
        facts.append(Fact(name=f"{name}: directory", value=str(stage.path)))
    return facts


def _command(words: object) -> str:
    """Return the command line; the value of an unsafe seed is never printed."""
    import shlex

    if not isinstance(words, list):
        return NOT_STATED
    shown = list[str]()
    for word in map(str, words):
        hidden = bool(shown) and shown[-1].endswith("unsafe_seed")
        name, is_joined, _ = word.partition("unsafe_seed=")
        shown.append("***" if hidden else f"{name}unsafe_seed=***" if is_joined else word)
    return shlex.join(shown)
