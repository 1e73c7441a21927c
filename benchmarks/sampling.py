"""What noise at sampling time costs in time, next to plain generation by the same model.

OMP_NUM_THREADS=1 python benchmarks/sampling.py                    # SmolLM2-135M; about an hour of one core
python benchmarks/sampling.py --model tiny --repeats 2             # seconds, no download

Two tables, each measured within one process, the arms in turn, so that a busy machine slows all of them:
(a) one model: ``model.generate`` and our plain loop, against every mechanism on the whole vocabulary (recentred: one
    forward pass) and with a public model (difference: two).
(b) S groups and a public row, against S + 1 plain sequences in one batch with a KV cache, the least that can be done.
Texts never end early (the end token is out of reach), so all arms read the same number of tokens. Seconds are of the
processor on a CPU (one thread: OMP_NUM_THREADS=1), of the clock on a GPU.
Writes benchmarks/results/DATE-sampling-MODEL-DEVICE.md.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
NUMBERS: dict[str, dict[str, float]] = {
    "softmax": {"clip": 1.0},
    "laplace": {"clip": 1.0, "scale": 2.0},
    "gaussian_l2": {"clip": 1.0, "scale": 1.0},
    "laplace_probs": {"scale": 0.1},
    "gaussian_probs": {"scale": 0.1},
    "uniform_mix": {"mixing": 0.5},
}
Arm = Callable[[], float]


def main() -> None:
    """Time all arms in turn and write a dated file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=["smollm2-135m", "tiny"], default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=32, help="texts at once in (a)")
    parser.add_argument("--shards", type=int, default=32, help="S in (b)")
    parser.add_argument("--texts", type=int, default=4, help="texts at once in (b)")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt_tokens", type=int, default=48)
    parser.add_argument("--skip_difference", action="store_true", help="leave out the arms with a public model in (a)")
    parser.add_argument("--only", choices=["one", "shards"], help="measure table (a) alone, or (b)")
    parser.add_argument("--mechanisms", nargs="+", choices=list(NUMBERS), default=list(NUMBERS))
    arguments = parser.parse_args()
    bench = Bench(arguments)
    one = {} if arguments.only == "shards" else measure(bench.one_model_arms(), arguments.repeats)
    many = {} if arguments.only == "one" else measure(bench.shard_arms(), arguments.repeats)
    write(arguments, bench, one, many)


