"""Stored signals: from a model's logits to one row a record and signal."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from safesynthdp.attacks.record_signals import STORED, STORED_WITH_BASE, score_records, score_sums
from safesynthdp.errors import SafeSynthError
from safesynthdp.training.examples import Example, collate
from safesynthdp.training.loss import target_log_probs
from safesynthdp.training.token_statistics import LEAST_DEVIATION, TokenStatistics, token_statistics


class FixedModel(nn.Module):
    """Gives the logits of the token before, whatever came earlier."""

    def __init__(self, log_probs_VV: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(log_probs_VV)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        return SimpleNamespace(logits=self.table[input_ids])


def example(*ids: int) -> Example:
    return Example(input_ids=ids, num_prompt_tokens=1, is_truncated=False)


def statistics_of(probabilities: Sequence[Sequence[float]], *examples: Example) -> list[TokenStatistics]:
    return token_statistics(FixedModel(torch.tensor(probabilities).log()), list(examples))


def table_of(values: Any) -> dict[tuple[str, str], float]:
    return {(row["record_id"], row["signal"]): row["value"] for row in values.to_pylist()}


def test_the_moments_are_those_of_the_whole_vocabulary() -> None:
    two = statistics_of([[0.9, 0.1], [0.9, 0.1]], example(0, 0), example(0, 1))
    assert [s.means[0] for s in two] == pytest.approx([-0.325083] * 2, abs=1e-6)
    assert [s.deviations[0] for s in two] == pytest.approx([0.659167] * 2, abs=1e-6)
    z = [(s.log_probs[0] - s.means[0]) / s.deviations[0] for s in two]
    assert z == pytest.approx([0.333333, -3], abs=1e-5)
    assert [s.is_top[0] for s in two] == [True, False]
    three = statistics_of([[0.7, 0.2, 0.1]] * 3, *(example(0, token) for token in range(3)))
    z = [(s.log_probs[0] - s.means[0]) / s.deviations[0] for s in three]
    assert z == pytest.approx([0.633092, -1.148612, -2.134419], abs=1e-5)


def test_a_certain_token_and_an_impossible_one_leave_finite_moments() -> None:
    found = statistics_of([[1.0, 0.0], [0.5, 0.5]], example(0, 0))[0]
    assert found.means.tolist() == [0.0]
    assert found.deviations.tolist() == pytest.approx([LEAST_DEVIATION])


def test_batching_and_padding_change_nothing_and_the_log_probabilities_are_those_of_the_loss() -> None:
    torch.manual_seed(0)
    model = FixedModel(torch.randn(7, 7))
    rng = np.random.default_rng(0)
    examples = [
        Example(input_ids=tuple(rng.integers(0, 7, size=n).tolist()), num_prompt_tokens=1 + n % 3, is_truncated=False)
        for n in (4, 9, 5, 30, 6)
    ]
    together, alone = (token_statistics(model, examples, max_tokens_per_microbatch=n) for n in (1000, 1))
    rows = [target_log_probs(model, collate([e], pad_token_id=0, device=torch.device("cpu"))) for e in examples]
    plain = [row_1T[0, e.num_prompt_tokens :].detach().numpy() for row_1T, e in zip(rows, examples, strict=True)]
    for first, second, expected in zip(together, alone, plain, strict=True):
        np.testing.assert_allclose(first.log_probs, expected, atol=1e-6)
        np.testing.assert_allclose(first.means, second.means, atol=1e-6)
        np.testing.assert_allclose(first.deviations, second.deviations, atol=1e-6)
        assert (first.is_top == second.is_top).all()


def test_a_long_batch_is_taken_in_parts_and_comes_back_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    model, examples = FixedModel(torch.randn(5, 5)), [example(*([0, 1, 2, 3, 4] * 3)), example(4, 3, 2)]
    whole = token_statistics(model, examples)
    monkeypatch.setattr("safesynthdp.training.token_statistics._TOKENS_AT_ONCE", 4)
    for first, second in zip(whole, token_statistics(model, examples), strict=True):
        assert first.log_probs.size == second.log_probs.size
        np.testing.assert_array_equal(first.means, second.means)


def record(log_probs: Sequence[float], is_top: Sequence[bool] | None = None) -> TokenStatistics:
    values = np.asarray(log_probs, dtype=np.float64)
    top = np.zeros(values.size, dtype=np.bool_) if is_top is None else np.asarray(is_top)
    return TokenStatistics(log_probs=values, means=np.full_like(values, -2.0), deviations=values * 0 + 0.5, is_top=top)


def test_every_stored_signal_is_its_formula() -> None:
    records = [record([-1.0, -2.0, -3.0, -4.0, -5.0]), record([-0.5])]
    base = [np.array([-1.5, -1.8, -4.0, -3.7, -5.0]), np.array([-1.5])]
    found = table_of(score_records(records, record_ids=["a", "b"], base_log_probs=base))
    assert set(found) == {(i, s) for i in "ab" for s in (*STORED, *STORED_WITH_BASE)}
    assert [found["a", s] for s in STORED] == [-15.0, 5.0, -5.0, -6.0]
    assert [found["a", s] for s in STORED_WITH_BASE] == pytest.approx([1.5, 0.5])
    assert [found["b", s] for s in ("lp_sum", "ez_pos", "ez_neg")] == [-0.5, 1.0, 0.0]


def test_without_a_base_model_there_is_no_error_zone() -> None:
    assert set(score_records([record([-1.0])], record_ids=["a"])["signal"].to_pylist()) == set(STORED)


@pytest.mark.parametrize(
    ("broken", "base", "words"),
    [
        (record([-1.0, math.nan]), [-1.0, -1.0], "lp_sum that is NaN or infinite"),
        (record([]), [], "no scored token"),
        (record([-1.0]), [-1.0, -1.0], "other tokens under the untuned model"),
        (record([-1.0]), [-math.inf], "ez_pos that is NaN or infinite"),
    ],
)
def test_a_record_without_a_number_is_an_error_that_names_it(
    broken: TokenStatistics, base: list[float], words: str
) -> None:
    with pytest.raises(SafeSynthError, match=rf"1 records have .*{words} \(b\)"):
        score_records([record([-1.0]), broken], record_ids=["a", "b"], base_log_probs=[np.ones(1), np.asarray(base)])


def test_records_that_nobody_was_trained_on_keep_their_sum_alone() -> None:
    found = table_of(score_sums([record([-1.0, -2.0]), record([-0.5])], record_ids=["a", "b"]))
    assert found == {("a", "lp_sum"): -3.0, ("b", "lp_sum"): -0.5}
    assert score_sums([], record_ids=[]).num_rows == 0
    for broken in (record([]), record([math.nan])):
        with pytest.raises(SafeSynthError, match=r"1 records have no .*\(b\)"):
            score_sums([record([-1.0]), broken], record_ids=["a", "b"])


def test_an_id_that_stands_twice_is_refused() -> None:
    with pytest.raises(SafeSynthError, match="each needs one"):
        score_records([record([-1.0])] * 2, record_ids=["a", "a"])
