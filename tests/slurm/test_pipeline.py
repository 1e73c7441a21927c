"""A pipeline's jobs on a real SLURM: how they end, and that a pipeline that was killed finds them again."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from safesynthdp.attacks.pool_config import SlurmConfig
from safesynthdp.config import parse
from safesynthdp.reporting.pipeline_calls import Job
from safesynthdp.reporting.pipeline_config import PipelineConfig
from safesynthdp.reporting.pipeline_engine import BLOCKED, Outcome
from safesynthdp.reporting.pipeline_jobs import stage_jobs
from safesynthdp.reporting.pipeline_slurm import SlurmEngine

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]
PRICE = ("account", "histogram", "--mechanism=laplace", "--scale=2", "--adjacency=add_remove", "--delta=1e-5")


@pytest.fixture
def client(cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for key, value in cluster.items():
        monkeypatch.setenv(key, value)
    return cluster


def engine(folder: Path, *setup: str) -> SlurmEngine:
    slurm = SlurmConfig(setup=list(setup), query_seconds=0.5, cpus_per_task=1)
    return SlurmEngine(log_dir=folder / "logs", max_parallel=2, slurm=slurm, poll_seconds=0.2, grace=5.0)


def job(key: str, *words: str, needs: tuple[str, ...] = ()) -> Job:
    return Job(key=key, words=words or PRICE, output_dir=Path("unused"), needs=needs)


def run(at: SlurmEngine, *jobs: Job) -> dict[str, Outcome]:
    found = dict[str, Outcome]()

    def on_end(outcome: Outcome) -> bool:
        found[outcome.key] = outcome
        return outcome.code == 0

    at.run(jobs, on_end=on_end)
    return found


def submitted(cluster: dict[str, str]) -> int:
    asked = ["squeue", "-h", "-t", "all", "-o", "%i"]
    return len(subprocess.run(asked, env=cluster, capture_output=True, text=True, check=True).stdout.split())


def test_jobs_end_as_their_command_did_and_what_needs_a_failed_one_is_not_started(
    client: dict[str, str], tmp_path: Path
) -> None:
    before = submitted(client)
    found = run(
        engine(tmp_path),
        job("grid/price"),
        job("grid/after", needs=("grid/price",)),
        job("grid/wrong", "account", "dpsgd"),
        job("grid/blocked", needs=("grid/wrong",)),
    )
    assert {key: outcome.code for key, outcome in found.items()} == {
        "grid/price": 0,
        "grid/after": 0,
        "grid/wrong": 2,
        "grid/blocked": None,
    }
    assert found["grid/wrong"].last_line.startswith("error: ")
    assert found["grid/blocked"].last_line == BLOCKED
    assert submitted(client) == before + 3


def test_a_pipeline_that_was_killed_finds_its_job_and_starts_it_once(client: dict[str, str], tmp_path: Path) -> None:
    before = submitted(client)
    first = engine(tmp_path, "sleep 5")
    (tmp_path / "logs").mkdir()
    first.start(job("slow"))
    first.stop()
    assert run(engine(tmp_path, "sleep 5"), job("slow"))["slow"].code == 0
    assert submitted(client) == before + 1


def test_a_cancelled_job_is_a_failure_with_its_state_and_no_endless_wait(
    client: dict[str, str], tmp_path: Path
) -> None:
    at = engine(tmp_path, "sleep 100")
    (tmp_path / "logs").mkdir()
    at.start(job("slow"))
    name = next((tmp_path / "logs").glob("*.sbatch")).stem
    subprocess.run(["scancel", f"--name={name}"], env=client, check=True, timeout=30)
    while not (ended := at.ended()):
        time.sleep(0.2)
    assert (ended[0].code, "CANCELLED" in ended[0].last_line) == (1, True)


POOL = """
output_dir: OUT/grid
epsilons: [8.0]
untuned: false
engine: slurm
slurm: {query_seconds: 0.5}
finetune:
  flags: {model.from_scratch.num_hidden_layers: 1, model.from_scratch.hidden_size: 16,
          model.from_scratch.num_attention_heads: 2, data.train_file: OUT/mine.csv, data.labels: [good, bad],
          data.max_length: 32, privacy.accountant: rdp, privacy.target_delta: 1.0e-3,
          train.expected_batch_size: 8, train.max_steps: 2}
sample:
  flags: {num_records: 8}
pool:
  epsilons: [8.0]
  flags: {num_models: 2, num_audit: 40, with_target: false, sample.num_records: 8}
  score: {attacks: [loss, ngram2_domias]}
"""


@pytest.mark.timeout(900)
def test_a_pool_of_a_grid_is_an_array_whose_driver_holds_no_node(client: dict[str, str], tmp_path: Path) -> None:
    """Run and plan and score are jobs; the driver is a process of ours, and its shards are tasks."""
    rows = "".join(f"text number {n},{('good', 'bad')[n % 2]}\n" for n in range(120))
    (tmp_path / "mine.csv").write_text(f"text,label\n{rows}")
    (tmp_path / "grid.yaml").write_text(POOL.replace("OUT", str(tmp_path)))
    config = parse(PipelineConfig, ["--config", str(tmp_path / "grid.yaml")], prog="pipeline")
    wanted = ("/run", "/pool_plan", "/pool_run", "/pool")
    jobs = [one for one in stage_jobs(config) if one.key.endswith(wanted)]
    before = submitted(client)
    at = SlurmEngine(log_dir=tmp_path / "logs", max_parallel=2, slurm=config.slurm, poll_seconds=0.2, grace=5.0)
    found = run(at, *jobs)
    assert [outcome.code for outcome in found.values()] == [0, 0, 0, 0], found
    assert submitted(client) == before + 3 + 2, "three jobs and the two tasks of one array: the driver is none of them"
    pool = tmp_path / "grid/eps8-seed0/pool"
    attempts = json.loads((pool / "jobs.json").read_text())["attempts"].values()
    assert {row["engine"] for rows in attempts for row in rows} == {"slurm"}
    assert json.loads((pool / "audit.json").read_text())["rows"]
