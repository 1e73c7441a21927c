"""Cards that the hub accepts, and that hold nothing private."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml

from safesynthdp.cli import run as run_main
from safesynthdp.reporting.command import main
from safesynthdp.reporting.statement import FIELDS

Edit = Callable[[Path, Callable[[Any], object]], None]


class Runs(Protocol):
    folder: Path
    finetune: Path
    sample: Path


class Drawn(Protocol):
    cards: dict[str, str]


def cards(runs: Runs, out: Path) -> dict[str, str]:
    run_main(main, [str(runs.folder), "--output_dir", str(out)])
    return {path.name.split("-")[0] + str(n): path.read_text() for n, path in enumerate(sorted(out.glob("cards/*.md")))}


def test_the_hubs_own_parser_reads_both_cards(internal: Drawn) -> None:
    from huggingface_hub import DatasetCard, ModelCard
    from huggingface_hub.repocard_data import DatasetCardData, ModelCardData

    model, dataset = internal.cards["model"], internal.cards["dataset"]
    read = ModelCard(model).data
    assert isinstance(read, ModelCardData)
    assert read.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert read.library_name == "peft"
    assert read.pipeline_tag == "text-generation"
    found = DatasetCard(dataset).data
    assert isinstance(found, DatasetCardData)
    assert found.task_categories == ["text-classification", "text-generation"]
    assert found.size_categories == ["n<1K"]
    assert yaml.safe_load(model.split("---")[1])["tags"][0] == "differential-privacy"


def test_a_card_carries_the_guarantee_and_every_field_of_the_statement(internal: Drawn) -> None:
    for card in internal.cards.values():
        assert "epsilon 4.4800 at delta 1e-06, per record" in card
        assert [name for name in FIELDS if f"| {name} |" not in card] == []


def test_a_card_is_public_whoever_asked_for_it(internal: Drawn) -> None:
    for card in internal.cards.values():
        for private in ("120,000", "120000", "f1a9f1a9", "/secret", "letters.csv", "0.743", "0.867", "0.529"):
            assert private not in card


def test_hostile_labels_stay_text_in_a_card(internal: Drawn) -> None:
    assert "<b>" not in internal.cards["dataset"]
    assert "&lt;b&gt;reviews&lt;/b&gt;" in internal.cards["dataset"]


def test_a_local_base_model_is_not_named(runs: Runs, tmp_path: Path) -> None:
    path = runs.finetune / "config.yaml"
    path.write_text(path.read_text().replace("smollm2-135m", "/home/ward7/models/mine"))
    found = cards(runs, tmp_path / "out")
    assert all("ward7" not in card for card in found.values())
    assert any("a model that is not named here" in card for card in found.values())


def test_without_a_guarantee_a_card_says_so(runs: Runs, tmp_path: Path, edit: Edit) -> None:
    edit(runs.sample / "ledger.json", lambda value: value["releases"][0].update(epsilon=1.0))
    found = cards(runs, tmp_path / "out")
    promised = [card for card in found.values() if "**Guarantee.** No formal guarantee." in card]
    assert len(promised) == 3, "one wrong ledger takes the guarantee from all that belongs together"


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_no_field_of_the_statement_is_left_blank(internal: Drawn, name: str) -> None:
    line = next(line for line in internal.cards["model"].splitlines() if line.startswith(f"| {name} |"))
    assert line.split("|")[2].strip()
