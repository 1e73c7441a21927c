"""From collected facts to the sections of the page, in the order a privacy reader asks for them.

Here: the order, the overview of several runs, and the sections about ledger, settings and versions. Elsewhere: what was
measured (sections.py), the verdict box (verdict.py), the privacy statement (statement.py), the looks (templates/).
"""

from collections.abc import Sequence
from pathlib import Path

from safesynthdp.reporting.facts import Finetune, Group, Stage, is_from_scratch, predicted, uses_lora
from safesynthdp.reporting.frontier import (
    Parts,
    frontier_drawing,
    frontier_notes,
    missing_text,
    runs_table,
    together_text,
)
from safesynthdp.reporting.guarantee import Guarantee
from safesynthdp.reporting.layout import Article, Fact, Page, Section
from safesynthdp.reporting.ledger_tables import access_table, release_table
from safesynthdp.reporting.sections import attacks, fidelity, frontier, memorisation, progress, samples, utility
from safesynthdp.reporting.statement import statement
from safesynthdp.reporting.verdict import verdict
from safesynthdp.reporting.wording import NOT_STATED, value_text

MANY_RUNS = 4
STAGE_FOLDERS = ("run", "synthetic")
UNNAMED = "A model that is not named here"
SHOWN_STATUS = {"created": "created, not begun", "interrupted": "not finished", "finished": "finished"}


def build_page(parts: Parts, *, is_public: bool, dropped: Sequence[str]) -> Page:
    """Return the page of every group, with what its ledgers say; several runs get an overview in front."""
    articles = [
        _article(group, guarantee, slug=f"run{number}", is_public=is_public, num_runs=len(parts))
        for number, (group, guarantee) in enumerate(parts, start=1)
    ]
    if len(parts) > 1:
        names = [_title(group, is_public=is_public) for group, _ in parts]
        articles.insert(0, _overview(parts, names, is_public=is_public))
    title = f"SafeSynthDP report: {articles[0].title}" if len(articles) == 1 else "SafeSynthDP report"
    return Page(title=title, is_public=is_public, articles=tuple(articles), dropped=tuple(dict.fromkeys(dropped)))


def _overview(parts: Parts, names: Sequence[str], *, is_public: bool) -> Article:
    """What several runs have in common: one table, one figure, and what they cost together."""
    together = together_text(parts)
    drawing = frontier_drawing(parts, identity="overview-frontier")
    listed = Section(
        slug="runs",
        title="Runs",
        tables=(runs_table(parts, names, is_public=is_public),),
        notes=(together,) if together else (),
    )
    picture = Section(
        slug="frontier",
        title="Utility against epsilon",
        drawings=() if drawing is None else (drawing,),
        notes=frontier_notes(parts, is_public=is_public),
        missing="" if drawing else missing_text(parts, is_public=is_public),
    )
    links = tuple((f"run{number}", f"{number}. {name}") for number, name in enumerate(names, start=1))
    subtitle = "Each has its own verdict, ledger and privacy statement below."
    return Article(
        slug="overview",
        title=f"{len(parts)} runs side by side",
        subtitle=subtitle,
        verdict=None,
        sections=(listed, picture),
        links=links,
    )


def _article(group: Group, guarantee: Guarantee, *, slug: str, is_public: bool, num_runs: int) -> Article:
    finetune, is_alone, is_brief = group.finetune, num_runs == 1, num_runs > MANY_RUNS
    sections = [
        *([frontier(group, guarantee, slug, is_public=is_public)] if is_alone else []),
        utility(group, slug, is_public=is_public, is_brief=is_brief),
        fidelity(group, slug, is_public=is_public, is_brief=is_brief),
        memorisation(group, is_public=is_public),
        attacks(group, guarantee, slug, is_public=is_public),
        samples(group, is_public=is_public, is_brief=is_brief),
        progress(finetune, slug, is_public=is_public),
        _ledger(guarantee),
        _settings(group),
        _versions(group, is_public=is_public),
        Section(slug="statement", title="Privacy statement", facts=statement(group, guarantee)),
    ]
    number = "" if is_alone else f"{slug.removeprefix('run')}. "
    return Article(
        slug=slug,
        title=f"{number}{_title(group, is_public=is_public)}",
        subtitle=_subtitle(finetune, is_predicted=predicted(group)),
        verdict=verdict(group, guarantee, is_public=is_public),
        sections=tuple(sections),
    )


def _title(group: Group, *, is_public: bool) -> str:
    if group.finetune is None and not predicted(group):
        return "Stages that belong to no finetune run"
    stage = group.samples[0].stage if group.finetune is None else group.finetune.stage
    return f"Run {stage.run_id[:8]}" if is_public else _place(stage.path)


def _place(path: Path) -> str:
    """Return the name of a run's folder, with the folder above where the name alone says nothing.

    >>> _place(Path("grid/eps8-seed0/run")), _place(Path("pool/target/run")), _place(Path("runs/mine"))
    ('eps8-seed0', 'pool target', 'mine')
    """
    above = path.parent
    if path.name not in STAGE_FOLDERS or not above.name:
        return path.name
    return f"{above.parent.name} target" if above.name == "target" else above.name


def _subtitle(finetune: Finetune | None, *, is_predicted: bool) -> str:
    if is_predicted:
        return "Private prediction: text drawn straight from private records, no model trained."
    if finetune is None:
        return "Their finetune run is neither among the directories given nor where it was."
    stage = finetune.stage
    model = (stage.config.get("model") or {}).get("model_name_or_path")
    what = "A model trained from random weights" if is_from_scratch(stage.config) else f"{model or UNNAMED}, fine-tuned"
    mode = (stage.config.get("privacy") or {}).get("mode")
    how = "without privacy" if mode == "none" else "with DP-SGD"
    when = str(stage.manifest.get("finished") or stage.manifest.get("created") or "date not stated")
    return f"{what} {how}; {SHOWN_STATUS.get(stage.status, stage.status)}, {when[:10]}"


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
        if name == "lora" and not uses_lora(stage.config):
            lines.append((name, "not used"))
        elif isinstance(value, dict):
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