class Bench:
    """A model and its arms; an arm runs once and returns the seconds spent inside the mechanism."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import torch

        from safesynthdp.generation.prediction import device_of
        from safesynthdp.model_config import FromScratchConfig, ModelConfig
        from safesynthdp.models import load_base_model, quiet

        quiet()
        tiny = arguments.model == "tiny"
        config = (
            ModelConfig(from_scratch=FromScratchConfig()) if tiny else ModelConfig(model_name_or_path="smollm2-135m")
        )
        self.arguments, self.device = arguments, device_of()
        model: Any = load_base_model(config, seed=0)
        self.model = model.eval().to(self.device)
        self.vocab = int(model.config.vocab_size)
        generator = torch.Generator().manual_seed(0)
        rows = max(arguments.rows, arguments.shards + 1)
        ids = torch.randint(5, 250, (rows, arguments.prompt_tokens), generator=generator)
        self.prompts = [tuple(int(token) for token in row) for row in ids.tolist()]

    def one_model_arms(self) -> dict[str, Arm]:
        """Return the arms of table (a)."""
        arms: dict[str, Arm] = {"model.generate": self.generate, "our plain loop": self.plain_loop}
        for name in self.arguments.mechanisms:
            arms[f"{name}, recentre"] = lambda name=name: self.one_model(name, public=False)
        if not self.arguments.skip_difference:
            arms["softmax, difference"] = lambda: self.one_model("softmax", public=True)
        return arms

    def shard_arms(self) -> dict[str, Arm]:
        """Return the arms of table (b)."""
        arms: dict[str, Arm] = {"S + 1 plain sequences": self.floor, "all plain sequences at once": self.low_floor}
        return arms | {name: lambda n=name: self.shards(n) for name in self.arguments.mechanisms}

    def generate(self) -> float:
        """Plain sampling by transformers."""
        import torch
        from transformers import GenerationConfig

        rows = torch.tensor(self.prompts[: self.arguments.rows], device=self.device)
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=self.arguments.tokens, do_sample=True, top_k=0, eos_token_id=None, pad_token_id=0
        )
        config.eos_token_id = None
        with torch.inference_mode():
            self.model.generate(rows, generation_config=config, attention_mask=torch.ones_like(rows), eos_token_id=None)
        return 0.0

    def plain_loop(self) -> float:
        """Plain sampling by our own loop."""
        self._plain(self.arguments.rows)
        return 0.0

    def one_model(self, name: str, *, public: bool) -> float:
        """Return the time inside the mechanism on one model."""
        from safesynthdp.generation.checkpoint_source import CheckpointSource
        from safesynthdp.generation.output_decoding import Text, decode_texts
        from safesynthdp.privacy.output_draws import OutputKey

        rows = self.arguments.rows
        key, rule = OutputKey.fresh(), self.rule(name, shards=1, texts=rows, top_k=100 if public else None)
        texts = [Text(number=i, stream=key.stream(str(i))) for i in range(rows)]
        source = CheckpointSource(self.model, self.model if public else None, self.prompts[:rows])
        timed = Timed(rule, recentre=not public)
        decode_texts(source, texts, rule=timed, on_step=lambda *_: None)  # type: ignore[arg-type]
        return timed.seconds

    def floor(self) -> float:
        """As many plain sequences in a batch as a text has rows, one batch a text."""
        for _ in range(self.arguments.texts):
            self._plain(self.arguments.shards + 1)
        return 0.0

    def low_floor(self) -> float:
        """The rows of all texts in one batch, which private rows of different records never share."""
        self._plain(self.arguments.texts * (self.arguments.shards + 1))
        return 0.0

    def _plain(self, count: int) -> None:
        from safesynthdp.generation.decoding import Row, decode_wave
        from safesynthdp.generation.draws import Sampling

        rows = [
            Row(number=i, prompt=self.prompts[i % len(self.prompts)], max_new_tokens=self.arguments.tokens)
            for i in range(count)
        ]
        decode_wave(self.model, rows, sampling=Sampling(), eos_token_id=self.vocab + 1, seed=0, on_step=lambda *_: None)

    def shards(self, name: str) -> float:
        """Return the time inside the mechanism on S groups and a public row."""
        from safesynthdp.generation.output_decoding import Text, decode_texts
        from safesynthdp.generation.shard_source import Prompts, Shapes, ShardSource
        from safesynthdp.privacy.output_draws import OutputKey

        shards, count = self.arguments.shards, self.arguments.texts
        top_k = None if name == "uniform_mix" else 100
        key, rule = OutputKey.fresh(), self.rule(name, shards=shards, texts=count, top_k=top_k)
        width = self.arguments.prompt_tokens
        prompts = [Prompts(rows=self.prompts[:shards], public=self.prompts[shards]) for _ in range(count)]
        source = ShardSource(self.model, prompts, shapes=Shapes(rows_per_call=shards, width=width, public_width=width))
        texts = [Text(number=i, stream=key.stream(str(i))) for i in range(count)]
        timed = Timed(rule, recentre=False)
        decode_texts(source, texts, rule=timed, on_step=lambda *_: None)  # type: ignore[arg-type]
        return timed.seconds

    def rule(self, name: str, *, shards: int, texts: int, top_k: int | None) -> Any:
        """Return how a token is drawn."""
        from safesynthdp.generation.output_decoding import Rule
        from safesynthdp.privacy.output_registry import output_mechanism

        extra: dict[str, Any] = {"vocab_size": self.vocab} if name == "uniform_mix" else {}
        mechanism = output_mechanism(
            name,
            shards=shards,
            single=shards == 1,
            adjacency="many",
            tokens=self.arguments.tokens,
            texts_per_batch=texts,
            **NUMBERS[name],
            **extra,
        )
        return Rule(mechanism=mechanism, end=0, tokens=self.arguments.tokens, top_k=top_k)


class Timed:
    """A rule that draws, never the end token, and adds up its time."""

    def __init__(self, rule: Any, *, recentre: bool) -> None:
        from dataclasses import replace

        self._rule = replace(rule, recentre=recentre)
        self.tokens, self.end, self.seconds = rule.tokens, -1, 0.0

    def draw(self, *values: Any, **options: Any) -> int:
        """Draw and count the time."""
        began = seconds()
        token = self._rule.draw(*values, **options)
        self.seconds += seconds() - began
        return int(token)


def seconds() -> float:
    """Return a clock: on the wall of a GPU, of the processor elsewhere, where other work would decide a wall clock."""
    import torch

    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def measure(arms: dict[str, Arm], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Return (seconds, seconds inside the mechanism) of every repeat, after a warm-up, arms in turn."""
    import torch

    found: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for repeat in range(repeats + 1):
        for name, arm in arms.items():
            began = seconds()
            inside = arm()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                found[name].append((seconds() - began, inside))
    return found


