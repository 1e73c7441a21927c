"""Pools and private prediction in a grid: their calls, what is skipped, what a killed or failed one leaves."""

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from safesynthdp.cli import run as run_main
from safesynthdp.config import parse
from safesynthdp.errors import SafeSynthError
from safesynthdp.reporting import pipeline_engine
from safesynthdp.reporting.pipeline_calls import Job
from safesynthdp.reporting.pipeline_check import _quoted
from safesynthdp.reporting.pipeline_command import main, run_pipeline
from safesynthdp.reporting.pipeline_config import PipelineConfig
from safesynthdp.reporting.pipeline_engine import Outcome
from safesynthdp.reporting.pipeline_jobs import stage_jobs
from safesynthdp.reporting.pipeline_slurm import SlurmEngine

RECIPE = """
output_dir: OUT
epsilons: [1.0, 8.0]
seeds: [3, 4]
without_privacy: true
finetune:
  flags: {model.model_name_or_path: tiny, data.builtin: vader, data.max_length: 48, privacy.target_delta: 1.0e-6,
          train.max_steps: 5}
sample:
  flags: {num_records: 500, temperature: 0.8, token_matching_candidates: 2, labels: uniform, dtype: bfloat16}
pool:
  epsilons: [8.0, none]
  flags: {num_models: 6, sample.num_records: 50}
  score: {primary: lira}
  max_parallel: 2
predict:
  - {name: softmax, flags: {output.shards: 16, data.max_records: 40}}
  - {name: laplace, flags: {output.mechanism: laplace}}
"""


@dataclass
class Paper:
    """Writes down what it was asked, and leaves the files that the stages would."""

    codes: dict[str, int] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)

    def run(self, jobs: Sequence[Job], *, on_end: Callable[[Outcome], bool]) -> None:
        bad = set[str]()
        for job in jobs:
            code = None if bad & set(job.needs) else self.codes.get(job.key, 0)
            if code is not None:
                self.ran.append(job.key)
                self._leave(job, code)
            if not on_end(Outcome(key=job.key, code=code, seconds=0, last_line=f"error: {job.key} said {code}")):
                bad.add(job.key)

    def _leave(self, job: Job, code: int) -> None:
        job.output_dir.mkdir(parents=True, exist_ok=True)
        manifest = job.output_dir / "manifest.json"
        if not (manifest.is_file() and "pool" in job.key):
            manifest.write_text(json.dumps({"status": "finished", "run_id": f"{job.key}#{len(self.ran)}"}))
        if job.result is not None and code == 0:
            (job.output_dir / job.result).write_text("{}")


def config(tmp_path: Path, *words: str, text: str = RECIPE) -> PipelineConfig:
    path = tmp_path / "grid.yaml"
    path.write_text(text.replace("OUT", str(tmp_path / "grid")))
    return parse(PipelineConfig, ["--config", str(path), *words], prog="safesynthdp pipeline")


def value(job: Job, flag: str) -> str:
    """Of a flag that stands twice the last one counts."""
    return dict(zip(job.words, job.words[1:], strict=False))[f"--{flag}"]


def test_a_pool_is_planned_carried_out_and_scored_with_the_recipe_of_the_run_at_the_points_named(
    tmp_path: Path,
) -> None:
    jobs = {job.key: job for job in stage_jobs(config(tmp_path))}
    pools = [key for key in jobs if "/pool" in key]
    assert pools == [f"{point}-seed3/pool{what}" for point in ("eps8", "no_privacy") for what in ("_plan", "_run", "")]
    plan, run, score = (jobs[f"eps8-seed3/pool{what}"] for what in ("_plan", "_run", ""))
    assert plan.words[:2] == ("attack", "plan")
    assert value(plan, "recipe") == str(tmp_path / "grid/eps8-seed3/run")
    assert plan.needs == ("eps8-seed3/run",)
    assert (value(plan, "sample.num_records"), value(plan, "sample.temperature")) == ("50", "0.8")
    assert value(plan, "sample.token_matching_candidates") == "2", "else another release than the run's is audited"
    assert (value(plan, "sample.labels"), value(plan, "sample.dtype")) == ("uniform", "bfloat16")
    assert run.words[:2] == ("attack", "run")
    assert (value(run, "engine"), value(run, "max_parallel"), run.needs) == ("local", "2", (plan.key,))
    assert score.words[:2] == ("attack", "score")
    assert (value(score, "primary"), score.needs) == ("lira", (run.key,))


