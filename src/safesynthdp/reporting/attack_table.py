"""What attacks found, as a table: the model-less baseline first.

Elsewhere: bounds and verdicts in words (audits.py), the rows themselves (facts.py).
"""

from collections.abc import Sequence

from safesynthdp.reporting.audits import audited_text, is_baseline, is_refuted, verdict_text
from safesynthdp.reporting.facts import AuditRow
from safesynthdp.reporting.guarantee import Guarantee
from safesynthdp.reporting.layout import Row, Table, table
from safesynthdp.reporting.wording import count_text, interval_text, rate_text, value_text


def attack_table(rows: Sequence[AuditRow], guarantee: Guarantee) -> Table:
    """Return one line an attack, the model-less baseline first."""
    titles = ("attack", "channel", "AUC [interval]", "TPR at 1% FPR", "members / others",
              "targets / references / epochs", "audited epsilon", "verdict")  # fmt: skip
    words = ("channel", "audited epsilon", "verdict")
    ordered = sorted(rows, key=lambda row: not is_baseline(row))
    lines = [_attack_row(row, guarantee) for row in ordered]
    return table("Higher AUC = more leakage; 0.5 is chance", titles, lines, words=words)


def auc_text(row: AuditRow) -> str:
    """Return the AUC with its interval, and the level where it is not 95%."""
    if row.auc_interval is None:
        return rate_text(row.auc)
    level = "" if row.alpha in (None, 0.05) else f" at {value_text(round(100 * (1 - row.alpha), 6))}%"
    return f"{rate_text(row.auc)} {interval_text(*row.auc_interval)}{level}"


def _few(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g}"


def _attack_row(row: AuditRow, guarantee: Guarantee) -> Row:
    cells = (
        f"{row.attack} (texts alone, no model{'' if row.pool is None else f'; {row.pool}'})"
        if is_baseline(row)
        else row.title,
        row.channel,
        auc_text(row),
        rate_text(row.tpr_at_fpr.get("0.01")),
        f"{count_text(row.num_members)} / {count_text(row.num_nonmembers)}",
        f"{_few(row.num_targets)} / {_few(row.num_references)} / {_few(row.num_epochs)}",
        audited_text(row),
        verdict_text(row, guarantee),
    )
    tone = "bad" if is_refuted(row, guarantee) else "faint" if is_baseline(row) else ""
    return Row(cells=cells, tone=tone)
