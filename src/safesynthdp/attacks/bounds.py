r"""From right and wrong guesses to a lower bound on epsilon.

Here: the one-run bound, the Clopper-Pearson bound, what each could have reached at most, the verdict on a claim and
the test of fair coins. Elsewhere: guesses from scores (guesses.py), AUC (metrics.py). Source: Steinke, Nasr and
Jagielski (2023), arXiv:2305.08846, for one run; Nasr et al. (2021) for many independent runs. Symbols in formulas: m
canaries, r guesses, v right ones. numpy and scipy.special only: no statistics package, so an answer takes no time.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.special import betainc, betaincinv, gammaln

from safesynthdp.errors import ConfigError

Verdict = Literal["refuted", "no_power", "consistent"]
MAX_COUNT = 10**8
"""Above this the float64 of the log-factorials costs the sixth digit of a p-value."""
UNFAIR = 1e-6
"""Two-sided p-value below which a member count is impossible for fair coins."""
_BISECT_TO = 1e-7
_TAIL = 50  # standard deviations; what lies beyond is below 1e-500


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A lower bound on epsilon that is wrong with probability at most ``alpha``."""

    method: Literal["one-run", "clopper-pearson"]
    """Which formula, and so which assumption on the guesses."""
    epsilon_lower_bound: float
    """The true epsilon at ``delta`` is at least this; 0 says nothing was shown."""
    epsilon_attainable: float
    """The same bound had every guess been right: what this audit could have shown at most."""
    delta: float
    """Of the (epsilon, delta) statement that is bounded."""
    alpha: float
    """Probability of a bound above the truth."""

    def verdict(self, epsilon_claimed: float | None) -> Verdict | None:
        """Compare with a claim; None without one. No verdict says that a claim is true."""
        if epsilon_claimed is None:
            return None
        if self.epsilon_lower_bound > epsilon_claimed:
            return "refuted"
        return "no_power" if self.epsilon_attainable <= epsilon_claimed else "consistent"


@dataclass(frozen=True, kw_only=True)
class ClopperPearson(Bound):
    """The bound of independent trials, with the two error rates it rests on."""

    fpr_upper: float
    """Upper confidence limit of the false-positive rate, at ``alpha / 2``."""
    fnr_upper: float
    """Upper confidence limit of the false-negative rate, at ``alpha / 2``."""