def table(found: dict[str, list[tuple[float, float]]], *, texts: int, floor: str) -> list[str]:
    """Return the rows of one table; ratios are taken within a repeat."""
    lines = ["| arm | texts/s | ratio: median (lowest, highest) | inside the mechanism |", "|---|---|---|---|"]
    for name, values in found.items():
        seconds = statistics.median(s for s, _ in values)
        ratios = sorted(s / f for (s, _), (f, _) in zip(values, found[floor], strict=True))
        share = statistics.median(inside / s for s, inside in values)
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}, {ratios[-1]:.2f})"
        lines.append(f"| {name} | {texts / seconds:.2f} | {ratio} | {share:.1%} |")
    return lines


def write(arguments: argparse.Namespace, bench: Bench, one: Any, many: Any) -> None:
    """Write the dated file."""
    import torch

    from safesynthdp.runs import commit, hardware

    date = datetime.now(UTC).strftime("%Y-%m-%d")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    lines = [
        f"# The price of noise at sampling time, {date}",
        "",
        f"{arguments.model}, float32, {device}; {arguments.prompt_tokens} prompt tokens and {arguments.tokens} drawn, "
        "no text ends early.",
        f"Hardware {hardware()}, commit {commit()}. {arguments.repeats} interleaved repeats after a warm-up.",
        "",
    ]
    if one:
        lines += [
            f"## (a) One model, {arguments.rows} texts at once, against `model.generate`",
            "",
            "recentre: no public model, the whole vocabulary. difference: a public model beside it (here a second pass",
            "through the same weights), 100 candidates.",
            "",
            *table(one, texts=arguments.rows, floor="model.generate"),
            "",
        ]
    if many:
        lines += [
            f"## (b) {arguments.shards} groups and a public row a text, {arguments.texts} texts at once, against "
            f"{arguments.shards + 1} plain sequences in a batch",
            "",
            *table(many, texts=arguments.texts, floor="S + 1 plain sequences"),
            "",
        ]
    lines += [
        "Not measured: several devices, other lengths, memory.",
        "",
    ]
    RESULTS.mkdir(exist_ok=True)
    kind = "gpu" if torch.cuda.is_available() else "cpu"
    part = "" if arguments.only is None else f"-{arguments.only}"
    path = RESULTS / f"{date}-sampling-{arguments.model}-{kind}{part}.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    sys.stdout.write("\n".join([*lines, f"written to {path}", ""]))


if __name__ == "__main__":
    main()
