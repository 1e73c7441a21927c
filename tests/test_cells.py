"""Each cell is judged by itself; the message has its row and column and never the cell."""

import math
from collections.abc import Sequence

import pytest

from safesynthdp.cells import MAX_FOUND_LABELS, Cells, check_cells
from safesynthdp.errors import DataError
from safesynthdp.sources import Table


def checked(
    texts: Sequence[object],
    labels: Sequence[object] | None = None,
    users: Sequence[object] | None = None,
    allowed: Sequence[str] | None = None,
) -> Cells:
    columns = {"text": texts, "label": labels, "user": users}
    table = Table(name="file", columns={key: cells for key, cells in columns.items() if cells is not None})
    return check_cells(
        table,
        text_column="text",
        label_column=None if labels is None else "label",
        user_column=None if users is None else "user",
        labels=allowed,
    )


def test_whole_numbers_and_booleans_become_label_text() -> None:
    assert checked(["t"] * 5, [0, True, "x", 2.0, -1]).labels == ["0", "True", "x", "2.0", "-1"]


def test_records_without_text_are_left_out_and_counted() -> None:
    cells = checked(["a", "", " \n\t", "b"], ["x", "y", "x", "y"], [1, 2, 3, "u"])
    assert (cells.texts, cells.labels, cells.users, cells.rows) == (["a", "b"], ["x", "y"], ["1", "u"], [0, 3])
    assert cells.num_empty == 2


def test_a_file_of_empty_texts_is_refused() -> None:
    with pytest.raises(DataError, match="column 'text' is empty in all 2 records"):
        checked(["", " "])


@pytest.mark.parametrize("bad", [None, math.nan, "", "  ", "nan", "NaN", math.inf, ["x"], {"x": 1}, b"x"])
def test_a_label_that_is_missing_or_no_label_is_refused_with_its_row(bad: object) -> None:
    with pytest.raises(DataError, match=r"^file, row 2: 'label' is "):
        checked(["a", "b"], ["x", bad])


@pytest.mark.parametrize("bad", [None, math.nan])
def test_a_missing_cell_is_called_missing(bad: object) -> None:
    with pytest.raises(DataError, match="'text' is missing"):
        checked([bad])
    with pytest.raises(DataError, match="'label' is missing"):
        checked(["a"], [bad])


def test_nan_is_a_label_where_it_is_listed() -> None:
    assert checked(["a"], ["nan"], allowed=["nan", "x"]).labels == ["nan"]


@pytest.mark.parametrize("bad", [None, math.nan, 3, ["x"], b"x", "\ud800"])
def test_a_text_that_is_no_text_is_refused_with_its_row(bad: object) -> None:
    with pytest.raises(DataError, match=r"^file, row 2: 'text' is "):
        checked(["a", bad])


@pytest.mark.parametrize("bad", [None, math.nan, "", ["x"]])
def test_a_missing_user_is_refused_with_its_row(bad: object) -> None:
    with pytest.raises(DataError, match=r"^file, row 2: 'user' is "):
        checked(["a", "b"], users=["u", bad])


def test_a_foreign_label_is_counted_and_not_shown() -> None:
    with pytest.raises(DataError, match=r"row 2: 'label' is not among data\.labels, as in 2 of 3 records") as caught:
        checked(["a", "b", "c"], ["x", "secret", "other"], allowed=["x", "y"])
    assert "secret" not in str(caught.value)


def test_a_column_of_texts_is_not_taken_for_labels() -> None:
    many = [f"value {i}" for i in range(MAX_FOUND_LABELS + 1)]
    with pytest.raises(DataError, match="reads like text, not labels"):
        checked(["t"] * len(many), many)
    with pytest.raises(DataError, match="reads like text, not labels"):
        checked(["t", "t"], ["x", "y" * 201])
    assert checked(["t"] * len(many), many, allowed=many).labels == many


def test_a_repr_shows_no_cell() -> None:
    assert "secret" not in repr(checked(["secret"], ["secret"], ["secret"]))
    assert "secret" not in repr(Table(name="n", columns={"c": ["secret"]}))
