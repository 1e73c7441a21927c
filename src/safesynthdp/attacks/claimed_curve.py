r"""Is the claimed trade-off between the two errors of an attacker possible, given the errors seen?

Here: the claimed-curve test, trade-off functions of a claim, and the counts that the test takes. Elsewhere: lower
bounds on epsilon (bounds.py), who is a canary and what its score is (canary_trainer.py). Source: Dong, Roth and Su
(2022), arXiv:1905.02383, for trade-off functions, group privacy and the profile; Clopper and Pearson (1934) for the
two rates. Symbols in formulas: f(x) the least false-negative rate at false-positive rate x, mu of a Gaussian claim.

It asks more than an (epsilon, delta) bound: the whole curve is the claim, so noise of half the size is seen where no
epsilon bound sees it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy.special import ndtr, ndtri

from safesynthdp.attacks.bounds import Verdict, epsilon_clopper_pearson
from safesynthdp.attacks.metrics import Scores, tpr_at_fpr
from safesynthdp.errors import ConfigError

Tradeoff = Callable[[float], float]
"""False-positive rate -> the least false-negative rate that the claim allows; falling, from f(0) <= 1 to f(1) = 0."""
CALIBRATION_FPR = 0.1
"""The threshold is the 90 % quantile of the non-members set aside for it."""
P_VALUE_FLOOR = 1e-12
"""A p-value that says "at most this": below it, 1 - alpha / 2 has too few digits left."""
LARGEST_EPSILON = 700.0
"""Above it e^epsilon is no float64; such a statement allows every attack that can be counted, so it is left out."""
_PROFILE_DELTAS = tuple(10 ** (-5 + 4.9 * k / 40) for k in range(41))


@dataclass(frozen=True, kw_only=True)
class ErrorCounts:
    """What the test takes: errors of one threshold that was chosen without a look at these scores."""

    false_positives: int
    """Non-members above the threshold."""
    nonmembers: int
    """Non-members, those of the threshold not among them."""
    false_negatives: int
    """Members not above the threshold."""
    members: int
    """Members."""


@dataclass(frozen=True, kw_only=True)
class ClaimTest:
    """The answer of the claimed-curve test; a true claim is rejected with probability at most ``alpha``."""

    is_rejected: bool
    """True: the claim is wrong, up to ``alpha``. False proves nothing."""
    p_value: float
    """The smallest alpha that rejects; 1 if none does, and never said to be below ``P_VALUE_FLOOR``."""
    tpr_lower: float
    """1 - the upper limit of the false-negative rate, at ``alpha / 2``."""
    tpr_claimed: float
    """The largest true-positive rate that the claim allows at the upper limit of the false-positive rate."""
    can_reject: bool
    """Whether a perfect attack with these counts of records would be rejected."""
    alpha: float
    """Probability that a true claim is rejected."""
    group_size: int
    """How many copies of a canary were put in; the claim for one is compared at this group."""

    @property
    def verdict(self) -> Verdict:
        """``refuted``, ``no_power`` or ``consistent``; never that the claim is true."""
        if self.is_rejected:
            return "refuted"
        return "consistent" if self.can_reject else "no_power"


def check_claim(
    *,
    false_positives: int,
    nonmembers: int,
    false_negatives: int,
    members: int,
    tradeoff: Tradeoff,
    alpha: float,
    group_size: int = 1,
) -> ClaimTest:
    """Reject the claim if ``1 - fnr_u > 1 - f(fpr_u)``, both upper limits exact (Clopper-Pearson) at ``alpha / 2``.

    Guarantee:
        A true claim is rejected with probability at most ``alpha``: both limits hold at once with probability
        ``1 - alpha``, and then ``1 - fnr_u <= 1 - fnr <= 1 - f(fpr) <= 1 - f(fpr_u)``. This is for independent scores
        and a threshold chosen on other records. The canaries of one trained model share it: where each has a
        coordinate of its own they are independent, elsewhere the answer is approximate.

    Args:
        false_positives: Non-members above the threshold; the four counts as in ``ErrorCounts``.
        nonmembers: Their number.
        false_negatives: Members not above it.
        members: Their number.
        tradeoff: f of the claim for one record, for the noise, rate and steps of the run.
        alpha: Probability of a wrong rejection.
        group_size: Copies of each canary: ``1 - f`` is applied to the rate that many times (mu becomes k mu).

    Raises:
        ConfigError: If a number is out of range.
    """
    if isinstance(group_size, bool) or group_size < 1:
        raise ConfigError(f"group_size={group_size} is not a number of copies; give a whole number of at least 1")

    def limits(fp: int, fn: int, at: float) -> tuple[float, float]:
        bound = epsilon_clopper_pearson(
            false_positives=fp, nonmembers=nonmembers, false_negatives=fn, members=members, delta=0.0, alpha=at
        )
        return 1 - bound.fnr_upper, _power(tradeoff, bound.fpr_upper, group_size)

    def is_rejected(at: float) -> bool:
        found, claimed = limits(false_positives, false_negatives, at)
        return found > claimed

    found, claimed = limits(false_positives, false_negatives, alpha)
    best_found, best_claimed = limits(0, 0, alpha)
    return ClaimTest(
        is_rejected=found > claimed,
        p_value=_smallest(is_rejected),
        tpr_lower=found,
        tpr_claimed=claimed,
        can_reject=best_found > best_claimed,
        alpha=alpha,
        group_size=group_size,
    )


def count_errors(*, calibration: Scores, nonmembers: Scores, members: Scores) -> ErrorCounts:
    """Set the threshold at the 90 % quantile of ``calibration`` and count the errors among the others.

    Args:
        calibration: Scores of the half of the non-members that sets the threshold. The halves must be drawn without a
            look at the scores: one half of a sorted list rejects true claims.
        nonmembers: Scores of the other half.
        members: Scores of all members; higher is more member-like.

    Raises:
        DataError: If a side is empty or holds a score that is not finite.
    """
    above_out = round(tpr_at_fpr(nonmembers, calibration, CALIBRATION_FPR) * nonmembers.size)
    above_in = round(tpr_at_fpr(members, calibration, CALIBRATION_FPR) * members.size)
    return ErrorCounts(
        false_positives=above_out,
        nonmembers=nonmembers.size,
        false_negatives=members.size - above_in,
        members=members.size,
    )


def gaussian_tradeoff(mu: float) -> Tradeoff:
    """Return f of a Gaussian claim: ``1 - f(x) = Phi(mu + Phi^-1(x))``.

    Exact for T steps of all records at noise multiplier sigma: ``mu = sqrt(T) / sigma``.
    """
    if not 0 <= mu < math.inf:
        raise ConfigError(f"mu={mu} is not a Gaussian claim; give a finite number of at least 0")
    return lambda fpr: float(ndtr(-mu - ndtri(fpr)))


def profile_tradeoff(profile: Sequence[tuple[float, float]]) -> Tradeoff:
    """Return the f that (epsilon, delta) statements imply: the largest of all their two lines, and 0.

    ``f(x) = max(0, 1 - delta - e^eps x, e^-eps (1 - delta - x))``. Fewer statements allow the attacker more, so a true
    claim is not rejected for want of them.
    """
    lines = [(math.exp(epsilon), 1 - delta) for epsilon, delta in profile if epsilon <= LARGEST_EPSILON]

    def tradeoff(fpr: float) -> float:
        return max([0.0, *(max(top - ratio * fpr, (top - fpr) / ratio) for ratio, top in lines)])

    return tradeoff


def sampled_gaussian_tradeoff(*, noise_multiplier: float, sample_rate: float, steps: int) -> Tradeoff:
    """Return f of Poisson-sampled Gaussian steps under add/remove, from the accountant's profile of epsilon and delta.

    With every record in every step it is the Gaussian one, exactly.
    """
    from safesynthdp.privacy.composition import COARSE_POINTS, composed_epsilon
    from safesynthdp.privacy.losses import GaussianSteps

    if sample_rate == 1:
        return gaussian_tradeoff(math.sqrt(steps) / noise_multiplier)
    access = GaussianSteps(noise_multiplier=noise_multiplier, sample_rate=sample_rate, count=steps)
    profile = list[tuple[float, float]]()
    for delta in _PROFILE_DELTAS:
        epsilon = composed_epsilon((access,), delta=delta, adjacency="add_remove", points=COARSE_POINTS)
        profile.append((epsilon, delta))
        if epsilon == 0:
            break
    return profile_tradeoff(profile)


def _power(tradeoff: Tradeoff, fpr: float, group_size: int) -> float:
    """Return the largest true-positive rate that the claim allows a group of this size."""
    for _ in range(group_size):
        fpr = min(1.0, max(fpr, 1 - tradeoff(fpr)))
    return fpr


def _smallest(is_rejected: Callable[[float], bool]) -> float:
    """Return the smallest alpha that rejects, to three digits, from above; rejection is monotone in alpha."""
    low, high = math.log(P_VALUE_FLOOR), math.log1p(-1e-9)
    if not is_rejected(math.exp(high)):
        return 1.0
    if is_rejected(math.exp(low)):
        return P_VALUE_FLOOR
    while high - low > 5e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if is_rejected(math.exp(middle)) else (middle, high)
    return math.exp(high)
