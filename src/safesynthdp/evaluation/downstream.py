"""The models a user would train on the text: families of classifiers, by name.

Here: the list of families, and one call that trains some of them on one training set and predicts the holdout.
Elsewhere: the models (downstream_sparse.py, downstream_neural.py, downstream_embeddings.py, downstream_encoder.py),
which training sets (training_sets.py), what predictions are worth (intervals.py). Whatever a model counts (vocabulary,
document frequencies, a projection) comes from the training side only. No setting is tuned: all are fixed in advance,
the same for synthetic and real text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from safesynthdp.errors import ConfigError

MAX_TRAIN_RECORDS = 20_000
SLOW_SHARE = 4
Embed = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True)
class Family:
    """One kind of classifier."""

    name: str
    describe: str
    kind: Literal["sparse", "neural", "embedded", "encoder"]
    is_random: bool = False
    """Whether another seed gives another classifier."""
    is_slow: bool = False
    """Whether it takes a quarter of ``max_train_records`` at most."""


FAMILIES = {
    family.name: family
    for family in (
        Family("lr", "logistic regression on tf-idf", "sparse"),
        Family("nb", "multinomial naive Bayes on tf-idf", "sparse"),
        Family("svm", "linear SVM on tf-idf", "sparse"),
        Family("rf", "random forest on tf-idf", "sparse", is_random=True, is_slow=True),
        Family("emb", "logistic regression on embeddings", "embedded"),
        Family("gru", "small GRU on words", "neural", is_random=True, is_slow=True),
        Family("cnn", "small CNN on words", "neural", is_random=True, is_slow=True),
        Family("encoder", "fine-tuned encoder", "encoder", is_random=True),
    )
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the families share, and how many records each may read."""

    embed: Embed | None = None
    """Public encoder of ``emb``: texts to vectors [N, D]; None is tf-idf and SVD, fitted on the training side."""
    encoder: str | None = None
    """What ``encoder`` fine-tunes: a folder or an id."""
    max_train_records: int = MAX_TRAIN_RECORDS
    max_records: int = 2000
    """Cap of what embeds."""

    def max_train(self, family: str) -> int:
        """Return how many records a family trains on at most."""
        found = FAMILIES[family]
        if found.kind in ("embedded", "encoder"):
            return self.max_records
        return max(1, self.max_train_records // SLOW_SHARE) if found.is_slow else self.max_train_records

    def max_test(self, family: str) -> int:
        """Return how many holdout records a family predicts at most."""
        return self.max_records if FAMILIES[family].kind in ("embedded", "encoder") else self.max_train_records


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
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    test: Sequence[str],
    families: Sequence[str],
    seed: int = 0,
    settings: Settings | None = None,
) -> Predictions:
    """Train each family on (texts, labels) and predict the test texts.

    A training set with one class predicts that class, and one without any word its most common class; both are said.

    Raises:
        UserError: If an encoder cannot be loaded.
    """
    common, chosen = most_common(labels), settings or Settings()
    if len(set(labels)) == 1:
        return _constant(common, len(test), families, "it has one class only")
    classes, problems = dict[str, list[str]](), list[str]()
    for kind in dict.fromkeys(FAMILIES[family].kind for family in families):
        names = [family for family in families if FAMILIES[family].kind == kind]
        try:
            found = _predict_kind(kind, texts, labels, test, names, seed, chosen)
        except NoWordsError:
            found = _constant(common, len(test), names, "it holds no words, so its most common label is predicted")
        classes |= found.classes
        problems += found.problems
    return Predictions({family: classes[family] for family in families}, tuple(dict.fromkeys(problems)))


class NoWordsError(Exception):
    """The training texts hold nothing that a model of this kind can read."""


def most_common(labels: Sequence[str]) -> str:
    """Return the most common label; the first in the alphabet of those that are equally common."""
    from collections import Counter

    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))


def _predict_kind(
    kind: str, texts: Sequence[str], labels: Sequence[str], test: Sequence[str], names: Sequence[str], seed: int,
    settings: Settings,
) -> Predictions:  # fmt: skip
    if kind == "sparse":
        from safesynthdp.evaluation.downstream_sparse import predict_sparse

        return predict_sparse(texts, labels, test=test, families=names, seed=seed)
    if kind == "neural":
        from safesynthdp.evaluation.downstream_neural import predict_neural

        return predict_neural(texts, labels, test=test, families=names, seed=seed)
    if kind == "embedded":
        from safesynthdp.evaluation.downstream_embeddings import predict_embedded

        return predict_embedded(texts, labels, test=test, families=names, embed=settings.embed)
    from safesynthdp.evaluation.downstream_encoder import predict_fine_tuned

    if settings.encoder is None:
        raise ConfigError("downstream_encoder is not set; name a folder or an id for the family 'encoder'")
    return predict_fine_tuned(texts, labels, test=test, families=names, encoder=settings.encoder, seed=seed)


def _constant(label: str, count: int, families: Sequence[str], problem: str) -> Predictions:
    return Predictions({family: [label] * count for family in families}, (problem,))
