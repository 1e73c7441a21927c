"""From the signals of a pool to the table ``scores``: each model attacked in turn, by references that say nothing.

Here: which models are references of which target, and the rows. Elsewhere: the attacks (pool_attacks.py), the tables
(pool_signals.py), what the scores prove (pool_audit.py). numpy, scipy and pyarrow only. Shapes: M models, K references,
R records.

Guarantee:
    The references of a target are all complete pairs but its own; a record is in exactly half of them, whatever its
    bit in the target. With the pair kept, the number of references with a record would be its bit, inverted: on pure
    noise shrunken LiRA then reaches an AUC of .45 instead of .5. That is refused.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from safesynthdp.attacks import reference_attacks as ref
from safesynthdp.attacks.pool_attacks import ATTACKS, REFUSED, Attack, View
from safesynthdp.attacks.pool_signals import BASE_MODEL, Bits, SignalTable, check_models, codes_of, read_bits
from safesynthdp.attacks.signals import named
from safesynthdp.errors import ConfigError, DataError

TARGET = "target"
"""target_id of the released model."""
MIN_PAIRS = 3
Floats = NDArray[np.float64]


class Pool:
    """Signals and bits of one pool, read and checked once; every attack scores from it."""

    def __init__(
        self,
        signals: pa.Table,
        assignment: pa.Table,
        *,
        records: pa.Table | None = None,
        models: pa.Table | None = None,
        population: Sequence[str] = (),
    ) -> None:
        check_models(models)
        self.bits: Bits = read_bits(assignment, records=records)
        self.signals = SignalTable(signals, record_ids=(*self.bits.record_ids, *population))
        self.population = len(population)
        strangers = self.signals.models() - {BASE_MODEL, *range(len(self.bits.is_in_MR))}
        if strangers:
            raise DataError(
                f"signals: models {named(sorted(map(str, strangers)))} are not in the assignment; not this pool"
            )
        self.zlib_bytes = _zlib_bytes(records, self.bits.record_ids)

    @property
    def num_records(self) -> int:
        """R, audited records."""
        return len(self.bits.record_ids)

    def models_of(self, attack: Attack) -> list[int]:
        """Return the models, target included, that have every signal of an attack."""
        having = [self.signals.models_with(attack.channel, signal) for signal in attack.signals]
        return sorted(set.intersection(*having) & set(range(len(self.bits.is_in_MR))))

    def lacks(self, attack: Attack) -> str | None:
        """Return what an attack needs and the tables do not have; None if it can run."""
        here = self.models_of(attack)
        if not here:
            return f"no model has the signals {', '.join(attack.signals)} of channel {attack.channel}"
        if attack.needs_base and not all(
            BASE_MODEL in self.signals.models_with(attack.channel, signal) for signal in attack.signals
        ):
            return f"signals has no rows of model {BASE_MODEL}, the untuned model or reference corpus"
        if attack.needs_zlib and self.zlib_bytes is None:
            return "the table of records with zlib_bytes was not given"
        if attack.needs_population and not self.population:
            return "no population records were given"
        if attack.needs_references and len(pairs := _complete(here, self.bits.num_models)) < MIN_PAIRS:
            return f"{len(pairs)} usable pairs of models, at least {MIN_PAIRS} are needed; run the missing shards"
        return None


def available_attacks(pool: Pool) -> list[str]:
    """Return the attacks that the signals of a pool allow."""
    return [name for name, attack in ATTACKS.items() if pool.lacks(attack) is None]


def score(
    signals: pa.Table,
    assignment: pa.Table,
    *,
    attack: str = "lira",
    variance: ref.Variance = "shrunk",
    target: str | Sequence[str] = "all",
    records: pa.Table | None = None,
    models: pa.Table | None = None,
    population: Sequence[str] = (),
    drop_pair: bool = True,
) -> pa.Table:
    """Return the rows of ``scores`` for one attack: target_id, record_id, channel, attack, params_hash, score, ...

    Args:
        signals: model_id, record_id, channel, signal, value; model -2 is the untuned model or reference corpus.
        assignment: model_id, record_id, member, seed, scheme.
        attack: A name of ``ATTACKS``.
        variance: Of LiRA.
        target: ``all``; ``pool``, all but the released model; or target ids ("0", "1", ..., "target").
        records: record_id, unit_id, zlib_bytes; for users as units and for zlib.
        models: model_id, recipe_hash, ...; lets a stale recipe be refused.
        population: Ids in signals of records that no model was trained on.
        drop_pair: Must stay True.

    Raises:
        ConfigError: If the attack, variance or target does not exist, or the pair is to be kept.
        DataError: If the tables do not fit, a value is not finite or there are fewer than 3 usable pairs.
    """
    if not drop_pair:
        raise ConfigError("drop_pair=False gives the answer away: the pair of a target has each record it has not")
    pool = Pool(signals, assignment, records=records, models=models, population=population)
    return score_pool(pool, attack=attack, variance=variance, target=target)


def score_pool(
    pool: Pool, *, attack: str, variance: ref.Variance = "shrunk", target: str | Sequence[str] = "all"
) -> pa.Table:
    """Return what ``score`` does, of tables that are read already."""
    if attack not in ATTACKS:
        reason = REFUSED.get(attack, f"there is {', '.join(ATTACKS)}")
        raise ConfigError(f"attack={attack}: {reason}")
    if variance not in ref.VARIANCES:
        raise ConfigError(f"variance={variance} does not exist; choose one of {', '.join(ref.VARIANCES)}")
    chosen = ATTACKS[attack]
    if (lacking := pool.lacks(chosen)) is not None:
        raise DataError(f"attack={attack}: {lacking}")
    here = pool.models_of(chosen)
    size = pool.num_records + (pool.population if chosen.needs_population else 0)
    matrices = {s: pool.signals.matrix(chosen.channel, s, here, size=size) for s in chosen.signals}
    needed = chosen.signals if chosen.needs_base else ()
    base = {s: pool.signals.matrix(chosen.channel, s, [BASE_MODEL], size=size)[0] for s in needed}
    parameters = {"attack": attack, "formula": chosen.formula}
    parameters |= {"variance": variance} if attack.startswith("lira") else {}
    hashed = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
    parts = list[pa.Table]()
    for model in _targets(target, here, pool.bits):
        references = _references(model, here, pool.bits.num_models) if chosen.needs_references else []
        view = _view(pool, matrices, base, size, model=model, here=here, references=references, variance=variance)
        values = chosen.score(view)[: pool.num_records]
        _refuse_infinite(values, pool.bits.record_ids, attack)
        in_references = view.is_in_KR[:, : pool.num_records].sum(axis=0)
        parts.append(_rows(pool.bits, model, chosen.channel, attack, hashed, values, in_references, len(references)))
    return pa.concat_tables(parts)


def _view(
    pool: Pool,
    matrices: Mapping[str, Floats],
    base: Mapping[str, Floats],
    size: int,
    *,
    model: int,
    here: Sequence[int],
    references: Sequence[int],
    variance: ref.Variance,
) -> View:
    place, places = here.index(model), [here.index(other) for other in references]
    nobody = np.zeros((len(references), size - pool.num_records), dtype=np.bool_)
    return View(
        target=lambda signal: matrices[signal][place],
        references=lambda signal: matrices[signal][places],
        base=lambda signal: base[signal],
        is_in_KR=np.concatenate([pool.bits.is_in_MR[list(references)], nobody], axis=1),
        zlib_bytes=None if pool.zlib_bytes is None else pool.zlib_bytes[:size],
        population=np.arange(pool.num_records, size),
        variance=variance,
    )


def _complete(models: Sequence[int], num_models: int) -> list[int]:
    """Return the pairs of which both models are there."""
    present = set(models)
    return [pair for pair in range(num_models // 2) if {2 * pair, 2 * pair + 1} <= present]


def _references(model: int, models: Sequence[int], num_models: int) -> list[int]:
    """Return the models of all complete pairs but the target's own."""
    own = model // 2 if model < num_models else None
    return [2 * pair + side for pair in _complete(models, num_models) if pair != own for side in (0, 1)]


