"""The comparisons of fidelity for one label at a time: a class can be spoilt where the whole is not.

Here: which labels, and their rows. Elsewhere: the numbers (fidelity_pairs.py), the same over all labels (fidelity.py).
The 20 most common labels of the holdout that have at least 200 records a side; bits per byte compare whatever of the
scored texts has the label, 20 a side at least. A row whose size the training records decided reads them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from safesynthdp.evaluation.estimates import CEILING, SYNTHETIC, Estimate, rows
from safesynthdp.evaluation.fidelity_pairs import (
    BITS,
    C2ST,
    COVERAGE,
    DIVERGENCES,
    FRECHET,
    LENGTH,
    OF_DIVERGENCE,
    coverage,
    distribution_distance,
    divergences,
    frechet,
    two_sample,
)
from safesynthdp.evaluation.form import Floats, count_words
from safesynthdp.evaluation.pairs import Pair
from safesynthdp.evaluation.rows import Row

MIN_PER_LABEL = 200
MIN_SCORED = 20
MAX_LABELS = 20
Pairs = Mapping[str, Pair]


def compare_labels(pairs: Pairs, *, model: str, buckets: int) -> list[Row]:
    """Return the rows of each label; null with the reason where it has too few records.

    Args:
        pairs: The pair (holdout, set) of each set.
        model: The encoder's name.
        buckets: Buckets of MAUVE.
    """
    found = list[Row]()
    for label in _common_labels(pairs):
        parts = {name: pair.of_label(label) for name, pair in pairs.items()}
        size = min(len(parts[name]) for name in (SYNTHETIC, CEILING))
        if size < MIN_PER_LABEL:
            made = _too_few(label, size, model=model)
        else:
            kept = {name: part.first(size) for name, part in parts.items() if len(part) >= size}
            made = _of_label(label, kept, model=model, buckets=buckets)
        found += reading_real(made) if size < len(parts[SYNTHETIC]) else made
    return found


def bits_of_labels(pairs: Pairs, real: Floats, others: Mapping[str, Floats], *, model: str) -> list[Row]:
    """Return the distance of bits per byte for each label, from the scores of ``pairs`` over all labels."""
    found = list[Row]()
    for label in _common_labels(pairs):
        estimates = dict[str, Estimate]()
        for name, pair in pairs.items():
            sides = ((pair.real.labels, real), (pair.other.labels, others[name]))
            ours, theirs = (scores[np.array([own == label for own in labels], dtype=bool)] for labels, scores in sides)
            if (size := min(len(ours), len(theirs))) < MIN_SCORED:
                reason = f"{size} scored texts a side have this label; {MIN_SCORED} are needed"
                estimates[name] = Estimate(value=None, n=size, reason=reason)
            else:
                estimates[name] = distribution_distance(ours, theirs)
        found += rows(BITS, estimates, model=model, label=label)
    return found


def reading_real(found: Sequence[Row]) -> list[Row]:
    """Return the rows marked as computed from T too: how many records T has decided their n, and so their value."""
    return [replace(row, reads=tuple(dict.fromkeys((*row.reads, "real")))) for row in found]


def _common_labels(pairs: Pairs) -> list[str]:
    """Return the most common labels of the holdout; none if a side of the pairs has no labels."""
    both = pairs[SYNTHETIC]
    if not all(any(label.strip() for label in side.labels) for side in (both.real, both.other)):
        return []
    return [label for label, _ in Counter(both.real.labels).most_common(MAX_LABELS)]


def _of_label(label: str, parts: Pairs, *, model: str, buckets: int) -> list[Row]:
    by_set = {role: divergences(part, buckets=buckets, seeds=1) for role, part in parts.items()}
    on_words = {name: two_sample(part, on="tfidf") for name, part in parts.items()}
    on_vectors = {name: two_sample(part, on="embeddings") for name, part in parts.items()}
    found = rows(C2ST, on_vectors, model=model, label=label) + rows(C2ST, on_words, model="tfidf", label=label)
    for name in DIVERGENCES:
        found += rows(OF_DIVERGENCE[name], {role: of[name] for role, of in by_set.items()}, model=model, label=label)
    for metric, measure in ((FRECHET, partial(frechet, corrected=False)), (COVERAGE, coverage)):
        found += rows(metric, {name: measure(part) for name, part in parts.items()}, model=model, label=label)
    counts = {name: (count_words(part.real.texts), count_words(part.other.texts)) for name, part in parts.items()}
    distances = {name: distribution_distance(*both) for name, both in counts.items()}
    return found + rows(LENGTH, distances, model="words", label=label)


def _too_few(label: str, size: int, *, model: str) -> list[Row]:
    reason = f"{size} records a side have this label; {MIN_PER_LABEL} are needed"
    missing = Estimate(value=None, n=size, reason=reason)
    estimates: dict[str, Estimate] = {SYNTHETIC: missing, CEILING: missing}
    found = list[Row]()
    for metric in (C2ST, OF_DIVERGENCE["mauve"], OF_DIVERGENCE["mauve_star"], FRECHET, COVERAGE):
        found += rows(metric, estimates, model=model, label=label)
    return found + rows(LENGTH, estimates, model="words", label=label)
