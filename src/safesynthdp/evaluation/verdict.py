"""What is wrong with the text, by name, from the rows of an evaluation.

Here: the rules. Elsewhere: the rows; the check that every rule sees its defect and none sees fresh real text
(selftest_matrix.py). A rule fires only if its number leaves the real-real value by more than its interval *and* by a
margin that matters: an interval alone would fire once in twenty looks, and there are dozens of rows. No finding does
not mean "good": read the rows against their ceilings. Findings name no text and no record.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from safesynthdp.evaluation.estimates import CEILING, SYNTHETIC
from safesynthdp.evaluation.rows import Row

COPY_SHARE = 0.5
COPY_MARGIN = 0.005
LABEL_MARGIN = 0.05
CONSISTENCY_MARGIN = 0.05
DUPLICATE_MARGIN = 0.03
DISTINCT_RATIO = 0.8
AUC_MARGIN = 0.05
ORDER_GAP = 0.08
CUT_MARGIN = 0.05
LENGTH_MARGIN = 0.1
FOREIGN_AUC = 0.8
FOREIGN_MAUVE = 0.5
FOREIGN_COVERAGE = 0.6
INVALID_MARGIN = 0.02

SAYS = {
    "verbatim_copy": "most synthetic texts are copies of real records; no other number here means anything",
    "memorised_text": "synthetic texts share more with training records than with the holdout; look for copied text",
    "label_collapse": "the labels are not mixed as in real text",
    "label_noise": "the labels do not fit the texts: a classifier of real text disagrees with them",
    "invalid_labels": "records carry labels that real text does not have",
    "mode_collapse": "the text repeats itself: copies, or far fewer distinct phrases than real text",
    "word_order": "the words are right and their order is not: only what sees order tells it from real text",
    "truncation": "texts are cut: other lengths than real text, and no closing mark",
    "lengths_differ": "texts are longer or shorter than real text",
    "empty_texts": "records hold no text",
    "other_domain": "the text is about something else: other words, and it does not reach the real text",
    "distinguishable": "a classifier tells synthetic from real text",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, and the rows that say so."""

    name: str
    evidence: tuple[Row, ...] = field(repr=False)

    def to_mapping(self) -> dict[str, Any]:
        """Return plain JSON values."""
        keys = ("name", "model", "label", "train_on", "value", "low", "high", "ceiling")
        return {
            "finding": self.name,
            "says": SAYS[self.name],
            "evidence": [{key: getattr(row, key) for key in keys} for row in self.evidence],
            "publishable": False,  # it says how the text compares with private records
        }


