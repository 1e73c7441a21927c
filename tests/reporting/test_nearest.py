"""Training records beside synthetic texts: on an internal page, on request, and nowhere else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from safesynthdp.cli import run as run_main
from safesynthdp.reporting.collect import collect
from safesynthdp.reporting.command import ReportConfig, main
from safesynthdp.reporting.guarantee import read_guarantee
from safesynthdp.reporting.publish import publishable
from safesynthdp.reporting.sections import memorisation

Edit = Callable[[Path, Callable[[Any], object]], None]
SECRET = "<b>the patient of ward seven</b> said so"


class Runs(Protocol):
    folder: Path
    evaluation: Path


@pytest.fixture
def copied(runs: Runs) -> Runs:
    """A whole text, and a part of one."""
    common = {"synthetic_id": "s1", "real_id": "r1", "synthetic_text": "a plain synthetic text", "real_text": SECRET}
    cases = [common | {"characters": 63, "is_whole_text": False}, common | {"characters": 40, "is_whole_text": True}]
    lines = "".join(f"{json.dumps(case)}\n" for case in cases)
    (runs.evaluation / "memorisation_worst.jsonl").write_text(lines, encoding="utf-8")
    return runs


def everything(out: Path) -> str:
    return "".join(
        path.read_text(encoding="utf-8") for path in out.rglob("*") if path.suffix in (".html", ".json", ".md")
    )


def test_no_training_record_is_read_for_a_page_that_nobody_asked_to_hold_one(copied: Runs) -> None:
    assert ReportConfig(runs=[str(copied.folder)], output_dir="out").nearest_records is False
    (group,) = collect([str(copied.folder)], texts_per_label=1)
    assert group.evaluations[0].copied is None
    assert memorisation(group, is_public=False).texts == ()


def test_asked_for_it_stands_beside_the_synthetic_text_on_the_page_and_in_no_other_file(
    copied: Runs, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run_main(main, [str(copied.evaluation), "--output_dir", str(out), "--nearest_records"]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("training record: &lt;b&gt;the patient of ward seven&lt;/b&gt; said so") == 2
    assert "shares 63 characters in a row with the training record nearest to it" in page
    assert "shares all of its words with the training record nearest to it" in page
    assert "this page holds private text" in page
    assert everything(out).count("ward seven") == 2
    assert (out / "report.html").stat().st_mode & 0o077 == 0


def test_a_public_page_refuses_to_hold_any(copied: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(copied.folder), "--output_dir", str(tmp_path / "out"), "--public", "--nearest_records"]
    assert run_main(main, words) == 2
    assert "nearest_records=true prints training records" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_publishable_holds_none_even_if_they_were_read(copied: Runs) -> None:
    """The second wall: cards are made from it, whoever draws the page."""
    (group,) = collect([str(copied.folder)], texts_per_label=1, with_copied=True)
    assert group.evaluations[0].copied
    bare, _, dropped = publishable(group, read_guarantee(group))
    assert bare.evaluations[0].copied is None
    assert "training records beside the texts nearest to them" in dropped


def test_that_nothing_was_copied_is_written_out(runs: Runs) -> None:
    (group,) = collect([str(runs.folder)], texts_per_label=1, with_copied=True)
    (note,) = memorisation(group, is_public=False).notes
    assert note.startswith("No synthetic text shares 50 characters")
