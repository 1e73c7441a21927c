"""Every command of a how-to is run as it stands on the page, on made-up records and a two-layer model.

What is made smaller is appended to a command, never taken from it, so that each of its own flags is parsed and obeyed:
few steps, few texts, a tiny model. Commands that need a hub, a GPU or a cluster are parsed, or run elsewhere.
"""

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from safesynthdp.cli import COMMANDS, _dispatch
from safesynthdp.cli import run as run_main

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs/howto"
ELSEWHERE = {
    "slurm.md": "tests/slurm/test_slurm.py runs its script on a SLURM of one node",
    "shadow_pool.md": "tests/slurm runs its array",
    "evaluate.md": "tests/evaluation/test_command.py runs its command on files like these",
    "tuning.md": "scripts of benchmarks/; it has no commands in a block",
    "auditing.md": "tests/attacks; it has no commands in a block",
    "opacus.md": "tests/training/test_opacus_plugin.py; it has no commands",
    "architectures.md": "a table; it has no commands",
}
OWN = ["own_records.md", "own_model.md", "user_level.md", "choosing_epsilon.md", "reading_the_report.md",
       "publishing.md", "private_prediction.md", "token_counts.md", "pipeline.md", "dry_run.md",
       "several_gpus.md"]  # fmt: skip
MORE = {
    "finetune": ["--data.max_length", "160", "--train.expected_batch_size", "8", "--train.max_steps", "2",
                 "--privacy.accountant", "rdp"],
    "sample": ["--num_records", "12", "--max_new_tokens", "8", "--token_matching_records", "20"],
    "evaluate": ["--downstream", "nb", "--seeds", "1"],
    "attack": ["--max_records", "20"],
    "predict": ["--output.shards", "4", "--output.tokens", "4", "--batches_per_label", "1", "--privacy.target_epsilon",
                "1000", "--output.texts_per_batch", "1"],
}  # fmt: skip
BELOW = ("several_gpus.md", "pipeline.md", "publishing.md")
LABELS = ("bug", "praise", "question")


def commands(page: str) -> list[list[str]]:
    """Return the words of every command in the code blocks of a page, continued lines joined."""
    text = (PAGES / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith(("    ", "safesynthdp", "accelerate"))]
    found = [line for line in lines if line.startswith(("safesynthdp ", "accelerate "))]
    return [_split(line) for line in found]


def _split(line: str) -> list[str]:
    """As a shell does, ``$'\\n'`` included."""
    line = re.sub(r"\$'([^']*)'", lambda m: shlex.quote(m[1].encode().decode("unicode_escape")), line)
    return shlex.split(line)


def test_every_page_is_run_here_or_says_where() -> None:
    pages = {path.name for path in PAGES.glob("*.md")}
    assert pages - {*ELSEWHERE, *OWN} == set()
    assert set(OWN) <= pages


