"""Does the synthetic text share more with its training records than with records it never saw?

Here: the control and the rows. Elsewhere: who shares what with whom (overlap.py), the longest run (longest.py), the
nearest record (nearest.py), whether the holdout is a control at all (control.py). The rates say nothing alone, since
real texts also share phrases with each other; the difference to an untouched holdout of equal size does. These are
indicators: a bound on epsilon comes from an audit, and a rate of zero proves nothing.

T' is a random part of T with as many records as H (of both, the smaller size), drawn ``NUM_DRAWS`` times and averaged.
Rows have the group ``memorisation`` and the name ``exact_match``, ``ngram_13`` or ``chars_50``; ``train_on`` names the
records that the synthetic texts S are compared with:

    real_sample   share of S that shares something with T'
    holdout       the same with H: the control. It reads T too: its floor is copies of T, and T decides how much of H
    difference    the first minus the second, in pairs; above 0 means memorisation
    real          how many records of S (a count, not a share) share something with any record of T

``longest_common_substring`` counts the characters of the longest run that a text shares with one record: a mean over
all of S, where a text that shares fewer than 50 counts 0; with ``real``, the longest of all. ``nearest_in_train`` is
explained in nearest.py, the row ``c2st_auc`` of the group ``control`` in control.py.

``n`` is the size of S. The ceiling is the same number for fresh real text (H in the place of S, against T'; 0 for the
difference), the floor that of a verbatim copy (records of T in the place of S). Lower is better: here the floor is the
larger number. Intervals count copies within S as one witness (``effective_size``).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesynthdp.evaluation.control import measure_control
from safesynthdp.evaluation.downstream import Embed
from safesynthdp.evaluation.inputs import Corpora
from safesynthdp.evaluation.intervals import effective_size, paired_difference, wilson
from safesynthdp.evaluation.longest_rows import Lengths, Probes, measure_lengths
from safesynthdp.evaluation.nearest import measure_nearest
from safesynthdp.evaluation.overlap import CHECKS, Check, find_matches
from safesynthdp.evaluation.rows import Row, Source, find
from safesynthdp.evaluation.training_sets import subsamples
from safesynthdp.records import canonical_text

NUM_DRAWS = 20
MASK_SEED = 7_200
COPY_SHARE = 0.5
_ALL: tuple[Source, ...] = ("synthetic", "real", "holdout")
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Result:
    """Rows, the share of records long enough for each check (check -> role -> share), and warnings."""

    rows: list[Row]
    long_enough: dict[str, dict[str, float]]
    warnings: list[str]
    worst: list[dict[str, Any]]
    """Synthetic texts with the training record they share most with; private text, never for metrics.json."""


@dataclass(frozen=True, kw_only=True)
class _Rates:
    """For each record of one set of texts: the share of the draws of T' and H it meets, and whether it meets T, H."""

    sample: Floats
    holdout: Floats
    real: Floats
    control: Floats


def measure_memorisation(
    corpora: Corpora,
    *,
    progress: Callable[[str], None],
    max_records: int = 2000,
    num_worst: int = 0,
    embed: Embed | None = None,
) -> Result:
    """Return the rows of every check, with the control beside them.

    Args:
        corpora: T, S and H; exact and 13-word and 50-character matches use every record of them.
        progress: Gets a line for each check.
        max_records: Cap of what compares each text with each: nearest_in_train and the control.
        num_worst: How many of the worst cases to return.
        embed: Public encoder for nearest_in_train; None is tf-idf.
    """
    roles = {"synthetic": corpora.synthetic.texts, "real": corpora.real.texts, "holdout": corpora.holdout.texts}
    long_enough = {c.name: {role: c.share_long_enough(texts) for role, texts in roles.items()} for c in CHECKS}
    rows, rates = list[Row](), tuple[_Rates, ...]()
    copies = subsamples(corpora.real, len(corpora.synthetic), seeds=1, stream=4)[0].texts
    sets = (corpora.synthetic.texts, corpora.holdout.texts, copies)
    for check in CHECKS:
        rates = _rates(check, corpora, sets)
        rows += _rows(check, corpora, rates, is_possible=long_enough[check.name]["synthetic"] > 0)
        progress(f"looked for the same {check.describe} in training records and holdout")
    lengths = _lengths(corpora, sets, rates, num_worst=num_worst)
    progress("measured the longest common substring of texts that share 50 characters")
    nearest = measure_nearest(corpora, max_records=max_records, embed=embed)
    control, doubts = measure_control(corpora, max_records=max_records)
    progress("looked for the nearest record, and whether the holdout is a control")
    rows += lengths.rows + nearest + control
    return Result(
        rows=rows, long_enough=long_enough, warnings=_warnings(rows, corpora) + doubts, worst=lengths.worst
    )  # fmt: skip


def _lengths(corpora: Corpora, sets: Sequence[Sequence[str]], rates: Sequence[_Rates], *, num_worst: int) -> Lengths:
    """Return the rows about the longest run; ``rates`` are those of the 50-character check, which flags texts."""
    sizes = _draw_size(corpora)
    probes = [
        Probes(texts=texts, is_flagged=(found.real + found.control) > 0 if texts is not sets[1] else found.real > 0)
        for texts, found in zip(sets, rates, strict=True)
    ]
    return measure_lengths(
        corpora, probes, num_worst=num_worst,
        masks_real=_masks(len(corpora.real), sizes, stream=0)[1:],
        masks_holdout=_masks(len(corpora.holdout), sizes, stream=1)[1:],
    )  # fmt: skip


