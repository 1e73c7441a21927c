"""What a public page may not show, taken away before anything is drawn.

Here: from collected facts to the facts that may leave, and a list of what stayed. Elsewhere: how either is shown
(page.py), which never asks whether a page is public before it prints a number.

Guarantee:
    A number survives only if it was computed from public data or from an artifact whose ledger gives it a finite
    epsilon. Everything not known to be such goes: an attack on natural records, progress, counts, paths, commands.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from safesynthdp.reporting.audits import claim_for
from safesynthdp.reporting.facts import Attack, AuditRow, Evaluation, Finetune, Group, Metric, Sample, Stage
from safesynthdp.reporting.guarantee import Access, Guarantee

_PUBLIC_MANIFEST = ("kind", "status", "run_id", "created", "finished", "versions", "commit", "hardware", "parents",
                    "untuned", "engine", "num_trainable", "data", "settings", "requested", "num_records",
                    "counts")  # fmt: skip
_FOLLOW_FROM_NUM_RECORDS = ("num_records", "num_users", "sample_rate")
REFUSED = "a ledger of this run does not stand being computed again; the internal report says which"
_PUBLIC_DATA = ("label_set", "label_set_is_public")
_PUBLIC_EVALUATION = ("seeds", "downstream", "level", "holdout_is_public")
_PUBLIC_SAMPLE = ("untuned", "labels", "temperature", "top_k", "top_p", "max_new_tokens", "dtype", "seed")
_PUBLIC_MATCHING = ("rounds", "records_a_round", "candidates")
_PUBLIC_SECTIONS = ("model", "lora", "privacy", "train", "hardware")
_PUBLIC_DATA_CONFIG = ("builtin", "dataset_name", "dataset_config", "dataset_split", "prompt_template",
                       "label_descriptions", "max_length", "labels", "holdout_percent")  # fmt: skip


def publishable(
    group: Group, guarantee: Guarantee, *, untuned: frozenset[str] = frozenset()
) -> tuple[Group, Guarantee, tuple[str, ...]]:
    """Return what may leave of a group and its ledgers, and a list of what was dropped.

    ``untuned`` are samples of the untuned model in other groups, each covered by its own ledger: a grid shares one.
    """
    dropped = list[str]()
    own = frozenset(s.stage.run_id for s in group.samples if guarantee.covers(s.stage.run_id))
    guaranteed = own | untuned
    finetune = None if group.finetune is None else _finetune(group.finetune, dropped)
    samples = tuple(_sample(sample, guaranteed, dropped) for sample in group.samples)
    evaluations = tuple(
        _evaluation(e, has_guarantee=_is_covered(e, guaranteed), dropped=dropped) for e in group.evaluations
    )
    attacks = tuple(_attack(attack, guarantee, dropped) for attack in group.attacks)
    bare = Group(finetune=finetune, samples=samples, evaluations=evaluations, attacks=attacks)
    ledgers = _guarantee(guarantee, dropped)
    return bare, ledgers, (*dropped, "file names, paths and command lines")


def _guarantee(guarantee: Guarantee, dropped: list[str]) -> Guarantee:
    """A private number of records also shows in the sample rate; a fingerprint is a function of the records alone."""
    accesses = tuple(_access(access) for access in guarantee.accesses)
    if any(access.data for access in guarantee.accesses):
        dropped.append("fingerprints of the private records in the ledger")
    if any(access.data.get("num_records_is_public") is not True for access in guarantee.accesses):
        dropped.append("the number of private records, and the sample rate computed from it")
    problems = (REFUSED,) if guarantee.problems else ()
    return replace(guarantee, accesses=accesses, problems=problems)


def _access(access: Access) -> Access:
    kept = {"num_records_is_public": access.data.get("num_records_is_public")}
    if access.data.get("num_records_is_public") is True:
        return replace(access, data={**kept, "num_records": access.data.get("num_records")})
    mechanism = {key: value for key, value in access.mechanism.items() if key not in _FOLLOW_FROM_NUM_RECORDS}
    return replace(access, data=kept, mechanism=mechanism)


def _finetune(finetune: Finetune, dropped: list[str]) -> Finetune:
    data = finetune.stage.manifest.get("data") or {}
    if finetune.progress:
        dropped.append(f"training progress ({len(finetune.progress)} steps: loss, share of clipped records)")
    if hidden := sorted(key for key in data if key not in _PUBLIC_DATA):
        dropped.append(f"facts about the private records: {', '.join(hidden)}")
    histogram = finetune.histogram
    if histogram is not None and histogram.get("source") not in ("discrete_laplace", "uniform"):
        dropped.append("exact label counts")
        histogram = None
    if finetune.lengths:
        dropped.append("lengths of the private records")
    return Finetune(stage=_stage(finetune.stage), progress=(), histogram=histogram)


def _sample(sample: Sample, guaranteed: frozenset[str], dropped: list[str]) -> Sample:
    stage = _stage(sample.stage)
    if sample.stage.run_id in guaranteed:
        return replace(sample, stage=stage)
    dropped.append(f"synthetic text of {stage.run_id[:8]}: no formal guarantee covers it")
    bare = {key: value for key, value in stage.manifest.items() if key not in ("counts", "num_records")}
    return replace(sample, stage=replace(stage, manifest=bare), texts=(), num_texts=None, lengths=())


def _evaluation(evaluation: Evaluation, *, has_guarantee: bool, dropped: list[str]) -> Evaluation:
    rows = evaluation.metrics
    leaving = [row for row in rows or () if has_guarantee and _may_leave(row, evaluation.settings)]
    left = [row for row in rows or () if row not in leaving]
    kept = None if rows is None else tuple(_row(row) for row in leaving)
    for group in dict.fromkeys(row.group for row in left):
        names = list(dict.fromkeys(row.name for row in left if row.group == group))
        count = sum(row.group == group for row in left)
        dropped.append(f"{count} {group} rows: {', '.join(names)}")
    if evaluation.warnings:
        dropped.append("warnings of the evaluation")
    if evaluation.copied is not None:
        dropped.append("training records beside the texts nearest to them")
    if evaluation.findings:
        dropped.append("findings of the evaluation")
    if evaluation.inputs:
        dropped.append("sizes and fingerprints of the evaluated files")
    settings = {key: value for key, value in evaluation.settings.items() if key in _PUBLIC_EVALUATION}
    bare = replace(evaluation, metrics=kept, inputs={}, settings=settings, warnings=(), findings=(), copied=None)
    return replace(bare, stage=_stage(evaluation.stage))


def _is_covered(evaluation: Evaluation, guaranteed: frozenset[str]) -> bool:
    """Whether a ledger says what the evaluated text and its baseline cost: a bare file has none."""
    given = [evaluation.inputs.get(role) for role in ("synthetic", "baseline")]
    run_ids = [facts.get("run_id") if isinstance(facts, Mapping) else None for facts in given if facts is not None]
    return given[0] is not None and all(run_id in guaranteed for run_id in run_ids)


def _may_leave(row: Metric, settings: Mapping[str, Any]) -> bool:
    is_public = {"synthetic"} | ({"holdout"} if settings.get("holdout_is_public") is True else set())
    return row.publishable and bool(row.reads) and set(row.reads) <= is_public


def _row(row: Metric) -> Metric:
    """The ceiling of a row is a number about real text."""
    is_constant = row.ceiling in (None, 0.0, 1.0)
    return row if is_constant else replace(row, ceiling=None)


def _attack(attack: Attack, guarantee: Guarantee, dropped: list[str]) -> Attack:
    """An audit by canaries on a released artifact is post-processing of it; natural records and pools are not."""
    kept = tuple(row for row in attack.rows or () if _is_about_canaries(row, guarantee))
    of_pool = [row for row in attack.rows or () if row.pool is not None]
    if of_pool:
        dropped.append(f"{len(of_pool)} rows of a shadow pool: its models are trained on private records, unaccounted")
    left = [row for row in attack.rows or () if row not in kept and row.pool is None]
    if left:
        names = ", ".join(dict.fromkeys(f"{row.attack} ({row.channel})" for row in left))
        dropped.append(f"{len(left)} attack rows on natural records: {names}")
    if attack.curves:
        dropped.append("ROC curves of the attacks")
    return Attack(stage=_stage(attack.stage), rows=kept or None)


def _is_about_canaries(row: AuditRow, guarantee: Guarantee) -> bool:
    return row.role == "canary" and row.pool is None and claim_for(row, guarantee) is not None


def _stage(stage: Stage) -> Stage:
    manifest = {key: value for key, value in stage.manifest.items() if key in _PUBLIC_MANIFEST}
    if stage.kind != "sample":  # a sample's counts are about the text alone
        manifest = {key: value for key, value in manifest.items() if key not in ("counts", "num_records")}
    matching = stage.manifest.get("token_matching")
    if isinstance(matching, Mapping):  # how far off it was is a function of exact counts where a run has no guarantee
        manifest["token_matching"] = {key: matching[key] for key in _PUBLIC_MATCHING if key in matching}
    data = manifest.get("data")
    if isinstance(data, Mapping):
        is_public = data.get("label_set_is_public") is True
        keys = _PUBLIC_DATA if is_public else ("label_set_is_public",)
        manifest["data"] = {key: data[key] for key in keys if key in data}
    else:
        manifest.pop("data", None)
    return replace(stage, manifest=manifest, config=_config(stage))


def _config(stage: Stage) -> dict[str, Any]:
    if stage.kind != "finetune":
        return {key: stage.config[key] for key in _PUBLIC_SAMPLE if key in stage.config and stage.kind == "sample"}
    config: dict[str, Any] = {name: dict(stage.config.get(name) or {}) for name in _PUBLIC_SECTIONS}
    config["model"] = {key: None if _is_path(value) else value for key, value in config["model"].items()}
    data = stage.config.get("data") or {}
    config["data"] = {key: data[key] for key in _PUBLIC_DATA_CONFIG if key in data}
    if _is_path(data.get("dataset_name")):
        del config["data"]["dataset_name"]
    return config


def _is_path(value: object) -> bool:
    """Whether a name leads to a folder: only NAME and OWNER/NAME are names on the hub."""
    return isinstance(value, str) and ("\\" in value or value[:1] in ("/", ".", "~") or value.count("/") > 1)
