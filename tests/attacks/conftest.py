"""A finished finetune run without a model, and scorers that stand in for one."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from safesynthdp.attacks.pool_command import plan_main
from safesynthdp.config import to_mapping
from safesynthdp.privacy.ledger import Entry, Ledger, Release
from safesynthdp.records import DataConfig, Records, Split, load_split
from safesynthdp.runs import LEDGER, RunDirectory

WORDS = np.asarray([f"word{i}" for i in range(200)])
Scorer = Callable[[Records], list["Said"]]
MakeScorer = Callable[..., Scorer]
POOL_RECIPE = """
output_dir: unused
model: {from_scratch: {num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2}}
data: {train_file: RECORDS, labels: [good, bad], max_length: 48, holdout_percent: 30}
privacy: {target_epsilon: 8.0, target_delta: 1.0e-3, accountant: rdp, unsafe_seed: 3}
train: {expected_batch_size: 8, max_steps: 6, save_steps: 2}
"""


@dataclass(frozen=True)
class Said:
    """What a model says of a record's tokens; its vocabulary has one moment, and it is never right."""

    log_probs: NDArray[np.float64]

    @property
    def means(self) -> NDArray[np.float64]:
        return np.full_like(self.log_probs, -5.0)

    @property
    def deviations(self) -> NDArray[np.float64]:
        return np.full_like(self.log_probs, 2.0)

    @property
    def is_top(self) -> NDArray[np.bool_]:
        return np.zeros(self.log_probs.size, dtype=np.bool_)


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    """240 texts of random words with two labels, half of them held out."""
    rng = np.random.default_rng(0)
    lines = [f"{' '.join(rng.choice(WORDS, size=10))},{'good' if i % 2 else 'bad'}" for i in range(240)]
    (tmp_path / "private.csv").write_text("\n".join(["text,label", *lines, ""]), encoding="utf-8")
    return DataConfig(train_file=str(tmp_path / "private.csv"), labels=["good", "bad"], holdout_percent=50)


@pytest.fixture
def split(data: DataConfig) -> Split:
    return load_split(data)


@pytest.fixture
def finished_run(data: DataConfig, split: Split, tmp_path: Path) -> RunDirectory:
    """What ``finetune`` leaves behind, as far as an attack reads it: epsilon 3 at 1e-5, two epochs."""
    values = {"data": to_mapping(data), "train": {"expected_batch_size": 12}}
    run = RunDirectory.create(tmp_path / "run", kind="finetune", config=values)
    size = len(split.train)
    described = {"fingerprint": split.train.fingerprint, "num_records": size, "num_units": size}
    entry = Entry(
        id="dpsgd",
        kind="dpsgd",
        mechanism={
            "name": "poisson_gaussian",
            "sample_rate": 12 / size,
            "noise_multiplier": 1.0,
            "steps": size // 6,
            "per_sample_max_grad_norm": 1.0,
        },
        data=described | {"num_records_is_public": True},
        randomness={"source": "os_entropy", "seeded": False},
        parents=(),
    )
    release = Release(
        artifact="weights",
        epsilon=3.0,
        delta=1e-5,
        rule="compose",
        entries=("dpsgd",),
        accountant={"name": "pld", "version": "0"},
        not_covered=(),
    )
    Ledger(unit="record", adjacency="add_remove", entries=(entry,), releases=(release,)).write(run.path / LEDGER)
    run.update(data=described)
    run.finish()
    return run


@pytest.fixture
def make_scorer() -> MakeScorer:
    """Return a factory of scorers: noise of the record alone, plus a bonus for the record ids it memorised."""

    def make(*, seed: int, memorised: Collection[str] = (), bonus: float = 3.0) -> Scorer:
        def score(records: Records) -> list[Said]:
            found = list[Said]()
            for record_id, text in zip(records.record_ids, records.texts, strict=True):
                rng = np.random.default_rng([seed, int(record_id[:8], 16)])
                noise = rng.normal(-4, 0.5, size=len(text.split()) + 1)
                found.append(Said(noise + bonus * (record_id in memorised)))
            return found

        return score

    return make


@pytest.fixture
def pool_recipe(tmp_path: Path, write_pool_recipe: Callable[[Path], Path]) -> Path:
    """A training recipe that is seeded, tiny, and from scratch: 100 texts of random words, two labels."""
    return write_pool_recipe(tmp_path)


@pytest.fixture(scope="session")
def write_pool_recipe() -> Callable[[Path], Path]:
    """Return what writes that recipe and its records into a folder."""

    def write(folder: Path) -> Path:
        rng = np.random.default_rng(7)
        lines = [f"{' '.join(rng.choice(WORDS, size=3))},{'good' if i % 2 else 'bad'}" for i in range(100)]
        (folder / "records.csv").write_text("\n".join(["text,label", *lines, ""]), encoding="utf-8")
        (folder / "recipe.yaml").write_text(POOL_RECIPE.replace("RECORDS", str(folder / "records.csv")))
        return folder / "recipe.yaml"

    return write


@pytest.fixture(scope="session")
def planned_pool(tmp_path_factory: pytest.TempPathFactory, write_pool_recipe: Callable[[Path], Path]) -> Path:
    """Return a planned pool of two models and a target, to be copied: nothing in a pool names its own place."""
    folder = tmp_path_factory.mktemp("planned")
    argv = ["--output_dir", str(folder / "pool"), "--recipe", str(write_pool_recipe(folder))]
    plan_main([*argv, "--num_models=2", "--num_audit=10"])
    return folder / "pool"
