"""A report that claims more privacy than the entries of a ledger give is worse than none."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safesynthdp.cli import run as run_main
from safesynthdp.privacy.command import main as account
from safesynthdp.reporting.command import main
from safesynthdp.reporting.wording import epsilon_text

Edit = Callable[[Path, Callable[[Any], object]], None]


class Runs(Protocol):
    folder: Path
    finetune: Path
    sample: Path
    untuned: Path
    attack: Path


def draw(runs: Runs, out: Path) -> tuple[int, str]:
    """Without what needs a figure: these tests are about the box and the ledger."""
    (runs.finetune / "metrics.jsonl").unlink()
    paths = (runs.finetune, runs.sample, runs.untuned, runs.attack)
    code = run_main(main, [*map(str, paths), "--output_dir", str(out)])
    return code, (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", ["finetune", "sample", "untuned"])
def test_the_page_prints_the_epsilon_that_account_ledger_prints(
    runs: Runs, tmp_path: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    account(["ledger", str(getattr(runs, path))])
    printed = re.findall(r"epsilon ([0-9.]+) \(rounded up\)", capsys.readouterr().out)
    assert printed
    code, page = draw(runs, tmp_path / "out")
    assert code == 0
    for epsilon in printed:
        assert f">{epsilon}</td>" in page


def test_text_under_the_rule_min_never_lowers_what_the_released_weights_cost(
    runs: Runs, tmp_path: Path, edit: Edit
) -> None:
    """Whoever sees the weights learns nothing more from text noise, and is not protected by it either."""
    from safesynthdp.privacy.ledger import Ledger
    from safesynthdp.privacy.mechanisms import Softmax

    mechanism = Softmax(shards=1, single=True, clip=0.001, tokens=2, texts_per_batch=3, adjacency="many")
    output = {"id": "output", "kind": "output_mechanism", "mechanism": mechanism.to_entry()}

    def claim_min(value: Any) -> None:
        value["entries"].append(output | {"data": {}, "randomness": {"seeded": False}, "parents": []})
        release = value["releases"][0]
        release.update(rule="min", entries=[*release["entries"], "output"])

    weights = Ledger.read(runs.finetune / "ledger.json").releases[0].epsilon
    edit(runs.sample / "ledger.json", claim_min)
    code, page = draw(runs, tmp_path / "out")
    assert code == 0
    assert weights is not None
    assert f'<p class="epsilon">epsilon {epsilon_text(weights)}</p>' in page
    assert "the smaller of two bounds on the same text, weights withheld" in page


def test_both_print_the_same_once_the_stored_epsilon_is_the_exact_one(
    runs: Runs, tmp_path: Path, edit: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    from safesynthdp.privacy.ledger import Ledger, recompute

    ledger = Ledger.read(runs.finetune / "ledger.json")
    exact = recompute(ledger, ledger.releases[0])
    for path in (runs.finetune, runs.sample):
        edit(path / "ledger.json", lambda value: [r.update(epsilon=exact) for r in value["releases"]])
    account(["ledger", str(runs.sample)])
    printed = re.findall(r"epsilon ([0-9.]+) \(rounded up\)", capsys.readouterr().out)
    code, page = draw(runs, tmp_path / "out")
    assert code == 0
    assert f'<p class="epsilon">epsilon {printed[0]}</p>' in page


def test_an_epsilon_below_what_its_entries_cost_is_red_and_fails(
    runs: Runs, tmp_path: Path, edit: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(runs.sample / "ledger.json", lambda value: value["releases"][0].update(epsilon=4.4))
    code, page = draw(runs, tmp_path / "out")
    assert code == 1
    assert 'class="problem"' in page
    assert "the ledger says epsilon 4.4, but its entries cost 4.47" in page
    assert '<p class="epsilon">no formal guarantee</p>' in page
    error = capsys.readouterr().err
    assert "do not rely on this epsilon" in error
    assert error.count("\n") == 1


def test_text_that_does_not_pay_for_its_weights_fails(runs: Runs, tmp_path: Path, edit: Edit) -> None:
    """The sample's own ledger is consistent: nothing spent, epsilon 0."""
    edit(runs.sample / "ledger.json", lambda value: value.update(entries=[]))
    edit(runs.sample / "ledger.json", lambda value: value["releases"][0].update(entries=[], epsilon=0.0))
    code, page = draw(runs, tmp_path / "out")
    assert code == 1
    assert "does not carry what finetune vader-eps4 spent: label_histogram, dpsgd" in page