def test_a_finished_pool_is_skipped_and_a_killed_one_goes_on_where_it_was(tmp_path: Path) -> None:
    first, second, third = Paper(codes={"eps8-seed3/pool_run": 75}), Paper(), Paper()
    with pytest.raises(SafeSynthError):
        run_pipeline(config(tmp_path), first)
    assert "eps8-seed3/pool" not in first.ran
    run_pipeline(config(tmp_path), second)
    assert second.ran == ["eps8-seed3/pool_run", "eps8-seed3/pool", "report"]
    run_pipeline(config(tmp_path), third)
    assert third.ran == ["report"]


def test_a_pool_with_other_flags_is_planned_carried_out_and_scored_again_even_if_it_is_killed_after_the_plan(
    tmp_path: Path,
) -> None:
    """Its directory stays, and so does its run_id: the calls before a job count too."""
    run_pipeline(config(tmp_path), Paper())
    larger = config(tmp_path, "--pool.flags", "{num_models: 8}")
    killed, again = Paper(codes={"eps8-seed3/pool_run": 75, "no_privacy-seed3/pool_run": 75}), Paper()
    with pytest.raises(SafeSynthError):
        run_pipeline(larger, killed)
    assert [key for key in killed.ran if key.startswith("eps8")] == ["eps8-seed3/pool_plan", "eps8-seed3/pool_run"]
    run_pipeline(larger, again)
    assert [key for key in again.ran if key.startswith("eps8")] == ["eps8-seed3/pool_run", "eps8-seed3/pool"]


def test_shards_that_failed_are_no_finished_pool_and_a_refuting_audit_is_one(tmp_path: Path) -> None:
    failed, refuting = Paper(codes={"eps8-seed3/pool_run": 1}), Paper(codes={"eps8-seed3/pool": 1, "report": 1})
    with pytest.raises(SafeSynthError, match="pool_run said 1"):
        run_pipeline(config(tmp_path), failed)
    assert "eps8-seed3/pool" not in failed.ran
    audit = tmp_path / "grid/eps8-seed3/pool/audit.json"
    audit.write_text('{"rows": [{"verdict": "refuted"}]}')
    with pytest.raises(SafeSynthError, match="report said 1"):
        run_pipeline(config(tmp_path), refuting)
    assert "eps8-seed3/pool" in json.loads((tmp_path / "grid/pipeline.json").read_text())["jobs"]


def test_a_score_that_failed_beside_an_earlier_audit_is_not_finished(tmp_path: Path) -> None:
    run_pipeline(config(tmp_path), Paper())
    (tmp_path / "grid/eps8-seed3/pool/audit.json").write_text('{"rows": [{"verdict": "consistent"}]}')
    with pytest.raises(SafeSynthError, match="eps8-seed3/pool said 1"):
        run_pipeline(config(tmp_path, "--pool.score", "{primary: rmia}"), Paper(codes={"eps8-seed3/pool": 1}))


