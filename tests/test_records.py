"""From a config to two sides of a split: stable, record-local, and honest about what it left out."""

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safesynthdp.config import to_mapping
from safesynthdp.errors import DataError, LedgerMismatch, UserError
from safesynthdp.records import DataConfig, Records, Split, load_split, read_records, split_bucket, split_of_run
from safesynthdp.runs import RunDirectory

Row = dict[str, Any]


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def corpus(number: int = 60) -> list[Row]:
    return [{"text": f"text {i}", "label": "ab"[i % 2], "user": f"u{i % 7}"} for i in range(number)]


def load(path: Path, **values: Any) -> Split:
    return load_split(DataConfig(train_file=str(path), **values))


ROWS = st.lists(
    st.fixed_dictionaries({"text": st.text(min_size=1, max_size=5), "label": st.sampled_from(["a", "b"])}), min_size=1
)


@settings(max_examples=50)
@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_a_file_leaves_no_trace(rows: list[Row], rng: random.Random) -> None:
    rows = [*rows, {"text": "one", "label": "a"}]
    with tempfile.TemporaryDirectory() as name:
        first = read_records(write(Path(name, "a.jsonl"), rows))
        second = read_records(write(Path(name, "b.jsonl"), rng.sample(rows, len(rows))))
    assert first == second
    assert first.fingerprint == second.fingerprint
    assert list(first.record_ids) == sorted(set(first.record_ids))


ALWAYS_TRAINED_ON = next(text for text in map(str, range(1000)) if split_bucket(text) < 10)


@settings(max_examples=50)
@given(st.lists(st.text(min_size=1, max_size=8), min_size=3, unique=True), st.integers(0, 90))
def test_no_records_side_depends_on_another_record(texts: list[str], holdout_percent: int) -> None:
    rows = [{"text": text, "label": "a"} for text in texts] + [{"text": ALWAYS_TRAINED_ON, "label": "b"}]
    with tempfile.TemporaryDirectory() as name:
        whole = load(write(Path(name, "a.jsonl"), rows), holdout_percent=holdout_percent, labels=["a", "b"])
        fewer = load(write(Path(name, "b.jsonl"), rows[1:]), holdout_percent=holdout_percent, labels=["a", "b"])
    for more, less in ((whole.train, fewer.train), (whole.holdout, fewer.holdout)):
        assert set(less.record_ids) <= set(more.record_ids)
        assert len(more) <= len(less) + 1


def test_the_bucket_of_a_text_decides_and_the_sides_are_whole(tmp_path: Path) -> None:
    split = load(write(tmp_path / "a.jsonl", corpus()), holdout_percent=30)
    assert all(split_bucket(text) < 70 for text in split.train.texts)
    assert all(split_bucket(text) >= 70 for text in split.holdout.texts)
    assert sorted(split.train.texts + split.holdout.texts) == sorted(row["text"] for row in corpus())
    assert split.train.label_set == split.holdout.label_set == ("a", "b")
    assert not len(load(tmp_path / "a.jsonl", holdout_percent=0).holdout)


def test_near_copies_fall_on_one_side(tmp_path: Path) -> None:
    variants = ["{}", "{}!", "  {}", "{}\n"]
    rows = [{"text": v.format(row["text"].upper()), "label": row["label"]} for row in corpus() for v in variants]
    split = load(write(tmp_path / "a.jsonl", rows))
    sides = ({text.strip(" !\n") for text in side.texts} for side in (split.train, split.holdout))
    assert not set.intersection(*sides)


def test_a_user_is_on_one_side(tmp_path: Path) -> None:
    rows = [row | {"user": f"u{i % 30}"} for i, row in enumerate(corpus(300))]
    split = load(write(tmp_path / "a.jsonl", rows), user_column="user", holdout_percent=40)
    assert split.train.user_ids
    assert split.holdout.user_ids
    assert not set(split.train.user_ids) & set(split.holdout.user_ids)
    owners = {row["text"]: row["user"] for row in rows}
    assert [owners[text] for text in split.train.texts] == list(split.train.user_ids)


def test_a_label_set_read_from_the_data_is_sorted_and_not_covered(tmp_path: Path) -> None:
    split = load(write(tmp_path / "a.jsonl", corpus()))
    for side in (split.train, split.holdout):
        assert (side.label_set, side.label_set_is_public) == (("a", "b"), False)
        assert side.not_covered[0].startswith("data.labels is not set: the label set was read from the private column")
        assert side.not_covered[0] in side.warnings


def test_a_configured_label_set_is_public_and_keeps_its_order(tmp_path: Path) -> None:
    split = load(write(tmp_path / "a.jsonl", corpus()), labels=["b", "none", "a"])
    for side in (split.train, split.holdout):
        assert (side.label_set, side.label_set_is_public) == (("b", "none", "a"), True)
        assert side.warnings == side.not_covered == ()


def test_a_label_outside_the_configured_set_is_refused_on_either_side(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not among data\.labels, as in 30 of 60 records"):
        load(write(tmp_path / "a.jsonl", corpus()), labels=["a", "c"])


def test_one_label_is_refused_where_something_is_to_be_trained(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [row | {"label": "a"} for row in corpus()])
    with pytest.raises(DataError, match=r"all 60 records have one label; set data\.label_column"):
        load(path)
    assert load(path, labels=["a", "b"]).train.label_counts()["b"] == 0
    assert read_records(path).label_set == ("a",)


def test_records_without_text_are_left_out_and_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*corpus(), {"text": " ", "label": "a", "user": "u"}])
    split = load(path, labels=["a", "b"])
    assert len(split.train) + len(split.holdout) == 60
    assert split.train.warnings == ("1 record without text left out",)
    assert read_records(path).warnings == ("1 record without text left out",)


