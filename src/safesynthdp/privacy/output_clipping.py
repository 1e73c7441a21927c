"""What one shard may do to the scores of a step, bounded; all in float64.

Here: clip, then average over a public number of shards. Elsewhere: the noise (output_mechanisms.py), the candidates
(output_draws.py). Shapes: R rows of private logits that are present, K candidates.

Guarantee:
    Row i enters through a function of (row i, public logits) alone, whose coordinates lie in [-C, C] (or whose L2 norm
    is at most C, or which is a probability vector), divided by ``shards``. No statistic of the batch, no noise and no
    number of rows present reaches it. A row that is not finite adds nothing.
"""

import numpy as np

from safesynthdp.errors import ConfigError
from safesynthdp.privacy.output_draws import Floats, softmax

_MARGIN = 1 - 1e-12  # of an L2 norm, for the rounding of the scaling


def clipped_mean(
    private_RK: Floats, public_K: Floats | None, *, clip: float, shards: int, recentre: bool = False
) -> Floats:
    """Return [K] scores ``public + sum_i clip(private_i - public, -C, C) / S``.

    With ``recentre`` they are ``sum_i max(-C, private_i - max(private_i) + C) / S``: no public logits enter.
    """
    if recentre:
        return np.asarray(_recentred(_numbers(private_RK), clip).sum(axis=0) / shards)
    public = _needed(public_K)
    return np.asarray(public + np.clip(_differences(private_RK, public), -clip, clip).sum(axis=0) / shards)


def clipped_mean_l2(
    private_RK: Floats, public_K: Floats | None, *, clip: float, shards: int, recentre: bool = False
) -> Floats:
    """Return [K] scores ``public + sum_i d_i min(1, C / |d_i|) / S``, ``d_i`` the difference from the public logits.

    With ``recentre``, ``d_i`` is the row less its own mean, and no public logits enter.
    """
    if recentre:
        rows_RK = np.maximum(_numbers(private_RK), np.finfo(np.float32).min)
        return np.asarray(_scaled(rows_RK - rows_RK.mean(axis=1, keepdims=True), clip).sum(axis=0) / shards)
    public = _needed(public_K)
    return np.asarray(public + _scaled(_differences(private_RK, public), clip).sum(axis=0) / shards)


def mean_probabilities(private_RK: Floats, public_K: Floats | None, *, shards: int) -> Floats:
    """Return [K] ``p_public + sum_i (p_i - p_public) / S``: a missing prompt counts as the public vector."""
    total_K, present = np.zeros(private_RK.shape[1]), 0
    for row_K in private_RK:  # one at a time: a vocabulary stays in the processor's cache, all rows together do not
        largest = row_K.max()
        if np.isfinite(largest):
            weights_K = np.subtract(row_K, largest, dtype=np.float64)
            np.exp(weights_K, out=weights_K)
            weights_K /= weights_K.sum()
            total_K += weights_K
            present += 1
    if public_K is None:
        if present != shards:
            raise ConfigError(f"shards={shards}: {present} rows are usable and no public model stands in")
        return np.asarray(total_K / shards)
    return np.asarray((1 - present / shards) * softmax(public_K) + total_K / shards)


def _differences(private_RK: Floats, public_K: Floats) -> Floats:
    """Return the differences; one that is not finite counts as 0."""
    with np.errstate(invalid="ignore"):
        differences_RK = private_RK.astype(np.float64) - public_K
    return np.where(np.isfinite(differences_RK), differences_RK, 0.0)


def _numbers(private_RK: Floats) -> Floats:
    """Return the rows that hold a finite largest logit; minus infinity is a logit, NaN is not."""
    wide_RK = private_RK.astype(np.float64)
    return wide_RK[np.isfinite(wide_RK.max(axis=1))] if len(wide_RK) else wide_RK


def _recentred(rows_RK: Floats, clip: float) -> Floats:
    if not len(rows_RK):
        return rows_RK
    return np.asarray(np.maximum(-clip, rows_RK - rows_RK.max(axis=1, keepdims=True) + clip))


def _scaled(rows_RK: Floats, clip: float) -> Floats:
    norms_R1 = np.sqrt(np.square(rows_RK).sum(axis=1, keepdims=True))
    return np.asarray(rows_RK * (clip * _MARGIN / np.maximum(norms_R1, clip * _MARGIN)))


def _needed(public_K: Floats | None) -> Floats:
    if public_K is None:
        raise ConfigError("clip_rule=difference needs a public model; use recentre where there is none")
    return public_K
