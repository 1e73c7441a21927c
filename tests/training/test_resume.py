"""A run that goes on says what it spent, with the noise it may use, or is refused by name."""

import gc
import json
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from safesynthdp.cli import run as run_door
from safesynthdp.privacy.ledger import Ledger
from safesynthdp.training import command, preparing, segments
from safesynthdp.training.command import main
from safesynthdp.training.step import add_noise, sum_clipped_gradients

SUM = "safesynthdp.training.loop.sum_clipped_gradients"
RECIPE = """
model: {from_scratch: {num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2}}
data: {train_file: RECORDS, labels: ["good", "bad"], max_length: 48}
privacy: {target_epsilon: 8.0, target_delta: 1.0e-3, accountant: rdp, unsafe_seed: 3}
train: {expected_batch_size: 8, max_steps: 8, save_steps: 2}
"""
OTHER_SIZE = ("--hardware.physical_batch_size", "1")  # other sums in the last bits, as on other processes
Dies = Callable[..., int]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    rows = [f"text number {i} of {i % 7},{('good', 'bad')[i % 2]}" for i in range(90)]
    (tmp_path / "records.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("RECORDS", str(tmp_path / "records.csv")))
    return tmp_path / "recipe.yaml"


@pytest.fixture
def go(recipe: Path) -> Callable[..., int]:
    """Run a whole command, or what is left of it."""
    return lambda run, *words: run_door(main, ["--config", str(recipe), "--output_dir", str(run), *words])


@pytest.fixture
def dies(go: Callable[..., int], killed_in_step: Callable[[int], AbstractContextManager[None]]) -> Dies:
    """Run a command that is killed in its n-th step, after it was counted."""

    def run(path: Path, step: int, *words: str) -> int:
        with killed_in_step(step):
            return go(path, *words)

    return run


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The first noise of every step that was noised, in order."""
    found = list[bytes]()

    def spy(sums: Any, *, mechanism: Any, keys: Any, step: int, **more: Any) -> None:
        found.append(mechanism.noise(step=step, tensor=0, count=4, keys=keys).tobytes())
        add_noise(sums, mechanism=mechanism, keys=keys, step=step, **more)

    monkeypatch.setattr("safesynthdp.training.loop.add_noise", spy)
    return found


def stopped(go: Callable[..., int], run: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Begin a run that is told to end in its first step."""

    def told(*args: Any, **kwargs: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return sum_clipped_gradients(*args, **kwargs)

    with monkeypatch.context() as context:
        context.setattr(SUM, told)
        assert go(run, *words) == 75


def weights(run: Path) -> dict[str, Any]:
    return load_file(run / "checkpoint" / "model.safetensors")


def entries(run: Path) -> dict[str, Any]:
    return {entry.id: entry.mechanism.get("steps") for entry in Ledger.read(run / "ledger.json").entries}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--privacy.target_epsilon 7", "privacy.target_epsilon is 7.0 now and was 8.0 then"),
        ("--privacy.per_sample_max_grad_norm 2", "privacy.per_sample_max_grad_norm is 2.0 now and was 1.0 then"),
        ("--privacy.target_delta 1e-4", "privacy.target_delta is 0.0001 now and was 0.001 then"),
        ("--privacy.accountant pld", 'privacy.accountant is "pld" now and was "rdp" then'),
        ("--train.expected_batch_size 9", "train.expected_batch_size is 9 now and was 8 then"),
        ("--train.max_steps 9", "train.max_steps is 9 now and was 8 then"),
        ("--model.from_scratch.hidden_size 32", "model.from_scratch.hidden_size is 32 now and was 16 then"),
        ("--lora.enabled true", "lora.enabled is true now and was null then"),
        ("--privacy.unsafe_seed 77", "config: privacy.unsafe_seed (see its config.yaml)"),
        ("--privacy.target_epsilon 7 --train.seed 1 --data.max_length 9 --lora.lora_r 2", "and 1 more keys"),
    ],
)
def test_what_differs_from_the_run_that_is_there_is_named_with_both_values(
    tmp_path: Path, go: Callable[..., int], dies: Dies, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    assert dies(tmp_path / "run", 2) == 130
    before = entries(tmp_path / "run")
    capsys.readouterr()
    assert go(tmp_path / "run", *words.split()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert "77" not in line, "a seed is as good as a key"
    assert "--resume_with_new_segment true" in line
    assert entries(tmp_path / "run") == before


@pytest.mark.parametrize("step", [1, 4])
def test_a_run_whose_ledger_is_gone_is_refused_and_forgets_nothing(
    tmp_path: Path, go: Callable[..., int], dies: Dies, capsys: pytest.CaptureFixture[str], step: int
) -> None:
    run = tmp_path / "run"
    assert dies(run, step) == 130
    saved = (run / "ledger.json").read_bytes()
    (run / "ledger.json").unlink()
    assert go(run, *OTHER_SIZE) == 2
    assert "ledger.json is missing, so what this run has spent is unknown" in capsys.readouterr().err
    assert not (run / "ledger.json").exists()
    (run / "ledger.json").write_bytes(saved)
    assert go(run) == 0
    assert entries(run) == {"dpsgd": 8, "label_histogram": None}


def test_a_ledger_older_than_the_state_is_refused(
    tmp_path: Path, go: Callable[..., int], dies: Dies, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert dies(run, 4) == 130
    path = run / "ledger.json"
    older = json.loads(path.read_text())
    older["entries"][0]["mechanism"]["steps"] = 1
    path.write_text(json.dumps(older))
    assert go(run) == 2
    assert "the ledger counts 1 steps" in capsys.readouterr().err


def test_a_ledger_without_the_histogram_that_was_drawn_counts_it_again(
    tmp_path: Path, go: Callable[..., int], dies: Dies
) -> None:
    run = tmp_path / "run"
    assert dies(run, 1) == 130
    found = json.loads((run / "ledger.json").read_text())
    found["entries"] = found["entries"][:1]
    (run / "ledger.json").write_text(json.dumps(found))
    assert go(run) == 0
    assert entries(run) == {"dpsgd": 8, "label_histogram": None}


def test_stopped_between_two_steps_a_run_goes_on_elsewhere_to_the_same_weights_and_price(
    tmp_path: Path, go: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert go(tmp_path / "straight") == 0
    run = tmp_path / "run"
    stopped(go, run, monkeypatch)
    assert go(run, *OTHER_SIZE) == 0
    for name, value in weights(tmp_path / "straight").items():
        np.testing.assert_allclose(weights(run)[name], value, atol=1e-5, rtol=0, err_msg=name)
    assert Ledger.read(run / "ledger.json") == Ledger.read(tmp_path / "straight" / "ledger.json")
    assert json.loads((run / "manifest.json").read_text())["steps_in_weights"] == 8


@pytest.mark.parametrize("end", ["told to end", "killed"])
def test_a_run_that_ended_early_has_let_go_of_its_directory_at_once(
    tmp_path: Path, go: Callable[..., int], dies: Dies, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    gc.collect()
    gc.disable()  # what a traceback holds is freed now or not at all
    try:
        if end == "killed":
            assert dies(tmp_path / "run", 2) == 130
        else:
            stopped(go, tmp_path / "run", monkeypatch)
        assert go(tmp_path / "run") == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("back", [False, True])
def test_steps_begun_elsewhere_and_lost_are_replayed_only_there(
    tmp_path: Path,
    go: Callable[..., int],
    dies: Dies,
    monkeypatch: pytest.MonkeyPatch,
    drawn: list[bytes],
    back: bool,
) -> None:
    run = tmp_path / "run"
    stopped(go, run, monkeypatch, "--train.save_steps", "100")
    words = ("--train.save_steps", "100", *OTHER_SIZE)
    assert dies(run, 3, *words) == 130  # steps 2 and 3 were noised over there, 4 was counted; none of them saved
    assert len(set(drawn)) == len(drawn) == 3
    assert go(run, *(words[:2] if back else words)) == 0
    replayed = set(drawn[:3]) & set(drawn[3:])
    assert len(replayed) == (0 if back else 2), "the same noise on the same sum only"
    steps = json.loads((run / "manifest.json").read_text())["steps_in_weights"]
    assert steps == (8 - 3 if back else 8)
    assert entries(run)["dpsgd"] == 8


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder as the hub has them."""
    from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LlamaConfig(
        vocab_size=259, num_attention_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=None, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    ByT5Tokenizer(extra_ids=0).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def named(model: Path, lora: str) -> list[str]:
    return ["--model.from_scratch", "null", "--model.model_name_or_path", str(model), "--lora.enabled", lora]


@pytest.mark.parametrize("lora", ["true", "false"])
def test_a_run_whose_model_has_other_weights_by_now_is_refused(
    tmp_path: Path, go: Callable[..., int], dies: Dies, model: Path, capsys: pytest.CaptureFixture[str], lora: str
) -> None:
    run, words = tmp_path / "run", named(model, lora)
    assert dies(run, 4, *words) == 130
    file = model / "model.safetensors"
    kept = file.read_bytes()
    save_file({name: value * 1.01 for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    assert go(run, *words) == 2
    assert "holds other weights than this run began with" in capsys.readouterr().err
    assert entries(run)["dpsgd"] == 4
    file.write_bytes(kept)
    assert go(run, *words) == 0
    assert json.loads((run / "manifest.json").read_text())["steps_in_weights"] == 8


@pytest.mark.parametrize("change", ["one weight", "a setting"])
def test_lost_steps_are_not_replayed_on_a_model_that_changed_a_little(
    tmp_path: Path,
    go: Callable[..., int],
    dies: Dies,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    drawn: list[bytes],
    change: str,
) -> None:
    monkeypatch.setattr(preparing, "FROZEN_SAMPLE", 1)
    run, words = tmp_path / "run", named(model, "true")
    assert dies(run, 4, *words) == 130
    if change == "one weight":
        values = load_file(model / "model.safetensors")
        values["model.embed_tokens.weight"][200, 3] += 1e-3
        save_file(values, model / "model.safetensors", metadata={"format": "pt"})
    else:
        settings = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 1e-4}))
    assert go(run, *words) == 0
    assert not set(drawn[:3]) & set(drawn[3:])
    assert entries(run)["dpsgd"] == 8
    assert json.loads((run / "manifest.json").read_text())["steps_in_weights"] == 8 - 2


def test_code_with_another_guarantee_is_refused_by_name_and_with_the_override_is_a_part_of_its_own(
    tmp_path: Path,
    go: Callable[..., int],
    dies: Dies,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    assert dies(run, 4) == 130
    for module in (segments, command):
        monkeypatch.setattr(module, "GUARANTEE_VERSION", 2)
    assert go(run) == 2
    assert "guarantee_version (of the code that draws, clips and adds noise) is 2" in capsys.readouterr().err
    assert go(run, "--resume_with_new_segment", "true") == 0
    assert entries(run) == {"dpsgd": 4, "label_histogram": None, "dpsgd-2": 4}
    release = Ledger.read(run / "ledger.json").releases[0]
    assert set(release.entries) == set(entries(run))
    assert json.loads((run / "manifest.json").read_text())["guarantee_version"] == 2