def test_max_records_keeps_the_same_ones_in_any_order_and_says_so(tmp_path: Path) -> None:
    rows = corpus()
    whole = load(write(tmp_path / "a.jsonl", rows))
    first = load(tmp_path / "a.jsonl", max_records=10)
    second = load(write(tmp_path / "b.jsonl", rows[::-1]), max_records=10)
    assert len(first.train) == 10
    assert first == second
    assert set(first.train.record_ids) < set(whole.train.record_ids)
    assert first.holdout == whole.holdout
    assert any("data.max_records=10" in line for line in first.train.not_covered)
    assert list(first.train.record_ids) == sorted(first.train.record_ids)
    assert set(load(tmp_path / "a.jsonl", max_records=9).train.texts) < set(first.train.texts)


def test_max_records_is_not_covered_even_where_nothing_was_left_out(tmp_path: Path) -> None:
    split = load(write(tmp_path / "a.jsonl", corpus()), max_records=1000, labels=["a", "b"])
    assert len(split.train.not_covered) == 1


def write_members(path: Path, ids: list[str], flags: list[Any]) -> str:
    pyarrow.parquet.write_table(pyarrow.table({"record_id": ids, "member": flags}), path)
    return str(path)


def test_only_members_are_trained_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*corpus(), *corpus()[:5]])
    whole = load(path)
    ids = list(whole.train.record_ids)
    flags = [index % 3 == 0 for index in range(len(ids))]
    order = random.Random(0).sample(range(len(ids)), len(ids))
    file = write_members(tmp_path / "m.parquet", [ids[i] for i in order], [flags[i] for i in order])
    split = load(path, membership_file=file)
    assert split.train == whole.train.select(i for i, flag in enumerate(flags) if flag)
    assert split.holdout == whole.holdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: [*ids, "f" * 32], "1 ids are unknown, 0 stand twice, 0 of"),
        (lambda ids: ids[1:], "0 ids are unknown, 0 stand twice, 1 of"),
        (lambda ids: [*ids, ids[0]], "0 ids are unknown, 1 stand twice, 0 of"),
        (lambda ids: ["x", *ids[1:]], "1 ids are unknown, 0 stand twice, 1 of"),
    ],
)
def test_a_membership_file_of_other_records_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = write(tmp_path / "a.jsonl", corpus())
    ids = change(list(load(path).train.record_ids))
    file = write_members(tmp_path / "m.parquet", ids, [True] * len(ids))
    with pytest.raises(DataError, match=message):
        load(path, membership_file=file)


def test_membership_is_a_boolean_and_nobody_is_no_training_set(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", corpus())
    ids = list(load(path).train.record_ids)
    with pytest.raises(DataError, match="must hold true or false"):
        load(path, membership_file=write_members(tmp_path / "m.parquet", ids, [1] * len(ids)))
    with pytest.raises(DataError, match="no record is left to train on"):
        load(path, membership_file=write_members(tmp_path / "n.parquet", ids, [False] * len(ids)))


def test_an_empty_holdout_is_said(tmp_path: Path) -> None:
    rows = [row for row in corpus() if split_bucket(row["text"]) < 80]
    split = load(write(tmp_path / "a.jsonl", rows), labels=["a", "b"])
    assert split.train.warnings[0].startswith("data.holdout_percent=20, but no record fell")
    rows = [row for row in corpus() if split_bucket(row["text"]) >= 80]
    with pytest.raises(DataError, match="no record is left to train on"):
        load(write(tmp_path / "a.jsonl", rows), labels=["a", "b"])


def test_records_are_read_without_labels_and_with_users(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", corpus(4))
    records = read_records(path, label_column=None, user_column="user")
    assert (records.labels, records.label_set) == (("",) * 4, ())
    assert set(zip(records.texts, records.user_ids or (), strict=True)) == {(r["text"], r["user"]) for r in corpus(4)}
    labelled = read_records(path, labels=["b", "a", "c"])
    assert (labelled.label_set, labelled.label_set_is_public) == (("b", "a", "c"), True)
    assert isinstance(labelled, Records)


def test_the_columns_are_checked_before_anything_slow(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'body'; it has: text, label, user"):
        load(write(tmp_path / "a.jsonl", corpus()), text_column="body")


def finetune_run(tmp_path: Path, data: DataConfig) -> RunDirectory:
    run = RunDirectory.create(tmp_path / "run", kind="finetune", config={"data": to_mapping(data)})
    run.finish(data={"fingerprint": load_split(data).train.fingerprint})
    return RunDirectory.open(tmp_path / "run")


def test_a_run_finds_its_records_again_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", corpus())
    data = DataConfig(train_file="a.jsonl", labels=["b", "a"], max_records=20)
    run = finetune_run(tmp_path, data)
    monkeypatch.chdir("/")
    assert split_of_run(run) == load_split(data)


def test_a_run_refuses_records_that_changed(tmp_path: Path) -> None:
    data = DataConfig(train_file=str(write(tmp_path / "a.jsonl", corpus())))
    run = finetune_run(tmp_path, data)
    write(tmp_path / "a.jsonl", corpus()[::-1])
    assert split_of_run(run) == load_split(data)
    write(tmp_path / "a.jsonl", corpus(61))
    with pytest.raises(LedgerMismatch, match=r"restore the data named in its config\.yaml"):
        split_of_run(run)


def test_a_run_without_data_is_refused(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", kind="report", config={"title": "x"})
    with pytest.raises(UserError, match="give the output_dir of a finetune"):
        split_of_run(run)
