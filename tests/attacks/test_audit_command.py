"""``safesynthdp audit``: what people type, what they get, what is refused and in which words."""

import csv
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safesynthdp.attacks.audit_command import main
from safesynthdp.cli import run

ONE_RUN = ["one-run", "--canaries", "1000", "--guesses", "100", "--correct", "80"]
ERRORS = {"--false_positives": "1", "--nonmembers": "1000", "--false_negatives": "2", "--members": "900"}
TRIALS = ["clopper-pearson", *(word for pair in ERRORS.items() for word in pair)]
Row = dict[str, Any]


def write_csv(path: Path, rows: Sequence[Row]) -> str:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def coin_rows(num: int = 400, *, leak: float = 0.0, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    coins = rng.random(num) < 0.5
    scores = rng.normal(size=num) + leak * coins
    return [
        {"record_id": f"r{i}", "score": float(s), "member": bool(c)}
        for i, (s, c) in enumerate(zip(scores, coins, strict=True))
    ]


def answer(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Run with --json; stdout must be one strict JSON object, and a refuted claim alone is a failure."""
    code = run(main, [*argv, "--json"])
    out, err = capsys.readouterr()
    assert out.count("\n") == 1, err
    value = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert isinstance(value, dict)
    assert (code, err[:28]) == ((1, "error: the claim of epsilon ") if value["verdict"] == "refuted" else (0, ""))
    return value


def refusal(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run, expect exit code 2, one line on stderr and nothing on stdout."""
    assert run(main, argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").strip()


def test_one_run_prints_its_inputs_and_its_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    facts = answer(ONE_RUN, capsys)
    assert facts["method"] == "one-run"
    assert {key: facts[key] for key in ("canaries", "guesses", "correct", "delta", "alpha")} == {
        "canaries": 1000,
        "guesses": 100,
        "correct": 80,
        "delta": 1e-5,
        "alpha": 0.05,
    }
    assert facts["epsilon_lower_bound"] == pytest.approx(0.95532, abs=1e-5)
    assert facts["epsilon_attainable"] == pytest.approx(3.46538, abs=1e-5)
    assert facts["verdict"] is None
    assert facts["epsilon_claimed"] is None
    assert facts["p_value"] < 0.001


def test_a_claim_moves_the_p_value_to_it_and_adds_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    facts = answer([*ONE_RUN, "--claimed_epsilon", "1", "--delta", "0"], capsys)
    assert facts["p_value"] == pytest.approx(0.0715562, abs=1e-6)
    assert (facts["epsilon_claimed"], facts["verdict"]) == (1.0, "consistent")
    assert answer([*ONE_RUN, "--claimed_epsilon", "0.5"], capsys)["verdict"] == "refuted"
    assert answer([*ONE_RUN, "--claimed_epsilon", "8"], capsys)["verdict"] == "no_power"


def test_a_refuted_claim_is_an_exit_code_for_scripts_after_everything_was_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_csv(tmp_path / "x.csv", coin_rows(1000, leak=6.0))
    for argv in (ONE_RUN, TRIALS, ["scores", path]):
        assert run(main, [*argv, "--claimed_epsilon", "0.5"]) == 1
        out, err = capsys.readouterr()
        assert "claim epsilon 0.5: refuted" in out
        assert err.startswith("error: the claim of epsilon 0.5 at delta 1e-05 is refuted: epsilon is at least ")
        assert err.count("\n") == 1
        assert run(main, [*argv, "--claimed_epsilon", "9"]) == 0
        assert run(main, argv) == 0, "no claim, nothing to refute"
        capsys.readouterr()


def test_clopper_pearson_prints_its_inputs_its_limits_and_its_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    facts = answer([*TRIALS, "--delta", "0", "--claimed_epsilon", "3"], capsys)
    assert facts["method"] == "clopper-pearson"
    assert facts["fpr_upper"] == pytest.approx(0.005559, abs=1e-6)
    assert facts["epsilon_lower_bound"] == pytest.approx(
        max(
            np.log((1 - facts["fnr_upper"]) / facts["fpr_upper"]), np.log((1 - facts["fpr_upper"]) / facts["fnr_upper"])
        )
    )
    assert facts["epsilon_lower_bound"] < facts["epsilon_attainable"]
    assert facts["verdict"] == "refuted"
    assert [facts[key] for key in ("false_positives", "nonmembers", "false_negatives", "members")] == [1, 1000, 2, 900]
    assert "independent trials" in facts["notes"][0]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_leaking_score_file_gives_metrics_and_a_bound(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, path = coin_rows(leak=4.0), tmp_path / f"scores.{suffix}"
    if suffix == "csv":
        write_csv(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    facts = answer(["scores", str(path)], capsys)
    assert facts["num_members"] + facts["num_nonmembers"] == facts["canaries"] == 400
    assert facts["guesses"] == facts["correct"] == 40
    low, high = facts["auc_interval"]
    assert 0.99 < low <= facts["auc"] <= high <= 1
    assert set(facts["tpr_at_fpr"]) == {"0.1", "0.01", "0.001"}
    assert facts["tpr_at_fpr"]["0.001"] is None
    assert facts["method"] == "one-run"
    assert facts["epsilon_lower_bound"] == pytest.approx(facts["epsilon_attainable"])
    assert facts["epsilon_lower_bound"] > 2
    assert facts["p_value"] < 1e-3


def test_csv_and_parquet_give_the_same_answer_whatever_the_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row | {"score": round(row["score"])} for row in coin_rows(leak=1.0)]  # many ties
    first = answer(["scores", write_csv(tmp_path / "a.csv", rows)], capsys)
    pq.write_table(pa.Table.from_pylist(rows[::-1]), tmp_path / "b.parquet")
    assert answer(["scores", str(tmp_path / "b.parquet")], capsys) == first


def test_scores_that_are_all_equal_show_nothing_even_with_members_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Row] = [{"score": 1, "member": int(i < 500)} for i in range(1000)]
    facts = answer(["scores", write_csv(tmp_path / "equal.csv", rows)], capsys)
    assert (facts["auc"], facts["tpr_at_fpr"]["0.01"]) == (0.5, 0.0)
    assert facts["epsilon_lower_bound"] < 0.5
    assert facts["correct"] < 75


def test_other_columns_and_the_upper_side_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"s": row["score"], "in": row["member"], "score": "text"} for row in coin_rows(leak=4.0)]
    argv = ["scores", write_csv(tmp_path / "x.csv", rows), "--score_column", "s", "--member_column", "in"]
    assert answer(argv, capsys)["side"] == "both"
    top = answer([*argv, "--side", "top"], capsys)
    assert (top["side"], top["guesses"], top["correct"]) == ("top", 40, 40)


@pytest.mark.parametrize("words", [("1", "0"), ("true", "false"), ("True", "False"), ("TRUE", "FALSE"), ("1.0", "0.0")])
def test_membership_may_be_written_in_several_ways(
    words: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Row] = [{"score": i, "member": words[i % 2]} for i in range(10)]
    assert answer(["scores", write_csv(tmp_path / "x.csv", rows)], capsys)["num_members"] == 5


def test_a_member_count_that_fair_coins_cannot_give_has_no_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Row] = [{"score": i, "member": int(i >= 100)} for i in range(1000)]
    facts = answer(["scores", write_csv(tmp_path / "x.csv", rows), "--claimed_epsilon", "1"], capsys)
    keys = ("epsilon_lower_bound", "epsilon_attainable", "p_value", "verdict")
    assert [facts[key] for key in keys] == [None] * 4
    assert facts["auc"] == 1.0
    assert "900 members of 1000 records cannot come from fair coins" in facts["notes"][0]
    assert run(main, ["scores", str(tmp_path / "x.csv")]) == 0
    printed = capsys.readouterr().out
    assert "AUC 1.0000" in printed
    assert "no epsilon bound" in printed
    assert "epsilon is at least" not in printed


