"""The area under a ROC curve, with an interval that knows copies.

Here: AUC and its variance. Elsewhere: the classifiers whose scores it judges (c2st.py, control.py). Sources: DeLong et
al. (1988), Biometrics 44:837, for the variance; Obuchowski (1997), Biometrics 53:567, for clusters. Shapes: N scores, M
positives.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from safesynthdp.evaluation.intervals import wilson
from safesynthdp.evaluation.rows import LEVEL

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Auc:
    """An area under a ROC curve and its interval."""

    value: float
    low: float
    high: float
    num_tested: int
    """Texts in the half that was judged, both sides together."""


def area(scores_N: Floats, is_positive: NDArray[np.bool_], cluster_N: Ints) -> Auc:
    """Return the Mann-Whitney AUC with the clustered DeLong interval, on the logit scale.

    The components of a text and of its copies are added before they are squared, on both sides together; without
    copies this is DeLong's variance. An AUC of 0 or 1 has no such variance: Wilson's interval at the number of distinct
    texts of the smaller side then stands in.
    """
    positive_M, negative = scores_N[is_positive], scores_N[~is_positive]
    above_M, below = _share_below(positive_M, negative), 1 - _share_below(negative, positive_M)
    value = float(above_M.mean())
    parts = np.zeros(len(scores_N))
    parts[is_positive] = (above_M - value) / len(positive_M)
    parts[~is_positive] = (below - value) / len(negative)
    names, cluster_N = np.unique(cluster_N, return_inverse=True)
    variance = float((np.bincount(cluster_N, weights=parts, minlength=len(names)) ** 2).sum())
    witnesses = min(len(np.unique(cluster_N[is_positive])), len(np.unique(cluster_N[~is_positive])))
    low, high = _interval(value, math.sqrt(variance * len(names) / max(len(names) - 1, 1)), witnesses)
    return Auc(value=value, low=low, high=high, num_tested=len(scores_N))


def _interval(value: float, error: float, witnesses: int) -> tuple[float, float]:
    if not error or min(value, 1 - value) * witnesses < 1:  # all scores tied, or next to 0 or 1: no normal curve
        return wilson(value * witnesses, witnesses)
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * error / (value * (1 - value))
    centre = math.log(value / (1 - value))
    return 1 / (1 + math.exp(half - centre)), 1 / (1 + math.exp(-half - centre))


def _share_below(scores: Floats, others: Floats) -> Floats:
    """Return for each score the share of the others below it; ties count half."""
    others = np.sort(others)
    return (np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")) / (2 * len(others))
