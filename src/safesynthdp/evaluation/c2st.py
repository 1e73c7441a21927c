"""Can a classifier tell synthetic from real text: the area under its ROC curve, with an interval.

Here: the split and a logistic classifier. Elsewhere: the area and its variance (auc.py), embeddings (embeddings.py),
the rows (fidelity.py). Source: Lopez-Paz and Oquab (2017), arXiv:1610.06545. Shapes: N texts, D features.

The classifier is fitted on a random half of both sides and judged on the other: cross-validated folds share training
data, and intervals from pooled folds cover too little. Copies (equal canonical texts, on whichever side) stay in one
half and count as one witness. 0.5 = cannot be told apart.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesynthdp.evaluation.auc import Auc, Ints, area
from safesynthdp.evaluation.jackknife import clusters
from safesynthdp.evaluation.threads import one_thread

SPLIT_SEED = 7_500
MAX_FEATURES = 50_000
MAX_ITERATIONS = 500
INVERSE_REGULARISATION = {"embedding": 0.01, "tfidf": 10.0}
MAX_CHARACTERS = 20_000


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
