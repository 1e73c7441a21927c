"""Sampling that follows released token counts: closer to them, row by row the same, and never unpaid."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from safesynthdp.generation.decoding import DrawnRow, Row, Steering, decode_wave
from safesynthdp.generation.draws import Sampling
from safesynthdp.generation.token_matching import MOST_BIAS, Matched, TokenTargets, matching_rounds
from safesynthdp.training.examples import Example
from safesynthdp.training.token_counts import token_table
from safesynthdp.training.units import Units

V, END = 259, 1
PROMPTS = ((5, 6, 7), (5, 6, 9))


def targets(
    favourites: Sequence[Sequence[int]], *, least: float = 0.0, rest: float = 0.0, noise_std: float = 0.01
) -> TokenTargets:
    """Each label uses its favourites and the end of text, and of anything else ``rest``."""
    sums_LV = np.zeros((len(favourites), V))
    for row, tokens in enumerate(favourites):
        sums_LV[row, list(tokens)] = 10.0
        sums_LV[row, END] = 5.0
    totals_L = sums_LV.sum(axis=1) + rest
    return TokenTargets(
        labels=("bad", "good"),
        sums_LV=sums_LV,
        totals_L=totals_L,
        least_L=np.full(len(favourites), least),
        noise_std=noise_std,
        source="gaussian",
    )


def rows(count: int, *, limit: int = 12) -> list[Row]:
    return [Row(number=i, prompt=PROMPTS[i % 2], max_new_tokens=limit, label=i % 2) for i in range(count)]


def fit(model: LlamaForCausalLM, wanted: TokenTargets, **changes: Any) -> Matched:
    options: dict[str, Any] = {
        "sampling": Sampling(),
        "seed": 0,
        "rounds": 4,
        "num_records": 100,
        "batch_size": 64,
    } | changes
    *_, found = matching_rounds(model, rows(10), wanted, eos_token_id=END, advance=lambda _: None, **options)
    return found


def drawn(model: LlamaForCausalLM, wave: Sequence[Row], steering: Steering | None) -> dict[int, tuple[int, ...]]:
    found = list[DrawnRow]()
    decode_wave(
        model,
        wave,
        sampling=Sampling(),
        eos_token_id=END,
        seed=4,
        on_step=lambda ended, _: found.extend(ended),
        steering=steering,
    )
    return {row.number: row.tokens for row in found}


def test_each_label_uses_the_tokens_of_its_own_targets(model: LlamaForCausalLM) -> None:
    favourites = ((20, 21, 22), (40, 41))
    matched = fit(model, targets(favourites))
    assert matched.distances[-1] < matched.distances[0] / 3
    texts = drawn(model, rows(200), Steering(matched.bias_LV))
    for label, tokens in enumerate(favourites):
        used = Counter(token for number, text in texts.items() if number % 2 == label for token in text)
        share = sum(used[token] for token in tokens) / sum(used.values())
        assert share > 0.7, "an untouched model gives each about 1 / 259"


def expected(shares: dict[int, float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What a model that uses tokens with these shares is expected to use in 1,000 positions, both labels alike."""
    found_LV = np.zeros((2, V))
    for token, share in shares.items():
        found_LV[:, token] = 1000 * share
    return found_LV


NO_BIAS = np.zeros((2, V))


def test_a_model_that_uses_what_was_released_and_its_rest_is_left_alone() -> None:
    wanted = targets(((20,), (20,)), least=4.0, rest=5.0)  # of 20: half token 20, a quarter the end, a quarter others
    change_LV, far_L = wanted.towards(expected({20: 0.5, END: 0.25, 30: 0.125, 31: 0.0625, 32: 0.0625}), NO_BIAS)
    assert np.abs(change_LV).max() < 1e-9, "else every round would starve what did not stand out of the noise"
    assert far_L.max() < 1e-12


def test_a_token_that_was_not_released_gets_no_more_than_could_have_stayed_unseen() -> None:
    wanted = targets(((20,), (20,)), least=2.0, rest=5.0)
    change_LV, _ = wanted.towards(expected({20: 0.5, END: 0.25, 30: 0.24, 31: 0.01}), NO_BIAS)
    assert change_LV[0, 30] < -0.5, "a quarter of all mass is 5, and 2 is the most that nobody would have seen"
    assert abs(change_LV[0, 31]) < 0.2


