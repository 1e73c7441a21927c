"""A grid: which jobs it means, what is skipped, what an interruption or a failure leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from safesynthdp.cli import run as run_main
from safesynthdp.config import parse
from safesynthdp.errors import Preempted, SafeSynthError, UserError
from safesynthdp.reporting import pipeline_engine
from safesynthdp.reporting.pipeline_calls import Job
from safesynthdp.reporting.pipeline_check import of_each_kind
from safesynthdp.reporting.pipeline_command import main, run_pipeline
from safesynthdp.reporting.pipeline_config import PipelineConfig
from safesynthdp.reporting.pipeline_engine import LocalEngine, Outcome, command
from safesynthdp.reporting.pipeline_jobs import stage_jobs

ROOT = Path(__file__).parents[2]
RECIPE = """
output_dir: OUT
epsilons: [1.0, 8.0]
seeds: [0, 1]
without_privacy: true
finetune:
  flags: {train.max_steps: 2, data.labels: [good, bad]}
"""


@dataclass
class Paper:
    """An engine that only writes down what it was asked, and the manifests that the stages would leave."""

    codes: dict[str, int] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)

    def run(self, jobs: Sequence[Job], *, on_end: Callable[[Outcome], bool]) -> None:
        bad = set[str]()
        for job in jobs:
            if bad & set(job.needs):
                bad.add(job.key)
                on_end(Outcome(key=job.key, code=None, seconds=0, last_line="needs a job that failed"))
                continue
            self.ran.append(job.key)
            code = self.codes.get(job.key, 0)
            if code in (0, 1):
                job.output_dir.mkdir(parents=True, exist_ok=True)
                manifest = {"status": "finished", "run_id": f"{job.key}#{len(self.ran)}"}
                (job.output_dir / "manifest.json").write_text(json.dumps(manifest))
            outcome = Outcome(key=job.key, code=code, seconds=0, last_line=f"error: {job.key} said {code}")
            if not on_end(outcome):
                bad.add(job.key)


def config(tmp_path: Path, text: str = RECIPE, *words: str) -> PipelineConfig:
    path = tmp_path / "grid.yaml"
    path.write_text(text.replace("OUT", str(tmp_path / "grid")))
    return parse(PipelineConfig, ["--config", str(path), *words], prog="safesynthdp pipeline")


def test_every_point_of_the_grid_gets_every_stage_and_the_untuned_model_is_sampled_once(tmp_path: Path) -> None:
    jobs = {job.key: job for job in stage_jobs(config(tmp_path))}
    assert len(jobs) == 6 * 4 + 1
    words = jobs["eps8-seed1/run"].words
    assert words[words.index("--privacy.target_epsilon") + 1] == "8.0"
    assert words[words.index("--train.seed") + 1] == "1"
    assert words[words.index("--data.labels") + 1] == '["good", "bad"]'
    bare = jobs["no_privacy-seed0/run"].words
    assert bare[bare.index("--privacy.mode") + 1] == "none"
    assert [key for key in jobs if "untuned" in key] == ["untuned"]
    assert set(jobs["eps1-seed0/evaluation"].needs) == {"eps1-seed0/synthetic", "untuned"}


@pytest.mark.parametrize("labels", ["histogram", "sqrt"])
def test_the_untuned_model_follows_no_label_counts_whatever_the_sample_follows(tmp_path: Path, labels: str) -> None:
    jobs = {job.key: job for job in stage_jobs(config(tmp_path, RECIPE, "--sample.flags", f"{{labels: {labels}}}"))}
    said = {key: jobs[key].words[jobs[key].words.index("--labels") + 1] for key in ("untuned", "eps1-seed0/synthetic")}
    assert said == {"untuned": "auto", "eps1-seed0/synthetic": labels}


def test_a_job_stands_after_those_it_needs(tmp_path: Path) -> None:
    seen = set[str]()
    for job in stage_jobs(config(tmp_path)):
        assert set(job.needs) <= seen
        seen.add(job.key)


def test_stages_that_use_gpus_go_through_the_launcher_and_the_others_do_not(tmp_path: Path) -> None:
    jobs = {job.key: job for job in stage_jobs(config(tmp_path, RECIPE, "--accelerate_config", "cpu_2proc.yaml"))}
    launched = command(jobs["eps1-seed0/run"])
    assert launched[1:5] == ["-m", "accelerate.commands.launch", "--config_file", "cpu_2proc.yaml"]
    assert launched[5:8] == ["-m", "safesynthdp", "finetune"]
    assert "accelerate.commands.launch" in command(jobs["untuned"])
    assert command(jobs["eps1-seed0/evaluation"])[1:4] == ["-m", "safesynthdp", "evaluate"]


def test_the_same_command_runs_nothing_twice_but_the_report(tmp_path: Path) -> None:
    grid, first, second = config(tmp_path), Paper(), Paper()
    run_pipeline(grid, first)
    run_pipeline(grid, second)
    assert len(first.ran) == 26
    assert second.ran == ["report"]


def test_one_more_epsilon_runs_only_its_own_jobs(tmp_path: Path) -> None:
    run_pipeline(config(tmp_path), Paper())
    paper = Paper()
    run_pipeline(config(tmp_path, RECIPE, "--epsilons", "[1.0, 8.0, 4.0]"), paper)
    assert {key.split("-")[0] for key in paper.ran} == {"eps4", "report"}


def test_other_flags_run_again_and_so_does_all_that_stands_on_them(tmp_path: Path) -> None:
    run_pipeline(config(tmp_path), Paper())
    paper = Paper()
    run_pipeline(config(tmp_path, RECIPE + "sample:\n  flags: {num_records: 7}\n"), paper)
    assert not [key for key in paper.ran if key.endswith(("/run", "/attack"))]
    assert len([key for key in paper.ran if key.endswith(("/synthetic", "/evaluation"))]) == 12


def test_a_run_made_anew_takes_what_was_made_from_the_old_one_with_it(tmp_path: Path) -> None:
    grid = config(tmp_path)
    run_pipeline(grid, Paper())
    (tmp_path / "grid/eps1-seed0/run/manifest.json").unlink()
    paper = Paper()
    run_pipeline(grid, paper)
    assert {"eps1-seed0/run", "eps1-seed0/synthetic", "eps1-seed0/evaluation", "eps1-seed0/attack"} <= set(paper.ran)
    assert not [key for key in paper.ran if key.startswith("eps8") and not key.endswith("evaluation")]


def test_a_failed_job_stops_what_needs_it_and_nothing_else_and_the_report_is_drawn(tmp_path: Path) -> None:
    paper = Paper(codes={"eps8-seed1/run": 2})
    with pytest.raises(UserError, match="eps8-seed1/run said 2"):
        run_pipeline(config(tmp_path), paper)
    assert not [key for key in paper.ran if key.startswith("eps8-seed1/") and key != "eps8-seed1/run"]
    assert len([key for key in paper.ran if key.endswith("/evaluation")]) == 5
    assert paper.ran[-1] == "report"


def test_a_refuted_claim_is_reported_after_everything_is_written(tmp_path: Path) -> None:
    paper = Paper(codes={"report": 1, "eps8-seed0/attack": 1})
    with pytest.raises(SafeSynthError) as caught:
        run_pipeline(config(tmp_path), paper)
    assert caught.value.exit_code == 1
    assert "report said 1" in str(caught.value)


def test_a_job_that_was_told_to_end_makes_the_pipeline_say_try_again(tmp_path: Path) -> None:
    with pytest.raises(Preempted):
        run_pipeline(config(tmp_path), Paper(codes={"eps1-seed0/run": 75}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("output_dir: OUT\nepsilons: []\nfinetune: {}", "epsilons is empty"),
        ("output_dir: OUT\nepsilons: [8.0, 8.0]\nfinetune: {}", "holds a value twice"),
        ("output_dir: OUT\nepsilons: [-1.0]\nfinetune: {}", "finite numbers above 0"),
        ("output_dir: OUT\nepsilons: [1.0]\nfinetune: {flags: {train.seed: 3}}", "which the pipeline sets itself"),
        ("output_dir: OUT\nepsilons: [1.0]\nfinetune: {}\nsample: {enabled: false}", "sample.enabled=false"),
        ("output_dir: OUT\nepsilons: [1.0]\nfinetune: {}\nepsilon: 3", "epsilon is not a key"),
    ],
)
def test_a_wrong_grid_is_one_line(tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text.replace("OUT", str(tmp_path / "grid")))
    assert run_main(main, ["--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--evaluate.flags", "{max_recordz: 3}"), "eps1-seed0/evaluation: max_recordz is not a key here"),
        (("--attack.recipe", "missing.yaml"), "eps1-seed0/attack: config=missing.yaml is not a file"),
        (("--finetune.flags", "{train.max_stepps: 3}"), "eps1-seed0/run: train.max_stepps is not a key here"),
    ],
)
def test_what_a_late_stage_would_refuse_is_said_before_the_first_one_runs(
    tmp_path: Path, words: tuple[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, recipe = tmp_path / "grid.yaml", str(ROOT / "train/recipes/tiny.yaml")
    path.write_text(RECIPE.replace("OUT", str(tmp_path / "grid")))
    given = [
        "--finetune.recipe",
        recipe,
        "--finetune.flags",
        "{train.max_steps: 2}",
        "--sample.flags",
        "{num_records: 9}",
    ]
    assert run_main(main, ["--config", str(path), *given, *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "grid").exists()


def test_one_call_of_each_kind_is_checked_before_a_grid_begins(tmp_path: Path) -> None:
    jobs = stage_jobs(config(tmp_path))
    kinds = of_each_kind(jobs)
    assert [job.key for job in kinds if job.key.endswith("/run")] == ["eps1-seed0/run", "no_privacy-seed0/run"]
    assert len(kinds) < len(jobs) / 2
    assert {job.words[0] for job in kinds} == {job.words[0] for job in jobs}


def shell_jobs(tmp_path: Path, scripts: dict[str, str], needs: dict[str, tuple[str, ...]]) -> list[Job]:
    return [
        Job(key=key, words=(script,), output_dir=tmp_path / key, needs=needs.get(key, ()))
        for key, script in scripts.items()
    ]


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's only word is a shell script."""
    monkeypatch.setattr(pipeline_engine, "command", lambda job: ["sh", "-c", job.words[0]])
    monkeypatch.setattr(pipeline_engine, "POLL_SECONDS", 0.01)


