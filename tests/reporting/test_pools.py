"""A shadow pool in the report: beside the claim of the run whose recipe it took, and on no public page."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from safesynthdp.attacks.audit_rows import NOT_NAMED
from safesynthdp.cli import run as run_main
from safesynthdp.reporting.audits import bounded, is_refuted, strongest, why_not_comparable
from safesynthdp.reporting.collect import collect
from safesynthdp.reporting.command import main
from safesynthdp.reporting.facts import Group
from safesynthdp.reporting.frontier import frontier_drawing, frontier_notes
from safesynthdp.reporting.guarantee import Guarantee, read_guarantee
from safesynthdp.reporting.sections import attacks
from safesynthdp.runs import RunDirectory

Edit = Callable[[Path, Callable[[Any], object]], None]
DELTA = 1e-6
CLAIM = 4.479
"""Found at the pool's own number of records, so not quite the 4.48 of the run."""


class Runs(Protocol):
    folder: Path
    finetune: Path
    sample: Path
    evaluation: Path
    attack: Path


def row(target_id: str, channel: str, attack: str, bound: float | None, **changes: Any) -> dict[str, Any]:
    has_bound = bound is not None
    return {
        "target_id": target_id, "channel": channel, "attack": attack, "num_members": 511, "num_nonmembers": 489,
        "auc": 0.5231, "auc_interval": [0.49, 0.55], "tpr_at_fpr": {"0.01": 0.0126}, "epsilon_lower_bound": bound,
        "epsilon_attainable": 3.46 if has_bound else None, "epsilon_claimed": CLAIM if has_bound else None,
        "group_size": 1, "method": "one-run, both", "alpha": 0.005, "delta": DELTA, "p_value": None,
        "curve_p_value": None, "verdict": "consistent" if target_id in ("target", "pooled") else None,
        "benchmark_valid": True, "estimates": {}, "num_targets": 1, "num_references": 8, "num_epochs": 1.0,
        "notes": ["records: natural"],
    } | changes  # fmt: skip


ROWS = (
    row("target", "none", "baseline", None, auc=0.4977),
    row("5", "none", "baseline", None, auc=0.6123),
    row("target", "model", "lira", 0.41),
    row("pooled", "model", "lira", 0.22),
    row("5", "model", "lira", 4.47),
    row("target", "text", "ngram3_rmia", 0.13),
    row("pooled", "text", "ngram3_rmia", 0.0),
)


def write_pool(folder: Path, recipe: Path | None, *rows: dict[str, Any]) -> Path:
    run = RunDirectory.create(folder, kind="shadow_pool", config={"num_models": 8, "sample": {"num_records": 333}})
    (folder / "audit.json").write_text(json.dumps({"version": 1, "alpha": 0.05, "rows": rows or ROWS}))
    ids = ["target"] * 40 + ["5"] * 40
    scores = np.concatenate([np.arange(40.0), np.arange(40.0)[::-1]])
    columns = {"target_id": ids, "channel": ["model"] * 80, "attack": ["lira"] * 80, "score": scores}
    member = [number >= 20 for number in range(40)] * 2
    pyarrow.parquet.write_table(pyarrow.table(columns | {"member": member}), folder / "scores.parquet")
    parent = [] if recipe is None else [RunDirectory.open(recipe)]
    run.finish(parents=[{"kind": "finetune", "run_id": p.manifest["run_id"], "path": str(p.path)} for p in parent])
    return folder


def draw(out: Path, *words: object) -> tuple[int, str, dict[str, Any]]:
    code = run_main(main, [*map(str, words), "--output_dir", str(out)])
    return code, (out / "report.html").read_text(encoding="utf-8"), json.loads((out / "report.json").read_text())


def figure_words(page: str) -> str:
    found = re.search(r'aria-label="(Utility against epsilon[^"]*)"', page)
    assert found is not None
    return found[1]


@dataclass(frozen=True)
class Page:
    code: int
    text: str
    twin: dict[str, Any]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, make_runs: Callable[[Path], Runs]) -> Page:
    """A run and its pool, no other attack; not to be changed by a test."""
    folder = tmp_path_factory.mktemp("drawn")
    runs = make_runs(folder / "runs")
    shutil.rmtree(runs.attack)
    write_pool(runs.folder / "pool", runs.finetune)
    return Page(*draw(folder / "out", runs.folder))


def group_with(runs: Runs, *rows: dict[str, Any]) -> tuple[Group, Guarantee]:
    """What a page would be made of."""
    shutil.rmtree(runs.attack)
    write_pool(runs.folder / "pool", runs.finetune, *rows)
    (group,) = collect([str(runs.folder)], texts_per_label=1)
    return group, read_guarantee(group)


