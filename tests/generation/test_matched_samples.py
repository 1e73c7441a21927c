"""``safesynthdp sample`` on a run with token counts: followed, chosen by, paid for, resumed."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import ByT5Tokenizer

from safesynthdp.cli import run as run_door
from safesynthdp.errors import LedgerMismatch
from safesynthdp.generation.command import main
from safesynthdp.generation.decoding import decode_wave
from safesynthdp.generation.token_matching import Matched
from safesynthdp.generation.token_targets import read_targets
from safesynthdp.privacy.ledger import Ledger, Release, release_epsilon
from safesynthdp.privacy.token_histogram import TokenHistogramMechanism
from safesynthdp.runs import LEDGER, TOKENS, RunDirectory
from safesynthdp.training.token_file import TokenFile

V = 259
MECHANISM = TokenHistogramMechanism(noise_multiplier=2.0)


def with_tokens(run: RunDirectory, *, is_paid: bool = True, source: str = "gaussian", vocab_size: int = V) -> None:
    """Leave token counts in a run as training leaves them."""
    labels, favourites = run.manifest["data"]["label_set"], (30, 40, 50)
    noise = 2.0 if source == "gaussian" else 0.0
    sums_LC = np.zeros((len(labels), vocab_size), dtype=np.float32)
    for row, token in enumerate(favourites):
        sums_LC[row, [token, 1]] = 500.0, 300.0
    TokenFile(
        labels=tuple(labels), vocab_size=vocab_size, word_buckets=0, lengths=0, noise_std=noise, sums_LC=sums_LC
    ).write(run.path / TOKENS)
    if not is_paid:
        return
    ledger = Ledger.read(run.path / LEDGER)
    training = ledger.entries[0]
    entry = type(training)(
        id="token_histogram", kind="token_histogram", mechanism=MECHANISM.to_entry(), data=training.data
    )
    ledger = ledger.with_entry(entry)
    old = ledger.releases[0]
    names = (*old.entries, entry.id)
    epsilon, accountant = release_epsilon(ledger, names, delta=1e-5)
    release = Release(
        artifact="weights", epsilon=epsilon, delta=1e-5, rule="compose", entries=names, accountant=accountant
    )
    Ledger(unit=ledger.unit, adjacency=ledger.adjacency, entries=ledger.entries, releases=(release,)).write(
        run.path / LEDGER
    )


def words(run: RunDirectory, folder: Path, **changes: Any) -> list[str]:
    values = {"run": run.path, "output_dir": folder, "num_records": 60, "token_matching_records": 60} | changes
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def texts_of(folder: Path) -> list[tuple[str, str]]:
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "synthetic.parquet").to_pydict()
    return list(zip(table["label"], table["text"], strict=True))


def test_a_sample_follows_the_counts_of_its_run_and_costs_what_the_run_costs(
    make_run: Callable[..., RunDirectory], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    with_tokens(run)
    assert run_door(main, words(run, tmp_path / "text")) == 0
    assert "matching the released token counts: 5 rounds of 60 texts, at no epsilon" in capsys.readouterr().out
    assert run_door(main, words(run, tmp_path / "plain", token_matching_rounds=0)) == 0
    letter = {"bad": chr(30 - 3), "good": chr(40 - 3)}  # the byte tokenizer's ids begin at 3
    shares = {}
    for name in ("text", "plain"):
        found = texts_of(tmp_path / name)
        shares[name] = sum(text.count(letter[label]) for label, text in found) / sum(len(text) for _, text in found)
    assert shares["text"] > 0.2 > 5 * shares["plain"]
    ledger, source = Ledger.read(tmp_path / "text" / LEDGER), Ledger.read(run.path / LEDGER)
    assert ledger.releases[0].epsilon == source.releases[0].epsilon
    assert "token_histogram" in ledger.releases[0].entries
    facts = json.loads((tmp_path / "text" / "manifest.json").read_text())["token_matching"]
    assert facts["rounds"] == 5
    assert facts["distance_at_each_round"][-1] < facts["distance_at_each_round"][0]
    assert not list((tmp_path / "text" / "state").glob("token_bias*"))


def test_an_interrupted_sample_goes_on_with_the_bias_it_began_with(
    make_run: Callable[..., RunDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safesynthdp.generation import matching_stage, sampling

    run = make_run()
    with_tokens(run)
    whole = words(run, tmp_path / "whole")
    assert run_door(main, whole) == 0
    kept = decode_wave

    def stops(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling, "decode_wave", stops)
    assert run_door(main, words(run, tmp_path / "text")) == 130
    monkeypatch.setattr(sampling, "decode_wave", kept)

    def fits_again(*args: Any, **kwargs: Any) -> Matched:
        raise AssertionError("the bias is on disk")

    monkeypatch.setattr(matching_stage, "matching_rounds", fits_again)
    assert run_door(main, words(run, tmp_path / "text")) == 0
    assert texts_of(tmp_path / "text") == texts_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("mode", "source"), [("dp", "exact"), ("dp", "gaussian"), ("none", "gaussian")], ids=["exact", "unpaid", "none"]
)
def test_counts_that_the_ledger_does_not_pay_for_are_refused(
    make_run: Callable[..., RunDirectory], tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, source: str
) -> None:
    run = make_run(mode=mode, histogram="with weights" if mode == "dp" else None)
    with_tokens(run, is_paid=False, source=source)
    assert run_door(main, words(run, tmp_path / "text")) == 2
    assert "does not pay for it" in capsys.readouterr().err
    assert run_door(main, words(run, tmp_path / "plain", token_matching_rounds=0)) == 0


def test_exact_counts_of_a_run_without_privacy_are_followed_without_a_claim(
    make_run: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    run = make_run(mode="none", histogram=None)
    with_tokens(run, is_paid=False, source="exact")
    assert run_door(main, words(run, tmp_path / "text")) == 0
    assert Ledger.read(tmp_path / "text" / LEDGER).releases[0].epsilon is None


def test_the_untuned_reference_reads_no_counts(make_run: Callable[..., RunDirectory], tmp_path: Path) -> None:
    run = make_run()
    with_tokens(run)
    assert run_door(main, words(run, tmp_path / "text", untuned="true")) == 0
    found = json.loads((tmp_path / "text" / "manifest.json").read_text())
    assert found["token_matching"] is None
    assert Ledger.read(tmp_path / "text" / LEDGER).releases[0].epsilon == 0


def test_counts_with_another_noise_than_the_ledger_s_are_refused(
    make_run: Callable[..., RunDirectory], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    with_tokens(run)
    path = run.path / TOKENS
    dataclasses.replace(TokenFile.read(path), noise_std=0.1).write(path)
    assert run_door(main, words(run, tmp_path / "text")) == 2
    assert "does not pay for it" in capsys.readouterr().err


def test_counts_that_a_run_took_and_that_are_gone_are_missed(
    make_run: Callable[..., RunDirectory], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    config["privacy"]["token_histogram_share"] = 0.5
    (run.path / "config.yaml").write_text(yaml.safe_dump(config))
    assert run_door(main, words(run, tmp_path / "text")) == 2
    assert "token_histogram.safetensors is missing" in capsys.readouterr().err
    assert run_door(main, words(run, tmp_path / "text2", token_matching_rounds=0)) == 0


@pytest.mark.parametrize("damage", ["labels", "vocab_size", "buckets", "value", "width", "claim", "form", "nothing"])
def test_counts_that_do_not_fit_the_run_are_refused(make_run: Callable[..., RunDirectory], damage: str) -> None:
    run = make_run()
    with_tokens(run, vocab_size=300 if damage == "vocab_size" else V)
    path = run.path / TOKENS
    found = TokenFile.read(path)
    if damage == "labels":
        dataclasses.replace(found, labels=("worse", "good", "so so")).write(path)
    elif damage == "buckets":
        dataclasses.replace(found, vocab_size=V - 9, word_buckets=9).write(path)
    elif damage == "value":
        dataclasses.replace(found, sums_LC=np.full_like(found.sums_LC, np.nan)).write(path)
    elif damage == "width":
        dataclasses.replace(found, sums_LC=found.sums_LC[:, 1:]).write(path)
    elif damage == "claim":
        path.write_bytes(path.read_bytes().replace(b"gaussian", b"exact   "))
    elif damage in {"form", "nothing"}:
        path.write_bytes(b"{}" if damage == "form" else b"")
    with pytest.raises(LedgerMismatch, match="restore it"):
        read_targets(run, ["bad", "good", "so so"], tokenizer=ByT5Tokenizer(extra_ids=0), num_tokens=V)


def test_a_sample_writes_one_of_three_texts_and_comes_closer_by_it(
    make_run: Callable[..., RunDirectory], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    with_tokens(run)
    assert run_door(main, words(run, tmp_path / "text")) == 0
    said = capsys.readouterr().out
    assert "kept 60 of 180 texts" in said
    assert "none left out" not in said
    assert run_door(main, words(run, tmp_path / "all", token_matching_candidates=1)) == 0
    facts, every = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("text", "all"))
    assert facts["num_records"] == every["num_records"] == 60
    assert facts["labels"] == every["labels"]
    assert facts["token_matching"]["candidates"] == 3
    assert facts["token_matching"]["distance_kept"] < facts["token_matching"]["distance_unselected"]
    assert "candidates" not in every["token_matching"]
    labels = [label for label, _ in texts_of(tmp_path / "text")]
    assert labels == [label for label, _ in texts_of(tmp_path / "all")], "the choice keeps the order of the plan"
    assert not list((tmp_path / "text" / "state").glob("rows-*"))


def test_without_token_counts_every_text_is_written(make_run: Callable[..., RunDirectory], tmp_path: Path) -> None:
    run = make_run()
    assert run_door(main, words(run, tmp_path / "text")) == 0
    one = words(run, tmp_path / "one", token_matching_candidates=1)
    assert run_door(main, one) == 0
    assert texts_of(tmp_path / "text") == texts_of(tmp_path / "one")


@pytest.mark.parametrize("number", [0, 21])
def test_a_number_of_candidates_without_a_meaning_is_refused(
    make_run: Callable[..., RunDirectory], tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    assert run_door(main, words(make_run(), tmp_path / "text", token_matching_candidates=number)) == 2
    assert f"token_matching_candidates={number}: give a whole number from 1 to 20" in capsys.readouterr().err
