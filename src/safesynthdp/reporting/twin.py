"""The same report for machines: every number of the page, unrounded, as one JSON object.

Here: the mapping that report.json holds. Elsewhere: what a public edition leaves out (publish.py, applied before).
Keys: ``version``, ``is_public``, ``dropped``, ``problems``, ``runs``. A run has ``run_id, status, unit, adjacency,
is_seeded``, ``epsilon`` and ``delta`` (of all releases together; null = no guarantee), ``releases``, ``entries``,
``metrics`` and ``attacks`` (null = not done), ``refuted`` (what contradicts a claim, in words), ``samples``,
``statement``.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from safesynthdp.reporting.audits import is_refuted, refutation_text
from safesynthdp.reporting.facts import Group
from safesynthdp.reporting.guarantee import Guarantee
from safesynthdp.reporting.statement import statement

VERSION = 1


def twin(parts: Sequence[tuple[Group, Guarantee]], *, is_public: bool, dropped: Sequence[str]) -> dict[str, Any]:
    """Return the report as plain JSON values; numbers are those of the files, epsilon as the ledger has it."""
    return {
        "version": VERSION,
        "is_public": is_public,
        "dropped": list(dict.fromkeys(dropped)),
        "problems": [problem for _, guarantee in parts for problem in guarantee.problems],
        "runs": [_run(group, guarantee) for group, guarantee in parts],
    }


def _run(group: Group, guarantee: Guarantee) -> dict[str, Any]:
    stage = None if group.finetune is None else group.finetune.stage
    metrics = [asdict(row) for evaluation in group.evaluations for row in evaluation.metrics or ()]
    rows = [row for attack in group.attacks for row in attack.rows or ()]
    attacks = [asdict(row) for row in rows]
    return {
        "run_id": None if stage is None else stage.run_id,
        "status": None if stage is None else stage.status,
        "unit": guarantee.unit,
        "adjacency": guarantee.adjacency,
        "epsilon": guarantee.epsilon,
        "delta": guarantee.delta,
        "is_seeded": guarantee.is_seeded,
        "releases": [asdict(claim) for claim in guarantee.claims],
        "entries": [asdict(access) for access in guarantee.accesses],
        "metrics": metrics or None,
        "attacks": attacks or None,
        "refuted": [refutation_text(row, guarantee) for row in rows if is_refuted(row, guarantee)],
        "samples": [asdict(text) for sample in group.samples if not sample.is_untuned for text in sample.texts],
        "statement": {fact.name: fact.value for fact in statement(group, guarantee)},
    }
