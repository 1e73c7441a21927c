"""Tables of likeness: each measure of the synthetic text is one line with a name of its own."""

from pathlib import Path

import pytest

from safesynthdp.reporting.facts import Evaluation, Metric, Stage
from safesynthdp.reporting.likeness_tables import fidelity_table


def metric(name: str, train_on: str, model: str, value: float) -> Metric:
    return Metric(
        group="two_sample", name=name, train_on=train_on, model=model, label=None, value=value, low=None, high=None,
        n=30, ceiling=None, floor=0.9, direction="half", level=0.95, seeds=1,
        reads=("synthetic",), publishable=False, reason=None,
    )  # fmt: skip


@pytest.fixture
def lines() -> list[tuple[str, ...]]:
    rows = [
        metric("c2st_auc", train_on, encoder, value)
        for encoder in ("minilm", "words")
        for train_on, value in (("synthetic", 0.88), ("real_matched", 0.49), ("base_model", 0.91))
    ]
    stage = Stage(path=Path("evaluation"), kind="evaluation", status="finished", run_id="1", manifest={}, config={})
    found = fidelity_table(Evaluation(stage=stage, metrics=tuple(rows), inputs={}, settings={}, warnings=()))
    assert found is not None
    return [tuple(row.cells) for row in found.rows if row.tone != "group"]


def test_each_measure_of_the_synthetic_text_is_one_line_named_after_what_measured_it(
    lines: list[tuple[str, ...]],
) -> None:
    assert [line[0] for line in lines] == ["two-sample test AUC (minilm)", "two-sample test AUC (words)"]
    assert {line[1] for line in lines} == {"0.880"}


def test_what_real_text_gives_stands_in_a_column_of_the_line(lines: list[tuple[str, ...]]) -> None:
    assert {line[3:5] for line in lines} == {("0.490", "0.900")}
