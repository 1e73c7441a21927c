"""Logistic regression on embeddings.

Here: the classifier, and the stand-in where there is no encoder. Elsewhere: the other families (downstream.py). An
encoder is public and sees each text alone. Without one the features are tf-idf reduced by a truncated SVD, both fitted
on the training side only; that is said among the problems. Shapes: N texts, D dimensions.
"""

import warnings
from collections.abc import Sequence
from typing import Any

from safesynthdp.evaluation.downstream import Embed, Predictions
from safesynthdp.evaluation.downstream_sparse import tfidf
from safesynthdp.evaluation.threads import one_thread

INVERSE_REGULARISATION = 1.0
"""scikit-learn's own default. A weaker prior fits what is wrong with text that is not real."""
MAX_ITERATIONS = 1000
SVD_DIMENSIONS = 256
SVD_SEED = 7_410
STAND_IN = "no encoder was given, so emb reads tf-idf reduced by an SVD"


def predict_embedded(
    texts: Sequence[str], labels: Sequence[str], *, test: Sequence[str], families: Sequence[str], embed: Embed | None
) -> Predictions:
    """Train on the vectors of ``texts`` and predict those of ``test``.

    Raises:
        NoWordsError: If there is no encoder and no training text holds a word.
    """
    from sklearn.linear_model import LogisticRegression

    train_ND, test_ND = _reduced(texts, test) if embed is None else (embed(texts), embed(test))
    with one_thread(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=MAX_ITERATIONS).fit(train_ND, list(labels))
        said = [str(label) for label in model.predict(test_ND)]
    problems = [STAND_IN] if embed is None else []
    if caught:
        problems.append(f"emb did not converge in {MAX_ITERATIONS} iterations")
    return Predictions(dict.fromkeys(families, said), tuple(problems))


def _reduced(texts: Sequence[str], test: Sequence[str]) -> tuple[Any, Any]:
    """Return [N, D] of both; projection and norms as the training side has them."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize

    features, test_features = tfidf(texts, test)
    dimensions = min(SVD_DIMENSIONS, min(features.shape) - 1)
    if dimensions < 1:
        return features.toarray(), test_features.toarray()
    with one_thread():
        svd = TruncatedSVD(dimensions, random_state=SVD_SEED).fit(features)
        return normalize(svd.transform(features)), normalize(svd.transform(test_features))