def test_on_a_cluster_the_driver_of_a_pool_runs_beside_the_pipeline_and_asks_for_what_jobs_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a job it would hold a node for as long as its own tasks wait for theirs."""
    flags = ["--engine", "slurm", "--slurm.gpus_per_task", "1", "--slurm.setup", '["module load cuda"]']
    jobs = {job.key: job for job in stage_jobs(config(tmp_path, *flags))}
    driver = jobs["eps8-seed3/pool_run"]
    assert [key for key, job in jobs.items() if job.drives_cluster and "eps8" in key] == [driver.key]
    assert (value(driver, "engine"), value(driver, "slurm.gpus_per_task")) == ("slurm", "1")
    assert value(driver, "slurm.setup") == '["module load cuda"]'
    assert "--slurm.partition" not in driver.words

    def refuse(words: Sequence[str]) -> str:
        raise AssertionError(words)

    monkeypatch.setattr("safesynthdp.reporting.pipeline_slurm.call_client", refuse)
    monkeypatch.setattr(pipeline_engine, "command", lambda job: ["sh", "-c", f"touch {tmp_path}/driven; exit 75"])
    found = list[Outcome]()

    def on_end(outcome: Outcome) -> bool:
        found.append(outcome)
        return False

    engine = SlurmEngine(log_dir=tmp_path / "logs", slurm=config(tmp_path).slurm, poll_seconds=0.01)
    engine.run([Job(key=driver.key, words=driver.words, output_dir=tmp_path, drives_cluster=True)], on_end=on_end)
    assert [outcome.code for outcome in found] == [75]
    assert (tmp_path / "driven").is_file()


def test_private_prediction_is_asked_for_at_every_finite_epsilon_on_the_records_of_the_grid(tmp_path: Path) -> None:
    jobs = {job.key: job for job in stage_jobs(config(tmp_path))}
    names = [f"{name}-eps{epsilon}" for name in ("softmax", "laplace") for epsilon in (1, 8)]
    assert [key for key in jobs if key.split("-")[0] in ("softmax", "laplace")] == [
        f"{name}/{stage}" for name in names for stage in ("synthetic", "evaluation")
    ]
    draw, judge = jobs["laplace-eps8/synthetic"], jobs["laplace-eps8/evaluation"]
    assert draw.words[0] == "predict"
    found = {flag: value(draw, flag) for flag in ("privacy.target_epsilon", "privacy.target_delta", "output.mechanism")}
    assert found == {"privacy.target_epsilon": "8.0", "privacy.target_delta": "1e-06", "output.mechanism": "laplace"}
    assert (value(draw, "data.builtin"), value(draw, "data.train_file")) == ("vader", "null")
    assert (value(draw, "model.model_name_or_path"), value(draw, "data.max_length")) == ("tiny", "48")
    assert value(jobs["softmax-eps1/synthetic"], "data.max_records") == "40"
    assert "--train.max_steps" not in draw.words
    assert {value(judge, role) for role in ("real", "synthetic", "holdout")} == {str(draw.output_dir)}
    assert judge.needs == ("laplace-eps8/synthetic", "untuned")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pool.epsilons", "[4.0]"], "pool.epsilons holds 4"),
        (["--without_privacy", "false"], "pool.epsilons holds none, and without_privacy is false"),
        (["--pool.flags", "{recipe: mine}"], "pool.flags sets recipe"),
        (["--pool.score", "{pool: other}"], "pool.score sets pool"),
        (["--pool.max_parallel", "0"], "pool.max_parallel=0"),
        (["--predict", '[{"name": "a"}, {"name": "a"}]'], "holds a name twice"),
        (["--predict", '[{"name": "../a"}]'], "predict.name=../a"),
        (["--predict", '[{"name": "a", "recip": "b"}]'], "recip is not a key here; did you mean"),
        (["--predict", '[{"name": "a", "flags": {"output_dir": "x"}}]'], "predict.flags sets output_dir"),
    ],
)
def test_a_wrong_stage_is_one_line(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(RECIPE.replace("OUT", str(tmp_path / "grid")))
    assert run_main(main, ["--config", str(path), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "word", ["plain", "two words", "user\nWrite a {label}'s\n", "a\\nb", "a\\b\n", "\ttab\nend", '$HOME `x` "q"', ""]
)
def test_a_printed_call_is_one_line_that_a_shell_reads_back_as_it_was(word: str) -> None:
    shown = _quoted(word)
    assert "\n" not in shown
    said = subprocess.run(["bash", "-c", f"printf %s {shown}x"], capture_output=True, text=True, check=True).stdout
    assert said == f"{word}x"
