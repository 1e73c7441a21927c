"""Direct DP training: the classifier a user could have had for the same epsilon, without any synthetic text.

Here: the promise it is held to, and its predictions. Elsewhere: the mechanisms (direct_bayes.py, direct_regression.py),
the rows (utility.py). It is an access to the training records T outside every ledger: for comparison inside only, and
publishing it would compose with the run. Its noise is seeded, so that an evaluation can be repeated; a classifier that
is to be given away has to be trained again with secret keys.

The label set is that of the holdout: a record of T with another label adds nothing. The number of units is taken as
public, as in the run: it sets the sample rate of the regression.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesynthdp.errors import LedgerMismatch
from safesynthdp.evaluation.downstream import Embed
from safesynthdp.evaluation.inputs import Input
from safesynthdp.privacy.ledger import Ledger, is_understated, recompute
from safesynthdp.privacy.losses import Adjacency
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.records import Records

WORD_MODELS, EMBEDDED = ("nb", "lr"), "emb"
MODELS = (*WORD_MODELS, EMBEDDED)
KEY_SEED = 7_400
LEDGER, ARTIFACT = "ledger.json", "synthetic_text"
Ints = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What the synthetic text promises, and so what a direct classifier may spend."""

    epsilon: float
    delta: float
    unit: str
    adjacency: Adjacency
    source: str
    """Where the numbers come from, in words."""

    def facts(self) -> dict[str, Any]:
        """Return what metrics.json says about it."""
        return {**vars(self), "noise_is_seeded": True}


def promise_of(synthetic: Input, *, epsilon: float | None, delta: float, adjacency: Adjacency) -> Promise | str:
    """Return the promise, or one line that says why there is none to be held to.

    Args:
        synthetic: If it is a sample run and ``epsilon`` is None, its ledger decides all four.
        epsilon: The user's own; its unit is the record.
        delta: Goes with ``epsilon``.
        adjacency: Goes with ``epsilon``.

    Raises:
        LedgerMismatch: If the ledger cannot be read, or promises more than its entries give.
    """
    if epsilon is not None:
        return Promise(
            epsilon=epsilon,
            delta=delta,
            unit="record",
            adjacency=adjacency,
            source="dp_direct_epsilon and dp_direct_delta",
        )
    if synthetic.run is None:
        return "synthetic is a file without a ledger: give --dp_direct_epsilon"
    path = synthetic.run.path / LEDGER
    if not path.exists():
        return "synthetic has no ledger: give --dp_direct_epsilon"
    ledger = Ledger.read(path)
    releases = [release for release in ledger.releases if release.artifact == ARTIFACT]
    if not releases:
        return "the ledger of synthetic names no release of text: give --dp_direct_epsilon"
    for release in releases:
        if is_understated(release.epsilon, recompute(ledger, release)):
            raise LedgerMismatch(f"{path}: its epsilon is below what its entries cost; restore the ledger")
    if any(release.epsilon is None for release in releases):
        return "synthetic carries no formal guarantee, so no budget is there to train with: give --dp_direct_epsilon"
    largest = max(releases, key=lambda release: release.epsilon or 0.0)
    if not largest.epsilon or not largest.delta:
        return "synthetic spent epsilon = 0, and nothing can be trained with that"
    return Promise(
        epsilon=largest.epsilon,
        delta=largest.delta,
        unit=ledger.unit,
        adjacency=ledger.adjacency,
        source=f"{LEDGER} of {synthetic.name}",
    )


def predict_directly(
    real: Records,
    test: Sequence[str],
    classes: Sequence[str],
    *,
    promise: Promise,
    seeds: int,
    progress: Callable[[str], None],
) -> dict[str, list[Ints]]:
    """Return for each of ``WORD_MODELS`` its predictions of the test texts, one array [H] for each draw of the noise.

    Raises:
        ConfigError: If the unit is the user and the records do not name theirs.
    """
    from safesynthdp.evaluation import hashed_words as words
    from safesynthdp.training.units import Units

    number = {label: position for position, label in enumerate(classes)}
    classes_N = np.array([number.get(label, -1) for label in real.labels], dtype=np.int64)
    units = Units.of(real, unit=promise.unit)
    num_features = words.num_features_for(promise.epsilon)
    train = words.hashed_words(real.texts, num_features=num_features)
    held_out = words.hashed_words(test, num_features=num_features)
    found = dict[str, list[Ints]]()
    for model, predict in zip(WORD_MODELS, (_bayes, _regression), strict=True):
        found[model] = predict(
            train, classes_N, held_out, units, num_features, num_classes=len(classes), promise=promise, seeds=seeds
        )
        progress(f"trained {model} with DP on real (epsilon {promise.epsilon:.3g}, {len(units)} units)")
    return found


