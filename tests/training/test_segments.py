"""A run that goes on under another promise pays for both, and nothing it spent is forgotten."""

import csv
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from safesynthdp.cli import run as run_door
from safesynthdp.errors import LedgerMismatch
from safesynthdp.privacy.command import main as account
from safesynthdp.privacy.joint import joint_price
from safesynthdp.privacy.ledger import Ledger, recompute_all
from safesynthdp.privacy.mechanisms import DPSGDMechanism
from safesynthdp.training.command import main
from safesynthdp.training.config import PrivacyConfig
from safesynthdp.training.plan import PrivacyPlan
from safesynthdp.training.segments import NOT_COVERED, Segment
from safesynthdp.training.spending import Spending
from safesynthdp.training.step import add_noise

GO_ON = ["--resume_with_new_segment", "true"]
Arguments = Callable[..., list[str]]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "records.csv"
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["text", "label"])
        writer.writerows([f"text number {i} of {i % 7}", ("good", "bad")[i % 2]] for i in range(90))
    return path


@pytest.fixture
def arguments(records: Path, tmp_path: Path) -> Arguments:
    """Return a maker of command lines for a tiny run."""

    def build(**changes: Any) -> list[str]:
        values = {
            "model.from_scratch.num_hidden_layers": 1,
            "model.from_scratch.hidden_size": 16,
            "model.from_scratch.num_attention_heads": 2,
            "data.train_file": records,
            "data.labels": '["good", "bad"]',
            "data.max_length": 48,
            "privacy.target_epsilon": 8,
            "privacy.target_delta": 1e-3,
            "privacy.accountant": "rdp",
            "train.expected_batch_size": 8,
            "train.max_steps": 8,
            "train.save_steps": 2,
            "output_dir": tmp_path / "run",
        } | {key.replace("__", "."): value for key, value in changes.items()}
        return [word for key, value in values.items() if value is not None for word in (f"--{key}", str(value))]

    return build


@pytest.fixture
def dies(killed_in_step: Callable[[int], AbstractContextManager[None]]) -> Callable[[list[str], int], int]:
    """Return what runs a command that is killed in its n-th step."""

    def run(words: list[str], step: int) -> int:
        with killed_in_step(step):
            return run_door(main, words)

    return run


def ledger(run: Path) -> Ledger:
    return Ledger.read(run / "ledger.json")


