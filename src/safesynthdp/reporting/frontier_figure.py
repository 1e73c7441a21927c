"""The signature figure: utility against epsilon, each run a line from what was audited to what is claimed.

Here: how it is drawn, on a logarithmic axis with two broken-off columns, since it holds neither 0 nor infinity.
Elsewhere: which runs and levels are in it (frontier.py), the canvas (figures.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safesynthdp.reporting.figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    RED,
    RULE,
    Drawing,
    axes_by_margins,
    draw,
    is_wide,
)
from safesynthdp.reporting.wording import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 4.6
ZERO, FIRST, LAST, NONE = 0.055, 0.15, 0.83, 0.935  # x of the column "0", of the log axis' ends, of "no guarantee"
APART = 0.03
BREAKS = (0.105, 0.875)
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10_000, 100_000)
COLORS = {"model": BLUE, "text": ORANGE}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One run in one channel: ``claimed`` None stands right, ``bound`` 0 left; ``bound`` None was not audited."""

    number: int
    channel: str
    utility: float
    low: float | None
    high: float | None
    claimed: float | None
    bound: float | None
    attainable: float | None
    is_refuted: bool
    is_predicted: bool = False
    """Text drawn straight from the records, without a model that was trained on them."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A log axis between two columns: from epsilon to x in [0, 1]."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> "Scale":
        """Return a scale that holds every positive value and at least 0.1 to 10."""
        positive = [value for value in values if value > 0]
        return cls(low=min([0.1, *(v / 1.5 for v in positive)]), high=max([10.0, *(v * 1.5 for v in positive)]))

    def place(self, epsilon: float | None) -> float:
        """Return x; 0 and None have columns of their own.

        >>> scale = Scale(low=0.1, high=10.0)
        >>> scale.place(0.0), scale.place(None), round(scale.place(1.0), 3)
        (0.055, 0.935, 0.49)
        """
        if epsilon is None:
            return NONE
        if epsilon <= 0:
            return ZERO
        share = math.log(epsilon / self.low) / math.log(self.high / self.low)
        return FIRST + (LAST - FIRST) * share


def draw_frontier(
    lines: Sequence[Line],
    *,
    base: tuple[float, float | None, float | None] | None,
    levels: Sequence[tuple[str, float]],
    direct: Sequence[tuple[float, float]] = (),
    identity: str,
    title: str,
    caption: str,
) -> Drawing:
    """Draw the figure.

    Args:
        lines: One a run and channel.
        base: Utility and interval of text from the untuned model, in the column "0".
        levels: Horizontal lines: name and utility.
        direct: Epsilon and utility of classifiers trained with DP on the records themselves.
        identity: Unique on the page.
        title: The figure in words.
        caption: Stands below.
    """
    values = [v for line in lines for v in (line.claimed, line.bound, line.attainable) if v is not None]
    scale = Scale.over(values)
    bottom, top = _range(lines, base, [value for _, value in (*levels, *direct)])

    def paint(figure: "Figure") -> None:
        wide = is_wide(figure)
        below = 1.2 if wide else 1.6 + 0.17 * -(-len(levels) // 2)
        axes = axes_by_margins(
            figure, left=0.62, bottom=below, height=HEIGHT - below - 0.15, right=1.95 if wide else 0.3
        )
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom, top)
        _paint_frame(axes, scale, wide=wide)
        _paint_levels(axes, levels, span=top - bottom, wide=wide)
        if base is not None:
            _paint_point(axes, ZERO, base, color=GREY, mark="D")
        for epsilon, value in direct:
            axes.plot([scale.place(epsilon)], [value], marker="^", ms=7, mfc="white", mec=GREY, mew=1.4, zorder=3)
        is_alone = len({one.number for one in lines}) == 1
        for index, line in enumerate(lines):
            before = sum(one.number == line.number for one in lines[:index])
            apart = -APART * before * (top - bottom)  # two channels of one run would hide one another
            _paint_line(axes, line, scale, y=line.utility + apart, is_alone=is_alone, is_first=before == 0)
        _paint_legend(axes, lines, has_base=base is not None, has_direct=bool(direct), wide=wide)

    return draw(paint, height=HEIGHT, identity=identity, title=title, caption=caption)


def _range(
    lines: Sequence[Line], base: tuple[float, float | None, float | None] | None, others: Sequence[float]
) -> tuple[float, float]:
    ends = [value for line in lines for value in (line.utility, line.low, line.high) if value is not None]
    ends += [value for value in base or () if value is not None] + list(others)
    pad = max(0.02, 0.12 * (max(ends) - min(ends)))
    return max(-0.02, min(ends) - pad), min(1.04, max(ends) + pad)


def _paint_frame(axes: "Axes", scale: Scale, *, wide: bool) -> None:
    """Three pieces of one axis, with the usual slashes where it is broken."""
    ticks = [tick for tick in TICKS if scale.low <= tick <= scale.high]
    while len(ticks) > (9 if wide else 5):
        ticks = ticks[::2]
    none = "no formal\nguarantee" if wide else "none"
    axes.set_xticks([ZERO, *(scale.place(t) for t in ticks), NONE], ["0", *(f"{t:g}" for t in ticks), none])
    axes.grid(color=RULE, linewidth=0.6)
    axes.axvspan(0, BREAKS[0], color=PALE, zorder=0, linewidth=0)
    axes.axvspan(BREAKS[1], 1, color=PALE, zorder=0, linewidth=0)
    for x in BREAKS:
        axes.plot(
            [x - 0.006, x + 0.006], [-0.018, 0.018], transform=axes.transAxes, clip_on=False, color=INK, linewidth=1
        )
        axes.plot(
            [x + 0.006, x + 0.018], [-0.018, 0.018], transform=axes.transAxes, clip_on=False, color=INK, linewidth=1
        )
    axes.set_xlabel("epsilon per unit (log scale, broken at both ends)")
    axes.set_ylabel("utility: accuracy")


def _paint_levels(axes: "Axes", levels: Sequence[tuple[str, float]], *, span: float, wide: bool) -> None:
    """Name each line beside it, or by a letter and below; names that would overlap move apart."""
    gap, placed = span * (0.062 if wide else 0.075), -math.inf
    ordered = sorted(levels, key=lambda level: level[1])
    for letter, (name, value) in zip("abcdefghij", ordered, strict=False):
        axes.axhline(value, color=GREY, linewidth=1.1, linestyle=(0, (5, 3)), zorder=1)
        placed = max(value, placed + gap)
        axes.annotate(
            f"{visible(name)} {value:.3f}" if wide else letter, (1.0, value), xytext=(1.025, placed),
            textcoords=("axes fraction", "data"), fontsize=9, va="center", annotation_clip=False, color=INK,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6},
        )  # fmt: skip
    if not wide:
        for number, (letter, (name, value)) in enumerate(zip("abcdefghij", ordered, strict=False)):
            x, y = 0.1 + 2.15 * (number % 2), 0.08 + 0.17 * (-(-len(ordered) // 2) - 1 - number // 2)
            axes.figure.text(x / 4.4, y / HEIGHT, f"{letter}  {visible(name)} {value:.3f}", fontsize=8.5)


def _paint_line(axes: "Axes", line: Line, scale: Scale, *, y: float, is_alone: bool, is_first: bool) -> None:
    color = RED if line.is_refuted else COLORS.get(line.channel, GREEN)
    end = scale.place(line.claimed)
    if line.bound is not None:
        start = scale.place(line.bound)
        axes.plot((start, end), (y, y), color=color, linewidth=2, zorder=3, solid_capstyle="butt")
        if line.attainable is not None:
            reach = scale.place(line.attainable)
            if is_alone and reach > max(start, end):
                axes.plot((max(start, end), reach), (y, y), color=color, linewidth=1, linestyle=":", zorder=2)
            axes.plot([reach], [y], marker="|", ms=15, mew=2, color=color, zorder=4)
        mark = "X" if line.is_refuted else "o"
        axes.plot([start], [y], marker=mark, ms=11 if line.is_refuted else 9, mfc="white", mec=color, mew=1.8, zorder=5)
    low, high = (line.low, line.high) if is_first else (None, None)
    _paint_point(axes, end, (y, low, high), color=color, mark="s" if line.is_predicted else "o")
    if line.is_refuted:
        words = f"REFUTED: at least {line.bound:.3g}, claimed {line.claimed:.3g}" if line.claimed else "REFUTED"
        axes.annotate(
            words, (end, y), xytext=(0, -27), textcoords="offset points", ha="center" if end < 0.5 else "right",
            fontsize=9, color=RED, fontweight="bold", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
            zorder=7,
        )  # fmt: skip
    if not is_alone:
        axes.annotate(
            str(line.number), (end, y), xytext=(7, 4 if line.number % 2 == 0 else -11), textcoords="offset points",
            fontsize=8.5, fontweight="bold", color=color, zorder=7,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.7, "alpha": 0.85},
        )  # fmt: skip


def _paint_point(
    axes: "Axes", x: float, value: tuple[float, float | None, float | None], *, color: str, mark: str
) -> None:
    y, low, high = value
    if low is not None and high is not None:
        axes.plot((x, x), (low, high), color=color, linewidth=1.6, zorder=4)
    axes.plot([x], [y], marker=mark, ms=8, color=color, zorder=6, mec="white", mew=0.8)


def _paint_legend(axes: "Axes", lines: Sequence[Line], *, has_base: bool, has_direct: bool, wide: bool) -> None:
    from matplotlib.lines import Line2D

    def mark(marker: str, name: str, color: str = INK, *, is_open: bool = False) -> Line2D:
        face = "white" if is_open else color
        return Line2D([], [], linestyle="none", marker=marker, ms=8, mec=color, mfc=face, mew=1.6, label=name)

    is_audited = any(line.bound is not None for line in lines)
    found = [mark("o", "claimed epsilon")]
    found += [mark("s", "of private prediction")] if any(line.is_predicted for line in lines) else []
    found += [mark("o", "audited: at least", is_open=True)] if is_audited else []
    found += [mark("|", "most an audit could show")] if any(line.attainable is not None for line in lines) else []
    found += [mark("D", "untuned model", GREY)] if has_base else []
    found += [mark("^", "DP classifier", GREY, is_open=True)] if has_direct else []
    found += [mark("X", "refuted", RED, is_open=True)] if any(line.is_refuted for line in lines) else []
    channels = [name for name in COLORS if any(line.channel == name for line in lines)]
    if len(channels) > 1:
        found += [Line2D([], [], color=COLORS[name], linewidth=2, label=f"channel: {name}") for name in channels]
    axes.legend(
        handles=found, loc="upper left", bbox_to_anchor=(-0.06, -0.2) if wide else (-0.17, -0.26),
        ncols=5 if wide else 2, fontsize=8.5, handletextpad=0.4, columnspacing=1.1,
    )  # fmt: skip
