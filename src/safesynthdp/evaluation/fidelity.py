"""How close synthetic text is to real text: two-sample tests, divergences, form, coverage; over all and by label.

Here: which comparisons are made and their rows. Elsewhere: one comparison (fidelity_pairs.py), one set of texts alone
(fidelity_diversity.py), the draws (pairs.py). Every number compares N records of the holdout H with N of

    synthetic      S
    real_matched   T: the ceiling, what other real text would get
    base_model     text of the untuned model (epsilon = 0): the floor

N is the smallest of H, S, T and ``max_records``. ``model`` names the encoder, ``tfidf`` (words and pairs of words) or
``words`` (their order unseen) for two-sample tests and divergences; ``words``, ``characters`` or ``tokens`` for
``length_ks``; the reference model for ``bits_per_byte``, where ``MODEL (mean)`` has the mean itself and the other the
distance of the distributions. Label by label: fidelity_labels.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from safesynthdp.evaluation.encoders import Encoder
from safesynthdp.evaluation.estimates import SYNTHETIC, Estimate, Metric, rows
from safesynthdp.evaluation.fidelity_labels import MAX_LABELS, bits_of_labels, compare_labels, reading_real
from safesynthdp.evaluation.fidelity_pairs import (
    BITS,
    C2ST,
    COVERAGE,
    DIVERGENCES,
    FRECHET,
    LENGTH,
    MAX_QUADRATIC,
    MEAN_BITS,
    OF_DIVERGENCE,
    coverage,
    distribution_distance,
    divergences,
    frechet,
    two_sample,
)
from safesynthdp.evaluation.form import Floats, count_characters, count_words
from safesynthdp.evaluation.inputs import Corpora, has_labels
from safesynthdp.evaluation.jackknife import around, clusters
from safesynthdp.evaluation.mauve import TEXTS_PER_BUCKET
from safesynthdp.evaluation.pairs import Pair, draw, make_pairs, matched_size
from safesynthdp.evaluation.reference_lm import MAX_TEXTS, ReferenceModel
from safesynthdp.evaluation.rows import Row, Source
from safesynthdp.records import Records

MIN_RECORDS = 20
Progress = Callable[[str], None]
Pairs = Mapping[str, Pair]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the numbers besides the records."""

    encoder: Encoder
    reference: ReferenceModel | None
    no_reference: str | None = None
    """Why there is no reference model."""
    buckets: int = 100
    max_records: int = 2_000
    seeds: int = 3
    reference_texts: int = MAX_TEXTS
    """Texts of a set that the reference model scores, at most."""

    def facts(self) -> dict[str, Any]:
        """Return what metrics.json says about them."""
        return {
            "encoder": self.encoder.name,
            "encoder_digest": self.encoder.digest,
            "reference_lm": None if self.reference is None else self.reference.name,
            "caps": {
                "max_records": self.max_records,
                "quadratic": min(self.max_records, MAX_QUADRATIC),
                "reference_lm": self.reference_texts,
                "labels": MAX_LABELS,
            },
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """Rows, the records drawn for each set, and what the user has to know."""

    rows: list[Row]
    drawn: dict[str, Records] = field(repr=False)
    warnings: list[str]
    pairs: dict[str, Pair] = field(default_factory=dict, repr=False)


def measure_fidelity(corpora: Corpora, settings: Settings, *, progress: Progress) -> Result:
    """Return the rows of every comparison; nothing but a warning where there are fewer than 20 records a side."""
    size = matched_size(corpora, settings.max_records)
    if size < MIN_RECORDS:
        warning = f"fidelity is left out: {size} records a side are compared, {MIN_RECORDS} are the least that tell"
        return Result(rows=[], drawn={}, warnings=[warning])
    drawn = draw(corpora, size)
    pairs = make_pairs(drawn, settings.encoder)
    progress(f"drew and embedded {size} records a side with {settings.encoder.name}")
    found = _overall(pairs, settings, progress)
    is_cut = size < min(len(corpora.synthetic), settings.max_records, settings.reference_texts)
    found += _bits(pairs, settings, also_reads=("real", "holdout") if is_cut else ())
    progress("compared lengths and bits per byte")
    if has_labels(corpora.holdout) and has_labels(corpora.synthetic):
        found += compare_labels(pairs, model=settings.encoder.name, buckets=settings.buckets)
        progress("compared label by label")
    if size == len(corpora.real) < min(len(corpora.holdout), len(corpora.synthetic), settings.max_records):
        found = reading_real(found)  # n, and so the value, tells how many training records there are
    warnings = _warnings(corpora, settings, size, found) + _few_distinct(pairs, settings.buckets)
    return Result(rows=found, drawn=drawn, warnings=warnings, pairs=pairs)


def _overall(pairs: Pairs, settings: Settings, progress: Progress) -> list[Row]:
    found = list[Row]()
    for on, model in (("embeddings", settings.encoder.name), ("tfidf", "tfidf"), ("words", "words")):
        found += rows(C2ST, _each(pairs, partial(two_sample, on=on)), model=model)
    progress("trained classifiers to tell synthetic from real")
    by_set = {name: divergences(pair, buckets=settings.buckets, seeds=settings.seeds) for name, pair in pairs.items()}
    for name in DIVERGENCES:
        estimates = {role: of[name] for role, of in by_set.items()}
        found += rows(OF_DIVERGENCE[name], estimates, model=settings.encoder.name)
    found += rows(FRECHET, _each(pairs, frechet), model=settings.encoder.name)
    progress(f"compared distributions in {settings.buckets} buckets, and their moments")
    found += rows(COVERAGE, _each(pairs, coverage), model=settings.encoder.name)
    for unit, count in _units(settings).items():
        found += rows(LENGTH, _each(pairs, partial(_length_distance, count=count)), model=unit)
    if settings.reference is None:
        found += _without(LENGTH, pairs, "tokens", settings.no_reference)
    return found


def _each(pairs: Pairs, measure: Callable[[Pair], Estimate]) -> dict[str, Estimate]:
    return {name: measure(pair) for name, pair in pairs.items()}


def _units(settings: Settings) -> dict[str, Callable[[Sequence[str]], Floats]]:
    units: dict[str, Callable[[Sequence[str]], Floats]] = {"words": count_words, "characters": count_characters}
    return units if settings.reference is None else units | {"tokens": settings.reference.count_tokens}


def _length_distance(pair: Pair, *, count: Callable[[Sequence[str]], Floats]) -> Estimate:
    return distribution_distance(count(pair.real.texts), count(pair.other.texts))


def _bits(pairs: Pairs, settings: Settings, *, also_reads: tuple[Source, ...]) -> list[Row]:
    """Distances of the distributions of bits per byte, and the means; ``also_reads``: whose size cut the sample."""
    if settings.reference is None:
        return _without(BITS, pairs, None, settings.no_reference)
    model = settings.reference
    cut = {name: pair.first(settings.reference_texts) for name, pair in pairs.items()}
    real = model.bits_per_byte(cut[SYNTHETIC].real.texts)
    others = {name: model.bits_per_byte(pair.other.texts) for name, pair in cut.items()}
    distances = {name: distribution_distance(real, other) for name, other in others.items()}
    means = {name: _mean(other) for name, other in others.items()}
    found = rows(BITS, distances, model=model.name)
    found += rows(MEAN_BITS, means, model=f"{model.name} (mean)", also_reads=also_reads)
    return found + bits_of_labels(cut, real, others, model=model.name)


def _mean(values: Floats) -> Estimate:
    """Return the mean with Student's interval; texts without a score are left out."""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return Estimate(value=None, n=len(values), reason="fewer than two texts that are not empty")
    error = float(values.std(ddof=1)) / float(np.sqrt(len(values)))
    low, high = around(float(values.mean()), error, num_groups=len(values), high=np.inf)
    return Estimate(value=float(values.mean()), low=low, high=high, n=len(values))


def _without(metric: Metric, pairs: Pairs, model: str | None, why: str | None) -> list[Row]:
    estimates = {name: Estimate(value=None, n=0, seeds=0, reason=f"no reference model: {why}") for name in pairs}
    return rows(metric, estimates, model=model)


def _warnings(corpora: Corpora, settings: Settings, size: int, found: Sequence[Row]) -> list[str]:
    lines = list(settings.encoder.warnings)
    if settings.reference is None:
        lines.append(f"bits per byte are left out: {settings.no_reference}")
    smallest = min(len(corpora.synthetic), settings.max_records)
    if size < smallest:
        lines.append(f"fidelity: compared at {size} records a side, the smallest of the real files, not {smallest}")
    mauve = next((row for row in found if row.name == "mauve" and row.label is None and row.value is None), None)
    if mauve is not None:
        lines.append(f"mauve is left out: {mauve.reason}")
    return lines


def _few_distinct(pairs: Pairs, buckets: int) -> list[str]:
    """Say where the two sides together hold fewer texts than there are buckets: the rest stay empty."""
    both = pairs[SYNTHETIC]
    count = int(clusters([*both.real.texts, *both.other.texts]).max()) + 1
    if count >= buckets or len(both) < TEXTS_PER_BUCKET * buckets:
        return []
    return [f"mauve: holdout and synthetic hold {count} distinct texts, too few to fill {buckets} buckets"]
