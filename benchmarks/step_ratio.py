"""What a private step costs: bookkeeping, hooks and ghost against the same step without clip and noise.

OMP_NUM_THREADS=1 python benchmarks/step_ratio.py          # SmolLM2-135M LoRA and a 6-layer Llama in full; ~40 min
python benchmarks/step_ratio.py --cases lora --lengths 64    # one row of the table
python benchmarks/step_ratio.py --cases tiny --repeats 2     # seconds, no download

All arms of a case share one model, the records, the micro-batches, the loss vector and the optimizer, and take turns
within one process, so that a busy machine slows all alike; a step is the whole logical step, noise included. Time is
processor time of one thread (OMP_NUM_THREADS=1), since other work on the machine would decide a clock on the wall. Peak
memory is the resident set of a process of its own for each arm. Writes benchmarks/results/DATE-step-ratio-CASES.md and
.json.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TOKENS = {"lora": 1024, "full": 4096, "tiny": 1024}
"""Tokens of a logical step."""
ARMS = ("plain", "bookkeeping", "hooks", "ghost")
CASES = {
    "lora": "LoRA r=16 on all linear layers of smollm2-135m, float32",
    "full": "all parameters of a 6-layer Llama: hidden 576, SmolLM2's shapes and vocabulary, untied, float32",
    "tiny": "LoRA r=4 on a 2-layer Llama: a smoke test, not a result",
}


def main() -> None:
    """Time the arms in turn, measure their memory, and write a dated table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["lora", "full"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[64, 256], help="tokens of a record")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--microbatch", type=int, default=1024, help="hardware.max_tokens_per_microbatch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip", nargs="*", choices=["memory", "lengths"], default=[])
    parser.add_argument("--peak", nargs=3, metavar=("CASE", "LENGTH", "ARM"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        case, length, arm = arguments.peak
        _show_peak(case, int(length), arm, arguments)
        return
    found: dict[str, Any] = {"rows": [], "cases": CASES}
    for case in arguments.cases:
        for length in arguments.lengths:
            found["rows"] += _rows(case, length, arguments)
            _write(found, arguments)  # what is measured is kept, whatever happens to the rest
        if "lengths" not in arguments.skip and case != "tiny":
            found[f"sorting_{case}"] = _sorting(case, arguments)
    _write(found, arguments)


def _rows(case: str, length: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    bench = _Bench(case, arguments.microbatch)
    texts = bench.made_up(length, TOKENS[case] // length)
    seconds: dict[str, list[float]] = {arm: [] for arm in arguments.arms}
    for arm in arguments.arms:
        bench.step(arm, texts)  # warm-up
    for _ in range(arguments.repeats):
        for arm in arguments.arms:
            seconds[arm].append(bench.step(arm, texts)["seconds"])
    noise = bench.step("bookkeeping", texts)
    rows = list[dict[str, Any]]()
    for arm in arguments.arms:
        ratios = sorted(a / b for a, b in zip(seconds[arm], seconds["plain"], strict=True))
        row = {"case": case, "length": length, "arm": arm, "seconds": seconds[arm], "ratios": ratios}
        row["peak_gib"] = None if "memory" in arguments.skip else _peak(case, length, arm, arguments)
        row["noise_share"] = noise["noise"] / noise["seconds"] if arm == "bookkeeping" else None
        rows.append(row)
        sys.stderr.write(f"{case} {length} {arm}: {statistics.median(ratios):.3f} {row['peak_gib']}\n")
    return rows


class _Bench:
    """One model, attached to one engine at a time."""

    def __init__(self, case: str, microbatch: int) -> None:
        import torch

        from safesynthdp.model_config import LoraConfig
        from safesynthdp.models import make_trainable, quiet
        from safesynthdp.training.clipping import trainable_parameters
        from safesynthdp.training.config import HardwareConfig

        quiet()
        lora = LoraConfig(lora_r=4 if case == "tiny" else 16, lora_dropout=0.0)
        self.model = make_trainable(_base(case), lora, seed=0, use_lora=case != "full").train()
        self.trainable = trainable_parameters(self.model)
        self.optimizer = torch.optim.AdamW(self.trainable.values(), lr=1e-4)
        self.hardware = HardwareConfig(max_tokens_per_microbatch=microbatch)

    def made_up(self, length: int, count: int) -> list[Any]:
        """Return records of one length, random tokens."""
        import torch

        from safesynthdp.training.examples import Example

        ids = torch.randint(250, (count, length), generator=torch.Generator().manual_seed(0)).tolist()
        return [[Example(input_ids=tuple(row), num_prompt_tokens=4, is_truncated=False)] for row in ids]

    def step(self, arm: str, drawn: Sequence[Any], clip: Callable[..., None] | None = None) -> dict[str, float]:
        """Do one logical step and return its processor seconds (all threads), and those of the noise."""
        from safesynthdp.privacy.mechanisms import DPSGDMechanism
        from safesynthdp.privacy.randomness import StepKeys
        from safesynthdp.training.engines import choose_engine
        from safesynthdp.training.step import add_noise, set_gradients, sum_clipped_gradients, zero_sums

        bound = math.inf if arm == "plain" else 1.0
        mechanism = DPSGDMechanism(
            num_records=10_000,
            expected_batch_size=len(drawn),
            noise_multiplier=0.6,
            steps=10,
            per_sample_max_grad_norm=1.0,
        )
        engine = choose_engine(self.model, clipping_engine=arm, rows=1, dp=arm != "plain").engine
        sums, noise = zero_sums(self.trainable), 0.0
        began = time.process_time()
        if clip is None:
            sum_clipped_gradients(
                self.model,
                engine,
                sums,
                drawn,
                per_sample_max_grad_norm=bound,
                hardware=self.hardware,
                pad_token_id=0,
                dropout_seed=0,
            )
        else:
            clip(self.model, engine, sums)
        if arm != "plain":
            before = time.process_time()
            add_noise(sums, mechanism=mechanism, keys=StepKeys.from_unsafe_seed(0), step=0)
            noise = time.process_time() - before
        set_gradients(self.trainable, sums, divisor=len(drawn))
        self.optimizer.step()
        seconds = time.process_time() - began
        engine.close()
        return {"seconds": seconds, "noise": noise}


def _base(case: str) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from safesynthdp.model_config import FromScratchConfig, ModelConfig
    from safesynthdp.models import load_base_model

    if case == "lora":
        return load_base_model(ModelConfig(model_name_or_path="smollm2-135m"), seed=0)
    if case == "tiny":
        return load_base_model(ModelConfig(from_scratch=FromScratchConfig()), seed=0)
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=6,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=False,
        )
    )


def _sorting(case: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Length-sorted micro-batches against the order of the draw, on the lengths of the builtin texts."""
    from safesynthdp.data_config import DataConfig
    from safesynthdp.model_config import ModelConfig
    from safesynthdp.models import PromptTemplate, load_tokenizer
    from safesynthdp.records import load_split
    from safesynthdp.training.examples import encode
    from safesynthdp.training.step import clip_units

    records = load_split(DataConfig(builtin="vader")).train
    tokenizer = load_tokenizer(ModelConfig(model_name_or_path="smollm2-135m"))
    texts, labels = records.texts[:96], records.labels[:96]
    made = encode(texts, labels, tokenizer=tokenizer, template=PromptTemplate(), max_length=256)
    drawn, bench = [[example] for example in made], _Bench(case, arguments.microbatch)
    parts = _unsorted(made, arguments.microbatch)

    def unsorted(model: Any, engine: Any, sums: Any) -> None:
        for part in parts:
            clip_units(model, engine, sums, [drawn[i] for i in part], per_sample_max_grad_norm=1.0, pad_token_id=0)

    ratios = list[float]()
    for turn in range(arguments.repeats + 1):
        by_length, by_draw = bench.step("bookkeeping", drawn), bench.step("bookkeeping", drawn, unsorted)
        ratios += [by_draw["seconds"] / by_length["seconds"]] if turn else []
    own = sum(len(example) for example in made)
    padded = sum(len(part) * max(len(made[i]) for i in part) for part in parts)
    return {"texts": len(made), "tokens": own, "padded_unsorted": padded, "ratios": sorted(ratios)}


def _unsorted(made: Sequence[Any], budget: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for i, example in enumerate(made):
        width = max([len(example), *(len(made[j]) for j in parts[-1])])
        if parts[-1] and (len(parts[-1]) + 1) * width > budget:
            parts.append([])
        parts[-1].append(i)
    return parts


def _peak(case: str, length: int, arm: str, arguments: argparse.Namespace) -> float:
    """Run two steps of one micro-batch in a process of its own and return its peak resident set, GiB."""
    words = [sys.executable, __file__, "--peak", case, str(length), arm, "--microbatch", str(arguments.microbatch)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def _show_peak(case: str, length: int, arm: str, arguments: argparse.Namespace) -> None:
    bench = _Bench(case, arguments.microbatch)
    for _ in range(2):
        bench.step(arm, bench.made_up(length, arguments.microbatch // length))
    # Not ru_maxrss: a child begins with its parent's.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    sys.stdout.write(f"{int(peak.split()[1]) / 2**20:.3f}\n")


def _write(found: dict[str, Any], arguments: argparse.Namespace) -> None:
    import torch

    from safesynthdp.runs import commit, hardware, versions

    date = datetime.now(UTC).strftime("%Y-%m-%d")
    facts = {"date": date, "hardware": hardware(), "commit": commit(), "versions": versions()}
    facts |= {"threads": torch.get_num_threads(), "settings": vars(arguments)}
    lines = [
        f"# The price of a private step, {date}",
        "",
        *_table(found, arguments),
        "",
        *_method(facts, arguments),
        "",
    ]
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"{date}-step-ratio-{'-'.join(arguments.cases)}"
    stem.with_suffix(".json").write_text(json.dumps(facts | found, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")
    sys.stdout.write("\n".join([*lines, f"written to {stem}.md", ""]))


def _table(found: dict[str, Any], arguments: argparse.Namespace) -> list[str]:
    lines = ["| case | tokens a record | engine | processor time, x plain (lowest to highest) | peak memory, x plain |"]
    lines.append("|---|---|---|---|---|")
    plain = {(row["case"], row["length"]): row["peak_gib"] for row in found["rows"] if row["arm"] == "plain"}
    for row in found["rows"]:
        low, high, middle = row["ratios"][0], row["ratios"][-1], statistics.median(row["ratios"])
        base = plain[row["case"], row["length"]]
        memory = "" if base is None else f"{row['peak_gib'] / base:.2f} ({row['peak_gib']:.2f} GiB)"
        lines.append(
            f"| {row['case']} | {row['length']} | {row['arm']} | {middle:.2f} ({low:.2f} to {high:.2f}) | {memory} |"
        )
    for row in found["rows"]:
        if row["noise_share"] is not None:
            lines += ["", f"Noise, {row['case']} at {row['length']}: {row['noise_share']:.1%} of the bookkeeping step."]
    for case in arguments.cases:
        sorting = found.get(f"sorting_{case}")
        if sorting:
            lines += [
                "",
                f"Builtin texts, {case}: the order of the draw takes {statistics.median(sorting['ratios']):.2f} times "
                f"as long as length-sorted micro-batches ({sorting['texts']} texts, {sorting['tokens']:,} tokens, "
                f"{sorting['padded_unsorted']:,} with padding when unsorted).",
            ]
    return lines


def _method(facts: dict[str, Any], arguments: argparse.Namespace) -> list[str]:
    return [
        *(f"- `{case}`: {CASES[case]}; {TOKENS[case]} tokens a logical step." for case in arguments.cases),
        f"- Micro-batches of at most {arguments.microbatch} tokens; "
        f"processor time, {arguments.repeats} interleaved repeats after a warm-up, {facts['threads']} threads; noise, "
        "division and AdamW included. `plain` is `privacy.mode: none`: same records, batches and losses, ordinary "
        "backward pass.",
        f"- Hardware {facts['hardware']}, commit {facts['commit']}, {facts['versions']}.",
    ]


if __name__ == "__main__":
    main()
