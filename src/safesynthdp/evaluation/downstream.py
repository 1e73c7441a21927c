"""The models a user would train on the text: tf-idf with logistic regression or multinomial naive Bayes.

Here: fit on one training set, predict the holdout. Elsewhere: which training sets (utility.py) and what the predictions
are worth (intervals.py). The vocabulary, the document frequencies and the classifier come from the training side only.
No setting is tuned: both numbers below are fixed in advance, the same for synthetic and real text. scikit-learn's own
defaults (1 for both) suit long documents: on 1,500 short texts of four kinds they cost .08 and .26 of accuracy.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from safesynthdp.errors import ConfigError

MAX_FEATURES = 50_000
MAX_ITERATIONS = 1000
INVERSE_REGULARISATION = 10.0
SMOOTHING = 0.1
FAMILIES = {"lr": "logistic regression on tf-idf", "nb": "multinomial naive Bayes on tf-idf"}


@dataclass(frozen=True)
class Predictions:
    """What each family says about each test record, and what went wrong on the way."""

    classes: dict[str, list[str]]
    """Family -> predicted label of each test record."""
    problems: tuple[str, ...]


def parse_families(value: str) -> tuple[str, ...]:
    """Return the families named in ``lr,nb``.

    Raises:
        ConfigError: If one is unknown, stands twice, or none is named.
    """
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    unknown = [name for name in names if name not in FAMILIES]
    if unknown or not names:
        raise ConfigError(f"downstream={value}: give one or more of {','.join(FAMILIES)}, separated by commas")
    if len(set(names)) < len(names):
        raise ConfigError(f"downstream={value}: a family stands twice; name each once")
    return names


def predict(
    texts: Sequence[str], labels: Sequence[str], *, test: Sequence[str], families: Sequence[str]
) -> Predictions:
    """Train each family on (texts, labels) and predict the test texts.

    A training set with one class predicts that class, and one without any word its most common class; both are said.
    """
    common = most_common(labels)
    if len(set(labels)) == 1:
        return Predictions({family: [common] * len(test) for family in families}, ("it has one class only",))
    try:
        features, test_features = _features(texts, test)
    except ValueError:  # "empty vocabulary": the one thing that a vectoriser refuses about a list of strings
        problem = "it holds no words, so its most common label is predicted"
        return Predictions({family: [common] * len(test) for family in families}, (problem,))
    classes, problems = dict[str, list[str]](), list[str]()
    for family in families:
        with _one_thread(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = _model(family).fit(features, list(labels))
            classes[family] = [str(label) for label in model.predict(test_features)]
        if caught:
            problems.append(f"{family} did not converge in {MAX_ITERATIONS} iterations")
    return Predictions(classes, tuple(problems))


def _features(texts: Sequence[str], test: Sequence[str]) -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), max_features=MAX_FEATURES)
    return vectorizer.fit_transform(texts), vectorizer.transform(test)


def _model(family: str) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB

    if family == "lr":
        return LogisticRegression(C=INVERSE_REGULARISATION, max_iter=MAX_ITERATIONS)
    return MultinomialNB(alpha=SMOOTHING)


def most_common(labels: Sequence[str]) -> str:
    """Return the most common label; the first in the alphabet of those that are equally common."""
    from collections import Counter

    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))


@contextmanager
def _one_thread() -> Iterator[None]:
    """More BLAS threads make these small problems slower, by 20 times on a busy machine."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        yield
