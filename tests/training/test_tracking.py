"""A tracker is told the step, the price and the pace; nothing computed from records unless that is written out."""

from pathlib import Path
from typing import Any

import pytest

from safesynthdp.errors import ConfigError
from safesynthdp.training.step import StepFacts
from safesynthdp.training.tracking import Trackers, TrackingConfig

FACTS = StepFacts(loss=3.14159, clip_share=0.77777, batch_size=17, num_dropped=0)


class Spent:
    """Stands for a ledger that cannot be priced here."""


class Pen:
    """A tracker that writes down what it is told."""

    requires_logging_directory = True
    told: list[tuple[str, Any]] = []  # noqa: RUF012 (shared on purpose: accelerate makes the instance)

    def __init__(self, run_name: str, logging_dir: str) -> None:
        self.told.clear()
        self.told.append(("init", (run_name, Path(logging_dir).name)))

    def start(self) -> None:
        self.told.append(("start", None))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told.append(("config", values))

    def log(self, values: dict[str, Any], step: int) -> None:
        self.told.append((f"step {step}", values))

    def finish(self) -> None:
        self.told.append(("finish", None))


@pytest.fixture
def pen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    from accelerate import tracking as accelerate_tracking

    from safesynthdp.training import tracking

    monkeypatch.setitem(accelerate_tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Pen)
    monkeypatch.setattr(tracking, "find_spec", lambda name: name)
    monkeypatch.setattr(tracking, "_spent", lambda spending: 1.25)
    return Pen.told


def track(tmp_path: Path, *, is_main: bool = True, **keys: Any) -> None:
    config = TrackingConfig(report_to=["tensorboard"], **keys)
    trackers = Trackers.start(config, folder=tmp_path / "tracking", steps=20, facts={"a": "b"}, is_main=is_main)
    for step in (1, 2):
        trackers.log(FACTS, step=step, spending=Spent())  # type: ignore[arg-type]
    trackers.finish()


def test_by_default_nothing_computed_from_records_is_sent(tmp_path: Path, pen: list[tuple[str, Any]]) -> None:
    track(tmp_path)
    assert [name for name, _ in pen] == ["init", "start", "config", "step 1", "step 2", "finish"]
    sent = dict(pen)
    assert set(sent["step 1"]) == {"steps_done", "steps_per_second"}
    assert sent["step 2"]["epsilon_spent"] == 1.25
    assert "3.14" not in str(pen)
    assert "0.77" not in str(pen)


def test_private_metrics_are_sent_only_when_that_is_written_out(tmp_path: Path, pen: list[tuple[str, Any]]) -> None:
    track(tmp_path, track_private_metrics=True)
    assert dict(pen)["step 1"]["private/loss"] == 3.14159


def test_the_other_ranks_track_nothing(tmp_path: Path, pen: list[tuple[str, Any]]) -> None:
    pen.clear()
    track(tmp_path, is_main=False)
    assert pen == []


@pytest.mark.parametrize(
    ("keys", "words"),
    [({"report_to": ["mlflow"]}, "choose from"), ({"run_name": "a/b"}, "without slashes")],
)
def test_a_wrong_request_is_one_line(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TrackingConfig(**keys)


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from safesynthdp.training import tracking

    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="wandb is not installed"):
        TrackingConfig(report_to=["wandb"])
