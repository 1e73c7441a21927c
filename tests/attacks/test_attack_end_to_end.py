"""A real model, trained on a few texts until it knows them by heart, attacked through the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from safesynthdp.attacks.command import AttackScoreConfig, main, score_run
from safesynthdp.attacks.model_scores import run_scorer
from safesynthdp.cli import run
from safesynthdp.runs import RunDirectory


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["attack"]: row for row in json.loads((folder / "audit.json").read_text())["rows"]}


def write_texts(path: Path) -> Path:
    """120 texts of random letters: nothing can be learnt from one about another."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), size=8)) for _ in range(240)]
    lines = [f"{words[2 * i]} {words[2 * i + 1]},{'good' if i % 2 else 'bad'}" for i in range(120)]
    path.write_text("\n".join(["text,label", *lines, ""]))
    return path


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    from safesynthdp.training.command import main as finetune

    folder = tmp_path_factory.mktemp("overfitted")
    flags = {
        "output_dir": str(folder / "run"),
        "model.from_scratch.hidden_size": "64",
        "data.train_file": str(write_texts(folder / "private.csv")),
        "data.labels": "[good, bad]",
        "data.holdout_percent": "50",
        "data.max_length": "32",
        "privacy.mode": "none",
        "train.expected_batch_size": "30",
        "train.max_steps": "120",
        "train.learning_rate": "3e-3",
    }
    assert run(finetune, [f"--{key}={value}" for key, value in flags.items()]) == 0
    return RunDirectory.open(folder / "run", kind="finetune")


@pytest.mark.slow
def test_texts_a_model_knows_by_heart_are_told_from_held_out_ones(overfitted: RunDirectory, tmp_path: Path) -> None:
    assert run(main, ["score", "--run", str(overfitted.path), "--output_dir", str(tmp_path / "out")]) == 0
    rows = rows_of(tmp_path / "out")
    assert all(rows[attack]["auc"] > 0.85 for attack in ("loss", "ref", "zlib", "mink_20", "minkpp_20"))
    assert all(row["benchmark_valid"] is True for row in rows.values())
    assert rows["loss"]["epsilon_claimed"] is None
    assert rows["loss"]["num_epochs"] == pytest.approx(120 * 30 / overfitted.manifest["data"]["num_records"])


@pytest.mark.slow
def test_the_untuned_model_is_at_chance_on_the_same_texts(overfitted: RunDirectory, tmp_path: Path) -> None:
    untuned = run_scorer(overfitted, untuned=True, max_tokens_per_microbatch=4096)
    config = AttackScoreConfig(run=str(overfitted.path), output_dir=str(tmp_path / "out"))
    rows = rows_of(score_run(config, overfitted, target=untuned, base=untuned).path)
    assert rows["ref"]["auc"] == 0.5
    assert rows["ref"]["auc_interval"] == [0.5, 0.5]
    assert rows["ez"]["auc"] == 0.5
    assert 0.3 < rows["loss"]["auc"] < 0.7


@pytest.mark.slow
def test_padding_and_batching_leave_every_score_unchanged(overfitted: RunDirectory, tmp_path: Path) -> None:
    found = []
    for tokens in (40, 4096):
        argv = ["score", "--run", str(overfitted.path), "--output_dir", str(tmp_path / str(tokens))]
        assert run(main, [*argv, f"--max_tokens_per_microbatch={tokens}", "--max_records=20"]) == 0
        found.append(pq.read_table(tmp_path / str(tokens) / "scores.parquet"))
    assert found[0].drop(["score"]).equals(found[1].drop(["score"]))
    np.testing.assert_allclose(found[0]["score"].to_numpy(), found[1]["score"].to_numpy(), rtol=0, atol=1e-5)
