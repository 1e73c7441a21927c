"""Attacks that compare a target with reference models trained with and without the record.

Here: LiRA (shrunken, per-record or global variance; online and offline), t-mid, RMIA in log space, exposure. Pure
functions of arrays. Elsewhere: which models are references of which target (pool_scores.py), the signals
(signals.py), bounds (bounds.py). Sources: Carlini et al. (2022), arXiv:2112.03570 (LiRA); Zarifzadeh et al. (2024),
arXiv:2312.03262 (RMIA); Carlini et al. (2019), arXiv:1802.08232 (exposure). Shapes: K references, R records. All
scores: higher is more member-like, float64.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, logsumexp

from safesynthdp.errors import ConfigError, SafeSynthError

Variance = Literal["shrunk", "per_record", "global"]
VARIANCES: tuple[Variance, ...] = ("shrunk", "per_record", "global")
PRIOR_WEIGHT = 8
"""Degrees of freedom that the mean variance of all records weighs against a record's own."""
MIN_CANDIDATES = 1024
"""R of an exposure, the canary among them: fewer cannot show ten bits."""
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """How far a canary stands out among fresh candidates of its format."""

    bits: float
    """``log2 R - log2 rank``; at most log2 R."""
    p_value: float
    """``rank / R``: exact if canary and candidates are exchangeable without a leak."""
    rank: int
    """1 is the most member-like; a candidate with an equal score counts as ahead."""


def lira(target_R: Floats, references_KR: Floats, is_in_KR: Bools, *, variance: Variance = "shrunk") -> Floats:
    """Return the log likelihood ratio of two normals, ``log N(t; m_in, v_in) - log N(t; m_out, v_out)``.

    ``shrunk``: with s2 the pooled unbiased variance of the record over ``nu = K_in + K_out - 2`` and g2 its mean over
    records, ``v = (nu s2 + 8 g2) / (nu + 8)``, times ``1 + 1/K`` for the uncertain mean of each side. ``global``: v =
    g2. ``per_record``: each side its own variance (ddof 1), no factor.

    Args:
        target_R: [R] signal of the target.
        references_KR: [K, R] the same of the references.
        is_in_KR: [K, R] which references had the record.
        variance: How the spread of a record is estimated.

    Raises:
        ConfigError: If a record has fewer than two references on a side.
        SafeSynthError: If a variance is zero.
    """
    sides = [_side(references_KR, here) for here in (is_in_KR, ~is_in_KR)]
    least = min(int(count.min(initial=2)) for count, _, _ in sides)
    if least < 2:
        raise ConfigError(f"attack=lira: a record has {least} references on one side; give two, so at least 6 models")
    spreads = _spreads(sides, variance)
    (_, mean_in, _), (_, mean_out, _) = sides
    return _log_normal(target_R, mean_in, spreads[0]) - _log_normal(target_R, mean_out, spreads[1])


def lira_offline(target_R: Floats, references_KR: Floats, is_in_KR: Bools, *, variance: Variance = "shrunk") -> Floats:
    """Return ``log Phi((t - m_out) / sd)`` from the references without the record.

    One-sided: of a two-sided density a very low score, which is no member's, would come out as unlikely to be OUT.
    ``sd`` as in ``lira``, from the OUT side alone.

    Raises:
        ConfigError: If a record has fewer than two references without it.
        SafeSynthError: If a variance is zero.
    """
    side = _side(references_KR, ~is_in_KR)
    if (least := int(side[0].min(initial=2))) < 2:
        raise ConfigError(f"attack=lira_offline: a record has {least} references without it; it needs two")
    scores: Floats = log_ndtr((target_R - side[1]) / np.sqrt(_spreads([side], variance)[0]))
    return scores


def t_mid(target_R: Floats, references_KR: Floats, is_in_KR: Bools) -> Floats:
    """Return ``t - (m_in + m_out) / 2``; the best attack where all records leak alike."""
    means = [_side(references_KR, here)[1] for here in (is_in_KR, ~is_in_KR)]
    scores: Floats = target_R - (means[0] + means[1]) / 2
    return scores


