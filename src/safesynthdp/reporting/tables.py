"""What an evaluation and an attack found, as tables and one figure.

Here: utility, memorisation with its control, the other metrics, attacks. Elsewhere: the rows themselves (facts.py) and
which of them a public page may show (publish.py, applied before anything here).
"""

from collections.abc import Mapping, Sequence

from safesynthdp.reporting.facts import AuditRow, Evaluation, Metric
from safesynthdp.reporting.figures import Bar, Drawing, draw_utility
from safesynthdp.reporting.layout import Row, Table, table
from safesynthdp.reporting.wording import (
    NOT_STATED,
    count_text,
    epsilon_text,
    interval_text,
    number_text,
    rate_text,
    value_text,
)

TRAINED_ON = {
    "real": "real text, all of it",
    "real_matched": "real text, as many as synthetic",
    "synthetic": "synthetic text",
    "dp_direct": "classifier trained with DP",
    "base_model": "text of the untuned model",
    "shuffled_labels": "synthetic, labels shuffled",
    "majority": "most common label",
}
METRIC_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "recall": "recall",
    "accuracy_ratio": "accuracy / real accuracy",
    "label_tv": "label shares, total variation",
    "c2st_auc": "two-sample test AUC",
    "length_ks": "lengths, KS distance",
    "bits_per_byte": "bits per byte, KS distance",
    "duplicate_share": "share of duplicates",
    "nn_cosine": "mean nearest-neighbour cosine",
    "empty_share": "share of empty texts",
    "truncated_share": "share of truncated texts",
    "invalid_label_share": "share outside the label set",
    "label_consistency": "share whose label fits",
    "exact_match": "exact copy (case, punctuation, spacing aside)",
    "ngram_13": "13 words in a row",
    "chars_50": "50 characters in a row",
    "longest_common_substring": "longest common substring, characters",
    "nearest_in_train": "nearest real record is a training record",
}
HEADINGS = {"accuracy": "Accuracy", "macro_f1": "Macro-F1"}
CLASSIFIERS = {"lr": "logistic regression", "nb": "naive Bayes", "svm": "linear SVM", "rf": "random forest"}
UTILITY, MEMORISATION = "utility", "memorisation"
BASELINE = "baseline"


def headline_model(evaluation: Evaluation) -> str | None:
    """Return the first classifier of the evaluation's own list: fixed before any number was known, not the best."""
    rows = [row for row in evaluation.metrics or () if (row.group, row.name) == (UTILITY, "accuracy")]
    return next((row.model for row in rows if row.train_on == "synthetic"), None)


def find(evaluation: Evaluation, name: str, *, train_on: str, model: str | None) -> Metric | None:
    """Return the row about all labels with this name, training set and classifier."""
    wanted = (UTILITY, name, train_on, model, None)
    rows = (r for r in evaluation.metrics or () if (r.group, r.name, r.train_on, r.model, r.label) == wanted)
    return next(rows, None)


def any_model(evaluation: Evaluation, name: str, *, train_on: str, model: str | None) -> Metric | None:
    """Return the row for this classifier, or the one that needs none (``majority`` is its own ``model``)."""
    found = (find(evaluation, name, train_on=train_on, model=choice) for choice in (model, train_on, None))
    return next((row for row in found if row is not None), None)


def utility_tables(evaluation: Evaluation) -> tuple[Table, ...]:
    """Return accuracy and macro-F1 by training set, and recall by label for the first classifier."""
    return (
        *(_by_training_set(evaluation, name) for name in ("accuracy", "macro_f1") if _rows(evaluation, name)),
        *_ratios(evaluation),
        *_recall(evaluation),
    )


def utility_drawing(evaluation: Evaluation, *, identity: str) -> Drawing | None:
    """Return the figure of accuracy between floor and ceiling; None where there is no accuracy."""
    model = headline_model(evaluation)
    bars = [bar for train_on in TRAINED_ON if (bar := _bar(evaluation, train_on, model)) is not None]
    if not bars:
        return None
    name = CLASSIFIERS.get(model or "", model or "one classifier")
    values = {train_on: any_model(evaluation, "accuracy", train_on=train_on, model=model) for train_on in TRAINED_ON}
    floor = values["base_model"] or values["majority"]
    ceiling = values["real_matched"] or values["real"]
    ends = [row.value for row in (floor, ceiling) if row is not None and row.value is not None]
    band = (min(ends), max(ends)) if len(ends) == 2 else None
    caption = (
        f"Accuracy on untouched real records of {name}, the first classifier of the evaluation's list. "
        "Bars: 95% intervals. Ticks: the other classifiers."
    )
    shading = " Shaded: from floor to ceiling." if band else ""
    return draw_utility(bars, band=band, identity=identity, caption=caption + shading)


