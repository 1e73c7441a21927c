"""Sampling that follows released token counts: closer to them, row by row the same, and never unpaid."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from safesynthdp.cli import run as run_door
from safesynthdp.errors import LedgerMismatch
from safesynthdp.generation.command import main
from safesynthdp.generation.decoding import DrawnRow, Row, Steering, decode_wave
from safesynthdp.generation.draws import Sampling
from safesynthdp.generation.token_matching import MOST_BIAS, Matched, TokenTargets, matching_rounds, read_targets
from safesynthdp.privacy.ledger import Ledger, Release, release_epsilon
from safesynthdp.privacy.storage import write_json
from safesynthdp.privacy.token_histogram import TokenHistogramMechanism
from safesynthdp.runs import LEDGER, RunDirectory
from safesynthdp.training.examples import Example
from safesynthdp.training.token_counts import token_table
from safesynthdp.training.units import Units

V, END = 259, 1
PROMPTS = ((5, 6, 7), (5, 6, 9))


def targets(
    favourites: Sequence[Sequence[int]], *, least: float = 0.0, rest: float = 0.0, noise_std: float = 0.01
) -> TokenTargets:
    """Each label uses its favourites and the end of text, and of anything else ``rest``."""
    sums_LV = np.zeros((len(favourites), V))
    for row, tokens in enumerate(favourites):
        sums_LV[row, list(tokens)] = 10.0
        sums_LV[row, END] = 5.0
    totals_L = sums_LV.sum(axis=1) + rest
    return TokenTargets(
        labels=("bad", "good"),
        sums_LV=sums_LV,
        totals_L=totals_L,
        least_L=np.full(len(favourites), least),
        noise_std=noise_std,
        source="gaussian",
    )


def rows(count: int, *, limit: int = 12) -> list[Row]:
    return [Row(number=i, prompt=PROMPTS[i % 2], max_new_tokens=limit, label=i % 2) for i in range(count)]


def fit(model: LlamaForCausalLM, wanted: TokenTargets, **changes: Any) -> Matched:
    options: dict[str, Any] = {
        "sampling": Sampling(),
        "seed": 0,
        "rounds": 4,
        "num_records": 100,
        "batch_size": 64,
    } | changes
    *_, found = matching_rounds(model, rows(10), wanted, eos_token_id=END, advance=lambda _: None, **options)
    return found


def drawn(model: LlamaForCausalLM, wave: Sequence[Row], steering: Steering | None) -> dict[int, tuple[int, ...]]:
    found = list[DrawnRow]()
    decode_wave(
        model,
        wave,
        sampling=Sampling(),
        eos_token_id=END,
        seed=4,
        on_step=lambda ended, _: found.extend(ended),
        steering=steering,
    )
    return {row.number: row.tokens for row in found}


def test_each_label_uses_the_tokens_of_its_own_targets(model: LlamaForCausalLM) -> None:
    favourites = ((20, 21, 22), (40, 41))
    matched = fit(model, targets(favourites))
    assert matched.distances[-1] < matched.distances[0] / 3
    texts = drawn(model, rows(200), Steering(matched.bias_LV))
    for label, tokens in enumerate(favourites):
        used = Counter(token for number, text in texts.items() if number % 2 == label for token in text)
        share = sum(used[token] for token in tokens) / sum(used.values())
        assert share > 0.7, "an untouched model gives each about 1 / 259"


def expected(shares: dict[int, float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What a model that uses tokens with these shares is expected to use in 1,000 positions, both labels alike."""
    found_LV = np.zeros((2, V))
    for token, share in shares.items():
        found_LV[:, token] = 1000 * share
    return found_LV


def test_a_model_that_uses_what_was_released_and_its_rest_is_left_alone() -> None:
    wanted = targets(((20,), (20,)), least=4.0, rest=5.0)  # of 20: half token 20, a quarter the end, a quarter others
    change_LV, far_L = wanted.towards(expected({20: 0.5, END: 0.25, 30: 0.125, 31: 0.0625, 32: 0.0625}))
    assert np.abs(change_LV).max() < 1e-9, "else every round would starve what did not stand out of the noise"
    assert far_L.max() < 1e-12


