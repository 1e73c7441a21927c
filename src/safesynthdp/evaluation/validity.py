"""Is the text usable at all, and are its labels mixed as they should be.

Here: shares of empty texts, labels outside the label set, duplicates; distance of the label shares. Elsewhere: what a
classifier makes of it (utility.py). ``train_on`` names the texts that are measured: synthetic, real_matched (random
subsamples of T with the size of S: the ceiling) or base_model. ``label_tv`` is 1/2 sum |p - q| between their labels and
those of the holdout; it has no interval, since it is biased upwards by sampling: read it against its ceiling.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from safesynthdp.evaluation.downstream import most_common
from safesynthdp.evaluation.inputs import Corpora, has_labels
from safesynthdp.evaluation.intervals import wilson
from safesynthdp.evaluation.rows import Row, Source
from safesynthdp.evaluation.utility import CEILING, subsamples
from safesynthdp.records import Records, canonical_text


def measure_validity(corpora: Corpora, *, seeds: int, with_labels: bool) -> list[Row]:
    """Return the rows of validity, and of label fidelity where there are labels."""
    real = subsamples(corpora.real, len(corpora.synthetic), seeds=seeds, stream=1)
    rows = [_share(corpora, "empty_share", _empty, (), ceiling=0.0)]
    copies = _mean([_duplicates(records) for records in real])
    rows.append(_share(corpora, "duplicate_share", _duplicates, (), ceiling=copies))
    rows.append(_reference(rows[-1], copies, seeds=len(real)))
    if not (with_labels and has_labels(corpora.holdout)):
        return rows
    known = set(corpora.holdout.labels)

    def outside(records: Records) -> float:
        return _mean([label not in known for label in records.labels])

    def distance(records: Records) -> float:
        return total_variation(records.labels, corpora.holdout.labels)

    rows.append(_share(corpora, "invalid_label_share", outside, ("holdout",), ceiling=0.0))
    ceiling = _mean([distance(records) for records in real])
    constant = total_variation([most_common(corpora.holdout.labels)], corpora.holdout.labels)
    synthetic = Row(
        group="label_fidelity", name="label_tv", train_on="synthetic", value=distance(corpora.synthetic),
        n=len(corpora.synthetic), ceiling=ceiling, direction="lower", reads=("synthetic", "holdout"),
        floor=constant if corpora.baseline is None else distance(corpora.baseline),
    )  # fmt: skip
    return [*rows, synthetic, _reference(synthetic, ceiling, seeds=len(real))]


def total_variation(labels: Sequence[str], others: Sequence[str]) -> float:
    """Return ``1/2 sum_k |p_k - q_k|`` of two lists of labels, in [0, 1].

    >>> total_variation(["a", "b"], ["a", "a", "a", "b"])
    0.25
    """
    first, second = Counter(labels), Counter(others)
    return sum(abs(first[k] / len(labels) - second[k] / len(others)) for k in first.keys() | second.keys()) / 2


def _share(
    corpora: Corpora, name: str, measure: Callable[[Records], float], reads: tuple[Source, ...], *, ceiling: float
) -> Row:
    """Return the row of a share of S; its floor is the share in the untuned model's text."""
    value, size = measure(corpora.synthetic), len(corpora.synthetic)
    low, high = wilson(value * size, size)
    return Row(
        group="validity", name=name, train_on="synthetic", value=value, low=low, high=high, n=size,
        direction="lower", reads=("synthetic", *reads), ceiling=ceiling,
        floor=1.0 if corpora.baseline is None else measure(corpora.baseline),
    )  # fmt: skip


def _reference(row: Row, value: float, *, seeds: int) -> Row:
    """Return the same row for real text at equal n."""
    from dataclasses import replace

    reads: tuple[Source, ...] = ("real", *(source for source in row.reads if source == "holdout"))
    return replace(
        row, train_on=CEILING, value=value, low=None, high=None, seeds=seeds, ceiling=value, reads=reads
    )  # fmt: skip


def _empty(records: Records) -> float:
    return _mean([not text.strip() for text in records.texts])


def _duplicates(records: Records) -> float:
    """Share of records whose canonical text stood before."""
    return 1 - len({canonical_text(text) for text in records.texts}) / len(records)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
