"""What driving a pool costs over the work in it: local engine, two workers.

python benchmarks/pool.py --num_models 8 --steps 200

Overhead is the time in which a worker's place was empty: (wall clock x workers - the lifetimes of all workers) / those
lifetimes, from the driver's start to its end. The last task runs alone, so the number of shards is even and the tail
is counted for the driver: an upper bound. A worker's lifetime runs from its begin in jobs.json to its manifest.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from safesynthdp.attacks.pool import SHARD_MANIFEST, Pool
from safesynthdp.runs import commit

WORKERS = 2
RECIPE = """
output_dir: unused
model: {{from_scratch: {{num_hidden_layers: 2, hidden_size: 64}}}}
data: {{train_file: {file}, labels: [good, bad], max_length: 48}}
privacy: {{target_epsilon: 8.0, target_delta: 1.0e-3, accountant: rdp, unsafe_seed: 3}}
train: {{expected_batch_size: 32, max_steps: {steps}, save_steps: 50}}
"""


def main() -> None:
    """Plan, drive, and print one line for benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--num_models", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pool = plan(Path(folder), num_models=asked.num_models, steps=asked.steps)
        began = time.time()
        run("run", "--pool", str(pool), f"--max_parallel={WORKERS}", "--memory_gib_per_task=1")
        wall = time.time() - began
        lifetimes = lifetimes_of(Pool.open(pool))
    work = sum(lifetimes)
    share = (wall * WORKERS - work) / work
    print(
        f"{datetime.now(UTC):%Y-%m-%d} {platform.machine()} {os.cpu_count()} cores, commit {commit()}: "
        f"{len(lifetimes)} shards with {WORKERS} local workers in {wall:.1f} s, {work:.1f} s of work: overhead "
        f"{share:.1%} (at most 5%); load average {os.getloadavg()[0]:.1f}"
    )


def plan(folder: Path, *, num_models: int, steps: int) -> Path:
    """Write made-up records and plan a pool on them."""
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(300)]
    rows = [f"{' '.join(rng.choice(words, size=5))},{('good', 'bad')[i % 2]}" for i in range(800)]
    (folder / "records.csv").write_text("\n".join(["text,label", *rows, ""]))
    (folder / "recipe.yaml").write_text(RECIPE.format(file=folder / "records.csv", steps=steps))
    size = [f"--num_models={num_models}", "--num_audit=200", "--sample.num_records=50", "--with_target=false"]
    run("plan", "--output_dir", str(folder / "pool"), "--recipe", str(folder / "recipe.yaml"), *size)
    return folder / "pool"


def run(*words: str) -> None:
    """Run one action of ``safesynthdp attack``."""
    subprocess.run([sys.executable, "-m", "safesynthdp", "attack", *words], check=True, stdout=subprocess.DEVNULL)


def lifetimes_of(pool: Pool) -> list[float]:
    """Return the seconds from the begin of each worker to its manifest."""
    attempts = json.loads((pool.path / "jobs.json").read_text())["attempts"]
    if any(len(rows) != 1 for rows in attempts.values()):
        raise SystemExit("a worker failed: this measures nothing")
    ends = {spec.key: (pool.folder(spec) / SHARD_MANIFEST).stat().st_mtime for spec in pool.shards}
    return [ends[key] - rows[0]["begun"] for key, rows in attempts.items()]


if __name__ == "__main__":
    main()
