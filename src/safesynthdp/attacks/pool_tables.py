"""The tables of a whole pool, joined from its finished shards.

Here: ``models`` and ``signals`` at the top of the pool, the rows of what was never trained on an audited record, and
the claims of what each model released. Elsewhere: a shard's own tables (shard.py), scores (pool_scores.py). No torch.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from safesynthdp.attacks.claims import Claim, claim_of_release
from safesynthdp.attacks.ngram import ngram_signals
from safesynthdp.attacks.pool import (
    ASSIGNMENT,
    MODELS,
    RECORDS,
    SIGNALS,
    TEXT_LEDGER,
    WEIGHTS_LEDGER,
    Pool,
    read_shard_manifest,
    read_table,
)
from safesynthdp.attacks.pool_data import TEXT
from safesynthdp.attacks.pool_signals import BASE_MODEL
from safesynthdp.attacks.shard import write_private_table
from safesynthdp.attacks.shard_signals import BASE_FILE
from safesynthdp.attacks.shard_spec import ShardSpec
from safesynthdp.errors import SafeSynthError, UserError
from safesynthdp.privacy.ledger import Ledger

MODEL_COLUMNS = pa.schema(
    [
        ("model_id", pa.int64()),
        ("pair", pa.int64()),
        ("recipe_hash", pa.string()),
        ("data_hash", pa.string()),
        ("base_model", pa.string()),
        ("dp", pa.string()),
        ("num_records_nominal", pa.int64()),
        ("status", pa.string()),
        ("weights_deleted", pa.bool_()),
        ("walltime_s", pa.float64()),
        ("attempts", pa.int64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class PoolTables:
    """What scoring reads."""

    records: pa.Table
    assignment: pa.Table
    models: pa.Table
    signals: pa.Table
    texts: dict[str, str]
    """record_id -> text of every audited record."""
    population: list[str]
    """Records in signals that no model was trained on."""
    claims: dict[str, Claim]
    """Channel -> what a model of the pool claims for its release."""
    num_epochs: float | None
    """Mean number of times a unit was drawn."""


def gather(pool: Pool) -> PoolTables:
    """Join the tables of all finished shards, write ``models`` and ``signals`` at the top, and return everything.

    Raises:
        UserError: If no shard is done.
        SafeSynthError: If a shard does not belong to this plan.
    """
    done = [spec for spec in pool.shards if pool.state_of(spec) == "done"]
    if not done:
        raise UserError(f"pool={pool.path} has no finished shard; carry it out with `safesynthdp attack run`")
    manifests = {spec.model_id: _manifest(pool, spec) for spec in done}
    models = _models_table(pool, manifests)
    signals = pa.concat_tables([*(_of_shard(pool, spec) for spec in done), *_untrained(pool)])
    write_private_table(pool.path / MODELS, models)
    write_private_table(pool.path / SIGNALS, signals)
    facts = manifests[done[0].model_id]["facts"]
    steps = facts["dp"]["steps"]
    return PoolTables(
        records=read_table(pool.path / RECORDS),
        assignment=read_table(pool.path / ASSIGNMENT),
        models=models,
        signals=signals,
        texts=audited_texts(pool),
        population=_population(pool),
        claims=_claims(pool, done[-1]),
        num_epochs=steps * facts["expected_batch_size"] / pool.plan["nominal_num_records"],
    )


def audited_texts(pool: Pool) -> dict[str, str]:
    """Return record_id -> text of every audited record."""
    from safesynthdp.attacks.shard_stages import audited_records

    records = audited_records(pool)
    return dict(zip(records.record_ids, records.texts, strict=True))


def _population(pool: Pool) -> list[str]:
    if not pool.population_file.is_file():
        return []
    found: list[str] = read_table(pool.population_file, columns=["record_id"])["record_id"].to_pylist()
    return found


def _manifest(pool: Pool, spec: ShardSpec) -> dict[str, Any]:
    manifest = read_shard_manifest(pool.folder(spec))
    if manifest is None or manifest["facts"]["recipe_hash"] != spec.recipe_hash:
        raise SafeSynthError(f"{pool.folder(spec)} was trained with another recipe than the pool's; delete it")
    return manifest


def _models_table(pool: Pool, manifests: dict[int, dict[str, Any]]) -> pa.Table:
    rows = list[dict[str, Any]]()
    for spec in pool.shards:
        facts = manifests.get(spec.model_id, {}).get("facts", {})
        rows.append(
            {
                "model_id": spec.model_id,
                "pair": spec.pair,
                "recipe_hash": spec.recipe_hash,
                "data_hash": spec.data_hash,
                "base_model": facts.get("base_model"),
                "dp": json.dumps(facts["dp"], sort_keys=True) if facts else None,
                "num_records_nominal": spec.nominal_num_records,
                "status": "done" if facts else "missing",
                "weights_deleted": facts.get("weights_deleted"),
                "walltime_s": facts.get("walltime_s"),
                "attempts": facts.get("attempts"),
            }
        )
    return pa.Table.from_pylist(rows, schema=MODEL_COLUMNS)


def _of_shard(pool: Pool, spec: ShardSpec) -> pa.Table:
    return _with_model(read_table(pool.folder(spec) / SIGNALS), spec.model_id)


def _with_model(table: pa.Table, model_id: int) -> pa.Table:
    return table.add_column(0, "model_id", pa.array(np.full(table.num_rows, model_id, dtype=np.int64)))


def _untrained(pool: Pool) -> list[pa.Table]:
    """Return the rows of the untuned model, and of a reference corpus that no model was trained on."""
    parts = list[pa.Table]()
    if "model" in pool.plan["channels"]:
        base = read_table(pool.path / "data" / BASE_FILE).to_pydict()
        sums = [float(np.sum(np.asarray(row, dtype=np.float64))) for row in base["log_probs"]]
        counts = [float(len(row)) for row in base["log_probs"]]
        parts.append(_rows(base["record_id"], "model", {"lp_sum": sums, "num_scored": counts}))
    reference = read_table(pool.reference_file, columns=["text"])["text"].to_pylist()
    if "text" in pool.plan["channels"] and reference:
        texts = audited_texts(pool)
        everyone = read_table(pool.training_file, columns=[TEXT])[TEXT].to_pylist()
        size = int(pool.shards[0].sample["num_records"]) if pool.shards[0].sample else len(reference)
        found = ngram_signals(reference[:size], list(texts.values()), vocabulary_texts=everyone)
        parts.append(_rows(list(texts), "text", {name: values.tolist() for name, values in found.items()}))
    return parts


def _rows(record_ids: list[str], channel: str, values: dict[str, list[float]]) -> pa.Table:
    from safesynthdp.attacks.shard_signals import SHARD_SIGNALS

    size = len(record_ids) * len(values)
    columns = {
        "record_id": record_ids * len(values),
        "channel": [channel] * size,
        "signal": [name for name in values for _ in record_ids],
        "value": [value for column in values.values() for value in column],
    }
    return _with_model(pa.table(columns, schema=SHARD_SIGNALS), BASE_MODEL)


def _claims(pool: Pool, spec: ShardSpec) -> dict[str, Claim]:
    """Return what the released model claims by channel; all models of a pool have its recipe and its claim."""
    folder = pool.folder(spec)
    names = {"model": (WEIGHTS_LEDGER, "weights"), "text": (TEXT_LEDGER, "synthetic_text")}
    return {
        channel: claim_of_release(Ledger.read(folder / file), artifact)
        for channel, (file, artifact) in names.items()
        if channel in pool.plan["channels"]
    }
