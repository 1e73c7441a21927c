"""Every test that docs/sharp_edges.md names is there, and every trap names one."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/sharp_edges.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(test_[a-z0-9_]+)", TEXT)))
DEFINED = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
}
LINKS = re.compile(r"\]\((?!http)([^)#]+)\)")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_guards_a_trap_exists(name: str) -> None:
    whole = name.rstrip("_")
    assert name in DEFINED or any(found.startswith(whole) for found in DEFINED if name.endswith("_"))


def test_files_that_guard_a_trap_exist() -> None:
    files = re.findall(r"`(tests/[\w/]+\.py)`", TEXT)
    assert files
    assert [name for name in files if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    lead = [found for found in LINKS.findall(page.read_text(encoding="utf-8")) if not found.startswith("mailto")]
    assert [found for found in lead if not (page.parent / found).exists()] == []
