"""A number left open is chosen by the budget: the text costs the target epsilon and no more, whatever the records."""

from pathlib import Path
from typing import Any, Protocol

import pytest

from safesynthdp.config import parse
from safesynthdp.errors import BudgetExhausted, ConfigError
from safesynthdp.generation.output_release import PREDICTION, prediction_ledger
from safesynthdp.generation.predict_config import PredictConfig
from safesynthdp.privacy.ledger import release_epsilon
from safesynthdp.records import DataConfig, Records, load_split

CLIPS = {"laplace": ["--output.clip=1"], "gaussian_l2": ["--output.clip=2"]}


class Priced(Protocol):
    def epsilon(self, *, delta: float) -> float | None: ...


def config(tmp_path: Path, mechanism: str, *flags: str) -> PredictConfig:
    public = ["--output.shards=32", "--output.tokens=12", "--output.texts_per_batch=2", "--data.builtin=vader"]
    words = [f"--output_dir={tmp_path}/out", "--model.model_name_or_path=tiny", f"--output.mechanism={mechanism}"]
    return parse(PredictConfig, [*words, *public, *CLIPS.get(mechanism, []), *flags], prog="predict")


def records(tmp_path: Path) -> Records:
    rows = "".join(f"text number {n},{'good' if n % 2 else 'bad'}\n" for n in range(40))
    (tmp_path / "mine.csv").write_text(f"text,label\n{rows}")
    data = DataConfig(train_file=str(tmp_path / "mine.csv"), labels=["good", "bad"], holdout_percent=0)
    return load_split(data).train


@pytest.mark.parametrize("target", [1.0, 8.0])
@pytest.mark.parametrize("mechanism", ["softmax", "laplace", "gaussian_l2", "laplace_probs", "gaussian_probs"])
def test_the_ledger_charges_the_target_and_hardly_less(tmp_path: Path, mechanism: str, target: float) -> None:
    found = config(tmp_path, mechanism, f"--privacy.target_epsilon={target}", "--privacy.target_delta=1e-6")
    priced: Any = found.mechanism(num_labels=2)
    ledger = prediction_ledger(
        records(tmp_path), priced, unit="record", adjacency="add_remove", delta=1e-6, num_records_is_public=True,
        seeded=False,
    )  # fmt: skip
    epsilon, _ = release_epsilon(ledger, [PREDICTION], delta=1e-6)
    assert epsilon is not None
    assert 0.98 * target <= epsilon <= target
    assert found.mechanism(num_labels=2) == priced, "a run that goes on later draws by the same mechanism"


def test_a_number_that_is_given_is_never_changed(tmp_path: Path) -> None:
    given: Any = config(tmp_path, "softmax", "--output.clip=0.5", "--privacy.target_epsilon=8").mechanism(num_labels=2)
    assert given.clip == 0.5


def test_without_a_budget_a_missing_number_is_refused(tmp_path: Path) -> None:
    for mechanism, number in (("softmax", "clip"), ("laplace", "scale"), ("gaussian_probs", "scale")):
        with pytest.raises(ConfigError, match=rf"output\.{number} is missing"):
            config(tmp_path, mechanism)
    with pytest.raises(ConfigError, match=r"output\.clip is missing"):
        parse(
            PredictConfig,
            [f"--output_dir={tmp_path}", "--model.model_name_or_path=tiny", "--data.builtin=vader",
             "--output.mechanism=laplace", "--output.shards=8", "--output.tokens=4", "--privacy.target_epsilon=4"],
            prog="predict",
        )  # fmt: skip


def test_a_budget_that_no_clip_fits_is_refused(tmp_path: Path) -> None:
    found = config(tmp_path, "softmax", "--privacy.target_epsilon=0.0001")
    with pytest.raises(BudgetExhausted, match="even clip="):
        found.mechanism(num_labels=2)
