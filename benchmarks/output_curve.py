"""What a bounded private prompt is worth, and what it costs: the curve of docs/guarantees.md.

python benchmarks/output_curve.py                          # SmolLM2-135M on the builtin texts, minutes on two cores
python benchmarks/output_curve.py --model tiny --texts 2   # seconds

No text is drawn: held-out texts are read with and without private records in the prompt, and the log-probability that
softmax sampling through the clip would give each token is computed exactly. Worth is the mean gain over the public
prompt, in nats a token; cost is epsilon of one text and of a hundred. S = 1 is one model with all demonstrations in one
prompt (``single``); larger S is one record a prompt. Writes benchmarks/results/DATE-output-curve-MODEL.md and .svg.
"""

import argparse
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
CLIPS = (0.05, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
TEMPLATE = (
    "<|im_start|>user\nHere are sentences of a {label}: {text}\nWrite another short sentence of a {label}.<|im_end|>\n"
    "<|im_start|>assistant\n"
)
Rows = list[dict[str, float]]


def main() -> None:
    """Measure the curve and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=["smollm2-135m", "tiny"], default="smollm2-135m")
    parser.add_argument("--texts", type=int, default=24, help="held-out texts that are read")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=32, help="longest text")
    parser.add_argument("--delta", type=float, default=1e-6)
    arguments = parser.parse_args()
    rows = curve(arguments)
    write(arguments, rows)


def curve(arguments: argparse.Namespace) -> Rows:
    """Return one row for every number of shards and every clip."""
    import numpy as np

    from safesynthdp.privacy.output_clipping import clipped_mean

    gains: dict[tuple[int, float], list[float]] = {}
    for public_TK, private_TRK, targets in readings(arguments):
        base = log_softmax(public_TK)[np.arange(len(targets)), targets]
        for shards in arguments.shards:
            chosen = private_TRK[0] if shards == 1 else private_TRK[1][:, :shards]
            for clip in CLIPS:
                scores = np.stack(
                    [
                        clipped_mean(rows, public, clip=clip, shards=shards)
                        for rows, public in zip(chosen, public_TK, strict=True)
                    ]
                )
                found = log_softmax(scores)[np.arange(len(targets)), targets]
                gains.setdefault((shards, clip), []).append(float((found - base).mean()))
    return [
        {"shards": shards, "clip": clip, "gain": statistics.fmean(values), **prices(arguments, shards, clip)}
        for (shards, clip), values in gains.items()
    ]


def prices(arguments: argparse.Namespace, shards: int, clip: float) -> dict[str, float]:
    """Return epsilon of one text and of a hundred."""
    from safesynthdp.privacy.mechanisms import Softmax

    def price(texts: int) -> float:
        return Softmax(
            shards=shards,
            single=shards == 1,
            clip=clip,
            tokens=arguments.tokens,
            texts_per_batch=texts,
            adjacency="many" if shards == 1 else "null",
        ).epsilon(delta=arguments.delta)

    return {"one": price(1), "hundred": price(100)}


def readings(arguments: argparse.Namespace) -> Any:
    """Yield, for each held-out text, public logits, private logits (one prompt; S prompts) and the tokens."""
    import numpy as np

    from safesynthdp.data_config import DataConfig
    from safesynthdp.generation.shard_config import PromptsConfig
    from safesynthdp.generation.shard_prompts import PromptMaker
    from safesynthdp.model_config import FromScratchConfig, ModelConfig
    from safesynthdp.models import load_base_model, load_tokenizer, quiet
    from safesynthdp.records import load_split

    quiet()
    tiny = arguments.model == "tiny"
    named = ModelConfig(model_name_or_path="smollm2-135m")
    config = ModelConfig(from_scratch=FromScratchConfig()) if tiny else named
    tokenizer, base = load_tokenizer(config), load_base_model(config, seed=0)
    model: Any = base.eval()
    split = load_split(DataConfig(builtin="vader"))
    most = max(arguments.shards)
    labels = split.train.label_set
    one = PromptMaker(PromptsConfig(template=TEMPLATE, max_record_tokens=200), tokenizer=tokenizer, labels=labels)
    each = PromptMaker(PromptsConfig(template=TEMPLATE, max_record_tokens=40), tokenizer=tokenizer, labels=labels)
    for number in range(arguments.texts):
        label, text = split.holdout.labels[number], split.holdout.texts[number]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][: arguments.tokens]
        own = [i for i, name in enumerate(split.train.labels) if name == label][number * most :][:most]
        texts = [split.train.texts[i] for i in own]
        read = Reader(model, ids)
        public = read(one.public(label))
        alone = read(one.private(label, texts[:8]))
        several = [read(each.private(label, [words])) for words in texts]
        yield public, (alone[:, None], np.stack(several, axis=1)), ids


class Reader:
    """Reads a text after a prompt and returns float64 logits [T, V] before each of its tokens."""

    def __init__(self, model: Any, ids: list[int]) -> None:
        self._model, self._ids = model, ids

    def __call__(self, prompt: tuple[int, ...]) -> Any:
        """Return the logits."""
        import torch

        with torch.inference_mode():
            tokens = torch.tensor([[*prompt, *self._ids]])
            logits = self._model(input_ids=tokens, logits_to_keep=len(self._ids) + 1).logits
        return logits[0, :-1].double().numpy()


def log_softmax(scores_TK: Any) -> Any:
    """Return log-probabilities."""
    from scipy import special

    return special.log_softmax(scores_TK, axis=1)


def write(arguments: argparse.Namespace, rows: Rows) -> None:
    """Write table and figure."""
    from safesynthdp.runs import commit, hardware

    date = datetime.now(UTC).strftime("%Y-%m-%d")
    lines = [
        f"# What a bounded private prompt is worth, and what it costs, {date}",
        "",
        f"{arguments.model}, {arguments.texts} held-out builtin texts of at most {arguments.tokens} tokens; softmax at",
        f"temperature 1, delta {arguments.delta:g}. Gain: nats a token over the public prompt. Hardware {hardware()},",
        f"commit {commit()}. S = 1: one model, eight records in its prompt, `single`; else a record a prompt, `null`.",
        "",
        "| S | clip | gain, nats a token | epsilon of one text | epsilon of 100 texts |",
        "|---|---|---|---|---|",
        *(
            f"| {row['shards']:.0f} | {row['clip']:g} | {row['gain']:+.3f} | {row['one']:.2f} | {row['hundred']:.1f} |"
            for row in rows
        ),
        "",
    ]
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"{date}-output-curve-{arguments.model}"
    stem.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")
    draw(arguments, rows, stem.with_suffix(".svg"))
    sys.stdout.write("\n".join([*lines, f"written to {stem}.md and .svg", ""]))


def draw(arguments: argparse.Namespace, rows: Rows, path: Path) -> None:
    """Draw gain against epsilon, a line a number of shards."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for shards in arguments.shards:
        own = sorted((row["one"], row["gain"]) for row in rows if row["shards"] == shards)
        name = "one model (S = 1)" if shards == 1 else f"S = {shards}"
        axes.plot([x for x, _ in own], [y for _, y in own], marker="o", markersize=3, label=name)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel(f"epsilon of one text at delta {arguments.delta:g}")
    axes.set_ylabel("gain over the public prompt, nats a token")
    axes.legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main()