def _targets(target: str | Sequence[str], here: Sequence[int], bits: Bits) -> list[int]:
    """Return the models that are asked for, by target id."""
    by_name = {TARGET if model == bits.num_models else str(model): model for model in here}
    if target == "all":
        return list(by_name.values())
    if target == "pool":
        return [model for name, model in by_name.items() if name != TARGET]
    asked = [target] if isinstance(target, str) else list(target)
    for name in asked:
        if name not in by_name:
            raise ConfigError(f"target={name} has no signals; choose all, pool or of {', '.join(by_name)}")
    return [by_name[name] for name in asked]


def _rows(
    bits: Bits,
    model: int,
    channel: str,
    attack: str,
    hashed: str,
    values: Floats,
    in_references: NDArray[np.int64],
    num_references: int,
) -> pa.Table:
    size = len(values)
    target_id = TARGET if model == bits.num_models else str(model)
    return pa.table(
        {
            "target_id": _same(target_id, size),
            "record_id": pa.DictionaryArray.from_arrays(np.arange(size, dtype=np.int32), pa.array(bits.record_ids)),
            "channel": _same(channel, size),
            "attack": _same(attack, size),
            "params_hash": _same(hashed, size),
            "score": values,
            "member": pa.array(bits.is_in_MR[model]),
            "k_in": in_references.astype(np.int16),
            "k_out": (num_references - in_references).astype(np.int16),
        }
    )


def _same(value: str, size: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(np.zeros(size, dtype=np.int8), pa.array([value]))


def _zlib_bytes(records: pa.Table | None, record_ids: Sequence[str]) -> Floats | None:
    if records is None or "zlib_bytes" not in records.column_names:
        return None
    wanted = pa.array(record_ids, pa.string())
    place = {record_id: index for index, record_id in enumerate(records["record_id"].to_pylist())}
    places = codes_of(pa.chunked_array([wanted]), place, table="records")
    sizes: Floats = np.asarray(records["zlib_bytes"].to_numpy(), dtype=np.float64)[places]
    return sizes


def _refuse_infinite(values: Floats, record_ids: Sequence[str], attack: str) -> None:
    broken = [record_ids[int(index)] for index in np.flatnonzero(~np.isfinite(values))]
    if broken:
        raise DataError(f"attack={attack} gives no finite score for {len(broken)} records ({named(broken)})")