def test_people_read_the_bound_beside_what_was_attainable(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, [*ONE_RUN, "--claimed_epsilon", "4"]) == 0
    printed = capsys.readouterr().out
    assert "epsilon is at least 0.9553 of at most 3.4654" in printed
    assert "claim epsilon 4: no_power" in printed
    assert "passed" not in printed


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "METHOD is missing"),
        (["two-run"], "METHOD: invalid choice: 'two-run'"),
        (["one-run", "--canaries", "10"], "guesses, correct is missing"),
        ([*ONE_RUN, "--correct", "101"], "correct=101"),
        ([*ONE_RUN, "--guesses", "1001"], "guesses=1001"),
        ([*ONE_RUN, "--canaries", "1e3"], "canaries: invalid int value: '1e3'"),
        ([*ONE_RUN, "--can", "10"], "unrecognized arguments: --can"),
        ([*ONE_RUN, "--alpha", "1"], "alpha=1.0"),
        ([*ONE_RUN, "--alpha", "nan"], "alpha=nan"),
        ([*ONE_RUN, "--delta", "1"], "delta=1.0"),
        ([*ONE_RUN, "--delta", "-0.1"], "delta=-0.1"),
        ([*ONE_RUN, "--claimed_epsilon", "-1"], "claimed_epsilon=-1.0"),
        ([*ONE_RUN, "--claimed_epsilon", "inf"], "claimed_epsilon=inf"),
        ([*TRIALS, "--false_positives", "1001"], "false_positives=1001"),
        ([*TRIALS, "--false_negatives", "-1"], "false_negatives=-1"),
        ([*TRIALS, "--members", "0"], "members=0"),
        (["scores"], "FILE is missing"),
        (["scores", "nowhere.csv"], "nowhere.csv is not a file"),
        (["scores", "nowhere.csv", "--side", "left"], "side: invalid choice: 'left'"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_line(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(argv, capsys).startswith(words)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("score", "nan", "score is NaN"),
        ("score", "inf", "score is infinite"),
        ("score", "-Infinity", "score is infinite"),
        ("score", "1e999", "score is infinite"),
        ("score", "", "score is empty"),
        ("score", "my secret", "score is not a number"),
        ("score", "1_0", "score is not a number"),
        ("member", "", "member is neither true nor false"),
        ("member", "2", "member is neither true nor false"),
        ("member", "yes", "member is neither true nor false"),
        ("member", "0.5", "member is neither true nor false"),
    ],
)
@pytest.mark.parametrize("with_ids", [True, False])
def test_a_broken_cell_is_refused_with_its_row_and_its_record(
    column: str, value: str, words: str, with_ids: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = coin_rows(20)
    rows[6][column] = value
    if not with_ids:
        rows = [{key: row[key] for key in ("score", "member")} for row in rows]
    line = refusal(["scores", write_csv(tmp_path / "x.csv", rows)], capsys)
    where = "row 7 (record_id r6)" if with_ids else "row 7"
    assert f"x.csv, {where}: {words}" in line
    assert "secret" not in line


@pytest.mark.parametrize(
    ("column", "values", "row"),
    [
        ("score", [0.5, None, 1.0, 2.0], 2),
        ("score", [0.5, 1.0, float("nan"), 2.0], 3),
        ("score", [True, False, True, False], 1),
        ("score", ["a", "b", "c", "d"], 1),
        ("member", [True, False, None, True], 3),
        ("member", [1, 0, 1, 7], 4),
    ],
)
def test_a_broken_parquet_cell_is_refused_with_its_row_and_its_record(
    column: str, values: list[Any], row: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = {"record_id": [10, 11, 12, 13], "score": [0.1, 0.2, 0.3, 0.4], "member": [1, 0, 1, 0]} | {column: values}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    line = refusal(["scores", str(tmp_path / "x.parquet")], capsys)
    assert f"row {row} (record_id {9 + row}): {column} is" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("score,member\n", "no rows"),
        ("score,member\n1,1\n2,true\n", "all 2 records are members"),
        ("score,member\n1,0\n2,0\n", "all 2 records are non-members"),
        ("score,label\n1,0\n2,1\n", "has no column member; it has score, label"),
        ("logit,member\n1,0\n2,1\n", "has no column score"),
        ("score,score,member\n1,1,0\n2,2,1\n", "the column score stands twice"),
        ("score,member\n1,0\n2\n", "row 2: 1 fields, the header has 2"),
        ("score,member\n1,0\n\n2,1\n", "row 2: 0 fields, the header has 2"),
        ('score,member\n"1,0\n', "is not valid csv"),
        ("record_id,score,member\na,1,0\nb,2,1\na,3,1\n", "row 3 (record_id a): row 1 has the same id"),
        ("record_id,score,member\na,1,0\n,2,1\n", "row 2: record_id is empty"),
        ("attack,score,member\nloss,1,0\nref,2,1\n", "column attack holds 2 values"),
        ("target_id,score,member\n1,1,0\n2,2,1\n", "column target_id holds 2 values"),
        ("channel,score,member\nmodel,1,0\ntext,2,1\n", "column channel holds 2 values"),
    ],
)
def test_a_file_that_is_no_table_of_one_attack_is_refused(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text, encoding="utf-8")
    assert words in refusal(["scores", str(path)], capsys)