def one_run_p_value(*, canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Return ``min(1, beta + 2 m delta max_{1<=i<=v} P[v > B >= v-i] / i)``, B ~ Bin(r, e^eps / (1 + e^eps)).

    ``beta = P[B >= v]``.

    Guarantee:
        If the mechanism is (epsilon, delta)-DP, each of the m canaries was put in by its own fair coin and r was
        fixed in advance, a value of at most a is seen with probability at most a.

    Raises:
        ConfigError: If the counts are not ``correct <= guesses <= canaries``, or epsilon or delta is out of range.
    """
    _check_one_run(canaries=canaries, guesses=guesses, correct=correct)
    check_delta(delta)
    check_epsilon(epsilon)
    if correct == 0:
        return 1.0
    right = 1 / (1 + math.exp(-epsilon))
    beta = float(betainc(correct, guesses - correct + 1, right))
    if delta == 0 or beta >= 1:
        return min(1.0, beta)
    return min(1.0, beta + 2 * canaries * delta * _largest_mean_mass(guesses, correct, epsilon))


def epsilon_one_run(*, canaries: int, guesses: int, correct: int, delta: float, alpha: float) -> Bound:
    """Return the largest epsilon that the guesses on one trained model rule out, one-sided.

    ``sup{eps >= 0: p(eps) < alpha}`` to 1e-6 from below, 0 if ``p(0) >= alpha``; p as in ``one_run_p_value``.

    Guarantee:
        Above the true epsilon with probability at most ``alpha``, for fair independent coins drawn before training
        and r guesses fixed in advance.

    Raises:
        ConfigError: If a number is out of range.
    """
    check_alpha(alpha)
    reached, attainable = (
        _bisect_one_run(canaries=canaries, guesses=guesses, correct=v, delta=delta, alpha=alpha)
        for v in (correct, guesses)
    )
    return Bound(method="one-run", epsilon_lower_bound=reached, epsilon_attainable=attainable, delta=delta, alpha=alpha)


def epsilon_clopper_pearson(
    *, false_positives: int, nonmembers: int, false_negatives: int, members: int, delta: float, alpha: float
) -> ClopperPearson:
    """Return ``max(0, log((1 - delta - fnr_u) / fpr_u), log((1 - delta - fpr_u) / fnr_u))``.

    ``fpr_u`` and ``fnr_u`` are the exact upper limits of the two error rates, each at ``alpha / 2``; the logarithm of
    a number <= 0 is left out.

    Guarantee:
        Above the true epsilon with probability at most ``alpha``, for independent trials (one canary a training run)
        and a threshold chosen on other data. Records of one model are not independent trials.

    Raises:
        ConfigError: If a number is out of range.
    """
    check_alpha(alpha)
    check_delta(delta)
    _check_errors("false_positives", false_positives, "nonmembers", nonmembers)
    _check_errors("false_negatives", false_negatives, "members", members)
    fpr_upper = _upper_limit(false_positives, nonmembers, alpha / 2)
    fnr_upper = _upper_limit(false_negatives, members, alpha / 2)
    best = _upper_limit(0, nonmembers, alpha / 2), _upper_limit(0, members, alpha / 2)
    return ClopperPearson(
        method="clopper-pearson",
        epsilon_lower_bound=_epsilon_of_rates(fpr_upper, fnr_upper, delta),
        epsilon_attainable=_epsilon_of_rates(*best, delta),
        delta=delta,
        alpha=alpha,
        fpr_upper=fpr_upper,
        fnr_upper=fnr_upper,
    )


def fair_coin_p_value(*, heads: int, tosses: int) -> float:
    """Return the two-sided exact p-value of ``heads`` in ``tosses`` fair coins."""
    fewer = min(heads, tosses - heads)
    return min(1.0, 2 * float(betainc(tosses - fewer, fewer + 1, 0.5)))


def check_alpha(alpha: float) -> None:
    """Refuse an error probability outside (0, 1)."""
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha={alpha} is not an error probability; give a number between 0 and 1, such as 0.05")


def check_delta(delta: float) -> None:
    """Refuse a delta outside [0, 1)."""
    if not 0 <= delta < 1:
        raise ConfigError(f"delta={delta} is not a probability of failure; give 0 or a number between 0 and 1")


def check_epsilon(epsilon: float, *, name: str = "epsilon") -> None:
    """Refuse an epsilon that is negative or not finite."""
    if not 0 <= epsilon < math.inf:
        raise ConfigError(f"{name}={epsilon} is not an epsilon; give a finite number of at least 0")


@lru_cache(maxsize=4096)
def _bisect_one_run(*, canaries: int, guesses: int, correct: int, delta: float, alpha: float) -> float:
    """Return the lower end of a bracket in which p crosses alpha; p grows with epsilon where it is below one half."""

    def is_ruled_out(epsilon: float) -> bool:
        p = one_run_p_value(canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta)
        return p < alpha

    if not is_ruled_out(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while is_ruled_out(high):
        low, high = high, 2 * high
    while high - low > _BISECT_TO:
        middle = (low + high) / 2
        low, high = (middle, high) if is_ruled_out(middle) else (low, middle)
    return low


def _largest_mean_mass(trials: int, correct: int, epsilon: float) -> float:
    """Return ``max_{1<=i<=v} P[v > B >= v-i] / i``: the largest running mean of the masses from v-1 downwards.

    Only masses within 50 standard deviations of the mean are visited; the others are zero in float64.
    """
    log_right, log_wrong = -math.log1p(math.exp(-epsilon)), -epsilon - math.log1p(math.exp(-epsilon))
    mean = trials * math.exp(log_right)
    reach = _TAIL * (1 + math.sqrt(mean * math.exp(log_wrong)))
    highest, lowest = min(correct - 1, math.ceil(mean + reach)), max(0, math.floor(mean - reach))
    if highest < lowest:
        return 0.0
    k = np.arange(highest, lowest - 1, -1, dtype=np.float64)
    log_ways = gammaln(trials + 1) - gammaln(k + 1) - gammaln(trials - k + 1)
    mass = np.exp(log_ways + k * log_right + (trials - k) * log_wrong)
    return float(np.max(np.cumsum(mass) / (correct - k)))


def _upper_limit(errors: int, trials: int, alpha: float) -> float:
    """Return the largest error rate at which this few errors still have probability ``alpha`` (Clopper-Pearson)."""
    return 1.0 if errors == trials else float(betaincinv(errors + 1, trials - errors, 1 - alpha))


def _epsilon_of_rates(fpr: float, fnr: float, delta: float) -> float:
    ratios = ((1 - delta - fnr) / fpr, (1 - delta - fpr) / fnr)
    return max([0.0, *(math.log(ratio) for ratio in ratios if ratio > 0)])


def _check_one_run(*, canaries: int, guesses: int, correct: int) -> None:
    if not 1 <= canaries <= MAX_COUNT:
        raise ConfigError(f"canaries={canaries} is out of range; give a number from 1 to {MAX_COUNT}")
    if not 0 <= guesses <= canaries:
        raise ConfigError(f"guesses={guesses} is out of range; give a number from 0 to canaries={canaries}")
    if not 0 <= correct <= guesses:
        raise ConfigError(f"correct={correct} is out of range; give a number from 0 to guesses={guesses}")


def _check_errors(errors_name: str, errors: int, trials_name: str, trials: int) -> None:
    if not 1 <= trials <= MAX_COUNT:
        raise ConfigError(f"{trials_name}={trials} is out of range; give a number from 1 to {MAX_COUNT}")
    if not 0 <= errors <= trials:
        raise ConfigError(f"{errors_name}={errors} is out of range; give a number from 0 to {trials_name}={trials}")
