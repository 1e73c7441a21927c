"""``safesynthdp report``: one page for a whole run.

Here: the flags, and what is written where. Elsewhere: everything on the page (page.py) and off it (publish.py).

A report is derived: the same command on the same ``output_dir`` draws it again from what the run directories hold now,
each file replaced whole. Other runs or another edition want another ``output_dir``, so that a public page never
overwrites an internal one. To publish, take report.html and report.json; the rest of the directory names local paths.
"""

import json as json_format
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safesynthdp.config import parse
from safesynthdp.errors import ConfigError, SafeSynthError
from safesynthdp.privacy.storage import make_private_directory, write_atomically
from safesynthdp.reporting.audits import is_refuted, refutation_text
from safesynthdp.reporting.collect import collect
from safesynthdp.reporting.facts import Group
from safesynthdp.reporting.guarantee import Guarantee, read_guarantee
from safesynthdp.reporting.publish import publishable
from safesynthdp.runs import RunDirectory

if TYPE_CHECKING:
    from safesynthdp.reporting.figures import Drawing

PAGE, TWIN, FIGURES, CARDS = "report.html", "report.json", "figures", "cards"
_MAX_PER_LABEL = 20


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Draw one page (report.html, report.json) from finetune, sample, evaluate and attack directories."""

    runs: list[str]
    """Run directories, or folders that hold some."""
    output_dir: str
    """Where the report goes; the same command draws it again."""
    public: bool = False
    """Leave out every number computed from private records without an accounted mechanism."""
    json: bool = False
    """Print report.json instead of the page's path."""
    nearest_records: bool = False
    """Show, beside each synthetic text that shares most with the training records, the one nearest to it: private text,
    which the page then holds. Never on a public page."""
    samples_per_label: int = 3
    """Synthetic texts shown of each label."""

    def __post_init__(self) -> None:
        """Refuse an empty name and an unreasonable number of texts."""
        if not self.output_dir:
            raise ConfigError("output_dir is empty; give a directory")
        if self.public and self.nearest_records:
            raise ConfigError("nearest_records=true prints training records; leave it out of a public report")
        if not 1 <= self.samples_per_label <= _MAX_PER_LABEL:
            raise ConfigError(
                f"samples_per_label={self.samples_per_label}: give a whole number from 1 to {_MAX_PER_LABEL}"
            )


def main(argv: Sequence[str]) -> None:
    """Write the report; fail after writing it if a ledger or an attack contradicts a claim."""
    config = parse(ReportConfig, argv, prog="safesynthdp report", positional="runs")
    groups = collect(
        config.runs,
        texts_per_label=config.samples_per_label,
        with_lengths=not config.public,
        with_copied=config.nearest_records,
    )
    with _open(config, groups) as run:
        parts = [(group, read_guarantee(group)) for group in groups]
        failures = _failures(parts)
        public = _edition(parts)
        shown, dropped = public if config.public else (parts, [])
        text = _write(run, shown, is_public=config.public, dropped=dropped)
        _write_cards(run, public[0])
        run.finish()
    run.say(text if config.json else str(run.path / PAGE))
    if failures:
        more = "" if len(failures) == 1 else f" (and {len(failures) - 1} more, see the page)"
        raise SafeSynthError(f"{failures[0]}{more}; do not rely on this epsilon")


def _open(config: ReportConfig, groups: Sequence[Group]) -> RunDirectory:
    """Open the report's directory and write down, each time, which runs it is drawn from."""
    parents = [RunDirectory.open(stage.path) for group in groups for stage in group.stages]
    settings: dict[str, object] = {
        "runs": sorted(str(Path(run).resolve()) for run in config.runs),
        "output_dir": str(Path(config.output_dir).resolve()),
        "public": config.public,
        "samples_per_label": config.samples_per_label,
    }
    if config.nearest_records:
        settings["nearest_records"] = True
    run = RunDirectory.create(config.output_dir, kind="report", config=settings, parents=parents)
    named = [{"kind": p.manifest["kind"], "run_id": p.manifest["run_id"], "path": str(p.path)} for p in parents]
    run.update(status="interrupted", parents=named)
    return run


def _edition(parts: Sequence[tuple[Group, Guarantee]]) -> tuple[list[tuple[Group, Guarantee]], list[str]]:
    """Return what a public edition may show, and what it leaves out."""
    shown, dropped = list[tuple[Group, Guarantee]](), list[str]()
    baselines = [(s.stage.run_id, g) for group, g in parts for s in group.samples if s.is_untuned]
    untuned = frozenset(run_id for run_id, guarantee in baselines if guarantee.covers(run_id))
    for group, guarantee in parts:
        bare, ledgers, left = publishable(group, guarantee, untuned=untuned)
        shown.append((bare, ledgers))
        dropped += left
    return shown, dropped


def _write(
    run: RunDirectory, parts: Sequence[tuple[Group, Guarantee]], *, is_public: bool, dropped: Sequence[str]
) -> str:
    """Write both files and return the text of the twin; an internal report is for its owner alone."""
    from safesynthdp.privacy.storage import write_text
    from safesynthdp.reporting.html import render
    from safesynthdp.reporting.page import build_page
    from safesynthdp.reporting.twin import twin

    text = json_format.dumps(twin(parts, is_public=is_public, dropped=dropped), indent=2, allow_nan=False)
    write_text(run.path / TWIN, text + "\n", private=not is_public)
    page = build_page(parts, is_public=is_public, dropped=dropped)
    _write_figures(run, page.drawings, is_private=not is_public)
    write_text(run.path / PAGE, render(page), private=not is_public)
    return text


def _write_cards(run: RunDirectory, parts: Sequence[tuple[Group, Guarantee]]) -> None:
    """Write a card for each set of weights and each sample; a card is public, so it holds what a public page may."""
    from safesynthdp.privacy.storage import write_text
    from safesynthdp.reporting.cards import dataset_card, model_card

    folder = run.path / CARDS
    folder.mkdir(exist_ok=True)
    for group, guarantee in parts:
        if group.finetune is not None:
            name = f"model-{group.finetune.stage.run_id[:8]}.md"
            write_text(folder / name, model_card(group, guarantee))
        for sample in group.samples:
            name = f"dataset-{sample.stage.run_id[:8]}.md"
            write_text(folder / name, dataset_card(group, guarantee, sample))


def _write_figures(run: RunDirectory, drawings: "Sequence[Drawing]", *, is_private: bool) -> None:
    """Write each figure as PNG; figures that an earlier drawing had and this one has not are taken away."""
    folder = run.path / FIGURES
    if is_private:
        make_private_directory(folder)
    folder.mkdir(exist_ok=True)
    for drawing in drawings:
        write_atomically(folder / f"{drawing.identity}.png", _writer(drawing.png), private=is_private)
    for path in folder.glob("*.png"):
        if path.stem not in {drawing.identity for drawing in drawings}:
            path.unlink()


def _writer(content: bytes) -> Callable[[Path], None]:
    return lambda path: _write_bytes(path, content)


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _failures(parts: Sequence[tuple[Group, Guarantee]]) -> list[str]:
    """Return what contradicts a claim: a ledger that does not stand recomputation, an attack that refutes it."""
    refuted = [
        f"{attack.stage.path.name}: {refutation_text(row, guarantee)}"
        for group, guarantee in parts
        for attack in group.attacks
        for row in attack.rows or ()
        if is_refuted(row, guarantee)
    ]
    return [problem for _, guarantee in parts for problem in guarantee.problems] + refuted
