"""From run directories to a page: what is written, what is refused, what is never left blank."""

import html
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Protocol

import pytest

from safesynthdp.cli import run as run_main
from safesynthdp.reporting.command import main
from safesynthdp.reporting.html import POLICY
from safesynthdp.reporting.statement import FIELDS
from safesynthdp.reporting.utility_figures import draw_recall
from safesynthdp.runs import RunDirectory

Edit = Callable[[Path, Callable[[Any], object]], None]
PAGE_LIMIT = 1_000_000


class Drawn(Protocol):
    page: str
    twin: str


class Runs(Protocol):
    folder: Path
    finetune: Path
    sample: Path
    untuned: Path
    evaluation: Path
    attack: Path


class Reader(HTMLParser):
    """Every tag, its attributes, and the text a reader sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags = list[tuple[str, dict[str, str | None]]]()
        self.words = list[str]()
        self._hidden = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden = tag in ("style", "title")
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def report(out: Path, *runs: Path, flags: tuple[str, ...] = ()) -> str:
    main([*(str(path) for path in runs), "--output_dir", str(out), *flags])
    return (out / "report.html").read_text(encoding="utf-8")


def test_the_last_line_printed_is_the_path_of_the_page(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(tmp_path / "out", runs.folder)
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out" / "report.html")


def test_json_prints_the_twin_and_nothing_else(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(tmp_path / "out", runs.folder, flags=("--json",))
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out" / "report.json").read_text())
    assert printed["runs"][0]["epsilon"] == 4.48


def test_hostile_text_stays_text(internal: Drawn) -> None:
    reader = Reader(internal.page)
    names = {name for name, _ in reader.tags}
    assert not names & {"script", "img", "iframe", "object", "embed", "link", "form", "textarea", "base"}
    attributes = {key for _, found in reader.tags for key in found}
    assert not any(key.startswith("on") for key in attributes), "an event handler got in"
    for shown in ("<script>document.title='pwned'</script>", "{{7*7}}", "<b>reviews</b>", "$\\frac{1}{0$"):
        assert shown in reader.text
    assert "49" not in [word for word in reader.words if "7*7" in word]


def test_controls_and_direction_marks_are_written_out(internal: Drawn) -> None:
    assert r"reversed \u202egnp.exe\u202c and \u200fmarked, zero\u200bwidth, nul\x00bell\x07" in internal.page
    assert not any(
        (ord(character) < 32 and character != "\n") or character in "\u202e\u200f\x7f" for character in internal.page
    )


def test_the_page_fetches_nothing_and_forbids_scripts(internal: Drawn) -> None:
    reader = Reader(internal.page)
    metas = [found for name, found in reader.tags if name == "meta"]
    assert {"http-equiv": "Content-Security-Policy", "content": POLICY} in metas
    links = [value for _, found in reader.tags for key, value in found.items() if key.endswith(("href", "src"))]
    assert links
    assert all(value is not None and value.startswith("#") for value in links)
    assert "@import" not in internal.page
    assert "url(" not in internal.page.replace("url(#", "")


def test_every_id_on_the_page_is_its_own_and_every_reference_meets_one(internal: Drawn) -> None:
    reader = Reader(internal.page)
    ids = [found["id"] for _, found in reader.tags if "id" in found]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, f in reader.tags for k, value in f.items() if k.endswith("href") and value}
    clipped = {
        name for _, found in reader.tags for name in re.findall(r"url\(#([^)]+)\)", found.get("clip-path") or "")
    }
    assert clipped
    assert targets | clipped <= set(ids)


def test_a_label_that_looks_like_a_reference_stays_text_in_a_figure() -> None:
    label: str = ' id="p1" href="#p1" url(#p1) d="M 0 0'
    names: list[str] = [label, "b"]
    series = {"synthetic": dict.fromkeys(names, (0.5, 0.4, 0.6))}
    drawing = draw_recall(names, series, identity="one", caption="")
    assert label[:17] in html.unescape(drawing.narrow.split("</title>")[1])
    ids = [found["id"] for _, found in Reader(drawing.narrow).tags if "id" in found]
    assert all(name is not None and name.startswith("one-") for name in ids)


def test_every_figure_has_words_for_who_cannot_see_it(internal: Drawn) -> None:
    figures = [found for name, found in Reader(internal.page).tags if name == "svg"]
    assert len(figures) == 8, "frontier and utility twice, for wide and narrow screens; recall, lengths, ROC, progress"
    assert all(found["role"] == "img" and len(found["aria-label"] or "") > 40 for found in figures)


def test_the_page_is_small(runs: Runs, tmp_path: Path) -> None:
    assert len(report(tmp_path / "out", runs.folder, flags=("--samples_per_label", "20")).encode()) < PAGE_LIMIT


def test_the_same_runs_give_the_same_bytes(runs: Runs, tmp_path: Path) -> None:
    first, twin = report(tmp_path / "out", runs.folder), (tmp_path / "out" / "report.json").read_bytes()
    assert report(tmp_path / "out", runs.folder) == first
    assert (tmp_path / "out" / "report.json").read_bytes() == twin
    assert report(tmp_path / "elsewhere", runs.folder) == first


def test_drawing_again_shows_what_has_changed_since(runs: Runs, tmp_path: Path, edit: Edit) -> None:
    report(tmp_path / "out", runs.folder)
    edit(runs.evaluation / "metrics.json", lambda value: value["metrics"][0].update(value=0.7001, low=0.69, high=0.71))
    assert "0.700" in report(tmp_path / "out", runs.folder)
    assert RunDirectory.open(tmp_path / "out", kind="report").is_finished


def test_a_public_page_never_replaces_an_internal_one(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = report(tmp_path / "out", runs.folder)
    assert run_main(main, [str(runs.folder), "--output_dir", str(tmp_path / "out"), "--public"]) == 2
    assert "another config" in capsys.readouterr().err
    assert (tmp_path / "out" / "report.html").read_text() == before


def test_a_lone_evaluation_finds_its_run_and_its_ledger(runs: Runs, tmp_path: Path) -> None:
    page = report(tmp_path / "out", runs.evaluation)
    assert "epsilon 4.4800" in Reader(page).text
    assert "No attack" in page or "Not done: no attack" in page


def test_a_moved_folder_is_found_by_its_run_id(runs: Runs, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    runs.folder.rename(moved)
    text = Reader(report(tmp_path / "out", moved)).text
    assert "epsilon 4.4800" in text
    assert text.count("SafeSynthDP report") == 1, "everything belongs to one run"


def test_stages_without_their_run_promise_nothing(runs: Runs, tmp_path: Path) -> None:
    runs.attack.rename(tmp_path / "attack")
    for path in (runs.finetune, runs.sample, runs.untuned):
        path.rename(tmp_path / f"gone-{path.name}")
    text = Reader(report(tmp_path / "out", runs.evaluation)).text
    assert "no formal guarantee" in text
    assert "Stages that belong to no finetune run" in text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("finetune", ("no evaluation of this run was given", "no attack on this run was given", "no text sampled")),
        ("sample", ("no evaluation of this run was given", "no attack on this run was given")),
        ("attack", ("no evaluation of this run was given", "no text sampled")),
    ],
)
def test_a_missing_stage_is_written_out(runs: Runs, tmp_path: Path, given: str, expected: tuple[str, ...]) -> None:
    text = Reader(report(tmp_path / "out", getattr(runs, given))).text
    for words in expected:
        assert f"Not done: {words}" in text
    if "evaluation" in expected[0]:
        assert "Utility not done" in text


def test_an_unfinished_evaluation_is_not_done(runs: Runs, tmp_path: Path) -> None:
    (runs.evaluation / "metrics.json").unlink()
    assert "Not done: the evaluation did not finish" in report(tmp_path / "out", runs.folder)


def test_an_unfinished_run_says_so(runs: Runs, tmp_path: Path) -> None:
    RunDirectory.open(runs.finetune).update(status="interrupted")
    assert "The finetune run is not finished" in report(tmp_path / "out", runs.folder)


def test_every_field_of_the_privacy_statement_is_stated(internal: Drawn) -> None:
    statement = json.loads(internal.twin)["runs"][0]["statement"]
    assert set(statement) == set(FIELDS)
    vague = [name for name, value in statement.items() if not value or "not stated" in value]
    assert vague in ([], ["software, commit, date"]), "only a checkout knows its commit"
    assert "not done" not in (statement["audit"], statement["who evaluated on what"])


def test_a_field_that_no_file_states_reads_not_stated(runs: Runs, tmp_path: Path) -> None:
    for path in (runs.finetune, runs.sample, runs.untuned):
        path.rename(tmp_path / f"gone-{path.name}")
    page = report(tmp_path / "out", runs.evaluation)
    assert Reader(page).text.count("not stated") >= 10


def test_the_internal_page_is_marked_and_for_its_owner_alone(runs: Runs, tmp_path: Path) -> None:
    assert "contains statistics that are not private" in report(tmp_path / "out", runs.folder)
    assert (tmp_path / "out" / "report.html").stat().st_mode & 0o077 == 0
    assert (tmp_path / "out" / "report.json").stat().st_mode & 0o077 == 0


def test_an_unsafe_seed_is_warned_of_and_never_printed(runs: Runs, tmp_path: Path, edit: Edit) -> None:
    config = (runs.finetune / "config.yaml").read_text().replace("unsafe_seed: null", "unsafe_seed: 918273")
    (runs.finetune / "config.yaml").write_text(config)
    command = ["safesynthdp", "finetune", "--privacy.unsafe_seed", "918273", "--privacy.unsafe_seed=918273"]
    edit(runs.finetune / "manifest.json", lambda value: value.update(command=command))
    for path in (runs.finetune, runs.sample):
        edit(path / "ledger.json", lambda value: [e["randomness"].update(seeded=True) for e in value["entries"]])
    page = report(tmp_path / "out", runs.folder)
    assert "Seeded: no guarantee against whoever knows the seed" in page
    assert "918273" not in page


@pytest.mark.parametrize("name", ["metrics.json", "audit.json", "synthetic.parquet"])
def test_a_broken_file_is_one_line_that_names_it(
    runs: Runs, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    next(runs.folder.glob(f"*/{name}")).write_text('{"metrics": [{"value": NaN}]}')
    assert run_main(main, [str(runs.folder), "--output_dir", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert name in error
    assert "Traceback" not in error
    assert "internal error" not in error


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["{tmp}/nowhere"], "is not a directory"),
        (["{tmp}"], "holds no run directory"),
        (["{runs}", "--samples_per_label", "0"], "samples_per_label=0"),
        (["{runs}", "--publik"], "publik"),
        ([], "runs is missing; name them behind the command"),
    ],
)
def test_a_wrong_request_is_one_line(
    runs: Runs, tmp_path: Path, argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    filled = [word.format(tmp=empty, runs=runs.folder) for word in argv]
    assert run_main(main, [*filled, "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_keyboard_goes_through_the_page_in_reading_order(internal: Drawn) -> None:
    """No positive tabindex; tables that may scroll can be reached and say what they are."""
    tags = Reader(internal.page).tags
    assert {found["tabindex"] for _, found in tags if "tabindex" in found} == {"0"}
    assert all(found.get("aria-label") for _, found in tags if found.get("role") == "region")
    assert [name for name, _ in tags].count("h1") == 1


def test_a_sample_of_private_prediction_is_a_run_of_its_own(runs: Runs, tmp_path: Path) -> None:
    """It has no finetune run; two of them are two groups, each with its own price."""
    for name in ("one", "two"):
        run = RunDirectory.create(tmp_path / name, kind="sample", config={"source": "in_context"})
        for file in ("synthetic.parquet", "ledger.json"):
            (tmp_path / name / file).write_bytes((runs.sample / file).read_bytes())
        run.finish(num_records=20, requested=20, untuned=False)
    text = Reader(report(tmp_path / "out", tmp_path / "one", tmp_path / "two")).text
    assert "2 runs side by side" in text
    assert text.count("Private prediction: text drawn straight from private records") == 2


def test_findings_of_the_evaluation_stand_in_the_box(internal: Drawn) -> None:
    box = internal.page.split('class="verdict"')[1].split("</section>")[0]
    assert "label collapse: label shares are 0.31337 apart" in box


def test_every_figure_lies_beside_the_page_as_png(runs: Runs, tmp_path: Path) -> None:
    report(tmp_path / "out", runs.folder)
    found = sorted(path.name for path in (tmp_path / "out/figures").iterdir())
    assert found == [
        f"run1-{name}.png" for name in ("frontier", "lengths", "progress", "recall", "roc-model", "utility")
    ]
    (runs.attack / "scores.parquet").unlink()
    report(tmp_path / "out", runs.folder)
    assert not (tmp_path / "out/figures/run1-roc-model.png").exists(), "a figure that is gone leaves no file"
