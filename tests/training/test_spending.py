"""What a run writes down before it draws: which accountant, and where its noise comes from."""

from pathlib import Path
from typing import Any

import pytest

from safesynthdp.errors import ConfigError, LedgerMismatch
from safesynthdp.model_config import FromScratchConfig, ModelConfig
from safesynthdp.privacy.ledger import Ledger
from safesynthdp.records import DataConfig, Records
from safesynthdp.training.config import FinetuneConfig, PrivacyConfig, TrainConfig
from safesynthdp.training.plan import PrivacyPlan, make_plan
from safesynthdp.training.spending import HISTOGRAM, TRAINING, Spending

DATA = {"fingerprint": "f1", "num_records": 400, "num_records_is_public": True}
SENTENCE = "noise of the steps: a device generator seeded from OS entropy, not a cryptographic stream"


def promise(**changes: Any) -> PrivacyConfig:
    return PrivacyConfig(**{"target_epsilon": 3.0, "target_delta": 1e-3, **changes})


def planned(privacy: PrivacyConfig) -> PrivacyPlan:
    config = FinetuneConfig(
        output_dir="run",
        model=ModelConfig(from_scratch=FromScratchConfig()),
        data=DataConfig(train_file="records.csv"),
        privacy=privacy,
        train=TrainConfig(expected_batch_size=20, max_steps=10),
    )
    numbers = range(400)
    records = Records(
        texts=tuple(f"text {i}" for i in numbers),
        labels=tuple("a" for _ in numbers),
        record_ids=tuple(str(i) for i in numbers),
        label_set=("a",),
    )
    return make_plan(config, records, num_units=400, noise_multiplier=None)


def opened(path: Path, privacy: PrivacyConfig, *, seeded: bool = False) -> Spending:
    return Spending.open(path, plan=planned(privacy), privacy=privacy, data=DATA, seeded=seeded)


def closed(path: Path, privacy: PrivacyConfig) -> Ledger:
    spending = opened(path, privacy)
    spending.charge_histogram()
    spending.charge(spending.plan.steps)
    spending.close()
    return Ledger.read(path)


@pytest.mark.parametrize(
    ("changes", "settled"),
    [({}, "prv"), ({"adjacency": "replace"}, "pld"), ({"accountant": "rdp"}, "rdp"), ({"accountant": "pld"}, "pld")],
)
def test_the_accountant_is_a_name_before_anything_is_written(changes: dict[str, Any], settled: str) -> None:
    assert promise(**changes).accountant == settled
    sampler = planned(promise(**changes)).mechanism
    assert sampler is not None
    assert sampler.to_entry()["accountant"] == settled


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_replace_is_refused_beside_an_accountant_that_does_not_know_it(accountant: str) -> None:
    with pytest.raises(ConfigError, match=f"^privacy.accountant={accountant}"):
        promise(accountant=accountant, adjacency="replace")


@pytest.mark.parametrize(("histogram", "speaks"), [(None, "prv"), (0.2, "pld")])
def test_the_release_names_the_accountant_that_priced_it(tmp_path: Path, histogram: float | None, speaks: str) -> None:
    found = closed(tmp_path / "ledger.json", promise(label_histogram_epsilon=histogram))
    assert found.entry(TRAINING).mechanism["accountant"] == "prv"
    release = found.releases[0]
    assert release.accountant["name"] == speaks
    assert release.epsilon is not None
    assert 3.0 / 1.01 <= release.epsilon <= 3.0


def test_device_noise_is_in_the_ledger_and_not_covered_and_the_histogram_stays_keyed(tmp_path: Path) -> None:
    found = closed(tmp_path / "ledger.json", promise(noise_generator="device"))
    assert found.entry(TRAINING).randomness == {"source": "device_generator", "seeded": False}
    assert found.entry(HISTOGRAM).randomness == {"source": "os_entropy", "seeded": False}
    assert all(any(line.startswith(SENTENCE) for line in release.not_covered) for release in found.releases)


def test_keyed_noise_has_no_such_reservation(tmp_path: Path) -> None:
    found = closed(tmp_path / "ledger.json", promise())
    assert found.entry(TRAINING).randomness == {"source": "os_entropy", "seeded": False}
    assert not any("device generator" in line for release in found.releases for line in release.not_covered)


def test_a_seed_is_named_first_whatever_generator_it_feeds(tmp_path: Path) -> None:
    privacy = promise(noise_generator="device", unsafe_seed=3)
    spending = opened(tmp_path / "ledger.json", privacy, seeded=True)
    spending.charge_histogram()
    for entry in spending.ledger.entries:
        assert entry.randomness == {"source": "unsafe_seed", "seeded": True}


def test_a_run_that_changes_its_generator_is_not_resumed(tmp_path: Path) -> None:
    opened(tmp_path / "ledger.json", promise()).charge(1)
    with pytest.raises(LedgerMismatch, match=r"^resume: source is device_generator, the ledger says os_entropy"):
        opened(tmp_path / "ledger.json", promise(noise_generator="device"))
