"""What the loss of a micro-batch costs: plain cross entropy against log-probabilities that widen a few rows at a time.

OMP_NUM_THREADS=1 python benchmarks/token_log_probs.py      # seconds

Forward and backward pass from logits [32, 33, 49152], those of 32 short texts under SmolLM2's vocabulary, to the
gradient of the logits. Arms take turns in one process; processor time. Writes
benchmarks/results/DATE-token-log-probs.md.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn

from safesynthdp.runs import commit
from safesynthdp.training.loss import _PickedLogProbs

RESULTS = Path(__file__).parent / "results"
ROWS, TOKENS, VOCABULARY, REPEATS = 32, 33, 49152, 7


def main() -> None:
    """Time both and write a dated table."""
    lines = [
        f"# Log-probabilities of a micro-batch, {datetime.now(UTC):%Y-%m-%d}",
        "",
        "| logits | cross entropy, s | a few rows at a time, s | ratio, median (lowest to highest) |",
        "|---|---|---|---|",
    ]
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        logits = torch.randn(ROWS, TOKENS, VOCABULARY).to(dtype)
        targets = torch.randint(VOCABULARY, (ROWS, TOKENS))
        plain, few = list[float](), list[float]()
        for _ in range(REPEATS + 1):
            plain.append(_seconds(_cross_entropy, logits, targets))
            few.append(_seconds(_few_rows, logits, targets))
        ratios = sorted(b / a for a, b in zip(plain[1:], few[1:], strict=True))
        lines.append(
            f"| {str(dtype).removeprefix('torch.')} | {statistics.median(plain[1:]):.2f} | "
            f"{statistics.median(few[1:]):.2f} | "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )
    lines += [
        "",
        f"{ROWS} x {TOKENS} tokens, vocabulary {VOCABULARY}, forward and backward; processor time, {REPEATS} "
        f"interleaved repeats after a warm-up, {torch.get_num_threads()} threads. {platform.machine()}, "
        f"torch {torch.__version__}, commit {commit()}.",
    ]
    text = "\n".join(lines) + "\n"
    (RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-token-log-probs.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def _seconds(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor) -> float:
    leaf = logits.detach().clone().requires_grad_()
    began = time.process_time()
    loss(leaf, targets).sum().backward()  # type: ignore[no-untyped-call]
    return time.process_time() - began


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")


def _few_rows(logits: Tensor, targets: Tensor) -> Tensor:
    picked: Tensor = _PickedLogProbs.apply(logits.flatten(0, 1), targets.flatten())  # type: ignore[no-untyped-call]
    return -picked


if __name__ == "__main__":
    main()
