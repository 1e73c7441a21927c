"""What the run directories say, as frozen values: one class a stage and one a row of its tables.

Here: the classes. Elsewhere: the files they are read from (reading.py), how stages belong together (collect.py), what
their ledgers promise (guarantee.py). What a file leaves out stays None and is printed as "not stated" or "not done".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safesynthdp.runs import LEDGER


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What every run directory says about itself."""

    path: Path
    kind: str
    status: str
    run_id: str
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def ledger_path(self) -> Path | None:
        """Where this stage's ledger lies; None if it has none."""
        path = self.path / LEDGER
        return path if path.is_file() else None

    @property
    def parents(self) -> tuple[Mapping[str, Any], ...]:
        """The stages this one was given: kind, run_id and path of each."""
        return tuple(p for p in self.manifest.get("parents") or [] if isinstance(p, Mapping))


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One row of metrics.json. ``value`` is None where nothing could be measured; ``reason`` then says why."""

    group: str
    name: str
    model: str | None
    train_on: str | None
    label: str | None
    value: float | None
    low: float | None
    high: float | None
    level: float | None
    n: int | None
    seeds: int | None
    ceiling: float | None
    floor: float | None
    direction: str | None
    reads: tuple[str, ...]
    publishable: bool
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Copied:
    """A synthetic text and the training record nearest to it, by what they share in one piece. Private text."""

    characters: int
    is_whole_text: bool
    synthetic: str
    real: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluate directory; ``metrics`` is None where the stage has not written them."""

    stage: Stage
    metrics: tuple[Metric, ...] | None
    inputs: Mapping[str, Any]
    settings: Mapping[str, Any]
    warnings: tuple[str, ...]
    findings: tuple[str, ...] = ()
    """What the evaluation's own verdict names."""
    copied: tuple[Copied, ...] | None = None
    """Synthetic texts beside the training records they share most with: private text; None where nobody asked."""


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """One row of audit.json: one attack on one target in one channel."""

    target_id: str
    channel: str
    attack: str
    num_members: int | None
    num_nonmembers: int | None
    auc: float | None
    auc_interval: tuple[float, float] | None
    tpr_at_fpr: Mapping[str, float | None]
    epsilon_lower_bound: float | None
    epsilon_attainable: float | None
    epsilon_claimed: float | None
    group_size: int | None
    method: str | None
    alpha: float | None
    delta: float | None
    verdict: str | None
    benchmark_valid: bool | None
    num_targets: int | None
    num_references: int | None
    num_epochs: float | None
    notes: tuple[str, ...]
    curve_p_value: float | None = None
    role: str | None = None
    """"canary" where no natural record was audited; anything else counts as natural records."""
    pool: str | None = None
    """Of a shadow pool: which of its targets and records; None for an attack on the run itself."""
    joint_alpha: float | None = None
    """Of all tests of its channel together; None where a row was tested alone."""

    @property
    def title(self) -> str:
        """The attack, and what of a pool it is about."""
        return self.attack if self.pool is None else f"{self.attack} ({self.pool})"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The ROC of one attack at chosen false-positive rates: thresholds are conservative, nothing is interpolated."""

    attack: str
    channel: str
    fpr: tuple[float, ...]
    tpr: tuple[float, ...]
    num_nonmembers: int


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One attack directory or shadow pool; ``rows`` is None where the stage has not written them."""

    stage: Stage
    rows: tuple[AuditRow, ...] | None
    curves: tuple[Curve, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Text:
    """One synthetic text as it is printed; ``num_hidden`` characters are cut off its end."""

    label: str
    text: str
    num_hidden: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample directory; ``texts`` are the first few of each label, in file order."""

    stage: Stage
    is_untuned: bool
    num_texts: int | None
    texts: tuple[Text, ...]
    lengths: tuple[int, ...] = ()
    """Words of every text."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One line of a finetune run's metrics.jsonl; private."""

    step: int
    loss: float | None
    clip_share: float | None


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """One finetune directory."""

    stage: Stage
    progress: tuple[Step, ...]
    histogram: Mapping[str, Any] | None
    lengths: tuple[int, ...] = ()
    """Words of every training record; empty where the records cannot be read any more. Private."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """One finetune run and everything made from it; ``finetune`` is None for stages that belong to no run."""

    finetune: Finetune | None
    samples: tuple[Sample, ...]
    evaluations: tuple[Evaluation, ...]
    attacks: tuple[Attack, ...]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Every stage of the group, the finetune run first."""
        first = () if self.finetune is None else (self.finetune.stage,)
        samples = (sample.stage for sample in self.samples)
        evaluations = (evaluation.stage for evaluation in self.evaluations)
        return (*first, *samples, *evaluations, *(attack.stage for attack in self.attacks))


def predicted(group: Group) -> bool:
    """Whether the text was drawn straight from the records, without a finetune run."""
    return group.finetune is None and any(not sample.stage.parents for sample in group.samples)


def is_from_scratch(config: Mapping[str, Any]) -> bool:
    """Whether a finetune run's config trains from random weights: there is no base model."""
    model = config.get("model") or {}
    return model.get("model_name_or_path") is None and model.get("from_scratch") is not None


def uses_lora(config: Mapping[str, Any]) -> bool:
    """Whether a finetune run's config trains adapters; unsaid, it does for a base model alone."""
    enabled = (config.get("lora") or {}).get("enabled")
    return not is_from_scratch(config) if enabled is None else bool(enabled)
