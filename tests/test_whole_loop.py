"""Records to report, through the doors and through the console script, on a file of one's own."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = {
    "news": ("the senate passed a bill", "markets fell on tuesday", "the mayor spoke to reporters"),
    "recipe": ("mix flour and butter", "bake for twenty minutes", "stir the sauce slowly"),
    "review": ("the battery lasts for days", "sound is thin", "the case broke at once"),
}


def records_file(path: Path, *, rows: int) -> Path:
    labels = sorted(WORDS)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["body", "kind"])
        for i in range(rows):
            label = labels[i % 3]
            writer.writerow([f"{WORDS[label][i % 2]}, {WORDS[label][i // 3 % 3]} {i}", label])
    return path


def finetune_words(records: Path, output_dir: Path) -> list[str]:
    values = {
        "output_dir": output_dir,
        "model.from_scratch.num_hidden_layers": 1,
        "model.from_scratch.hidden_size": 32,
        "data.train_file": records,
        "data.text_column": "body",
        "data.label_column": "kind",
        "data.labels": '["news", "recipe", "review"]',
        "data.max_length": 40,
        "privacy.target_epsilon": 8,
        "train.expected_batch_size": 16,
        "train.max_steps": 3,
    }
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def call(command: Sequence[str], *, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == code, done.stderr
    return done


def console(*words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-c", "from safesynthdp.cli import entry_point; entry_point()"]
    return call([*start, *map(str, words)], code=code)


def door(path: str, *words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    return call([sys.executable, path, *map(str, words)], code=code)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_hundred_rows_become_synthetic_text_a_ledger_and_a_report_with_one_epsilon(tmp_path: Path) -> None:
    records, run = records_file(tmp_path / "mine.csv", rows=300), tmp_path / "run"
    launch = ["-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    call([sys.executable, *launch, "train/dp_finetune.py", *finetune_words(records, run)])
    door("generate/sample.py", "--run", run, "--num_records", "30", "--output_dir", tmp_path / "text", "--csv")
    console("sample", "--run", run, "--num_records", "30", "--output_dir", tmp_path / "untuned", "--untuned")
    compared = ("--real", run, "--synthetic", tmp_path / "text", "--holdout", run, "--baseline", tmp_path / "untuned")
    door("eval/utility.py", *compared, "--output_dir", tmp_path / "evaluation", "--seeds", "2")
    door("attacks/shadow_mia.py", "score", "--run", run, "--output_dir", tmp_path / "attack")
    stages = [run, *(tmp_path / name for name in ("text", "untuned", "evaluation", "attack"))]
    said = door("eval/render_report.py", *stages, "--output_dir", tmp_path / "report").stdout

    page = Path(said.strip().splitlines()[-1])
    ledger = json.loads((run / "ledger.json").read_text())
    priced = json.loads(console("account", "ledger", run, "--json").stdout)
    epsilon = next(r["epsilon"] for r in ledger["releases"] if r["artifact"] == "weights")
    assert epsilon <= 8
    assert priced["epsilon"] == pytest.approx(epsilon, rel=1e-6)
    shown = console("account", "ledger", run).stdout
    rounded = next(word for word in shown.split() if word.startswith(("7.", "8.")))
    assert rounded in page.read_text(encoding="utf-8")
    text = json.loads((tmp_path / "text/ledger.json").read_text())["releases"][0]
    assert (text["artifact"], text["rule"], text["epsilon"]) == ("synthetic_text", "post_processing", epsilon)
    untuned = json.loads((tmp_path / "untuned/ledger.json").read_text())
    assert untuned["entries"] == []
    assert untuned["releases"][0]["epsilon"] == 0
    assert (tmp_path / "text/synthetic.csv").is_file()


@pytest.mark.slow
def test_the_doors_and_the_console_script_refuse_a_wrong_column_alike(tmp_path: Path) -> None:
    words = finetune_words(records_file(tmp_path / "mine.csv", rows=30), tmp_path / "run")
    words[words.index("body")] = "words"
    for done in (door("train/dp_finetune.py", *words, code=2), console("finetune", *words, code=2)):
        assert done.stderr.count("\n") == 1
        assert "words" in done.stderr
    assert not (tmp_path / "run/ledger.json").exists()
