"""Nothing that was computed from private records is publishable."""

import dataclasses
import math

import pytest

from safesynthdp.evaluation.rows import Row, Source, decide_publishable, to_mapping

KEYS = [
    *("group", "name", "model", "train_on", "label", "value", "low", "high", "level", "n", "seeds"),
    *("ceiling", "floor", "direction", "reads", "publishable", "reason"),
]


def row(*reads: Source, name: str = "accuracy", value: float | None = 0.5, reason: str | None = None) -> Row:
    """A row that reads what is named."""
    return Row(
        group="utility", name=name, train_on="synthetic", value=value, n=10, ceiling=0.9, floor=0.1,
        direction="higher", reads=reads, reason=reason,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reads", "with_private_holdout", "with_public_holdout"),
    [
        (("synthetic",), True, True),
        (("synthetic", "holdout"), False, True),
        (("holdout",), False, True),
        (("real",), False, False),
        (("synthetic", "real", "holdout"), False, False),
    ],
)
def test_a_row_is_publishable_only_if_it_reads_nothing_private(
    reads: tuple[Source, ...], with_private_holdout: bool, with_public_holdout: bool
) -> None:
    assert decide_publishable([row(*reads)], holdout_is_public=False)[0].publishable is with_private_holdout
    assert decide_publishable([row(*reads)], holdout_is_public=True)[0].publishable is with_public_holdout


def test_a_publishable_row_carries_no_ceiling_that_was_measured_on_real_text() -> None:
    (published,) = decide_publishable([row("synthetic", "holdout")], holdout_is_public=True)
    assert published.ceiling is None
    assert "ceiling" in (published.reason or "")
    (kept,) = decide_publishable([row("synthetic", "holdout")], holdout_is_public=False)
    assert kept.ceiling == 0.9
    (constant,) = decide_publishable([row("synthetic", name="empty_share")], holdout_is_public=False)
    assert constant.ceiling == 0.9


def test_a_row_has_all_keys_in_order() -> None:
    assert list(to_mapping(row("synthetic"))) == KEYS
    assert to_mapping(row("synthetic"))["reads"] == ["synthetic"]


@pytest.mark.parametrize("key", ["value", "low", "high", "ceiling", "floor"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_nan_and_infinity_are_refused(key: str, number: float) -> None:
    changes: dict[str, float] = {key: number}
    with pytest.raises(ValueError, match="not finite"):
        to_mapping(dataclasses.replace(row("synthetic"), **changes))  # type: ignore[arg-type]


def test_a_null_value_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="reason"):
        to_mapping(row("synthetic", value=None))
    assert to_mapping(row("synthetic", value=None, reason="because"))["value"] is None
