"""Of more texts than are wanted, those are kept that together come closest to what was released."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from safesynthdp.generation.selection import Selection, herd, select
from safesynthdp.generation.token_targets import TokenTargets
from safesynthdp.training.word_columns import WordColumns

V, END = 50, 1


PLAIN = WordColumns.plain(V)


def targets(shares_LV: np.ndarray, *, noise_std: float = 0.0) -> TokenTargets:
    return TokenTargets(
        labels=tuple(f"label {row}" for row in range(len(shares_LV))),
        columns=PLAIN,
        released_LC=1000 * shares_LV * PLAIN.weight_C,
        noise_std=noise_std,
    )


def chosen(drawn: Sequence[Sequence[int]], plan: Sequence[int], wanted: TokenTargets) -> Selection:
    """With what was released taken at its word."""
    return select(drawn, plan, wanted, wanted.released_LC / PLAIN.weight_C)


def texts(shares_V: np.ndarray, count: int, *, seed: int, length: int = 8) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [[*rng.choice(V, size=length, p=shares_V).tolist(), END] for _ in range(count)]


def mixes(count: int) -> np.ndarray:
    found_LV = np.random.default_rng(5).dirichlet(np.full(V, 0.3), size=count)
    found_LV[:, END] = 0.1
    return np.asarray(found_LV / found_LV.sum(axis=1, keepdims=True))


@given(seed=st.integers(0, 10**6), kept=st.integers(0, 9))
def test_each_step_takes_the_candidate_that_brings_the_sum_closest(seed: int, kept: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 3, size=(9, 5)) * rng.random((9, 1))
    wanted, weight = rng.random(5), rng.random(5)
    taken, total = list[int](), np.zeros(5)
    for number in range(1, kept + 1):
        off = {i: weight @ (total + counts[i] - number * wanted) ** 2 for i in range(9) if i not in taken}
        taken.append(min(off, key=off.__getitem__))
        total += counts[taken[-1]]
    assert herd(csr_matrix(counts), wanted, weight, num_kept=kept) == taken


def test_the_kept_texts_are_closer_to_the_targets_than_texts_of_the_targets_own_mix() -> None:
    shares_LV = mixes(1)
    plan = [0] * 100
    drawn = texts(0.7 * shares_LV[0] + 0.3 / V, 300, seed=1)
    found = chosen(drawn, plan, targets(shares_LV))
    own = chosen(texts(shares_LV[0], 100, seed=2), plan, targets(shares_LV))
    assert found.distance_kept < 0.6 * found.distance_unselected
    assert found.distance_kept < own.distance_unselected, "a hundred real texts are off by chance"
    assert len(set(found.kept)) == 100


def test_each_label_keeps_as_many_as_the_plan_has_and_in_its_places() -> None:
    plan = [0, 1, 1, 2] * 20
    drawn = texts(np.full(V, 1 / V), 240, seed=3)
    kept = chosen(drawn, plan, targets(mixes(3))).kept
    assert [plan[number % 80] for number in kept] == plan
    assert len(set(kept)) == 80


def test_a_label_s_choice_does_not_depend_on_the_texts_of_another() -> None:
    plan = [0, 1] * 30
    drawn = texts(np.full(V, 1 / V), 180, seed=4)
    others = texts(np.full(V, 1 / V), 180, seed=5)
    mixed = [drawn[i] if i % 2 == 0 else others[i] for i in range(180)]
    first, second = (chosen(found, plan, targets(mixes(2))).kept for found in (drawn, mixed))
    assert first[::2] == second[::2]
    assert first[1::2] != second[1::2]


def test_of_a_label_nothing_was_released_of_the_first_texts_are_kept() -> None:
    shares_LV = mixes(2)
    shares_LV[1] = 0
    plan = [0, 1] * 10
    kept = chosen(texts(np.full(V, 1 / V), 60, seed=6), plan, targets(shares_LV)).kept
    assert kept[1::2] == tuple(range(1, 20, 2))
    assert kept[::2] != tuple(range(0, 20, 2))


def test_noise_of_the_table_is_not_followed_as_if_it_were_exact() -> None:
    """A rare token whose released count is mostly noise must not outweigh the frequent ones."""
    shares_LV = np.zeros((1, V))
    shares_LV[0, [END, 2, 3]], shares_LV[0, 9] = 0.3, 0.001
    plan = [0] * 50
    drawn = [*texts(shares_LV[0] / shares_LV.sum(), 140, seed=7), *([9, 9, 2, 2, 2, END] for _ in range(10))]
    uses = {
        noise: sum(number >= 140 for number in chosen(drawn, plan, targets(shares_LV, noise_std=noise)).kept)
        for noise in (0.0, 5.0)
    }
    assert uses[0.0] < uses[5.0], "with exact counts the ten texts are avoided, with useless ones they are not"


def test_texts_without_any_token_can_be_candidates() -> None:
    drawn: list[list[int]] = [[], [2, END], [], [3, END], [], [2, 3, END]]
    assert len(chosen(drawn, [0, 0], targets(mixes(1))).kept) == 2
