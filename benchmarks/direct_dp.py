"""What a classifier trained directly with DP reaches on the demo text, by epsilon: the bar for synthetic text.

python benchmarks/direct_dp.py                       # the builtin vader text, 5 draws of the noise, some minutes
python benchmarks/direct_dp.py --seeds 2 --epsilons 8

Trains the models of evaluation/direct.py (the third on MiniLM vectors) on the training side of `vader` (label: domain)
and tests them on the holdout. Writes benchmarks/results/DATE-direct-dp.md.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from safesynthdp.evaluation.direct import EMBEDDED, MODELS, Promise, predict_directly, predict_embedded_directly
from safesynthdp.evaluation.embeddings import embed
from safesynthdp.evaluation.encoders import choose_encoder
from safesynthdp.records import DataConfig, load_split

RESULTS = Path(__file__).parent / "results"
DELTA = 1e-5


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--epsilons", type=float, nargs="+", default=[1.0, 2.0, 4.0, 8.0])
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    split = load_split(DataConfig(builtin="vader"))
    classes = sorted(set(split.holdout.labels))
    truth = np.array([classes.index(label) for label in split.holdout.labels])
    lines, began, encoder = list[str](), time.process_time(), choose_encoder("minilm")
    for epsilon in asked.epsilons:
        promise = Promise(epsilon=epsilon, delta=DELTA, unit="record", adjacency="add_remove", source="benchmark")
        found = predict_directly(
            split.train, split.holdout.texts, classes, promise=promise, seeds=asked.seeds, progress=lambda _: None
        )
        found[EMBEDDED] = predict_embedded_directly(
            split.train, split.holdout.texts, classes, embed=partial(embed, encoder=encoder),
            max_records=len(split.train), promise=promise, seeds=asked.seeds, progress=lambda _: None,
        )  # fmt: skip
        shares = {model: [float((said == truth).mean()) for said in found[model]] for model in MODELS}
        cells = [f"{np.mean(shares[model]):.3f} ({np.std(shares[model]):.3f})" for model in MODELS]
        lines.append(f"| {epsilon:g} | {' | '.join(cells)} |")
        sys.stdout.write(f"{lines[-1]}\n")
        sys.stdout.flush()
    text = _page(lines, len(split.train), len(truth), asked.seeds, time.process_time() - began)
    path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-direct-dp.md"
    path.write_text(text, encoding="utf-8")
    sys.stdout.write(f"wrote {path}\n")


def _page(lines: list[str], num_train: int, num_test: int, seeds: int, seconds: float) -> str:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=RESULTS, capture_output=True, text=True, check=True
    ).stdout.strip()
    table = "\n".join(
        ["| epsilon | naive Bayes | logistic regression | the same on MiniLM vectors |", "|---|---|---|---|", *lines]
    )
    return (
        f"# Direct DP training on the demo text\n\n{datetime.now(UTC):%Y-%m-%d}, commit {commit}, "
        f"{os.cpu_count()} cores of {platform.machine()}, {seconds:.0f} processor seconds.\n\n"
        f"`vader`, label domain, {num_train} training and {num_test} test records, delta {DELTA:g}, unit record, "
        f"adjacency add_remove. Accuracy on the holdout: mean and standard deviation over {seeds} draws of the noise "
        f"(seeded).\n\n{table}\n\nMethod: `python benchmarks/direct_dp.py`.\n"
    )


if __name__ == "__main__":
    main()
