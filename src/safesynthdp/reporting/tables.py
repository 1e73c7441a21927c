"""What an evaluation found about utility, as tables and figures; the names of all metrics.

Elsewhere: memorisation and likeness (likeness_tables.py), attacks (attack_table.py), the rows themselves (facts.py) and
which of them a public page may show (publish.py, applied before anything here).
"""

from collections.abc import Sequence

from safesynthdp.reporting.facts import Evaluation, Metric
from safesynthdp.reporting.figures import Drawing
from safesynthdp.reporting.layout import Row, Table, table
from safesynthdp.reporting.utility_figures import Bar, draw_recall, draw_utility
from safesynthdp.reporting.wording import (
    count_text,
    interval_text,
    rate_text,
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
    "mauve": "MAUVE",
    "mauve_star": "MAUVE*",
    "frontier_integral": "frontier integral",
    "frechet": "Frechet distance of embeddings",
    "distinct_1": "distinct words",
    "distinct_2": "distinct word pairs",
    "distinct_3": "distinct word triples",
    "coverage": "coverage of real text",
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
    "nearest_in_train": "nearest real record is a training record (0.5 by chance)",
}
HEADINGS = {"accuracy": "Accuracy", "macro_f1": "Macro-F1"}
CLASSIFIERS = {
    "lr": "logistic regression",
    "nb": "naive Bayes",
    "svm": "linear SVM",
    "rf": "random forest",
    "emb": "embeddings + logistic regression",
    "gru": "GRU",
    "cnn": "CNN",
}
SHORT = {
    "synthetic": "synthetic",
    "real_matched": "real, equal number",
    "base_model": "untuned",
    "dp_direct": "DP direct",
}
UTILITY, MEMORISATION = "utility", "memorisation"
MAX_RECALL_LABELS = 20


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


def utility_drawing(evaluation: Evaluation, *, identity: str, is_small: bool = False) -> Drawing | None:
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
    return draw_utility(bars, band=band, identity=identity, caption=caption + shading, is_small=is_small)


def recall_drawing(evaluation: Evaluation, *, identity: str) -> Drawing | None:
    """Return recall by label of the first classifier, synthetic beside real text; None for fewer than two labels."""
    model = headline_model(evaluation)
    rows = [r for r in evaluation.metrics or () if (r.group, r.name) == (UTILITY, "recall") and r.model == model]
    labels = list(dict.fromkeys(row.label for row in rows if row.label is not None))[:MAX_RECALL_LABELS]
    series = {
        SHORT[train_on]: {
            row.label: (row.value, row.low, row.high)
            for row in rows
            if row.train_on == train_on and row.label in labels and row.value is not None
        }
        for train_on in SHORT
    }
    drawn = {name: values for name, values in series.items() if values}
    if len(labels) < 2 or not drawn:
        return None
    caption = f"Share of held-out real records of each label that {CLASSIFIERS.get(model or '', model or '')} finds."
    return draw_recall(labels, drawn, identity=identity, caption=caption)


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
    cells = ["" if row is None else value_and_interval(row) for row in found]
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
                   value_and_interval(r)))
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
    cells = {(row.label, row.train_on): value_and_interval(row) for row in rows}
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


def value_and_interval(row: Metric) -> str:
    """Return the value with its interval, or why there is none."""
    if row.value is None:
        return f"n/a: {row.reason}" if row.reason else "n/a"
    return f"{rate_text(row.value)} {interval_text(row.low, row.high)}".strip()
