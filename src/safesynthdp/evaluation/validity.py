"""Is the text usable at all, are its labels mixed as they should be, and do they fit.

Here: shares of empty and cut texts, labels outside the label set, exact copies within the set; distance of the label
shares; agreement of the labels with a classifier of real text. Elsewhere: what a classifier makes of the text
(utility.py), near copies (fidelity_diversity.py). ``train_on`` names the texts that are measured: synthetic,
real_matched (a random subsample of T with the size of S: the ceiling) or base_model. Every record counts, no cap.

``label_tv`` is 1/2 sum |p - q| between the labels and those of the holdout. It is biased upwards by sampling: read it
against its ceiling; its interval is McDiarmid's (one record moves it by at most 1/n). ``label_consistency`` is the
share of records whose label a logistic classifier fitted on T gives too; its ceiling is its accuracy on H.
``truncated_share`` counts texts that end without a closing mark: it means something beside real text only.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from safesynthdp.evaluation.diversity import duplicates
from safesynthdp.evaluation.estimates import BASE, CEILING, SYNTHETIC, Estimate, Metric, rows
from safesynthdp.evaluation.form import is_cut
from safesynthdp.evaluation.inputs import Corpora, has_labels
from safesynthdp.evaluation.intervals import effective_size, wilson
from safesynthdp.evaluation.jackknife import clusters
from safesynthdp.evaluation.label_model import say_labels
from safesynthdp.evaluation.pairs import draw_records
from safesynthdp.evaluation.rows import LEVEL, Row
from safesynthdp.records import Records

MAX_TRAINING = 20_000
_STREAM = 100
EMPTY = Metric(group="validity", name="empty_share", direction="lower", worst=1.0, compares=False)
CUT = Metric(group="validity", name="truncated_share", direction="lower", worst=1.0, compares=False)
COPIES = Metric(group="diversity", name="duplicate_share", direction="lower", worst=1.0, compares=False)
OUTSIDE = Metric(group="validity", name="invalid_label_share", direction="lower", worst=1.0)
CONSISTENT = Metric(group="validity", name="label_consistency", direction="higher", worst=0.0, compares=False)
Shares = Callable[[Records], Sequence[bool]]


@dataclass(frozen=True, kw_only=True)
class _Set:
    """Records, and how many independent witnesses they are: copies of one text are one."""

    records: Records
    witnesses: float

    @classmethod
    def of(cls, records: Records) -> "_Set":
        return cls(records=records, witnesses=effective_size(np.bincount(clusters(records.texts)).tolist()))


Sets = Mapping[str, Sequence[_Set]]


def measure_validity(corpora: Corpora, *, seeds: int, with_labels: bool) -> list[Row]:
    """Return the rows of validity, and of label fidelity where there are labels; ``seeds`` subsamples of T."""
    sets: dict[str, list[_Set]] = {SYNTHETIC: [_Set.of(corpora.synthetic)]}
    sets[CEILING] = [_Set.of(part) for part in _subsamples(corpora, seeds)]
    if corpora.baseline is not None:
        sets[BASE] = [_Set.of(corpora.baseline)]
    found = rows(EMPTY, _each(sets, _empty), constant_ceiling=0.0)
    found += rows(CUT, _each(sets, _cut))
    found += rows(COPIES, _each(sets, lambda records: duplicates(records.texts).tolist()), model="exact")
    if not (with_labels and has_labels(corpora.holdout)):
        return found
    known = set(corpora.holdout.labels)
    outside = _each(sets, lambda records: [label not in known for label in records.labels])
    found += rows(OUTSIDE, outside, constant_ceiling=0.0)
    if corpora.baseline is not None and not corpora.baseline_has_labels:
        del sets[BASE]
    found += _label_distance(sets, corpora.holdout.labels)
    return found + _consistency(corpora, sets)


def total_variation(labels: Sequence[str], others: Sequence[str]) -> float:
    """Return ``1/2 sum_k |p_k - q_k|`` of two lists of labels, in [0, 1].

    >>> total_variation(["a", "b"], ["a", "a", "a", "b"])
    0.25
    """
    first, second = Counter(labels), Counter(others)
    return sum(abs(first[k] / len(labels) - second[k] / len(others)) for k in first.keys() | second.keys()) / 2


def _each(sets: Sets, measure: Shares) -> dict[str, Estimate]:
    """Return a share of every set, the mean over its draws."""
    return {role: _share(drawn, [_mean(measure(one.records)) for one in drawn]) for role, drawn in sets.items()}


def _subsamples(corpora: Corpora, seeds: int) -> list[Records]:
    """Return random parts of T with the size of S, or T itself if it is not larger."""
    size = len(corpora.synthetic)
    if size >= len(corpora.real):
        return [corpora.real]
    return [draw_records(corpora.real, size, stream=_STREAM + 1 + seed) for seed in range(seeds)]


def _share(drawn: Sequence[_Set], values: Sequence[float]) -> Estimate:
    """Return the mean of shares with Wilson's interval for one of them."""
    value, one = _mean(values), drawn[0]
    low, high = wilson(value * one.witnesses, one.witnesses)
    return Estimate(value=value, low=low, high=high, n=len(one.records), seeds=len(drawn))


