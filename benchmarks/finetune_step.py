"""What a private step costs: one logical step with per-record clipping and noise against the same step without.

python benchmarks/finetune_step.py                                     # SmolLM2-135M, LoRA r=8, builtin texts
python benchmarks/finetune_step.py --model tiny --repeats 3            # seconds, no download

Both arms share the model, the drawn records, the micro-batches and the loss vector; they are timed in turn within one
process, so that a busy machine slows both. Writes benchmarks/results/DATE-finetune-step.md.
"""

import argparse
import math
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Time both arms in turn and write a dated file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=["smollm2-135m", "tiny"], default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=40)
    arguments = parser.parse_args()

    import torch

    from safesynthdp.models import quiet

    quiet()
    arms = {name: _arm(name, arguments) for name in ("private", "plain")}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for name in arms:
        arms[name]()  # warm-up
    for _ in range(arguments.repeats):
        for name, step in arms.items():
            began = time.monotonic()
            step()
            seconds[name].append(time.monotonic() - began)
    _write(arguments, seconds, threads=torch.get_num_threads())


def _arm(name: str, arguments: argparse.Namespace) -> Any:
    """Return a function that does one whole logical step of an arm, noise and optimizer included."""
    import torch

    from safesynthdp.model_config import FromScratchConfig, LoraConfig, ModelConfig
    from safesynthdp.models import load_base_model, make_trainable
    from safesynthdp.privacy.mechanisms import DPSGDMechanism
    from safesynthdp.privacy.randomness import StepKeys
    from safesynthdp.training.clipping import HooksEngine, PlainEngine, trainable_parameters
    from safesynthdp.training.config import HardwareConfig
    from safesynthdp.training.examples import Example
    from safesynthdp.training.step import add_noise, set_gradients, sum_clipped_gradients, zero_sums

    tiny = arguments.model == "tiny"
    config = ModelConfig(from_scratch=FromScratchConfig()) if tiny else ModelConfig(model_name_or_path=arguments.model)
    model = make_trainable(load_base_model(config, seed=0), LoraConfig(lora_r=8), seed=0, use_lora=True).train()
    engine = HooksEngine(model) if name == "private" else PlainEngine(model)
    trainable = trainable_parameters(model)
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-3)
    ids = torch.randint(250, (arguments.rows, arguments.length), generator=torch.Generator().manual_seed(0)).tolist()
    examples = [Example(input_ids=tuple(row), num_prompt_tokens=4, is_truncated=False) for row in ids]
    mechanism = DPSGDMechanism(
        num_records=10_000,
        expected_batch_size=arguments.rows,
        noise_multiplier=0.6,
        steps=100,
        per_sample_max_grad_norm=1.0,
    )
    keys, sums = StepKeys.from_unsafe_seed(0), zero_sums(trainable)

    def step() -> None:
        sum_clipped_gradients(
            model,
            engine,
            sums,
            examples,
            per_sample_max_grad_norm=1.0 if name == "private" else math.inf,
            hardware=HardwareConfig(max_tokens_per_microbatch=512),
            pad_token_id=0,
            dropout_seed=0,
        )
        if name == "private":
            add_noise(sums, mechanism=mechanism, keys=keys, step=0)
        set_gradients(trainable, sums, divisor=arguments.rows)
        optimizer.step()

    return step


def _write(arguments: argparse.Namespace, seconds: dict[str, list[float]], *, threads: int) -> None:
    from safesynthdp.runs import commit, hardware

    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = sorted(p / q for p, q in zip(seconds["private"], seconds["plain"], strict=True))
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    lines = [
        f"# The price of a private step, {date}",
        "",
        f"{arguments.model}, LoRA r=8 on all linear layers, engine `hooks`, float32; {arguments.rows} records of "
        f"{arguments.length} tokens a step, micro-batches of at most 512 tokens; {threads} threads.",
        f"Hardware {hardware()}, commit {commit()}. {arguments.repeats} interleaved repeats after a warm-up; noise and",
        "optimizer included. The plain arm is `privacy.mode: none`: same records and losses, ordinary backward.",
        "",
        "| arm | median seconds a step | lowest | highest |",
        "|---|---|---|---|",
        *(f"| {n} | {median[n]:.2f} | {min(v):.2f} | {max(v):.2f} |" for n, v in seconds.items()),
        "",
        f"Ratio private / plain: median {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}.",
        "Not measured: GPU, other lengths, memory.",
        "",
    ]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{date}-finetune-step-{arguments.model}.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    sys.stdout.write("\n".join([*lines, f"written to {path}", ""]))


if __name__ == "__main__":
    main()
