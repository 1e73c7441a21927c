"""The sanity matrix of the evaluation, written into docs/evaluation.md between the two marks.

python benchmarks/evaluation_matrix.py                   # the builtin vader, about 15 minutes on two cores
python benchmarks/evaluation_matrix.py --level quick     # made-up text, under a minute; printed only

Runs what `safesynthdp selftest evaluation --level full` runs. Encoder and language model are those in the cache; fetch
them first with `--embedding_model minilm` and `--reference_model smollm2-135m`. Nothing in the table is typed by hand.
"""

import argparse
import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

from safesynthdp.evaluation.selftest_matrix import markdown, run

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "evaluation.md"
BEGIN, END = "<!-- matrix: written by benchmarks/evaluation_matrix.py -->", "<!-- end of matrix -->"


def main() -> None:
    """Run the matrix, print it, and rewrite the page if it is the full one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--level", choices=("quick", "full"), default="full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without_reference_model", action="store_true", help="half the time, no bits per byte")
    arguments = parser.parse_args()
    began, commit = time.monotonic(), _commit()
    reference = None if arguments.without_reference_model else "auto"
    facts = run(level=arguments.level, seed=arguments.seed, reference_model=reference)
    seconds = time.monotonic() - began
    lines = markdown(facts)
    lines += [
        "",
        f"{facts['size']} records a side, {facts['text']}, encoder {facts['encoder']}, reference model "
        f"{facts['reference_lm'] or 'none'}, {facts['buckets']} buckets, seed {arguments.seed}; "
        f"{'passed' if facts['passed'] else 'FAILED: ' + ', '.join(facts['failed'])}; {seconds / 60:.0f} minutes on "
        f"{os.cpu_count()} shared {platform.machine()} cores, {datetime.now(UTC):%Y-%m-%d}, commit {commit}.",
    ]
    print("\n".join(lines))
    if arguments.level == "full":
        text = PAGE.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}", encoding="utf-8")


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
