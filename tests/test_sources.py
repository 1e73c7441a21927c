"""Files come in whole, or one line says what is wrong with them and never quotes them."""

import csv
import json
import logging
import logging.handlers
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safesynthdp.errors import ConfigError, DataError
from safesynthdp.sources import read_dataset, read_file, require_columns

SECRET = "patient Zoe Quux was here"


def rows_of(path: Path, columns: Sequence[str] = ("text", "label")) -> list[tuple[object, ...]]:
    table = read_file(path, columns)
    return list(zip(*(table.columns[column] for column in columns), strict=True))


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path: Path, columns: Sequence[str] = ("text", "label")) -> str:
    with pytest.raises(DataError) as caught:
        read_file(path, columns)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert "Quux" not in message
    return message


def test_csv_takes_quotes_line_breaks_a_byte_order_mark_and_other_columns(tmp_path: Path) -> None:
    content = '\ufeffid,label,text\r\n1,a,"two\nlines, ""quoted"""\r\n\r\n2,b,plain "here"\r\n'
    path = write(tmp_path / "a.csv", content)
    assert rows_of(path) == [('two\nlines, "quoted"', "a"), ('plain "here"', "b")]
    table = read_file(path, ["text"])
    assert [table.where(0), table.where(1)] == [f"{path}, row 1 (line 2)", f"{path}, row 2 (line 5)"]


