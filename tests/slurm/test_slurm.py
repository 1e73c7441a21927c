"""The script of docs/howto/slurm.md on a real SLURM of one node, with two tasks.

The cluster is that of conftest.py.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from safesynthdp.privacy.ledger import Ledger

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[2]
RECIPE = """
model: {from_scratch: {num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2}}
data: {train_file: RECORDS, labels: ["good", "bad"], max_length: 40}
privacy: {target_epsilon: 8.0, target_delta: 1.0e-3, unsafe_seed: 3, accountant: rdp}
train: {expected_batch_size: 8, max_steps: STEPS, save_steps: 1000}
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The script as the page prints it."""
    page = (ROOT / "docs" / "howto" / "slurm.md").read_text(encoding="utf-8")
    path = tmp_path / "finetune.sbatch"
    path.write_text(page.split("```bash\n")[1].split("```")[0])
    return path


def recipe(folder: Path, *, steps: int) -> Path:
    rows = [f"{'ab ' * (i % 11)}number {i},{('good', 'bad')[i % 2]}" for i in range(90)]
    (folder / "records.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("RECORDS", str(folder / "records.csv")).replace("STEPS", str(steps)))
    return path


def submit(cluster: dict[str, str], script: Path, config: Path, run: Path) -> tuple[str, Path]:
    """Return the job's id and its log."""
    log = run.parent / "job.log"
    command = ["sbatch", "--parsable", "--nodes=1", "--ntasks=2", "--ntasks-per-node=2", f"--output={log}"]
    done = subprocess.run(
        [*command, script, config, run], env=cluster, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), log


def wait_for_release(run: Path, log: Path, *, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        path = run / "manifest.json"
        if path.is_file() and json.loads(path.read_text())["status"] == "finished":
            return
        time.sleep(0.5)
    pytest.fail(log.read_text()[-2000:] if log.is_file() else "the job never began")


def test_two_tasks_meet_and_train_one_model(cluster: dict[str, str], script: Path, tmp_path: Path) -> None:
    _, log = submit(cluster, script, recipe(tmp_path, steps=6), tmp_path / "run")
    wait_for_release(tmp_path / "run", log, seconds=120)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["world_size"] == 2
    assert Ledger.read(tmp_path / "run" / "ledger.json").entry("dpsgd").mechanism["steps"] == 6


def test_a_job_near_its_time_limit_saves_goes_back_into_the_queue_and_finishes_at_the_same_price(
    cluster: dict[str, str], script: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job, log = submit(cluster, script, recipe(tmp_path, steps=400), run)
    until = time.monotonic() + 120
    while (
        not (run / "ledger.json").is_file() or Ledger.read(run / "ledger.json").entry("dpsgd").mechanism["steps"] < 20
    ):
        assert time.monotonic() < until, log.read_text()[-2000:]
        time.sleep(0.1)
    # what SLURM does before the limit of --signal=B:USR1@120
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], env=cluster, timeout=30, check=True)
    wait_for_release(run, log, seconds=240)
    assert "told to end (SIGTERM)" in log.read_text()
    ledger = Ledger.read(run / "ledger.json")
    assert ledger.entry("dpsgd").mechanism["steps"] == 400, "no step was lost, none was counted twice"
    assert json.loads((run / "manifest.json").read_text())["steps_in_weights"] == 400


def test_srun_without_a_launcher_is_refused(cluster: dict[str, str], tmp_path: Path) -> None:
    config, run = recipe(tmp_path, steps=6), tmp_path / "run"
    door = [sys.executable, "train/dp_finetune.py", "--config", str(config), "--output_dir", str(run)]
    done = subprocess.run(
        ["srun", "-n2", *door], env=cluster, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert "srun started 2 tasks that do not know of one another" in done.stderr
    assert not run.exists()
