"""Which settings of a few DP-SGD steps teach a label most, chosen without a training record.

    python benchmarks/tuning.py [--model smollm2-135m] [--epsilon 8] [--only lr batch steps rank target clip share]

Half of the held-out texts of the builtin set, cut by a hash of each text: one part stands for the private records,
the other measures. The training side is not read, and the other half of the held-out texts neither. The noise is that
of the training side's N records (public: the size of a builtin), so the part is trained as N records would be, at the
same batch and noise. One setting is changed at a time; the token counts take their share of the budget but are not
used, since what is measured is what the steps teach. Measured: nats per token of unseen texts under their own label's
prompt, and how often that prompt is, of all labels', the one under which a text is likeliest: text that is drawn for a
label can carry no more. Writes benchmarks/results/DATE-tuning-MODEL.md, a line as each training ends.
"""

import argparse
import csv
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from safesynthdp.data_config import DataConfig
from safesynthdp.models import LoadedModel, load_run_model
from safesynthdp.privacy.budget import Budget
from safesynthdp.privacy.mechanisms import LabelHistogramMechanism
from safesynthdp.privacy.token_histogram import TokenHistogramMechanism
from safesynthdp.record_set import Records, split_bucket
from safesynthdp.records import load_split
from safesynthdp.runs import RunDirectory
from safesynthdp.training.command import main as finetune
from safesynthdp.training.examples import collate, encode
from safesynthdp.training.loss import record_losses