def predict_embedded_directly(
    real: Records,
    test: Sequence[str],
    classes: Sequence[str],
    *,
    embed: Embed,
    max_records: int,
    promise: Promise,
    seeds: int,
    progress: Callable[[str], None],
) -> list[Ints]:
    """Return what a logistic regression says that was trained with DP on vectors of a public encoder, [H] a draw.

    Args:
        real: T.
        test: The H texts to predict.
        classes: The public label set.
        embed: The encoder; the vector of a text depends on nothing else.
        max_records: Of more records each stays by a hash of its own text, with the same public probability.
        promise: What may be spent.
        seeds: Draws of the noise.
        progress: Gets a line.

    Raises:
        ConfigError: If the unit is the user and the records do not name theirs.
    """
    from safesynthdp.evaluation.direct_regression import EMBEDDED_LEARNING_RATE, EmbeddedRegression
    from safesynthdp.training.units import Units

    number = {label: position for position, label in enumerate(classes)}
    part = real.select(i for i, text in enumerate(real.texts) if _place(text) * len(real) < max_records)
    classes_N = np.array([number.get(label, -1) for label in part.labels], dtype=np.int64)
    units = Units.of(part, unit=promise.unit)
    vectors_ND = embed(part.texts)
    found = _train(
        lambda: EmbeddedRegression(vectors_ND.shape[1], len(classes)), list(vectors_ND), classes_N, list(embed(test)),
        units, name=EMBEDDED, learning_rate=EMBEDDED_LEARNING_RATE, promise=promise, seeds=seeds,
    )  # fmt: skip
    progress(f"trained {EMBEDDED} with DP on real (epsilon {promise.epsilon:.3g}, {len(units)} units)")
    return found


def _bayes(
    train: Sequence[Any], classes_N: Any, test: Sequence[Any], units: Any, num_features: int, *,
    num_classes: int, promise: Promise, seeds: int,
) -> list[Ints]:  # fmt: skip
    from safesynthdp.evaluation.direct_bayes import NaiveBayesMechanism, classify, count_table
    from safesynthdp.evaluation.hashed_words import unit_rows

    mechanism = NaiveBayesMechanism(epsilon=promise.epsilon, delta=promise.delta, adjacency=promise.adjacency)
    table_KF = count_table(unit_rows(train, num_features=num_features), classes_N, units.members, num_classes)
    test_MF = unit_rows(test, num_features=num_features)
    return [classify(mechanism.release(table_KF, keys=_keys("nb", seed)), test_MF) for seed in range(seeds)]


def _regression(
    train: Sequence[Any], classes_N: Any, test: Sequence[Any], units: Any, num_features: int, *,
    num_classes: int, promise: Promise, seeds: int,
) -> list[Ints]:  # fmt: skip
    from safesynthdp.evaluation.direct_regression import HashedRegression, learning_rate_for

    return _train(
        lambda: HashedRegression(num_features, num_classes), train, classes_N, test, units,
        name="lr", learning_rate=learning_rate_for(promise.epsilon), promise=promise, seeds=seeds,
    )  # fmt: skip


def _train(
    make: Callable[[], Any], train: Sequence[Any], classes_N: Any, test: Sequence[Any], units: Any, *,
    name: str, learning_rate: float, promise: Promise, seeds: int,
) -> list[Ints]:  # fmt: skip
    """Train a new regression by the engine for each draw of the noise; return what each says."""
    from safesynthdp.evaluation import direct_regression as regression

    mechanism = regression.make_mechanism(
        epsilon=promise.epsilon, delta=promise.delta, adjacency=promise.adjacency, num_units=len(units)
    )
    found = list[Ints]()
    for seed in range(seeds):
        model = make()
        regression.train(
            model, train, classes_N, units, mechanism=mechanism, learning_rate=learning_rate, keys=_keys(name, seed)
        )
        found.append(regression.classify(model, test))
    return found


def _place(text: str) -> float:
    """Return a number in [0, 1) that anybody can compute from the text."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:6], "big") / 2**48


def _keys(model: str, seed: int) -> StepKeys:
    return StepKeys.from_unsafe_seed(KEY_SEED + 1000 * MODELS.index(model) + seed)
