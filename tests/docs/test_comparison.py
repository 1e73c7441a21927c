"""What docs/paper.md says of our own run is what the README's table says, and that table is written by a script."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_our_line_beside_published_figures_has_the_numbers_of_the_readme() -> None:
    paper, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/paper.md", "README.md"))
    ours = [line for line in paper.splitlines() if line.startswith("| this repository")]
    assert ours
    result = readme.partition("<!-- result")[2].partition("<!-- end of result")[0]
    for line in ours:
        numbers = re.findall(r"\d\.\d{3,}", line)
        assert numbers
        assert [number for number in numbers if number not in result] == []
