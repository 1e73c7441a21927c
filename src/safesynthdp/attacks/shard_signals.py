"""What a shard stores of its model: signals of every audited record, by channel.

Here: forward passes of the trained and the untuned model, and n-grams of the corpus, as rows of one table. Elsewhere:
the signals' formulas (record_signals.py, ngram.py), the tables of the whole pool (pool_tables.py).
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from safesynthdp.attacks.pool import Pool, read_table
from safesynthdp.attacks.shard_spec import ShardSpec
from safesynthdp.attacks.shard_stages import audited_records
from safesynthdp.errors import SafeSynthError
from safesynthdp.privacy.storage import write_atomically
from safesynthdp.progress import progress
from safesynthdp.records import Records
from safesynthdp.runs import RunDirectory

if TYPE_CHECKING:
    from safesynthdp.training.token_statistics import TokenStatistics

BASE_FILE = "untuned.parquet"
ROWS = pa.schema([("record_id", pa.string()), ("signal", pa.string()), ("value", pa.float64())])
SHARD_SIGNALS = pa.schema(
    [("record_id", pa.string()), ("channel", pa.string()), ("signal", pa.string()), ("value", pa.float64())]
)


def shard_signals(pool: Pool, spec: ShardSpec, run: RunDirectory, corpus: pa.Table | None) -> pa.Table:
    """Return every signal of the audited records under one model and its corpus.

    Args:
        pool: Where the records are.
        spec: Names the channels.
        run: The finished training run.
        corpus: Its synthetic texts; None without the channel text.

    Raises:
        SafeSynthError: If a signal is NaN or infinite; the message lists the records. Nothing is dropped.
    """
    records = audited_records(pool)
    parts = list[pa.Table]()
    if "model" in spec.channels:
        parts.append(_with_channel(_model_signals(pool, run, records), "model"))
    if corpus is not None:
        parts.append(_with_channel(text_signals(pool, records, corpus["text"].to_pylist()), "text"))
    return pa.concat_tables(parts)


def untuned_log_probs(pool: Pool, run: RunDirectory, records: Records) -> list[NDArray[np.float64]]:
    """Return the log-probabilities of each record's tokens under the model before training, computed once a pool.

    All runs of a pool start from the same model, and any worker writes the same file.
    """
    path = pool.path / "data" / BASE_FILE
    if path.is_file():
        found = read_table(path)
        if found["record_id"].to_pylist() == list(records.record_ids):
            return [np.asarray(row, dtype=np.float64) for row in found["log_probs"].to_pylist()]
    statistics = _statistics(run, records, untuned=True)
    values = [row.log_probs for row in statistics]
    table = pa.table({"record_id": list(records.record_ids), "log_probs": pa.array([v.tolist() for v in values])})
    write_atomically(path, lambda target: pq.write_table(table, target), private=True)
    return values


def text_signals(pool: Pool, records: Records, texts: Sequence[str]) -> pa.Table:
    """Return what a corpus says of each record: n-gram log-probabilities, long matches, nearest neighbour.

    The vocabulary is built from all records of the pool, members and not, so it is the same for every corpus. A match
    counts if the reference texts, which no model was trained on, lack it.
    """
    from safesynthdp.attacks.matching import MATCH_WORDS, long_matches
    from safesynthdp.attacks.nearest import nearest_similarity
    from safesynthdp.attacks.ngram import ngram_signals

    everyone = read_table(pool.training_file, columns=["text"])["text"].to_pylist()
    reference = read_table(pool.reference_file, columns=["text"])["text"].to_pylist()
    values = ngram_signals(texts, records.texts, vocabulary_texts=everyone)
    matches = long_matches(texts, records.texts, reference=reference, words=MATCH_WORDS)
    values[f"match_{MATCH_WORDS}"] = matches.astype(np.float64)
    values["embed_nn"] = nearest_similarity(texts, records.texts, vocabulary_texts=everyone)
    ids = list(records.record_ids)
    return pa.table(
        {
            "record_id": ids * len(values),
            "signal": [name for name in values for _ in ids],
            "value": np.concatenate([np.asarray(column, dtype=np.float64) for column in values.values()]),
        }
    )


def _model_signals(pool: Pool, run: RunDirectory, records: Records) -> pa.Table:
    from safesynthdp.attacks.record_signals import score_records, score_sums

    base = untuned_log_probs(pool, run, records)
    outside = population_records(pool, records)
    size = len(records)
    statistics = _statistics(run, _joined(records, outside), untuned=False)
    of_records = score_records(statistics[:size], record_ids=records.record_ids, base_log_probs=base)
    of_outside = score_sums(statistics[size:], record_ids=outside.record_ids)
    return pa.concat_tables([part.cast(ROWS) for part in (of_records, of_outside)])


def population_records(pool: Pool, records: Records) -> Records:
    """Return the records that every model scores and none is trained on; none in a pool that was planned without.

    Args:
        pool: Where they are.
        records: Audited ones, for the label set.
    """
    none = records.select([])
    if not pool.population_file.is_file():
        return none
    columns = read_table(pool.population_file).to_pydict()
    texts, labels, ids = (tuple(columns[name]) for name in ("text", "label", "record_id"))
    return dataclasses.replace(none, texts=texts, labels=labels, record_ids=ids, user_ids=None)


def _joined(first: Records, second: Records) -> Records:
    """Return both, for one pass of a model: whose they are is of no use to it."""
    return dataclasses.replace(
        first,
        texts=first.texts + second.texts,
        labels=first.labels + second.labels,
        record_ids=first.record_ids + second.record_ids,
        user_ids=None,
    )


def _statistics(run: RunDirectory, records: Records, *, untuned: bool) -> "list[TokenStatistics]":
    from safesynthdp.models import load_run_model
    from safesynthdp.training.examples import encode
    from safesynthdp.training.token_statistics import token_statistics

    loaded = load_run_model(run, untuned=untuned)
    examples = encode(
        records.texts,
        records.labels,
        tokenizer=loaded.tokenizer,
        template=loaded.template,
        max_length=loaded.max_length,
    )
    budget = int(run.config()["hardware"]["max_tokens_per_microbatch"])
    with progress("scoring, untuned" if untuned else "scoring", total=len(examples), unit="records") as advance:
        return token_statistics(loaded.model, examples, max_tokens_per_microbatch=budget, progress=advance)


def _with_channel(table: pa.Table, channel: str) -> pa.Table:
    """Return rows of (record_id, signal, value) under one channel, every value checked."""
    values = np.asarray(table["value"].to_numpy(), dtype=np.float64)
    broken = np.flatnonzero(~np.isfinite(values))
    if broken.size:
        raise SafeSynthError(f"{broken.size} signals of channel {channel} are NaN or infinite; nothing is dropped")
    columns = {
        "record_id": table["record_id"].cast(pa.string()),
        "channel": pa.array([channel] * table.num_rows, pa.string()),
        "signal": table["signal"].cast(pa.string()),
        "value": table["value"].cast(pa.float64()),
    }
    return pa.table(columns, schema=SHARD_SIGNALS)