@pytest.mark.parametrize("page", OWN)
def test_every_command_names_a_sub_command_that_there_is(page: str) -> None:
    found = commands(page)
    assert found, f"{page} has no command, or it is not in a code block"
    assert {words[1] for words in found if words[0] == "safesynthdp"} <= set(COMMANDS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer model and the byte tokenizer, in a folder as the hub has them."""
    import torch
    from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    ByT5Tokenizer(extra_ids=0).save_pretrained(path)
    return path


@pytest.fixture
def place(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``private.csv``, the recipes of the repository, and a recipe ``R.yaml``."""
    with (tmp_path / "private.csv").open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["body", "kind", "author", "text", "label"])
        for n in range(160):
            kind, text = LABELS[n % 3], f"{LABELS[n % 3]} number {n} came {n % 7} times"
            writer.writerow([text, kind, f"user{n // 3}", text, kind])
    for folder in ("recipes", "train", "generate", "accelerate_configs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "path/to").mkdir(parents=True)
    (tmp_path / "path/to/model").symlink_to(model)
    (tmp_path / "R.yaml").write_text(f"""
output_dir: runs/recipe
model: {{model_name_or_path: {model}}}
data: {{train_file: private.csv, labels: [bug, praise, question], max_length: 32}}
privacy: {{target_epsilon: 8.0, accountant: rdp}}
train: {{expected_batch_size: 8, max_steps: 2}}
""")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def smaller(words: list[str], model: Path) -> list[str]:
    """A command that two cores finish in seconds, with every word of the page in it."""
    more = list(MORE.get(words[1], []))
    if words[1] in ("finetune", "predict") and "R.yaml" not in words:
        more += ["--model.model_name_or_path", str(model)]
    if words[1] == "predict":
        more += ["--data.max_length", "48"]
    if words[1] == "pipeline":
        values = {"model.from_scratch.num_hidden_layers": 1, "model.from_scratch.hidden_size": 16,
                  "model.from_scratch.num_attention_heads": 2, "data.builtin": None, "data.train_file": "private.csv",
                  "data.max_records": None, "data.max_length": 32, "data.labels": list(LABELS), "train.max_steps": 2,
                  "train.expected_batch_size": 8, "privacy.accountant": "rdp"}  # fmt: skip
        flags = str(values).replace("None", "null")
        more += ["--epsilons", "[8.0]", "--without_privacy", "false", "--finetune.flags", flags]
        more += ["--sample.flags", "{num_records: 12, max_new_tokens: 8}", "--attack.flags", "{max_records: 20}"]
    return [*words[1:], *more]


def do(words: list[str], model: Path) -> int:
    return run_main(_dispatch, smaller(words, model))


def make_runs(model: Path) -> None:
    """What a page takes for granted: ``runs/mine`` and its text, as own_records.md makes them."""
    for words in commands("own_records.md"):
        if words[1] in ("finetune", "sample") and "--untuned" not in words:
            assert do(words, model) == 0, words


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [page for page in OWN if page not in BELOW])
@pytest.mark.usefixtures("place")
def test_the_commands_of_a_page_run_in_their_order(page: str, model: Path) -> None:
    if page == "reading_the_report.md":
        make_runs(model)
    for words in commands(page):
        if words[1] == "pipeline":
            continue  # the page about it runs it
        assert do(words, model) == 0, shlex.join(words)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("place")
def test_the_grid_of_the_page_ends_in_a_report(model: Path, place: Path) -> None:
    for words in commands("pipeline.md"):
        assert do(words, model) == 0, shlex.join(words)
    assert (place / "runs/grid/report/report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_is_published_is_drawn_pushed_and_tracked(
    model: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upload itself is tested against a server in tests/reporting/test_push.py."""
    pushed = list[tuple[str, list[str]]]()

    def take(files: dict[str, object], *, repo_id: str, **_: object) -> str:
        pushed.append((repo_id, sorted(files)))
        return "made up"

    from safesynthdp.training import tracking

    make_runs(model)
    monkeypatch.setattr("safesynthdp.reporting.push_command.push_files", take)
    monkeypatch.setattr(tracking, "find_spec", lambda name: name)
    monkeypatch.setattr(tracking.Trackers, "start", lambda *args, **facts: tracking.Trackers())
    for words in commands("publishing.md"):
        assert do(words, model) == 0, shlex.join(words)
    assert [name for name, _ in pushed] == ["owner/adapter", "owner/texts"]
    assert "adapter_model.safetensors" in pushed[0][1]
    assert "synthetic.parquet" in pushed[1][1]
    assert (place / "runs/mine_public/report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", range(4))
def test_the_launch_commands_of_the_page_about_gpus(number: int, place: Path) -> None:
    """The first runs as it stands, on two processes; the others need GPUs: their files and flags are looked at."""
    words = commands("several_gpus.md")[number]
    assert (ROOT / words[words.index("--config_file") + 1]).is_file()
    assert (ROOT / words[words.index("train/dp_finetune.py")]).is_file()
    if "cpu_2proc" not in " ".join(words):
        from safesynthdp.config import parse
        from safesynthdp.training.config import FinetuneConfig

        parse(FinetuneConfig, words[words.index("train/dp_finetune.py") + 1 :], prog="finetune")
        return
    start = [sys.executable, "-m", "accelerate.commands.launch", *words[2:]]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(start, cwd=place, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (place / "runs/recipe/ledger.json").is_file()
