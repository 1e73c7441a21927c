"""Utility and memorisation of 100,000 synthetic texts against 100,000 real ones: seconds and peak memory.

python benchmarks/evaluation_large.py                            # 100,000 a side, a holdout of 20,000
python benchmarks/evaluation_large.py --num_records 20000

The texts are made from the builtin vader text: the first half of one joined to the second half of another of the same
label. They stand for size, not for a result. Writes benchmarks/results/DATE-evaluation-large.md.
"""

import argparse
import os
import platform
import random
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from safesynthdp.evaluation.inputs import Corpora
from safesynthdp.evaluation.memorisation import measure_memorisation
from safesynthdp.evaluation.utility import measure_utility
from safesynthdp.record_set import record_hashes
from safesynthdp.records import DataConfig, Records, load_split

RESULTS = Path(__file__).parent / "results"
FAMILIES = ("lr", "nb", "svm")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--num_records", type=int, default=100_000)
    parser.add_argument("--num_holdout", type=int, default=20_000)
    asked = parser.parse_args()
    split = load_split(DataConfig(builtin="vader"))
    corpora = Corpora(
        real=_joined(split.train, asked.num_records, seed=1),
        synthetic=_joined(split.train, asked.num_records, seed=2),
        holdout=_joined(split.holdout, asked.num_holdout, seed=3),
    )
    lines, before = list[str](), (time.process_time(), time.monotonic())

    def lap(what: str) -> None:
        nonlocal before
        now = time.process_time(), time.monotonic()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        lines.append(f"| {what} | {now[0] - before[0]:.0f} | {now[1] - before[1]:.0f} | {peak:.2f} |")
        sys.stdout.write(f"{lines[-1]}\n")
        sys.stdout.flush()
        before = now

    memorised = measure_memorisation(corpora, progress=lap, num_worst=20)
    lap("memorisation, the rest")
    utility = measure_utility(corpora, families=FAMILIES, seeds=3, progress=lap)
    lap("utility, the rest")
    notes = [line for line in (*memorised.warnings, *utility.warnings) if "random part" in line]
    path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-evaluation-large.md"
    path.write_text(_page(lines, notes, corpora), encoding="utf-8")
    sys.stdout.write(f"wrote {path}\n")


def _joined(records: Records, count: int, *, seed: int) -> Records:
    rng, by_label = random.Random(seed), dict[str, list[str]]()
    for text, label in zip(records.texts, records.labels, strict=True):
        by_label.setdefault(label, []).append(text)
    labels = tuple(rng.choices(records.labels, k=count))
    texts = list[str]()
    for label in labels:
        first, second = (rng.choice(by_label[label]).split() for _ in range(2))
        texts.append(" ".join(first[: len(first) // 2 + 1] + second[len(second) // 2 :]))
    ids = tuple(record_hashes(texts, labels, None))
    return Records(texts=tuple(texts), labels=labels, record_ids=ids, label_set=records.label_set)


def _page(lines: list[str], notes: list[str], corpora: Corpora) -> str:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=RESULTS, capture_output=True, text=True, check=True
    ).stdout.strip()
    load = os.getloadavg()[1]
    table = "\n".join(["| step | processor s | seconds | peak GiB so far |", "|---|---|---|---|", *lines])
    caps = "\n".join(f"- {note}" for note in notes)
    return (
        f"# Evaluation of large files\n\n{datetime.now(UTC):%Y-%m-%d}, commit {commit}, {os.cpu_count()} cores of "
        f"{platform.machine()} with a load of {load:.1f} (a busy machine: read seconds as orders).\n\n"
        f"{len(corpora.real)} training, {len(corpora.synthetic)} synthetic, {len(corpora.holdout)} holdout texts; "
        f"families {', '.join(FAMILIES)}, 3 seeds.\n\n{table}\n\nCaps that were said:\n\n{caps}\n\n"
        "Method: `python benchmarks/evaluation_large.py`.\n"
    )


if __name__ == "__main__":
    main()
