"""What token counts are worth on a corpus that no setting was chosen on, with settings taken over as they are.

    python benchmarks/debian_descriptions.py CSV && python benchmarks/second_corpus.py CSV --output_dir DIR

Two runs at epsilon 8 of twenty steps each, one of them with token counts, through the product's own commands; 1,500
texts of each and of the untuned model; classifiers on them, on as many records and on all, and trained on the records
with DP. Every stage that is finished is skipped. Writes benchmarks/results/DATE-second-corpus-smollm2-135m.md.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safesynthdp.privacy.command import round_up
from safesynthdp.runs import RunDirectory

LABELS = ["game", "science program", "audio program", "network program", "font", "graphics program"]
PROMPT = "<|im_start|>user\nWrite a short description of a {label}.<|im_end|>\n<|im_start|>assistant\n"
TRAINING = {
    "model.model_name_or_path": "smollm2-135m",
    "lora.lora_r": 16,
    "lora.lora_alpha": 32,
    "lora.target_modules": ["q_proj", "v_proj"],
    "data.text_column": "description",
    "data.label_column": "section",
    "data.labels": LABELS,
    "data.prompt_template": PROMPT,
    "data.max_length": 64,
    "privacy.target_epsilon": 8.0,
    "privacy.target_delta": 1e-5,
    "privacy.label_histogram_epsilon": 0.1,
    "train.expected_batch_size": 128,
    "train.max_steps": 20,
    "train.learning_rate": 3.5e-3,
    "hardware.max_tokens_per_microbatch": 4096,
}
SAMPLING = {"num_records": 1500, "batch_size": 256, "attn_implementation": "sdpa"}
MATCHING = {"token_matching_records": 400, "token_matching_rounds": 4}
ARMS = {"plain": dict[str, float](), "words": {"privacy.token_histogram_share": 0.7}}
NAMES = {"plain": "DP-SGD alone", "words": "DP-SGD and token counts (0.7 of the budget)"}
MODELS = {"lr": "logistic regression", "nb": "naive Bayes", "svm": "linear SVM"}
OTHERS = {
    "told from real by its words (AUC)": ("c2st_auc", "words"),
    "lengths in characters, Kolmogorov-Smirnov distance": ("length_ks", "characters"),
    "share of texts that were cut": ("truncated_share", None),
}
Json = dict[str, Any]


def main() -> None:
    """Run what is missing, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--output_dir", type=Path, required=True)
    asked = parser.parse_args()
    folder, records = asked.output_dir.resolve(), asked.csv.resolve()
    for arm, flags in ARMS.items():
        _call("finetune", output_dir=folder / arm, **{"data.train_file": records}, **TRAINING, **flags)
        matching = MATCHING if arm == "words" else {}
        _call("sample", run=folder / arm, output_dir=folder / f"{arm}_text", **SAMPLING, **matching)
    first = next(iter(ARMS))
    _call("sample", run=folder / first, output_dir=folder / "untuned", untuned="true", **SAMPLING)
    for arm in ARMS:
        _call(
            "evaluate",
            real=folder / arm,
            holdout=folder / arm,
            synthetic=folder / f"{arm}_text",
            baseline=folder / "untuned",
            output_dir=folder / f"{arm}_evaluation",
            reference_model="null",
            embedding_model="tfidf",
        )
    print(_write(folder, records))


def _call(command: str, **flags: Any) -> None:
    words = [
        f"--{name}={value if isinstance(value, str | Path) else json.dumps(value)}" for name, value in flags.items()
    ]
    subprocess.run([sys.executable, "-m", "safesynthdp", command, *words], check=True)


def _write(folder: Path, records: Path) -> Path:
    """Return the page."""
    found = {arm: _rows(folder / f"{arm}_evaluation") for arm in ARMS}
    last = found["words"]
    lines = [f"| trained on | epsilon | {' | '.join((*MODELS.values(), *OTHERS))} |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for arm, rows in found.items():
        lines.append(_line(f"1,500 texts, {NAMES[arm]}", _epsilon(folder / f"{arm}_text"), rows, "synthetic"))
    lines.append(_line("1,500 texts of the untuned model", "0", last, "base_model"))
    lines.append(_line("the records themselves, with DP", _epsilon(folder / "words_text"), last, "dp_direct"))
    lines.append(_line("1,500 records", "none", last, "real_matched"))
    runs = [RunDirectory.open(folder / name) for name in (*ARMS, *(f"{arm}_text" for arm in ARMS), "untuned")]
    data = runs[0].manifest["data"]
    lines.append(_line(f"all {data['num_records']:,} records", "none", last, "real"))
    now = datetime.now(UTC).strftime("%Y-%m-%d")
    mechanisms = [
        f"- {NAMES[arm]}: "
        + "; ".join(
            f"{entry['kind']} {_numbers(entry['mechanism'])}"
            for entry in _json(folder / arm / "ledger.json")["entries"]
        )
        for arm in ARMS
    ]
    head = [
        "# A second corpus: SmolLM2-135M on package descriptions",
        "",
        f"{now}, commits {', '.join(sorted({str(run.manifest['commit']) for run in runs}))}, {platform.machine()}, "
        f"{os.cpu_count()} cores, no GPU. {data['num_records']:,} records of {records.name} (SHA-256 "
        f"{hashlib.sha256(records.read_bytes()).hexdigest()[:16]}) to train on, {data['num_holdout']:,} held out to "
        "test on, six labels, accuracy with a 95 % interval. By benchmarks/second_corpus.py. No setting was chosen "
        "on these texts: rank, rate and share are those of the recipe of the demo texts that trains longest.",
        "",
    ]
    path = Path(__file__).parent / "results" / f"{now}-second-corpus-smollm2-135m.md"
    path.write_text("\n".join([*head, *lines, "", *mechanisms, ""]), encoding="utf-8")
    return path


def _line(what: str, epsilon: str, rows: Sequence[Json], train_on: str) -> str:
    cells = [_cell(rows, "accuracy", model, train_on) for model in MODELS]
    cells += [_cell(rows, name, model, train_on) for name, model in OTHERS.values()]
    return f"| {what} | {epsilon} | {' | '.join(cells)} |"


def _cell(rows: Sequence[Json], name: str, model: str | None, train_on: str) -> str:
    key = (name, model, train_on, None)
    row = next((r for r in rows if (r["name"], r["model"], r["train_on"], r["label"]) == key), None)
    if row is None or row["value"] is None:
        return ""
    interval = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['value']:.3f}{interval}"


def _epsilon(sampled: Path) -> str:
    release = next(r for r in _json(sampled / "ledger.json")["releases"] if r["artifact"] == "synthetic_text")
    return round_up(release["epsilon"])


def _numbers(mechanism: Json) -> str:
    shown = ("noise_multiplier", "sample_rate", "steps", "epsilon", "scale")
    return ", ".join(f"{name} {mechanism[name]:.4g}" for name in shown if name in mechanism)


def _rows(evaluation: Path) -> list[Json]:
    return list(_json(evaluation / "metrics.json")["metrics"])


def _json(path: Path) -> Json:
    return dict(json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
