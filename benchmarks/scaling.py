"""What a second process gains and costs: time of a logical step, of its reduction, and of a saved state.

python benchmarks/scaling.py --steps 12            # this machine, CPU and gloo; one process, then two

A step is timed whole (draw, clip, reduction, noise, update) on a made-up model and made-up records; both arms make the
same draws. Reduction and saving are timed by themselves. One thread a process. Lines for benchmarks/results.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from safesynthdp.privacy.mechanisms import DPSGDMechanism
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.training.bookkeeping import BookkeepingEngine
from safesynthdp.training.clipping import trainable_parameters
from safesynthdp.training.config import HardwareConfig
from safesynthdp.training.examples import Example
from safesynthdp.training.launching import end_ranks, start_ranks
from safesynthdp.training.state import Clock, save_state
from safesynthdp.training.step import add_noise, set_gradients, sum_clipped_gradients, zero_sums

SAVE_STEPS = 10  # the default of train.save_steps
NUM_RECORDS, BATCH, LENGTH = 2000, 32, 64


def main() -> None:
    """Run both arms, or, as one of the processes of an arm, time it."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--work", type=Path, default=None, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work is not None:
        time_arm(asked.work, steps=asked.steps, hidden_size=asked.hidden_size)
        return
    arms = {size: run_arm(size) for size in (1, 2)}
    for size, arm in arms.items():
        step, spread = statistics.median(arm["steps"]), statistics.pstdev(arm["steps"])
        share = arm["save"] / (SAVE_STEPS * step)
        print(
            f"{size} processes: {step:.3f} s a step (spread {spread:.3f}, {len(arm['steps'])} steps), of it reduction "
            f"{arm['reduce']:.4f} s for {arm['parameters']:,} trained; saving {arm['save']:.3f} s = {share:.1%} at "
            f"every {SAVE_STEPS} steps"
        )
    gain = statistics.median(arms[1]["steps"]) / statistics.median(arms[2]["steps"])
    print(f"two processes take a step {gain:.2f} times as fast as one; load average {os.getloadavg()[0]:.1f}")


def run_arm(size: int) -> dict[str, Any]:
    """Start the processes of an arm and return what rank 0 measured."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        common = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        if size > 1:
            common |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
            common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, __file__, *sys.argv[1:], "--work", folder]
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {} for rank in range(size)]
        processes = [subprocess.Popen(command, env=common | rank) for rank in ranks]
        for process in processes:
            if process.wait(timeout=900):
                raise SystemExit("a process of the benchmark failed")
        return dict(json.loads((Path(folder) / "found.json").read_text()))


def time_arm(work: Path, *, steps: int, hidden_size: int) -> None:
    """Take ``steps`` steps and write the times; the first step is not counted."""
    ranks = start_ranks()
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": hidden_size, "intermediate_size": 4 * hidden_size, "num_hidden_layers": 4}
    model: nn.Module = LlamaForCausalLM(
        LlamaConfig(vocab_size=2000, num_attention_heads=4, tie_word_embeddings=False, **sizes)
    ).train()
    engine, trainable = BookkeepingEngine(model), trainable_parameters(model)
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    mechanism = DPSGDMechanism(
        num_records=NUM_RECORDS,
        expected_batch_size=BATCH,
        noise_multiplier=1.0,
        steps=steps,
        per_sample_max_grad_norm=1.0,
    )
    keys, records = StepKeys.from_unsafe_seed(0), made_up()
    sums, times = zero_sums(trainable), list[float]()
    for step in range(steps + 1):
        began = time.perf_counter()
        drawn = [[records[i]] for i in mechanism.draw_batch(step=step, keys=keys).tolist()]
        sum_clipped_gradients(
            model,
            engine,
            sums,
            drawn,
            per_sample_max_grad_norm=1.0,
            hardware=HardwareConfig(max_tokens_per_microbatch=256),
            pad_token_id=0,
            dropout_seed=step,
            ranks=ranks,
        )
        add_noise(sums, mechanism=mechanism, keys=keys, step=step)
        set_gradients(trainable, sums, divisor=BATCH)
        optimizer.step()
        scheduler.step()
        times.append(time.perf_counter() - began)
    reductions = [timed(lambda: ranks.add_up(sums.values())) for _ in range(5)]
    if ranks.is_main:
        saves = list[float]()
        for step in range(3):
            clock = Clock(step=step, incarnation=0, abandoned=0, signal="")
            parts = {"trainable": trainable, "optimizer": optimizer, "scheduler": scheduler}
            saves.append(timed(lambda clock=clock, parts=parts: save_state(work / "state", clock=clock, **parts)))
        found = {
            "steps": times[1:],
            "reduce": statistics.median(reductions),
            "save": statistics.median(saves),
            "parameters": sum(parameter.numel() for parameter in trainable.values()),
        }
        (work / "found.json").write_text(json.dumps(found))
    end_ranks(ranks)


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def made_up() -> list[Example]:
    """Return ragged records of random tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(LENGTH // 4, LENGTH + 1, (NUM_RECORDS,), generator=generator).tolist()
    ids = [tuple(torch.randint(2000, (length,), generator=generator).tolist()) for length in lengths]
    return [Example(input_ids=row, num_prompt_tokens=1, is_truncated=False) for row in ids]


if __name__ == "__main__":
    main()