def test_what_was_not_released_shares_the_rest_of_the_total() -> None:
    wanted = targets(((20,), (20,)), least=100.0, rest=45.0)  # three quarters of the mass stayed in the noise
    change_LV, _ = wanted.towards(expected({20: 0.6, END: 0.3, 30: 0.06, 31: 0.04}), NO_BIAS)
    assert change_LV[0, 30] == pytest.approx(np.log(7.5), abs=0.05)
    assert change_LV[0, 30] == pytest.approx(change_LV[0, 31], abs=0.05)
    assert change_LV[0, 20] < 0


def test_where_the_total_is_lost_in_the_noise_the_rest_keeps_its_share() -> None:
    wanted = targets(((20,), (20,)), least=100.0, rest=1000.0, noise_std=1000.0)
    change_LV, _ = wanted.towards(expected({20: 0.2, END: 0.1, 30: 0.7}), NO_BIAS)
    assert abs(change_LV[0, 30]) < 0.02


def test_a_label_of_which_nothing_was_released_stays_as_it_is() -> None:
    nothing = targets(((), ()), least=5.0)
    wanted = TokenTargets(**{**vars(nothing), "sums_LV": np.zeros((2, V)), "totals_L": np.array([30.0, -4.0])})
    change_LV, far_L = wanted.towards(np.ones((2, V)), NO_BIAS)
    assert not change_LV.any()
    assert not far_L.any()


def test_a_label_gets_of_a_token_that_none_released_a_quarter_of_its_own_share_and_the_rest_of_the_average() -> None:
    wanted = targets(((20,), (20,)), least=100.0, rest=5.0)  # of each label's 20 a quarter stayed in the noise
    own_LV = np.zeros((2, V))
    own_LV[:, [20, END]] = [500, 250]
    own_LV[0, 30], own_LV[1, 31] = 250, 250
    found_LV = wanted.wanted(own_LV)
    assert found_LV[0, [30, 31]] == pytest.approx([5 * (0.25 + 0.75 / 2), 5 * 0.75 / 2])
    assert found_LV[1, [30, 31]] == pytest.approx([5 * 0.75 / 2, 5 * (0.25 + 0.75 / 2)])


def test_a_token_that_another_label_released_is_averaged_over_those_that_did_not() -> None:
    wanted = targets(((20,), (21,)), least=100.0, rest=5.0)
    own_LV = np.zeros((2, V))
    own_LV[0, [20, END, 30]], own_LV[1, [21, END, 20, 30]] = [500, 250, 250], [500, 250, 50, 200]
    found_LV = wanted.wanted(own_LV)
    parts = {20: 0.2, 30: 0.25 * 0.8 + 0.75 * (1.0 + 0.8) / 2}
    assert found_LV[1, 20] == pytest.approx(5 * parts[20] / sum(parts.values())), "not what label 0 has of it"


def test_rounds_come_to_rest_instead_of_averaging_the_labels_again_and_again() -> None:
    wanted = targets(((20,), (20,)), least=100.0, rest=5.0)
    own_LV, bias_LV = np.zeros((2, V)), np.zeros((2, V))
    own_LV[:, [20, END]] = [500, 250]
    own_LV[0, [30, 31]], own_LV[1, [30, 31]] = [240, 10], [10, 240]
    for _ in range(40):
        tilted_LV = own_LV * np.exp(bias_LV)
        change_LV, _ = wanted.towards(1000 * tilted_LV / tilted_LV.sum(axis=1, keepdims=True), bias_LV)
        bias_LV += change_LV
    tilted_LV = own_LV * np.exp(bias_LV)
    shares_L = tilted_LV[:, 30] / tilted_LV[:, [30, 31]].sum(axis=1)
    assert shares_L == pytest.approx([0.25 * 0.96 + 0.75 * 0.5, 0.25 * 0.04 + 0.75 * 0.5], abs=0.01)


def test_a_bias_beyond_what_exp_can_hold_leaves_numbers() -> None:
    wanted = targets(((20,), (20,)), least=100.0, rest=5.0)
    bias_LV = np.where(np.arange(V) % 2, 1200.0, -1200.0) * np.ones((2, 1))  # 6 nats at a temperature of 0.005
    change_LV, far_L = wanted.towards(expected({20: 0.5, END: 0.25, 30: 0.2, 31: 0.05}), bias_LV)
    assert np.isfinite(change_LV).all()
    assert np.isfinite(far_L).all()


