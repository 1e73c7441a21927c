"""Tables of likeness: each measure of the synthetic text is one line with a name of its own."""

from pathlib import Path

import pytest

from safesynthdp.reporting.facts import Evaluation, Metric, Stage
from safesynthdp.reporting.likeness_tables import fidelity_table


def metric(
    name: str, train_on: str, model: str, value: float | None, *, label: str | None = None, reason: str | None = None
) -> Metric:
    return Metric(
        group="two_sample", name=name, train_on=train_on, model=model, label=label, value=value, low=None, high=None,
        n=30, ceiling=None, floor=0.9, direction="half", level=0.95, seeds=1,
        reads=("synthetic",), publishable=False, reason=reason,
    )  # fmt: skip


def cells_of(rows: list[Metric]) -> list[tuple[str, ...]]:
    stage = Stage(path=Path("evaluation"), kind="evaluation", status="finished", run_id="1", manifest={}, config={})
    found = fidelity_table(Evaluation(stage=stage, metrics=tuple(rows), inputs={}, settings={}, warnings=()))
    assert found is not None
    return [tuple(row.cells) for row in found.rows if row.tone != "group"]


@pytest.fixture
def lines() -> list[tuple[str, ...]]:
    rows = [
        metric("c2st_auc", train_on, encoder, value)
        for encoder in ("minilm", "words")
        for train_on, value in (("synthetic", 0.88), ("real_matched", 0.49), ("base_model", 0.91))
    ]
    return cells_of(rows)


def test_each_measure_of_the_synthetic_text_is_one_line_named_after_what_measured_it(
    lines: list[tuple[str, ...]],
) -> None:
    assert [line[0] for line in lines] == ["two-sample test AUC (minilm)", "two-sample test AUC (words)"]
    assert {line[1] for line in lines} == {"0.880"}


def test_what_real_text_gives_stands_in_a_column_of_the_line(lines: list[tuple[str, ...]]) -> None:
    assert {line[3:5] for line in lines} == {("0.490", "0.900")}


def test_labels_that_could_not_be_measured_are_one_line_with_the_reason() -> None:
    few = [
        metric("c2st_auc", "synthetic", "words", None, label=label, reason=f"{n} records a side; 200 are needed")
        for label, n in (("good", 31), ("bad", 17))
    ]
    whole = metric("c2st_auc", "synthetic", "words", 0.7)
    told = cells_of([*few, whole])
    assert [line[1] for line in told] == ["0.700", "n/a"]
    assert told[1][0] == (
        "two-sample test AUC, by label (words): not measured for good, bad; good: 31 records a side; 200 are needed"
    )
    assert set(told[1][2:]) == {""}
