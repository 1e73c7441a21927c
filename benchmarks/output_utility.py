"""Utility at equal budget: output mechanisms by private prediction, DP-SGD sampling, and the epsilon = 0 model.

python benchmarks/output_utility.py --work_dir runs/utility                                  # hours on a CPU
python benchmarks/output_utility.py --work_dir runs/utility_tiny --model tiny --epsilons 4   # minutes
python benchmarks/output_utility.py --work_dir runs/utility --dpsgd 4=runs/text_e4 --untuned runs/untuned_text

Every mechanism gets the same records, shards, clip and texts; its temperature or scale is set so that the text costs
exactly the epsilon asked for. ``--dpsgd EPSILON=SAMPLE`` adds text that was sampled from a DP-SGD run of the same
records. Accuracy: logistic regression trained on the text, tested on held-out real text. What is done already is read
back, so the command can be repeated. Writes benchmarks/results/DATE-output-utility-MODEL.md and .svg.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MECHANISMS = ("softmax", "laplace", "gaussian_l2", "gaussian_probs")
TUNED = {"softmax": "temperature", "laplace": "scale", "gaussian_l2": "scale", "gaussian_probs": "scale"}
TEMPLATE = (
    "<|im_start|>user\nHere is one sentence of a {label}: {text}\nWrite another short sentence of a {label}."
    "<|im_end|>\n<|im_start|>assistant\n"
)
Point = tuple[str, float, float]


def main() -> None:
    """Make every text that is missing, evaluate it, and draw the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--model", choices=["smollm2-135m", "tiny"], default="smollm2-135m")
    parser.add_argument("--mechanisms", nargs="+", choices=MECHANISMS, default=list(MECHANISMS))
    parser.add_argument("--epsilons", type=float, nargs="+", default=[1.0, 4.0, 8.0])
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--max_records", type=int, default=2400)
    parser.add_argument("--shards", type=int, default=48)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--batches_per_label", type=int, default=8)
    parser.add_argument("--texts_per_batch", type=int, default=4)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="weights in sampling")
    parser.add_argument("--dpsgd", nargs="*", default=[], metavar="EPSILON=SAMPLE")
    parser.add_argument("--untuned", type=Path, help="a sample of the untuned model")
    arguments = parser.parse_args()
    points = [point(arguments, name, epsilon) for name in arguments.mechanisms for epsilon in arguments.epsilons]
    data = arguments.work_dir / f"{arguments.mechanisms[0]}_{arguments.epsilons[0]:g}"
    for given in arguments.dpsgd:
        epsilon, _, path = given.partition("=")
        points += released(arguments, data, Path(path), name="DP-SGD", epsilon=float(epsilon))
    floor = None
    if arguments.untuned is not None:
        floor = released(arguments, data, arguments.untuned, name="untuned", epsilon=0.0)[-1][2]
    write(arguments, points, floor)


def point(arguments: argparse.Namespace, name: str, epsilon: float) -> Point:
    """Return (mechanism, its epsilon by the ledger, accuracy)."""
    from safesynthdp.generation.predict_command import main as predict
    from safesynthdp.privacy.ledger import Ledger

    folder = arguments.work_dir / f"{name}_{epsilon:g}"
    predict([f"--{key}={value}" for key, value in settings(arguments, name, epsilon, folder).items()])
    release = Ledger.read(folder / "ledger.json").releases[0]
    assert release.epsilon is not None
    assert release.epsilon <= epsilon * (1 + 1e-6)
    return name, release.epsilon, accuracy(folder, folder, arguments.work_dir / f"e_{name}_{epsilon:g}")


def released(arguments: argparse.Namespace, data: Path, sample: Path, *, name: str, epsilon: float) -> list[Point]:
    """Return the accuracy of a whole sample, and of as many of its texts as private prediction had."""
    import pyarrow.parquet as pq

    table = pq.read_table(sample / "synthetic.parquet")
    few = arguments.work_dir / f"{name}_{epsilon:g}.parquet"
    pq.write_table(table.slice(0, num_texts(arguments)), few)
    whole = accuracy(data, sample, arguments.work_dir / f"e_{name}_{epsilon:g}")
    part = accuracy(data, few, arguments.work_dir / f"e_{name}_{epsilon:g}_few")
    return [
        (f"{name}, {len(table)} texts", epsilon, whole),
        (f"{name}, {num_texts(arguments)} texts", epsilon, part),
    ]


def num_texts(arguments: argparse.Namespace) -> int:
    """Return how many texts a point of private prediction has: four domains."""
    return int(4 * arguments.batches_per_label * arguments.texts_per_batch)


