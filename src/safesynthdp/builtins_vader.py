"""The demo records: 23,703 short public texts with domain, sentiment and source.

Here: parsing the archive of Hutto and Gilbert (ICWSM 2014). Elsewhere: fetching it (fetching.py), the split
(record_set.py). The texts (reviews, newspaper sentences, tweets) belong to others and are fetched, never shipped. They
may be in any base model's pre-training, so an epsilon on them protects nobody.
"""

import html
import io
import tarfile
from pathlib import Path

from safesynthdp.errors import SafeSynthError
from safesynthdp.sources import Table

RAW_TEXT = "raw_text"  # the text before html.unescape; the split goes by it
DOMAINS = {
    "movieReviewSnippets": "movie_review",
    "nytEditorialSnippets": "news_editorial",
    "tweets": "tweet",
    "amazonReviewSnippets": "product_review",
}
SENTIMENTS = ("negative", "neutral", "positive")
LABEL_SETS = {"label": tuple(sorted(DOMAINS.values())), "sentiment": SENTIMENTS}
NUM_RECORDS = 23_703
_DOCUMENT_IDS = ("news_editorial", "product_review")  # "12_3" is sentence 3 of document 12
_THRESHOLD = 0.5


def read_vader(archive: Path, *, expected: int = NUM_RECORDS) -> Table:
    """Return the columns text, raw_text, label (the domain), sentiment and source.

    Sentiment is positive from a mean rating of .5 on, negative from -.5 down, else neutral. Source is the document an
    editorial or product sentence stands in, else the record itself.

    Raises:
        SafeSynthError: If the archive is not the one expected.
    """
    try:
        contents = _ground_truths(archive)
        rows = [row for name, domain in DOMAINS.items() for row in _rows(contents[name], domain)]
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError) as error:
        raise SafeSynthError(f"{archive} is not the archive of builtin vader; delete it and run again") from error
    if len(rows) != expected:
        raise SafeSynthError(f"{archive} holds {len(rows)} records, not {expected}; delete it and run again")
    names = ("text", RAW_TEXT, "label", "sentiment", "source")
    return Table(name="builtin vader", columns=dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def _ground_truths(archive: Path) -> dict[str, str]:
    """Return the content of each ``*_GroundTruth.txt`` under its first word."""
    found = dict[str, str]()
    with tarfile.open(fileobj=io.BytesIO(archive.read_bytes()), mode="r:gz") as opened:
        for entry in opened:
            name = entry.name.rsplit("/", 1)[-1]
            handle = opened.extractfile(entry) if name.endswith("_GroundTruth.txt") else None
            if handle is not None:
                found[name.removesuffix("_GroundTruth.txt")] = handle.read().decode("utf-8")
    return found


def _rows(content: str, domain: str) -> list[tuple[str, str, str, str, str]]:
    """Split on CRLF and tab: quotes mean nothing here, and a text may hold a bare line feed."""
    lines = [line for line in content.split("\r\n") if line]
    return [_row(*line.split("\t", 2), domain=domain) for line in lines]


def _row(number: str, rating: str, raw: str, *, domain: str) -> tuple[str, str, str, str, str]:
    document = number.split("_")[0] if domain in _DOCUMENT_IDS else number
    return html.unescape(raw), raw, domain, _sentiment(float(rating)), f"{domain}/{document}"


def _sentiment(rating: float) -> str:
    if rating >= _THRESHOLD:
        return "positive"
    return "negative" if rating <= -_THRESHOLD else "neutral"
