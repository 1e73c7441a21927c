"""``safesynthdp attack score --pool``: every attack on a finished pool, and what its scores prove.

Here: the flags, scores.parquet and audit.json at the top of the pool, the lines for people, the exit code. Elsewhere:
the tables (pool_tables.py), the attacks (pool_scores.py), the audit (pool_audit.py). No torch.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safesynthdp.attacks.command import AUDIT, SCORES
from safesynthdp.attacks.pool import Pool
from safesynthdp.config import parse
from safesynthdp.errors import ClaimRefuted, ConfigError
from safesynthdp.privacy.storage import write_json

_UNPLANNED = "was chosen when scoring, not in the plan: alpha holds only if nobody had seen a score of this pool before"
RISK, ROC = "record_risk.parquet", "roc.json"


@dataclass(frozen=True, kw_only=True)
class ScorePoolConfig:
    """Attack a pool with every attack its signals allow, and audit the claims of its releases."""

    pool: str
    """The pool, as ``attack plan`` wrote it; its shards are done."""
    alpha: float = 0.05
    """Probability that a true claim is refuted, shared by the attacks of a channel."""
    primary: str | None = None
    """The one attack, named in advance, that has the whole alpha; null = the plan's, or else all share it."""
    attacks: list[str] | None = None
    """Names of attacks; null = all that the signals allow."""
    variance: Literal["shrunk", "per_record", "global"] = "shrunk"
    """How LiRA estimates the spread of a record's signal."""
    seed: int = 0
    """Of the text baseline's draw and folds; not a secret."""
    json: bool = False
    """Print one JSON object and nothing else on stdout."""

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        if not 0 < self.alpha < 1:
            raise ConfigError(f"alpha={self.alpha} is not an error probability; give a number between 0 and 1")


def score_main(argv: Sequence[str]) -> None:
    """Score and audit a pool.

    Raises:
        ClaimRefuted: If the audit refutes a claim; all files are written before.
    """
    config = parse(ScorePoolConfig, argv, prog="safesynthdp attack score")
    pool = Pool.open(config.pool)
    rows = score_pool(pool, config)
    sys.stdout.write(
        json.dumps({"rows": rows}, allow_nan=False) + "\n" if config.json else _for_people(rows, pool.path)
    )
    refuted = sorted({f"{row['attack']} in channel {row['channel']}" for row in rows if row["verdict"] == "refuted"})
    if refuted:
        raise ClaimRefuted(
            f"the claim is refuted by {', '.join(refuted)}; see {pool.path / AUDIT}, and release nothing of this recipe"
        )


def score_pool(pool: Pool, config: ScorePoolConfig) -> list[dict[str, Any]]:
    """Write scores, audit, ROC points and the risk of each record, and return the rows of the audit.

    Raises:
        UserError: If the tables do not fit, or too little of the pool is done.
    """
    from safesynthdp.attacks.canary_exposure import exposure_table
    from safesynthdp.attacks.pool_attacks import EXPOSURE_ATTACK
    from safesynthdp.attacks.pool_audit import audit_pool
    from safesynthdp.attacks.pool_tables import gather
    from safesynthdp.attacks.record_risk import record_risk
    from safesynthdp.attacks.roc import roc_rows
    from safesynthdp.attacks.shard import write_private_table

    primary, notes = chosen_in_advance(pool, config)
    tables = gather(pool)
    num_done = tables.models["status"].to_pylist().count("done")
    if num_done < len(pool.shards):
        notes.append(f"{num_done} of {len(pool.shards)} models are done; the others are not among these numbers")
    asked = None if config.attacks is None else [name for name in config.attacks if name != EXPOSURE_ATTACK]
    exposed = exposure_table(pool, tables.texts) if asked is None or asked != config.attacks else None
    scores, rows = audit_pool(
        tables.signals,
        tables.assignment,
        claims=tables.claims,
        texts=tables.texts,
        records=tables.records,
        models=tables.models.filter(tables.models["status"].to_numpy(zero_copy_only=False) == "done"),
        population=tables.population,
        attacks=asked,
        variance=config.variance,
        alpha=config.alpha,
        primary=primary,
        num_epochs=tables.num_epochs,
        seed=config.seed,
        more=[] if exposed is None else [exposed],
        notes=notes,
    )
    write_private_table(pool.path / SCORES, scores)
    write_private_table(pool.path / RISK, record_risk(scores))
    write_json(pool.path / ROC, {"rows": roc_rows(scores, tables.claims, records=tables.records)}, private=True)
    write_json(pool.path / AUDIT, {"version": 1, "alpha": config.alpha, "rows": rows}, private=True)
    return rows


def chosen_in_advance(pool: Pool, config: ScorePoolConfig) -> tuple[str | None, list[str]]:
    """Return the primary attack, and notes on every choice that the plan does not hold.

    Raises:
        ConfigError: If the plan names another attack: one that is named after the scores are seen tests nothing.
    """
    planned = pool.plan.get("primary")
    if planned is not None and config.primary not in (None, planned):
        raise ConfigError(
            f"primary={config.primary}: the plan names {planned}, and only an attack named in advance has the alpha"
        )
    notes = list[str]()
    if planned is None and config.primary is not None:
        notes.append(f"primary={config.primary} {_UNPLANNED}")
    if config.variance != "shrunk":
        notes.append(f"variance={config.variance} {_UNPLANNED}")
    if config.attacks is not None:
        notes.append(f"attacks={','.join(config.attacks)} {_UNPLANNED}")
    return config.primary or planned, notes


def _for_people(rows: Sequence[dict[str, Any]], path: Path) -> str:
    """Return a line for each attack on the released model, or pooled over the others, and the notes."""
    lines = list[str]()
    for row in rows:
        if row["target_id"] not in ("target", "pooled"):
            continue
        low, high = row["auc_interval"] or (float("nan"), float("nan"))
        bound, most = row["epsilon_lower_bound"], row["epsilon_attainable"]
        proved = "" if bound is None or most is None else f"; epsilon at least {bound:.2f} of at most {most:.2f}"
        if bound is None and row["p_value"] is not None:
            proved = f"; no leakage: p = {row['p_value']:.2g}"
        kind = next((note.removeprefix("records: ") for note in row["notes"] if note.startswith("records: ")), "")
        claimed = "" if row["epsilon_claimed"] is None else f", claimed {row['epsilon_claimed']:.2f}"
        lines.append(
            f"{row['target_id']:<7} {row['channel']:<6} {row['attack']:<16} {kind:<13} AUC {row['auc']:.3f} "
            f"[{low:.3f}, {high:.3f}]{proved}{claimed}{'' if row['verdict'] is None else ': ' + row['verdict']}"
        )
    notes = dict.fromkeys(note for row in rows for note in row["notes"])
    said = [f"note: {note}" for note in notes if not note.startswith("records: ")]
    return "\n".join([*lines, *said, f"written to {path}", ""])
