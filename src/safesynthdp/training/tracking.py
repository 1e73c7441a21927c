"""What a tracker (tensorboard, wandb, trackio) is told of a run, through accelerate's tracker classes.

Here: the keys, which numbers may go, and the calls. Elsewhere: the loop that calls it (loop.py). A tracker is usually
somebody else's computer: by default it is told the step, the epsilon spent and the pace, nothing computed from records.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesynthdp.errors import ConfigError

if TYPE_CHECKING:
    from safesynthdp.training.spending import Spending
    from safesynthdp.training.step import StepFacts

KNOWN = ("tensorboard", "wandb", "trackio")
PRICES_A_RUN = 10  # each asks the accountant
NOT_COVERED = "loss, share of clipped units and batch sizes, which tracking.track_private_metrics sent to a tracker"


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Trackers; nothing here changes the run or its guarantee."""

    report_to: list[str] = field(default_factory=list)
    """Any of tensorboard, wandb, trackio (pip install 'safesynthdp[tracking]')."""
    run_name: str = "safesynthdp"
    """What the trackers call the run, or the project."""
    track_private_metrics: bool = False
    """Also send loss, clipped share and batch size: computed from private records, outside the guarantee."""

    def __post_init__(self) -> None:
        """Refuse a tracker that is unknown or not installed."""
        for name in self.report_to:
            if name not in KNOWN:
                raise ConfigError(f"tracking.report_to={name}: choose from {', '.join(KNOWN)}")
            if find_spec(name) is None:
                raise ConfigError(
                    f"tracking.report_to={name}: {name} is not installed; pip install 'safesynthdp[tracking]'"
                )
        if not self.run_name or "/" in self.run_name:
            raise ConfigError(f"tracking.run_name={self.run_name!r}: give a name without slashes")


@dataclass(kw_only=True)
class Trackers:
    """The trackers of one run; none if ``report_to`` is empty, and none but on rank 0."""

    config: TrackingConfig = field(default_factory=TrackingConfig)
    trackers: Sequence[Any] = ()
    steps: int = 1
    """Planned."""
    _began: float = field(default_factory=time.monotonic)
    _first: int | None = None

    @classmethod
    def start(
        cls, config: TrackingConfig, *, folder: Path, steps: int, facts: dict[str, Any], is_main: bool
    ) -> "Trackers":
        """Start every tracker and tell it ``facts``, which hold nothing private.

        Args:
            config: The keys.
            folder: Where tensorboard writes.
            steps: Planned.
            facts: Hyper-parameters: strings, numbers, yes or no.
            is_main: Whether this is rank 0; the others track nothing.
        """
        if not config.report_to or not is_main:
            return cls()
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        trackers = list[Any]()
        for name in config.report_to:
            kind = LOGGER_TYPE_TO_CLASS[name]
            where = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
            tracker = kind(config.run_name, **where)
            tracker.start()
            tracker.store_init_configuration(facts)
            trackers.append(tracker)
        return cls(config=config, trackers=trackers, steps=steps)

    def log(self, facts: "StepFacts", *, step: int, spending: "Spending") -> None:
        """Tell the trackers about a step that is done."""
        if not self.trackers:
            return
        values = self._values(facts, step=step, spending=spending)
        for tracker in self.trackers:
            tracker.log(values, step=step)

    def finish(self) -> None:
        """Let the trackers write what they hold."""
        for tracker in self.trackers:
            tracker.finish()

    def _values(self, facts: "StepFacts", *, step: int, spending: "Spending") -> dict[str, float]:
        self._first = step if self._first is None else self._first
        passed = step - self._first + 1
        values = {"steps_done": step / self.steps, "steps_per_second": _two_digits(passed / self._seconds())}
        if step == self.steps or step % max(1, self.steps // PRICES_A_RUN) == 0:
            epsilon = _spent(spending)
            values |= {} if epsilon is None else {"epsilon_spent": epsilon}
        if self.config.track_private_metrics:
            values |= {f"private/{name}": float(value) for name, value in asdict(facts).items() if value is not None}
        return values

    def _seconds(self) -> float:
        return max(1e-3, time.monotonic() - self._began)


def _spent(spending: "Spending") -> float | None:
    """What releasing everything now would cost; never below it."""
    from safesynthdp.privacy.command import round_up
    from safesynthdp.privacy.ledger import release_epsilon

    entries = tuple(entry.id for entry in spending.ledger.entries)
    epsilon, _ = release_epsilon(spending.ledger, entries, delta=spending.delta)
    return None if epsilon is None else float(round_up(epsilon))


def _two_digits(pace: float) -> float:
    """The time of one step follows its draw; two digits of the mean pace say enough.

    >>> _two_digits(1.2345), _two_digits(0.0456), _two_digits(123.0)
    (1.2, 0.046, 120.0)
    """
    return round(pace, 1 - math.floor(math.log10(pace))) if pace > 0 else 0.0
