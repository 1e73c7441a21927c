"""A whole run: it spends what it says, survives an interruption, and repeats bit by bit under a seed."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from safesynthdp.cli import run as run_door
from safesynthdp.errors import ConfigError, LedgerMismatch
from safesynthdp.privacy.ledger import Ledger, recompute_all
from safesynthdp.records import read_records
from safesynthdp.training import session
from safesynthdp.training.command import main
from safesynthdp.training.ranks import Ranks
from safesynthdp.training.step import add_noise, sum_clipped_gradients
from safesynthdp.training.units import Units

SUM = "safesynthdp.training.loop.sum_clipped_gradients"


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "records.csv"
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["text", "label", "owner"])
        for i in range(90):
            writer.writerow([f"text number {i} of {i % 7}", ("good", "bad", "odd")[i % 3], f"user {i % 30}"])
    return path


@pytest.fixture
def arguments(records: Path) -> Callable[..., list[str]]:
    def build(output_dir: Path, **changes: Any) -> list[str]:
        values = {
            "model.from_scratch.num_hidden_layers": 1,
            "model.from_scratch.hidden_size": 16,
            "model.from_scratch.num_attention_heads": 2,
            "data.train_file": records,
            "data.labels": '["good", "bad", "odd"]',
            "data.max_length": 48,
            "privacy.target_epsilon": 8,
            "privacy.target_delta": 1e-3,
            "train.expected_batch_size": 8,
            "train.max_steps": 6,
            "train.save_steps": 2,
            "output_dir": output_dir,
        } | {key.replace("__", "."): value for key, value in changes.items()}
        return [word for key, value in values.items() if value is not None for word in (f"--{key}", str(value))]

    return build


Arguments = Callable[..., list[str]]


def ledger(path: Path) -> Ledger:
    return Ledger.read(path / "ledger.json")


def checkpoint(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((path / "checkpoint").iterdir())}


def test_a_run_ends_at_or_below_its_target_and_its_ledger_alone_says_so(tmp_path: Path, arguments: Arguments) -> None:
    assert run_door(main, arguments(tmp_path / "run")) == 0
    found = ledger(tmp_path / "run")
    assert {entry.kind for entry in found.entries} == {"dpsgd", "label_histogram"}
    assert found.entry("dpsgd").mechanism["steps"] == 6
    for release, again in recompute_all(found):
        assert again is not None
        assert release.epsilon == pytest.approx(again, rel=1e-9)
        assert 8 / 1.01 <= again <= 8
    assert json.loads((tmp_path / "run/manifest.json").read_text())["status"] == "finished"


def test_what_may_not_be_released_is_readable_by_the_owner_alone(tmp_path: Path, arguments: Arguments) -> None:
    assert run_door(main, arguments(tmp_path / "run")) == 0
    assert (tmp_path / "run/state").stat().st_mode & 0o777 == 0o700
    for private in ("state/keys.json", "metrics.jsonl"):
        assert (tmp_path / "run" / private).stat().st_mode & 0o777 == 0o600
    keys = json.loads((tmp_path / "run/state/keys.json").read_text())
    others = [p for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != "keys.json"]
    assert not any(keys["noise"].encode() in p.read_bytes() for p in others)


def test_two_runs_with_the_same_unsafe_seed_release_the_same_bytes(tmp_path: Path, arguments: Arguments) -> None:
    for name in ("a", "b"):
        assert run_door(main, arguments(tmp_path / name, privacy__unsafe_seed=3)) == 0
    assert checkpoint(tmp_path / "a") == checkpoint(tmp_path / "b")
    assert ledger(tmp_path / "a").entry("dpsgd").randomness["seeded"] is True
    assert "seeded" in (tmp_path / "a/checkpoint/README.md").read_text().lower()


def test_two_runs_without_a_seed_draw_other_noise_whatever_the_training_seed(
    tmp_path: Path, arguments: Arguments
) -> None:
    for name in ("a", "b"):
        assert run_door(main, arguments(tmp_path / name, train__seed=3)) == 0
    assert checkpoint(tmp_path / "a")["model.safetensors"] != checkpoint(tmp_path / "b")["model.safetensors"]


def test_dropout_is_seeded_in_secret_and_a_release_with_dropout_says_what_that_rests_on(
    tmp_path: Path, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = dict[str, list[int]]()

    def noted(name: str) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            seeds.setdefault(name, []).append(named["dropout_seed"])
            return sum_clipped_gradients(*args, **named)

        return call

    chosen: dict[str, dict[str, Any]] = {
        "a": {"train__seed": 3},
        "b": {"train__seed": 3},
        "seeded": {"privacy__unsafe_seed": 1},
        "seeded again": {"privacy__unsafe_seed": 1},
        "other seed": {"privacy__unsafe_seed": 1, "train__seed": 1},
        "dropout": {"lora__enabled": True, "lora__lora_dropout": 0.1},
    }
    for name, changes in chosen.items():
        monkeypatch.setattr(SUM, noted(name))
        assert run_door(main, arguments(tmp_path / name, train__max_steps=2, **changes)) == 0
        said = [line for release in ledger(tmp_path / name).releases for line in release.not_covered]
        assert any(line.startswith("dropout:") for line in said) == (name == "dropout")
    assert seeds["seeded"] == seeds["seeded again"]
    drawn = [seed for name in ("a", "b", "seeded", "other seed") for seed in seeds[name]]
    assert len(set(drawn)) == 4 * 2


@pytest.mark.parametrize("when", [1, 3, 4])
def test_an_interrupted_run_goes_on_to_the_same_bytes_and_the_same_epsilon(
    tmp_path: Path, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    assert run_door(main, arguments(tmp_path / "straight", privacy__unsafe_seed=3)) == 0
    with monkeypatch.context() as patched:
        patched.setattr(SUM, _dies_at(when, sum_clipped_gradients))
        assert run_door(main, arguments(tmp_path / "broken", privacy__unsafe_seed=3)) == 130
    counted = ledger(tmp_path / "broken").entry("dpsgd").mechanism["steps"]
    assert counted == when + 1, "the step that died was counted before it was computed"
    assert not (tmp_path / "broken/checkpoint").exists()
    assert run_door(main, arguments(tmp_path / "broken", privacy__unsafe_seed=3)) == 0
    assert checkpoint(tmp_path / "straight") == checkpoint(tmp_path / "broken")
    assert ledger(tmp_path / "straight").releases[0].epsilon == ledger(tmp_path / "broken").releases[0].epsilon


def test_steps_lost_to_a_change_of_hardware_stay_counted_and_the_target_still_holds(
    tmp_path: Path, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = list[tuple[int, bytes]]()
    spied = add_noise

    def spy(sums: Any, *, mechanism: Any, keys: Any, step: int, **more: Any) -> None:
        drawn.append((step, mechanism.noise(step=step, tensor=0, count=4, keys=keys).tobytes()))
        spied(sums, mechanism=mechanism, keys=keys, step=step, **more)

    monkeypatch.setattr("safesynthdp.training.loop.add_noise", spy)
    with monkeypatch.context() as patched:
        patched.setattr(SUM, _dies_at(3, sum_clipped_gradients))
        assert run_door(main, arguments(tmp_path / "run")) == 130
    assert run_door(main, arguments(tmp_path / "run", hardware__physical_batch_size=1)) == 0
    found = ledger(tmp_path / "run")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert found.entry("dpsgd").mechanism["steps"] == 6
    assert manifest["steps_in_weights"] == 4, "steps 3 and 4 of the first try were spent: two of six are lost"
    assert len({noise for _, noise in drawn}) == len(drawn), "no noise is used for two different sums"
    epsilon = found.releases[0].epsilon
    assert epsilon is not None
    assert epsilon <= 8


@pytest.mark.parametrize("changed", ["versions", "commit", "code_digest", "device"])
def test_steps_lost_under_other_code_or_on_another_device_are_never_replayed_with_the_same_noise(
    tmp_path: Path, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(SUM, _dies_at(3, sum_clipped_gradients))
        assert run_door(main, arguments(tmp_path / "run")) == 130
    unpatched = session._signal
    if changed == "device":
        monkeypatch.setattr(
            session,
            "_signal",
            lambda *args, **kwargs: unpatched(*args, **kwargs | {"ranks": Ranks(device=torch.device("cuda"))}),
        )
    else:
        monkeypatch.setattr(session, changed, lambda: {"transformers": "another"})
    assert run_door(main, arguments(tmp_path / "run")) == 0
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert ledger(tmp_path / "run").entry("dpsgd").mechanism["steps"] == 6
    assert manifest["steps_in_weights"] == 4


def test_user_level_units_without_users_are_refused_and_never_fall_back_to_records(records: Path) -> None:
    read = read_records(records, text_column="text", label_column="label")
    with pytest.raises(ConfigError, match=r"data\.user_column"):
        Units.of(read, unit="user")


def test_ctrl_c_ends_the_step_saves_it_and_the_same_command_goes_on(
    tmp_path: Path, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    def interrupts(*args: Any, **kwargs: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return unpatched(*args, **kwargs)

    unpatched = sum_clipped_gradients
    with monkeypatch.context() as patched:
        patched.setattr(SUM, interrupts)
        assert run_door(main, arguments(tmp_path / "run")) == 130
    assert ledger(tmp_path / "run").entry("dpsgd").mechanism["steps"] == 1
    assert run_door(main, arguments(tmp_path / "run")) == 0
    assert json.loads((tmp_path / "run/manifest.json").read_text())["steps_in_weights"] == 6


def test_a_run_killed_while_it_writes_its_release_closes_again_with_one_price(
    tmp_path: Path, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("safesynthdp.training.session.write_checkpoint", dies)
        assert run_door(main, arguments(tmp_path / "run")) == 130
    assert run_door(main, arguments(tmp_path / "run")) == 0
    assert [r.artifact for r in ledger(tmp_path / "run").releases] == ["weights", "label_histogram"]
    assert ledger(tmp_path / "run").entry("dpsgd").mechanism["steps"] == 6


def test_with_noise_and_target_both_given_training_stops_before_the_step_that_would_pass(
    tmp_path: Path, arguments: Arguments
) -> None:
    given = {"privacy__noise_multiplier": 0.8, "privacy__target_epsilon": 3, "privacy__label_histogram_epsilon": None}
    words = [*arguments(tmp_path / "run", **given, train__max_steps=40), "--privacy.label_histogram_epsilon", "null"]
    assert run_door(main, words) == 0
    entry = ledger(tmp_path / "run").entry("dpsgd")
    from safesynthdp.privacy.mechanisms import DPSGDMechanism

    mechanism = DPSGDMechanism.from_entry(dict(entry.mechanism))
    assert 1 <= mechanism.steps < 40
    assert mechanism.epsilon(delta=1e-3) <= 3 < mechanism.with_steps(mechanism.steps + 1).epsilon(delta=1e-3)


def test_without_a_histogram_labels_are_uniform_and_nothing_is_paid_for_them(
    tmp_path: Path, arguments: Arguments
) -> None:
    assert run_door(main, [*arguments(tmp_path / "run"), "--privacy.label_histogram_epsilon", "null"]) == 0
    labels = json.loads((tmp_path / "run/label_histogram.json").read_text())
    assert labels["source"] == "uniform"
    assert labels["noisy_counts"] is None
    assert not ledger(tmp_path / "run").has("label_histogram")


@pytest.mark.parametrize("lora", ["true", "false"])
def test_gradient_checkpointing_changes_memory_and_not_one_bit_of_the_release(
    tmp_path: Path, arguments: Arguments, lora: str
) -> None:
    changes = {"privacy__unsafe_seed": 3, "lora__enabled": lora}
    for name, checkpointing in (("plain", "false"), ("checkpointed", "true")):
        words = arguments(tmp_path / name, hardware__gradient_checkpointing=checkpointing, **changes)
        assert run_door(main, words) == 0
    weights = "adapter_model.safetensors" if lora == "true" else "model.safetensors"
    assert checkpoint(tmp_path / "plain")[weights] == checkpoint(tmp_path / "checkpointed")[weights]


@pytest.mark.parametrize("engine", ["auto", "hooks", "ghost"])
def test_every_engine_trains_and_the_manifest_names_it_and_says_why(
    engine: str, tmp_path: Path, arguments: Arguments
) -> None:
    assert run_door(main, arguments(tmp_path / "run", hardware__clipping_engine=engine, train__max_steps=2)) == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["engine"] == ("bookkeeping" if engine == "auto" else engine)
    assert manifest["engine_reason"]
    assert manifest["versions"]["opacus"]


def test_mode_none_reports_no_guarantee(tmp_path: Path, arguments: Arguments) -> None:
    words = arguments(tmp_path / "run", privacy__target_epsilon=None, privacy__mode="none")
    assert run_door(main, words) == 0
    (release,) = ledger(tmp_path / "run").releases
    assert release.epsilon is None
    assert "No formal guarantee" in (tmp_path / "run/checkpoint/README.md").read_text()


def test_user_level_runs_count_users_and_take_one_record_of_each(
    tmp_path: Path, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[int]()
    unpatched = sum_clipped_gradients

    def spy(model: Any, engine: Any, sums: Any, examples: Any, **kwargs: Any) -> Any:
        seen.append(len(examples))
        return unpatched(model, engine, sums, examples, **kwargs)

    monkeypatch.setattr(SUM, spy)
    changes = {"privacy__unit": "user", "data__user_column": "owner", "train__expected_batch_size": 4}
    assert run_door(main, arguments(tmp_path / "run", **changes)) == 0
    found = ledger(tmp_path / "run")
    users = found.entry("dpsgd").mechanism["num_records"]
    assert found.unit == "user"
    assert 15 <= users <= 30
    assert max(seen) <= users


def test_a_finished_run_is_left_alone_and_another_config_is_refused(
    tmp_path: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_door(main, arguments(tmp_path / "run")) == 0
    before = checkpoint(tmp_path / "run")
    assert run_door(main, arguments(tmp_path / "run")) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert checkpoint(tmp_path / "run") == before
    assert run_door(main, arguments(tmp_path / "run", train__max_steps=7)) == 2
    assert "another config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"privacy__target_epsilon": None}, "privacy.target_epsilon"),
        ({"privacy__target_epsilon": -1}, "privacy.target_epsilon"),
        ({"privacy__target_epsilon": math.nan}, "privacy.target_epsilon"),
        ({"privacy__target_epsilon": 0.05}, "target_epsilon"),  # the histogram alone costs more
        ({"privacy__target_delta": 0}, "privacy.target_delta"),
        ({"privacy__target_epsilom": 3}, "privacy.target_epsilom"),
        ({"privacy__accountant": "gdp"}, "privacy.accountant"),
        ({"privacy__adjacency": "replace", "privacy__accountant": "prv"}, "privacy.accountant"),
        ({"privacy__unit": "user"}, "data.user_column"),
        ({"privacy__per_sample_max_grad_norm": math.inf}, "privacy.per_sample_max_grad_norm"),
        ({"train__expected_batch_size": 91}, "train.expected_batch_size"),
        ({"train__max_steps": 0}, "train.max_steps"),
        ({"train__num_train_epochs": 1}, "train.max_steps"),
        ({"data__text_column": "words"}, "words"),
        ({"data__max_length": 4}, "data.max_length"),
        ({"model__from_scratch__hidden_size": 15}, "model.from_scratch.hidden_size"),
        ({"hardware__clipping_engine": "fast"}, "hardware.clipping_engine"),
        ({"packing": "true"}, "packing"),
    ],
)
def test_a_request_that_must_change_ends_with_code_2_one_line_and_the_key(
    tmp_path: Path, arguments: Arguments, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], named: str
) -> None:
    assert run_door(main, arguments(tmp_path / "run", **changes)) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert named in message
    assert not (tmp_path / "run").exists()


def test_a_run_whose_records_changed_is_not_resumed(
    tmp_path: Path,
    arguments: Arguments,
    records: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(SUM, _dies_at(2, sum_clipped_gradients))
        assert run_door(main, arguments(tmp_path / "run")) == 130
    records.write_text(records.read_text().replace("text number 5 ", "text number five "))
    assert run_door(main, arguments(tmp_path / "run")) == LedgerMismatch.exit_code
    assert "fingerprint" in capsys.readouterr().err


def test_a_run_without_its_state_is_not_resumed(
    tmp_path: Path, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(SUM, _dies_at(3, sum_clipped_gradients))
        assert run_door(main, arguments(tmp_path / "run")) == 130
    (tmp_path / "run/state/latest.json").unlink()
    assert run_door(main, arguments(tmp_path / "run")) == LedgerMismatch.exit_code
    assert "the ledger counts 4 steps" in capsys.readouterr().err


def _dies_at(step: int, unpatched: Callable[..., Any]) -> Callable[..., Any]:
    """Raise as a kill would, in the middle of a step: nothing after it runs."""
    calls = 0

    def patched(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step + 1:
            raise KeyboardInterrupt
        return unpatched(*args, **kwargs)

    return patched