def test_csv_takes_the_line_ends_of_every_system(tmp_path: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        assert rows_of(write(tmp_path / "a.csv", end.join(["text,label", "a,b", "c,d", ""]))) == [
            ("a", "b"),
            ("c", "d"),
        ]


def test_jsonl_keeps_types_and_skips_blank_lines(tmp_path: Path) -> None:
    content = '\ufeff{"text": "a\\nb", "label": 1, "more": []}\n\n{"label": true, "text": "c"}\r\n'
    for name in ("a.jsonl", "a.json", "a.JSONL"):
        assert rows_of(write(tmp_path / name, content)) == [("a\nb", 1), ("c", True)]


def test_parquet_reads_only_what_is_asked_for_and_understands_categories(tmp_path: Path) -> None:
    labels = pyarrow.array(["x", "y", "x"]).dictionary_encode()
    table = pyarrow.table({"text": ["a", None, "c"], "label": labels, "other": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert rows_of(tmp_path / "a.parquet") == [("a", "x"), (None, "y"), ("c", "x")]


AWKWARD = "nul \0, emoji \U0001f600, right to left \u202e\u05d0, sep \u2028 \x85 tab \t cr \r end"


def test_awkward_and_long_texts_pass_through_every_format(tmp_path: Path) -> None:
    texts = [AWKWARD, "word " * 50_000, "\u00e9" * 200_000]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([["text"], *([text] for text in texts)])
    write(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    limit = csv.field_size_limit()
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        assert [text for (text,) in rows_of(tmp_path / name, ["text"])] == texts
    assert csv.field_size_limit() == limit


@given(st.lists(st.text(), min_size=1))
def test_any_text_survives_csv_and_jsonl(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        with Path(name, "a.csv").open("w", newline="", encoding="utf-8") as handle:
            csv.writer(handle, quoting=csv.QUOTE_ALL).writerows([["text"], *([text] for text in texts)])
        Path(name, "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
        for file in ("a.csv", "a.jsonl"):
            assert [text for (text,) in rows_of(Path(name, file), ["text"])] == texts


def test_a_file_that_is_not_there_or_not_of_a_known_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    assert "no such file" in refusal(tmp_path / "none.csv")
    assert "is a directory" in refusal(tmp_path / "folder.csv")
    assert "convert it to .csv, .jsonl, .parquet" in refusal(write(tmp_path / "a.xlsx", "x"))
    assert "is empty" in refusal(write(tmp_path / "a.csv", ""))
    assert "not a readable parquet file" in refusal(write(tmp_path / "a.parquet", f"text,label\n{SECRET},a\n"))


def test_a_header_without_records_is_refused(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "label": ["b"]}).slice(0, 0), tmp_path / "a.parquet")
    assert "holds no records" in refusal(write(tmp_path / "a.csv", "text,label\n"))
    assert "holds no records" in refusal(tmp_path / "a.parquet")
    assert "holds no records" in refusal(write(tmp_path / "a.jsonl", "\n\n"))


def test_a_missing_column_names_the_ones_there_are(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"], "label": ["b"]}), tmp_path / "a.parquet")
    for path in (
        write(tmp_path / "a.csv", f"body,label\n{SECRET},a\n"),
        write(tmp_path / "a.jsonl", json.dumps({"body": SECRET, "label": "a"})),
        tmp_path / "a.parquet",
    ):
        assert refusal(path).endswith("has no column 'text'; it has: body, label")


def test_the_first_record_of_a_csv_without_header_is_not_shown(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "a.csv", f"{SECRET},sick\nother,well\n"))
    assert message.endswith("it has: sick and 1 not shown (is the first line a header?)")


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    assert "column 'text' 2 times" in refusal(write(tmp_path / "a.csv", "text,text,label\na,b,c\n"))
    with pytest.raises(DataError, match="2 times"):
        require_columns("x", ["a"], ["a", "a"])


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_bytes_that_are_not_utf8_are_refused_with_their_line(tmp_path: Path, name: str) -> None:
    message = refusal(write(tmp_path / name, b"text,label\nfine,a\nQuux caf\xe9,b\n"))
    assert "line 3 (byte 26)" in message
    assert "convert to UTF-8" in message


def test_parquet_strings_that_are_not_utf8_are_refused_with_their_row(tmp_path: Path) -> None:
    raw = pyarrow.array([b"fine", b"caf\xe9"], pyarrow.binary())
    broken = pyarrow.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    pyarrow.parquet.write_table(pyarrow.table({"text": broken, "label": ["a", "b"]}), tmp_path / "a.parquet")
    assert "row 2: column 'text' is not UTF-8" in refusal(tmp_path / "a.parquet")


@pytest.mark.parametrize("row", [f"{SECRET}, with comma,a", SECRET])
def test_a_csv_row_of_another_length_is_refused_not_shifted(tmp_path: Path, row: str) -> None:
    message = refusal(write(tmp_path / "a.csv", f'text,label\n"two\nlines",a\n{row}\n'))
    assert "row 2 (line 4) has" in message


@pytest.mark.parametrize("row", [f'"{SECRET},a', f'"{SECRET}" more,a'])
def test_a_stray_quote_is_refused_not_swallowed(tmp_path: Path, row: str) -> None:
    message = refusal(write(tmp_path / "a.csv", f"text,label\nfine,a\n{row}\nfine,b\n"))
    assert "line 3: not valid CSV" in message


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"text": "Quux', "line 2 is not valid JSON"),
        ('["Quux", "a"]', "line 2 holds a list"),
        ('"Quux"', "line 2 holds no object"),
        ('{"text": "Quux"}', "row 2 (line 2) has no 'label'"),
        ("[" * 100_000, "line 2 is not valid JSON"),
    ],
)
def test_a_bad_json_line_is_refused_with_its_number(tmp_path: Path, line: str, what: str) -> None:
    good = '{"text": "a", "label": "b"}'
    assert what in refusal(write(tmp_path / "a.jsonl", f"{good}\n{line}\n{good}\n"))


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "reviews"
    folder.mkdir()
    write(folder / "train.csv", "text,label\nhello,a\nbye,b\n")
    write(folder / "test.csv", "text,label\nagain,a\n")
    return str(folder)


def test_a_local_dataset_is_read_by_split(dataset: str) -> None:
    table = read_dataset(dataset, None, "train", ["text", "label"])
    assert {name: list(cells) for name, cells in table.columns.items()} == {
        "text": ["hello", "bye"],
        "label": ["a", "b"],
    }
    assert list(read_dataset(dataset, None, "test", ["text"]).columns["text"]) == ["again"]


def test_class_labels_come_by_name_and_unlabelled_rows_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    made = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: made)
    table = read_dataset("any", None, "train", ["text", "label"])
    assert list(table.columns["label"]) == ["pos", "neg", None]


def test_a_dataset_without_that_split_configuration_or_column_is_refused(dataset: str) -> None:
    with pytest.raises(ConfigError, match=r"^data.dataset_split=dev: "):
        read_dataset(dataset, None, "dev", ["text"])
    with pytest.raises(ConfigError, match=r"^data.dataset_config=none: "):
        read_dataset(dataset, "none", "train", ["text"])
    with pytest.raises(DataError, match="no column 'body'; it has: text, label"):
        read_dataset(dataset, None, "train", ["body"])


def test_a_dataset_that_cannot_be_built_is_refused_without_its_text(dataset: str) -> None:
    handler = logging.handlers.BufferingHandler(capacity=100)
    logging.getLogger("datasets").addHandler(handler)
    write(Path(dataset) / "train.csv", b"text,label\nQuux caf\xe9,a\n")
    with pytest.raises(DataError, match="cannot be built") as caught:
        read_dataset(dataset, None, "train", ["text"])
    logging.getLogger("datasets").removeHandler(handler)
    assert "Quux" not in str(caught.value)
    assert not handler.buffer


def test_a_dataset_out_of_reach_is_one_line(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from safesynthdp.errors import SafeSynthError

    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach it\nat all")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(SafeSynthError, match="the hub cannot be reached") as caught:
        read_dataset("some/name", None, "train", ["text"])
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
