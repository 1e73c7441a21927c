"""A shadow pool as the report reads it: whose claim it audits, and which of its rows may stand beside that claim.

Here: the owner of a pool, its rows and curves. Elsewhere: how a pool is planned, carried out and scored (attacks/),
what a row says about a claim (audits.py).

A pool audits a recipe on models of its own. It stands beside the run whose recipe it took; one that took a file stands
beside its own target. Bounds of single rotating targets share no alpha and stay in audit.json: only those of the
dedicated target and of all rotating ones pooled are read, and of attacks that were not named in advance none.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from safesynthdp.reporting.audits import is_baseline
from safesynthdp.reporting.facts import Attack, AuditRow, Curve, Stage
from safesynthdp.reporting.reading import AUDIT, SCORES, read_attack, read_json
from safesynthdp.reporting.roc import read_curves
from safesynthdp.runs import MANIFEST, RunDirectory

POOL = "shadow_pool"
_KIND = "records: "
_PLACES = ("target/run", "target/sample")


def with_owner(stage: Stage) -> Stage:
    """Return a pool with its own target as parents if it took its recipe from no run; any other stage as it is."""
    if stage.kind != POOL or stage.parents:
        return stage
    folders = [stage.path / place for place in _PLACES if (stage.path / place / MANIFEST).is_file()]
    parents = [{"run_id": RunDirectory.open(folder).manifest["run_id"], "path": str(folder)} for folder in folders]
    return replace(stage, manifest={**stage.manifest, "parents": parents})


def read_pool(stage: Stage) -> Attack:
    """Read the audit of a pool; ``rows`` is None where it is not scored yet."""
    from safesynthdp.attacks.pool_scores import TARGET

    found = read_attack(stage, with_curves=False)
    if found.rows is None:
        return found
    alpha = (read_json(stage.path / AUDIT) or {}).get("alpha")
    kept = _chosen(found.rows)
    rows = tuple(_row(row, stage, joint_alpha=float(alpha) if isinstance(alpha, int | float) else None) for row in kept)
    return replace(found, rows=rows, curves=_curves(stage, target_id=TARGET))


def _chosen(rows: tuple[AuditRow, ...]) -> list[AuditRow]:
    """The dedicated target, all rotating ones together, and the controls of one target."""
    from safesynthdp.attacks.audit_rows import POOLED
    from safesynthdp.attacks.pool_scores import TARGET

    controls = [row for row in rows if is_baseline(row)]
    own = [row for row in controls if row.target_id == TARGET] or controls[:1]
    return [*own, *(row for row in rows if row.target_id in (TARGET, POOLED) and not is_baseline(row))]


def _row(row: AuditRow, stage: Stage, *, joint_alpha: float | None) -> AuditRow:
    from safesynthdp.attacks.audit_rows import NOT_NAMED, POOLED
    from safesynthdp.attacks.pool_scores import TARGET

    kind = next((note.removeprefix(_KIND) for note in row.notes if note.startswith(_KIND)), "records")
    whose = {TARGET: "its target", POOLED: "its other models"}.get(row.target_id, f"model {row.target_id}")
    notes = tuple(note for note in row.notes if not note.startswith(_KIND))
    if not is_baseline(row):
        notes = (*notes, *_about(row, stage.config))
    found = replace(row, pool=f"pool, {whose}, {kind}", joint_alpha=joint_alpha, notes=notes)
    if NOT_NAMED in row.notes:
        return replace(found, epsilon_lower_bound=None, epsilon_attainable=None)
    return found


def _about(row: AuditRow, config: Mapping[str, Any]) -> list[str]:
    """What a reader must know before the bound is taken for one about the run."""
    said = [
        f"a shadow pool of {config.get('num_models', '?')} models and a target of its own, all trained with the recipe "
        "of this run: it audits the recipe and its own target, and is held against the claim of that target"
    ]
    if row.channel == "text":
        num_texts = (config.get("sample") or {}).get("num_records", "?")
        said.append(f"corpora of {num_texts} texts each: a larger sample shows more")
    return said


def _curves(stage: Stage, *, target_id: str) -> tuple[Curve, ...]:
    curves = read_curves(stage.path / SCORES, target_id=target_id)
    return tuple(replace(curve, attack=f"{curve.attack}, pool") for curve in curves)
