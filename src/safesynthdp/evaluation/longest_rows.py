"""The rows about the longest run of characters that synthetic texts share with one record, and the worst cases.

Here: rows, their bootstrap, and the list of texts for the inside. Elsewhere: the lengths (longest.py). The worst cases
hold private text: they are returned beside the rows and never among them. Source of the interval: the Poisson
bootstrap, Chamandy et al. (2012), over distinct texts, so that copies within S count as one witness.
Shapes: P texts of a set, Q records, M draws, D bootstrap draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesynthdp.evaluation.inputs import Corpora
from safesynthdp.evaluation.intervals import BOOTSTRAP_SEED, NUM_DRAWS, Interval, percentile
from safesynthdp.evaluation.longest import MAX_FLAGGED, Shared, draw_flagged, find_shared, mean_lengths, plain_text
from safesynthdp.evaluation.rows import Row, Source
from safesynthdp.records import canonical_text

NAME = "longest_common_substring"
MAX_SHOWN = 2000
MAX_REFERENCE = 100
"""Flagged texts of H and of the copies whose runs are measured, for ceiling and floor."""
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Texts in the place of S, and which of them share 50 characters with a record."""

    texts: Sequence[str]
    is_flagged: Bools


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Rows, and the worst cases."""

    rows: list[Row]
    worst: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """Lengths of one set: of its flagged texts, and what a mean over all its texts makes of them."""

    sample: Floats
    """[F] characters shared with T', a mean over its draws."""
    holdout: Floats
    """[F] characters shared with H."""
    longest: int
    """The most characters that any text shares with any record of T."""
    weight: float
    """Flagged texts that each of the F stands for, / texts of the set."""

    def mean(self, lengths: Floats) -> float:
        """Return characters a text, over all texts of the set."""
        return float(lengths.sum()) * self.weight


def measure_lengths(
    corpora: Corpora, probes: Sequence[Probes], *, masks_real: Bools, masks_holdout: Bools, num_worst: int
) -> Lengths:
    """Return the rows for S, given S, H and copies of T as ``probes``, and the ``num_worst`` worst cases."""
    caps = (MAX_FLAGGED, MAX_REFERENCE, MAX_REFERENCE)
    chosen = [draw_flagged(found.is_flagged, at_most=cap) for found, cap in zip(probes, caps, strict=True)]
    ends = np.cumsum([len(indices) for indices in chosen])
    texts = [found.texts[int(i)] for found, indices in zip(probes, chosen, strict=True) for i in indices]
    controlled = list(texts)
    controlled[ends[0] : ends[1]] = [""] * len(chosen[1])  # H in the place of S is never compared with itself
    with_real, with_holdout = find_shared(texts, corpora.real.texts), find_shared(controlled, corpora.holdout.texts)
    found = list[_Measured]()
    for part, start, end in zip(probes, [0, *ends], ends, strict=False):
        flagged, runs = int(part.is_flagged.sum()), with_real[start:end]
        found.append(
            _Measured(
                sample=mean_lengths(runs, masks_real), holdout=mean_lengths(with_holdout[start:end], masks_holdout),
                longest=max((run[0].length for run in runs if run), default=0),
                weight=flagged / max(len(runs), 1) / max(len(part.texts), 1),
            )
        )  # fmt: skip
    synthetic = [probes[0].texts[int(i)] for i in chosen[0]]
    rows = _rows(found[0], found[1], found[2], synthetic, len(probes[0].texts))
    return Lengths(rows=rows, worst=_worst(corpora, chosen[0].tolist(), with_real[: ends[0]], num_worst))


def _rows(synthetic: _Measured, fresh: _Measured, copy: _Measured, texts: Sequence[str], size: int) -> list[Row]:
    """Return T', H, their difference, and the longest run with any record of T."""
    both = synthetic.sample - synthetic.holdout
    parts: tuple[tuple[str, Floats, tuple[Source, ...], float, float], ...] = (
        ("real_sample", synthetic.sample, ("synthetic", "real"), fresh.mean(fresh.sample), copy.mean(copy.sample)),
        (
            "holdout", synthetic.holdout, ("synthetic", "real", "holdout"),
            fresh.mean(fresh.sample), copy.mean(copy.holdout),
        ),
        ("difference", both, ("synthetic", "real", "holdout"), 0.0, copy.mean(copy.sample - copy.holdout)),
    )  # fmt: skip
    rows = list[Row]()
    for train_on, lengths, reads, ceiling, floor in parts:
        low, high = _interval(lengths, texts, synthetic.weight) if len(lengths) else (None, None)
        rows.append(
            Row(
                group="memorisation", name=NAME, train_on=train_on, value=synthetic.mean(lengths), low=low, high=high,
                n=size, seeds=20, direction="lower", reads=reads, ceiling=ceiling, floor=floor,
                reason=None if len(lengths) else "no synthetic text shares 50 characters, so nothing can be resampled",
            )
        )  # fmt: skip
    return [
        *rows,
        Row(
            group="memorisation", name=NAME, train_on="real", value=float(synthetic.longest), n=size,
            direction="lower", reads=("synthetic", "real"), ceiling=float(fresh.longest), floor=float(copy.longest),
        ),
    ]  # fmt: skip


def _interval(lengths: Floats, texts: Sequence[str], weight: float) -> Interval:
    """Return the percentile interval of the mean over all texts; each distinct text has a Poisson(1) weight."""
    number = dict[str, int]()
    clusters = [number.setdefault(canonical_text(text), len(number)) for text in texts]
    sums = np.bincount(clusters, weights=lengths)
    rng = np.random.default_rng([BOOTSTRAP_SEED, 2])
    draws_D: Floats = np.asarray(rng.poisson(1.0, size=(NUM_DRAWS, len(sums))) @ sums * weight, dtype=np.float64)
    return percentile(draws_D)


def _worst(
    corpora: Corpora, positions: Sequence[int], shared: Sequence[Sequence[Shared]], num_worst: int
) -> list[dict[str, Any]]:
    """Return what is shared in full with one training record: whole short texts, and the longest runs."""
    real, synthetic = corpora.real, corpora.synthetic
    runs = {position: found[0] for position, found in zip(positions, shared, strict=True) if found}
    known = {canonical_text(text): number for number, text in reversed(list(enumerate(real.texts))) if text.strip()}
    cases = list[tuple[int, bool, int, int]]()
    for position, text in enumerate(synthetic.texts if num_worst else ()):
        copied = known.get(canonical_text(text)) if text.strip() else None
        if copied is not None:
            cases.append((-len(plain_text(text)), False, position, copied))
        elif position in runs:
            cases.append((-runs[position].length, True, position, runs[position].record))
    return [
        {
            "synthetic_id": synthetic.record_ids[position], "real_id": real.record_ids[record], "characters": -length,
            "is_whole_text": not is_part, "synthetic_text": synthetic.texts[position][:MAX_SHOWN],
            "real_text": real.texts[record][:MAX_SHOWN],
        }
        for length, is_part, position, record in sorted(cases)[:num_worst]
    ]  # fmt: skip
