"""From token log-probabilities to one number a record; higher is more member-like.

Here: the signals that need no shadow model. Elsewhere: the log-probabilities (model_scores.py) and the moments around
them (training/token_statistics.py), the stored table (record_signals.py), what the numbers are worth (metrics.py).
``lp`` is the sum over the n scored tokens of a record, which are those the loss was taken on: never the prompt, never
padding. float64 throughout; ``exp(lp)`` of a sequence is never formed. Sources: Shi et al. (2024), arXiv:2310.16789
(Min-K%); Zhang et al. (2024), arXiv:2404.02936 (Min-K%++); Kim et al. (2024) (EZ); Carlini et al. (2022) (phi).
"""

import math
import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from safesynthdp.errors import SafeSynthError

TokenLogProbs = Sequence[NDArray[np.float64]]
Scores = NDArray[np.float64]
ATTACKS = ("loss", "ref", "zlib", "mink_20", "minkpp_20", "ez")
LOWEST_SHARE = 0.2
"""Min-K% looks at this share of a record's tokens: the least likely ones."""
EZ_OFFSET = 0.1
"""Added to both sums of EZ: a strong member has nothing in the second one."""
_NAMED = 10


class Statistics(Protocol):
    """What one model says of a record's n scored tokens (training/token_statistics.py)."""

    @property
    def log_probs(self) -> NDArray[np.float64]:
        """[n] log p of its tokens."""
        ...

    @property
    def means(self) -> NDArray[np.float64]:
        """[n] mean of log p over the vocabulary."""
        ...

    @property
    def deviations(self) -> NDArray[np.float64]:
        """[n] standard deviation of log p, above 0."""
        ...

    @property
    def is_top(self) -> NDArray[np.bool_]:
        """[n] whether the token was the most probable."""
        ...


def attack_scores(
    *, target: Sequence[Statistics], base: Sequence[Statistics], texts: Sequence[str], record_ids: Sequence[str]
) -> dict[str, Scores]:
    """Return the score of each record by attack.

    ``loss = lp_t/n``, ``ref = lp_t/n - lp_b/n``, ``zlib = (lp_t/n) / zlib bytes``, ``mink_20`` and ``minkpp_20`` (the
    lowest fifth of the tokens), ``ez`` (gains and losses against the untuned model where the attacked one is wrong).

    Args:
        target: What the attacked model says of each record's scored tokens.
        base: What the model before any training says of the same tokens; only its log-probabilities are looked at.
        texts: The records' texts; only their compressed length is used.
        record_ids: Named if something is not finite.

    Raises:
        SafeSynthError: If a signal is NaN or infinite; the message lists the records. Nothing is dropped.
    """
    logs_t, logs_b = ([record.log_probs for record in model] for model in (target, base))
    of_target = mean_log_probs(logs_t, record_ids=record_ids, model="the trained model")
    of_base = mean_log_probs(logs_b, record_ids=record_ids, model="the untuned model")
    if [len(tokens) for tokens in logs_t] != [len(tokens) for tokens in logs_b]:
        raise SafeSynthError("the trained and the untuned model scored different tokens; use one tokenizer for both")
    zones = error_zones(target, logs_b)
    found = {"loss": of_target, "ref": of_target - of_base, "zlib": of_target / zlib_lengths(texts)}
    found |= lowest_tokens(target) | {"ez": error_zone_score(zones[0], zones[1])}
    for attack, scores in found.items():
        broken = [record_ids[int(index)] for index in np.flatnonzero(~np.isfinite(scores))]
        if broken:
            raise SafeSynthError(f"attack={attack} gives no finite score for {len(broken)} records ({named(broken)})")
    return found


def lowest_tokens(statistics: Sequence[Statistics]) -> dict[str, Scores]:
    """Return ``mink_20`` (of log-probabilities) and ``minkpp_20`` (of ``z = (l - mu) / sigma``) of each record."""
    plain = [min_k(record.log_probs) for record in statistics]
    scaled = [min_k((record.log_probs - record.means) / record.deviations) for record in statistics]
    return {"mink_20": np.asarray(plain, dtype=np.float64), "minkpp_20": np.asarray(scaled, dtype=np.float64)}


