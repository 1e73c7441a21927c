"""The classifier that says whether labels fit their texts: logistic regression on tf-idf of real records.

Here: one fixed model, never tuned. Elsewhere: the families a user compares (downstream.py), the rows (validity.py).
"""

import warnings
from collections.abc import Sequence

from safesynthdp.evaluation.threads import one_thread

MAX_FEATURES = 50_000
MAX_CHARACTERS = 20_000
INVERSE_REGULARISATION = 10.0
MAX_ITERATIONS = 500


def say_labels(texts: Sequence[str], labels: Sequence[str], *, about: Sequence[str]) -> list[str] | None:
    """Return the label that real text would give each text ``about``; None if nothing can be learnt.

    Nothing can be learnt from one class, or from texts without words.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    if len(set(labels)) < 2:
        return None
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), max_features=MAX_FEATURES, token_pattern=r"\w+")
    try:
        features = vectorizer.fit_transform([text[:MAX_CHARACTERS] for text in texts])
    except ValueError:  # no word anywhere
        return None
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may stop before it has converged: the same model judges all sets
        model = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=MAX_ITERATIONS).fit(features, list(labels))
        return [str(label) for label in model.predict(vectorizer.transform([text[:MAX_CHARACTERS] for text in about]))]
