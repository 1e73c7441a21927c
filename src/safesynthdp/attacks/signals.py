"""From token log-probabilities to one number a record; higher is more member-like.

Here: the signals that need no shadow model. Elsewhere: the log-probabilities (model_scores.py), what the numbers are
worth (metrics.py). ``lp`` is the sum over the n scored tokens of a record, which are those the loss was taken on:
never the prompt, never padding. float64 throughout; ``exp(lp)`` is never formed.
"""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from safesynthdp.errors import SafeSynthError

TokenLogProbs = Sequence[NDArray[np.float64]]
Scores = NDArray[np.float64]
ATTACKS = ("loss", "ref", "zlib")
_NAMED = 10


def attack_scores(
    *, target: TokenLogProbs, base: TokenLogProbs, texts: Sequence[str], record_ids: Sequence[str]
) -> dict[str, Scores]:
    """Return, by attack, ``loss = lp_t/n``, ``ref = lp_t/n - lp_b/n`` and ``zlib = (lp_t/n) / zlib bytes``.

    Args:
        target: Log-probabilities of each record's scored tokens under the attacked model.
        base: The same tokens under the model before any training.
        texts: The records' texts; only their compressed length is used.
        record_ids: Named if something is not finite.

    Raises:
        SafeSynthError: If a signal is NaN or infinite; the message lists the records. Nothing is dropped.
    """
    of_target = mean_log_probs(target, record_ids=record_ids, model="the trained model")
    of_base = mean_log_probs(base, record_ids=record_ids, model="the untuned model")
    if [len(tokens) for tokens in target] != [len(tokens) for tokens in base]:
        raise SafeSynthError("the trained and the untuned model scored different tokens; use one tokenizer for both")
    return {"loss": of_target, "ref": of_target - of_base, "zlib": of_target / zlib_lengths(texts)}


def mean_log_probs(log_probs: TokenLogProbs, *, record_ids: Sequence[str], model: str) -> Scores:
    """Return ``lp / n`` of each record, float64.

    Raises:
        SafeSynthError: If a record has no scored token or a log-probability that is not finite.
    """
    sums = np.asarray([tokens.sum(dtype=np.float64) for tokens in log_probs], dtype=np.float64)
    counts = np.asarray([len(tokens) for tokens in log_probs], dtype=np.float64)
    broken = np.flatnonzero(~np.isfinite(sums) | (counts == 0))
    if broken.size:
        named = ", ".join(record_ids[int(index)] for index in broken[:_NAMED])
        more = f" and {broken.size - _NAMED} more" if broken.size > _NAMED else ""
        raise SafeSynthError(
            f"{model} gives no finite log-probability for {broken.size} of {sums.size} records ({named}{more}); "
            "nothing is dropped: train again with a lower train.learning_rate, or in float32"
        )
    means: Scores = sums / counts
    return means


def zlib_lengths(texts: Sequence[str]) -> Scores:
    """Return the compressed size of each text in bytes (level 6); it depends on the version of zlib."""
    return np.asarray([len(zlib.compress(text.encode("utf-8"), 6)) for text in texts], dtype=np.float64)
