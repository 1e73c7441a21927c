"""What is drawn follows the softmax, and each row has numbers of its own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from safesynthdp.errors import SafeSynthError
from safesynthdp.generation.draws import Sampling, draw, stream, uniforms


def reference(logits: NDArray[np.float64], temperature: float, top_k: int, top_p: float) -> NDArray[np.float64]:
    """Temperature, then top-k, then top-p, as their papers say, one token at a time."""
    scaled = logits / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    order = sorted(range(len(logits)), key=lambda i: -probabilities[i])
    kept = order[:top_k] if top_k else order
    total = probabilities[kept].sum()
    nucleus, mass = list[int](), 0.0
    for token in kept:
        if mass >= top_p:
            break
        nucleus.append(token)
        mass += probabilities[token] / total
    result: NDArray[np.float64] = np.zeros_like(probabilities)
    result[nucleus] = probabilities[nucleus] / probabilities[nucleus].sum()
    return result


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (3.0, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.7), (0.7, 8, 0.9), (1.0, 999, 1e-9)],
)
def test_temperature_top_k_and_top_p_agree_with_a_simple_reference(
    temperature: float, top_k: int, top_p: float
) -> None:
    logits = np.random.default_rng(0).normal(size=(5, 300)) * 2
    weights = Sampling(temperature=temperature, top_k=top_k, top_p=top_p).weights(torch.from_numpy(logits)).numpy()
    for row, found in zip(logits, weights, strict=True):
        np.testing.assert_allclose(found / found.sum(), reference(row, temperature, top_k, top_p), atol=1e-12)


@pytest.mark.parametrize("vocab_size", [7, 256, 700])
def test_frequencies_of_drawn_tokens_match_the_softmax(vocab_size: int) -> None:
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=vocab_size))
    weights = Sampling().weights(logits[None])
    num_draws = 40_000
    numbers = torch.from_numpy(np.random.default_rng(2).random(num_draws))
    drawn = draw(weights.expand(num_draws, -1), numbers)
    counts = np.bincount(drawn.numpy(), minlength=vocab_size)
    expected = torch.softmax(logits, dim=0).numpy() * num_draws
    assert stats.chisquare(counts, expected).pvalue > 1e-4


def test_a_different_distribution_fails_the_frequency_test() -> None:
    """The chi-square above can tell temperature 1 from 0.9."""
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=7))
    numbers = torch.from_numpy(np.random.default_rng(2).random(40_000))
    drawn = draw(Sampling(temperature=0.9).weights(logits[None]).expand(40_000, -1), numbers)
    expected = torch.softmax(logits, dim=0).numpy() * 40_000
    assert stats.chisquare(np.bincount(drawn.numpy(), minlength=7), expected).pvalue < 1e-4


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from([0.0, 1e-30, 1e-7, 0.1, 1.0, 3.0]), min_size=1, max_size=600).filter(lambda w: sum(w) > 0),
    st.sampled_from([0.0, 1e-300, 0.25, 0.5, 0.999999, float(np.nextafter(1, 0))]),
)
def test_the_drawn_token_is_where_the_cumulative_weight_passes_the_number(weights: list[float], number: float) -> None:
    token = int(draw(torch.tensor([weights], dtype=torch.float32), torch.tensor([number], dtype=torch.float64))[0])
    exact = np.array(weights, dtype=np.float32).astype(np.float64)
    assert exact[token] > 0
    low, high = exact[:token].sum(), exact[: token + 1].sum()
    slack = 1e-12 * exact.sum()
    assert low - slack <= number * exact.sum() <= high + slack


def test_rounding_of_the_sums_never_draws_a_token_without_weight() -> None:
    """The two ways to add up a block differ in the last bits; the largest number must not fall between them."""
    weights = torch.from_numpy(np.exp(np.random.default_rng(3).normal(size=(4000, 512)) * 8)).float()
    weights[:, 250:256] = 0
    weights[:, 500:] = 0
    drawn = draw(weights, torch.full((4000,), float(np.nextafter(1, 0)), dtype=torch.float64))
    assert bool((weights.gather(1, drawn[:, None]) > 0).all())


def test_weights_are_float32_even_for_a_bfloat16_model() -> None:
    assert Sampling().weights(torch.zeros(1, 4, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    weights = Sampling().weights(torch.tensor([[0.0, bad, 1.0], [0.0, 0.0, 0.0]]))
    with pytest.raises(SafeSynthError, match="not finite"):
        draw(weights, torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_a_rows_numbers_depend_on_seed_and_row_alone() -> None:
    alone = uniforms([7], seed=3, steps=5)
    among = uniforms([2, 7, 9], seed=3, steps=11)
    np.testing.assert_array_equal(alone[0], among[1, :5])
    assert not np.intersect1d(uniforms([7], seed=4, steps=100), uniforms([7, 8], seed=3, steps=100)).size
    assert not np.intersect1d(stream(3, 0).random(100), uniforms([0], seed=3, steps=100)).size


def test_numbers_of_all_rows_together_are_uniform() -> None:
    numbers = uniforms(range(200), seed=0, steps=50)
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-4
    assert stats.kstest(numbers[:, 0], "uniform").pvalue > 1e-4