def _draw_size(corpora: Corpora) -> int:
    return min(len(corpora.real), len(corpora.holdout))


def _rows(check: Check, corpora: Corpora, rates: Sequence[_Rates], *, is_possible: bool) -> list[Row]:
    synthetic, fresh, copy = rates
    witnesses = effective_size(list(Counter(canonical_text(text) for text in corpora.synthetic.texts).values()))
    size = len(synthetic.real)
    rows = [
        _row(check, "real_sample", synthetic.sample, witnesses, ("synthetic", "real"), fresh.sample, copy.sample),
        _row(check, "holdout", synthetic.holdout, witnesses, _ALL, fresh.sample, copy.holdout),
    ]
    low, high = paired_difference(synthetic.sample, synthetic.holdout, effective_n=witnesses)
    rows.append(
        replace(
            rows[0], train_on="difference", low=low, high=high, reads=_ALL,
            value=_mean(synthetic.sample) - _mean(synthetic.holdout),
            ceiling=0.0, floor=_mean(copy.sample) - _mean(copy.holdout),
        )
    )  # fmt: skip
    rows.append(
        replace(
            rows[0], train_on="real", value=float(synthetic.real.sum()), low=None, high=None, seeds=1,
            ceiling=_mean(fresh.real) * size, floor=_mean(copy.real) * size,
        )
    )  # fmt: skip
    if is_possible:
        return rows
    reason = f"no synthetic text has {check.describe}"
    return [replace(row, value=None, low=None, high=None, reason=reason) for row in rows]


def _row(
    check: Check, train_on: str, found: Floats, witnesses: float, reads: tuple[Source, ...], fresh: Floats, copy: Floats
) -> Row:
    value = _mean(found)
    low, high = wilson(value * witnesses, witnesses)
    return Row(
        group="memorisation", name=check.name, train_on=train_on, value=value, low=low, high=high, n=len(found),
        seeds=NUM_DRAWS, direction="lower", reads=reads, ceiling=_mean(fresh), floor=_mean(copy),
    )  # fmt: skip


def _rates(check: Check, corpora: Corpora, sets: Sequence[Sequence[str]]) -> tuple[_Rates, ...]:
    """Return the rates of S, of H in its place (never against itself), and of records of T in its place."""
    real, holdout, size = corpora.real.texts, corpora.holdout.texts, _draw_size(corpora)
    ends = np.cumsum([len(texts) for texts in sets])[:-1]
    probes = [text for texts in sets for text in texts]
    with_real = find_matches(check, probes=probes, pool=real, masks_MQ=_masks(len(real), size, stream=0))
    with_holdout = find_matches(check, probes=probes, pool=holdout, masks_MQ=_masks(len(holdout), size, stream=1))
    parts = zip(np.split(with_real, ends, axis=1), np.split(with_holdout, ends, axis=1), strict=True)
    return tuple(
        _Rates(
            sample=r[1:].mean(axis=0), holdout=h[1:].mean(axis=0),
            real=r[0].astype(np.float64), control=h[0].astype(np.float64),
        )
        for r, h in parts
    )  # fmt: skip


def _masks(num_records: int, size: int, *, stream: int) -> Bools:
    """Return [1 + draws, Q]: all records, then random parts of the given size."""
    masks = np.ones((1 + NUM_DRAWS, num_records), dtype=np.bool_)
    for draw in range(NUM_DRAWS):
        rng = np.random.default_rng([MASK_SEED, stream, draw])
        masks[1 + draw] = False
        masks[1 + draw, rng.choice(num_records, size=size, replace=False)] = True
    return masks


def _warnings(rows: Sequence[Row], corpora: Corpora) -> list[str]:
    found = list[str]()
    copies = find(rows, "exact_match", train_on="real")
    if copies is not None and copies.value is not None and copies.value >= COPY_SHARE * copies.n:
        found.append(
            f"memorisation: {copies.value:.0f} of {copies.n} synthetic texts are verbatim copies of training records; "
            "no other number here means anything"
        )
    for check in CHECKS:
        row = find(rows, check.name, train_on="difference")
        if row is not None and row.low is not None and row.low > 0:
            found.append(
                f"memorisation: {check.name}: synthetic texts share more with training records than with the holdout "
                f"(difference {row.value:.4f}, 95% interval from {row.low:.4f}); look for copied text"
            )
    return found + _control_warnings(corpora)


def _control_warnings(corpora: Corpora) -> list[str]:
    """A holdout that stands in T, or that S was copied from, controls nothing."""
    holdout = {canonical_text(text) for text in corpora.holdout.texts if text.strip()}
    shared = holdout & {canonical_text(text) for text in corpora.real.texts}
    found = list[str]()
    if shared:
        found.append(
            f"holdout: {len(shared)} of its {len(holdout)} distinct texts also stand in real, so they are not untouched"
        )
    copied = sum(canonical_text(text) in holdout for text in corpora.synthetic.texts)
    if copied >= COPY_SHARE * len(corpora.synthetic):
        found.append(
            f"holdout: {copied} of {len(corpora.synthetic)} synthetic texts are copies of holdout records; "
            "no other number here means anything"
        )
    return found


def _mean(values: Floats) -> float:
    return float(values.mean())