def test_files_of_another_kind_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text("{}")
    assert "give a .csv or .parquet file" in refusal(["scores", str(tmp_path / "x.json")], capsys)
    (tmp_path / "x.parquet").write_text("no parquet")
    assert "cannot be read as parquet" in refusal(["scores", str(tmp_path / "x.parquet")], capsys)
    (tmp_path / "x.csv").write_bytes(b"score,member\n\xff,1\n")
    assert "is not UTF-8" in refusal(["scores", str(tmp_path / "x.csv")], capsys)
    assert "is not a file" in refusal(["scores", str(tmp_path)], capsys)


def test_a_csv_from_a_spreadsheet_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbfscore,member\r\n1.5,TRUE\r\n-2,FALSE\r\n\r\n")
    assert answer(["scores", str(tmp_path / "x.csv")], capsys)["auc"] == 1.0


def test_the_audit_answers_without_loading_torch_or_sklearn(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "x.csv", coin_rows())
    program = (
        "import sys; from safesynthdp.cli import run; from safesynthdp.attacks.audit_command import main; "
        f"code = run(main, ['scores', {path!r}, '--json']); "
        "heavy = {'torch', 'transformers', 'sklearn', 'datasets'} & set(sys.modules); sys.exit(code or len(heavy))"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - started < 10