def settings(arguments: argparse.Namespace, name: str, epsilon: float, folder: Path) -> dict[str, Any]:
    """Return the flags of one prediction."""
    model = {"model.from_scratch.hidden_size": 64} if arguments.model == "tiny" else {}
    return {
        "output_dir": folder,
        **(model or {"model.model_name_or_path": arguments.model}),
        "model.dtype": arguments.dtype,
        "data.builtin": "vader",
        "data.max_records": arguments.max_records,
        "prompts.template": json.dumps(TEMPLATE),
        "prompts.max_record_tokens": 40,
        "privacy.target_delta": arguments.delta,
        "output.mechanism": name,
        "output.shards": arguments.shards,
        "output.tokens": arguments.tokens,
        "output.texts_per_batch": arguments.texts_per_batch,
        **({} if name == "gaussian_probs" else {"output.clip": arguments.clip}),
        f"output.{TUNED[name]}": noise(arguments, name, epsilon),
        "batches_per_label": arguments.batches_per_label,
    }


def noise(arguments: argparse.Namespace, name: str, epsilon: float) -> float:
    """Return the temperature or scale at which the text costs just this much."""
    from safesynthdp.privacy.output_registry import output_mechanism

    def price(value: float) -> float:
        return output_mechanism(
            name,
            shards=arguments.shards,
            tokens=arguments.tokens,
            texts_per_batch=arguments.texts_per_batch,
            adjacency="null",
            clip=None if name == "gaussian_probs" else arguments.clip,
            **{TUNED[name]: value},
        ).epsilon(delta=arguments.delta)

    return bisect(price, epsilon)


def bisect(price: Callable[[float], float], target: float) -> float:
    """Return the least noise whose price is at most the target; prices fall."""
    low, high = 1e-4, 1e4
    while high / low > 1 + 1e-7:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if price(middle) <= target else (middle, high)
    return high


def accuracy(data: Path, text: Path, output_dir: Path) -> float:
    """Return the accuracy of logistic regression trained on a text."""
    from safesynthdp.evaluation.command import main as evaluate

    if not (output_dir / "metrics.json").is_file():
        sides = [f"--real={data}", f"--synthetic={text}", f"--holdout={data}", f"--output_dir={output_dir}"]
        evaluate([*sides, "--downstream=lr", "--seeds=3", "--reference_model=null", "--max_records=100"])
    metrics = json.loads((output_dir / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    wanted = {"group": "utility", "name": "accuracy", "train_on": "synthetic", "model": "lr", "label": None}
    found = [metric for metric in metrics if all(metric[key] == value for key, value in wanted.items())]
    return float(found[0]["value"])


def write(arguments: argparse.Namespace, points: list[Point], floor: float | None) -> None:
    """Write table and figure."""
    from safesynthdp.runs import commit, hardware

    date = datetime.now(UTC).strftime("%Y-%m-%d")
    texts = num_texts(arguments)
    lines = [
        f"# Utility at equal budget, {date}",
        "",
        f"{arguments.model}, {arguments.max_records} builtin records (public: this protects nobody), {texts} texts",
        f"of at most {arguments.tokens} tokens, S = {arguments.shards}, clip {arguments.clip:g}, delta "
        f"{arguments.delta:g}. Accuracy of logistic regression trained on the text, on",
        f"held-out real text. Hardware {hardware()}, commit {commit()}.",
        "",
        "| text | epsilon | accuracy |",
        "|---|---|---|",
        *(f"| {name} | {epsilon:.4f} | {value:.3f} |" for name, epsilon, value in points),
        *([] if floor is None else [f"| untuned model, {texts} texts | 0 | {floor:.3f} |"]),
        "",
    ]
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"{date}-output-utility-{arguments.model}"
    stem.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")
    draw(arguments, points, floor, stem.with_suffix(".svg"))
    sys.stdout.write("\n".join([*lines, f"written to {stem}.md and .svg", ""]))


def draw(arguments: argparse.Namespace, points: list[Point], floor: float | None, path: Path) -> None:
    """Draw accuracy against epsilon, a line a mechanism."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name in dict.fromkeys(name for name, _, _ in points):
        own = sorted((epsilon, value) for other, epsilon, value in points if other == name)
        axes.plot([x for x, _ in own], [y for _, y in own], marker="o", markersize=4, label=name)
    if floor is not None:
        axes.axhline(floor, color="grey", linewidth=0.8, label=f"untuned, {num_texts(arguments)} texts, epsilon 0")
    axes.set_xscale("log")
    axes.set_xlabel(f"epsilon at delta {arguments.delta:g}")
    axes.set_ylabel("accuracy on real text")
    axes.legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main()
