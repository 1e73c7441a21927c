"""How many texts each label gets, and which row carries which label.

Here: shares from the run's released label counts (or equal ones), whole numbers from shares, a public order. Elsewhere:
the noisy counts (training/), what following them costs (release.py). Everything is a function of released numbers and
``seed``: post-processing.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from safesynthdp.errors import LedgerMismatch, UserError
from safesynthdp.generation.draws import stream
from safesynthdp.generation.settings import LabelChoice
from safesynthdp.runs import RunDirectory

HISTOGRAM = "label_histogram.json"
_ORDER_STREAM = 0


@dataclass(frozen=True, kw_only=True)
class LabelShares:
    """The label mix to draw, and where it comes from."""

    labels: tuple[str, ...]
    """Every label of the run, also those with share 0."""
    shares: tuple[float, ...]
    """Not negative, with a positive sum."""
    source: str
    """discrete_laplace (paid for in the run's ledger), exact (a run without privacy), uniform (reads nothing)."""


def read_shares(run: RunDirectory, labels: Sequence[str], *, choice: LabelChoice, untuned: bool) -> LabelShares:
    """Return the label mix that ``choice`` means for this run.

    Raises:
        UserError: If 'histogram' or 'sqrt' is asked for and the run has no counts.
        LedgerMismatch: If the run's file does not fit the run.
    """
    names = tuple(labels)
    if not names:
        raise UserError(
            f"{run.path} names no labels in its manifest; train again with data.label_column or data.labels"
        )
    even = LabelShares(labels=names, shares=(1 / len(names),) * len(names), source="uniform")
    if untuned or choice == "uniform":
        return even
    found = _read_file(run)
    if found is None or found["source"] == "uniform":
        if choice != "auto":
            raise UserError(
                f"labels={choice}: {run.path} released no label counts (privacy.label_histogram_epsilon was null); "
                "use --labels uniform"
            )
        return even
    shares = dict(zip(found["labels"], found["shares"], strict=True))
    if set(shares) != set(names):
        raise LedgerMismatch(f"{run.path / HISTOGRAM} and its manifest name different labels; restore the run")
    power = 0.5 if choice == "sqrt" else 1.0
    return LabelShares(labels=names, shares=tuple(shares[name] ** power for name in names), source=found["source"])


def plan_labels(shares: LabelShares, num_records: int, *, seed: int) -> list[str]:
    """Return the label of every row: the nearest whole numbers to the shares, in an order that ``seed`` shuffles.

    Shuffled, so that any first part of the file has the same mix.
    """
    counts = largest_remainder(shares.shares, num_records)
    plan = [label for label, count in zip(shares.labels, counts, strict=True) for _ in range(count)]
    return [plan[i] for i in stream(seed, _ORDER_STREAM).permutation(num_records)]


def largest_remainder(shares: Sequence[float], total: int) -> list[int]:
    """Return whole numbers that sum to ``total``, each less than 1 from its share of it; ties go to the first.

    >>> largest_remainder([0.5, 0.25, 0.25], 5)
    [3, 1, 1]
    """
    whole = math.fsum(shares)
    exact = [total * (share / whole) for share in shares]
    counts = [math.floor(value) for value in exact]
    short = total - sum(counts)
    order = sorted(range(len(shares)), key=lambda i: counts[i] - exact[i])
    for position in order[:short]:
        counts[position] += 1
    return counts


def _read_file(run: RunDirectory) -> dict[str, Any] | None:
    """Return label_histogram.json, checked; None where the run has none."""
    path = run.path / HISTOGRAM
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        shares = [float(share) for share in found["shares"]]
        labels, source = [str(label) for label in found["labels"]], str(found["source"])
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerMismatch(f"{path} is not a label histogram of ours; restore it") from error
    is_mix = len(labels) == len(set(labels)) == len(shares) and all(0 <= share < math.inf for share in shares)
    if not is_mix or not 0 < math.fsum(shares) < math.inf:
        raise LedgerMismatch(f"{path} holds shares that are not a mix of labels; restore it")
    return {"labels": labels, "shares": shares, "source": source}
