"""Who is in which model: the test vectors of the rule, pairs, and what a bit may depend on."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from safesynthdp.attacks.assignment import SCHEME, TARGET, assignment_table, coin, members

IDS = [f"r{i}" for i in range(8)]


def test_the_rule_gives_the_published_bits() -> None:
    assert [int(coin(0, 0, i)) for i in IDS] == [1, 1, 0, 0, 1, 0, 1, 0]
    assert [int(coin(0, 1, i)) for i in IDS] == [1, 0, 0, 0, 0, 1, 0, 0]


@given(st.lists(st.text(max_size=8), unique=True, min_size=1, max_size=20), st.integers(0, 2**31), st.integers(0, 7))
@settings(max_examples=50)
def test_a_unit_is_in_exactly_one_model_of_a_pair(ids: list[str], seed: int, pair: int) -> None:
    first, second = (members(seed, 2 * pair + side, ids, num_models=16) for side in (0, 1))
    assert np.array_equal(first, ~second)


def test_more_models_or_units_in_another_order_change_no_bit() -> None:
    few = members(3, 2, IDS, num_models=4)
    many = members(3, 2, ["new", *reversed(IDS)], num_models=16)
    assert few.tolist() == list(reversed(many[1:].tolist()))


def test_the_target_has_bits_of_its_own_that_stay_when_the_pool_grows() -> None:
    found = members(5, 8, IDS, num_models=8)
    assert found.tolist() == [coin(5, TARGET, i) for i in IDS]
    assert found.tolist() == members(5, 16, IDS, num_models=16).tolist()


def test_coins_are_fair_and_pairs_independent() -> None:
    ids = [f"unit {i}" for i in range(4000)]
    bits = np.stack([members(1, 2 * pair, ids, num_models=8) for pair in range(4)] + [members(1, 8, ids, num_models=8)])
    assert np.all(np.abs(bits.mean(axis=1) - 0.5) < 4 * 0.5 / np.sqrt(4000))
    assert np.all(np.abs(np.asarray(np.corrcoef(bits))[np.triu_indices(5, 1)]) < 4 / np.sqrt(4000))


def test_the_table_holds_every_model_and_record_once_and_records_of_a_unit_together() -> None:
    table = assignment_table({"a": "u1", "b": "u1", "c": "u2"}, seed=0, num_models=2, with_target=True)
    assert table.num_rows == 9
    assert set(table["scheme"].to_pylist()) == {SCHEME}
    for model_id in range(3):
        rows = [row for row in table.to_pylist() if row["model_id"] == model_id]
        bit = {row["record_id"]: row["member"] for row in rows}
        assert list(bit) == ["a", "b", "c"]
        assert bit["a"] == bit["b"]
