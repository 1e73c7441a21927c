"""The recipes of the evidence: they are understood, and their shape runs to one report on a tiny model."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from safesynthdp.cli import _dispatch
from safesynthdp.cli import run as run_main
from safesynthdp.config import parse
from safesynthdp.reporting.pipeline_calls import Job
from safesynthdp.reporting.pipeline_command import main, run_pipeline
from safesynthdp.reporting.pipeline_config import PipelineConfig
from safesynthdp.reporting.pipeline_engine import Outcome

ROOT = Path(__file__).parents[2]
SLOW = pytest.mark.slow
MECHANISMS = ("softmax", "laplace", "gaussian_l2", "gaussian_probs")


def dry_run(recipe: str, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = run_main(main, ["--config", f"recipes/{recipe}.yaml", "--dry_run", "true", *words])
    said = capsys.readouterr()
    return code, said.out + said.err


@pytest.mark.parametrize(
    ("recipe", "epsilons", "seeds"),
    [
        ("pipeline_vader_cpu", (1, 8), 1),
        pytest.param("pipeline_vader", (1, 2, 4, 8), 3, marks=SLOW),
        pytest.param("pipeline_vader_sentiment", (1, 2, 4, 8), 3, marks=SLOW),
        ("demo", (8,), 1),
        ("pipeline_vader_cpu_long", (1, 8), 1),
    ],
)
def test_every_call_of_a_recipe_is_understood_and_affordable(
    recipe: str,
    epsilons: tuple[int, ...],
    seeds: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(ROOT)
    code, said = dry_run(recipe, capsys, "--output_dir", str(tmp_path / "grid"))
    assert code == 0, said
    keys = [line.partition(": ")[0] for line in said.splitlines()]
    has_all = recipe not in ("demo", "pipeline_vader_cpu_long")
    points = [*(f"eps{epsilon}" for epsilon in epsilons), *(["no_privacy"] if has_all else [])]
    cells = [f"{point}-seed{seed}" for point in points for seed in range(seeds)]
    assert {f"{cell}/{stage}" for cell in cells for stage in ("run", "synthetic", "evaluation", "attack")} <= set(keys)
    assert "untuned" in keys
    pools = [key for key in keys if key.endswith("/pool")]
    assert pools == (["eps8-seed0/pool", "no_privacy-seed0/pool"] if has_all else [])
    predicted = [key for key in keys if key.split("-")[0] in MECHANISMS]
    assert len(predicted) == (2 * len(MECHANISMS) * len(epsilons) if has_all else 0)
    assert not (tmp_path / "grid").exists(), "a dry run writes nothing"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--finetune.flags", "{train.max_stepps: 3}"), "eps1-seed0/run: train.max_stepps is not a key here"),
        (("--sample.flags", "{num_records: 0}"), "eps1-seed0/synthetic: num_records=0"),
        (("--pool.flags", "{num_models: 7}"), "eps8-seed0/pool_plan: num_models=7"),
        (("--epsilons", "[0.001, 8.0]"), "softmax-eps0.001/synthetic: target_epsilon=0.001: even clip="),
    ],
)
def test_what_a_stage_would_refuse_is_said_before_anything_runs(
    words: tuple[str, str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    code, found = dry_run("pipeline_vader_cpu", capsys, *words)
    assert code == 2
    assert said in found
    assert len([line for line in found.splitlines() if line.startswith("error")]) == 1


def small(tmp_path: Path) -> Path:
    """The CPU recipe, every stage of it, on made-up records and a one-layer model."""
    rows = "".join(
        f'"the {word} number {n} came {n % 7} times",{word}\n' for n in range(100) for word in ("good", "bad")
    )
    (tmp_path / "mine.csv").write_text(f"text,label\n{rows}")
    value = yaml.safe_load((ROOT / "recipes/pipeline_vader_cpu.yaml").read_text(encoding="utf-8"))
    value |= {"output_dir": str(tmp_path / "grid"), "epsilons": [8.0], "max_parallel": 2}
    value["finetune"]["recipe"] = None
    value["finetune"]["flags"] = {
        "model.from_scratch.num_hidden_layers": 1, "model.from_scratch.hidden_size": 16,
        "model.from_scratch.num_attention_heads": 2, "data.train_file": str(tmp_path / "mine.csv"),
        "data.labels": ["good", "bad"], "data.max_length": 48, "privacy.accountant": "rdp",
        "privacy.target_delta": 1e-4, "train.expected_batch_size": 16, "train.max_steps": 2,
    }  # fmt: skip
    value["sample"]["flags"] = {"num_records": 60, "max_new_tokens": 8, "dtype": None}
    value["evaluate"]["flags"] = {"downstream": "nb", "seeds": 2, "reference_model": None, "embedding_model": "tfidf"}
    value["attack"]["flags"] = {"max_records": 30}
    value["pool"]["flags"] |= {"num_models": 2, "num_audit": 40, "canaries.count": 20, "sample.num_records": 20}
    value["pool"]["flags"].pop("primary")  # two models are too few for it
    value["pool"] |= {"score": {"attacks": ["loss", "ngram2_domias"]}, "max_parallel": 2}
    for stage in value["predict"]:
        stage["flags"] |= {"output.shards": 24, "output.tokens": 8, "batches_per_label": 2, "data.max_length": 96}
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


class InProcess:
    """Runs the calls one after the other without starting a process for each: most of its time would be the start."""

    def run(self, jobs: Sequence[Job], *, on_end: Callable[[Outcome], bool]) -> None:
        for job in jobs:
            code = run_main(_dispatch, list(job.words))
            on_end(Outcome(key=job.key, code=code, seconds=0.0, last_line="see above"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_shape_of_the_cpu_recipe_ends_in_one_report_with_everything_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path, grid = small(tmp_path), tmp_path / "grid"
    run_pipeline(parse(PipelineConfig, ["--config", str(path)], prog="pipeline"), InProcess())
    report = json.loads((grid / "report/report.json").read_text())
    claimed = [run["epsilon"] for run in report["runs"]]
    assert claimed.count(None) == 1
    assert all(7.5 < epsilon <= 8.0 for epsilon in claimed if epsilon is not None)
    has_everything(report, (grid / "report/report.html").read_text())
    public = (grid / "report_public/report.html").read_text()
    assert "rows of a shadow pool" in public
    assert "ngram2_domias" not in public


def only_a_pool(tmp_path: Path) -> Path:
    """The same with a training run, its text and a pool of two."""
    path = small(tmp_path)
    value = yaml.safe_load(path.read_text())
    value |= {"without_privacy": False, "predict": [], "untuned": False, "public": False, "max_parallel": 1}
    value |= {"evaluate": {"enabled": False}, "attack": {"enabled": False}}
    value["pool"] |= {"epsilons": [8.0], "max_parallel": 1}
    value["pool"]["flags"] |= {"with_target": False}
    path.write_text(yaml.safe_dump(value))
    return path


def pipeline(path: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "safesynthdp", "pipeline", "--config", str(path)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_grid_that_is_killed_amid_a_pool_goes_on_with_the_models_that_are_left(tmp_path: Path) -> None:
    path, grid = only_a_pool(tmp_path), tmp_path / "grid"
    first = pipeline(path)
    deadline = time.monotonic() + 400
    while not (done := list(grid.glob("eps8-seed0/pool/shards/*/manifest.json"))) and first.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    said, error = first.communicate(timeout=200)
    assert first.returncode == 75, said + error
    known = json.loads((grid / "pipeline.json").read_text())["jobs"]
    assert {"eps8-seed0/run", "eps8-seed0/pool_plan"} <= set(known)
    assert not {"eps8-seed0/pool_run", "eps8-seed0/pool"} & set(known)
    before = {shard: shard.stat().st_mtime_ns for shard in done}
    second = pipeline(path)
    said, error = second.communicate(timeout=500)
    assert second.returncode == 0, said + error
    assert {shard: shard.stat().st_mtime_ns for shard in before} == before, "a finished model is not trained again"
    report = json.loads((grid / "report/report.json").read_text())
    assert {row["target_id"] for row in report["runs"][0]["attacks"]} == {"pooled", "0"}


def has_everything(report: dict[str, Any], page: str) -> None:
    """Audits of both channels, the epsilon = 0 text, classifiers trained with DP, private prediction."""
    tuned = [run for run in report["runs"] if run["run_id"] is not None]
    predicted = [run for run in report["runs"] if run["run_id"] is None]
    assert (len(tuned), len(predicted)) == (2, len(MECHANISMS))
    for run in tuned:
        audits = {row["channel"] for row in run["attacks"] if row["pool"] and row["epsilon_lower_bound"] is not None}
        assert audits == {"model", "text"}
    for run in report["runs"]:
        trained_on = {row["train_on"] for row in run["metrics"] if row["name"] == "accuracy" and row["value"]}
        wanted = {"synthetic", "real", "base_model"} | ({"dp_direct"} if run["epsilon"] is not None else set())
        assert wanted <= trained_on
    assert {entry["kind"] for run in predicted for entry in run["entries"]} == {"private_prediction"}
    assert f"{2 + len(MECHANISMS)} runs side by side" in page
    for words in ("eps8-seed0", "no_privacy-seed0", *(f"{name}-eps8" for name in MECHANISMS)):
        assert words in page
    assert "(text): accuracy" in page
    assert "of private prediction" in page
