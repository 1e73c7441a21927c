"""Findings: each rule sees its defect, names nothing on real text, and goes quiet without its number."""

import random
from typing import Any

import pytest

from safesynthdp.evaluation import selftest_matrix, verdict
from safesynthdp.evaluation.rows import Row
from safesynthdp.evaluation.selftest_corpora import DEFECTS, World, make_world
from safesynthdp.evaluation.selftest_matrix import EXPECTED, judge, markdown, run
from safesynthdp.evaluation.verdict import RULES, SAYS, find_faults

MEANT = {name: expected.finding for name, expected in EXPECTED.items() if expected.finding}


@pytest.fixture(scope="module")
def world() -> World:
    return make_world("quick", seed=11)


def row(
    name: str, value: float, spread: float, ceiling: float, *, train_on: str = "synthetic", model: str | None = None
) -> Row:
    return Row(
        group="x", name=name, train_on=train_on, model=model, value=value, low=value - spread, high=value + spread,
        n=500, ceiling=ceiling, floor=0.0, direction="lower", reads=("synthetic",),
    )  # fmt: skip


def both(name: str, value: float, real: float, *, spread: float = 0.01, model: str | None = None) -> list[Row]:
    return [
        row(name, value, spread, real, model=model), row(name, real, spread, real, train_on="real_matched", model=model)
    ]  # fmt: skip


def names(rows: list[Row]) -> list[str]:
    return [finding.name for finding in find_faults(rows)]


def test_every_rule_says_something_and_every_defect_has_a_rule() -> None:
    assert set(RULES) == set(SAYS)
    assert set(EXPECTED) == set(DEFECTS)
    assert set(MEANT.values()) <= set(RULES)


def test_nothing_measured_is_nothing_found() -> None:
    assert find_faults([]) == []
    empty = [
        Row(group="x", name=n, train_on="synthetic", value=None, n=0, direction="lower", reads=(), reason="none")
        for n in ("c2st_auc", "label_tv")
    ]
    assert find_faults(empty) == []


def test_a_number_inside_its_interval_or_its_margin_is_not_a_finding() -> None:
    wide = both("duplicate_share", 0.3, 0.1, spread=0.2, model="exact")
    small = both("duplicate_share", 0.12, 0.1, spread=0.001, model="exact")
    assert names(wide) == names(small) == []
    assert names(both("duplicate_share", 0.3, 0.1, model="exact")) == ["mode_collapse"]


def test_order_is_named_only_where_the_words_alone_see_less() -> None:
    words = both("c2st_auc", 0.5, 0.5, spread=0.02, model="words")
    order = both("c2st_auc", 0.9, 0.5, spread=0.02, model="tfidf")
    assert "word_order" in names(words + order)
    assert "word_order" not in names(both("c2st_auc", 0.88, 0.5, spread=0.02, model="words") + order)


def test_cut_text_is_not_also_called_noise() -> None:
    cut = both("truncated_share", 0.9, 0.1) + both("length_ks", 0.8, 0.02, model="words")
    noise = both("label_consistency", 0.5, 0.9)
    assert names(noise) == ["label_noise"]
    assert names(cut + noise) == ["truncation"]


def test_a_finding_compares_with_private_records_and_never_leaves() -> None:
    (found,) = find_faults(both("duplicate_share", 0.3, 0.1, model="exact"))
    facts = found.to_mapping()
    assert facts["publishable"] is False
    assert facts["evidence"][0]["name"] == "duplicate_share"
    assert set(facts) == {"finding", "says", "evidence", "publishable"}


@pytest.mark.slow
def test_a_matrix_with_a_blind_rule_or_a_false_alarm_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = selftest_matrix._settings("quick")
    monkeypatch.setattr("safesynthdp.evaluation.selftest_corpora.SIZES", {"quick": 120})
    small = make_world("quick", seed=1)
    noisy = DEFECTS["30% label noise"](small, random.Random(0))
    assert judge("30% label noise", small, noisy, settings)["passed"]
    assert not judge("fresh real text", small, noisy, settings)["passed"]
    blind = {name: rule for name, rule in verdict.RULES.items() if name != "label_noise"}
    monkeypatch.setattr(verdict, "RULES", blind)
    assert not judge("30% label noise", small, noisy, settings)["passed"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_matrix_of_made_up_text_passes(seed: int) -> None:
    facts: dict[str, Any] = run(level="quick", seed=seed)
    assert facts["failed"] == []
    assert len(markdown(facts)) == 2 + len(DEFECTS)