def test_its_bound_in_each_channel_stands_beside_the_claim_of_the_run_whose_recipe_it_took(drawn: Page) -> None:
    assert drawn.code == 0
    assert len(drawn.twin["runs"]) == 1, "a pool is no run of its own"
    words = figure_words(drawn.text)
    assert "(model): accuracy 0.743, claimed epsilon 4.4800, audited at least 0.410 of at most 3.460" in words
    assert "(text): accuracy 0.743, claimed epsilon 4.4800, audited at least 0.130 of at most 3.460" in words
    assert "a shadow pool of 8 models and a target of its own" in drawn.text
    assert "corpora of 333 texts each" in drawn.text


def test_bounds_of_single_rotating_targets_are_no_evidence_and_are_not_shown(runs: Runs) -> None:
    """Nothing pays for looking at all of them: of many true claims one would be refuted."""
    group, guarantee = group_with(runs, *ROWS, row("5", "model", "lira", 9.9))
    rows = [one for attack in group.attacks for one in attack.rows or ()]
    assert {one.target_id for one in rows} == {"target", "pooled"}
    assert not any(is_refuted(one, guarantee) for one in rows)


def test_the_highest_of_many_bounds_is_only_as_sure_as_all_tests_together(drawn: Page) -> None:
    assert "at least 0.410 (95% sure)" in drawn.text


def test_attacks_that_were_not_named_in_advance_prove_no_bound(runs: Runs) -> None:
    beside = row("target", "model", "rmia", 3.1, verdict=None, notes=["records: natural", NOT_NAMED])
    group, guarantee = group_with(runs, *ROWS, beside)
    best = strongest(bounded(group), guarantee)
    assert best is not None
    assert best.epsilon_lower_bound == 0.41
    found = next(one for attack in group.attacks for one in attack.rows or () if one.attack == "rmia")
    assert (found.epsilon_lower_bound, found.auc) == (None, 0.5231)


def test_a_refuted_recipe_fails_the_report(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pool(runs.folder / "pool", runs.finetune, row("target", "model", "lira", 5.2, verdict="refuted"))
    code, page, _ = draw(tmp_path / "out", runs.folder)
    assert code == 1
    assert "REFUTED" in figure_words(page)
    assert "lira (pool, its target, natural) refutes the claim (epsilon is at least 5.200, claimed 4.4790)" in page
    assert "do not rely on this epsilon" in capsys.readouterr().err


@pytest.mark.parametrize("claimed", [7.9, None])
def test_a_pool_of_another_claim_is_neither_drawn_nor_held_against_this_one(claimed: float | None, runs: Runs) -> None:
    group, guarantee = group_with(runs, row("target", "model", "lira", 4.6, epsilon_claimed=claimed, verdict=None))
    (found,) = bounded(group)
    assert "the models of the pool claim" in str(why_not_comparable(found, guarantee))
    assert not is_refuted(found, guarantee)
    (note,) = frontier_notes([(group, guarantee)])
    assert note.startswith("a shadow pool, channel model, is not in the figure: the models of the pool claim")
    assert frontier_drawing([(group, guarantee)], identity="one") is not None


def test_nothing_of_a_pool_is_on_a_public_page_not_even_of_its_canaries(
    runs: Runs, tmp_path: Path, drawn: Page
) -> None:
    """Its references are trained on private records, and no ledger pays for what their scores say."""
    rows = [{**one, "role": "canary"} for one in ROWS]
    write_pool(runs.folder / "pool", runs.finetune, *rows)
    _, page, twin = draw(tmp_path / "out", runs.folder, "--public")
    text = page + json.dumps(twin)
    telling = ("0.523", "0.410", "lira", "333 texts", "8 models and a target")
    assert not [words for words in telling if words in text]
    assert not [words for words in telling if words not in drawn.text]
    assert "5 rows of a shadow pool" in page


def test_a_pool_of_a_recipe_file_stands_beside_its_own_target(runs: Runs, tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "pool", None)
    (pool / "target").mkdir()
    shutil.copytree(runs.finetune, pool / "target/run")
    shutil.copytree(runs.sample, pool / "target/sample")
    (group,) = collect([str(pool)], texts_per_label=1)
    guarantee = read_guarantee(group)
    assert guarantee.epsilon == 4.48
    assert [why_not_comparable(one, guarantee) for one in bounded(group)] == [None] * 4


def test_a_pool_that_is_not_scored_yet_is_not_done(runs: Runs) -> None:
    write_pool(runs.folder / "pool", runs.finetune)
    shutil.rmtree(runs.attack)
    (runs.folder / "pool/audit.json").unlink()
    (group,) = collect([str(runs.folder)], texts_per_label=1)
    section = attacks(group, read_guarantee(group), "run1", is_public=False)
    assert "the attack did not finish" in section.missing


def test_the_roc_is_that_of_the_target_alone(runs: Runs) -> None:
    """Members are on top in the target and at the bottom in model 5: together they would look like chance."""
    group, _ = group_with(runs)
    (found,) = group.attacks[0].curves
    assert found.attack == "lira, pool"
    assert found.num_nonmembers == 20
    assert min(found.tpr) == 1.0