def error_zones(statistics: Sequence[Statistics], base: TokenLogProbs) -> Scores:
    """Return what each record gained and lost where the attacked model is wrong, [2, R]."""
    pairs = zip(statistics, base, strict=True)
    found = [error_zone(record.log_probs, log_probs, is_top=record.is_top) for record, log_probs in pairs]
    return np.asarray(found, dtype=np.float64).reshape(-1, 2).T.copy()


def mean_log_probs(log_probs: TokenLogProbs, *, record_ids: Sequence[str], model: str) -> Scores:
    """Return ``lp / n`` of each record, float64.

    Raises:
        SafeSynthError: If a record has no scored token or a log-probability that is not finite.
    """
    sums = np.asarray([tokens.sum(dtype=np.float64) for tokens in log_probs], dtype=np.float64)
    counts = np.asarray([len(tokens) for tokens in log_probs], dtype=np.float64)
    broken = np.flatnonzero(~np.isfinite(sums) | (counts == 0))
    if broken.size:
        who = named([record_ids[int(index)] for index in broken])
        raise SafeSynthError(
            f"{model} gives no finite log-probability for {broken.size} of {sums.size} records ({who}); "
            "nothing is dropped: train again with a lower train.learning_rate, or in float32"
        )
    means: Scores = sums / counts
    return means


def zlib_lengths(texts: Sequence[str]) -> Scores:
    """Return the compressed size of each text in bytes (level 6); it depends on the version of zlib."""
    return np.asarray([len(zlib.compress(text.encode("utf-8"), 6)) for text in texts], dtype=np.float64)


def min_k(values: NDArray[np.float64], *, share: float = LOWEST_SHARE) -> float:
    """Return the mean of the ``max(1, ceil(share n))`` lowest of n values.

    Of log-probabilities this is Min-K%, of ``z = (l - mu) / sigma`` Min-K%++. A short text has one lowest token too:
    rounding down would leave none.
    """
    count = max(1, math.ceil(share * values.size - 1e-9))
    return float(np.sort(values)[:count].mean(dtype=np.float64))


def error_zone(
    target: NDArray[np.float64], base: NDArray[np.float64], *, is_top: NDArray[np.bool_]
) -> tuple[float, float]:
    """Return ``P = sum max(d, 0)`` and ``N = sum max(-d, 0)`` with ``d = l_t - l_b``, where the top-1 is wrong.

    Where the attacked model has every token right, the sums run over all tokens.

    Args:
        target: [n] log-probabilities under the attacked model.
        base: [n] the same under the untuned one.
        is_top: [n] whether the attacked model puts this token first.
    """
    gains = target - base
    gains = gains if is_top.all() else gains[~is_top]
    return float(np.maximum(gains, 0).sum()), float(np.maximum(-gains, 0).sum())


def error_zone_score(gained: NDArray[np.float64], lost: NDArray[np.float64]) -> Scores:
    """Return ``log(P + 0.1) - log(N + 0.1)``; a ratio P / N set to 0 at N = 0 would rank the best members last."""
    scores: Scores = np.log(gained + EZ_OFFSET) - np.log(lost + EZ_OFFSET)
    return scores


def phi(log_probs: NDArray[np.float64]) -> Scores:
    """Return the logit of a probability from its logarithm, ``lp - log(1 - exp(lp))``, without cancellation.

    For single answers: of a whole sequence ``exp(lp)`` is 0 and phi is ``lp``.

    Raises:
        SafeSynthError: If a logarithm is not below 0.
    """
    if not (log_probs < 0).all():
        raise SafeSynthError("phi: a log-probability is not below 0, so its logit is not finite; keep more digits")
    near_one = log_probs > -math.log(2)
    with np.errstate(divide="ignore", under="ignore"):
        complement = np.where(near_one, np.log(-np.expm1(log_probs)), np.log1p(-np.exp(log_probs)))
    scores: Scores = log_probs - complement
    return scores


def named(record_ids: Sequence[str]) -> str:
    """Return the first ten ids, and how many more there are."""
    more = f" and {len(record_ids) - _NAMED} more" if len(record_ids) > _NAMED else ""
    return f"{', '.join(record_ids[:_NAMED])}{more}"
