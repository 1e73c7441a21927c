"""Scores of a pool: who is a reference of whom, exact values, and every table that is refused."""

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from safesynthdp.attacks import reference_attacks as ref
from safesynthdp.attacks.made_up_pools import NUM_SCORED, made_up_bits, made_up_signals, record_ids, signal_rows
from safesynthdp.attacks.metrics import auc
from safesynthdp.attacks.pool_attacks import ATTACKS
from safesynthdp.attacks.pool_scores import Pool, available_attacks, score
from safesynthdp.attacks.pool_signals import BASE_MODEL
from safesynthdp.errors import ConfigError, DataError

NUM, MODELS = 300, 8
BITS = made_up_bits(NUM, models=MODELS)
SIGNALS = made_up_signals(BITS, leak=1.0)


def column(table: pa.Table, name: str) -> Any:
    return np.asarray(table[name].to_pylist())


def aucs(table: pa.Table) -> dict[str, float]:
    found = {}
    for target in dict.fromkeys(table["target_id"].to_pylist()):
        here = table.filter(pa.array(column(table, "target_id") == target))
        scores, member = column(here, "score"), column(here, "member")
        found[target] = auc(scores[member], scores[~member])
    return found


def base_rows(*, channel: str, names: Sequence[str]) -> pa.Table:
    """Rows of the untuned model or reference corpus: model -2."""
    rng = np.random.default_rng(9)
    fixed = {"num_scored": np.full((1, NUM), NUM_SCORED)}
    parts = ((name, fixed.get(name, rng.normal(size=(1, NUM)))) for name in names)
    return pa.concat_tables([signal_rows(v, record_ids(NUM), signal=n, channel=channel, models=[-2]) for n, v in parts])


def joined(parts: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(parts).unify_dictionaries()


def changed(table: pa.Table, row: int, name: str, value: Any) -> pa.Table:
    values = table[name].to_pylist()
    values[row] = value
    kind = table[name].type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values, kind))


def test_every_model_and_the_released_one_are_attacked_in_turn() -> None:
    found = score(SIGNALS, BITS, attack="lira")
    assert found.num_rows == (MODELS + 1) * NUM
    assert list(dict.fromkeys(found["target_id"].to_pylist())) == [*map(str, range(MODELS)), "target"]
    assert set(found["channel"].to_pylist()) == {"model"}
    expected = BITS["member"].to_pylist()
    assert found["member"].to_pylist() == expected
    assert min(aucs(found).values()) > 0.62
    assert found.column_names == [
        "target_id", "record_id", "channel", "attack", "params_hash", "score", "member", "k_in", "k_out",
    ]  # fmt: skip