def test_a_token_that_was_not_released_gets_no_more_than_could_have_stayed_unseen() -> None:
    wanted = targets(((20,), (20,)), least=2.0, rest=5.0)
    change_LV, _ = wanted.towards(expected({20: 0.5, END: 0.25, 30: 0.24, 31: 0.01}))
    assert change_LV[0, 30] < -0.5, "a quarter of all mass is 5, and 2 is the most that nobody would have seen"
    assert abs(change_LV[0, 31]) < 0.2


def test_what_was_not_released_shares_the_rest_of_the_total() -> None:
    wanted = targets(((20,), (20,)), least=100.0, rest=45.0)  # three quarters of the mass stayed in the noise
    change_LV, _ = wanted.towards(expected({20: 0.6, END: 0.3, 30: 0.06, 31: 0.04}))
    assert change_LV[0, 30] == pytest.approx(np.log(7.5), abs=0.05)
    assert change_LV[0, 30] == pytest.approx(change_LV[0, 31], abs=0.05)
    assert change_LV[0, 20] < 0


def test_where_the_total_is_lost_in_the_noise_the_rest_keeps_its_share() -> None:
    wanted = targets(((20,), (20,)), least=100.0, rest=1000.0, noise_std=1000.0)
    change_LV, _ = wanted.towards(expected({20: 0.2, END: 0.1, 30: 0.7}))
    assert abs(change_LV[0, 30]) < 0.02


def test_a_label_of_which_nothing_was_released_stays_as_it_is() -> None:
    nothing = targets(((), ()), least=5.0)
    wanted = TokenTargets(**{**vars(nothing), "sums_LV": np.zeros((2, V)), "totals_L": np.array([30.0, -4.0])})
    change_LV, far_L = wanted.towards(np.ones((2, V)))
    assert not change_LV.any()
    assert not far_L.any()


def test_a_low_temperature_does_not_make_the_fit_swing(model: LlamaForCausalLM) -> None:
    found = fit(model, targets(((20, 21), (40,)), rest=8.0, least=3.0), sampling=Sampling(temperature=0.4), rounds=6)
    assert found.distances[-1] < found.distances[0] / 2
    assert found.distances[-1] == pytest.approx(min(found.distances), abs=0.05)


def test_a_fit_that_goes_on_after_a_round_comes_to_the_same(model: LlamaForCausalLM) -> None:
    whole = fit(model, targets(((20, 21), (40,))))
    half = fit(model, targets(((20, 21), (40,))), rounds=2)
    again = fit(model, targets(((20, 21), (40,))), begun=half)
    assert again.distances == whole.distances
    assert torch.equal(again.bias_LV, whole.bias_LV)


def test_texts_weigh_as_records_do_whatever_their_length(model: LlamaForCausalLM) -> None:
    """A table of the model's own texts, counted as training counts records, leaves the model as it is."""
    wave = rows(600, limit=30)
    found = list[DrawnRow]()
    before_LV = torch.zeros(2, V)
    before_LV[:, END] = 3.2  # a text ends after about ten tokens
    decode_wave(
        model,
        wave,
        sampling=Sampling(),
        eos_token_id=END,
        seed=9,
        on_step=lambda ended, _: found.extend(ended),
        steering=Steering(before_LV),
    )
    examples = [
        Example(
            input_ids=(0, *row.tokens, *([] if row.is_truncated else [END])),
            num_prompt_tokens=1,
            is_truncated=row.is_truncated,
        )
        for row in sorted(found, key=lambda row: row.number)
    ]
    labels = [("bad", "good")[row.label] for row in wave]
    units = Units(members=tuple((i,) for i in range(len(wave))))
    table_LV = token_table(examples, labels, label_set=("bad", "good"), vocab_size=V, units=units)
    wanted = TokenTargets(
        labels=("bad", "good"),
        sums_LV=table_LV,
        totals_L=table_LV.sum(axis=1),
        least_L=np.zeros(2),
        noise_std=0.0,
        source="exact",
    )
    *_, fitted = matching_rounds(
        model,
        wave,
        wanted,
        sampling=Sampling(),
        eos_token_id=END,
        seed=0,
        rounds=1,
        num_records=600,
        batch_size=64,
        advance=lambda _: None,
        begun=Matched(bias_LV=before_LV, distances=()),
    )
    frequent = table_LV > 8
    assert frequent.any()
    moved_LV = (fitted.bias_LV - before_LV).numpy()
    moved = moved_LV[frequent]
    assert moved.mean() == pytest.approx(0.0, abs=0.1)
    assert moved.std() < 0.25, "what is left is the chance of 600 texts"
    assert moved_LV[:, END] == pytest.approx(0.0, abs=0.15), "the end of text comes as often as it did"


