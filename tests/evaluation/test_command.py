"""``safesynthdp evaluate`` from the command line to metrics.json."""

import json
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from safesynthdp.cli import run
from safesynthdp.evaluation.command import main
from safesynthdp.evaluation.evaluate_config import EvaluateConfig
from safesynthdp.records import DataConfig, load_split
from safesynthdp.runs import RunDirectory

Make = Callable[..., Any]


@pytest.fixture
def files(make_pairs: Make, write_csv: Make, tmp_path: Path) -> dict[str, str]:
    """Three files and an output directory, as flags."""
    return {
        "--real": str(write_csv("real.csv", make_pairs(160, seed=1))),
        "--synthetic": str(write_csv("synthetic.csv", make_pairs(80, seed=2))),
        "--holdout": str(write_csv("holdout.csv", make_pairs(80, seed=3))),
        "--output_dir": str(tmp_path / "out"),
    }


def words(flags: dict[str, str], *more: str) -> list[str]:
    """The flags as a command line."""
    return [word for pair in flags.items() for word in pair] + list(more)


def metrics(flags: dict[str, str]) -> dict[str, Any]:
    """The content of metrics.json."""
    content = json.loads((Path(flags["--output_dir"]) / "metrics.json").read_text(), parse_constant=_refuse)
    assert isinstance(content, dict)
    return content


def _is_of_synthetic(row: dict[str, Any], name: str) -> bool:
    return bool(row["name"] == name and row["train_on"] == "synthetic")


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} stands in metrics.json")


def write_parquet(path: Path, texts: Sequence[str | None], labels: Sequence[Any]) -> str:
    """A parquet file with the columns text and label."""
    pq.write_table(pa.table({"text": pa.array(texts, pa.string()), "label": labels}), path)
    return str(path)


