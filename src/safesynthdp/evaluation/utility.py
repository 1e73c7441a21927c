"""Train on synthetic, test on real (TSTR), beside everything that it must be read against.

Here: the training sets and their rows. Elsewhere: the classifiers (downstream.py), the intervals (intervals.py).
Source: Esteban et al. (2017), arXiv:1706.02633, section 3. All rows are measured on the untouched holdout H.

``train_on`` is one of
    synthetic         S, as it is: empty texts and labels outside the label set stay in, since a user would get them
    real              all of T: the most that real data gives
    real_matched      random subsamples of T with the size of S: the ceiling
    base_model        text of the untuned model (epsilon = 0), subsampled to the size of S
    shuffled_labels   S with its labels permuted: what the texts give without their labels
    majority          the most common label of H, always; its ``model`` is ``majority``
In the rows of ``accuracy_ratio``, which are about S, it names the set below the fraction bar: real or real_matched.
The floor of a row is the best of base_model, shuffled_labels and majority: what can be had without private data.
``seeds`` counts draws (subsample, permutation). S is one draw; another would be another training run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safesynthdp.evaluation.downstream import most_common, predict
from safesynthdp.evaluation.inputs import Corpora
from safesynthdp.evaluation.intervals import Scores, percentile, score, wilson
from safesynthdp.evaluation.rows import Row, Source
from safesynthdp.records import Records

SUBSAMPLE_SEED = 7_100
CEILING = "real_matched"
FLOORS = ("base_model", "shuffled_labels", "majority")
NO_BASELINE = "no --baseline was given: sample one with `safesynthdp sample --untuned`"
_STREAMS = ("synthetic", "real", CEILING, *FLOORS)
Labelled = tuple[Sequence[str], Sequence[str]]
Ints = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """What a classifier is trained on, once for each draw."""

    train_on: str
    draws: tuple[Labelled, ...]
    reads: tuple[Source, ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """Rows, the sizes of the training sets, and what the user has to know."""

    rows: list[Row]
    train_sizes: dict[str, int]
    warnings: list[str]


def measure_utility(
    corpora: Corpora, *, families: Sequence[str], seeds: int, progress: Callable[[str], None]
) -> Result:
    """Train every family on every training set and return the rows, in the order of the module docstring."""
    holdout = corpora.holdout
    classes = sorted(set(holdout.labels))
    truth = _encode(holdout.labels, classes)
    scores, warnings = dict[tuple[str, str], Scores](), _size_warnings(corpora)
    training_sets = _training_sets(corpora, seeds=seeds)
    for training_set in training_sets:
        by_family, problems = _score(training_set, holdout, truth, classes, families)
        scores |= {(training_set.train_on, family): found for family, found in by_family.items()}
        warnings += [f"utility: {training_set.train_on}: {problem}" for problem in problems]
        progress(f"trained {', '.join(families)} on {training_set.train_on}")
    if (CEILING, families[0]) not in scores:  # S is as large as T, so a subsample of T at equal n is T
        scores |= {(CEILING, family): scores["real", family] for family in families}
    majority = score(truth, [np.full_like(truth, classes.index(most_common(holdout.labels)))], num_classes=len(classes))
    scores |= {("majority", family): majority for family in families}
    table = _Table(corpora=corpora, classes=classes, scores=scores, training_sets=tuple(training_sets))
    rows = [row for family in families for row in table.rows(family)] + table.majority_rows(families[0])
    sizes = {t.train_on: len(t.draws[0][0]) for t in training_sets}
    return Result(rows=rows, train_sizes=sizes, warnings=warnings)


def subsamples(records: Records, size: int, *, seeds: int, stream: int) -> list[Records]:
    """Return ``seeds`` random subsamples without replacement, or the records themselves if there are not more."""
    if size >= len(records):
        return [records]
    generators = [np.random.default_rng([SUBSAMPLE_SEED, stream, seed]) for seed in range(seeds)]
    return [records.select(sorted(rng.choice(len(records), size=size, replace=False).tolist())) for rng in generators]


def _training_sets(corpora: Corpora, *, seeds: int) -> list[TrainingSet]:
    real, synthetic, baseline = corpora.real, corpora.synthetic, corpora.baseline
    orders = [np.random.default_rng([SUBSAMPLE_SEED, 3, seed]).permutation(len(synthetic)) for seed in range(seeds)]
    shuffled = tuple((synthetic.texts, [synthetic.labels[i] for i in order]) for order in orders)
    found = [_plain("synthetic", [synthetic], "synthetic"), _plain("real", [real], "real")]
    if len(synthetic) < len(real):
        found.append(_plain(CEILING, subsamples(real, len(synthetic), seeds=seeds, stream=1), "real"))
    if baseline is not None and corpora.baseline_has_labels:
        found.append(_plain("base_model", subsamples(baseline, len(synthetic), seeds=seeds, stream=2)))
    return [*found, TrainingSet(train_on="shuffled_labels", draws=shuffled, reads=("synthetic", "holdout"))]


def _size_warnings(corpora: Corpora) -> list[str]:
    """A reference with fewer records than S is not a reference at equal n."""
    found, size = list[str](), len(corpora.synthetic)
    if size > len(corpora.real):
        found.append(f"utility: real has {len(corpora.real)} records, synthetic {size}: the ceiling is all of real")
    if corpora.baseline is not None and len(corpora.baseline) < size:
        found.append(f"utility: the baseline has {len(corpora.baseline)} records, synthetic {size}: the floor is low")
    return found


def _plain(train_on: str, draws: Sequence[Records], *reads: Source) -> TrainingSet:
    return TrainingSet(train_on=train_on, draws=tuple((d.texts, d.labels) for d in draws), reads=(*reads, "holdout"))


def _score(
    training_set: TrainingSet, holdout: Records, truth: Ints, classes: Sequence[str], families: Sequence[str]
) -> tuple[dict[str, Scores], list[str]]:
    """Return the scores of each family, and the problems of the training."""
    said = [predict(texts, labels, test=holdout.texts, families=families) for texts, labels in training_set.draws]
    stream = _STREAMS.index(training_set.train_on)
    scores = {
        family: score(
            truth, [_encode(s.classes[family], classes) for s in said], num_classes=len(classes), stream=stream
        )
        for family in families
    }
    return scores, sorted({problem for s in said for problem in s.problems})


def _encode(labels: Sequence[str], classes: Sequence[str]) -> Ints:
    """Return the number of each label; a label outside the classes gets the number after the last."""
    number = {label: position for position, label in enumerate(classes)}
    return np.array([number.get(label, len(classes)) for label in labels], dtype=np.intp)


@dataclass(frozen=True, kw_only=True)
class _Table:
    """All scores, and the rows they make."""

    corpora: Corpora
    classes: list[str]
    scores: dict[tuple[str, str], Scores]
    training_sets: tuple[TrainingSet, ...]

    def rows(self, family: str) -> list[Row]:
        """Return the rows of one family of classifiers."""
        names = ["synthetic", "real", CEILING, "base_model", "shuffled_labels"]
        rows = [row for name in names for row in self._of(name, family)]
        return rows + [self._ratio(family, to) for to in ("real", CEILING)]

    def majority_rows(self, family: str) -> list[Row]:
        """Return the rows of the constant prediction; the ceiling is that of the first family."""
        return self._overall("majority", family, model="majority", reads=("holdout",), seeds=1)

    def _of(self, train_on: str, family: str) -> list[Row]:
        if (train_on, family) not in self.scores:
            return [self._missing(name, train_on, family) for name in ("accuracy", "macro_f1")]
        drawn = next((t for t in self.training_sets if t.train_on == train_on), None)
        reads: tuple[Source, ...] = drawn.reads if drawn else ("real", "holdout")
        seeds = len(drawn.draws) if drawn else 1
        rows = self._overall(train_on, family, model=family, reads=reads, seeds=seeds)
        return rows + self._recalls(train_on, family, reads=reads, seeds=seeds)

    def _overall(self, train_on: str, family: str, *, model: str, reads: tuple[Source, ...], seeds: int) -> list[Row]:
        """Accuracy and macro-F1."""
        found, rows = self.scores[train_on, family], list[Row]()
        for name, value, draws in (
            ("accuracy", found.accuracy, found.accuracy_D),
            ("macro_f1", found.macro_f1, found.macro_f1_D),
        ):
            low, high = percentile(draws)
            if name == "accuracy" and low == high:  # all right or all wrong: the bootstrap sees no variation
                low, high = wilson(value * self._num_holdout, self._num_holdout)
            rows.append(
                Row(
                    group="utility", name=name, model=model, train_on=train_on, value=value, low=low, high=high,
                    n=self._num_holdout, seeds=seeds, direction="higher", reads=reads,
                    ceiling=getattr(self.scores[CEILING, family], name), floor=self._floor(family, name),
                )
            )  # fmt: skip
        return rows

    def _recalls(self, train_on: str, family: str, *, reads: tuple[Source, ...], seeds: int) -> list[Row]:
        """Recall of each class; ``n`` is the number of its test records."""
        counts, rows = self.corpora.holdout.label_counts(), list[Row]()
        for k, label in enumerate(self.classes):
            value = float(self.scores[train_on, family].recall_K[k])
            low, high = wilson(value * counts[label], counts[label])
            floors = [self.scores[name, family].recall_K[k] for name in FLOORS[:2] if (name, family) in self.scores]
            rows.append(
                Row(
                    group="utility", name="recall", model=family, train_on=train_on, label=label,
                    value=value, low=low, high=high, n=counts[label], seeds=seeds, direction="higher", reads=reads,
                    ceiling=float(self.scores[CEILING, family].recall_K[k]), floor=float(max(floors)),
                )
            )  # fmt: skip
        return rows

    def _ratio(self, family: str, to: str) -> Row:
        """Accuracy of S over accuracy of real text; both are resampled on the same test records."""
        ours, theirs, matched = (self.scores[name, family] for name in ("synthetic", to, CEILING))
        value: float | None = None
        interval: tuple[float | None, float | None] = (None, None)
        if theirs.accuracy_D.min() > 0:
            value = ours.accuracy / theirs.accuracy
            interval = percentile(ours.accuracy_D / theirs.accuracy_D)
        return Row(
            group="utility", name="accuracy_ratio", model=family, train_on=to, value=value,
            low=interval[0], high=interval[1], n=self._num_holdout, direction="higher",
            reads=("synthetic", "real", "holdout"),
            ceiling=None if value is None else matched.accuracy / theirs.accuracy,
            floor=None if value is None else self._floor(family, "accuracy") / theirs.accuracy,
            reason="real text gets no test record right in some draw" if value is None else None,
        )  # fmt: skip

    def _missing(self, name: str, train_on: str, family: str) -> Row:
        reason = NO_BASELINE if self.corpora.baseline is None else "the baseline has no labels"
        return Row(
            group="utility", name=name, model=family, train_on=train_on, value=None, n=self._num_holdout, seeds=0,
            ceiling=getattr(self.scores[CEILING, family], name), floor=self._floor(family, name),
            direction="higher", reads=("holdout",), reason=reason,
        )  # fmt: skip

    def _floor(self, family: str, name: str) -> float:
        return max(float(getattr(self.scores[f, family], name)) for f in FLOORS if (f, family) in self.scores)

    @property
    def _num_holdout(self) -> int:
        return len(self.corpora.holdout)
