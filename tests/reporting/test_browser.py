"""What a real browser makes of the page; skipped where there is none."""

import shutil
import subprocess
from pathlib import Path
from typing import Protocol

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
         "--disable-background-networking")  # fmt: skip
pytestmark = [pytest.mark.skipif(BROWSER is None, reason="chromium is not installed"), pytest.mark.slow]


class Drawn(Protocol):
    page: str


def browse(page: str, folder: Path, *flags: str) -> str:
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=90).stdout


def test_nothing_on_the_page_runs(internal: Drawn, tmp_path: Path) -> None:
    """Every hostile sample would change the title."""
    dom = browse(internal.page, tmp_path, "--dump-dom")
    assert "<title>SafeSynthDP report: vader-eps4</title>" in dom


def test_the_policy_alone_stops_a_script_that_got_in(internal: Drawn, tmp_path: Path) -> None:
    planted = internal.page.replace("<main>", "<main><script>document.title = 'pwned'</script>")
    assert "<title>pwned" not in browse(planted, tmp_path, "--dump-dom")


def test_the_trap_itself_works_where_there_is_no_policy(internal: Drawn, tmp_path: Path) -> None:
    """Otherwise the tests above could not fail."""
    bare = internal.page.replace("Content-Security-Policy", "X-None")
    planted = bare.replace("<main>", "<main><script>document.title = 'pwned'</script>")
    assert "<title>pwned" in browse(planted, tmp_path, "--dump-dom")


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen(internal: Drawn, tmp_path: Path, width: int) -> None:
    probe = "<script>document.title = 'width ' + (document.documentElement.scrollWidth - innerWidth)</script></body>"
    page = internal.page.replace("Content-Security-Policy", "X-None").replace("</body>", probe)
    dom = browse(page, tmp_path, "--dump-dom", f"--window-size={width},844")
    assert "<title>width 0</title>" in dom or "<title>width -" in dom


def test_the_page_prints_as_a_document_with_every_section(internal: Drawn, tmp_path: Path) -> None:
    out = tmp_path / "page.pdf"
    browse(internal.page, tmp_path, f"--print-to-pdf={out}", "--no-pdf-header-footer")
    content = out.read_bytes()
    assert content.startswith(b"%PDF")
    assert content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") >= 4


@pytest.mark.parametrize("size", ["1280,800", "390,844"])
def test_a_screenshot_is_not_blank(internal: Drawn, tmp_path: Path, size: str) -> None:
    out = tmp_path / "page.png"
    browse(internal.page, tmp_path, f"--screenshot={out}", f"--window-size={size}")
    assert len(out.read_bytes()) > 20_000