def memorisation_table(evaluation: Evaluation) -> Table | None:
    """Return the shares of synthetic texts that repeat training records, beside the same for records never seen."""
    rows = [row for row in evaluation.metrics or () if row.group == MEMORISATION]
    if not rows:
        return None
    by_check = {name: {r.train_on: r for r in rows if r.name == name} for name in dict.fromkeys(r.name for r in rows)}
    caption = "Share of synthetic texts that have the same in common with ... [95% interval]"
    titles = ("what is shared", "training records", "held-out records (control)", "difference", "fresh real text",
              "a plain copy", "texts")  # fmt: skip
    return table(caption, titles, [_memorisation_row(name, found) for name, found in by_check.items()], words=())


def other_table(evaluation: Evaluation) -> Table | None:
    """Return every row that is neither utility nor memorisation."""
    rows = [row for row in evaluation.metrics or () if row.group not in (UTILITY, MEMORISATION)]
    if not rows:
        return None
    titles = ("metric", "value", "95% interval", "real text", "better", "n")
    return table("Beside the same number for real text", titles, [_other_row(row) for row in rows], words=("better",))


def attack_table(rows: Sequence[AuditRow]) -> Table:
    """Return one line an attack, the model-less baseline first."""
    titles = ("attack", "channel", "AUC [interval]", "TPR at 1% FPR", "members / others", "audited epsilon", "verdict")
    words = ("channel", "audited epsilon", "verdict")
    ordered = sorted(rows, key=lambda row: not is_baseline(row))
    lines = [_attack_row(row) for row in ordered]
    return table("Higher AUC = more leakage; 0.5 is chance", titles, lines, words=words)


def audited_text(row: AuditRow) -> str:
    """Return the lower bound beside what a perfect attack would have shown, and the claim it was held against."""
    if row.epsilon_lower_bound is None:
        return "none"
    reach = f"at least {number_text(row.epsilon_lower_bound)} of at most {number_text(row.epsilon_attainable)}"
    return reach if row.epsilon_claimed is None else f"{reach}; claimed {epsilon_text(row.epsilon_claimed)}"


def auc_text(row: AuditRow) -> str:
    """Return the AUC with its interval, and the level where it is not 95%."""
    if row.auc_interval is None:
        return rate_text(row.auc)
    level = "" if row.alpha in (None, 0.05) else f" at {value_text(round(100 * (1 - row.alpha), 6))}%"
    return f"{rate_text(row.auc)} {interval_text(*row.auc_interval)}{level}"


def is_baseline(row: AuditRow) -> bool:
    """Whether an attack looked at the texts alone, at no model and no synthetic text."""
    return row.channel == "none" or row.attack == BASELINE


def metric_title(row: Metric) -> str:
    """Return the metric's name in words, with its label where it is about one."""
    name = METRIC_NAMES.get(row.name, row.name.replace("_", " "))
    return name if row.label is None else f"{name}, {row.label}"


def _rows(evaluation: Evaluation, name: str) -> list[Metric]:
    found = [row for row in evaluation.metrics or () if (row.group, row.name) == (UTILITY, name)]
    return [row for row in found if row.label is None]


def _by_training_set(evaluation: Evaluation, name: str) -> Table:
    rows = _rows(evaluation, name)
    models = list(dict.fromkeys(row.model for row in rows if row.model != row.train_on))
    known = [train_on for train_on in TRAINED_ON if any(row.train_on == train_on for row in rows)]
    others = [t for t in dict.fromkeys(row.train_on or "synthetic" for row in rows) if t not in TRAINED_ON]
    lines = [_utility_row(evaluation, name, train_on, models) for train_on in (*known, *others)]
    titles = ("trained on", *(CLASSIFIERS.get(model or "", model or "value") for model in models), "tested on")
    return table(f"{HEADINGS[name]} on untouched real records [95% interval]", titles, lines, words=())


