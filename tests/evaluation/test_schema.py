"""What metrics.json may hold is checked before it is written."""

from dataclasses import replace
from typing import Any

import pytest

from safesynthdp.errors import SafeSynthError
from safesynthdp.evaluation.rows import Row, to_mapping
from safesynthdp.evaluation.schema import check_metrics

GOOD = Row(
    group="utility", name="accuracy", model="lr", train_on="synthetic", value=0.7, low=0.6, high=0.8, n=10,
    ceiling=0.9, floor=0.5, direction="higher", reads=("synthetic", "holdout"),
)  # fmt: skip
FACTS = {"file": "a.csv", "fingerprint": "x", "n": 1, "n_used": 1, "labels": []}


def content(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A whole metrics.json."""
    inputs = dict.fromkeys(("real", "synthetic", "holdout"), FACTS)
    return {"version": 1, "inputs": inputs, "settings": {}, "warnings": [], "metrics": list(rows)} | more


def test_a_good_file_passes_and_may_hold_a_verdict() -> None:
    check_metrics(content(to_mapping(GOOD), verdict=[]))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"name": "correctness"}, "not in the list"),
        ({"value": None}, "null without a reason"),
        ({"value": float("nan")}, "not a finite number"),
        ({"low": None}, "half an interval"),
        ({"low": 0.9}, "upside down"),
        ({"direction": "up"}, "no direction"),
        ({"reads": []}, "does not say what it reads"),
        ({"reads": ["members"]}, "reads what is no input"),
        ({"reads": ["real"], "publishable": True}, "reads training records"),
        ({"publishable": True}, "would publish the holdout"),
        ({"ceiling": None}, "no ceiling"),
        ({"colour": "red"}, "has the fields"),
    ],
)
def test_a_row_that_breaks_a_rule_is_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(SafeSynthError, match=problem):
        check_metrics(content(to_mapping(GOOD) | change))


def test_text_of_the_untuned_model_reads_no_input() -> None:
    check_metrics(content(to_mapping(GOOD) | {"reads": [], "train_on": "base_model"}))


def test_a_public_holdout_may_be_published() -> None:
    row = to_mapping(replace(GOOD, publishable=True))
    check_metrics(content(row, settings={"holdout_is_public": True}))


def test_the_same_row_twice_and_a_missing_role_are_refused() -> None:
    with pytest.raises(SafeSynthError, match="stands twice"):
        check_metrics(content(to_mapping(GOOD), to_mapping(GOOD)))
    with pytest.raises(SafeSynthError, match="lacks holdout"):
        check_metrics(content(inputs={"real": FACTS, "synthetic": FACTS}))
    with pytest.raises(SafeSynthError, match="warnings"):
        check_metrics(content(warnings=None))
