"""The label plan: whole numbers that sum to what was asked for, from released shares only."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safesynthdp.errors import LedgerMismatch, UserError
from safesynthdp.generation.labels import LabelShares, largest_remainder, plan_labels, read_shares
from safesynthdp.runs import RunDirectory

NUMBERS = st.lists(st.floats(0, 1e6, allow_subnormal=True), min_size=1, max_size=30).filter(lambda v: math.fsum(v) > 0)


@given(NUMBERS, st.integers(1, 5000))
def test_counts_sum_to_what_was_asked_and_stay_within_one_of_their_share(shares: list[float], total: int) -> None:
    counts = largest_remainder(shares, total)
    assert sum(counts) == total
    for count, share in zip(counts, shares, strict=True):
        assert count >= 0
        assert abs(count - total * share / math.fsum(shares)) < 1 + 1e-6


@given(NUMBERS, st.integers(1, 300), st.integers(0, 5))
def test_the_plan_holds_each_label_as_often_as_its_count(shares: list[float], total: int, seed: int) -> None:
    labels = tuple(f"label {i}" for i in range(len(shares)))
    mix = LabelShares(labels=labels, shares=tuple(shares), source="uniform")
    plan = plan_labels(mix, total, seed=seed)
    wanted = dict(zip(labels, largest_remainder(shares, total), strict=True))
    assert Counter(plan) == Counter({label: count for label, count in wanted.items() if count})


def test_the_plan_is_shuffled_and_repeats_with_its_seed() -> None:
    mix = LabelShares(labels=("a", "b"), shares=(0.5, 0.5), source="uniform")
    plan = plan_labels(mix, 200, seed=1)
    assert plan == plan_labels(mix, 200, seed=1)
    assert plan != plan_labels(mix, 200, seed=2)
    assert 30 < plan[:100].count("a") < 70


def a_run(path: Path, content: dict[str, Any] | None) -> RunDirectory:
    if content is not None:
        (path / "label_histogram.json").write_text(json.dumps(content))
    return RunDirectory(path=path, manifest={})


COUNTS = {"labels": ["a", "b"], "noisy_counts": [3, 1], "shares": [0.75, 0.25], "source": "discrete_laplace"}


def test_auto_follows_the_runs_counts_in_the_order_of_the_label_set(tmp_path: Path) -> None:
    found = read_shares(a_run(tmp_path, COUNTS), ("b", "a"), choice="auto", untuned=False)
    assert (found.labels, found.shares, found.source) == (("b", "a"), (0.25, 0.75), "discrete_laplace")


def test_sqrt_lies_between_the_counts_and_equal_shares_and_is_paid_for_like_the_counts(tmp_path: Path) -> None:
    found = read_shares(a_run(tmp_path, COUNTS), ("a", "b"), choice="sqrt", untuned=False)
    assert found.source == "discrete_laplace"
    assert largest_remainder(found.shares, 10_000) == [6340, 3660]  # 1 / (1 + sqrt(1/3)) = .6340
    none_of_b = {**COUNTS, "shares": [1.0, 0.0]}
    assert read_shares(a_run(tmp_path, none_of_b), ("a", "b"), choice="sqrt", untuned=False).shares == (1.0, 0.0)


def test_uniform_and_untuned_never_open_the_counts(tmp_path: Path) -> None:
    (tmp_path / "label_histogram.json").write_text("not JSON")
    run = RunDirectory(path=tmp_path, manifest={})
    for choice, untuned in (("uniform", False), ("auto", True)):
        found = read_shares(run, ("a", "b"), choice=choice, untuned=untuned)  # type: ignore[arg-type]
        assert (found.shares, found.source) == ((0.5, 0.5), "uniform")
    with pytest.raises(LedgerMismatch):
        read_shares(run, ("a", "b"), choice="auto", untuned=False)


@pytest.mark.parametrize("content", [None, {"labels": ["a", "b"], "shares": [0.5, 0.5], "source": "uniform"}])
def test_asking_for_counts_a_run_does_not_have_is_refused(tmp_path: Path, content: dict[str, Any] | None) -> None:
    run = a_run(tmp_path, content)
    for choice in ("histogram", "sqrt"):
        with pytest.raises(UserError, match=f"labels={choice}.*--labels uniform"):
            read_shares(run, ("a", "b"), choice=choice, untuned=False)
    assert read_shares(run, ("a", "b"), choice="auto", untuned=False).source == "uniform"


@pytest.mark.parametrize(
    "change",
    [
        {"shares": [0.0, 0.0]},
        {"shares": [1.5, -0.5]},
        {"shares": [math.nan, 1.0]},
        {"shares": [1.0]},
        {"labels": ["a", "a"]},
        {"labels": ["a", "c"]},
    ],
)
def test_a_damaged_or_foreign_histogram_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(LedgerMismatch):
        read_shares(a_run(tmp_path, COUNTS | change), ("a", "b"), choice="auto", untuned=False)
