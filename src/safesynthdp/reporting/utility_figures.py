"""Figures of one run: utility by training set, recall by label, lengths, training progress.

Here: how they are drawn. Elsewhere: the canvas (figures.py) and which numbers go in (tables.py, page.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safesynthdp.reporting.facts import Step
from safesynthdp.reporting.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    RULE,
    Drawing,
    axes_by_margins,
    draw,
    draw_small,
)
from safesynthdp.reporting.wording import rate_text, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES = 1.6
MAX_STEPS_DRAWN = 80
LENGTH_BINS = 30
_STYLES = ((BLUE, "-", 1.8), (GREY, "--", 1.4), (ORANGE, ":", 1.8))
_MARKS = (("o", BLUE, 7), ("D", GREY, 5), ("s", ORANGE, 5), ("^", GREEN, 6))


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One row of the utility figure. ``others`` are the same number under the other classifiers."""

    name: str
    value: float
    low: float | None
    high: float | None
    others: tuple[float, ...]
    is_synthetic: bool


def draw_utility(
    bars: Sequence[Bar], *, band: tuple[float, float] | None, identity: str, caption: str, is_small: bool = False
) -> Drawing:
    """Draw accuracy, one row a training set, with interval bars; ``band`` spans floor to ceiling."""
    words = "; ".join(f"{bar.name} {rate_text(bar.value)}" for bar in bars)
    height = 0.85 + 0.42 * len(bars)
    margin = _margin([bar.name for bar in bars])

    def paint(figure: "Figure") -> None:
        axes = axes_by_margins(figure, left=margin, bottom=0.5, height=height - 0.55)
        if band is not None:
            axes.axvspan(*band, color=PALE, zorder=0, linewidth=0)
        for row, bar in enumerate(reversed(bars)):
            _paint_bar(axes, row, bar)
        _rows(axes, [bar.name for bar in bars])
        axes.set_xlabel("accuracy")

    title = f"Accuracy by training set: {words}"
    return (draw_small if is_small else draw)(paint, height=height, identity=identity, title=title, caption=caption)


def draw_recall(
    labels: Sequence[str],
    series: Mapping[str, Mapping[str, tuple[float, float | None, float | None]]],
    *,
    identity: str,
    caption: str,
) -> Drawing:
    """Draw recall, one row a label, one mark a training set, with its interval."""
    height = 1.15 + 0.36 * len(labels)
    parts = [f"{label}: {', '.join(_spoken(series, label))}" for label in labels]

    def paint(figure: "Figure") -> None:
        axes = axes_by_margins(figure, left=_margin(labels, most=1.8), bottom=0.85, height=height - 0.95)
        shifts = [0.14 * (index - (len(series) - 1) / 2) for index in range(len(series))]
        for (name, values), shift, (mark, color, size) in zip(series.items(), shifts, _MARKS, strict=False):
            points = [(values[label], row - shift) for row, label in enumerate(reversed(labels)) if label in values]
            for (_, low, high), height_ in points:
                if low is not None and high is not None:
                    axes.plot((low, high), (height_, height_), color=color, linewidth=1.2)
            xs, ys = [value[0] for value, _ in points], [height_ for _, height_ in points]
            axes.plot(xs, ys, linestyle="none", marker=mark, color=color, ms=size, label=visible(name))
        _rows(axes, labels, longest=20)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel("recall")
        below = -0.42 / (height - 0.95)
        axes.legend(loc="upper right", bbox_to_anchor=(1.05, below), ncols=2, fontsize=8.5, columnspacing=1.0)

    title = f"Recall by label: {'; '.join(parts)}"
    return draw_small(paint, height=height, identity=identity, title=title, caption=caption)


def draw_lengths(series: Mapping[str, Sequence[int]], *, identity: str, caption: str) -> Drawing:
    """Draw the share of texts by number of words, one line a set, in common bins up to the longest 1 %."""
    import numpy as np

    drawn = {name: np.asarray(lengths) for name, lengths in series.items() if len(lengths)}
    top = max(8.0, max(float(np.quantile(lengths, 0.99)) for lengths in drawn.values()))
    width = -(-(int(np.ceil(top)) + 1) // LENGTH_BINS)  # whole words: no bin holds more counts than another
    edges = np.arange(0, np.ceil(top) + 1 + width, width)

    def paint(figure: "Figure") -> None:
        axes = axes_by_margins(figure, left=0.65, bottom=0.5, height=2.0)
        for (name, lengths), (color, dash, width) in zip(drawn.items(), _STYLES, strict=False):
            counts, _ = np.histogram(np.minimum(lengths, edges[-1] - 1), bins=edges)
            shares = counts / len(lengths)
            axes.stairs(shares, edges, label=visible(name), color=color, linestyle=dash, linewidth=width)
        axes.set_xlabel(f"words (longer than {int(edges[-1]) - 1}: last bin)")
        axes.set_ylabel("share of texts")
        axes.set_ylim(bottom=0)
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.14, 1.0), ncols=3, fontsize=8.5, columnspacing=1.0, borderpad=0
        )

    words = "; ".join(f"{name}: median {np.median(lengths):.0f} words" for name, lengths in drawn.items())
    return draw_small(paint, height=2.8, identity=identity, title=f"Lengths. {words}", caption=caption)


def draw_progress(steps: Sequence[Step], *, identity: str, caption: str) -> Drawing:
    """Draw loss and share of clipped records by step."""
    every = -(-len(steps) // MAX_STEPS_DRAWN) or 1
    series = {
        "mean loss": [(s.step, s.loss) for s in steps[::every] if s.loss is not None],
        "share clipped": [(s.step, s.clip_share) for s in steps[::every] if s.clip_share is not None],
    }
    drawn = {name: points for name, points in series.items() if points}
    height = PANEL_INCHES * len(drawn) + 0.5

    def paint(figure: "Figure") -> None:
        for index, (name, points) in enumerate(drawn.items()):
            is_last = index == len(drawn) - 1
            bottom = 0.5 + PANEL_INCHES * (len(drawn) - 1 - index)
            axes = axes_by_margins(figure, left=0.75, bottom=bottom, height=PANEL_INCHES - 0.35, labels_x=is_last)
            mark = "o" if len(points) <= 20 else ""
            axes.plot(*zip(*points, strict=True), color=(BLUE, ORANGE)[index], linewidth=1.4, marker=mark, ms=2.5)
            axes.set_ylabel(name)
            axes.grid(axis="y", color=RULE, linewidth=0.6)
            if is_last:
                axes.set_xlabel("step")

    words = "; ".join(f"{name} from {rate_text(p[0][1])} to {rate_text(p[-1][1])}" for name, p in drawn.items())
    return draw_small(paint, height=height, identity=identity, title=f"By step: {words}", caption=caption)


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


def _rows(axes: "Axes", names: Sequence[str], *, longest: int = 40) -> None:
    """Name the rows, the first on top, and rule the columns."""
    shown = [visible(name if len(name) <= longest else f"{name[: longest - 3]}...") for name in reversed(names)]
    axes.set_yticks(range(len(names)), shown)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=RULE, linewidth=0.6)


def _margin(names: Sequence[str], *, most: float = 2.6) -> float:
    return min(most, 0.25 + 0.078 * max(len(name) for name in names))


def _spoken(series: Mapping[str, Mapping[str, tuple[float, float | None, float | None]]], label: str) -> list[str]:
    return [f"{name} {rate_text(values[label][0])}" for name, values in series.items() if label in values]
