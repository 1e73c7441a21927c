"""Figures as inline SVG: the same bytes for the same numbers, no script, nothing fetched; and the same as PNG.

Here: the canvas, the palette and what makes an SVG fit for the page. Elsewhere: the figures themselves
(frontier_figure.py, utility_figures.py, attack_figures.py) and which numbers go in (frontier.py, tables.py, page.py).
A wide figure comes twice, for a wide and for a narrow screen, since text in a shrunk drawing cannot be read; the style
sheet shows one. Only what ``draw`` and ``draw_small`` return is ever marked safe for HTML.
"""

import html
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safesynthdp.reporting.wording import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE_INCHES, NARROW_INCHES = 8.4, 4.4
PNG_DPI = 110
# Okabe and Ito's palette, darkened until each colour reads on white; marks and words say the same without colour.
BLUE, ORANGE, GREEN, RED, GREY, INK, PALE, RULE = (
    "#0072B2",
    "#B24A00",
    "#00735C",
    "#A4161A",
    "#6b7280",
    "#1f2328",
    "#e7edf3",
    "#dfe3e8",
)
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": "#9aa3ad",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
}
_TAG = re.compile(r"<[a-z][^<>]*>")
_REFERENCE = re.compile(r'(?:xlink:)?(href="#|url\(#)([^")]+)')
_TICK = f' style="fill:{INK};stroke:{INK};stroke-width:0.8"'  # of a mark whose own path says the same
Paint = Callable[["Figure"], None]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One figure: SVG for wide and narrow screens, a PNG, and the words for who cannot see them."""

    identity: str
    """Names its ids on the page, and its PNG file."""
    wide: str
    """Empty where the narrow one serves every screen."""
    narrow: str
    png: bytes
    caption: str


def draw(paint: Paint, *, height: float, identity: str, title: str, caption: str) -> Drawing:
    """Return what ``paint`` draws at both widths, as SVG elements whose ids occur nowhere else on the page.

    Args:
        paint: Draws on an empty figure; its size says which width it is.
        height: Inches.
        identity: Unique on the page.
        title: The figure in words, for who cannot see it.
        caption: Stands below it.
    """
    wide, png = _render(paint, (WIDE_INCHES, height), identity=f"{identity}-wide", title=title)
    narrow, _ = _render(paint, (NARROW_INCHES, height), identity=f"{identity}-narrow", title=title, with_png=False)
    return Drawing(identity=identity, wide=wide, narrow=narrow, png=png, caption=caption)


def draw_small(paint: Paint, *, height: float, identity: str, title: str, caption: str) -> Drawing:
    """Return one narrow figure for every screen; two of them stand side by side on a wide one."""
    narrow, png = _render(paint, (NARROW_INCHES, height), identity=identity, title=title)
    return Drawing(identity=identity, wide="", narrow=narrow, png=png, caption=caption)


def is_wide(figure: "Figure") -> bool:
    """Whether ``paint`` draws for a wide screen."""
    return bool(figure.get_size_inches()[0] > NARROW_INCHES)


def axes_by_margins(
    figure: "Figure", *, left: float, bottom: float, height: float, right: float = 0.25, labels_x: bool = True
) -> "Axes":
    """Place axes by margins in inches: a layout engine would measure every text, twice."""
    width, total = figure.get_size_inches()
    axes = figure.add_axes((left / width, bottom / total, (width - left - right) / width, height / total))
    axes.tick_params(axis="x", labelbottom=labels_x)
    axes.set_axisbelow(True)
    return axes


def _render(
    paint: Paint, size: tuple[float, float], *, identity: str, title: str, with_png: bool = True
) -> tuple[str, bytes]:
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {**_STYLE, "svg.hashsalt": identity}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size)
        paint(figure)
        text, png = io.StringIO(), io.BytesIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
        if with_png:
            figure.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": None}, facecolor="white")
    return _inline(text.getvalue(), identity=identity, title=title), png.getvalue()


def _inline(svg: str, *, identity: str, title: str) -> str:
    """Make one SVG file fit for a page: no prolog, no page-wide style, ids of its own, a title for screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = _TAG.sub(lambda tag: _short(tag[0]), svg)  # text between tags is left as it is
    used = dict.fromkeys(name for tag in _TAG.findall(svg) for _, name in _REFERENCE.findall(tag))
    names = {name: f"{identity}-{number}" for number, name in enumerate(used)}
    svg = _TAG.sub(lambda tag: _renamed(tag[0], names), svg)
    svg = re.sub(r"<defs>\s*</defs>", "", _without_bare_groups(re.sub(r"\s*\n\s*", "\n", svg)))
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    shape = box[0] if box else ""
    words = html.escape(visible(title))
    start = f'<svg {shape} role="img" aria-label="{words}">'
    return f"{start}<title>{words}</title>{body.strip()}"


def _renamed(tag: str, names: Mapping[str, str]) -> str:
    """A tag with the names that occur nowhere else on the page, and without an id that nothing refers to."""
    tag = re.sub(r' id="([^"]*)"', lambda found: f' id="{names[found[1]]}"' if found[1] in names else "", tag)
    return _REFERENCE.sub(lambda found: f"{found[1]}{names[found[2]]}", tag)


def _short(tag: str) -> str:
    """A tag without what the page's own style says, and with numbers to a tenth of a point."""
    tag = re.sub(r"font-family: [^;\"]*(; )?| transform=\"rotate\(-0 [^\"]*\"|; stroke-linecap: square", "", tag)
    tag = re.sub(r"(?<![\w#.])(-?\d+\.\d)\d+", r"\1", tag).replace(": ", ":").replace("; ", ";")
    if tag.startswith("<text"):
        tag = re.sub(rf"font-size:10px;?|;?fill:{INK}(?=[;\"])", "", tag)
    return re.sub(r' d="([^"]*)"', lambda found: f' d="{_short_path(found[1])}"', tag.replace(_TICK, ""))


def _short_path(path: str) -> str:
    """The same line in fewer letters: no point twice, and level or upright pieces with one number.

    >>> _short_path("M 0 1.5 L 2 1.5 L 2 1.5 L 4 1.5 L 4 3 L 5 6 z")
    'M0 1.5H4V3L5 6z'
    """
    kept = list[tuple[str, str, str]]()
    at = ("", "")
    for letter, words in re.findall(r"([A-Za-z])([^A-Za-z]*)", path):
        numbers = words.split()
        x, y = (numbers[-2], numbers[-1]) if len(numbers) >= 2 else ("", "")
        if letter != "L" or not at[0]:
            kept.append((letter, " ".join(numbers), ""))
        elif y == at[1] and x != at[0]:
            goes = "right" if float(x) > float(at[0]) else "left"
            if kept[-1][0] == "H" and kept[-1][2] == goes:
                kept.pop()
            kept.append(("H", x, goes))
        elif x == at[0] and y != at[1]:
            kept.append(("V", y, ""))
        elif (x, y) != at:
            kept.append(("L", f"{x} {y}", ""))
        at = (x, y)
    return "".join(f"{letter}{words}" for letter, words, _ in kept)


def _without_bare_groups(svg: str) -> str:
    """Groups without attributes group nothing; each closing tag goes with the one that opened it."""
    kept, parts = list[bool](), list[str]()
    for part in re.split(r"(</?g\b[^<>]*>\n?)", svg):
        if part.startswith("<g") and part.rstrip().endswith("/>"):
            continue
        if part.startswith("<g"):
            kept.append(part.rstrip() != "<g>")
        if not part.startswith(("<g", "</g")) or kept[-1]:
            parts.append(part)
        if part.startswith("</g"):
            kept.pop()
    return "".join(parts)
