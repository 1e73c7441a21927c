"""Classifiers on tf-idf: naive Bayes, logistic regression, linear SVM, random forest.

Here: features, settings, fit and predict with scikit-learn. Elsewhere: the other families (downstream.py).
scikit-learn's own defaults suit long documents: on 1,500 short texts of four kinds its regularisation (1) costs .08 of
accuracy and its smoothing (1) .26, so both are set here.
"""

import warnings
from collections.abc import Sequence
from typing import Any

from safesynthdp.evaluation.downstream import NoWordsError, Predictions
from safesynthdp.evaluation.threads import one_thread

MAX_FEATURES = 50_000
MAX_ITERATIONS = 1000
INVERSE_REGULARISATION = 10.0
SVM_INVERSE_REGULARISATION = 1.0
SMOOTHING = 0.1
NUM_TREES = 200
MAX_TEXT = 100_000
"""Characters of a text that count; more, and one hostile text of many megabytes fills the vocabulary alone."""


def predict_sparse(
    texts: Sequence[str], labels: Sequence[str], *, test: Sequence[str], families: Sequence[str], seed: int
) -> Predictions:
    """Train each family on one tf-idf matrix and predict.

    Raises:
        NoWordsError: If no training text holds a word.
    """
    features, test_features = tfidf(texts, test)
    classes, problems = dict[str, list[str]](), list[str]()
    for family in families:
        with one_thread(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = _model(family, seed).fit(features, list(labels))
            classes[family] = [str(label) for label in model.predict(test_features)]
        if caught:
            problems.append(f"{family} did not converge in {MAX_ITERATIONS} iterations")
    return Predictions(classes, tuple(problems))


def tfidf(texts: Sequence[str], test: Sequence[str]) -> tuple[Any, Any]:
    """Return sparse matrices of both; vocabulary and frequencies come from the first alone.

    Raises:
        NoWordsError: If it holds no words.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), max_features=MAX_FEATURES)
    try:
        features = vectorizer.fit_transform([text[:MAX_TEXT] for text in texts])
    except ValueError as error:  # "empty vocabulary": the one thing that a vectoriser refuses about a list of strings
        raise NoWordsError from error
    return features, vectorizer.transform([text[:MAX_TEXT] for text in test])


def _model(family: str, seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.svm import LinearSVC

    if family == "lr":
        return LogisticRegression(C=INVERSE_REGULARISATION, max_iter=MAX_ITERATIONS)
    if family == "svm":
        return LinearSVC(C=SVM_INVERSE_REGULARISATION, max_iter=MAX_ITERATIONS, random_state=0)
    if family == "rf":
        return RandomForestClassifier(n_estimators=NUM_TREES, n_jobs=1, random_state=seed)
    return MultinomialNB(alpha=SMOOTHING)
