"""The demo records are the published ones, split where everyone splits them."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from safesynthdp.builtins_vader import RAW_TEXT, read_vader
from safesynthdp.errors import SafeSynthError
from safesynthdp.fetching import PINNED, cache_directory
from safesynthdp.records import DataConfig, load_split, split_bucket

FILES = {
    "movieReviewSnippets": '1\t2.5\tA "great one\r\n2\t-0.5\tbad\tfilm\r\n',
    "nytEditorialSnippets": '12_1\t0.49\t"Quoted" &amp; fine\r\n12_2\t-0.49\tstill\nthe same\r\n',
    "tweets": "7\t0.5\tI &lt;3 it \U0001f600\r\n",
    "amazonReviewSnippets": "12_1\t-3\tbroke",
}


def archive(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as opened:
        for name, content in [("README", "x"), *((f"{key}_GroundTruth", text) for key, text in files.items())]:
            entry = tarfile.TarInfo(f"hutto_ICWSM_2014/{name}.txt")
            entry.size = len(content.encode())
            opened.addfile(entry, io.BytesIO(content.encode()))
    return path


def test_rows_split_on_crlf_and_tab_whatever_quotes_they_hold(tmp_path: Path) -> None:
    columns = read_vader(archive(tmp_path / "a.tar.gz", FILES), expected=6).columns
    assert columns["text"] == [
        'A "great one',
        "bad\tfilm",
        '"Quoted" & fine',
        "still\nthe same",
        "I <3 it \U0001f600",
        "broke",
    ]
    assert columns[RAW_TEXT][2] == '"Quoted" &amp; fine'
    assert columns["label"] == [
        "movie_review",
        "movie_review",
        "news_editorial",
        "news_editorial",
        "tweet",
        "product_review",
    ]
    assert columns["sentiment"] == ["positive", "negative", "neutral", "neutral", "positive", "negative"]
    assert columns["source"] == [
        "movie_review/1",
        "movie_review/2",
        "news_editorial/12",
        "news_editorial/12",
        "tweet/7",
        "product_review/12",
    ]


@pytest.mark.parametrize("broken", ["short", "missing", "no_rating", "no_tar"])
def test_another_archive_is_refused(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "a.tar.gz"
    files = dict(FILES)
    if broken == "missing":
        del files["tweets"]
    if broken == "no_rating":
        files["tweets"] = "7\tgood\ttext"
    archive(path, files)
    if broken == "no_tar":
        path.write_bytes(gzip.compress(b"x" * 2000))
    with pytest.raises(SafeSynthError, match="delete it and run again"):
        read_vader(path, expected=7 if broken == "short" else 6)


def test_the_split_goes_by_the_raw_text_and_the_record_by_the_clean_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = next(f"R&amp;D {i}" for i in range(999) if split_bucket(f"R&D {i}") < 80 <= split_bucket(f"R&amp;D {i}"))
    path = archive(tmp_path / "a.tar.gz", FILES | {"tweets": f"6\t0.5\t \r\n7\t0.5\t{raw}"})
    monkeypatch.setattr("safesynthdp.records.fetch", lambda name, say: path)
    monkeypatch.setattr(read_vader, "__kwdefaults__", {"expected": 7})
    split = load_split(DataConfig(builtin="vader"))
    assert split_bucket("") < 80  # the record before has no text and must not lend its side
    assert raw.replace("&amp;", "&") in split.holdout.texts
    assert split.train.label_set == ("movie_review", "news_editorial", "product_review", "tweet")
    assert split.train.label_set_is_public
    assert not split.train.not_covered


real = pytest.mark.skipif(not (cache_directory() / PINNED["vader"].file_name).is_file(), reason="not fetched yet")


@pytest.mark.parametrize("fetched", [pytest.param(True, marks=real), pytest.param(False, marks=pytest.mark.slow)])
def test_the_real_archive_has_the_published_counts(fetched: bool) -> None:
    split = load_split(DataConfig(builtin="vader", label_column="domain"))
    counts = {"movie_review": 8496, "news_editorial": 4142, "product_review": 2933, "tweet": 3346}
    assert split.train.label_counts() == counts
    assert (len(split.train), len(split.holdout)) == (18_917, 4_786)
    assert not split.train.warnings


@real
def test_the_real_archive_has_798_documents_and_three_sentiments() -> None:
    split = load_split(DataConfig(builtin="vader", label_column="sentiment", user_column="source"))
    users = {*(split.train.user_ids or ()), *(split.holdout.user_ids or ())}
    assert sum(user.startswith(("news_editorial/", "product_review/")) for user in users) == 798
    train, holdout = split.train.label_counts(), split.holdout.label_counts()
    sums = {label: train[label] + holdout[label] for label in train}
    assert sums == {"negative": 9_181, "neutral": 4_244, "positive": 10_278}
