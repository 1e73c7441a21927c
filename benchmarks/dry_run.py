"""Predicted and measured memory of a step, on the CPU of this machine; lines for docs/howto/dry_run.md.

python benchmarks/dry_run.py            # a process for each size, made-up model and records

Measured is the rise of the process's peak memory (VmHWM) from the built model to the end of two steps, plus the
weights, with an allocator that gives every block back (MALLOC_MMAP_THRESHOLD_); glibc's usual slack would be on top.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from safesynthdp.model_config import LoraConfig
from safesynthdp.models import make_trainable
from safesynthdp.training.bookkeeping import BookkeepingEngine
from safesynthdp.training.clipping import trainable_parameters
from safesynthdp.training.config import HardwareConfig
from safesynthdp.training.dry_run import GIB, footprint
from safesynthdp.training.examples import Example
from safesynthdp.training.step import set_gradients, sum_clipped_gradients, zero_sums

CASES = {  # name: hidden size, layers, LoRA, rows, length
    "full, 23 M": (384, 6, False, 8, 128),
    "full, 61 M": (640, 8, False, 4, 128),
    "LoRA, 61 M": (640, 8, True, 16, 128),
    "LoRA, 230 M": (1024, 14, True, 16, 128),
}


def main() -> None:
    """Run each case in a process of its own."""
    if len(sys.argv) > 1:
        measure(sys.argv[1])
        return
    for name in CASES:
        tidy = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, __file__, name], env=tidy, check=True)


def measure(name: str) -> None:
    """Print one line."""
    hidden, layers, use_lora, rows, length = CASES[name]
    sizes: dict[str, Any] = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers}
    shape = LlamaConfig(vocab_size=8000, num_attention_heads=8, tie_word_embeddings=False, **sizes)
    with torch.device("meta"):
        empty = make_trainable(LlamaForCausalLM(shape), LoraConfig(), seed=0, use_lora=use_lora).train()
    found = footprint(empty, rows=rows, length=length)
    model = make_trainable(LlamaForCausalLM(shape), LoraConfig(), seed=0, use_lora=use_lora).train()
    before = peak()
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    engine, trainable = BookkeepingEngine(model), trainable_parameters(model)
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-3)
    sums = zero_sums(trainable)
    drawn = [[Example(input_ids=tuple(range(length)), num_prompt_tokens=1, is_truncated=False)]] * rows
    for step in range(2):
        sum_clipped_gradients(
            model,
            engine,
            sums,
            drawn,
            per_sample_max_grad_norm=1.0,
            hardware=HardwareConfig(max_tokens_per_microbatch=rows * length),
            pad_token_id=0,
            dropout_seed=step,
        )
        set_gradients(trainable, sums, divisor=rows)
        optimizer.step()
    measured = (peak() - before + weights) / GIB
    print(f"| {name} | {rows} x {length} | {found.total / GIB:.2f} | {measured:.2f} |")


def peak() -> int:
    """Return the most memory this process has held, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()  # not ru_maxrss: a child begins with its parent's
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


if __name__ == "__main__":
    main()
