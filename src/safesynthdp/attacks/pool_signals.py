"""The tables of a pool as arrays: who is in which model, and each signal as a matrix.

Here: joining by record_id and nothing else, and every refusal of a table that does not fit. Elsewhere: the rule of the
bits (assignment.py), the attacks (pool_scores.py). pyarrow and numpy only. Shapes: M models, R records.

Guarantee:
    A matrix holds the value of exactly one row for each model and record. An id that is unknown, missing or stands
    twice, a value that is not finite, and bits that are not those of the hash rule are errors that name the record:
    nothing is dropped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from safesynthdp.attacks.assignment import AS_TRAINED, SCHEME, members
from safesynthdp.attacks.signals import named
from safesynthdp.errors import DataError

BASE_MODEL = -2
"""Model id of what was never trained on any audited record: the untuned model, or the reference corpus."""
_BATCH_ROWS = 1_000_000
Ints = NDArray[np.int64]
Counts = NDArray[np.uint8]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Bits:
    """Which audited record is in which model."""

    record_ids: tuple[str, ...]
    is_in_MR: Bools
    """Row m is model m; a dedicated target is the row after the last pair."""
    num_models: int
    """N, even: shadow models, without the target."""
    target_is_drawn: bool = True
    """False: the target was trained elsewhere, and its bits are no coins."""

    @property
    def has_target(self) -> bool:
        """Whether there is a dedicated target."""
        return len(self.is_in_MR) > self.num_models


def read_bits(assignment: pa.Table, *, records: pa.Table | None = None) -> Bits:
    """Return the bits, each checked against the hash rule.

    Args:
        assignment: Columns model_id, record_id, member, seed, scheme.
        records: Columns record_id and unit_id, where units are users; else a record is its own unit.

    Raises:
        DataError: If a row is missing or stands twice, the scheme is another, or a bit is not the rule's: with each
            record in half of the models by other means, the reference counts give the target's bit away.
    """
    known = coded(assignment["record_id"], table="assignment").dictionary.cast(pa.string())
    ids = tuple(str(value) for value in known.to_pylist())
    seed = _only(assignment, "seed", "seeds")
    schemes = set(assignment["scheme"].unique().to_pylist())
    if not schemes <= {SCHEME, AS_TRAINED} or SCHEME not in schemes:
        raise DataError(f"assignment: scheme {named(sorted(map(str, schemes)))} is not {SCHEME}; plan the pool again")
    models = np.asarray(assignment["model_id"].to_numpy(), dtype=np.int64)
    num_all = int(models.max(initial=-1)) + 1
    places = models * len(ids) + codes_of(
        assignment["record_id"], dict(zip(ids, range(len(ids)), strict=True)), table="assignment"
    )
    if models.min(initial=0) < 0 or len(places) != num_all * len(ids) or (np.bincount(places, minlength=1) > 1).any():
        raise DataError(
            f"assignment: {len(places)} rows for {num_all} models x {len(ids)} records; plan the pool again"
        )
    is_in = np.empty(num_all * len(ids), dtype=np.bool_)
    is_in[places] = np.asarray(assignment["member"].to_numpy(zero_copy_only=False), dtype=np.bool_)
    bits = Bits(
        record_ids=ids,
        is_in_MR=is_in.reshape(num_all, len(ids)),
        num_models=num_all - num_all % 2,
        target_is_drawn=AS_TRAINED not in schemes,
    )
    elsewhere = assignment["scheme"].to_numpy(zero_copy_only=False) == AS_TRAINED
    if not bits.target_is_drawn and (models[elsewhere] != bits.num_models).any():
        raise DataError(f"assignment: only a dedicated target can be {AS_TRAINED}; plan the pool again")
    _check_rule(bits, seed=int(seed), units=_units(ids, records))
    return bits


class SignalTable:
    """The table ``signals`` as one matrix a signal, read batch by batch: what is held is 8 bytes a value."""

    def __init__(self, signals: pa.Table, *, record_ids: Sequence[str]) -> None:
        self.record_ids = record_ids
        self._place = {record_id: index for index, record_id in enumerate(record_ids)}
        self._matrices = dict[tuple[str, str], dict[int, tuple[Floats, Counts]]]()
        for batch in signals.to_batches(max_chunksize=_BATCH_ROWS):
            self._add(pa.Table.from_batches([batch]))

    def models(self) -> set[int]:
        """Return the models that have any row."""
        return {model for held in self._matrices.values() for model in held}

    def models_with(self, channel: str, signal: str) -> set[int]:
        """Return the models that have any row of a signal."""
        return set(self._matrices.get((channel, signal), {}))

    def matrix(self, channel: str, signal: str, models: Sequence[int], *, size: int) -> Floats:
        """Return [M, R] float64 of the first ``size`` records: row i is ``models[i]``.

        Raises:
            DataError: If a model lacks a record, has one twice, or a value is NaN or infinite.
        """
        held = self._matrices.get((channel, signal), {})
        matrix = np.empty((len(models), size))
        for place, model in enumerate(models):
            values, counts = held.get(model, (np.empty(0), np.zeros(len(self.record_ids), dtype=np.uint8)))
            self._refuse(counts[:size] == 0, f"model {model} has no {signal} for")
            self._refuse(counts[:size] > 1, f"model {model} has {signal} more than once for")
            matrix[place] = values[:size]
            self._refuse(~np.isfinite(matrix[place]), f"model {model} has a {signal} that is NaN or infinite for")
        return matrix

    def _add(self, batch: pa.Table) -> None:
        models = np.asarray(batch["model_id"].to_numpy(), dtype=np.int64)
        records = codes_of(batch["record_id"], self._place, table="signals")
        values = np.asarray(batch["value"].to_numpy(), dtype=np.float64)
        channels, signals = (coded(batch[name], table="signals") for name in ("channel", "signal"))
        names = signals.dictionary.to_pylist()
        kinds = np.asarray(channels.indices).astype(np.int64) * len(names) + np.asarray(signals.indices)
        present = sorted(batch["model_id"].unique().to_pylist())
        for kind in np.flatnonzero(np.bincount(kinds)).tolist():
            key = (str(channels.dictionary[kind // len(names)]), str(names[kind % len(names)]))
            of_kind = kinds == kind
            for model in present:
                here = np.flatnonzero(of_kind & (models == model))
                if not here.size:
                    continue
                held = self._matrices.setdefault(key, {}).setdefault(model, self._empty())
                held[0][records[here]] = values[here]
                times = held[1] + np.bincount(records[here], minlength=len(self.record_ids))
                held[1][:] = np.minimum(times, 2)  # more than once is all there is to know

    def _empty(self) -> tuple[Floats, Counts]:
        size = len(self.record_ids)
        return np.full(size, np.nan), np.zeros(size, dtype=np.uint8)

    def _refuse(self, is_broken: Bools, what: str) -> None:
        if is_broken.any():
            ids = [self.record_ids[int(index)] for index in np.flatnonzero(is_broken)]
            raise DataError(f"signals: {what} {len(ids)} records ({named(ids)}); nothing is dropped, score them again")


def codes_of(column: pa.ChunkedArray, place: Mapping[str, int], *, table: str) -> Ints:
    """Return the place of each id.

    Raises:
        DataError: If an id has none.
    """
    found = coded(column, table=table)
    places = np.asarray([place.get(word, -1) for word in found.dictionary.to_pylist()], dtype=np.int64)
    of_row: Ints = places[found.indices.to_numpy(zero_copy_only=False)] if len(places) else np.empty(0, dtype=np.int64)
    if (is_unknown := of_row < 0).any():
        unknown = found.filter(pa.array(is_unknown)).unique().to_pylist()
        raise DataError(
            f"{table}: {len(unknown)} unknown records ({named([str(i) for i in unknown])}); join by record_id"
        )
    return of_row


def check_models(models: pa.Table | None) -> None:
    """Refuse a pool whose models did not all follow one recipe on one data set.

    Raises:
        DataError: If recipe_hash, data_hash or base_model differ; the message names the models.
    """
    if models is None:
        return
    ids = models["model_id"].to_pylist()
    for column, what in (("recipe_hash", "recipe"), ("data_hash", "data"), ("base_model", "base model")):
        values = models[column].to_pylist() if column in models.column_names else []
        usual = max(dict.fromkeys(values), key=values.count) if values else None
        stale = [str(i) for i, value in zip(ids, values, strict=False) if value != usual]
        if stale:
            raise DataError(f"models {named(stale)}: another {what} than the rest of the pool; run these shards again")


def _check_rule(bits: Bits, *, seed: int, units: Sequence[str]) -> None:
    expected = np.zeros(len(units), dtype=np.bool_)
    for model, found in enumerate(bits.is_in_MR[: None if bits.target_is_drawn else bits.num_models]):
        is_second = model % 2 == 1 and model < bits.num_models
        expected = ~expected if is_second else members(seed, model, units, num_models=bits.num_models)
        wrong = np.flatnonzero(found != expected)
        if wrong.size:
            ids = [bits.record_ids[int(index)] for index in wrong]
            raise DataError(
                f"assignment: model {model} has {len(ids)} bits that are not those of {SCHEME} ({named(ids)}); "
                "other assignments give the target's bit away, plan the pool again"
            )


def _units(record_ids: Sequence[str], records: pa.Table | None) -> Sequence[str]:
    if records is None or "unit_id" not in records.column_names:
        return record_ids
    unit_of = dict(zip(records["record_id"].to_pylist(), records["unit_id"].to_pylist(), strict=True))
    unknown = [i for i in record_ids if i not in unit_of]
    if unknown:
        raise DataError(f"assignment: {len(unknown)} records are not in the table of records ({named(unknown)})")
    return [str(unit_of[i]) for i in record_ids]


def _only(table: pa.Table, column: str, plural: str) -> Any:
    found = table[column].unique().to_pylist()
    if len(found) != 1:
        raise DataError(f"assignment: {len(found)} {plural}; one pool has one, plan it again")
    return found[0]


def coded(column: pa.ChunkedArray, *, table: str) -> pa.DictionaryArray:
    """Return a column of words as numbers into one dictionary.

    Raises:
        DataError: If a cell is empty.
    """
    if column.null_count:
        raise DataError(f"{table}: {column.null_count} cells of an id or a name are empty; write the table again")
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    found = column.unify_dictionaries().combine_chunks()
    return found.chunk(0) if isinstance(found, pa.ChunkedArray) else found
