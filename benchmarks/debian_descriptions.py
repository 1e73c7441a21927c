"""A second set of real labelled text: the first sentences of package descriptions, with their section.

    python benchmarks/debian_descriptions.py debian.csv [--mirror http://deb.debian.org/debian] [--suite bookworm]

Nothing was tuned on it. Six sections of one suite's main archive that differ in their subject, about 5,200 texts of
22 words; the archive's indices are public, and only this machine keeps them. Prints the SHA-256 of what it wrote: a
point release of the suite changes some texts. second_corpus.py trains on it.
"""

import argparse
import csv
import hashlib
import lzma
import random
import re
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

LABELS = {
    "games": "game",
    "science": "science program",
    "sound": "audio program",
    "net": "network program",
    "fonts": "font",
    "graphics": "graphics program",
}
MOST_WORDS, LONGEST, SHORTEST = 30, 40, 4


def main() -> None:
    """Fetch, cut, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--mirror", default="http://deb.debian.org/debian")
    parser.add_argument("--suite", default="bookworm")
    asked = parser.parse_args()
    main_archive = f"{asked.mirror}/dists/{asked.suite}/main"
    sections = _sections(_fetch(f"{main_archive}/binary-amd64/Packages.xz"))
    rows = _rows(_fetch(f"{main_archive}/i18n/Translation-en.xz"), sections)
    with asked.output.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["description", "section"])
        writer.writerows(rows)
    counts = ", ".join(f"{label} {count}" for label, count in Counter(label for _, label in rows).most_common())
    digest = hashlib.sha256(asked.output.read_bytes()).hexdigest()
    sys.stdout.write(f"{asked.output}: {len(rows)} texts ({counts}), SHA-256 {digest}\n")


def _fetch(address: str) -> str:
    with urllib.request.urlopen(address, timeout=120) as answer:
        return lzma.decompress(answer.read()).decode("utf-8")


def _sections(index: str) -> dict[str, str]:
    """Return the section by the checksum of a description."""
    found = dict[str, str]()
    for stanza in index.split("\n\n"):
        digest = _field(stanza, "Description-md5")
        if digest:
            found[digest] = _field(stanza, "Section").split("/")[-1]
    return found


def _rows(translation: str, sections: dict[str, str]) -> list[tuple[str, str]]:
    """Return distinct texts with their labels, in an order that is always the same."""
    whole = dict[str, str]()
    for stanza in translation.split("\n\n"):
        label = LABELS.get(sections.get(_field(stanza, "Description-md5"), ""))
        text = _long_text(stanza)
        if label and text:
            whole.setdefault(text, label)
    shuffled = list(whole.items())
    random.Random(0).shuffle(shuffled)
    cut = dict[str, str]()
    for text, label in shuffled:
        beginning = _beginning(text)
        if SHORTEST <= len(beginning.split()) <= LONGEST:
            cut.setdefault(beginning, label)
    return list(cut.items())


def _beginning(text: str) -> str:
    """Return the first sentence, and those after it as long as all are at most 30 words."""
    first, *others = re.split(r"(?<=[.!?]) ", text)
    for sentence in others:
        if len(f"{first} {sentence}".split()) > MOST_WORDS:
            break
        first = f"{first} {sentence}"
    return first


def _long_text(stanza: str) -> str:
    """Return the description below its title as one line; a dot alone stands for an empty line."""
    lines = re.search(r"^Description-en: .*((?:\n .*)*)", stanza, re.MULTILINE)
    return " ".join(_words(lines.group(1))) if lines else ""


def _words(lines: str) -> Iterator[str]:
    for line in lines.split("\n"):
        if line.strip() != ".":
            yield from line.split()


def _field(stanza: str, name: str) -> str:
    found = re.search(rf"^{name}: (.*)$", stanza, re.MULTILINE)
    return found.group(1).strip() if found else ""


if __name__ == "__main__":
    main()
