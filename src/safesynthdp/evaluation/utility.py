"""Train on synthetic, test on real (TSTR), beside everything that it must be read against.

Here: who is trained on what, and the scores. Elsewhere: the training sets (training_sets.py), the classifiers
(downstream.py), direct DP training (direct.py), intervals (intervals.py), the rows (utility_rows.py).
Source: Esteban et al. (2017), arXiv:1706.02633, section 3. All rows are measured on the untouched holdout H.

``train_on`` is one of
    synthetic         S, as it is: empty texts and labels outside the label set stay in, since a user would get them
    real              all of T: the most that real data gives
    real_matched      random subsamples of T with the size of S: the ceiling
    base_model        text of the untuned model (epsilon = 0), subsampled to the size of S
    shuffled_labels   S with its labels permuted: what the texts give without their labels
    majority          the most common label of H, always; its ``model`` is ``majority``
    dp_direct         a classifier trained on T with DP at the epsilon of S: what could be had instead of S
In the rows of ``accuracy_ratio``, which are about S, it names the set below the fraction bar: real or real_matched.
The floor of a row is the best of base_model, shuffled_labels and majority: what can be had without private data.
``seeds`` counts draws (subsample, permutation, classifier, DP noise). S is one draw of its generator; another would be
another sampling run. No family reads more than its cap (``Settings``); where one binds, a warning says so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safesynthdp.evaluation.direct import EMBEDDED, WORD_MODELS, Promise, predict_directly, predict_embedded_directly
from safesynthdp.evaluation.downstream import Settings, most_common
from safesynthdp.evaluation.inputs import Corpora
from safesynthdp.evaluation.intervals import Scores, percentile, score
from safesynthdp.evaluation.rows import Row
from safesynthdp.evaluation.training_sets import CEILING, STREAMS, TrainingSet, make_training_sets, subsamples
from safesynthdp.evaluation.utility_rows import DIRECT, NO_BASELINE, UtilityTable
from safesynthdp.records import Records

__all__ = ["CEILING", "NO_BASELINE", "Result", "measure_utility", "subsamples"]
_HOLDOUT_STREAM = 5
Ints = NDArray[np.intp]
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Result:
    """Rows, the sizes of the training sets, and what the user has to know."""

    rows: list[Row]
    train_sizes: dict[str, int]
    warnings: list[str]


def measure_utility(
    corpora: Corpora,
    *,
    families: Sequence[str],
    seeds: int,
    progress: Say,
    settings: Settings | None = None,
    promise: Promise | str = "no epsilon was given for it",
) -> Result:
    """Train every family on every training set and return the rows, in the order of the module docstring.

    Args:
        corpora: T, S, H and perhaps text of the untuned model, all with labels.
        families: Names of ``downstream.FAMILIES``; the first is the headline.
        seeds: Draws of whatever is random.
        progress: Gets a line for each training set.
        settings: Caps and encoders.
        promise: What direct DP training may spend, or why it is left out.

    Raises:
        UserError: If an encoder cannot be loaded, or no noise suits the promise.
    """
    exam = _Exam.of(corpora.holdout, families, settings or Settings())
    training_sets = make_training_sets(corpora)
    scores, warnings = dict[tuple[str, str], Scores](), _size_warnings(corpora, families, exam.settings)
    for training_set in training_sets:
        found, problems = exam.sit(training_set, families, seeds=seeds)
        scores |= {(training_set.train_on, family): result for family, result in found.items()}
        warnings += [f"utility: {training_set.train_on}: {problem}" for problem in problems]
        progress(f"trained {', '.join(families)} on {training_set.train_on}")
    if (CEILING, families[0]) not in scores:  # S is as large as T, so a subsample of T at equal n is T
        scores |= {(CEILING, family): scores["real", family] for family in families}
    scores |= {("majority", family): exam.majority(family) for family in families}
    why_no_direct = promise if isinstance(promise, str) else None
    if isinstance(promise, Promise):
        scores |= exam.sit_directly(corpora.real, promise, families, seeds=seeds, progress=progress)
        warnings += _better_directly(scores, families, exam)
    table = UtilityTable(
        tests=exam.tests, classes=exam.classes, scores=scores, training_sets=tuple(training_sets),
        why_no_baseline=NO_BASELINE if corpora.baseline is None else "the baseline has no labels",
        why_no_direct=why_no_direct,
    )  # fmt: skip
    rows = [row for family in families for row in table.rows(family)]
    rows += table.majority_rows(families[0]) + table.direct_rows(tuple(families), WORD_MODELS, EMBEDDED)
    sizes = {t.train_on: min(t.size, len(t.records)) for t in training_sets}
    return Result(rows=rows, train_sizes=sizes, warnings=warnings)


@dataclass(frozen=True, kw_only=True)
class _Exam:
    """The questions: which holdout records each model predicts, and their classes."""

    tests: dict[str, Records]
    truths: dict[str, Ints]
    classes: list[str]
    settings: Settings

    @classmethod
    def of(cls, holdout: Records, families: Sequence[str], settings: Settings) -> "_Exam":
        """Cut H to the cap of each family; direct DP training answers what the families on tf-idf answer."""
        classes, tests = sorted(set(holdout.labels)), dict[str, Records]()
        caps = {family: settings.max_test(family) for family in families}
        caps |= dict.fromkeys(WORD_MODELS, settings.max_train_records)
        parts = {cap: subsamples(holdout, cap, seeds=1, stream=_HOLDOUT_STREAM)[0] for cap in set(caps.values())}
        tests = {model: parts[cap] for model, cap in caps.items()}
        truths = {model: _encode(part.labels, classes) for model, part in tests.items()}
        return cls(tests=tests, truths=truths, classes=classes, settings=settings)

    def sit(
        self, training_set: TrainingSet, families: Sequence[str], *, seeds: int
    ) -> tuple[dict[str, Scores], list[str]]:
        """Return the scores of each family, and the problems of the training."""
        said = training_set.predict(
            lambda family: self.tests[family].texts, families=families, seeds=seeds, settings=self.settings
        )
        scores = {
            family: self.mark(
                family, [_encode(s.classes[family], self.classes) for s in said if family in s.classes],
                train_on=training_set.train_on,
            )
            for family in families
        }  # fmt: skip
        return scores, sorted({problem for s in said for problem in s.problems})

    def sit_directly(
        self, real: Records, promise: Promise, families: Sequence[str], *, seeds: int, progress: Say
    ) -> dict[tuple[str, str], Scores]:
        """Return the scores of direct DP training; on vectors only where ``emb`` was asked for and can."""
        found = predict_directly(
            real, self.tests[WORD_MODELS[0]].texts, self.classes, promise=promise, seeds=seeds, progress=progress
        )
        if EMBEDDED in families and self.settings.embed is not None:
            found[EMBEDDED] = predict_embedded_directly(
                real, self.tests[EMBEDDED].texts, self.classes, embed=self.settings.embed,
                max_records=self.settings.max_train_records, promise=promise, seeds=seeds, progress=progress,
            )  # fmt: skip
        return {(DIRECT, model): self.mark(model, said, train_on=DIRECT) for model, said in found.items()}

    def majority(self, family: str) -> Scores:
        """Return the score of always saying the most common class."""
        truth = self.truths[family]
        constant = self.classes.index(most_common(self.tests[family].labels))
        return self.mark(family, [np.full_like(truth, constant)], train_on="majority")

    def mark(self, model: str, predicted: Sequence[Ints], *, train_on: str) -> Scores:
        """Return the scores of some draws of one model."""
        stream = STREAMS.index(train_on)
        return score(self.truths[model], predicted, num_classes=len(self.classes), stream=stream)


def _size_warnings(corpora: Corpora, families: Sequence[str], settings: Settings) -> list[str]:
    """A reference with fewer records than S is not a reference at equal n, and a capped one not one at full n."""
    found, size = list[str](), len(corpora.synthetic)
    if size > len(corpora.real):
        found.append(f"utility: real has {len(corpora.real)} records, synthetic {size}: the ceiling is all of real")
    if corpora.baseline is not None and len(corpora.baseline) < size:
        found.append(f"utility: the baseline has {len(corpora.baseline)} records, synthetic {size}: the floor is low")
    largest = max(size, len(corpora.real))
    capped = {family: settings.max_train(family) for family in families if settings.max_train(family) < largest}
    if capped:
        caps = ", ".join(f"{family} {cap}" for family, cap in capped.items())
        found.append(f"utility: no model was trained on more than a random part of so many records: {caps}")
    tested = {family: settings.max_test(family) for family in families}
    cut = {family: cap for family, cap in tested.items() if cap < len(corpora.holdout)}
    if cut:
        caps = ", ".join(f"{family} {cap}" for family, cap in cut.items())
        found.append(f"utility: tested on a random part of the holdout: {caps}")
    return found


def _better_directly(scores: Mapping[tuple[str, str], Scores], families: Sequence[str], exam: _Exam) -> list[str]:
    """Say where direct DP training beats the synthetic text beyond the interval of the paired difference.

    Only what was tested on the same records is compared: the best on words, and apart from it what embeds, where that
    predicts a smaller part.
    """
    trained = [model for model in (*WORD_MODELS, EMBEDDED) if (DIRECT, model) in scores]
    found = list[str]()
    for size in sorted({len(exam.tests[model]) for model in trained}, reverse=True):
        rivals = [family for family in families if len(exam.tests[family]) == size]
        direct = [model for model in trained if len(exam.tests[model]) == size]
        found += _beaten(scores, rivals, direct) if rivals else []
    return found


def _beaten(scores: Mapping[tuple[str, str], Scores], rivals: Sequence[str], trained: Sequence[str]) -> list[str]:
    best = max(rivals, key=lambda family: scores["synthetic", family].accuracy)
    model = max(trained, key=lambda name: scores[DIRECT, name].accuracy)
    direct, synthetic = scores[DIRECT, model], scores["synthetic", best]
    low, high = percentile(direct.accuracy_D - synthetic.accuracy_D)
    if low <= 0:
        return []
    return [
        f"utility: {model} trained directly with DP at the same epsilon is right more often ({direct.accuracy:.3f}) "
        f"than {best} on the synthetic text ({synthetic.accuracy:.3f}; difference {low:.3f} to {high:.3f}): for this "
        "one task it may serve better"
    ]


def _encode(labels: Sequence[str], classes: Sequence[str]) -> Ints:
    """Return the number of each label; a label outside the classes gets the number after the last."""
    number = {label: position for position, label in enumerate(classes)}
    return np.array([number.get(label, len(classes)) for label in labels], dtype=np.intp)