@pytest.mark.usefixtures("shell")
def test_the_local_engine_keeps_order_window_and_logs(tmp_path: Path) -> None:
    mark = f"n=$(ls {tmp_path}/*.live 2>/dev/null | wc -l); echo at once $((n + 1))"
    script = f"touch {tmp_path}/$$.live; {mark.replace('n + 1', 'n')}; sleep 0.1; rm {tmp_path}/$$.live"
    scripts = dict.fromkeys(("a", "b", "c", "d"), script) | {"bad": "echo error: no; exit 3", "after": "true"}
    ended = dict[str, Outcome]()

    def on_end(outcome: Outcome) -> bool:
        ended[outcome.key] = outcome
        return outcome.code == 0

    engine = LocalEngine(log_dir=tmp_path / "logs", max_parallel=2)
    engine.run(shell_jobs(tmp_path, scripts, {"d": ("a",), "after": ("bad",)}), on_end=on_end)
    assert {key: found.code for key, found in ended.items()} == {
        "a": 0, "b": 0, "c": 0, "d": 0, "bad": 3, "after": None
    }  # fmt: skip
    assert ended["bad"].last_line == "error: no"
    assert max(int(ended[key].last_line.split()[-1]) for key in "abcd") <= 2
    assert (tmp_path / "logs").stat().st_mode & 0o077 == 0
    assert list(ended).index("a") < list(ended).index("d")