def log_rmia(target_R: Floats, references_KR: Floats, *, is_used_KR: Bools | None = None) -> Floats:
    """Return ``r(x) = lp_t - logmeanexp(lp_refs)`` over sums of log-probabilities, without leaving log space.

    Args:
        target_R: [R] sums of log-probabilities, lp.
        references_KR: [K, R] the same of the references.
        is_used_KR: [K, R] which references count for a record (offline: those without it); None = all.
    """
    if is_used_KR is None:
        of_all: Floats = target_R - (logsumexp(references_KR, axis=0) - math.log(len(references_KR)))
        return of_all
    used = np.where(is_used_KR, references_KR, -np.inf)
    scores: Floats = target_R - (logsumexp(used, axis=0) - np.log(is_used_KR.sum(axis=0)))
    return scores


def calibrated(ratios_R: Floats, population_Z: Floats, *, gamma: float = 1.0) -> Floats:
    """Return the share of population records z with ``r(x) - r(z) > log gamma``.

    It keeps the order of ``r``, adds ties, and reaches no false-positive rate below ``1 / (Z + 1)``; so rank by r.

    Raises:
        ConfigError: If there is no population or gamma is not above 0.
    """
    if not population_Z.size or not 0 < gamma < math.inf:
        raise ConfigError(f"rmia: gamma={gamma}, {population_Z.size} population records; give both above 0")
    below = np.searchsorted(np.sort(population_Z), ratios_R - math.log(gamma), side="left")
    return below / population_Z.size


def exposure(canary: float, candidates: Floats) -> Exposure:
    """Return the exposure of a canary among R candidates, itself and R - 1 fresh ones of the same format.

    Raises:
        ConfigError: If R is below 1024.
        SafeSynthError: If a score is not finite.
    """
    size = candidates.size + 1
    if size < MIN_CANDIDATES:
        raise ConfigError(f"exposure: {size} candidates with the canary; give at least {MIN_CANDIDATES}")
    if not (math.isfinite(canary) and np.isfinite(candidates).all()):
        raise SafeSynthError("exposure: a score is NaN or infinite; nothing is dropped, so repair the signal")
    rank = 1 + int((candidates >= canary).sum())
    return Exposure(bits=math.log2(size) - math.log2(rank), p_value=rank / size, rank=rank)


def exposure_p_value(bits_of_members: Floats) -> float:
    """Return a p-value of "no member canary leaks": ``min(1, 2 median rank / R)``.

    The ranks share candidates and a model, so nothing is multiplied: if each is uniform, twice their median is a
    p-value under any dependence.
    """
    return min(1.0, 2 * float(np.median(np.exp2(-bits_of_members))))


def _side(references_KR: Floats, here_KR: Bools) -> tuple[Floats, Floats, Floats]:
    """Return count, mean and sum of squared deviations of each record's references on one side, [R] each."""
    count = here_KR.sum(axis=0).astype(np.float64)
    safe = np.maximum(count, 1)
    mean = np.where(here_KR, references_KR, 0.0).sum(axis=0) / safe
    squares = (np.where(here_KR, references_KR - mean, 0.0) ** 2).sum(axis=0)
    return count, mean, squares


def _spreads(sides: list[tuple[Floats, Floats, Floats]], variance: Variance) -> list[Floats]:
    """Return the variance of the target's signal under each side, [R] each."""
    if variance not in VARIANCES:
        raise ConfigError(f"variance={variance} does not exist; choose one of {', '.join(VARIANCES)}")
    if variance == "per_record":
        found = [squares / (count - 1) for count, _, squares in sides]
    else:
        freedom = sum(count - 1 for count, _, _ in sides)
        squares = sum(squares for _, _, squares in sides)
        common = np.mean(squares / freedom)
        if variance == "shrunk":
            own = (squares + PRIOR_WEIGHT * common) / (freedom + PRIOR_WEIGHT)
        else:
            own = np.full_like(squares, common)
        found = [own * (1 + 1 / count) for count, _, _ in sides]
    if not all((spread > 0).all() for spread in found):
        raise SafeSynthError(
            f"variance={variance}: the references of a record all give the same signal, so there is no spread to "
            "divide by; use variance=shrunk and check that the shadow models differ"
        )
    return found


def _log_normal(values: Floats, mean: Floats, variance: Floats) -> Floats:
    """Return the log density up to a constant that cancels."""
    density: Floats = -((values - mean) ** 2) / (2 * variance) - np.log(variance) / 2
    return density
