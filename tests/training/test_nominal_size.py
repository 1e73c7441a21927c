"""A shadow model is trained at the planned size, whatever number of members its coins gave it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safesynthdp.cli import run
from safesynthdp.errors import ConfigError
from safesynthdp.privacy.ledger import Ledger
from safesynthdp.privacy.mechanisms import DPSGDMechanism
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.records import DataConfig, load_split
from safesynthdp.runs import RunDirectory
from safesynthdp.training.command import main

KEYS = StepKeys.from_unsafe_seed(1)


def flags(folder: Path, *, member_every: int) -> list[str]:
    rows = [f"text number {i} of {i % 7},{('good', 'bad')[i % 2]}" for i in range(60)]
    (folder / "records.csv").write_text("\n".join(["text,label", *rows, ""]))
    ids = load_split(DataConfig(train_file=str(folder / "records.csv"), holdout_percent=0)).train.record_ids
    member = [index % member_every == 0 for index in range(len(ids))]
    pq.write_table(pa.table({"record_id": list(ids), "member": member}), folder / "members.parquet")
    values = {
        "output_dir": folder / "run",
        "model.from_scratch.hidden_size": 16,
        "model.from_scratch.num_hidden_layers": 1,
        "model.from_scratch.num_attention_heads": 2,
        "data.train_file": folder / "records.csv",
        "data.labels": '["good", "bad"]',
        "data.holdout_percent": 0,
        "data.max_length": 40,
        "data.membership_file": folder / "members.parquet",
        "data.nominal_num_records": 40,
        "privacy.noise_multiplier": 1,
        "privacy.target_delta": 1e-3,
        "privacy.accountant": "rdp",
        "train.expected_batch_size": 8,
        "train.num_train_epochs": 0.5,
    }
    return [f"--{key}={value}" for key, value in values.items()]


@pytest.mark.parametrize(("member_every", "members"), [(2, 30), (1, 60), (10, 6)])
def test_rate_and_steps_are_those_of_the_nominal_size_and_only_members_are_drawn(
    tmp_path: Path, member_every: int, members: int
) -> None:
    assert run(main, flags(tmp_path, member_every=member_every)) == 0
    found = RunDirectory.open(tmp_path / "run")
    mechanism = Ledger.read(found.path / "ledger.json").entry("dpsgd").mechanism
    assert mechanism["sample_rate"] == 8 / 40
    assert mechanism["steps"] == round(0.5 * 40 / 8)
    assert found.manifest["data"]["num_records"] == members


def test_the_draw_covers_who_is_there_at_the_rate_that_is_priced() -> None:
    mechanism = DPSGDMechanism(
        num_records=100, expected_batch_size=20, noise_multiplier=1.0, steps=1, per_sample_max_grad_norm=1.0
    )
    for present in (70, 130):
        drawn = [mechanism.draw_batch(step=step, keys=KEYS, num_present=present) for step in range(400)]
        assert max(batch.max() for batch in drawn) == present - 1
        shares = np.bincount(np.concatenate(drawn), minlength=present) / 400
        assert np.all(np.abs(shares - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 400))


def test_somebody_elses_presence_changes_nobodys_draw() -> None:
    mechanism = DPSGDMechanism(
        num_records=100, expected_batch_size=20, noise_multiplier=1.0, steps=1, per_sample_max_grad_norm=1.0
    )
    few, many = (mechanism.draw_batch(step=3, keys=KEYS, num_present=present) for present in (90, 110))
    assert np.array_equal(few, many[many < 90])


def test_a_nominal_size_without_a_membership_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^data.nominal_num_records=40 needs data.membership_file"):
        DataConfig(train_file="x.csv", nominal_num_records=40)