def _utility_row(evaluation: Evaluation, name: str, train_on: str, models: Sequence[str | None]) -> Row:
    found = [any_model(evaluation, name, train_on=train_on, model=model) for model in models]
    cells = ["" if row is None else _value_and_interval(row) for row in found]
    tested = next((count_text(row.n) for row in found if row is not None), "")
    tone = "strong" if train_on == "synthetic" else "faint" if train_on == "majority" else ""
    return Row(cells=(TRAINED_ON.get(train_on, train_on), *cells, tested), tone=tone)


def _ratios(evaluation: Evaluation) -> tuple[Table, ...]:
    """``train_on`` of a ratio names what stands below the fraction bar."""
    rows = [r for r in evaluation.metrics or () if (r.group, r.name) == (UTILITY, "accuracy_ratio")]
    if not rows:
        return ()
    lines = [
        Row(cells=(TRAINED_ON.get(r.train_on or "", r.train_on or ""), CLASSIFIERS.get(r.model or "", r.model or ""),
                   _value_and_interval(r)))
        for r in rows
    ]  # fmt: skip
    caption = "Accuracy with synthetic text / accuracy with real text [95% interval]"
    return (table(caption, ("divided by", "classifier", "ratio"), lines, words=("classifier",)),)


def _recall(evaluation: Evaluation) -> tuple[Table, ...]:
    model = headline_model(evaluation)
    rows = [r for r in evaluation.metrics or () if (r.group, r.name) == (UTILITY, "recall") and r.model == model]
    labels = list(dict.fromkeys(row.label for row in rows if row.label is not None))
    sets = [t for t in TRAINED_ON if any(row.train_on == t for row in rows)]
    if not labels:
        return ()
    cells = {(row.label, row.train_on): _value_and_interval(row) for row in rows}
    lines = [Row(cells=(label, *(cells.get((label, t), "") for t in sets))) for label in labels]
    caption = f"Recall by label, {CLASSIFIERS.get(model or '', model or '')}"
    return (table(caption, ("label", *(TRAINED_ON[t] for t in sets)), lines, words=()),)


def _bar(evaluation: Evaluation, train_on: str, model: str | None) -> Bar | None:
    row = any_model(evaluation, "accuracy", train_on=train_on, model=model)
    if row is None or row.value is None:
        return None
    same = [r for r in _rows(evaluation, "accuracy") if r.train_on == train_on and r is not row]
    return Bar(
        name=TRAINED_ON[train_on],
        value=row.value,
        low=row.low,
        high=row.high,
        others=tuple(r.value for r in same if r.value is not None),
        is_synthetic=train_on == "synthetic",
    )


def _value_and_interval(row: Metric) -> str:
    if row.value is None:
        return f"n/a: {row.reason}" if row.reason else "n/a"
    return f"{rate_text(row.value)} {interval_text(row.low, row.high)}".strip()


def _memorisation_row(name: str, found: Mapping[str | None, Metric]) -> Row:
    sample, difference = found.get("real_sample"), found.get("difference")
    shown = [found.get(against) for against in ("real_sample", "holdout", "difference")]
    cells = [NOT_STATED if row is None else _value_and_interval(row) for row in shown]
    limits = ("n/a", "n/a") if sample is None else (rate_text(sample.ceiling), rate_text(sample.floor))
    texts = "n/a" if sample is None else count_text(sample.n)
    is_leak = difference is not None and difference.low is not None and difference.low > 0
    return Row(cells=(METRIC_NAMES.get(name, name), *cells, *limits, texts), tone="bad" if is_leak else "")


def _other_row(row: Metric) -> Row:
    value = f"n/a: {row.reason}" if row.value is None and row.reason else rate_text(row.value)
    better = {"half": "near 0.5"}.get(row.direction or "", row.direction or "")
    interval = interval_text(row.low, row.high)
    return Row(cells=(metric_title(row), value, interval, rate_text(row.ceiling), better, count_text(row.n)))


def _attack_row(row: AuditRow) -> Row:
    is_refuted = row.verdict == "refuted" and row.benchmark_valid is not False
    cells = (
        f"{row.attack} (texts alone, no model)" if is_baseline(row) else row.attack,
        row.channel,
        auc_text(row),
        rate_text(row.tpr_at_fpr.get("0.01")),
        f"{count_text(row.num_members)} / {count_text(row.num_nonmembers)}",
        audited_text(row),
        "void: members differ as texts" if row.benchmark_valid is False else row.verdict or "no claim compared",
    )
    return Row(cells=cells, tone="bad" if is_refuted else "faint" if is_baseline(row) else "")
