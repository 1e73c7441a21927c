"""Of more texts than are wanted, those that together use the tokens of their label as often as was released.

Here: the choice. Elsewhere: what was released (token_targets.py), drawing the candidates (sampling.py).
Reads released numbers and drawn texts only: post-processing. Source: kernel herding, Chen, Welling and Smola (2010),
arXiv:1203.3472, on the token counts of a text, each token weighed by the variance that its sum has by chance. Shapes: N
candidates of one label, V columns of the table (word_columns.py; "tokens" here), C of them that were released for the
label and one for all others, L labels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesynthdp.generation.token_targets import Floats, TokenTargets
from safesynthdp.training.word_columns import WordColumns

Counts = Any
"""A scipy.sparse.csr_matrix, whose stubs know neither rows nor columns."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which candidates are kept, and what that changed."""

    kept: tuple[int, ...]
    """[n] their numbers: the i-th carries the i-th label of the plan."""
    distance_unselected: float
    """Mean total variation distance over the labels between the tokens of the first n candidates and the targets."""
    distance_kept: float
    """The same of the candidates that are kept."""


def select(
    tokens: Sequence[Sequence[int]],
    plan: Sequence[int],
    targets: TokenTargets,
    wanted_LV: Floats,
    *,
    are_cut: Sequence[bool] | None = None,
) -> Selection:
    """Keep, of each label, as many candidates as the plan has of it.

    Args:
        tokens: [k n] the tokens of each candidate as in training, the end of text included; candidate i has the label
            of row i mod n of the plan.
        plan: [n] label of each text that is wanted, a row of the targets.
        targets: What was released.
        wanted_LV: What the labels should use, by that.
        are_cut: [k n] which candidates did not end; None = all did.
    """
    wanted = len(plan)
    label_N = np.tile(np.asarray(plan), len(tokens) // wanted)
    counts_NV = _weighted_counts(tokens, are_cut or [False] * len(tokens), targets.columns)
    kept = np.arange(wanted)
    for row in np.unique(label_N):
        candidates = np.flatnonzero(label_N == row)
        places = np.flatnonzero(label_N[:wanted] == row)
        found = _closest(counts_NV[candidates], wanted_LV[row], targets, int(row), len(places))
        kept[places] = np.sort(candidates[found])
    first, chosen = (
        targets.distances(_sums(counts_NV, label_N, which, num_labels=len(targets.labels)), wanted_LV)
        for which in (np.arange(wanted), kept)
    )
    rows = np.unique(label_N)
    return Selection(
        kept=tuple(kept.tolist()),
        distance_unselected=float(first[rows].mean()),
        distance_kept=float(chosen[rows].mean()),
    )


def herd(counts_NC: Counts, wanted_C: Floats, weight_C: Floats, *, num_kept: int) -> list[int]:
    """Take candidates one by one, so that the sum of t of them is as close as can be to t times ``wanted_C``.

    Args:
        counts_NC: What each candidate adds.
        wanted_C: What one text should add on average.
        weight_C: Of a squared deviation.
        num_kept: At most N.

    Returns:
        The candidates, in the order in which they were taken; of equals the first.
    """
    weighted_NC = counts_NC.multiply(weight_C).tocsc()
    towards_N = weighted_NC @ wanted_C
    own_N = np.asarray(counts_NC.multiply(weighted_NC).sum(axis=1)).ravel()
    overlap_N = np.zeros(counts_NC.shape[0])  # with the sum of what was taken
    taken = list[int]()
    for number in range(1, num_kept + 1):
        best = int((2 * (overlap_N - number * towards_N) + own_N).argmin())
        taken.append(best)
        own_N[best] = math.inf
        for place in range(counts_NC.indptr[best], counts_NC.indptr[best + 1]):
            column = counts_NC.indices[place]
            span = slice(weighted_NC.indptr[column], weighted_NC.indptr[column + 1])
            overlap_N[weighted_NC.indices[span]] += counts_NC.data[place] * weighted_NC.data[span]
    return taken


def _closest(counts_NV: Counts, wanted_V: Floats, targets: TokenTargets, row: int, num_kept: int) -> list[int]:
    """Return the candidates of one label to keep; the first ones where nothing is known of it.

    Tokens that do not stand out of the noise count as one, all together.
    """
    from scipy.sparse import csr_matrix, hstack

    if not wanted_V.any() or num_kept == counts_NV.shape[0]:
        return list(range(num_kept))
    is_sure_V = targets.stands_out_LC[row]
    counts_NC = counts_NV[:, np.flatnonzero(is_sure_V)]
    others_N = counts_NV.sum(axis=1) - counts_NC.sum(axis=1)
    scale = counts_NV.sum() / counts_NV.shape[0] / wanted_V.sum()  # of the table to one text
    wanted_C = scale * np.append(wanted_V[is_sure_V], wanted_V[~is_sure_V].sum())
    size = float(counts_NV.power(2).sum() / counts_NV.sum())  # what a token adds where it occurs
    spread_V = targets.noise_std / targets.columns.weight_C
    others = math.sqrt(float(np.square(spread_V[~is_sure_V]).sum()))
    noise_C = num_kept * scale * np.append(spread_V[is_sure_V], others)
    chance_C = num_kept * wanted_C * size + size**2 + noise_C**2
    return herd(csr_matrix(hstack([counts_NC, others_N])), wanted_C, 1 / chance_C, num_kept=num_kept)


def _sums(counts_NV: Counts, label_N: NDArray[np.int64], which: NDArray[np.int64], *, num_labels: int) -> Floats:
    """Return what some of the candidates use, by label, [L, V]."""
    sums_LV = np.zeros((num_labels, counts_NV.shape[1]))
    for row in range(num_labels):
        sums_LV[row] = np.asarray(counts_NV[which[label_N[which] == row]].sum(axis=0)).ravel()
    return sums_LV


def _weighted_counts(tokens: Sequence[Sequence[int]], are_cut: Sequence[bool], columns: WordColumns) -> Counts:
    """Return the token counts of each text over their norm, as those of a record are, [N, V]."""
    from scipy.sparse import csr_matrix

    found = [columns.contribution(row, is_cut=is_cut) for row, is_cut in zip(tokens, are_cut, strict=True)]
    ends = np.cumsum([0, *(len(text.columns_U) for text in found)])
    values, places = [text.counts_U / text.norm for text in found], [text.columns_U for text in found]
    return csr_matrix((np.concatenate(values), np.concatenate(places), ends), shape=(len(tokens), columns.width))
