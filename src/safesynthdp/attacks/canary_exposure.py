"""How far each canary stands out in released text, among fresh candidates of its format (channel text).

Here: its rows of the table ``scores``. Elsewhere: candidates (pool_canaries.py), rank and bits (reference_attacks.py),
what a row says (audit_rows.py). From the stored corpora alone: no model, no torch.

The vocabulary holds the candidates' words too. Were they the unknown word, a canary would differ from them without any
leak, and its rank would not be uniform.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from safesynthdp.attacks.assignment import members
from safesynthdp.attacks.ngram import ngram_signals
from safesynthdp.attacks.pool import CORPUS, RECORDS, Pool, read_table
from safesynthdp.attacks.pool_attacks import EXPOSURE_ATTACK
from safesynthdp.attacks.pool_data import TEXT
from safesynthdp.attacks.pool_scores import TARGET
from safesynthdp.attacks.reference_attacks import exposure
from safesynthdp.attacks.shard_spec import ShardSpec

SIGNAL, CHANNEL = "ngram2_lp", "text"
_FORMULA = "log2 R - log2 rank of ngram2_lp among fresh candidates of the canary's format"
_HASHED = hashlib.sha256(_FORMULA.encode()).hexdigest()


def exposure_table(pool: Pool, texts: dict[str, str]) -> pa.Table | None:
    """Return one row a finished model and canary, its score in bits; None where there is nothing to rank.

    Args:
        pool: Its corpora are read.
        texts: record_id -> text of every audited record.
    """
    if not pool.candidates_file.is_file():
        return None
    fresh = read_table(pool.candidates_file).to_pylist()
    kinds = dict.fromkeys(row["kind"] for row in fresh)
    columns = ["record_id", "unit_id", "canary_kind"]
    canaries = [
        row for row in read_table(pool.path / RECORDS, columns=columns).to_pylist() if row["canary_kind"] in kinds
    ]
    done = [spec for spec in pool.shards if (pool.folder(spec) / CORPUS).is_file() and pool.state_of(spec) == "done"]
    if not canaries or not done:
        return None
    everyone: list[str] = read_table(pool.training_file, columns=[TEXT])[TEXT].to_pylist()
    vocabulary_texts = [*everyone, *(row["text"] for row in fresh)]
    ranked = [Ranked(row["record_id"], row["unit_id"], row["canary_kind"], texts[row["record_id"]]) for row in canaries]
    return pa.concat_tables([_of_model(pool, spec, ranked, fresh, vocabulary_texts) for spec in done])


class Ranked(NamedTuple):
    """One canary."""

    record_id: str
    unit_id: str
    kind: str
    text: str


def _of_model(
    pool: Pool,
    spec: ShardSpec,
    canaries: Sequence[Ranked],
    fresh: Sequence[Mapping[str, str]],
    vocabulary_texts: list[str],
) -> pa.Table:
    corpus: list[str] = read_table(pool.folder(spec) / CORPUS, columns=["text"])["text"].to_pylist()
    size = len(canaries)
    asked = [*(canary.text for canary in canaries), *(row["text"] for row in fresh)]
    values = ngram_signals(corpus, asked, vocabulary_texts=vocabulary_texts)[SIGNAL]
    kind_of = np.asarray([row["kind"] for row in fresh])
    of_kind = {kind: values[size:][kind_of == kind] for kind in dict.fromkeys(canary.kind for canary in canaries)}
    bits = [exposure(float(v), of_kind[canary.kind]).bits for v, canary in zip(values[:size], canaries, strict=True)]
    units = [canary.unit_id for canary in canaries]
    none = np.zeros(size, dtype=np.int16)
    return pa.table(
        {
            "target_id": [TARGET if spec.pair is None else str(spec.model_id)] * size,
            "record_id": [canary.record_id for canary in canaries],
            "channel": [CHANNEL] * size,
            "attack": [EXPOSURE_ATTACK] * size,
            "params_hash": [_HASHED] * size,
            "score": np.asarray(bits, dtype=np.float64),
            "member": members(spec.seed, spec.model_id, units, num_models=pool.num_models),
            "k_in": none,
            "k_out": none,
        }
    )
