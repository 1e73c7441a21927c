"""The signature figure and the overview: what is claimed and what was audited, never one for the other."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safesynthdp.cli import run as run_main
from safesynthdp.reporting.collect import collect
from safesynthdp.reporting.command import main
from safesynthdp.reporting.frontier import together_text
from safesynthdp.reporting.frontier_figure import NONE, ZERO, Scale
from safesynthdp.reporting.guarantee import read_guarantee
from safesynthdp.reporting.roc import ceiling, curve
from safesynthdp.runs import RunDirectory

Edit = Callable[[Path, Callable[[Any], object]], None]
WriteGrid = Callable[..., list[Path]]


class Runs(Protocol):
    folder: Path
    finetune: Path
    sample: Path
    evaluation: Path
    attack: Path


def draw(out: Path, *paths: Path) -> tuple[int, str]:
    code = run_main(main, [*map(str, paths), "--output_dir", str(out)])
    return code, (out / "report.html").read_text(encoding="utf-8")


def figure_words(page: str) -> str:
    found = re.search(r'aria-label="(Utility against epsilon[^"]*)"', page)
    assert found is not None
    return found[1]


def test_the_figure_says_utility_claim_bound_and_what_was_attainable(runs: Runs, tmp_path: Path) -> None:
    code, page = draw(tmp_path / "out", runs.folder)
    assert code == 0
    words = figure_words(page)
    assert "accuracy 0.743, claimed epsilon 4.4800, audited at least 0.310 of at most 5.780" in words
    for level in ("real, all 0.867", "real, equal number 0.819", "DP classifier 0.792", "most common label 0.262"):
        assert level in page


def test_no_guarantee_and_no_audit_are_written_out(runs: Runs, tmp_path: Path, edit: Edit) -> None:
    def forget(value: Any) -> None:
        value["entries"] = [{**entry, "kind": "none", "mechanism": {"steps": 300}} for entry in value["entries"][1:]]
        for release in value["releases"]:
            release.update(epsilon=None, entries=["dpsgd"])

    for path in (runs.finetune, runs.sample):
        edit(path / "ledger.json", forget)
    (runs.attack / "audit.json").unlink()
    code, page = draw(tmp_path / "out", runs.folder)
    assert code == 0
    assert "accuracy 0.743, no formal guarantee, not audited" in figure_words(page)
    assert "Not audited: no attack gave a lower bound." in page


def test_a_bound_above_the_ledgers_epsilon_is_refuted_whatever_the_audit_calls_it(
    runs: Runs, tmp_path: Path, edit: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    """The audit compared it with another claim, or with none."""
    edit(runs.attack / "audit.json", lambda v: v["rows"][3].update(epsilon_lower_bound=4.9, verdict=None))
    code, page = draw(tmp_path / "out", runs.folder)
    assert code == 1
    assert "REFUTED" in figure_words(page)
    assert "REFUTED: one_run refutes the claim (epsilon is at least 4.900, claimed 4.4800)" in page
    assert "one_run refutes the claim" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out/report.json").read_text())["runs"][0]["refuted"]) == 1
    assert (tmp_path / "out/figures/run1-frontier.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"delta": 1e-5}, "its bound holds at delta 1e-05, the claim at delta 1e-06"),
        ({"group_size": 4}, "audits 4 records together, the claim is about one"),
    ],
)
def test_what_is_about_another_claim_is_neither_drawn_nor_held_against_it(
    runs: Runs, tmp_path: Path, edit: Edit, change: dict[str, Any], reason: str
) -> None:
    edit(runs.attack / "audit.json", lambda v: v["rows"][3].update({"epsilon_lower_bound": 4.9} | change))
    code, page = draw(tmp_path / "out", runs.folder)
    assert code == 0
    assert "not audited" in figure_words(page)
    assert reason in page


def test_each_channel_has_a_line_of_its_own(runs: Runs, tmp_path: Path, edit: Edit) -> None:
    def add_text(value: Any) -> None:
        value["rows"].append(value["rows"][3] | {"channel": "text", "attack": "match", "epsilon_lower_bound": 0.07})

    edit(runs.attack / "audit.json", add_text)
    _, page = draw(tmp_path / "out", runs.folder)
    words = figure_words(page)
    assert "run 1 (model)" in words
    assert "run 1 (text)" in words
    assert "audited at least 0.070" in words


def test_no_power_is_never_called_passed(runs: Runs, tmp_path: Path, edit: Edit) -> None:
    edit(runs.attack / "audit.json", lambda v: v["rows"][3].update(verdict="no_power", epsilon_attainable=3.2))
    code, page = draw(tmp_path / "out", runs.folder)
    assert code == 0
    assert "no power: even a perfect attack could not have refuted it" in page
    assert "passed" not in page.lower()


def test_several_runs_on_the_same_records_say_what_they_cost_together(tmp_path: Path, write_grid: WriteGrid) -> None:
    write_grid(tmp_path / "runs", epsilons=(1, 4), seeds=1)
    code, page = draw(tmp_path / "out", *sorted((tmp_path / "runs").iterdir()))
    assert code == 0
    assert "These runs read the same records. Whoever sees all of them is promised no more than epsilon 5.0000" in page
    words = figure_words(page)
    assert "run 1: accuracy" in words or "run 1 (model): accuracy" in words
    assert page.count('class="verdict"') == 2


def test_deltas_are_added_as_they_are_printed(tmp_path: Path, write_grid: WriteGrid) -> None:
    write_grid(tmp_path / "runs", epsilons=(0.5, 1, 2, 4, 8), seeds=1)
    _, page = draw(tmp_path / "out", *sorted((tmp_path / "runs").iterdir()))
    found = re.findall(r"at delta (\S+) \(plain sums\)", page)
    assert found == ["5e-06"], "five times 1e-06 added as floats is 4.9999999999999996e-06, which is less"


def test_one_run_without_a_guarantee_leaves_none_for_all_together(tmp_path: Path, write_grid: WriteGrid) -> None:
    write_grid(tmp_path / "runs", epsilons=(1, None), seeds=1)
    _, page = draw(tmp_path / "out", *sorted((tmp_path / "runs").iterdir()))
    assert "do not add up to one for all of them together" in page


def as_much_as_a_real_evaluation(value: Any) -> None:
    """Five measures of eight labels, for three sets of texts, beside what the fixture holds."""
    row = next(row for row in value["metrics"] if row["name"] == "mauve")
    value["metrics"] += [
        {**row, "name": name, "label": f"label number {label}", "train_on": train_on, "model": "all-MiniLM-L6-v2"}
        for name in ("c2st_auc", "mauve", "length_ks", "coverage", "frechet")
        for label in range(8)
        for train_on in ("synthetic", "real_matched", "base_model")
    ]
    value["metrics"] += [{**row, "model": f"encoder number {n}"} for n in range(25)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twelve_runs_stay_small_and_quick(tmp_path: Path, write_grid: WriteGrid, edit: Edit) -> None:
    """Processor time: other work on the machine must not decide."""
    import time

    write_grid(tmp_path / "runs", epsilons=(0.5, 1, 2, 4, 8, None), seeds=2)
    for path in (tmp_path / "runs").glob("*/evaluation/metrics.json"):
        edit(path, as_much_as_a_real_evaluation)
    before = time.process_time()
    code, page = draw(tmp_path / "out", *sorted((tmp_path / "runs").iterdir()))
    assert code == 0
    assert time.process_time() - before < 20
    assert len(page.encode()) < 1_000_000
    assert page.count("Numbers of single labels are in report.json") == 12


@given(st.lists(st.floats(min_value=1e-3, max_value=1e4), min_size=2, max_size=6))
def test_a_larger_epsilon_stands_further_right_between_the_two_columns(values: list[float]) -> None:
    scale = Scale.over(values)
    places = [scale.place(value) for value in sorted(values)]
    assert places == sorted(places)
    assert places[0] > ZERO
    assert places[-1] < NONE


def test_the_ceiling_is_the_trade_off_of_the_claim() -> None:
    """Randomised response at epsilon 1 stands on it: e / (1 + e) found at 1 / (1 + e) false alarms."""
    e = np.e
    assert ceiling([1 / (1 + e)], epsilon=1.0, delta=0.0)[0] == pytest.approx(e / (1 + e))
    assert ceiling([0.0], epsilon=1.0, delta=1e-3)[0] == pytest.approx(1e-3)


def test_a_curve_counts_members_strictly_above_the_threshold() -> None:
    """Members 3, 2, 2, 0 and others 2, 1, 0, 0: one in four others passed lets through three in four members."""
    scores = np.array([3.0, 2.0, 2.0, 0.0, 2.0, 1.0, 0.0, 0.0])
    found = curve(scores, np.arange(8) < 4, channel="model", attack="loss")
    rates = dict(zip(np.round(found.fpr, 4), found.tpr, strict=True))
    assert rates[0.25] == 0.75
    assert found.tpr[-1] == 1.0
    tied = curve(np.zeros(2000), np.arange(2000) < 1000, channel="model", attack="loss")
    assert tied.tpr[:-1] == (0.0,) * (len(tied.tpr) - 1)


def test_private_prediction_beside_a_run_adds_to_what_all_of_them_cost(runs: Runs, tmp_path: Path) -> None:
    """It is one more access to the records; a sum without it would promise too much."""
    text = RunDirectory.create(tmp_path / "predicted", kind="sample", config={"source": "in_context"})
    for file in ("synthetic.parquet", "ledger.json"):
        (text.path / file).write_bytes((runs.sample / file).read_bytes())
    text.finish(num_records=20, requested=20, untuned=False)
    groups = collect([str(runs.folder), str(text.path)], texts_per_label=1)
    found = together_text([(group, read_guarantee(group)) for group in groups])
    assert found is not None
    assert "no more than epsilon 8.9600" in found
