"""What metrics.json may hold, and the check that every file passes before it is written.

Here: names, types and the rules between fields. Elsewhere: the rows (rows.py). A failure is a defect of the program,
not of the user's files: nothing is written then.
"""

import math
from collections.abc import Mapping
from typing import Any

from safesynthdp.errors import SafeSynthError
from safesynthdp.evaluation.rows import Row

VERSION = 1
NAMES = (
    "accuracy", "macro_f1", "recall", "accuracy_ratio", "label_tv", "c2st_auc", "mauve", "mauve_star",
    "frontier_integral", "frechet", "length_ks", "bits_per_byte", "distinct_1", "distinct_2", "distinct_3",
    "duplicate_share", "nn_cosine", "coverage", "empty_share", "truncated_share", "invalid_label_share",
    "label_consistency", "exact_match", "ngram_13", "chars_50", "longest_common_substring", "nearest_in_train",
)  # fmt: skip
KEYS = {"version": int, "inputs": dict, "settings": dict, "warnings": list, "metrics": list}
INPUT_KEYS = {"file": str, "fingerprint": str, "n": int, "n_used": int, "labels": list}
FIELDS = tuple(Row.__dataclass_fields__)
SOURCES = ("real", "holdout", "synthetic")
_NUMBERS = ("value", "low", "high", "level", "ceiling", "floor")


def check_metrics(content: Mapping[str, Any]) -> None:
    """Refuse a content that is not what docs/evaluation.md promises; further keys at the top are allowed.

    Raises:
        SafeSynthError: With the first rule that is broken.
    """
    _check_types("metrics.json", content, KEYS)
    if content["version"] != VERSION:
        raise _defect(f"version is {content['version']}, not {VERSION}")
    for role in ("real", "synthetic", "holdout"):
        if role not in content["inputs"]:
            raise _defect(f"inputs lacks {role}")
    for role, facts in content["inputs"].items():
        _check_types(f"inputs.{role}", facts, INPUT_KEYS)
    if not all(isinstance(line, str) for line in content["warnings"]):
        raise _defect("a warning is not text")
    seen = set[tuple[Any, ...]]()
    for row in content["metrics"]:
        check_row(row, holdout_is_public=content["settings"].get("holdout_is_public") is True)
        key = tuple(row[field] for field in ("group", "name", "model", "train_on", "label"))
        if key in seen:
            raise _defect(f"{_name(row)} stands twice")
        seen.add(key)


def check_row(row: Mapping[str, Any], *, holdout_is_public: bool) -> None:
    """Refuse a row with a wrong field, a null without a reason, an odd interval, or a leak marked publishable.

    Raises:
        SafeSynthError: With the row and the rule.
    """
    if tuple(row) != FIELDS:
        raise _defect(f"{_name(row)} has the fields {', '.join(row)}")
    for key in _NUMBERS:
        number = row[key]
        if number is not None and (isinstance(number, bool) or not math.isfinite(number)):
            raise _defect(f"{_name(row)}: {key} is not a finite number")
    value, low, high = row["value"], row["low"], row["high"]
    rules = (
        (row["name"] in NAMES, "has a name that is not in the list"),
        (value is not None or row["reason"], "is null without a reason"),
        ((low is None) == (high is None), "has half an interval"),
        (value is None or low is None or low <= high, "has its interval upside down"),
        (row["direction"] in ("higher", "lower", "half"), "has no direction"),
        (isinstance(row["n"], int) and row["n"] >= 0, "has no n"),
        (isinstance(row["seeds"], int) and row["seeds"] >= 0, "has no seeds"),
        (set(row["reads"]) <= set(SOURCES), "reads what is no input"),
        (row["reads"] or row["train_on"] == "base_model", "does not say what it reads"),
        (not (row["publishable"] and "real" in row["reads"]), "reads training records and is marked publishable"),
        (not (row["publishable"] and "holdout" in row["reads"]) or holdout_is_public, "would publish the holdout"),
        (value is None or row["ceiling"] is not None or row["reason"], "has no ceiling and does not say why"),
    )
    for holds, problem in rules:
        if not holds:
            raise _defect(f"{_name(row)} {problem}")


def _check_types(what: str, value: Mapping[str, Any], expected: Mapping[str, type]) -> None:
    for key, kind in expected.items():
        if not isinstance(value.get(key), kind):
            raise _defect(f"{what}: {key} is not {kind.__name__}")


def _name(row: Mapping[str, Any]) -> str:
    return "/".join(str(row.get(key)) for key in ("group", "name", "train_on", "model"))


def _defect(problem: str) -> SafeSynthError:
    return SafeSynthError(f"metrics.json is not written: {problem}; this is a defect")
