"""What a classifier is trained on: the synthetic text, and everything that it must be read against.

Here: the sets, and the draws that seeds make of them. Elsewhere: the classifiers (downstream.py), the rows
(utility_rows.py). A seed varies the sample of a set where the set is larger than what is taken, the permutation of
labels, and the classifier's own randomness where it has some; where it varies nothing there is one draw.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from safesynthdp.evaluation.downstream import FAMILIES, Predictions, Settings, predict
from safesynthdp.evaluation.inputs import Corpora
from safesynthdp.evaluation.rows import Source
from safesynthdp.records import Records

SUBSAMPLE_SEED = 7_100
CEILING = "real_matched"
FLOORS = ("base_model", "shuffled_labels", "majority")
STREAMS = ("synthetic", "real", CEILING, *FLOORS, "dp_direct")
_SHUFFLE, _SAMPLE = 3, 6
Labelled = tuple[Sequence[str], Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Records, how many of them are taken, and which inputs that reads."""

    train_on: str
    records: Records
    size: int
    """Records of one draw, before the cap of a family."""
    reads: tuple[Source, ...]
    stream: int
    """Separates its subsamples from those of another set."""
    is_shuffled: bool = False

    def num_draws(self, family: str, *, seeds: int, settings: Settings) -> int:
        """Return ``seeds``, or 1 where another seed would give the same classifier."""
        is_part = self._size(settings.max_train(family)) < len(self.records)
        return seeds if is_part or self.is_shuffled or FAMILIES[family].is_random else 1

    def draw(self, seed: int, *, at_most: int) -> Labelled:
        """Return texts and labels of one draw."""
        records, size = self.records, self._size(at_most)
        if size < len(records):
            records = subsamples(records, size, seeds=seed + 1, stream=self.stream, first=seed)[0]
        if not self.is_shuffled:
            return records.texts, records.labels
        order = np.random.default_rng([SUBSAMPLE_SEED, _SHUFFLE, seed]).permutation(len(records))
        return records.texts, [records.labels[i] for i in order]

    def predict(
        self, test_of: Callable[[str], Sequence[str]], *, families: Sequence[str], seeds: int, settings: Settings
    ) -> list[Predictions]:
        """Return what the families of each draw say; families with equal training and test sets share features."""
        found = list[Predictions]()
        for seed in range(seeds):
            groups = dict[tuple[int, int], list[str]]()
            for family in families:
                if seed < self.num_draws(family, seeds=seeds, settings=settings):
                    size, test = self._size(settings.max_train(family)), settings.max_test(family)
                    groups.setdefault((size, test), []).append(family)
            for (size, _), names in groups.items():
                texts, labels = self.draw(seed, at_most=size)
                test_texts = test_of(names[0])
                found.append(predict(texts, labels, test=test_texts, families=names, seed=seed, settings=settings))
        return found

    def _size(self, at_most: int) -> int:
        return min(self.size, at_most, len(self.records))


def make_training_sets(corpora: Corpora) -> list[TrainingSet]:
    """Return every set but the constant prediction and direct DP training.

    ``real_matched`` is left out where S is not smaller than T: a subsample of T at equal n is T.
    """
    real, synthetic, baseline = corpora.real, corpora.synthetic, corpora.baseline
    found = [
        _plain("synthetic", synthetic, len(synthetic), _SAMPLE, "synthetic"),
        _plain("real", real, len(real), 1, "real"),
    ]
    if len(synthetic) < len(real):
        found.append(_plain(CEILING, real, len(synthetic), 1, "real"))
    if baseline is not None and corpora.baseline_has_labels:
        found.append(_plain("base_model", baseline, len(synthetic), 2))
    shuffled = TrainingSet(
        train_on="shuffled_labels", records=synthetic, size=len(synthetic), reads=("synthetic", "holdout"),
        stream=_SAMPLE, is_shuffled=True,
    )  # fmt: skip
    return [*found, shuffled]


def subsamples(records: Records, size: int, *, seeds: int, stream: int, first: int = 0) -> list[Records]:
    """Return random subsamples without replacement, one for each seed, or the records themselves if not more."""
    if size >= len(records):
        return [records]
    generators = [np.random.default_rng([SUBSAMPLE_SEED, stream, seed]) for seed in range(first, seeds)]
    return [records.select(sorted(rng.choice(len(records), size=size, replace=False).tolist())) for rng in generators]


def _plain(train_on: str, records: Records, size: int, stream: int, *reads: Source) -> TrainingSet:
    return TrainingSet(
        train_on=train_on, records=records, size=size, reads=(*reads, "holdout"), stream=stream
    )  # fmt: skip