class Rows:
    """The rows of one evaluation, by what they measure."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = [row for row in rows if row.value is not None and row.low is not None]
        self._counts = [row for row in rows if row.value is not None and row.train_on == "real"]

    def all(self, name: str, *, train_on: str = SYNTHETIC, overall: bool = True) -> list[Row]:
        """Return the rows of a metric that have a value and an interval; over all labels, or also by label."""
        found = [row for row in self._rows if row.name == name and row.train_on == train_on]
        return [row for row in found if row.label is None] if overall else found

    def one(self, name: str, model: str | None = None, *, train_on: str = SYNTHETIC) -> Row | None:
        """Return one row over all labels, or None if it was not measured."""
        return next((row for row in self.all(name, train_on=train_on) if row.model == model), None)

    def counts(self, name: str) -> list[Row]:
        """Return the rows that count synthetic texts which meet any training record; they have no interval."""
        return [row for row in self._counts if row.name == name]

    def real(self, row: Row) -> Row | None:
        """Return the same number for real text."""
        same = self.all(row.name, train_on=CEILING, overall=False)
        return next((other for other in same if (other.model, other.label) == (row.model, row.label)), None)


def find_faults(rows: Sequence[Row]) -> list[Finding]:
    """Return the findings, the gravest first; empty if nothing stands out."""
    table, found = Rows(rows), dict[str, list[Row]]()
    for name, rule in RULES.items():
        evidence = rule(table, found)
        if evidence:
            found[name] = evidence
    return [Finding(name=name, evidence=tuple(evidence)) for name, evidence in found.items()]


def _copy(table: Rows, _: Mapping[str, Any]) -> list[Row]:
    """Copies of training records; or of the holdout, which then was no holdout."""
    counts = table.counts("exact_match")
    control = table.one("exact_match", train_on="holdout")
    found = [row for row in counts if _value(row) >= COPY_SHARE * row.n]
    return found + ([control] if control is not None and _value(control) >= COPY_SHARE else [])


def _memorised(table: Rows, found: Mapping[str, Any]) -> list[Row]:
    if "verbatim_copy" in found:
        return []
    names = ("exact_match", "ngram_13", "chars_50")
    rows = [table.one(name, train_on="difference") for name in names]
    return [row for row in rows if row is not None and _low(row) > 0 and _value(row) > COPY_MARGIN]


def _label_collapse(table: Rows, _: Mapping[str, Any]) -> list[Row]:
    return [r for r in table.all("label_tv") if _low(r) > _ceiling(r) and _value(r) > _ceiling(r) + LABEL_MARGIN]


def _invalid(table: Rows, _: Mapping[str, Any]) -> list[Row]:
    return [row for row in table.all("invalid_label_share") if _low(row) > INVALID_MARGIN]


def _empty(table: Rows, _: Mapping[str, Any]) -> list[Row]:
    return [row for row in table.all("empty_share") if _low(row) > INVALID_MARGIN]


def _mode_collapse(table: Rows, _: Mapping[str, Any]) -> list[Row]:
    copies = [row for row in table.all("duplicate_share") if _is_above(table, row, DUPLICATE_MARGIN)]
    phrases = [row for n in (1, 2) if (row := table.one(f"distinct_{n}"))]
    fewer = [row for row in phrases if _high(row) < DISTINCT_RATIO * _ceiling(row)]
    return copies or ([row for row in fewer if row.name == "distinct_2"] and fewer)


def _truncation(table: Rows, _: Mapping[str, Any]) -> list[Row]:
    cut, length = table.one("truncated_share"), table.one("length_ks", "words")
    if cut is None or length is None or not _is_above(table, cut, CUT_MARGIN):
        return []
    return [cut, length] if _low(length) > _ceiling(length) + LENGTH_MARGIN else []


def _lengths(table: Rows, found: Mapping[str, Any]) -> list[Row]:
    if "truncation" in found:
        return []
    return [row for row in table.all("length_ks") if _low(row) > _ceiling(row) + LENGTH_MARGIN][:1]


def _other_domain(table: Rows, found: Mapping[str, Any]) -> list[Row]:
    """Other words, and the real text out of reach; cut text has a name of its own."""
    words = table.one("c2st_auc", "words")
    if words is None or _low(words) < FOREIGN_AUC or "truncation" in found:
        return []
    far = [row for row in table.all("mauve") if _high(row) < FOREIGN_MAUVE * _ceiling(row)]
    far += [row for row in table.all("coverage") if _high(row) < FOREIGN_COVERAGE * _ceiling(row)]
    return [words, *far] if far else []


def _word_order(table: Rows, found: Mapping[str, Any]) -> list[Row]:
    """What sees order tells the sets apart, by far better than the words without their order."""
    words = table.one("c2st_auc", "words")
    if words is None or "truncation" in found or "mode_collapse" in found:
        return []
    seeing = [row for row in table.all("c2st_auc") if row.model not in ("words",)]
    telling = [
        row for row in seeing if _low(row) > max(0.5 + AUC_MARGIN, _high(words)) and _gap(row, words) > ORDER_GAP
    ]
    return [*telling, words] if telling else []


def _label_noise(table: Rows, found: Mapping[str, Any]) -> list[Row]:
    """Cut or foreign text would disagree with its labels for another reason, already named."""
    row = table.one("label_consistency")
    if row is None or {"truncation", "other_domain", "empty_texts"} & found.keys():
        return []
    real = table.real(row)
    worse = real is not None and _high(row) < _low(real) and _value(row) < _value(real) - CONSISTENCY_MARGIN
    return [row] if worse else []


def _distinguishable(table: Rows, _: Mapping[str, Any]) -> list[Row]:
    return [row for row in table.all("c2st_auc") if _low(row) > 0.5 + AUC_MARGIN]


RULES: dict[str, Callable[[Rows, Mapping[str, Any]], list[Row]]] = {
    "verbatim_copy": _copy,
    "memorised_text": _memorised,
    "label_collapse": _label_collapse,
    "invalid_labels": _invalid,
    "empty_texts": _empty,
    "mode_collapse": _mode_collapse,
    "truncation": _truncation,
    "lengths_differ": _lengths,
    "other_domain": _other_domain,
    "word_order": _word_order,
    "label_noise": _label_noise,
    "distinguishable": _distinguishable,
}


def _is_above(table: Rows, row: Row, margin: float) -> bool:
    """Whether the interval lies above that of real text, by more than the margin."""
    real = table.real(row)
    return real is not None and _low(row) > _high(real) and _value(row) > _value(real) + margin


def _gap(row: Row, other: Row) -> float:
    return _value(row) - _value(other)


def _value(row: Row) -> float:
    return 0.0 if row.value is None else row.value


def _low(row: Row) -> float:
    return 0.0 if row.low is None else row.low


def _high(row: Row) -> float:
    return 0.0 if row.high is None else row.high


def _ceiling(row: Row) -> float:
    return 0.0 if row.ceiling is None else row.ceiling
