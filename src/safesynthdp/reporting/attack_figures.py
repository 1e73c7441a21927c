"""The ROC figure: every attack of a run on log-log axes, under the ceiling of the claim.

Here: how it is drawn. Elsewhere: the points and the ceiling (roc.py), the canvas (figures.py).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from safesynthdp.reporting.facts import Curve
from safesynthdp.reporting.figures import BLUE, GREEN, GREY, INK, ORANGE, RULE, Drawing, axes_by_margins, draw_small
from safesynthdp.reporting.roc import LOWEST_FPR, POINTS, ceiling
from safesynthdp.reporting.wording import rate_text, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CURVES = 8
HEIGHT, LINE_INCHES = 2.9, 0.18
AT = 0.01
_STYLES = [(color, dash) for dash in ("-", "--") for color in (BLUE, ORANGE, GREEN, INK)]


def draw_roc(
    curves: Sequence[Curve], *, claim: tuple[float, float] | None, channel: str, identity: str, caption: str
) -> Drawing:
    """Draw true- against false-positive rate from 1e-4, with the chance line and the ceiling of ``claim``.

    Args:
        curves: At most ``MAX_CURVES`` are drawn; the caller says which are left out.
        claim: Epsilon and delta of the release in this channel; None draws no ceiling.
        channel: Stands on the axis.
        identity: Unique on the page.
        caption: Stands below.
    """
    import numpy as np

    rates = [float(rate) for rate in np.geomspace(LOWEST_FPR, 1.0, POINTS)]
    num_names = min(len(curves), MAX_CURVES) + (1 if claim is None else 2)
    below = 0.6 + LINE_INCHES * -(-num_names // 2)

    def paint(figure: "Figure") -> None:
        axes = axes_by_margins(figure, left=0.75, bottom=below, height=HEIGHT)
        axes.plot(rates, rates, color=GREY, linewidth=1, linestyle=":", label="chance")
        if claim is not None:
            top = ceiling(rates, epsilon=claim[0], delta=claim[1])
            axes.plot(rates, top, color=GREY, linewidth=2.2, alpha=0.7, label="ceiling of the claim")
            axes.fill_between(rates, top, 2.0, color=RULE, alpha=0.45, linewidth=0)
        for found, (color, dash) in zip(curves[:MAX_CURVES], _STYLES, strict=False):
            points = [(x, y) for x, y in zip(found.fpr, found.tpr, strict=True) if y > 0]
            if points:
                axes.step(
                    *zip(*points, strict=True), where="post", color=color, linestyle=dash, linewidth=1.5,
                    label=visible(found.attack),
                )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(LOWEST_FPR, 1.05)
        axes.set_ylim(LOWEST_FPR, 1.3)
        names = ["0.01%", "0.1%", "1%", "10%", "100%"]
        axes.set_xticks([1e-4, 1e-3, 1e-2, 1e-1, 1.0], names)
        axes.set_yticks([1e-4, 1e-3, 1e-2, 1e-1, 1.0], names)
        axes.minorticks_off()
        axes.grid(color=RULE, linewidth=0.5)
        axes.set_xlabel(f"false-positive rate, of {_counts(curves)} non-members")
        axes.set_ylabel(f"true-positive rate, channel {visible(channel)}")
        axes.legend(
            fontsize=8.5, loc="upper left", bbox_to_anchor=(-0.2, -0.5 / HEIGHT), ncols=2, borderpad=0
        )  # fmt: skip

    words = "; ".join(f"{found.attack} {rate_text(at(found, AT))}" for found in curves[:MAX_CURVES])
    title = f"Share of members found at 1% false positives, channel {channel}: {words}"
    return draw_small(paint, height=HEIGHT + below + 0.1, identity=identity, title=title, caption=caption)


def _counts(curves: Sequence[Curve]) -> str:
    """Return how many non-members there are, as a range if the attacks differ."""
    counts = sorted({found.num_nonmembers for found in curves[:MAX_CURVES]}) or [0]
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def at(found: Curve, rate: float) -> float | None:
    """Return the true-positive rate at the largest drawn false-positive rate that does not pass ``rate``."""
    below = [y for x, y in zip(found.fpr, found.tpr, strict=True) if x <= rate * (1 + 1e-9)]
    return below[-1] if below else None