def test_a_low_temperature_does_not_make_the_fit_swing(model: LlamaForCausalLM) -> None:
    found = fit(model, targets(((20, 21), (40,)), rest=8.0, least=3.0), sampling=Sampling(temperature=0.4), rounds=6)
    assert found.distances[-1] < found.distances[0] / 2
    assert found.distances[-1] == pytest.approx(min(found.distances), abs=0.05)


def test_a_fit_that_goes_on_after_a_round_comes_to_the_same(model: LlamaForCausalLM) -> None:
    whole = fit(model, targets(((20, 21), (40,))))
    half = fit(model, targets(((20, 21), (40,))), rounds=2)
    again = fit(model, targets(((20, 21), (40,))), begun=half)
    assert again.distances == whole.distances
    assert torch.equal(again.bias_LV, whole.bias_LV)


def test_texts_weigh_as_records_do_whatever_their_length(model: LlamaForCausalLM) -> None:
    """A table of the model's own texts, counted as training counts records, leaves the model as it is."""
    wave = rows(600, limit=30)
    found = list[DrawnRow]()
    before_LV = torch.zeros(2, V)
    before_LV[:, END] = 3.2  # a text ends after about ten tokens
    decode_wave(
        model,
        wave,
        sampling=Sampling(),
        eos_token_id=END,
        seed=9,
        on_step=lambda ended, _: found.extend(ended),
        steering=Steering(before_LV),
    )
    examples = [
        Example(
            input_ids=(0, *row.tokens, *([] if row.is_truncated else [END])),
            num_prompt_tokens=1,
            is_truncated=row.is_truncated,
        )
        for row in sorted(found, key=lambda row: row.number)
    ]
    labels = [("bad", "good")[row.label] for row in wave]
    units = Units(members=tuple((i,) for i in range(len(wave))))
    table_LV = token_table(examples, labels, label_set=("bad", "good"), vocab_size=V, units=units)
    wanted = TokenTargets(
        labels=("bad", "good"),
        sums_LV=table_LV,
        totals_L=table_LV.sum(axis=1),
        least_L=np.zeros(2),
        noise_std=0.0,
        source="exact",
    )
    *_, fitted = matching_rounds(
        model,
        wave,
        wanted,
        sampling=Sampling(),
        eos_token_id=END,
        seed=0,
        rounds=1,
        num_records=600,
        batch_size=64,
        advance=lambda _: None,
        begun=Matched(bias_LV=before_LV, distances=()),
    )
    frequent = table_LV > 8
    assert frequent.any()
    moved_LV = (fitted.bias_LV - before_LV).numpy()
    moved = moved_LV[frequent]
    assert moved.mean() == pytest.approx(0.0, abs=0.1)
    assert moved.std() < 0.25, "what is left is the chance of 600 texts"
    assert moved_LV[:, END] == pytest.approx(0.0, abs=0.15), "the end of text comes as often as it did"


def test_no_token_is_favoured_beyond_the_bound(model: LlamaForCausalLM) -> None:
    assert fit(model, targets(((20,), (40,))), rounds=8).bias_LV.abs().max() <= MOST_BIAS


def test_a_row_does_not_depend_on_the_rows_beside_it(model: LlamaForCausalLM) -> None:
    bias_LV = torch.randn(2, V, generator=torch.Generator().manual_seed(1))
    together = drawn(model, rows(8), Steering(bias_LV))
    for row in rows(8):
        assert drawn(model, [row], Steering(bias_LV))[row.number] == together[row.number]
    assert drawn(model, rows(8), Steering(torch.zeros(2, V))) == drawn(model, rows(8), None)


def test_what_is_looked_at_is_what_is_drawn_from_once_a_position(model: LlamaForCausalLM) -> None:
    steering = Steering(torch.zeros(2, V), num_watched=40)
    texts = drawn(model, rows(40), steering)
    for number, text in texts.items():
        positions = len(text) + (len(text) < 12)
        assert float(steering.seen_RV[number].sum()) == pytest.approx(positions, rel=1e-5)
