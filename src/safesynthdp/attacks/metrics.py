"""How well a score tells members from non-members.

Here: AUC, its DeLong interval, and the true-positive rate at a fixed false-positive rate. Elsewhere: what follows for
epsilon (bounds.py). Source: DeLong et al. (1988) through placements; Carlini et al. (2022) for the low false-positive
end. Convention: a higher score is more member-like. numpy and scipy.special only.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from safesynthdp.errors import DataError

Scores = NDArray[np.float64]
REPORTED_FPR = ("0.1", "0.01", "0.001")
MIN_NONMEMBERS = {"0.001": 5000}
"""Below this many non-members the rate would rest on a handful of false positives, so it is not given."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How well one attack tells the two sides apart."""

    auc: float
    auc_interval: tuple[float, float]
    tpr_at_fpr: dict[str, float | None]
    """By reported false-positive rate; None with too few non-members."""


def auc(members: Scores, nonmembers: Scores) -> float:
    """Return ``P[member > non-member] + P[equal] / 2`` over all pairs (Mann-Whitney).

    Raises:
        DataError: If a side is empty or holds a score that is not finite.
    """
    _check(members, nonmembers)
    return float(_placements(members, nonmembers).mean())


def delong_interval(members: Scores, nonmembers: Scores, *, alpha: float) -> tuple[float, float]:
    """Return the normal interval of the AUC at level ``1 - alpha``, cut to [0, 1].

    Zero variance gives an interval of zero width. With a single record on a side the variance is not known, and the
    interval is [0, 1].
    """
    _check(members, nonmembers)
    return _interval(_placements(members, nonmembers), 1.0 - _placements(nonmembers, members), alpha=alpha)


def _interval(of_members: Scores, of_nonmembers: Scores, *, alpha: float) -> tuple[float, float]:
    """Return DeLong's interval from the placements of each side among the other."""
    if min(of_members.size, of_nonmembers.size) < 2:
        return 0.0, 1.0
    variance = of_members.var(ddof=1) / of_members.size + of_nonmembers.var(ddof=1) / of_nonmembers.size
    half = float(ndtri(1 - alpha / 2)) * math.sqrt(variance)
    middle = float(of_members.mean())
    return max(0.0, middle - half), min(1.0, middle + half)


def measure(members: Scores, nonmembers: Scores, *, alpha: float) -> "Measured":
    """Return AUC, its interval and the reported rates at once: each side is sorted once.

    Raises:
        DataError: If a side is empty or holds a score that is not finite.
    """
    _check(members, nonmembers)
    members, nonmembers = np.sort(members), np.sort(nonmembers)
    rates = {
        fpr: _rate(members, nonmembers, float(fpr)) if nonmembers.size >= MIN_NONMEMBERS.get(fpr, 0) else None
        for fpr in REPORTED_FPR
    }
    of_members = _placements(members, nonmembers, is_sorted=True)
    interval = _interval(of_members, 1.0 - _placements(nonmembers, members, is_sorted=True), alpha=alpha)
    return Measured(auc=float(of_members.mean()), auc_interval=interval, tpr_at_fpr=rates)


def tpr_at_fpr(members: Scores, nonmembers: Scores, fpr: float) -> float:
    """Return the share of members strictly above the ``(floor(fpr n0) + 1)``-th largest of the n0 non-members.

    The conservative step rule: no interpolation, and all scores equal give 0.
    """
    _check(members, nonmembers)
    return _rate(np.sort(members), np.sort(nonmembers), fpr)


def tpr_table(members: Scores, nonmembers: Scores) -> dict[str, float | None]:
    """Return the TPR at each reported FPR; None where there are too few non-members to say."""
    return {
        fpr: tpr_at_fpr(members, nonmembers, float(fpr)) if nonmembers.size >= MIN_NONMEMBERS.get(fpr, 0) else None
        for fpr in REPORTED_FPR
    }


def _rate(members: Scores, nonmembers: Scores, fpr: float) -> float:
    """Return the rate of sorted scores at ``fpr``."""
    rank = math.floor(fpr * nonmembers.size + 1e-9) + 1
    if rank > nonmembers.size:
        return 1.0
    threshold = nonmembers[nonmembers.size - rank]
    return float((members.size - np.searchsorted(members, threshold, side="right")) / members.size)


def _placements(of: Scores, among: Scores, *, is_sorted: bool = False) -> Scores:
    """Return, for each score, the share of ``among`` below it, ties counted half."""
    ordered = among if is_sorted else np.sort(among)
    below = np.searchsorted(ordered, of, side="left")
    not_above = np.searchsorted(ordered, of, side="right")
    shares: Scores = (below + not_above) / (2.0 * among.size)
    return shares


def _check(members: Scores, nonmembers: Scores) -> None:
    if not members.size or not nonmembers.size:
        raise DataError(f"{members.size} members and {nonmembers.size} non-members; both sides need a record")
    if not (np.isfinite(members).all() and np.isfinite(nonmembers).all()):
        raise DataError("a score is NaN or infinite; nothing is dropped, so fix the signal that made it")
