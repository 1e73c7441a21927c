"""Can a classifier tell synthetic from real text: the area under its ROC curve, with an interval.

Here: the split, a logistic classifier, AUC and its variance. Elsewhere: embeddings (embeddings.py), the rows
(fidelity.py). Sources: Lopez-Paz and Oquab (2017), arXiv:1610.06545, for the test; DeLong et al. (1988), Biometrics
44:837 and Obuchowski (1997), Biometrics 53:567, for the variance. Shapes: N texts, M positives, D features.

The classifier is fitted on a random half of both sides and judged on the other: cross-validated folds share training
data, and intervals from pooled folds cover too little. Copies (equal canonical texts, on whichever side) stay in one
half and count as one witness. 0.5 = cannot be told apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesynthdp.evaluation.intervals import wilson
from safesynthdp.evaluation.jackknife import clusters
from safesynthdp.evaluation.rows import LEVEL
from safesynthdp.evaluation.threads import one_thread

SPLIT_SEED = 7_500
MAX_FEATURES = 50_000
MAX_ITERATIONS = 500
INVERSE_REGULARISATION = {"embedding": 0.01, "tfidf": 10.0}
MAX_CHARACTERS = 20_000
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


def judge_on_embeddings(
    real: Sequence[str], synthetic: Sequence[str], real_ND: NDArray[np.float32], synthetic_ND: NDArray[np.float32]
) -> Auc | None:
    """Return the AUC of a logistic classifier on embeddings; None if a half lacks a side."""
    from sklearn.preprocessing import StandardScaler

    cluster_N, is_synthetic = _sides(real, synthetic)
    is_fitted = _halve(cluster_N)
    if not _has_both(is_fitted, is_synthetic):
        return None
    points = np.concatenate([real_ND, synthetic_ND])
    scaler = StandardScaler().fit(points[is_fitted])
    return _judge(scaler.transform(points), is_synthetic, is_fitted, cluster_N, kind="embedding")


def judge_on_words(real: Sequence[str], synthetic: Sequence[str], *, pairs: bool = True) -> Auc | None:
    """Return the AUC of a logistic classifier on tf-idf; None if a half lacks a side.

    With ``pairs`` of words it sees some of their order, without them none. Vocabulary and document frequencies
    come from the fitted half only.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    cluster_N, is_synthetic = _sides(real, synthetic)
    is_fitted = _halve(cluster_N)
    if not _has_both(is_fitted, is_synthetic):
        return None
    texts = [text[:MAX_CHARACTERS] for text in (*real, *synthetic)]
    vectorizer = TfidfVectorizer(
        sublinear_tf=True, ngram_range=(1, 2 if pairs else 1), max_features=MAX_FEATURES, token_pattern=r"\w+"
    )
    try:
        vectorizer.fit([text for text, is_in in zip(texts, is_fitted, strict=True) if is_in])
    except ValueError:  # no word anywhere: nothing tells them apart
        count = int((~is_fitted).sum())
        return Auc(value=0.5, low=0.0, high=1.0, num_tested=count)
    return _judge(vectorizer.transform(texts), is_synthetic, is_fitted, cluster_N, kind="tfidf")


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


def _sides(real: Sequence[str], synthetic: Sequence[str]) -> tuple[Ints, NDArray[np.bool_]]:
    return clusters([*real, *synthetic]), np.arange(len(real) + len(synthetic)) >= len(real)


def _halve(cluster_N: Ints) -> NDArray[np.bool_]:
    """Return which texts the classifier is fitted on: a random half of the distinct texts with all their copies."""
    names, cluster_N = np.unique(cluster_N, return_inverse=True)
    is_in = np.random.default_rng(SPLIT_SEED).permutation(len(names)) < len(names) / 2
    return np.asarray(is_in[cluster_N], dtype=np.bool_)


def _has_both(is_fitted: NDArray[np.bool_], is_synthetic: NDArray[np.bool_]) -> bool:
    return all(len(np.unique(is_synthetic[part])) == 2 for part in (is_fitted, ~is_fitted))


def _judge(
    features: Any, is_synthetic: NDArray[np.bool_], is_fitted: NDArray[np.bool_], cluster_N: Ints, *, kind: str
) -> Auc:
    import warnings

    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=INVERSE_REGULARISATION[kind], max_iter=MAX_ITERATIONS, class_weight="balanced")
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a classifier that stops early is a weaker test, still an honest one
        model.fit(features[is_fitted], is_synthetic[is_fitted])
        scores = np.asarray(model.decision_function(features[~is_fitted]), dtype=np.float64)
    return area(scores, is_synthetic[~is_fitted], cluster_N[~is_fitted])
