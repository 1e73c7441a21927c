"""From ``scores`` to the rows of audit.json: which tests share which alpha, and what each may say.

Here: the plan of tests, and one call that runs every attack. Elsewhere: the rows (audit_rows.py), the attacks
(pool_scores.py), the text baseline (pool_baseline.py), claims (claims.py).

Guarantee:
    Where every claim is true, each claim is refuted with probability at most ``alpha`` in one audit: its alpha is
    divided by the number of attacks, kinds of record and families of targets (rotating, dedicated) of its channel,
    unless the plan names one attack, and a verdict needs a text baseline at chance.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from safesynthdp.attacks.audit_groups import Group, Side, groups
from safesynthdp.attacks.audit_rows import METHODS, Proof, Row, Test, baseline_row, pooled_row, prove, target_row
from safesynthdp.attacks.baseline import VOID_ALPHA, benchmark_is_valid
from safesynthdp.attacks.bounds import check_alpha
from safesynthdp.attacks.claims import Claim
from safesynthdp.attacks.pool_attacks import ATTACKS, NO_VERDICT, STORED_BESIDE
from safesynthdp.attacks.pool_baseline import CHANNEL as NO_CHANNEL
from safesynthdp.attacks.pool_baseline import baseline_table
from safesynthdp.attacks.pool_scores import TARGET, Pool, available_attacks, score_pool
from safesynthdp.attacks.reference_attacks import Variance
from safesynthdp.errors import ConfigError, DataError

PRIVATE_NOTE = "computed on private data and outside the guarantee: these numbers are not a release, keep them private"
GATES, SIDES = ("one-run", "curve"), ("both", "top")


def evaluate(
    scores: pa.Table,
    claims: Mapping[str, Claim],
    *,
    records: pa.Table | None = None,
    alpha: float = 0.05,
    primary: str | None = None,
    side: str = "both",
    gate: str = "one-run",
    num_epochs: float | None = None,
    notes: Sequence[str] = (),
    undrawn: Collection[str] = (),
) -> list[Row]:
    """Return the rows of audit.json: every target and, of rotating targets, the pooled row, for each attack.

    Args:
        scores: The table ``scores``; with the baseline's rows (channel none), else no row has a verdict.
        claims: Channel -> what its release claims; a channel without one gets bounds and no verdict.
        records: record_id, unit_id, group_size, canary_kind; None = natural records.
        alpha: Probability that a true claim is refuted; an audit of two releases has two.
        primary: The attack named in the plan: it has the whole alpha and the others no verdict.
        side: Guesses at both ends or at the top.
        gate: Which test the verdict follows: one-run (valid for any scores) or curve (independent scores).
        num_epochs: Shown beside every AUC.
        notes: Lines for every row.
        undrawn: Targets whose members were not chosen by coins: their rows have no bound and no verdict.

    Raises:
        ConfigError: If an argument is out of range, or ``primary`` is not among the attacks.
        DataError: If the table is not usable; the message names records.
    """
    check_alpha(alpha)
    if gate not in GATES or side not in SIDES:
        raise ConfigError(f"gate={gate}, side={side}: choose of {', '.join(GATES)} and of {', '.join(SIDES)}")
    units = {channel: claim.unit for channel, claim in claims.items()}
    units[NO_CHANNEL] = "user" if "user" in units.values() else "record"
    found = list(groups(scores, records, units=units))
    attacks = [group for group in found if group.channel != NO_CHANNEL]
    if primary in METHODS:
        raise ConfigError(f"primary={primary} tests for no leakage and bounds no epsilon, so it has no verdict")
    if primary in STORED_BESIDE:
        raise ConfigError(f"primary={primary} has no verdict; name rmia, which orders records alike")
    if primary is not None and primary not in {group.attack for group in attacks}:
        raise ConfigError(f"primary={primary} is not among the attacks of these scores; score it or name another")
    valid = _validity([group for group in found if group.channel == NO_CHANNEL])
    rows = list[Row]()
    for group in attacks:
        test = Test(
            claim=claims.get(group.channel),
            alpha=alpha / _num_tests(group.channel, attacks, primary, undrawn),
            side=side,
            gate=gate,
            benchmark_valid=None,
            num_epochs=num_epochs,
            notes=(PRIVATE_NOTE, *notes),
            has_verdict=primary in (None, group.attack),
            undrawn=frozenset(undrawn),
        )
        rows += _group_rows(group, test, valid)
    for group in found:
        if group.channel == NO_CHANNEL:
            rows += [_baseline(group, one, valid) for one in group.sides]
    return rows


def audit_pool(
    signals: pa.Table,
    assignment: pa.Table,
    *,
    claims: Mapping[str, Claim],
    texts: Mapping[str, str],
    records: pa.Table | None = None,
    models: pa.Table | None = None,
    population: Sequence[str] = (),
    attacks: Sequence[str] | None = None,
    variance: Variance = "shrunk",
    alpha: float = 0.05,
    primary: str | None = None,
    num_epochs: float | None = None,
    seed: int = 0,
    more: Sequence[pa.Table] = (),
    notes: Sequence[str] = (),
) -> tuple[pa.Table, list[Row]]:
    """Run every attack the signals allow, and the text baseline; return the table ``scores`` and the rows.

    Args:
        signals: See ``pool_scores.score``; so ``assignment``, ``records``, ``models``, ``population``, ``variance``.
        assignment: Who is in which model.
        claims: See ``evaluate``; so ``alpha``, ``primary``, ``num_epochs``.
        texts: record_id -> text of every audited record, for the baseline.
        records: What the records are.
        models: Recipes.
        population: Records in signals that no model was trained on.
        attacks: Names; None = all that the signals allow.
        variance: Of LiRA.
        alpha: Probability that a true claim is refuted.
        primary: The attack named in the plan.
        num_epochs: Shown beside every AUC.
        seed: Of the baseline's draw and folds.
        more: Rows of attacks that need more than signals.
        notes: Lines for every row.

    Raises:
        ConfigError: If an argument is out of range.
        DataError: If the tables do not fit.
    """
    pool = Pool(signals, assignment, records=records, models=models, population=population)
    chosen, left = _chosen(pool) if attacks is None else (list(attacks), [])
    parts = [score_pool(pool, attack=attack, variance=variance) for attack in chosen]
    target_ids = list(dict.fromkeys(i for part in (*parts, *more) for i in part["target_id"].unique().to_pylist()))
    unit_of = None
    if records is not None and any(claim.unit == "user" for claim in claims.values()):
        unit_of = dict(zip(records["record_id"].to_pylist(), records["unit_id"].to_pylist(), strict=True))
    parts.append(baseline_table(pool.bits, texts, seed=seed, target_ids=target_ids, unit_of=unit_of))
    scores, undrawn = joined([*parts, *more]), () if pool.bits.target_is_drawn else (TARGET,)
    del pool  # the signals of every model: most of the memory, and no longer needed
    rows = evaluate(
        scores,
        claims,
        records=records,
        alpha=alpha,
        primary=primary,
        num_epochs=num_epochs,
        notes=[*notes, *left],
        undrawn=undrawn,
    )
    return scores, rows


def is_refuted(rows: Sequence[Row]) -> bool:
    """Return whether any row refutes its claim; a command then exits with a code that is not 0."""
    return any(row["verdict"] == "refuted" for row in rows)


def _chosen(pool: Pool) -> tuple[list[str], list[str]]:
    """Return the attacks that can run, and a note for those whose signals are not all there.

    Raises:
        DataError: If there are signals, and too few usable pairs to attack them by references.
        ConfigError: If no attack can run.
    """
    for name, attack in ATTACKS.items():
        is_scored = attack.needs_references and not attack.needs_population and pool.models_of(attack)
        if is_scored and (lacking := pool.lacks(attack)) is not None:
            raise DataError(f"attack={name}: {lacking}; or name the attacks that need no references")
    chosen = available_attacks(pool)
    if not chosen:
        raise ConfigError("attacks: the signals allow none; run the shards of the pool first")
    left = [name for name, attack in ATTACKS.items() if name not in chosen and pool.models_of(attack)]
    return chosen, [f"not run, for want of a reference or of a column: {', '.join(left)}"] if left else []


def _group_rows(group: Group, test: Test, valid: Mapping[str, bool | None]) -> list[Row]:
    rows, rotating, proofs = list[Row](), list[Side](), list[Proof]()
    for one in group.sides:
        is_rotating = one.target_id != TARGET
        proof = prove(group, one, test, alpha=test.alpha / 2 if is_rotating else test.alpha)
        rows.append(target_row(group, one, proof, _with(test, [one.target_id], valid), is_rotating=is_rotating))
        if is_rotating:
            rotating.append(one)
            proofs.append(proof)
    if rotating:
        rows.append(pooled_row(group, rotating, proofs, _with(test, [one.target_id for one in rotating], valid)))
    return rows


def _num_tests(channel: str, attacks: Sequence[Group], primary: str | None, undrawn: Collection[str]) -> int:
    """Return how many verdicts share the alpha of a channel: attacks x kinds of record x families of targets."""
    tested = [g for g in attacks if g.channel == channel and g.attack not in NO_VERDICT and primary in (None, g.attack)]
    sides = [(g, one.target_id) for g in tested for one in g.sides if one.target_id not in undrawn]
    families = {(g.attack, g.kind, target_id == TARGET) for g, target_id in sides}
    return max(1, len(families))


def _validity(baselines: Sequence[Group]) -> dict[str, bool | None]:
    """Return, by target, whether its baseline is at chance; a target with several kinds of record needs all."""
    found = dict[str, list[bool | None]]()
    for group in baselines:
        for one in group.sides:
            found.setdefault(one.target_id, []).append(benchmark_is_valid(one.scores, one.is_member))
    return {target_id: _all_valid(values) for target_id, values in found.items()}


def _all_valid(values: Sequence[bool | None]) -> bool | None:
    if False in values:
        return False
    return None if None in values or not values else True


def _with(test: Test, target_ids: Sequence[str], valid: Mapping[str, bool | None]) -> Test:
    return replace(test, benchmark_valid=_all_valid([valid.get(target_id) for target_id in target_ids]))


def _baseline(group: Group, one: Side, valid: Mapping[str, bool | None]) -> Row:
    return baseline_row(group, one, alpha=VOID_ALPHA, benchmark_valid=valid[one.target_id], notes=(PRIVATE_NOTE,))


def joined(parts: Sequence[pa.Table]) -> pa.Table:
    """Return the scores of several attacks as one table; words stay numbers, into a dictionary a chunk."""
    schema = parts[0].schema
    return pa.concat_tables([part.cast(schema) for part in parts])
