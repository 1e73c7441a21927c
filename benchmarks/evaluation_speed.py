"""What an evaluation of likeness costs: seconds, processor seconds and memory of `safesynthdp evaluate`.

python benchmarks/evaluation_speed.py                         # vader, 2,000 against 2,000: minutes
python benchmarks/evaluation_speed.py --records 100000        # made-up sentences, 100,000 against 100,000

A fresh cache for vectors and scores, so everything is computed; encoder and language model are those that were fetched.
Appends to benchmarks/results/DATE-evaluation-speed.md. Target: 4 minutes and 3 GB for 2,000 on two cores.
"""

import argparse
import csv
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from safesynthdp.data_config import DataConfig
from safesynthdp.evaluation.selftest_corpora import Pairs, made_up_pairs
from safesynthdp.fetching import cache_directory
from safesynthdp.records import load_split

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
HEAD = """# What `safesynthdp evaluate` costs, {date}

{cores} shared x86-64 cores, no GPU. Other work ran on the machine: processor seconds count more than the clock.

| records a side | classifiers | seconds | processor seconds | peak GiB | target | commit | |
|---|---|---|---|---|---|---|---|
"""
TARGETS = {2_000: "240 s, 3 GB"}


def main() -> None:
    """Write three files, evaluate them, write down what it cost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=2_000)
    parser.add_argument("--downstream", default="lr")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = write_files(folder, arguments.records)
        cache = folder / "cache" / "safesynthdp"
        cache.mkdir(parents=True)
        for model in cache_directory().iterdir():  # the models, not the vectors
            if model.name != "embeddings":
                (cache / model.name).symlink_to(model)
        command = [sys.executable, str(ROOT / "eval" / "utility.py"), *flags, "--downstream", arguments.downstream]
        began = time.monotonic()
        done = subprocess.run(command, env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}, check=False)
        seconds = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    line = (
        f"| {arguments.records} | {arguments.downstream} | {seconds:.0f} | {used.ru_utime + used.ru_stime:.0f} | "
        f"{used.ru_maxrss / 2**20:.2f} | {TARGETS.get(arguments.records, '-')} | {commit.stdout.strip()} | "
        f"{'ok' if done.returncode == 0 else 'FAILED'} |"
    )
    path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-evaluation-speed.md"
    if not path.exists():
        path.write_text(HEAD.format(date=f"{datetime.now(UTC):%Y-%m-%d}", cores=os.cpu_count()), encoding="utf-8")
    with path.open("a", encoding="utf-8") as handle:
        handle.write(f"{line}\n")
    print(line)


def write_files(folder: Path, records: int) -> list[str]:
    """Write real (twice as many), synthetic and holdout, and return the flags that name them."""
    pool = _vader() if records <= 4_000 else made_up_pairs(4 * records, random.Random(0))
    parts = {
        "synthetic": pool[:records],
        "holdout": pool[records : 2 * records],
        "real": pool[2 * records : 4 * records],
    }
    flags = ["--output_dir", str(folder / "out")]
    for role, pairs in parts.items():
        path = folder / f"{role}.csv"
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow(("text", "label"))
            writer.writerows(pairs)
        flags += [f"--{role}", str(path)]
    return flags


def _vader() -> Pairs:
    split = load_split(DataConfig(builtin="vader"))
    pairs = list(zip(split.train.texts, split.train.labels, strict=True))
    random.Random(0).shuffle(pairs)
    return pairs


if __name__ == "__main__":
    main()
