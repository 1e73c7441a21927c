"""A public page holds nothing that was computed from private records outside the ledger."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from safesynthdp.cli import run as run_main
from safesynthdp.reporting.command import main

Edit = Callable[[Path, Callable[[Any], object]], None]
PRIVATE_DIGITS = (
    "0.867", "0.86731", "0.819", "0.81937", "0.743", "0.74293", "0.00813", "0.529", "0.52917", "3.126",
    "0.79157", "0.792", "0.31337", "0.0457", "0.046", "120,000", "120000", "30,017",
    "30017", "4173", "f1a9f1a9", "0.0341333",
)  # fmt: skip
PRIVATE_WORDS = ("/secret", "ward7", "letters.csv", "14 texts of synthetic were cut")


class Drawn(Protocol):
    page: str
    twin: str
    code: int


class Runs(Protocol):
    folder: Path
    finetune: Path
    sample: Path
    evaluation: Path


def publish(runs: Runs, out: Path) -> tuple[int, str]:
    code = run_main(main, [str(runs.folder), "--output_dir", str(out), "--public"])
    return code, (out / "report.html").read_text(encoding="utf-8") + (out / "report.json").read_text(encoding="utf-8")


def test_the_internal_page_does_hold_the_private_numbers(internal: Drawn) -> None:
    """Otherwise the next test could not fail."""
    text = internal.page + internal.twin
    assert [words for words in (*PRIVATE_DIGITS, *PRIVATE_WORDS) if words not in text] == []


def test_no_private_number_or_name_is_left(public: Drawn) -> None:
    assert public.code == 0
    text = public.page + public.twin
    assert [words for words in (*PRIVATE_DIGITS, *PRIVATE_WORDS, "/tmp", "/pytest") if words in text] == []


def test_what_was_dropped_is_listed(public: Drawn) -> None:
    dropped = "\n".join(json.loads(public.twin)["dropped"])
    for words in ("utility rows: accuracy", "memorisation rows", "attack rows", "training progress", "file names"):
        assert words in dropped
    assert "contains statistics that are not private" not in public.page
    assert "Left out of this edition" in public.page


@pytest.mark.parametrize("edition", [[], ["--public"]], ids=["internal", "public"])
def test_every_edition_says_that_texts_were_chosen_among_more(
    runs: Runs, tmp_path: Path, edit: Edit, edition: list[str]
) -> None:
    matching = {"rounds": 5, "records_a_round": 800, "candidates": 3, "distance_at_each_round": [0.27182]}
    edit(runs.sample / "manifest.json", lambda manifest: manifest.update(token_matching=matching))
    assert run_main(main, [str(runs.folder), "--output_dir", str(tmp_path / "out"), *edition]) == 0
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    twin = (tmp_path / "out/report.json").read_text(encoding="utf-8")
    assert "of 3 texts drawn for each one written" in page
    assert "nothing is filtered out" not in page
    assert "0.27182" not in page + twin, "how far off the counts were may be a function of exact ones"


def test_what_was_left_out_is_never_called_not_done(make_runs: Callable[[Path], Runs], tmp_path: Path) -> None:
    first, second = (make_runs(tmp_path / name) for name in ("first", "second"))
    words = [str(first.folder), str(second.folder), "--output_dir", str(tmp_path / "out"), "--public"]
    assert run_main(main, words) == 0
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    listed = page[page.index("The runs of this page") : page.index("Utility against epsilon")]
    assert "left out of the public edition" in listed
    assert "audits are left out of the public edition" in page
    assert "not audited" not in page.lower()
    assert "not done" not in listed


def test_what_the_ledger_covers_stays(public: Drawn) -> None:
    for words in ("epsilon 4.4800", "a plain synthetic text number", "share of empty texts", "noise_multiplier 1.0"):
        assert words in public.page


def test_the_privacy_statement_of_a_public_page_is_whole(public: Drawn) -> None:
    statement = json.loads(public.twin)["runs"][0]["statement"]
    vague = [name for name, value in statement.items() if not value or "not stated" in value]
    assert vague in ([], ["software, commit, date"])


def test_text_without_a_guarantee_is_not_published(runs: Runs, tmp_path: Path, edit: Edit) -> None:
    def forget(value: Any) -> None:
        value["entries"] = [{**entry, "kind": "none", "mechanism": {"steps": 300}} for entry in value["entries"][1:]]
        for release in value["releases"]:
            release.update(epsilon=None, entries=["dpsgd"])

    for path in (runs.finetune, runs.sample):
        edit(path / "ledger.json", forget)
    _, text = publish(runs, tmp_path / "out")
    assert "a plain synthetic text number" not in text
    assert "0.05173" not in text
    assert "no formal guarantee covers it" in text


def test_text_whose_ledger_is_wrong_is_not_published(runs: Runs, tmp_path: Path, edit: Edit) -> None:
    edit(runs.sample / "ledger.json", lambda value: value["releases"][0].update(epsilon=1.0))
    code, text = publish(runs, tmp_path / "out")
    assert code == 1
    assert "a plain synthetic text number" not in text


def test_numbers_about_a_bare_file_are_not_published(runs: Runs, tmp_path: Path, edit: Edit) -> None:
    edit(runs.evaluation / "metrics.json", lambda value: value["inputs"]["synthetic"].update(run_id=None))
    _, text = publish(runs, tmp_path / "out")
    assert "0.05173" not in text


@pytest.mark.parametrize("reads", [["synthetic", "real"], ["synthetic", "holdout"], []])
def test_a_row_that_read_private_records_goes_whatever_it_says(
    runs: Runs, tmp_path: Path, edit: Edit, reads: list[str]
) -> None:
    edit(runs.evaluation / "metrics.json", lambda value: value["metrics"][0].update(publishable=True, reads=reads))
    _, text = publish(runs, tmp_path / "out")
    assert "0.74293" not in text
    assert "0.743" not in text


def test_a_public_holdout_lets_its_rows_out_without_the_real_ceiling(runs: Runs, tmp_path: Path, edit: Edit) -> None:
    row = {"publishable": True, "reads": ["synthetic", "holdout"], "ceiling": 0.81937}
    edit(runs.evaluation / "metrics.json", lambda value: value["metrics"][0].update(row))
    edit(runs.evaluation / "metrics.json", lambda value: value["settings"].update(holdout_is_public=True))
    _, text = publish(runs, tmp_path / "out")
    assert "0.74293" in text
    assert "0.81937" not in text
    ceiling = text.partition("Ceiling")[2].partition("</div>")[0]
    assert "left out of the public edition" in ceiling, "it was measured, so it is not 'not done'"


def test_an_audit_by_canaries_stays_and_one_on_natural_records_goes(runs: Runs, tmp_path: Path, edit: Edit) -> None:
    """Canaries are public and the weights are released: whoever has them could have run it."""
    audit = runs.folder / "attack/audit.json"
    edit(audit, lambda value: value["rows"][3].update(role="canary", auc=0.51737))
    _, text = publish(runs, tmp_path / "out")
    assert "0.51737" in text
    assert "at least 0.310" in text
    assert "0.52917" not in text
    assert "3 attack rows on natural records" in text


def test_an_audit_by_canaries_of_what_is_not_released_goes(runs: Runs, tmp_path: Path, edit: Edit) -> None:
    def forget(value: Any) -> None:
        value["entries"] = [{**entry, "kind": "none", "mechanism": {"steps": 300}} for entry in value["entries"][1:]]
        for release in value["releases"]:
            release.update(epsilon=None, entries=["dpsgd"])

    for path in (runs.finetune, runs.sample):
        edit(path / "ledger.json", forget)
    edit(runs.folder / "attack/audit.json", lambda value: value["rows"][3].update(role="canary", auc=0.51737))
    _, text = publish(runs, tmp_path / "out")
    assert "0.51737" not in text


def test_a_grid_s_shared_untuned_sample_does_not_keep_the_rows_of_the_other_runs_inside(
    tmp_path: Path, write_grid: Callable[..., list[Path]], edit: Edit
) -> None:
    """Text of the untuned model is covered by its own ledger, in whatever group it stands."""
    write_grid(tmp_path / "runs", epsilons=(1, 4), seeds=1)
    first, second = sorted((tmp_path / "runs").iterdir())
    shared = json.loads((first / "untuned/manifest.json").read_text())["run_id"]
    edit(second / "evaluation/metrics.json", lambda value: value["inputs"]["baseline"].update(run_id=shared))
    out = tmp_path / "out"
    assert run_main(main, [str(first), str(second), "--output_dir", str(out), "--public"]) == 0
    runs = json.loads((out / "report.json").read_text())["runs"]
    assert [[row["name"] for row in run["metrics"]] for run in runs] == [["empty_share"], ["empty_share"]]


def test_exact_label_counts_and_a_private_label_set_stay_inside(runs: Runs, tmp_path: Path, edit: Edit) -> None:
    edit(runs.finetune / "manifest.json", lambda value: value["data"].update(label_set_is_public=False))
    edit(runs.finetune / "label_histogram.json", lambda value: value.update(source="exact"))
    _, text = publish(runs, tmp_path / "out")
    assert "exact label counts" in text
    assert "31002" not in text


@pytest.mark.parametrize("place", ["/home/My Ward7/letters", "letters/of/ward7", "C:\\\\ward7"])
def test_the_folder_of_a_data_set_is_not_named(runs: Runs, tmp_path: Path, place: str) -> None:
    path = runs.finetune / "config.yaml"
    path.write_text(path.read_text().replace("train_file: /secret/ward7/letters.csv", f'dataset_name: "{place}"'))
    assert "dataset_name" in path.read_text()
    run_main(main, [str(runs.folder), "--output_dir", str(tmp_path / "out"), "--public"])
    assert "ard7" not in "".join(file.read_text() for file in (tmp_path / "out").rglob("*.html"))
    assert "ard7" not in "".join(file.read_text() for file in (tmp_path / "out/cards").glob("*.md"))