def test_no_token_is_favoured_beyond_the_bound(model: LlamaForCausalLM) -> None:
    assert fit(model, targets(((20,), (40,))), rounds=8).bias_LV.abs().max() <= MOST_BIAS


def test_a_row_does_not_depend_on_the_rows_beside_it(model: LlamaForCausalLM) -> None:
    bias_LV = torch.randn(2, V, generator=torch.Generator().manual_seed(1))
    together = drawn(model, rows(8), Steering(bias_LV))
    for row in rows(8):
        assert drawn(model, [row], Steering(bias_LV))[row.number] == together[row.number]
    assert drawn(model, rows(8), Steering(torch.zeros(2, V))) == drawn(model, rows(8), None)


def test_what_is_looked_at_is_what_is_drawn_from_once_a_position(model: LlamaForCausalLM) -> None:
    steering = Steering(torch.zeros(2, V), num_watched=40)
    texts = drawn(model, rows(40), steering)
    for number, text in texts.items():
        positions = len(text) + (len(text) < 12)
        assert float(steering.seen_RV[number].sum()) == pytest.approx(positions, rel=1e-5)


MECHANISM = TokenHistogramMechanism(noise_multiplier=2.0)


def with_tokens(run: RunDirectory, *, is_paid: bool = True, source: str = "gaussian", vocab_size: int = V) -> None:
    """Leave token counts in a run as training leaves them."""
    labels, favourites = run.manifest["data"]["label_set"], (30, 40, 50)
    sums = {label: {str(token): 500.0, "1": 300.0} for label, token in zip(labels, favourites, strict=True)}
    noise = 2.0 if source == "gaussian" else 0.0
    totals = {label: sum(cells.values()) + 5.0 for label, cells in sums.items()}
    content = {
        "source": source,
        "noise_std": noise,
        "least": dict.fromkeys(labels, 4 * noise),
        "vocab_size": vocab_size,
        "totals": totals,
    }
    content["sums"] = sums
    write_json(run.path / "token_histogram.json", content, private=True)
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
    path = run.path / "token_histogram.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"noise_std": 0.1}))
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
    assert "token_histogram.json is missing" in capsys.readouterr().err
    assert run_door(main, words(run, tmp_path / "text2", token_matching_rounds=0)) == 0


@pytest.mark.parametrize("damage", ["labels", "vocab_size", "token", "value", "form", "totals", "no vocab_size"])
def test_counts_that_do_not_fit_the_run_are_refused(
    make_run: Callable[..., RunDirectory], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    with_tokens(run, vocab_size=300 if damage == "vocab_size" else V)
    path = run.path / "token_histogram.json"
    content = json.loads(path.read_text())
    if damage == "labels":
        content["sums"]["worse"] = content["sums"].pop("bad")
    elif damage == "token":
        content["sums"]["bad"]["259"] = 1.0
    elif damage == "value":
        content["sums"]["bad"]["30"] = -1.0
    elif damage == "totals":
        content["totals"].pop("good")
    elif damage == "no vocab_size":
        content.pop("vocab_size")
    elif damage == "form":
        content["sums"] = [1, 2]
    path.write_text(json.dumps(content))
    with pytest.raises(LedgerMismatch, match="does not fit the run"):
        read_targets(run, ["bad", "good", "so so"], vocab_size=V)
