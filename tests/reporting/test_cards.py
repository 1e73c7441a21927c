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


def test_an_adapter_of_a_local_model_is_an_adapter_and_its_page_says_that_the_model_is_not_named(
    runs: Runs, tmp_path: Path
) -> None:
    path = runs.finetune / "config.yaml"
    path.write_text(
        path.read_text().replace("smollm2-135m", "/home/ward7/mine").replace("enabled: true", "enabled: null")
    )
    found = cards(runs, tmp_path / "out")
    assert any("library_name: peft" in card for card in found.values())
    run_main(main, [str(runs.folder), "--output_dir", str(tmp_path / "public"), "--public"])
    page = (tmp_path / "public/report.html").read_text()
    assert "A model that is not named here, fine-tuned with DP-SGD" in page
    assert "random weights" not in page


def test_a_model_from_random_weights_has_no_base_model_and_no_adapter(runs: Runs, tmp_path: Path) -> None:
    path = runs.finetune / "config.yaml"
    scratch = "model_name_or_path: null\n  from_scratch: {num_hidden_layers: 2}"
    text = path.read_text().replace("enabled: true", "enabled: null")
    path.write_text(text.replace("model_name_or_path: smollm2-135m", scratch))
    found = "\n".join(cards(runs, tmp_path / "out").values())
    assert "# Language model trained from random weights" in found
    assert "library_name: transformers" in found
    assert "base_model" not in found
    page = (tmp_path / "out/report.html").read_text()
    assert "A model trained from random weights with DP-SGD" in page
    assert "lora_r" not in page


def test_a_card_prints_the_prompt_that_was_used_when_none_was_given(runs: Runs, tmp_path: Path) -> None:
    path = runs.finetune / "config.yaml"
    lines = [line for line in path.read_text().splitlines() if "prompt_template" not in line]
    path.write_text("\n".join(lines) + "\n")
    found = next(card for card in cards(runs, tmp_path / "out").values() if "## Prompt" in card)
    assert "`\\{label\\}:<br>`" in found


def test_without_a_guarantee_a_card_says_so(runs: Runs, tmp_path: Path, edit: Edit) -> None:
    edit(runs.sample / "ledger.json", lambda value: value["releases"][0].update(epsilon=1.0))
    found = cards(runs, tmp_path / "out")
    promised = [card for card in found.values() if "**Guarantee.** No formal guarantee." in card]
    assert len(promised) == 3, "one wrong ledger takes the guarantee from all that belongs together"


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_no_field_of_the_statement_is_left_blank(internal: Drawn, name: str) -> None:
    line = next(line for line in internal.cards["model"].splitlines() if line.startswith(f"| {name} |"))
    assert line.split("|")[2].strip()