def _label_distance(sets: Sets, holdout: Sequence[str]) -> list[Row]:
    """Return the distance of the labels with McDiarmid's interval, in which copies of one text are one witness."""
    constant = total_variation([Counter(sorted(holdout)).most_common(1)[0][0]], holdout)
    metric = Metric(group="label_fidelity", name="label_tv", direction="lower", worst=constant)
    found = dict[str, Estimate]()
    for role, drawn in sets.items():
        value = _mean([total_variation(one.records.labels, holdout) for one in drawn])
        half = math.sqrt(math.log(2 / (1 - LEVEL)) / 2 * (1 / drawn[0].witnesses + 1 / len(holdout)))
        found[role] = Estimate(
            value=value, low=max(0.0, value - half), high=min(1.0, value + half), n=len(drawn[0].records),
            seeds=len(drawn),
        )  # fmt: skip
    return rows(metric, found)


def _consistency(corpora: Corpora, sets: Sets) -> list[Row]:
    """Return how often a classifier of T agrees with the labels, and its accuracy on H in the place of the ceiling."""
    if not has_labels(corpora.real) or not has_labels(corpora.synthetic):
        return []
    training = draw_records(corpora.real, MAX_TRAINING, stream=_STREAM)
    parts = {role: drawn[0] for role, drawn in sets.items()} | {CEILING: _Set.of(corpora.holdout)}
    tested = [text for one in parts.values() for text in one.records.texts]
    said = say_labels(training.texts, training.labels, about=tested)
    if said is None:
        return []
    found, start = dict[str, Estimate](), 0
    for role, one in parts.items():
        guessed = said[start : start + len(one.records)]
        start += len(one.records)
        agrees = _mean([guess == label for guess, label in zip(guessed, one.records.labels, strict=True)])
        found[role] = _share([one], [agrees])
    floor = _chance(corpora.synthetic.labels, said[: len(corpora.synthetic)])
    metric = replace(CONSISTENT, worst=floor)
    return rows(metric, _with_chance(found, floor), also_reads=("real", "holdout"))


def _with_chance(found: Mapping[str, Estimate], floor: float) -> dict[str, Estimate]:
    """The floor is the better of shuffled labels and the untuned model."""
    base = found.get(BASE)
    if base is None or base.value is None or base.value >= floor:
        return dict(found)
    return {role: estimate for role, estimate in found.items() if role != BASE}


def _chance(labels: Sequence[str], said: Sequence[str]) -> float:
    """Return the agreement that shuffled labels would have: ``sum_k p_k q_k``."""
    given, guessed = Counter(labels), Counter(said)
    return sum(given[label] * guessed[label] for label in given) / (len(labels) * len(said))


def _empty(records: Records) -> list[bool]:
    return [not text.strip() for text in records.texts]


def _cut(records: Records) -> list[bool]:
    return [is_cut(text) for text in records.texts]


def _mean(values: Sequence[float] | Sequence[bool]) -> float:
    return sum(values) / len(values)
