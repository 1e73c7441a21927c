"""Figures as inline SVG: the same bytes for the same numbers, no script, nothing fetched.

Here: utility between floor and ceiling, and training progress. Elsewhere: which numbers go in (tables.py, page.py).
Every figure comes twice, for a wide and for a narrow screen, since text in a shrunk drawing cannot be read; the style
sheet shows one. Only what ``draw`` returns is ever marked safe for HTML.
"""

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safesynthdp.reporting.facts import Step
from safesynthdp.reporting.wording import rate_text, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE_INCHES, NARROW_INCHES, PANEL_INCHES = 8.4, 4.4, 1.6
BLUE, ORANGE, GREY, INK, PALE = (
    "#0072B2",
    "#B24A00",
    "#6b7280",
    "#1f2328",
    "#e7edf3",
)  # told apart without colour vision
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
}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One figure: two SVG elements and the words for who cannot see them."""

    wide: str
    narrow: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One row of the utility figure. ``others`` are the same number under the other classifiers."""

    name: str
    value: float
    low: float | None
    high: float | None
    others: tuple[float, ...]
    is_synthetic: bool


def draw_utility(bars: Sequence[Bar], *, band: tuple[float, float] | None, identity: str, caption: str) -> Drawing:
    """Draw accuracy, one row a training set, with interval bars; ``band`` spans floor to ceiling."""
    words = "; ".join(f"{bar.name} {rate_text(bar.value)}" for bar in bars)
    height = 0.85 + 0.42 * len(bars)

    margin = min(2.6, 0.25 + 0.072 * max(len(bar.name) for bar in bars))

    def paint(figure: "Figure") -> None:
        axes = _axes(figure, left=margin, bottom=0.5, height=height - 0.55)
        if band is not None:
            axes.axvspan(*band, color=PALE, zorder=0, linewidth=0)
        for row, bar in enumerate(reversed(bars)):
            _paint_bar(axes, row, bar)
        axes.set_yticks(range(len(bars)), [visible(bar.name) for bar in reversed(bars)])
        axes.set_ylim(-0.6, len(bars) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color="#dfe3e8", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel("accuracy")

    return draw(paint, height=height, identity=identity, title=f"Accuracy by training set: {words}", caption=caption)


def draw_progress(steps: Sequence[Step], *, identity: str, caption: str) -> Drawing:
    """Draw loss and share of clipped records by step."""
    series = {
        "mean loss": [(s.step, s.loss) for s in steps if s.loss is not None],
        "share clipped": [(s.step, s.clip_share) for s in steps if s.clip_share is not None],
    }
    drawn = {name: points for name, points in series.items() if points}

    height = PANEL_INCHES * len(drawn) + 0.5

    def paint(figure: "Figure") -> None:
        for index, (name, points) in enumerate(drawn.items()):
            bottom = 0.5 + PANEL_INCHES * (len(drawn) - 1 - index)
            axes = _axes(figure, left=0.75, bottom=bottom, height=PANEL_INCHES - 0.35)
            mark = "o" if len(points) < 60 else ""
            axes.plot(*zip(*points, strict=True), color=(BLUE, ORANGE)[index], linewidth=1.4, marker=mark, ms=2.5)
            axes.set_ylabel(name)
            axes.grid(axis="y", color="#dfe3e8", linewidth=0.6)
            if index == len(drawn) - 1:
                axes.set_xlabel("step")

    words = "; ".join(f"{name} from {rate_text(p[0][1])} to {rate_text(p[-1][1])}" for name, p in drawn.items())
    return draw(paint, height=height, identity=identity, title=f"By step: {words}", caption=caption)


def draw(paint: Callable[["Figure"], None], *, height: float, identity: str, title: str, caption: str) -> Drawing:
    """Return what ``paint`` draws at both widths, as SVG elements whose ids occur nowhere else on the page."""
    return Drawing(
        wide=_svg(paint, (WIDE_INCHES, height), identity=f"{identity}-wide", title=title),
        narrow=_svg(paint, (NARROW_INCHES, height), identity=f"{identity}-narrow", title=title),
        caption=caption,
    )


def _axes(figure: "Figure", *, left: float, bottom: float, height: float) -> "Axes":
    """Place axes by margins in inches: a layout engine would measure every text, twice."""
    width, total = figure.get_size_inches()
    return figure.add_axes((left / width, bottom / total, (width - left - 0.25) / width, height / total))


def _paint_bar(axes: "Axes", row: int, bar: Bar) -> None:
    color = BLUE if bar.is_synthetic else GREY
    axes.plot(bar.others, [row] * len(bar.others), linestyle="none", marker="|", ms=9, color=color, alpha=0.55)
    if bar.low is not None and bar.high is not None:
        axes.plot((bar.low, bar.high), (row, row), color=color, linewidth=2.6 if bar.is_synthetic else 1.4)
    axes.plot([bar.value], [row], marker="o" if bar.is_synthetic else "D", ms=8 if bar.is_synthetic else 5, color=color)
    weight = "bold" if bar.is_synthetic else "normal"
    axes.annotate(
        rate_text(bar.value), (bar.value, row), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=9,
        fontweight=weight,
    )  # fmt: skip


def _svg(paint: Callable[["Figure"], None], size: tuple[float, float], *, identity: str, title: str) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {**_STYLE, "svg.hashsalt": identity}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size)
        paint(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return _inline(text.getvalue(), identity=identity, title=title)


def _inline(svg: str, *, identity: str, title: str) -> str:
    """Make one SVG file fit for a page: no prolog, no page-wide style, ids of its own, a title for screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{identity}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{identity}-", svg)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    shape = box[0] if box else ""
    words = html.escape(visible(title))
    start = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {shape} role="img" aria-label="{words}">'
    return f"{start}<title>{words}</title>{body.strip()}"