def test_a_sample_that_remembers_fewer_steps_than_its_run_fails(runs: Runs, tmp_path: Path, edit: Edit) -> None:
    edit(runs.sample / "ledger.json", lambda value: value["entries"][1]["mechanism"].update(steps=10))
    code, page = draw(runs, tmp_path / "out")
    assert code == 1
    assert "does not carry what finetune vader-eps4 spent: dpsgd" in page


def test_a_ledger_that_cannot_be_read_proves_nothing(runs: Runs, tmp_path: Path) -> None:
    (runs.finetune / "ledger.json").write_text("{}")
    code, page = draw(runs, tmp_path / "out")
    assert code == 1
    assert '<p class="epsilon">no formal guarantee</p>' in page


def test_a_missing_ledger_proves_nothing(runs: Runs, tmp_path: Path) -> None:
    (runs.finetune / "ledger.json").unlink()
    code, page = draw(runs, tmp_path / "out")
    assert code == 1
    assert "finetune vader-eps4 has no ledger.json" in page


def test_releases_that_cost_different_accesses_are_composed_in_the_headline(
    runs: Runs, tmp_path: Path, edit: Edit
) -> None:
    def split(value: Any) -> None:
        weights, histogram = value["releases"]
        weights.update(entries=["dpsgd"], epsilon=4.46)
        histogram.update(entries=["label_histogram"], epsilon=0.1)

    edit(runs.finetune / "ledger.json", split)
    code = run_main(main, [str(runs.finetune), "--output_dir", str(tmp_path / "out")])
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert code == 0
    headline = re.search(r'<p class="epsilon">epsilon ([0-9.]+)</p>', page)
    assert headline is not None
    assert float(headline[1]) > 4.46


def test_epsilon_null_is_no_formal_guarantee_everywhere(runs: Runs, tmp_path: Path, edit: Edit) -> None:
    def forget(value: Any) -> None:
        value["entries"] = [{**entry, "kind": "none", "mechanism": {"steps": 300}} for entry in value["entries"][1:]]
        for release in value["releases"]:
            release.update(epsilon=None, entries=["dpsgd"])

    for path in (runs.finetune, runs.sample):
        edit(path / "ledger.json", forget)
    code, page = draw(runs, tmp_path / "out")
    assert code == 0, "a run without privacy is no error; it says so"
    assert '<p class="epsilon">no formal guarantee</p>' in page
    assert page.count("no formal guarantee") >= 4
    assert "epsilon 4." not in page.split("</section>")[0]


def test_a_refuted_claim_is_written_out_and_fails(
    runs: Runs, tmp_path: Path, edit: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(runs.attack / "audit.json", lambda value: value["rows"][3].update(verdict="refuted", epsilon_lower_bound=9.5))
    code, page = draw(runs, tmp_path / "out")
    assert code == 1
    assert "refuted" in page
    assert "one_run refutes the claim" in capsys.readouterr().err


def test_a_void_benchmark_refutes_nothing(runs: Runs, tmp_path: Path, edit: Edit) -> None:
    edit(runs.attack / "audit.json", lambda value: value["rows"][3].update(verdict="refuted", benchmark_valid=False))
    code, page = draw(runs, tmp_path / "out")
    assert code == 0
    assert "void: members differ as texts" in page


@given(st.floats(min_value=0, max_value=1e6))
def test_a_printed_epsilon_is_never_below_the_true_one(epsilon: float) -> None:
    assert epsilon <= float(epsilon_text(epsilon)) <= epsilon + 1.0000001e-4
