"""How close synthetic text is to real text: two-sample tests, divergences, form, coverage; over all and by label.

Here: which comparisons are made and their rows. Elsewhere: one comparison (fidelity_pairs.py), one set of texts alone
(fidelity_diversity.py), the draws (pairs.py). Every number compares N records of the holdout H with N of

    synthetic      S
    real_matched   T: the ceiling, what other real text would get
    base_model     text of the untuned model (epsilon = 0): the floor

N is the smallest of H, S, T and ``max_records``. ``model`` names the encoder, ``tfidf`` (words and pairs of words) or
``words`` (their order unseen) for two-sample tests and divergences; ``words``, ``characters`` or ``tokens`` for
``length_ks``; the reference model for ``bits_per_byte``, where ``MODEL (mean)`` has the mean itself and the other the
distance of the distributions. By label: for labels with at least 200 records a side.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from safesynthdp.evaluation.encoders import Encoder
from safesynthdp.evaluation.estimates import CEILING, SYNTHETIC, Estimate, Metric, rows
from safesynthdp.evaluation.fidelity_pairs import (
    DIVERGENCES,
    MAX_QUADRATIC,
    coverage,
    distribution_distance,
    divergences,
    frechet,
    two_sample,
)
from safesynthdp.evaluation.form import Floats, count_characters, count_words
from safesynthdp.evaluation.inputs import Corpora, has_labels
from safesynthdp.evaluation.jackknife import around
from safesynthdp.evaluation.pairs import Pair, draw, make_pairs, matched_size
from safesynthdp.evaluation.reference_lm import MAX_TEXTS, ReferenceModel
from safesynthdp.evaluation.rows import Row, Source
from safesynthdp.records import Records

MIN_PER_LABEL = 200
MAX_LABELS = 20
MIN_RECORDS = 20
C2ST = Metric(group="two_sample", name="c2st_auc", direction="half", worst=1.0)
FRECHET = Metric(group="divergence", name="frechet", direction="lower", worst=None)
LENGTH = Metric(group="form", name="length_ks", direction="lower", worst=1.0)
BITS = Metric(group="form", name="bits_per_byte", direction="lower", worst=1.0)
MEAN_BITS = Metric(group="form", name="bits_per_byte", direction="lower", worst=None, compares=False)
COVERAGE = Metric(group="diversity", name="coverage", direction="higher", worst=0.0)
OF_DIVERGENCE = {
    "mauve": Metric(group="divergence", name="mauve", direction="higher", worst=0.0),
    "mauve_star": Metric(group="divergence", name="mauve_star", direction="higher", worst=0.0),
    "frontier_integral": Metric(group="divergence", name="frontier_integral", direction="lower", worst=1.0),
}
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
        found += _by_label(pairs, settings)
        progress("compared label by label")
    if size == len(corpora.real) < min(len(corpora.holdout), len(corpora.synthetic), settings.max_records):
        found = _reading_real(found)  # n, and so the value, tells how many training records there are
    return Result(rows=found, drawn=drawn, warnings=_warnings(corpora, settings, size, found), pairs=pairs)


def _reading_real(found: Sequence[Row]) -> list[Row]:
    """Return the rows, marked as computed from T too."""
    return [replace(row, reads=tuple(dict.fromkeys((*row.reads, "real")))) for row in found]


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
    return rows(BITS, distances, model=model.name) + rows(
        MEAN_BITS, means, model=f"{model.name} (mean)", also_reads=also_reads
    )


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


def _by_label(pairs: Pairs, settings: Settings) -> list[Row]:
    found, counts = list[Row](), Counter(pairs[SYNTHETIC].real.labels)
    for label, _ in counts.most_common(MAX_LABELS):
        parts = {name: pair.of_label(label) for name, pair in pairs.items()}
        size = min(len(parts[name]) for name in (SYNTHETIC, CEILING))
        if size < MIN_PER_LABEL:
            made = _too_few(label, {name: parts[name] for name in (SYNTHETIC, CEILING)}, settings)
        else:
            kept = {name: part.first(size) for name, part in parts.items() if len(part) >= size}
            made = _of_label(label, kept, settings)
        found += _reading_real(made) if size < len(parts[SYNTHETIC]) else made
    return found


def _of_label(label: str, parts: Pairs, settings: Settings) -> list[Row]:
    name = settings.encoder.name
    found = rows(C2ST, _each(parts, partial(two_sample, on="embeddings")), model=name, label=label)
    found += rows(C2ST, _each(parts, partial(two_sample, on="tfidf")), model="tfidf", label=label)
    by_set = {role: divergences(part, buckets=settings.buckets, seeds=1) for role, part in parts.items()}
    found += rows(OF_DIVERGENCE["mauve"], {role: of["mauve"] for role, of in by_set.items()}, model=name, label=label)
    found += rows(COVERAGE, _each(parts, coverage), model=name, label=label)
    lengths = _each(parts, partial(_length_distance, count=count_words))
    return found + rows(LENGTH, lengths, model="words", label=label)


def _too_few(label: str, parts: Pairs, settings: Settings) -> list[Row]:
    size = min(len(part) for part in parts.values())
    reason = f"{size} records a side have this label; {MIN_PER_LABEL} are needed"
    estimates = dict.fromkeys(parts, Estimate(value=None, n=size, reason=reason))
    found = list[Row]()
    for metric in (C2ST, OF_DIVERGENCE["mauve"], COVERAGE):
        found += rows(metric, estimates, model=settings.encoder.name, label=label)
    return found + rows(LENGTH, estimates, model="words", label=label)


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
