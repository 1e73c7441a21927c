"""``safesynthdp push``: weights or synthetic text to the Hugging Face hub, each with its card.

Here: what may leave, and what is refused. Elsewhere: the cards (cards.py), the upload (hub.py).

Guarantee:
    Only a finished run whose ledgers stand recomputation is pushed; without a finite epsilon only after
    ``--without_guarantee true``. What leaves is the release itself, its card and the privacy statement: no ledger (it
    holds a fingerprint of the records), no metrics, no state. Weights that a sample's smaller guarantee relies on being
    withheld stay here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safesynthdp.config import parse
from safesynthdp.errors import ConfigError, SafeSynthError
from safesynthdp.hub import check_repo_id, push_files
from safesynthdp.reporting.cards import base_model, dataset_card, model_card
from safesynthdp.reporting.collect import collect
from safesynthdp.reporting.facts import Group
from safesynthdp.reporting.guarantee import Guarantee, read_guarantee
from safesynthdp.reporting.publish import publishable
from safesynthdp.reporting.statement import statement
from safesynthdp.reporting.wording import NO_GUARANTEE, epsilon_text
from safesynthdp.runs import CHECKPOINT, RunDirectory

STATEMENT, CARD, TEXT = "privacy_statement.json", "README.md", "synthetic.parquet"
WITHHELD = "output_texts.json"  # a finetune run's state says so: generation/output_release.py


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Upload a finetune run's weights, or a sample's text, with a card, to the Hugging Face hub."""

    run: str
    """A finished finetune or sample run."""
    repo_id: str
    """OWNER/NAME on the hub; a model repository for a finetune run, a data set for a sample."""
    hub_private: bool = True
    """Create the repository as private; one that exists keeps its setting."""
    without_guarantee: bool = False
    """Push although no finite epsilon covers it; the card then says "no formal guarantee"."""

    def __post_init__(self) -> None:
        """Refuse a name the hub cannot have."""
        check_repo_id(self.repo_id)


def main(argv: Sequence[str]) -> None:
    """Check, write the card, upload."""
    config = parse(PushConfig, argv, prog="safesynthdp push")
    run = RunDirectory.open(config.run)
    if run.manifest["kind"] not in ("finetune", "sample"):
        raise ConfigError(f"run={config.run} is the output of '{run.manifest['kind']}'; give a finetune or sample run")
    if not run.is_finished:
        raise ConfigError(f"run={config.run} is not finished; finish it with the command that began it")
    group, guarantee = _group_of(run)
    _check_claim(config, run, guarantee)
    bare, ledgers, _ = publishable(group, guarantee)
    files = _weights(run, bare, ledgers) if run.manifest["kind"] == "finetune" else _text(run, bare, ledgers)
    message = f"SafeSynthDP {run.manifest['versions'].get('safesynthdp', '')}: {_price(run, guarantee)}"
    address = push_files(
        files,
        repo_id=config.repo_id,
        repo_type="model" if run.manifest["kind"] == "finetune" else "dataset",
        is_private=config.hub_private,
        message=message,
    )
    run.say(f"{', '.join(files)} ({_price(run, guarantee)}) -> {address}")


def _group_of(run: RunDirectory) -> tuple[Group, Guarantee]:
    groups = collect([str(run.path)], texts_per_label=1, with_lengths=False)
    run_id = run.manifest["run_id"]
    group = next(group for group in groups if any(stage.run_id == run_id for stage in group.stages))
    return group, read_guarantee(group)


def _check_claim(config: PushConfig, run: RunDirectory, guarantee: Guarantee) -> None:
    """Refuse what the ledger does not cover, before anything is read for the upload.

    Raises:
        SafeSynthError: If a ledger contradicts itself: nothing helps.
        ConfigError: If there is no finite epsilon, or weights are to leave that were promised to stay.
    """
    if guarantee.problems:
        raise SafeSynthError(f"{guarantee.problems[0]}; it is not pushed")
    if not guarantee.covers(str(run.manifest["run_id"])) and not config.without_guarantee:
        raise ConfigError(f"run={config.run} has {NO_GUARANTEE}; to push it all the same give --without_guarantee true")
    if run.manifest["kind"] == "finetune" and (run.path / "state" / WITHHELD).is_file():
        raise ConfigError(
            f"run={config.run}: the guarantee of text sampled from it relies on these weights being withheld; they stay"
        )


def _weights(run: RunDirectory, group: Group, guarantee: Guarantee) -> dict[str, Path | bytes]:
    folder = run.path / CHECKPOINT
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != CARD)
    files: dict[str, Path | bytes] = {path.name: path for path in paths}
    if "adapter_config.json" in files:
        files["adapter_config.json"] = _adapter_config(folder / "adapter_config.json", run.config())
    files[CARD] = model_card(group, guarantee).encode()
    files[STATEMENT] = _statement(group, guarantee)
    return files


def _adapter_config(path: Path, config: Mapping[str, object]) -> bytes:
    """Name the base model as the hub does; a local folder's path stays here."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values["base_model_name_or_path"] = base_model(config) or ""
    return (json.dumps(values, indent=2) + "\n").encode()


def _text(run: RunDirectory, group: Group, guarantee: Guarantee) -> dict[str, Path | bytes]:
    sample = next(found for found in group.samples if found.stage.run_id == run.manifest["run_id"])
    return {
        TEXT: run.path / TEXT,
        CARD: dataset_card(group, guarantee, sample).encode(),
        STATEMENT: _statement(group, guarantee),
    }


def _statement(group: Group, guarantee: Guarantee) -> bytes:
    fields = {fact.name: fact.value for fact in statement(group, guarantee)}
    return (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()


def _price(run: RunDirectory, guarantee: Guarantee) -> str:
    claims = [claim for claim in guarantee.claims if claim.run_id == run.manifest["run_id"]]
    if not claims or any(claim.epsilon is None for claim in claims):
        return NO_GUARANTEE
    worst = max(claims, key=lambda claim: claim.epsilon or 0.0)
    return f"epsilon {epsilon_text(worst.epsilon)} at delta {worst.delta:g}"