@pytest.mark.usefixtures("shell")
def test_what_still_runs_is_told_to_save_when_the_engine_is_interrupted(tmp_path: Path) -> None:
    script = f"trap 'echo saved > {tmp_path}/saved; exit 75' TERM; touch {tmp_path}/on; while :; do sleep 0.02; done"

    def on_end(outcome: Outcome) -> bool:
        raise KeyboardInterrupt

    jobs = shell_jobs(tmp_path, {"long": script, "short": f"while [ ! -e {tmp_path}/on ]; do sleep 0.02; done"}, {})
    with pytest.raises(KeyboardInterrupt):
        LocalEngine(log_dir=tmp_path / "logs", max_parallel=2).run(jobs, on_end=on_end)
    assert (tmp_path / "saved").read_text() == "saved\n"


def tiny_grid(tmp_path: Path) -> Path:
    rows = "".join(
        f'"the {word} number {n} came {n % 7} times",{word}\n' for n in range(80) for word in ("good", "bad")
    )
    (tmp_path / "mine.csv").write_text(f"text,label\n{rows}")
    path = tmp_path / "grid.yaml"
    path.write_text(f"""
output_dir: {tmp_path / "grid"}
epsilons: [8.0]
without_privacy: true
finetune:
  flags:
    model.from_scratch.num_hidden_layers: 1
    model.from_scratch.hidden_size: 16
    model.from_scratch.num_attention_heads: 2
    data.train_file: {tmp_path / "mine.csv"}
    data.labels: [good, bad]
    data.max_length: 40
    privacy.accountant: rdp
    train.expected_batch_size: 16
    train.max_steps: 2
sample:
  flags: {{num_records: 20, max_new_tokens: 8}}
evaluate:
  flags: {{downstream: nb, seeds: 2}}
attack:
  flags: {{max_records: 30}}
public: true
max_parallel: 2
""")
    return path


def pipeline(path: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "safesynthdp", "pipeline", "--config", str(path)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_grid_that_is_killed_goes_on_and_ends_in_one_report(tmp_path: Path) -> None:
    path, grid = tiny_grid(tmp_path), tmp_path / "grid"
    first = pipeline(path)
    deadline = time.monotonic() + 300
    while not (grid / "pipeline.json").is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    _, error = first.communicate(timeout=200)
    assert first.returncode == 75, error
    known = json.loads((grid / "pipeline.json").read_text())["jobs"]
    second = pipeline(path)
    said, error = second.communicate(timeout=500)
    assert second.returncode == 0, said + error
    done: dict[str, Any] = json.loads((grid / "pipeline.json").read_text())["jobs"]
    assert len(done) == 9
    assert {key: done[key]["run_id"] for key in known} == {key: known[key]["run_id"] for key in known}
    twin = json.loads((grid / "report/report.json").read_text())
    assert [run["epsilon"] is None for run in twin["runs"]].count(True) == 1
    assert "2 runs side by side" in (grid / "report/report.html").read_text()
    public = json.loads((grid / "report_public/report.json").read_text())
    assert public["is_public"] is True
    assert public["dropped"]