def refusal(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be refused with exit code 2 and one line; return the line."""
    assert run(main, argv) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert captured.out == ""
    assert lines[-1].startswith("error: ")
    assert not any("Traceback" in line for line in lines)
    assert sum(line.startswith("error: ") for line in lines) == 1
    return lines[-1]


def test_three_files_give_metrics_and_a_table(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    main(words(files))
    shown, content = capsys.readouterr(), metrics(files)
    assert list(content) == ["version", "inputs", "settings", "warnings", "verdict", "metrics"]
    assert content["version"] == 1
    assert content["inputs"]["real"]["file"] == "real.csv"
    assert content["inputs"]["real"]["n"] == content["inputs"]["real"]["n_used"] == 160
    assert content["inputs"]["holdout"]["labels"] == ["bad", "good"]
    assert {row["group"] for row in content["metrics"]} == {
        "utility", "label_fidelity", "validity", "memorisation", "control", "two_sample", "divergence", "form",
        "diversity",
    }  # fmt: skip
    assert len({tuple(row) for row in content["metrics"]}) == 1  # every row has the same keys
    assert "warning: baseline" in shown.out.splitlines()[0]
    assert shown.out.index("Utility") < shown.out.index("Memorisation")
    assert "load:" in shown.err
    done = RunDirectory.open(files["--output_dir"], kind="evaluate")
    assert done.is_finished
    assert done.manifest["headline"]["accuracy"]["value"] > 0.7
    assert set(done.manifest["timings"]) == {"load", "utility", "fidelity", "diversity", "validity", "memorisation"}


def test_metrics_are_for_the_owner_alone(files: dict[str, str]) -> None:
    main(words(files, "--downstream", "nb"))
    assert stat.S_IMODE((Path(files["--output_dir"]) / "metrics.json").stat().st_mode) == 0o600


def test_json_prints_metrics_json_and_nothing_else(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["--json", *words(files, "--downstream", "nb")])
    assert json.loads(capsys.readouterr().out) == metrics(files)


def test_nothing_private_is_publishable_and_a_public_holdout_changes_that(files: dict[str, str]) -> None:
    main(words(files, "--downstream", "nb"))
    for row in metrics(files)["metrics"]:
        assert row["publishable"] == (row["reads"] == ["synthetic"])
    files["--output_dir"] += "_public"
    main(words(files, "--downstream", "nb", "--holdout_is_public"))
    for row in metrics(files)["metrics"]:
        assert row["publishable"] == ("real" not in row["reads"])
        assert not (row["publishable"] and row["ceiling"])


@pytest.mark.parametrize("more", [(), ("--holdout_is_public",)])
def test_a_copy_and_a_repeated_text_are_named_whoever_may_see_the_rows(
    files: dict[str, str], make_pairs: Make, write_csv: Make, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    files["--synthetic"] = str(write_csv("copied.csv", make_pairs(160, seed=1)[:16] * 5))
    main(words(files, "--downstream", "nb", *more))
    findings = [finding["finding"] for finding in metrics(files)["verdict"]]
    assert {"verbatim_copy", "mode_collapse"} <= set(findings)
    assert "verbatim_copy: most synthetic texts are copies" in capsys.readouterr().out


def test_real_text_in_the_place_of_synthetic_text_raises_no_finding(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(words(files, "--downstream", "nb"))
    assert metrics(files)["verdict"] == []
    shown = capsys.readouterr().out
    assert "Findings: none. That is not praise" in shown
    assert "c2st_auc" in shown


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--mauve_buckets", "1"), "mauve_buckets=1"),
        (("--max_records", "5"), "max_records=5"),
        (("--fast", "true"), "fast"),
        (("--embedding_model", "/nowhere"), "embedding_model=/nowhere"),
        (("--reference_model", "/nowhere"), "reference_model=/nowhere"),
    ],
)
def test_a_model_or_a_cap_that_cannot_be_is_one_line(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], more: tuple[str, str], expected: str
) -> None:
    assert run(main, words(files, "--downstream", "nb", *more)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert expected in lines[0]


def test_the_same_command_again_does_nothing(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    main(words(files, "--downstream", "nb"))
    path = Path(files["--output_dir"]) / "metrics.json"
    before = path.stat().st_mtime_ns
    capsys.readouterr()
    main(words(files, "--downstream", "nb"))
    assert "finished already" in capsys.readouterr().err
    assert path.stat().st_mtime_ns == before


def test_the_same_numbers_come_out_whatever_the_order_of_the_files(
    files: dict[str, str], make_pairs: Make, write_csv: Make
) -> None:
    main(words(files, "--downstream", "nb"))
    first = metrics(files)
    files |= {
        "--synthetic": str(write_csv("synthetic_2.csv", make_pairs(80, seed=2)[::-1])),
        "--output_dir": files["--output_dir"] + "_2",
    }
    main(words(files, "--downstream", "nb"))
    assert metrics(files)["metrics"] == first["metrics"]


def test_other_records_under_the_same_name_are_refused(
    files: dict[str, str], make_pairs: Make, write_csv: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    main(words(files, "--downstream", "nb"))
    capsys.readouterr()
    write_csv("synthetic.csv", make_pairs(80, seed=77))
    assert "synthetic changed" in refusal(words(files, "--downstream", "nb"), capsys)


def test_a_foreign_directory_is_refused_and_untouched(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(files["--output_dir"])
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    assert "not empty" in refusal(words(files), capsys)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_a_wrong_column_leaves_no_directory_behind(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(words(files, "--text_column", "review"), capsys)
    assert "real" in line
    assert "review" in line
    assert not Path(files["--output_dir"]).exists()


@pytest.mark.parametrize(
    ("flag", "content", "expected"),
    [
        ("--synthetic", "text,label\n", "no records"),
        ("--synthetic", "", "is empty"),
        ("--synthetic", 'text,label\n" ",good\n', "holds text"),
        ("--synthetic", "body,label\na b,good\n", "no column 'text'"),
        ("--holdout", "body,label\na b,good\n", "no column 'text'"),
        ("--holdout", "text,label\na b,\n", "label"),
        ("--real", "text,label\n,good\n", "text"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, content: str, expected: str
) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text(content)
    line = refusal(words(files | {flag: str(bad)}), capsys)
    assert line.startswith(f"error: {flag.lstrip('-')}: ")
    assert expected in line


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--downstream", "bert"), "downstream"),
        (("--seeds", "0"), "seeds"),
        (("--max_records", "3"), "max_records"),
        (("--dp_direct_epsilon", "0"), "dp_direct_epsilon"),
        (("--dp_direct_delta", "1"), "dp_direct_delta"),
        (("--worst_cases", "-1"), "worst_cases"),
        (("--downstream", "encoder"), "downstream_encoder"),
        (("--downstream_encoder", "x"), "downstream does not list encoder"),
        (("--seedz", "3"), "seedz"),
        (("--holdout", "/nowhere.csv"), "no such file"),
        (("--real", "."), "not a run directory"),
        (("--label_column", "text"), "label_column=text is the text of real too"),
        (("--synthetic_label_column", "text"), "text of synthetic too"),
        (("--output_dir", ""), "output_dir is empty"),
    ],
)
def test_a_wrong_flag_is_one_line(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], more: tuple[str, str], expected: str
) -> None:
    assert expected in refusal(words(files, *more), capsys)


def test_holdout_is_required(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    del files["--holdout"]
    assert "holdout" in refusal(words(files), capsys)


def test_without_labels_utility_is_left_out_and_memorisation_is_not(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain.csv"
    plain.write_text("text\nsome film\nother film\n")
    main(words(files | {"--synthetic": str(plain)}, "--label_column", "null"))
    content = metrics(files)
    assert "utility is left out: label_column is null" in content["warnings"]
    assert {row["group"] for row in content["metrics"]} == {"diversity", "validity", "memorisation", "control"}
    assert "Memorisation" in capsys.readouterr().out


@pytest.mark.parametrize("role", ["real", "synthetic", "holdout"])
def test_a_file_without_labels_leaves_utility_out_and_says_so(
    files: dict[str, str], make_pairs: Make, tmp_path: Path, role: str
) -> None:
    plain = tmp_path / "plain.csv"
    plain.write_text("id,text\n" + "".join(f"{i},{text}\n" for i, (text, _) in enumerate(make_pairs(40, seed=6))))
    main(words(files | {f"--{role}": str(plain)}))
    content = metrics(files)
    assert f"utility is left out: {role} has no labels" in content["warnings"]
    assert any(line.startswith(f"{role}: read without labels") and "id, text" in line for line in content["warnings"])
    assert "utility" not in {row["group"] for row in content["metrics"]}
    assert "exact_match" in {row["name"] for row in content["metrics"]}


def test_a_label_column_that_was_named_has_to_be_there(
    files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no column 'stars'" in refusal(words(files, "--label_column", "stars"), capsys)
    assert "no column 'stars'" in refusal(words(files, "--holdout_label_column", "stars"), capsys)


def test_two_files_of_a_stranger_with_odd_columns(
    make_pairs: Make, write_csv: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, labels = zip(*make_pairs(90, seed=2), strict=True)
    table = pa.table({"generated text": texts, "Class": labels, "extra": range(90)})
    pq.write_table(table, tmp_path / "s.parquet")
    held_out = "".join(
        json.dumps({"Body": text, "Rating (1-2)": label, "x": None}) + "\n" for text, label in make_pairs(80, seed=3)
    )
    (tmp_path / "test.jsonl").write_text(held_out)
    flags = {
        "--real": str(write_csv("train.csv", make_pairs(160, seed=1), header=("Review Text", "my label"))),
        "--synthetic": str(tmp_path / "s.parquet"), "--holdout": str(tmp_path / "test.jsonl"),
        "--output_dir": str(tmp_path / "out"), "--text_column": "Review Text", "--label_column": "my label",
        "--holdout_text_column": "Body", "--holdout_label_column": "Rating (1-2)",
        "--synthetic_text_column": "generated text", "--synthetic_label_column": "Class",
        "--dp_direct_epsilon": "4",
    }  # fmt: skip
    main(words(flags))
    content, shown = metrics(flags), capsys.readouterr().out
    by_name = {(row["name"], row["train_on"], row["model"]): row for row in content["metrics"]}
    assert by_name["accuracy", "synthetic", "lr"]["value"] > 0.7
    assert by_name["accuracy", "dp_direct", "nb"]["value"] > 0.4
    assert not by_name["accuracy", "dp_direct", "nb"]["publishable"]
    assert content["settings"]["dp_direct"]["epsilon"] == 4
    assert by_name["nearest_in_train", "real_sample", None]["n"] == 90
    assert "real, with DP directly" in shown
    assert "Nearest real record" in shown


def test_direct_training_is_left_out_with_a_reason_where_no_epsilon_is_known(files: dict[str, str]) -> None:
    main(words(files, "--downstream", "nb"))
    (row,) = [r for r in metrics(files)["metrics"] if (r["name"], r["train_on"]) == ("accuracy", "dp_direct")]
    assert row["value"] is None
    assert "--dp_direct_epsilon" in row["reason"]


def test_a_copy_is_said_first_and_its_worst_cases_stay_inside(
    files: dict[str, str], make_pairs: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    files["--synthetic"] = files["--real"]
    main(words(files, "--downstream", "nb"))
    shown, content = capsys.readouterr(), metrics(files)
    assert "160 of 160 synthetic texts are verbatim copies" in content["warnings"][0]
    worst = Path(files["--output_dir"]) / "memorisation_worst.jsonl"
    assert stat.S_IMODE(worst.stat().st_mode) == 0o600
    cases = [json.loads(line) for line in worst.read_text().splitlines()]
    assert len(cases) == 20
    assert cases[0]["characters"] >= cases[-1]["characters"] > 50
    text = cases[0]["real_text"]
    assert text in {text for text, _ in make_pairs(160, seed=1)}
    assert text not in json.dumps(content) + shown.out + shown.err


def test_one_class_only_leaves_utility_out(files: dict[str, str], make_pairs: Make, write_csv: Make) -> None:
    files["--holdout"] = str(write_csv("one.csv", make_pairs(40, seed=5, labels=("good",))))
    main(words(files))
    assert "utility is left out: all holdout records have one label" in metrics(files)["warnings"]


def test_label_sets_that_differ_are_said(files: dict[str, str], make_pairs: Make, write_csv: Make) -> None:
    renamed = [(text, f"label_{label}") for text, label in make_pairs(60, seed=2)]
    files["--synthetic"] = str(write_csv("renamed.csv", renamed))
    main(words(files, "--downstream", "nb"))
    content = metrics(files)
    assert any("none of its 2 labels is one of the holdout's 2" in line for line in content["warnings"])
    (outside,) = [row for row in content["metrics"] if _is_of_synthetic(row, "invalid_label_share")]
    assert outside["value"] == 1


def test_synthetic_columns_may_keep_their_own_names(files: dict[str, str], make_pairs: Make, write_csv: Make) -> None:
    for role, seed in (("real", 1), ("holdout", 3)):
        files[f"--{role}"] = str(write_csv(f"{role}_2.csv", make_pairs(80, seed=seed), header=("review", "stars")))
    main(words(files, "--text_column", "review", "--label_column", "stars", "--downstream", "nb"))
    assert metrics(files)["inputs"]["synthetic"]["n_used"] == 80


def test_hostile_synthetic_text_is_measured_and_never_printed(
    files: dict[str, str], tmp_path: Path, make_pairs: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = make_pairs(40, seed=2)
    texts: list[str | None] = [text for text, _ in pairs]
    labels: list[str | None] = [label for _, label in pairs]
    texts += ["\x00\x01", "x" * 1_000_000, "\U0001f600" * 80, "", None, "<script>[red]alert[/red]", "word " * 20_000]
    labels += ["good", "bad", "good", "bad", "good", "[bold]\x1b[31m<evil>", None]
    files["--synthetic"] = write_parquet(tmp_path / "hostile.parquet", texts, labels)
    main(words(files, "--seeds", "1"))
    content, shown = metrics(files), capsys.readouterr()
    (empty,) = [row for row in content["metrics"] if _is_of_synthetic(row, "empty_share")]
    assert empty["value"] == pytest.approx(2 / 47)
    for part in ("script", "evil", "\x1b", "\x00", "xxxxx"):
        assert part not in shown.out + shown.err


def test_integer_labels_of_a_parquet_file_meet_those_of_a_csv_file(
    files: dict[str, str], tmp_path: Path, make_pairs: Make, write_csv: Make
) -> None:
    number = {"good": 1, "bad": 0}
    for role, seed in (("real", 1), ("holdout", 3)):
        rows = [(text, str(number[label])) for text, label in make_pairs(80, seed=seed)]
        files[f"--{role}"] = str(write_csv(f"{role}_3.csv", rows))
    texts, labels = zip(*make_pairs(60, seed=2), strict=True)
    files["--synthetic"] = write_parquet(tmp_path / "s.parquet", texts, [number[label] for label in labels])
    main(words(files, "--downstream", "nb"))
    assert metrics(files)["inputs"]["synthetic"]["labels"] == ["0", "1"]
    assert not any("label" in line for line in metrics(files)["warnings"] if not line.startswith("baseline"))


def test_the_command_of_the_first_page_needs_no_output_dir(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The name in the current folder is kept for one evaluation: another is refused before anything is measured."""
    monkeypatch.chdir(tmp_path)
    del files["--output_dir"]
    assert run(main, words(files, "--downstream", "nb")) == 0
    assert (tmp_path / "evaluation" / "metrics.json").is_file()
    capsys.readouterr()
    assert "output_dir" in refusal(words(files, "--downstream", "lr"), capsys)


def test_no_number_of_the_tables_is_cut_or_lacks_its_real_value(
    files: dict[str, str], make_pairs: Make, write_csv: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything right (the widest numbers), three families, narrow screen; publishable rows lost their ceiling."""
    for number, role in enumerate(("real", "synthetic", "holdout"), start=1):
        pairs = [(f"a {label} one, {text}.", label) for text, label in make_pairs(120, seed=number, cue=1.0)]
        files[f"--{role}"] = str(write_csv(f"{role}_wide.csv", pairs))
    main(words(files))
    shown = capsys.readouterr().out
    assert "1.000 [" in shown
    assert "\u2026" not in shown
    for name in ("truncated_share", "duplicate_share"):
        for line in (line for line in shown.splitlines() if line.startswith(name)):
            assert " - " not in line.split("]", 1)[1]


def test_copies_of_the_holdout_are_named_and_not_praised(files: dict[str, str]) -> None:
    files["--synthetic"] = files["--holdout"]
    main(words(files, "--downstream", "nb"))
    content = metrics(files)
    assert content["verdict"][0]["finding"] == "verbatim_copy"
    assert any("80 of 80 synthetic texts are copies of holdout records" in line for line in content["warnings"])


def test_all_right_is_not_all_sure(files: dict[str, str], write_csv: Make) -> None:
    for number, role in enumerate(("real", "synthetic", "holdout")):
        pairs = [(f"{label} text {i + 1000 * number}", label) for i in range(60) for label in ("good", "bad")]
        files[f"--{role}"] = str(write_csv(f"{role}_easy.csv", pairs))
    main(words(files, "--downstream", "nb"))
    rows = metrics(files)["metrics"]
    for name in ("accuracy", "macro_f1"):
        (found,) = [row for row in rows if _is_of_synthetic(row, name)]
        assert found["value"] == 1
        assert 0.9 < found["low"] < 1
    (ratio,) = [row for row in rows if row["name"] == "accuracy_ratio" and row["train_on"] == "real"]
    assert 0.9 < ratio["low"] < ratio["value"] < ratio["high"] < 1.1


def test_fewer_distinct_texts_than_buckets_is_a_line_and_no_noise(
    files: dict[str, str], write_csv: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    for role in ("real", "synthetic", "holdout"):
        pairs = [(f"{role} was {label}", label) for label in ("good", "bad")] * 60
        files[f"--{role}"] = str(write_csv(f"{role}_few.csv", pairs))
    main(words(files, "--downstream", "nb", "--mauve_buckets", "20"))
    line = "mauve: holdout and synthetic hold 4 distinct texts, too few to fill 20 buckets"
    assert line in metrics(files)["warnings"]
    assert "Warning" not in capsys.readouterr().err


def test_flags_override_a_config_file(files: dict[str, str], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({key.lstrip("-"): path for key, path in files.items()} | {"downstream": "lr"}))
    main(["--config", str(recipe), "--downstream", "nb"])
    assert metrics(files)["settings"]["downstream"] == "nb"


def test_the_recipe_names_only_keys_that_exist() -> None:
    recipe = yaml.safe_load((Path(__file__).parents[2] / "eval" / "recipes" / "utility.yaml").read_text())
    assert EvaluateConfig(**recipe).seeds == 5


@pytest.fixture
def runs(tmp_path: Path, make_pairs: Make, write_csv: Make) -> dict[str, RunDirectory]:
    """A finished finetune run, a sample of it, and a sample of the untuned model."""
    data = DataConfig(train_file=str(write_csv("all.csv", make_pairs(200, seed=1))), labels=["bad", "good"])
    config = {"data": {"train_file": data.train_file, "labels": ["bad", "good"]}}
    tuned = RunDirectory.create(tmp_path / "tuned", kind="finetune", config=config)
    tuned.finish(data={"fingerprint": load_split(data).train.fingerprint})
    found = {"tuned": tuned}
    for name, untuned, seed in (("sample", False, 5), ("untuned", True, 6)):
        found[name] = RunDirectory.create(tmp_path / name, kind="sample", config={"name": name}, parents=[tuned])
        texts, labels = zip(*make_pairs(50, seed=seed, cue=0.0 if untuned else 0.3), strict=True)
        write_parquet(found[name].path / "synthetic.parquet", texts, labels)
        found[name].finish(untuned=untuned)
    return found


def test_run_directories_stand_for_their_records(runs: dict[str, RunDirectory], tmp_path: Path) -> None:
    flags = {
        "--real": str(runs["tuned"].path),
        "--holdout": str(runs["tuned"].path),
        "--synthetic": str(runs["sample"].path),
        "--baseline": str(runs["untuned"].path),
        "--output_dir": str(tmp_path / "out"),
    }
    main(words(flags, "--downstream", "nb"))
    content = metrics(flags)
    assert content["inputs"]["real"]["n"] + content["inputs"]["holdout"]["n"] == 200
    assert content["inputs"]["real"]["run_id"] == runs["tuned"].manifest["run_id"]
    left_out = ("embeddings: tf-idf", "bits per byte are left out", "mauve is left out", "fidelity: compared at 28")
    assert [line for line in content["warnings"] if not line.startswith(left_out)] == []
    parents = RunDirectory.open(flags["--output_dir"]).manifest["parents"]
    assert [parent["kind"] for parent in parents] == ["finetune", "sample", "sample"]


def test_tuned_text_is_refused_as_the_epsilon_zero_row(
    files: dict[str, str], runs: dict[str, RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(words(files, "--baseline", str(runs["sample"].path)), capsys)
    assert line.startswith("error: baseline: was sampled from a tuned model")


def test_a_run_of_the_wrong_kind_is_one_line(
    files: dict[str, str], runs: dict[str, RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is the output of 'finetune'" in refusal(words(files | {"--synthetic": str(runs["tuned"].path)}), capsys)
    assert "is the output of 'sample'" in refusal(words(files | {"--real": str(runs["sample"].path)}), capsys)


def test_records_that_changed_since_the_run_are_refused(
    files: dict[str, str],
    runs: dict[str, RunDirectory],
    make_pairs: Make,
    write_csv: Make,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_csv("all.csv", make_pairs(200, seed=99))
    assert "not what they were" in refusal(words(files | {"--real": str(runs["tuned"].path)}), capsys)


def test_an_unfinished_sample_is_refused(
    files: dict[str, str], runs: dict[str, RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    runs["sample"].begin()
    assert "not finished" in refusal(words(files | {"--synthetic": str(runs["sample"].path)}), capsys)


def test_a_sample_of_another_run_is_said(files: dict[str, str], runs: dict[str, RunDirectory], tmp_path: Path) -> None:
    other = RunDirectory.create(tmp_path / "other", kind="finetune", config=runs["tuned"].config() | {"x": 1})
    other.finish(data=runs["tuned"].manifest["data"])
    files |= {"--real": str(other.path), "--synthetic": str(runs["sample"].path)}
    main(words(files, "--downstream", "nb"))
    assert any(line.startswith("real: is another run") for line in metrics(files)["warnings"])
