"""From scores to the rows of utility.

Here: rows, their ceilings and floors. Elsewhere: the scores (utility.py), what ``train_on`` can be (utility.py).
"""

from dataclasses import dataclass

from safesynthdp.evaluation.intervals import Scores, percentile, wilson
from safesynthdp.evaluation.rows import Row, Source
from safesynthdp.evaluation.training_sets import CEILING, FLOORS, TrainingSet
from safesynthdp.records import Records

NO_BASELINE = "no --baseline was given: sample one with `safesynthdp sample --untuned`"
DIRECT = "dp_direct"
RATIOS = ("real", CEILING)
_DIRECT_READS: tuple[Source, ...] = ("real", "holdout")
_ORDER = ("synthetic", "real", CEILING, "base_model", "shuffled_labels")


@dataclass(frozen=True, kw_only=True)
class UtilityTable:
    """All scores, by (train_on, model), and the rows they make."""

    tests: dict[str, Records]
    """The holdout records that each model predicted."""
    classes: list[str]
    scores: dict[tuple[str, str], Scores]
    training_sets: tuple[TrainingSet, ...]
    why_no_baseline: str
    why_no_direct: str | None
    """Reason why direct DP training was left out; None if it was done."""

    def rows(self, family: str) -> list[Row]:
        """Return the rows of one family of classifiers."""
        rows = [row for name in _ORDER for row in self._of(name, family)]
        return rows + [self._ratio(family, to) for to in RATIOS]

    def direct_rows(self, families: tuple[str, ...], words: tuple[str, ...], embedded: str) -> list[Row]:
        """Return the rows of direct DP training: of each of its models, or null with the reason.

        Args:
            families: Those that were asked for.
            words: Models on words.
            embedded: The model on vectors, which has rows where its family was asked for.
        """
        rows = list[Row]()
        for model in (*words, *([embedded] if embedded in families else [])):
            beside = model if model in families else families[0]
            if (DIRECT, model) in self.scores:
                rows += self._overall(DIRECT, beside, model=model, reads=_DIRECT_READS)
            elif model in families or not set(words) & set(families):
                reason = self.why_no_direct or "it needs an encoder (--embedding_model): tf-idf counts private texts"
                rows += [self._null(name, DIRECT, beside, model, reason, reads=_DIRECT_READS) for name in _OVERALL]
        return rows

    def majority_rows(self, family: str) -> list[Row]:
        """Return the rows of the constant prediction; the ceiling is that of the first family."""
        return self._overall("majority", family, model="majority", reads=("holdout",))

    def _of(self, train_on: str, family: str) -> list[Row]:
        if (train_on, family) not in self.scores:
            reads: tuple[Source, ...] = ("holdout",)
            return [self._null(name, train_on, family, family, self.why_no_baseline, reads=reads) for name in _OVERALL]
        drawn = next((t for t in self.training_sets if t.train_on == train_on), None)
        reads = drawn.reads if drawn else ("real", "holdout")
        return [*self._overall(train_on, family, model=family, reads=reads), *self._recalls(train_on, family, reads)]

    def _overall(self, train_on: str, family: str, *, model: str, reads: tuple[Source, ...]) -> list[Row]:
        """Accuracy and macro-F1; ``family`` names the classifier of ceiling and floor."""
        key = (train_on, family if train_on == "majority" else model)
        found, rows, size = self.scores[key], list[Row](), len(self.tests[family])
        for name, value, draws in (
            ("accuracy", found.accuracy, found.accuracy_D),
            ("macro_f1", found.macro_f1, found.macro_f1_D),
        ):
            low, high = percentile(draws)
            if low == high:  # all right or all wrong: the bootstrap sees no variation
                low, high = wilson(value * size, size)
            rows.append(
                Row(
                    group="utility", name=name, model=model, train_on=train_on, value=value, low=low, high=high,
                    n=size, seeds=found.num_seeds, direction="higher", reads=reads,
                    ceiling=self._ceiling(family, name), floor=self._floor(family, name),
                )
            )  # fmt: skip
        return rows

    def _recalls(self, train_on: str, family: str, reads: tuple[Source, ...]) -> list[Row]:
        """Recall of each class; ``n`` is the number of its test records."""
        counts, rows, found = self.tests[family].label_counts(), list[Row](), self.scores[train_on, family]
        for k, label in enumerate(self.classes):
            size = counts.get(label, 0)
            if not size:
                continue  # a rare class of a large holdout, which the capped part of it misses
            value = float(found.recall_K[k])
            low, high = wilson(value * size, size)
            floors = [self.scores[name, family].recall_K[k] for name in FLOORS[:2] if (name, family) in self.scores]
            rows.append(
                Row(
                    group="utility", name="recall", model=family, train_on=train_on, label=label,
                    value=value, low=low, high=high, n=size, seeds=found.num_seeds, direction="higher", reads=reads,
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
            if ours.accuracy == theirs.accuracy == 1:  # as above: no draw errs, and other records might
                least = wilson(len(self.tests[family]), len(self.tests[family]))[0]
                interval = (least, 1 / least)
        return Row(
            group="utility", name="accuracy_ratio", model=family, train_on=to, value=value,
            low=interval[0], high=interval[1], n=len(self.tests[family]),
            seeds=max(ours.num_seeds, theirs.num_seeds), direction="higher", reads=("synthetic", "real", "holdout"),
            ceiling=None if value is None else matched.accuracy / theirs.accuracy,
            floor=None if value is None else self._floor(family, "accuracy") / theirs.accuracy,
            reason="real text gets no test record right in some draw" if value is None else None,
        )  # fmt: skip

    def _null(
        self, name: str, train_on: str, family: str, model: str, reason: str, *, reads: tuple[Source, ...]
    ) -> Row:
        return Row(
            group="utility", name=name, model=model, train_on=train_on, value=None, n=len(self.tests[family]), seeds=0,
            ceiling=self._ceiling(family, name), floor=self._floor(family, name),
            direction="higher", reads=reads, reason=reason,
        )  # fmt: skip

    def _ceiling(self, family: str, name: str) -> float:
        return float(getattr(self.scores[CEILING, family], name))

    def _floor(self, family: str, name: str) -> float:
        return max(float(getattr(self.scores[f, family], name)) for f in FLOORS if (f, family) in self.scores)


_OVERALL = ("accuracy", "macro_f1")
