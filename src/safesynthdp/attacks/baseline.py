"""Can members be told from non-members by their text alone, without any model?

Here: a bag-of-word-n-grams logistic classifier, scored out of fold, and the verdict on the benchmark. Elsewhere: the
attacks whose benchmark this is. If it can tell them apart, the members were filtered after the draw, an attack may
win without a leak, and no verdict of the benchmark holds.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from safesynthdp.attacks.metrics import Scores, delong_interval
from safesynthdp.errors import DataError
from safesynthdp.records import canonical_text

NUM_FOLDS = 5
VOID_ALPHA = 0.001
MIN_RECORDS = 20
"""A side with fewer records has no usable 99.9% interval."""


def baseline_scores(
    texts: Sequence[str], is_member: NDArray[np.bool_], *, seed: int, user_ids: Sequence[str] | None = None
) -> Scores:
    """Return the log-odds of membership of each text, from a classifier that saw neither it nor an equal text.

    Texts with the same canonical form share a fold, else copies of a member would give it away; where there are
    users, all texts of a user do, else a user's style would.

    Raises:
        DataError: If a side has fewer than two different texts or users.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    canonical = [canonical_text(text) for text in texts]
    folds = fold_of_groups(canonical if user_ids is None else user_ids, is_member, seed=seed)
    scores = np.empty(len(texts), dtype=np.float64)
    for fold in np.unique(folds):
        classifier = make_pipeline(
            TfidfVectorizer(token_pattern=r"\S+", lowercase=False, ngram_range=(1, 2)),
            LogisticRegression(class_weight="balanced", max_iter=1000),
        )
        seen, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        classifier.fit([canonical[i] for i in seen], is_member[seen])
        scores[held] = classifier.decision_function([canonical[i] for i in held])
    return scores


def fold_of_groups(groups: Sequence[str], is_member: NDArray[np.bool_], *, seed: int) -> NDArray[np.intp]:
    """Return the fold of each record: a group shares one, and the groups of each side are dealt out evenly.

    The order of dealing is by SHA-256 of seed and group, so the order of the records does not matter. A group with
    records on both sides is dealt with the members.
    """
    with_member = {group for group, member in zip(groups, is_member.tolist(), strict=True) if member}
    sides = [sorted(side, key=lambda group: _rank(group, seed)) for side in (with_member, set(groups) - with_member)]
    num_folds = min(NUM_FOLDS, *(len(side) for side in sides))
    if num_folds < 2:
        raise DataError(
            f"the text baseline needs two different texts (or users) a side and found {len(sides[0])} among the "
            f"members, {len(sides[1])} among the non-members; raise max_records or data.holdout_percent"
        )
    fold = {group: index % num_folds for side in sides for index, group in enumerate(side)}
    return np.asarray([fold[group] for group in groups], dtype=np.intp)


def benchmark_is_valid(scores: Scores, is_member: NDArray[np.bool_]) -> bool | None:
    """Return False if the 99.9% interval of the baseline's AUC excludes one half; None if a side is too small."""
    members, nonmembers = scores[is_member], scores[~is_member]
    if min(members.size, nonmembers.size) < MIN_RECORDS:
        return None
    low, high = delong_interval(members, nonmembers, alpha=VOID_ALPHA)
    return low <= 0.5 <= high


def _rank(group: str, seed: int) -> bytes:
    return hashlib.sha256(f"fold-v1|{seed}|{group}".encode()).digest()
