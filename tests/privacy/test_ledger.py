"""The ledger alone is enough to compute every epsilon, and an edited one is caught."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safesynthdp.errors import LedgerMismatch
from safesynthdp.privacy.accounting import joint_epsilon
from safesynthdp.privacy.ledger import (
    Entry,
    Ledger,
    Release,
    is_understated,
    recompute,
    recompute_all,
    release_epsilon,
)
from safesynthdp.privacy.mechanisms import DPSGDMechanism, LabelHistogramMechanism

DELTA = 1e-6
TRAINING = DPSGDMechanism(
    num_records=120000, expected_batch_size=4096, noise_multiplier=1.0, steps=300, per_sample_max_grad_norm=1.0
)
HISTOGRAM = LabelHistogramMechanism(mechanism="laplace", scale=10.0)
DATA = {"fingerprint": "f1", "num_records": 120000, "num_records_is_public": True}
RANDOMNESS = {"source": "os_entropy", "seeded": False}


def entry(kind: str = "dpsgd", mechanism: dict[str, Any] | None = None, **changes: Any) -> Entry:
    default = {"dpsgd": TRAINING.to_entry(), "label_histogram": HISTOGRAM.to_entry()}.get(kind, {})
    facts = {"id": kind, "kind": kind, "mechanism": mechanism or default, "data": DATA, "randomness": RANDOMNESS}
    return Entry(**{**facts, **changes})


def release(epsilon: float | None, *entries: str, **changes: Any) -> Release:
    facts = {
        "artifact": "weights", "epsilon": epsilon, "delta": DELTA, "rule": "compose", "entries": entries,
        "accountant": {"name": "pld", "version": "1"}, "not_covered": ("metrics",),
    }  # fmt: skip
    return Release(**{**facts, **changes})


def ledger(*entries: Entry, releases: tuple[Release, ...] = ()) -> Ledger:
    return Ledger(unit="record", adjacency="add_remove", entries=entries, releases=releases)


def test_training_and_histogram_are_composed_and_not_added() -> None:
    both = ledger(entry(), entry("label_histogram"))
    epsilon, accountant = release_epsilon(both, ["dpsgd", "label_histogram"], delta=DELTA)
    assert epsilon == pytest.approx(4.4721, abs=1e-4)
    assert accountant["name"] == "pld"
    assert epsilon == joint_epsilon([TRAINING, HISTOGRAM], delta=DELTA, adjacency="add_remove")


def test_a_ledger_survives_its_file(tmp_path: Path) -> None:
    written = ledger(entry(), entry("label_histogram", parents=("dpsgd",)), releases=(release(4.48, "dpsgd"),))
    written.write(tmp_path / "ledger.json")
    assert Ledger.read(tmp_path / "ledger.json") == written
    content = json.loads((tmp_path / "ledger.json").read_text())
    assert list(content) == ["version", "unit", "adjacency", "entries", "releases"]
    assert list(content["entries"][0]) == ["id", "kind", "mechanism", "data", "randomness", "parents"]
    assert list(content["releases"][0]) == [
        "artifact", "epsilon", "delta", "rule", "entries", "accountant", "not_covered",
    ]  # fmt: skip


def test_the_file_alone_gives_the_same_epsilon_again(tmp_path: Path) -> None:
    numbers = ledger(entry(), entry("label_histogram"))
    epsilon, _ = release_epsilon(numbers, ["dpsgd", "label_histogram"], delta=DELTA)
    full = numbers.with_release(release(epsilon, "dpsgd", "label_histogram"))
    full.write(tmp_path / "ledger.json")
    ((stored, again),) = recompute_all(Ledger.read(tmp_path / "ledger.json"))
    assert not is_understated(stored.epsilon, again)
    assert again == pytest.approx(epsilon, rel=1e-12)


def test_an_entry_pays_for_its_parents_and_each_access_once() -> None:
    histogram, training = entry("label_histogram"), entry(parents=("label_histogram",))
    child = ledger(histogram, training)
    alone, _ = release_epsilon(child, ["label_histogram"], delta=DELTA)
    both, _ = release_epsilon(child, ["dpsgd"], delta=DELTA)
    assert alone == HISTOGRAM.epsilon(delta=DELTA)
    assert both == pytest.approx(4.4721, abs=1e-4)
    assert release_epsilon(child, ["dpsgd", "label_histogram", "dpsgd"], delta=DELTA)[0] == both


def test_sampling_from_the_weights_is_free() -> None:
    text = release(4.5, "dpsgd", artifact="synthetic_text", rule="post_processing")
    assert recompute(ledger(entry()), text) == TRAINING.epsilon(delta=DELTA)


def test_no_steps_and_no_entries_cost_nothing() -> None:
    assert recompute(ledger(entry(mechanism=TRAINING.with_steps(0).to_entry())), release(0.0, "dpsgd")) == 0
    assert recompute(ledger(), release(0.0)) == 0


def test_one_access_without_a_guarantee_takes_it_from_all() -> None:
    mixed = ledger(entry("none", {"steps": 3}), entry("label_histogram"))
    assert recompute(mixed, release(None, "none", "label_histogram")) is None
    assert recompute(mixed, release(3.0, "none")) is None
    assert is_understated(3.0, None)
    assert not is_understated(None, None)
    assert not is_understated(None, 4.0)


def test_writing_ahead_counts_a_step_before_it_is_drawn(tmp_path: Path) -> None:
    running = ledger(entry(mechanism=TRAINING.with_steps(0).to_entry()))
    prices = []
    for step in (1, 2, 3):
        now = running.entry("dpsgd")
        running = running.replace_entry(now.with_mechanism({**now.mechanism, "steps": step}))
        running.write(tmp_path / "ledger.json")
        found = Ledger.read(tmp_path / "ledger.json")
        assert found.entry("dpsgd").mechanism["steps"] == step
        prices.append(release_epsilon(found, ["dpsgd"], delta=DELTA)[0])
    assert prices == sorted(set(prices), key=float)  # type: ignore[arg-type]


def test_steps_already_counted_cannot_shrink() -> None:
    with pytest.raises(LedgerMismatch, match="steps of dpsgd would fall from 300 to 299"):
        ledger(entry()).replace_entry(entry(mechanism=TRAINING.with_steps(299).to_entry()))


def test_entries_are_added_replaced_and_looked_up_by_id() -> None:
    one = ledger(entry())
    assert one.has("dpsgd")
    assert not one.has("label_histogram")
    assert one.with_entry(entry("label_histogram")).has("label_histogram")
    with pytest.raises(LedgerMismatch, match="same id"):
        one.with_entry(entry())
    with pytest.raises(LedgerMismatch, match="entry x is missing"):
        one.entry("x")
    with pytest.raises(LedgerMismatch, match="entry x is missing"):
        one.replace_entry(entry(id="x"))


@pytest.mark.parametrize(
    "edit",
    [{"noise_multiplier": 0.9}, {"steps": 301}, {"accountant": "rdp"}, {"num_records": 100000, "sample_rate": 0.04096}],
)
def test_an_edited_number_makes_the_stored_epsilon_too_small(edit: dict[str, Any]) -> None:
    stored = TRAINING.epsilon(delta=DELTA)
    data = {**DATA, "num_records": edit.get("num_records", 120000)}
    edited = ledger(entry(mechanism={**TRAINING.to_entry(), **edit}, data=data), releases=(release(stored, "dpsgd"),))
    assert is_understated(stored, recompute(edited, edited.releases[0]))


def test_an_artifact_that_leaves_out_what_it_was_made_from_is_refused() -> None:
    both = ledger(entry(), entry("label_histogram"))
    for edited in (release(0.0), release(0.11, "label_histogram"), release(0.0, artifact="synthetic_text")):
        with pytest.raises(LedgerMismatch, match="leaves out entry dpsgd"):
            recompute(both, edited)
    assert recompute(both, release(0.11, "label_histogram", artifact="label_histogram")) == pytest.approx(0.1, abs=1e-4)
    assert recompute(ledger(), release(0.0, artifact="synthetic_text")) == 0.0


def test_a_stored_epsilon_just_below_is_caught_and_rounding_is_not() -> None:
    assert is_understated(4.0, 4.0 + 1e-5)
    assert not is_understated(4.0, 4.0 + 1e-7)
    assert is_understated(0.0, 1e-12)


@pytest.mark.parametrize("kind", ["private_prediction", "output_mechanism"])
def test_a_kind_that_cannot_be_computed_is_an_error_and_never_trusted(kind: str) -> None:
    with pytest.raises(LedgerMismatch, match="cannot be computed by this version"):
        recompute(ledger(entry(kind, {"epsilon": 1.0})), release(1.0, kind))


def test_the_rule_min_is_refused_without_a_second_guarantee_on_the_same_output() -> None:
    both = ledger(entry(), entry("label_histogram"))
    with pytest.raises(LedgerMismatch, match="rule min"):
        recompute(both, release(0.1, "dpsgd", "label_histogram", rule="min"))


def test_mixed_neighbour_relations_are_refused() -> None:
    other = LabelHistogramMechanism(mechanism="laplace", scale=10.0, adjacency="replace").to_entry()
    with pytest.raises(LedgerMismatch, match="adjacency replace"):
        recompute(ledger(entry("label_histogram", other)), release(1.0, "label_histogram"))


def test_a_price_for_another_number_of_records_is_refused() -> None:
    with pytest.raises(LedgerMismatch, match="num_records=120000, its data has 1000"):
        recompute(ledger(entry(data={**DATA, "num_records": 1000})), release(1.0, "dpsgd"))
    users = dataclasses.replace(ledger(entry(data={**DATA, "num_records": 1000000})), unit="user")
    assert recompute(users, release(5.0, "dpsgd")) == TRAINING.epsilon(delta=DELTA)


def edited(change: Callable[[dict[str, Any]], Any]) -> str:
    """Return the JSON of a good ledger after one change."""
    value = ledger(entry(), releases=(release(4.5, "dpsgd"),)).to_json()
    value = json.loads(json.dumps(value))
    change(value)
    return json.dumps(value)


BAD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "version is 2": lambda v: v.update(version=2),
    "version is True": lambda v: v.update(version=True),
    "version is None": lambda v: v.pop("version"),
    "entries is missing": lambda v: v.pop("entries"),
    "entries of a ledger has the wrong type": lambda v: v.update(entries={}),
    "extra is not known": lambda v: v.update(extra=1),
    "unit is 'token'": lambda v: v.update(unit="token"),
    "adjacency is 'null'": lambda v: v.update(adjacency="null"),
    "two entries have the same id": lambda v: v["entries"].append(v["entries"][0]),
    "randomness is missing": lambda v: v["entries"][0].pop("randomness"),
    "kind of dpsgd is 'sgd'": lambda v: v["entries"][0].update(kind="sgd"),
    "steps of dpsgd is -1": lambda v: v["entries"][0]["mechanism"].update(steps=-1),
    "steps of dpsgd is 2.5": lambda v: v["entries"][0]["mechanism"].update(steps=2.5),
    "holds the number nan": lambda v: v["entries"][0]["mechanism"].update(noise_multiplier=math.nan),
    "holds the number inf": lambda v: v["releases"][0].update(epsilon=math.inf),
    "epsilon of weights is -1": lambda v: v["releases"][0].update(epsilon=-1),
    "epsilon of weights is '1'": lambda v: v["releases"][0].update(epsilon="1"),
    "delta of weights is 0": lambda v: v["releases"][0].update(delta=0),
    "delta of weights is None": lambda v: v["releases"][0].update(delta=None),
    "rule of weights is 'sum'": lambda v: v["releases"][0].update(rule="sum"),
    "weights points to entry 'x'": lambda v: v["releases"][0].update(entries=["x"]),
    "dpsgd points to entry 'y'": lambda v: v["entries"][0].update(parents=["y"]),
    "an entry is not": lambda v: v.update(entries=[3]),
    "not_covered is missing": lambda v: v["releases"][0].pop("not_covered"),
}
BAD["a entry is not an object"] = BAD.pop("an entry is not")


@pytest.mark.parametrize("message", BAD)
def test_a_file_that_is_no_ledger_is_refused_in_one_line(message: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    path.write_text(edited(BAD[message]))
    with pytest.raises(LedgerMismatch) as caught:
        Ledger.read(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{" * 100_000])
def test_a_broken_file_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "ledger.json").write_bytes(content)
    with pytest.raises(LedgerMismatch):
        Ledger.read(tmp_path / "ledger.json")
    with pytest.raises(LedgerMismatch, match="cannot be read"):
        Ledger.read(tmp_path / "none.json")


def test_a_bad_ledger_cannot_be_written_over_a_good_one(tmp_path: Path) -> None:
    good = ledger(entry())
    good.write(tmp_path / "ledger.json")
    with pytest.raises(LedgerMismatch):
        ledger(entry(mechanism={**TRAINING.to_entry(), "noise_multiplier": math.nan}))
    assert Ledger.read(tmp_path / "ledger.json") == good
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.json"]