RECIPE = Path(__file__).parents[1] / "train" / "recipes" / "smollm2_vader.yaml"
FIRST_BUCKET, MIDDLE, END = 80, 85, 90
DELTA = 1e-5
BASE: dict[str, Any] = {
    "train.learning_rate": 1e-3,
    "train.expected_batch_size": 128,
    "train.max_steps": 6,
    "lora.lora_r": 4,
    "lora.lora_alpha": 8,
    "lora.target_modules": ["q_proj", "v_proj"],
    "privacy.per_sample_max_grad_norm": 1.0,
    "privacy.token_histogram_share": 0.8,
}
Change = dict[str, Any]
STUDIES: dict[str, list[Change]] = {
    "lr": [{"train.learning_rate": rate} for rate in (3e-4, 3e-3, 1e-2)],
    "batch": [{"train.expected_batch_size": size} for size in (64, 256)],
    "steps": [{"train.max_steps": steps} for steps in (3, 12)],
    "rank": [{"lora.lora_r": rank, "lora.lora_alpha": 2 * rank} for rank in (1, 16)],
    "target": [{"lora.target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}],
    "clip": [{"privacy.per_sample_max_grad_norm": norm} for norm in (0.1, 10.0)],
    "share": [{"privacy.token_histogram_share": share} for share in (0.5, None)],
}


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--measured", type=int, default=400, help="texts that are measured")
    parser.add_argument("--only", nargs="*", choices=sorted(STUDIES), default=list(STUDIES))
    parser.add_argument("--skip_base", action="store_true", help="the settings of the recipe were measured before")
    parser.add_argument("--suffix", default="", help="of the file (--suffix=-2): parts of a study can run at once")
    arguments = parser.parse_args()
    split, began = load_split(DataConfig(builtin="vader")), time.monotonic()
    parts = [_part(split.holdout, low, high) for low, high in ((FIRST_BUCKET, MIDDLE), (MIDDLE, END))]
    measured = parts[1].select(range(min(arguments.measured, len(parts[1]))))
    lines, base = list[str](), [] if arguments.skip_base else [Change()]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "part.csv"
        _write_records(source, parts[0])
        for number, change in enumerate([*base, *(change for name in arguments.only for change in STUDIES[name])]):
            lines += _study(Path(folder) / str(number), source, change, measured, arguments, size=len(split.train))
            print(lines[-1], flush=True)
            _write(arguments, lines, parts[0], measured, seconds=time.monotonic() - began)


def _study(
    folder: Path, source: Path, change: Change, measured: Records, arguments: argparse.Namespace, *, size: int
) -> list[str]:
    """Return the line of one training; before the first one also that of the untuned model."""
    settings = BASE | change
    noise = _noise(settings, arguments.epsilon, size=size)
    words = {
        **{name: value for name, value in settings.items() if name != "privacy.token_histogram_share"},
        "model.model_name_or_path": arguments.model,
        "model.dtype": "bfloat16",
        "model.attn_implementation": "eager",
        "data.builtin": None,
        "data.train_file": str(source),
        "data.holdout_percent": 0,
        "privacy.target_epsilon": None,
        "privacy.noise_multiplier": noise,
        "privacy.token_histogram_share": None,
        "hardware.max_tokens_per_microbatch": 4096,
        "output_dir": str(folder),
    }
    began = time.monotonic()
    finetune(["--config", str(RECIPE), *(w for name, value in words.items() for w in (f"--{name}", _word(value)))])
    seconds = time.monotonic() - began
    run = RunDirectory.open(str(folder), kind="finetune")
    lines = []
    if not change:
        lines.append(_line("untuned", None, measure(load_run_model(run, untuned=True), measured), None))
    name = ", ".join(f"{key} {_shown(value)}" for key, value in change.items()) or "the settings of the recipe"
    return [*lines, _line(name, noise, measure(load_run_model(run), measured), seconds)]


def measure(loaded: LoadedModel, records: Records) -> tuple[float, float]:
    """Return nats per token under the own label, and the share of texts for which it is the likeliest label."""
    model = loaded.model.eval()
    losses_LN = torch.stack([_losses(model, loaded, records, label) for label in loaded.label_set])
    own_N = torch.tensor([loaded.label_set.index(label) for label in records.labels])
    nats = losses_LN.gather(0, own_N[None]).mean()
    return float(nats), float((losses_LN.argmin(dim=0) == own_N).double().mean())


@torch.inference_mode()
def _losses(model: torch.nn.Module, loaded: LoadedModel, records: Records, label: str) -> torch.Tensor:
    examples = encode(
        records.texts,
        [label] * len(records),
        tokenizer=loaded.tokenizer,
        template=loaded.template,
        max_length=loaded.max_length,
    )
    found = [record_losses(model, collate(examples[i : i + 50], pad_token_id=0)) for i in range(0, len(examples), 50)]
    return torch.cat(found)


def _noise(settings: Change, epsilon: float, *, size: int) -> float:
    """Return the noise multiplier of ``size`` records with these settings."""
    share = settings["privacy.token_histogram_share"]
    counts = (
        []
        if share is None
        else [TokenHistogramMechanism.from_epsilon(share * epsilon, delta=DELTA, adjacency="add_remove")]
    )
    return Budget(target_epsilon=epsilon, delta=DELTA).find_noise_multiplier(
        num_records=size,
        expected_batch_size=settings["train.expected_batch_size"],
        steps=settings["train.max_steps"],
        per_sample_max_grad_norm=settings["privacy.per_sample_max_grad_norm"],
        accountant="prv",
        adjacency="add_remove",
        others=[LabelHistogramMechanism.from_epsilon(0.1, adjacency="add_remove"), *counts],
    )


def _part(records: Records, low: int, high: int) -> Records:
    return records.select(i for i, text in enumerate(records.texts) if low <= split_bucket(text) < high)


def _write_records(path: Path, records: Records) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([("text", "label"), *zip(records.texts, records.labels, strict=True)])


def _word(value: Any) -> str:
    return "null" if value is None else str(value)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(v) for v in value)
    return "none" if value is None else f"{value:g}"


def _line(name: str, noise: float | None, found: tuple[float, float], seconds: float | None) -> str:
    cells = ["" if noise is None else f"{noise:.3f}", f"{found[0]:.3f}", f"{found[1]:.3f}"]
    return f"| {name} | {' | '.join(cells)} | {'' if seconds is None else f'{seconds:.0f}'} |"


def _write(
    arguments: argparse.Namespace, lines: Sequence[str], part: Records, measured: Records, *, seconds: float
) -> None:
    today = datetime.now(UTC).date().isoformat()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    page = [
        f"# Settings of DP-SGD on {arguments.model}: epsilon {arguments.epsilon:g}, one changed at a time",
        "",
        f"Trained on {len(part):,} held-out texts in the place of the private ones, measured on {len(measured)} "
        f"others; the settings of the recipe are {', '.join(f'{k} {_shown(v)}' for k, v in BASE.items())}. One run "
        f"each, so the last digit is chance: the standard error of a share is {(0.25 / len(measured)) ** 0.5:.3f} at "
        "most.",
        "",
        "| changed | noise multiplier | nats per token | likeliest under its own label | seconds |",
        "|---|---|---|---|---|",
        *lines,
        "",
        f"`python benchmarks/tuning.py`, {today}, commit {commit}, {os.cpu_count()} cores, {platform.machine()}, torch "
        f"{torch.__version__}, {seconds / 60:.0f} minutes.",
    ]
    path = Path(__file__).parent / "results" / f"{today}-tuning-{arguments.model}{arguments.suffix}.md"
    path.write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