def test_two_changes_of_the_promise_are_three_entries_and_one_composed_price(
    tmp_path: Path, arguments: Arguments, dies: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    run, noise = tmp_path / "run", {"privacy__target_epsilon": None, "privacy__noise_multiplier": 1.3}
    assert dies(arguments(), 4) == 130
    assert dies([*arguments(**noise), *GO_ON], 3) == 130
    clipped = noise | {"privacy__per_sample_max_grad_norm": 0.5, "train__expected_batch_size": 20}
    assert run_door(main, [*arguments(**clipped), *GO_ON]) == 0
    found = ledger(run)
    parts = {entry.id: entry.mechanism for entry in found.entries if entry.kind == "dpsgd"}
    assert [part["steps"] for part in parts.values()] == [4, 3, 1], "train.max_steps counts what was spent before"
    assert list(parts) == ["dpsgd", "dpsgd-2", "dpsgd-3"]
    assert [part["noise_multiplier"] for part in parts.values()][1:] == [1.3, 1.3]
    assert [part["per_sample_max_grad_norm"] for part in parts.values()] == [1.0, 1.0, 0.5]
    assert [part["expected_batch_size"] for part in parts.values()] == [8, 8, 20]
    release = found.releases[0]
    assert set(release.entries) == {entry.id for entry in found.entries}
    assert NOT_COVERED in release.not_covered
    assert release.epsilon is not None
    alone = [
        DPSGDMechanism.from_entry({**part, "adjacency": "add_remove"}).epsilon(delta=1e-3) for part in parts.values()
    ]
    assert release.epsilon > max(alone)
    assert all(recomputed == stored.epsilon for stored, recomputed in recompute_all(found))
    capsys.readouterr()
    account(["ledger", str(run), "--json"])
    assert json.loads(capsys.readouterr().out)["epsilon"] == pytest.approx(release.epsilon)
    folders = json.loads((run / "manifest.json").read_text())
    assert folders["segment"] == {"number": 3, "noise_multiplier": 1.3}
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["expected_batch_size"] == 20


def test_the_target_covers_all_parts_together_and_the_next_noise_is_searched_for_what_is_left(
    tmp_path: Path, arguments: Arguments, dies: Callable[..., int]
) -> None:
    assert dies(arguments(), 4) == 130
    assert run_door(main, [*arguments(train__expected_batch_size=16), *GO_ON]) == 0
    found = ledger(tmp_path / "run")
    assert found.releases[0].epsilon is not None
    assert 8 / 1.02 <= found.releases[0].epsilon <= 8
    first, second = (found.entry(name).mechanism for name in ("dpsgd", "dpsgd-2"))
    assert second["noise_multiplier"] != first["noise_multiplier"]
    assert first["steps"] + second["steps"] == 8


def test_a_target_that_is_spent_already_is_refused_and_the_run_stays_as_it_was(
    tmp_path: Path, arguments: Arguments, dies: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dies(arguments(), 6) == 130
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    assert run_door(main, [*arguments(privacy__target_epsilon=1), *GO_ON]) == 2
    assert "spent" in capsys.readouterr().err
    assert run_door(main, [*arguments(train__max_steps=5), *GO_ON]) == 2
    assert "train.max_steps=5: 6 steps are spent already" in capsys.readouterr().err
    for key in ("config.yaml", "ledger.json"):
        assert (tmp_path / "run" / key).read_bytes() == before[tmp_path / "run" / key]
    assert run_door(main, arguments()) == 0
    assert [entry.id for entry in ledger(tmp_path / "run").entries if entry.kind == "dpsgd"] == ["dpsgd"]


@pytest.mark.parametrize(
    "changes",
    [
        {"lora__enabled": "true"},
        {"model__from_scratch.hidden_size": 32},
        {"privacy__adjacency": "replace", "privacy__accountant": "pld"},
        {"privacy__unsafe_seed": 3},
        {"privacy__label_histogram_epsilon": 0.5},
        {"privacy__mode": "none", "privacy__target_epsilon": None},
        {"data__labels": '["good", "bad", "odd"]'},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_a_run_cannot_change_is_refused_by_name(
    tmp_path: Path,
    arguments: Arguments,
    dies: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
) -> None:
    assert dies(arguments(), 2) == 130
    before = ledger(tmp_path / "run")
    assert run_door(main, [*arguments(**changes), *GO_ON]) == 2
    named = next(iter(changes)).replace("__", ".")
    assert named.split(".from")[0].removesuffix(".enabled") in capsys.readouterr().err
    assert ledger(tmp_path / "run") == before


def test_other_records_are_refused_and_with_the_override_are_a_part_of_their_own(
    tmp_path: Path, arguments: Arguments, dies: Callable[..., int], records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dies(arguments(), 4) == 130
    records.write_text(records.read_text().replace("text number 5 ", "text number five "))
    assert run_door(main, arguments()) == LedgerMismatch.exit_code
    assert "--resume_with_new_segment" in capsys.readouterr().err
    assert run_door(main, [*arguments(), *GO_ON]) == 0
    first, second = (ledger(tmp_path / "run").entry(name) for name in ("dpsgd", "dpsgd-2"))
    assert first.data["fingerprint"] != second.data["fingerprint"]
    assert (first.mechanism["steps"], second.mechanism["steps"]) == (4, 4)


def test_a_part_that_dies_before_its_first_step_and_a_plain_resume_go_on_with_it(
    tmp_path: Path, arguments: Arguments, dies: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = arguments(train__expected_batch_size=16)
    assert dies(arguments(), 3) == 130

    def dead(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("safesynthdp.training.session.train", dead)
        assert run_door(main, [*changed, *GO_ON]) == 130
    assert [entry.id for entry in ledger(tmp_path / "run").entries if entry.kind == "dpsgd"] == ["dpsgd"]
    assert run_door(main, changed) == 0, "the manifest says which part is open; the override is not needed twice"
    steps = [entry.mechanism["steps"] for entry in ledger(tmp_path / "run").entries if entry.kind == "dpsgd"]
    assert steps == [3, 5]


def test_a_manifest_that_forgets_a_part_or_a_ledger_that_lost_one_is_refused(
    tmp_path: Path, arguments: Arguments, dies: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    changed = arguments(train__expected_batch_size=16)
    assert dies(arguments(), 3) == 130
    assert dies([*changed, *GO_ON], 2) == 130
    path = tmp_path / "run" / "manifest.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in whole.items() if key != "segment"}))
    assert run_door(main, changed) == 2
    assert "the ledger holds 2 parts of the training, manifest.json says part 1" in capsys.readouterr().err
    path.write_text(json.dumps(whole))
    found = json.loads((tmp_path / "run" / "ledger.json").read_text())
    found["entries"] = [entry for entry in found["entries"] if entry["id"] != "dpsgd"]
    (tmp_path / "run" / "ledger.json").write_text(json.dumps(found))
    assert run_door(main, changed) == 2
    assert "parts of the training" in capsys.readouterr().err


def test_another_learning_rate_is_no_other_promise_and_is_the_one_that_is_used(
    tmp_path: Path, arguments: Arguments, dies: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dies(arguments(train__lr_scheduler_type="constant"), 3) == 130
    rates = list[float]()

    def spied(self: Any, *args: Any, **kwargs: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return unpatched(self, *args, **kwargs)

    import torch

    unpatched = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", spied)
    words = arguments(train__lr_scheduler_type="constant", train__learning_rate=0.5)
    assert run_door(main, [*words, *GO_ON]) == 0
    assert set(rates) == {0.5}
    parts = [entry for entry in ledger(tmp_path / "run").entries if entry.kind == "dpsgd"]
    assert [entry.mechanism["steps"] for entry in parts] == [8]


@settings(max_examples=6)
@given(
    parts=st.lists(
        st.tuples(st.floats(0.6, 4.0), st.integers(1, 60), st.integers(1, 30), st.floats(0.1, 3.0)),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_the_parts_the_release_is_their_joint_price_and_steps_never_shrink(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[float, int, int, float]]
) -> None:
    path = tmp_path_factory.mktemp("parts") / "ledger.json"
    ran = list[DPSGDMechanism]()
    spending: Spending | None = None
    for number, (noise, batch, steps, clip) in enumerate(parts, start=1):
        sampler = DPSGDMechanism(
            num_records=400,
            expected_batch_size=batch,
            noise_multiplier=noise,
            steps=steps,
            per_sample_max_grad_norm=clip,
            accountant="rdp",
        )
        before = sum(mechanism.steps for mechanism in ran)
        plan = PrivacyPlan(sampler=sampler, is_private=True, histogram=None, not_covered=(), steps_before=before)
        privacy = PrivacyConfig(noise_multiplier=noise, target_delta=1e-5, per_sample_max_grad_norm=clip)
        data = {"fingerprint": str(number), "num_records": 400}
        spending = Spending.open(
            path, plan=plan, privacy=privacy, data=data, seeded=False, segment=Segment(number=number)
        )
        assert spending.steps == before
        spending.charge(before + steps)
        spending.charge(before)
        assert spending.steps == before + steps
        ran.append(sampler)
    assert spending is not None
    release = spending.close()
    expected = joint_price(ran, delta=1e-5, adjacency="add_remove")[0]
    assert release.epsilon == pytest.approx(expected, rel=1e-9)
    assert release.epsilon is not None
    assert release.epsilon >= max(mechanism.epsilon(delta=1e-5) for mechanism in ran) - 1e-9
    found = Ledger.read(path)
    assert [entry.mechanism["steps"] for entry in found.entries] == [mechanism.steps for mechanism in ran]
    assert all(recomputed == stored.epsilon for stored, recomputed in recompute_all(found))


def test_no_part_uses_the_noise_of_another_not_even_back_under_the_first_promise(
    arguments: Arguments, dies: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = list[bytes]()

    def spy(sums: Any, *, mechanism: DPSGDMechanism, keys: Any, step: int, **more: Any) -> None:
        unit = mechanism.noise(step=step, tensor=0, count=4, keys=keys) / mechanism.noise_multiplier
        drawn.append(unit.round(9).tobytes())
        add_noise(sums, mechanism=mechanism, keys=keys, step=step, **more)

    monkeypatch.setattr("safesynthdp.training.loop.add_noise", spy)
    first = {"privacy__target_epsilon": None, "privacy__noise_multiplier": 1.3}
    assert dies(arguments(**first), 4) == 130
    assert dies([*arguments(**first | {"privacy__noise_multiplier": 1.7}), *GO_ON], 3) == 130
    assert run_door(main, [*arguments(**first), *GO_ON]) == 0
    assert len(drawn) >= 6
    assert len(set(drawn)) == len(drawn)