def test_the_number_of_references_with_a_record_says_nothing_about_the_target() -> None:
    found = score(SIGNALS, BITS, attack="lira")
    is_target = column(found, "target_id") == "target"
    for side in ("k_in", "k_out"):
        assert set(column(found, side)[~is_target]) == {MODELS // 2 - 1}
        assert set(column(found, side)[is_target]) == {MODELS // 2}


def test_scores_are_those_of_the_formula_with_the_pair_left_out() -> None:
    values = column(SIGNALS.filter(pa.array(column(SIGNALS, "signal") == "lp_sum")), "value").reshape(MODELS + 1, NUM)
    member = column(BITS, "member").reshape(MODELS + 1, NUM)
    formulas: dict[str, Callable[..., Any]] = {
        "t_mid": lambda t, r, i: ref.t_mid(t / 20, r / 20, i),
        "lira_offline": lambda t, r, i: ref.lira_offline(t / 20, r / 20, i),
        "rmia": lambda t, r, i: ref.log_rmia(t, r),
        "rmia_offline": lambda t, r, i: ref.log_rmia(t, r, is_used_KR=~i),
    }
    for attack, formula in formulas.items():
        for name, model, others in (("3", 3, [0, 1, 4, 5, 6, 7]), ("target", 8, [*range(8)])):
            found = column(score(SIGNALS, BITS, attack=attack, target=name), "score")
            np.testing.assert_allclose(found, formula(values[model], values[others], member[others]), atol=1e-9)


def test_the_order_of_the_rows_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    moved = score(
        SIGNALS.take(rng.permutation(SIGNALS.num_rows)), BITS.take(rng.permutation(BITS.num_rows)), attack="lira"
    )
    first = score(SIGNALS, BITS, attack="lira")

    def by_name(table: pa.Table) -> dict[tuple[str, str], float]:
        names = zip(table["target_id"].to_pylist(), table["record_id"].to_pylist(), strict=True)
        return dict(zip(names, table["score"].to_pylist(), strict=True))

    there, here = by_name(first), by_name(moved)
    assert there.keys() == here.keys()
    assert [here[name] for name in there] == pytest.approx(list(there.values()), rel=1e-9, abs=1e-9)


def test_columns_of_plain_words_are_the_same_as_coded_ones() -> None:
    plain = SIGNALS
    for name in ("record_id", "channel", "signal"):
        plain = plain.set_column(plain.schema.get_field_index(name), name, plain[name].cast(pa.string()))
    assert score(plain, BITS).equals(score(SIGNALS, BITS))


def test_a_pool_that_leaks_nothing_is_at_chance_under_every_attack() -> None:
    quiet = made_up_signals(BITS, leak=0.0, seed=5)
    for attack in ("loss", "lira", "lira_offline", "t_mid", "rmia", "rmia_offline"):
        assert np.mean(list(aucs(score(quiet, BITS, attack=attack)).values())) == pytest.approx(0.5, abs=0.04)


def test_each_attack_runs_when_its_signals_are_there_and_says_what_it_lacks() -> None:
    ids = record_ids(NUM)
    rng = np.random.default_rng(1)
    everything = joined(
        [
            SIGNALS,
            base_rows(channel="model", names=("lp_sum", "num_scored")),
            base_rows(channel="text", names=("ngram2_lp", "ngram3_lp")),
            *(
                signal_rows(rng.uniform(0.1, 1, (9, NUM)), ids, signal=name, channel=channel, models=range(9))
                for channel, names in (
                    ("model", ("mink_20", "minkpp_20", "ez_pos", "ez_neg")),
                    ("text", ("ngram2_lp", "ngram3_lp", "match_8", "embed_nn")),
                )
                for name in names
            ),
        ]
    )
    population = [f"z{i}" for i in range(50)]
    extra = signal_rows(rng.normal(size=(9, 50)), population, signal="lp_sum", channel="model", models=range(9))
    pool = Pool(everything, BITS)
    assert {name for name in ATTACKS if pool.lacks(ATTACKS[name])} == {"zlib", "rmia_calibrated"}
    assert "zlib_bytes" in str(pool.lacks(ATTACKS["zlib"]))
    records = pa.table(
        {"record_id": [*ids, *population], "unit_id": [*ids, *population], "zlib_bytes": [7] * (NUM + 50)}
    )
    whole = Pool(joined([everything, extra]), BITS, records=records, population=population)
    assert available_attacks(whole) == list(ATTACKS)
    for attack in ATTACKS:
        found = score(joined([everything, extra]), BITS, attack=attack, records=records, population=population)
        assert found.num_rows == (MODELS + 1) * NUM
        assert np.isfinite(column(found, "score")).all()
    calibrated = score(joined([everything, extra]), BITS, attack="rmia_calibrated", target="2", population=population)
    plain = score(SIGNALS, BITS, attack="rmia", target="2")
    order = np.argsort(column(plain, "score"))
    assert (np.diff(column(calibrated, "score")[order]) >= 0).all(), "the same order, with ties"
    assert "no rows of model -2" in str(Pool(SIGNALS, BITS).lacks(ATTACKS["ref"]))
    assert BASE_MODEL == -2


def test_keeping_the_pair_is_refused() -> None:
    with pytest.raises(ConfigError, match="drop_pair=False gives the answer away"):
        score(SIGNALS, BITS, drop_pair=False)


def test_bits_that_are_balanced_by_other_means_are_refused() -> None:
    """Each record in exactly half of the models, at random: the references give the target's bit away."""
    rng = np.random.default_rng(0)
    balanced = np.argsort(rng.random((MODELS, NUM)), axis=0) < MODELS // 2
    plain = made_up_bits(NUM, models=MODELS, with_target=False)
    forged = plain.set_column(2, "member", pa.array(balanced.reshape(-1)))
    with pytest.raises(DataError, match="bits that are not those of pairs-v1"):
        score(made_up_signals(forged, leak=0.0), forged)


def test_a_flipped_bit_and_another_seed_are_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"model 2 has 1 bits .*\(r7\)"):
        score(SIGNALS, changed(BITS, 2 * NUM + 7, "member", not BITS["member"][2 * NUM + 7].as_py()))
    with pytest.raises(DataError, match="2 seeds"):
        score(SIGNALS, changed(BITS, 0, "seed", 1))
    with pytest.raises(DataError, match="scheme by hand"):
        score(SIGNALS, BITS.set_column(4, "scheme", pa.array(["by hand"] * BITS.num_rows)))
    with pytest.raises(DataError, match="rows for 9 models"):
        score(SIGNALS, BITS.slice(1))
    with pytest.raises(DataError, match="rows for 9 models"):
        score(SIGNALS, pa.concat_tables([BITS.slice(0, BITS.num_rows - 1), BITS.slice(0, 1)]))


def test_users_share_a_bit_under_the_unit_user() -> None:
    from safesynthdp.attacks.assignment import assignment_table

    unit_of = {i: f"u{n // 3}" for n, i in enumerate(record_ids(NUM))}
    by_user = assignment_table(unit_of, seed=0, num_models=6, with_target=False)
    records = pa.table({"record_id": list(unit_of), "unit_id": list(unit_of.values())})
    assert score(made_up_signals(by_user, leak=1.0), by_user, records=records).num_rows == 6 * NUM
    with pytest.raises(DataError, match="bits that are not those"):
        score(made_up_signals(by_user, leak=1.0), by_user)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_an_error_that_names_model_and_record(value: float) -> None:
    with pytest.raises(DataError, match=r"model 1 has a lp_sum that is NaN or infinite for 1 records \(r5\)"):
        score(changed(SIGNALS, NUM + 5, "value", value), BITS)


def test_ids_that_do_not_fit_are_named() -> None:
    with pytest.raises(DataError, match=r"signals: 1 unknown records \(stranger\)"):
        score(changed(SIGNALS, 3, "record_id", "stranger"), BITS)
    with pytest.raises(DataError, match=r"model 0 has no lp_sum for 1 records \(r0\)"):
        score(SIGNALS.slice(1), BITS)
    with pytest.raises(DataError, match=r"model 0 has lp_sum more than once for 1 records \(r0\)"):
        score(pa.concat_tables([SIGNALS, SIGNALS.slice(0, 1)]), BITS)


def test_rows_of_a_model_that_is_not_in_the_pool_and_empty_ids_are_refused() -> None:
    with pytest.raises(DataError, match="models 9 are not in the assignment"):
        score(changed(SIGNALS, 0, "model_id", 9), BITS)
    with pytest.raises(DataError, match="1 cells of an id or a name are empty"):
        score(changed(SIGNALS, 0, "record_id", None), BITS)


def test_a_missing_model_costs_its_pair_and_fewer_than_three_pairs_are_refused() -> None:
    def without(*models: int) -> pa.Table:
        return SIGNALS.filter(pa.array(~np.isin(column(SIGNALS, "model_id"), models)))

    found = score(without(1), BITS)
    assert set(found["target_id"].to_pylist()) == {"0", "2", "3", "4", "5", "6", "7", "target"}
    is_zero = column(found, "target_id") == "0"
    assert set(column(found, "k_in")[is_zero]) == {3}
    assert set(column(found, "k_in")[(column(found, "target_id") == "2")]) == {2}
    with pytest.raises(DataError, match="2 usable pairs of models, at least 3"):
        score(without(1, 2), BITS)
    assert score(without(1, 2), BITS, attack="loss").num_rows == 7 * NUM, "needs no reference"


def test_a_stale_recipe_is_refused_by_name() -> None:
    models = pa.table({"model_id": list(range(9)), "recipe_hash": ["a"] * 4 + ["b"] + ["a"] * 4})
    with pytest.raises(DataError, match="models 4: another recipe"):
        score(SIGNALS, BITS, models=models)
    assert score(SIGNALS, BITS, models=models.set_column(1, "recipe_hash", pa.array(["a"] * 9))).num_rows


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"attack": "rmia_linear"}, "rmia_linear: its constant"),
        ({"attack": "magic"}, "attack=magic: there is loss"),
        ({"variance": "median"}, "variance=median does not exist"),
        ({"target": "17"}, "target=17 has no signals"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        score(SIGNALS, BITS, **asked)


def test_targets_are_chosen_by_id() -> None:
    assert set(score(SIGNALS, BITS, target="pool")["target_id"].to_pylist()) == set(map(str, range(8)))
    assert set(score(SIGNALS, BITS, target=["1", "target"])["target_id"].to_pylist()) == {"1", "target"}


def test_the_hash_of_the_parameters_tells_variances_apart_and_nothing_else() -> None:
    hashes = [
        score(SIGNALS, BITS, attack="lira", variance=variance, target="0")["params_hash"][0].as_py()
        for variance in ref.VARIANCES
    ]
    assert len(set(hashes)) == 3
    other = score(made_up_signals(BITS, leak=0.0), BITS, attack="lira", target="1")["params_hash"][0].as_py()
    assert other == hashes[0]


def test_scoring_and_bounds_load_no_torch() -> None:
    code = (
        "import sys, safesynthdp.attacks.pool_audit, safesynthdp.attacks.roc, safesynthdp.attacks.record_risk\n"
        "assert not {'torch', 'sklearn', 'transformers', 'opacus', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
