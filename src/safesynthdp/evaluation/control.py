"""Is the holdout a control at all: can a classifier tell it from the training records, without any model?

Here: one area under a ROC curve, T' against H, and what it means. Elsewhere: what the control is for (memorisation.py).
If H comes from another time or source, texts that resemble T more than H prove no memorisation. The area and its
interval: auc.py.
"""

from typing import Any

import numpy as np

from safesynthdp.evaluation.auc import Auc, area
from safesynthdp.evaluation.downstream import NoWordsError
from safesynthdp.evaluation.downstream_sparse import tfidf
from safesynthdp.evaluation.inputs import Corpora
from safesynthdp.evaluation.rows import Row
from safesynthdp.evaluation.threads import one_thread
from safesynthdp.evaluation.training_sets import subsamples
from safesynthdp.records import Records, canonical_text

MIN_RECORDS = 50
NOTICEABLE = 0.52
INVERSE_REGULARISATION = 1.0


def measure_control(corpora: Corpora, *, max_records: int) -> tuple[list[Row], list[str]]:
    """Return the row ``c2st_auc`` of training records against holdout, and a warning if they differ."""
    train, holdout = (
        _distinct(subsamples(records, max_records, seeds=1, stream=stream)[0])
        for records, stream in ((corpora.real, 15), (corpora.holdout, 12))
    )
    size = min(len(train), len(holdout))
    found = _judge(train[:size], holdout[:size]) if size >= MIN_RECORDS else None
    if found is None:
        return [_row(None, size)], []
    row = _row(found, size)
    if found.low <= NOTICEABLE:
        return [row], []
    return [row], [
        f"holdout: a classifier can tell it from real (AUC {found.value:.3f}, 95% interval {found.low:.3f} "
        f"to {found.high:.3f}); is it from another time or source? The control of memorisation is weak or void"
    ]


def _judge(train: list[str], holdout: list[str]) -> Auc | None:
    """Fit on a half of both sides, judge on the other."""
    from sklearn.linear_model import LogisticRegression

    half = len(train) // 2
    fitted, judged = train[:half] + holdout[:half], train[half:] + holdout[half:]
    try:
        features, judged_features = tfidf(fitted, judged)
    except NoWordsError:
        return None
    with one_thread():
        model: Any = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=500).fit(features, [1] * half + [0] * half)
        scores = np.asarray(model.decision_function(judged_features), dtype=np.float64)
    is_train = np.arange(len(scores)) < len(train) - half
    return area(scores, is_train, np.arange(len(scores)))  # the texts are distinct: each is a witness


def _distinct(records: Records) -> list[str]:
    """Return one text of each canonical form, in the order of the ids, which are hashes."""
    return list({canonical_text(text): text for text in records.texts}.values())


def _row(found: Auc | None, size: int) -> Row:
    value, low, high = (None, None, None) if found is None else (found.value, found.low, found.high)
    return Row(
        group="control", name="c2st_auc", train_on="real_sample", value=value, low=low, high=high, n=2 * size,
        direction="half", reads=("real", "holdout"), ceiling=0.5, floor=1.0,
        reason=None if found else f"fewer than {MIN_RECORDS} distinct texts a side, or no words",
    )  # fmt: skip
