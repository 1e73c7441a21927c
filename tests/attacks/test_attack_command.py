"""``safesynthdp attack score``: controls, files, refusals."""

import json
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from safesynthdp.attacks import model_scores
from safesynthdp.attacks.command import AttackScoreConfig, main, score_run
from safesynthdp.attacks.signals import ATTACKS
from safesynthdp.cli import run
from safesynthdp.errors import ConfigError, LedgerMismatch, SafeSynthError
from safesynthdp.records import Records, Split
from safesynthdp.runs import RunDirectory


def rows_of(out: RunDirectory) -> dict[str, dict[str, Any]]:
    return {row["attack"]: row for row in json.loads((out.path / "audit.json").read_text())["rows"]}


def config_for(finished_run: RunDirectory, tmp_path: Path, **changed: Any) -> AttackScoreConfig:
    return AttackScoreConfig(run=str(finished_run.path), output_dir=str(tmp_path / "out"), **changed)


def refusal(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run(main, argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.removeprefix("error: ").strip()


def test_a_model_that_memorised_its_members_is_found_out(
    finished_run: RunDirectory, split: Split, make_scorer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, base = make_scorer(seed=1, memorised=set(split.train.record_ids)), make_scorer(seed=2)
    out = score_run(config_for(finished_run, tmp_path), finished_run, target=target, base=base)
    rows = rows_of(out)
    assert min(rows[attack]["auc"] for attack in ATTACKS) > 0.99
    assert rows["loss"]["tpr_at_fpr"]["0.01"] > 0.9
    assert rows["baseline"]["benchmark_valid"] is True
    assert rows["loss"]["num_members"] == rows["loss"]["num_nonmembers"] > 80
    best = out.manifest["headline"]
    assert best["auc"] == max(rows[attack]["auc"] for attack in ATTACKS)
    assert best["alpha"] == pytest.approx(0.05 / 6), "the best of six, picked with the labels"
    assert best["auc_interval"][0] <= rows[best["attack"]]["auc_interval"][0]
    assert "AUC 1.000" in capsys.readouterr().out


def test_a_model_that_saw_nothing_is_at_chance(finished_run: RunDirectory, make_scorer: Any, tmp_path: Path) -> None:
    target, base = make_scorer(seed=1), make_scorer(seed=2)
    rows = rows_of(score_run(config_for(finished_run, tmp_path), finished_run, target=target, base=base))
    assert set(rows) == {*ATTACKS, "baseline"}
    for row in rows.values():
        low, high = row["auc_interval"]
        assert 0.35 < row["auc"] < 0.65
        assert low <= row["auc"] <= high
    assert rows["loss"]["epsilon_claimed"] == 3.0
    assert rows["loss"]["delta"] == 1e-5
    assert not any("seeded" in note for note in rows["loss"]["notes"])
    assert rows["loss"]["num_epochs"] == pytest.approx(2.0, abs=0.2)


def test_the_reference_cancels_how_hard_a_text_is(
    finished_run: RunDirectory, split: Split, make_scorer: Any, tmp_path: Path
) -> None:
    """Target and base share the difficulty of a text; a small gain on members shows only in their difference."""
    target = make_scorer(seed=1, memorised=set(split.train.record_ids), bonus=0.05)
    rows = rows_of(score_run(config_for(finished_run, tmp_path), finished_run, target=target, base=make_scorer(seed=1)))
    assert rows["ref"]["auc"] == 1.0
    assert rows["loss"]["auc"] < 0.85


def test_what_is_written_is_private_and_holds_no_text(
    finished_run: RunDirectory, split: Split, make_scorer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(finished_run, tmp_path, max_records=25, json=True)
    out = score_run(config, finished_run, target=make_scorer(seed=1), base=make_scorer(seed=2))
    printed = capsys.readouterr()
    assert stat.S_IMODE(out.path.stat().st_mode) == 0o700
    table = pq.read_table(out.path / "scores.parquet")
    assert table.num_rows == 7 * 50
    assert set(table["target_id"].to_pylist()) == {finished_run.manifest["run_id"]}
    everything = printed.out + printed.err + str(table.to_pydict())
    everything += "".join((out.path / name).read_text() for name in ("audit.json", "manifest.json", "config.yaml"))
    assert not any(text in everything for text in (*split.train.texts, *split.holdout.texts))
    assert json.loads(printed.out)["rows"] == list(rows_of(out).values())
    assert out.manifest["draw"] == {"rule": "draw-v1", "seed": 0, "max_records": 25}
    assert out.manifest["status"] == "finished"
    assert out.manifest["parents"][0]["run_id"] == finished_run.manifest["run_id"]


def test_a_signal_that_is_not_a_number_stops_the_attack_and_nothing_is_written(
    finished_run: RunDirectory, split: Split, make_scorer: Any, tmp_path: Path
) -> None:
    broken_id = split.train.record_ids[3]

    def broken(records: Records) -> list[Any]:
        said = make_scorer(seed=1)(records)
        pairs = zip(records.record_ids, said, strict=True)
        return [replace(s, log_probs=s.log_probs * np.nan) if i == broken_id else s for i, s in pairs]

    config = config_for(finished_run, tmp_path)
    with pytest.raises(SafeSynthError, match=broken_id):
        score_run(config, finished_run, target=broken, base=make_scorer(seed=2))
    assert not (tmp_path / "out" / "scores.parquet").exists()
    assert not (tmp_path / "out" / "audit.json").exists()


def test_the_same_command_again_goes_on_or_says_it_is_done_and_another_is_refused(
    finished_run: RunDirectory, make_scorer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(records: Records) -> list[Any]:
        raise SafeSynthError("the scorer was called")

    config, base = config_for(finished_run, tmp_path), make_scorer(seed=2)
    with pytest.raises(SafeSynthError, match="the scorer was called"):
        score_run(config, finished_run, target=never, base=base)
    out = score_run(config, finished_run, target=make_scorer(seed=1), base=base)
    first = capsys.readouterr().out
    score_run(config_for(finished_run, tmp_path, max_tokens_per_microbatch=99), finished_run, target=never, base=base)
    assert capsys.readouterr().out == first
    with pytest.raises(ConfigError, match="another config"):
        score_run(config_for(finished_run, tmp_path, seed=1), finished_run, target=never, base=base)
    assert rows_of(out)["loss"]["num_targets"] == 1


def test_an_attack_on_an_earlier_run_at_the_same_place_is_not_taken_for_this_one(
    finished_run: RunDirectory, make_scorer: Any, tmp_path: Path
) -> None:
    config = config_for(finished_run, tmp_path)
    score_run(config, finished_run, target=make_scorer(seed=1), base=make_scorer(seed=2))
    finished_run.update(run_id="0" * 32)
    with pytest.raises(ConfigError, match="earlier run"):
        score_run(config, finished_run, target=make_scorer(seed=1), base=make_scorer(seed=2))


def test_records_that_changed_since_training_are_refused(
    finished_run: RunDirectory, make_scorer: Any, tmp_path: Path
) -> None:
    with (tmp_path / "private.csv").open("a", encoding="utf-8") as handle:
        handle.writelines(f"a new text number {i},good\n" for i in range(9))
    with pytest.raises(LedgerMismatch, match="fingerprint"):
        score_run(
            config_for(finished_run, tmp_path), finished_run, target=make_scorer(seed=1), base=make_scorer(seed=2)
        )


def test_the_command_line_reaches_the_run_and_prints_one_json_object(
    finished_run: RunDirectory,
    make_scorer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def fake(run: RunDirectory, *, untuned: bool, max_tokens_per_microbatch: int, ranks: object) -> Any:
        assert ranks is None
        asked.append((run.path, untuned, max_tokens_per_microbatch))
        return make_scorer(seed=int(untuned))

    monkeypatch.setattr(model_scores, "run_scorer", fake)
    argv = ["score", "--run", str(finished_run.path), "--output_dir", str(tmp_path / "out"), "--max_records", "30"]
    assert run(main, [*argv, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert [row["num_members"] for row in json.loads(out)["rows"]] == [30] * 7
    assert asked == [(finished_run.path, False, 4096), (finished_run.path, True, 4096)]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "attack: say what to do; there is plan, run, status, score"),
        (["train"], "attack train: there is no such action; there is plan, run, status, score"),
        (["plan"], "output_dir, recipe is missing"),
        (["score"], "run, output_dir is missing"),
        (["score", "--run", "R", "--output_dir", "O", "--alpha", "1"], "alpha=1.0"),
        (["score", "--run", "R", "--output_dir", "O", "--max_records", "0"], "max_records=0"),
        (["score", "--run", "R", "--output_dir", "O", "--max_recs", "5"], "max_recs"),
        (["score", "--run", "R", "--output_dir", "O"], "R is not a run directory"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(argv, capsys).startswith(words)


def test_an_unfinished_run_and_another_stage_are_refused(
    finished_run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["score", "--run", str(finished_run.path), "--output_dir", str(tmp_path / "out")]
    finished_run.update(status="interrupted")
    assert "is not finished" in refusal(argv, capsys)
    finished_run.update(status="finished", kind="sample")
    assert "not of 'finetune'" in refusal(argv, capsys)
    assert not (tmp_path / "out").exists()


def test_help_answers_without_loading_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["--help"]) == 0
    assert "score" in capsys.readouterr().out
