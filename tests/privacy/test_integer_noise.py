"""The integer samplers draw from exactly the distributions that are priced."""

from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from safesynthdp.privacy.integer_noise import discrete_gaussian, discrete_laplace
from safesynthdp.privacy.randomness import EntropySource

DRAWS = 6000


def fits(drawn: list[int], weights: dict[int, float]) -> float:
    """Return the p-value of a chi-square test; rare values are pooled."""
    total = sum(weights.values())
    expected = {value: DRAWS * weight / total for value, weight in weights.items()}
    common = [value for value, count in expected.items() if count >= 5]
    observed = [drawn.count(value) for value in common]
    wanted = [expected[value] for value in common]
    return float(stats.chisquare([*observed, DRAWS - sum(observed)], [*wanted, DRAWS - sum(wanted)]).pvalue)


@pytest.mark.parametrize("scale", [Fraction(1, 2), Fraction(2.5), Fraction(7, 3)])
def test_discrete_laplace_fits_its_distribution(scale: Fraction) -> None:
    entropy = EntropySource.keyed(bytes([scale.numerator % 256]) * 32)
    drawn = [discrete_laplace(scale, entropy) for _ in range(DRAWS)]
    assert fits(drawn, {y: float(np.exp(-abs(y) / float(scale))) for y in range(-120, 121)}) > 1e-3


@pytest.mark.parametrize("scale", [Fraction(1, 2), Fraction(2.236068), Fraction(5)])
def test_discrete_gaussian_fits_its_distribution(scale: Fraction) -> None:
    entropy = EntropySource.keyed(bytes([scale.numerator % 256]) * 32)
    drawn = [discrete_gaussian(scale, entropy) for _ in range(DRAWS)]
    assert fits(drawn, {y: float(np.exp(-(y**2) / (2 * float(scale) ** 2))) for y in range(-120, 121)}) > 1e-3


def test_a_wrong_scale_would_be_noticed() -> None:
    entropy = EntropySource.keyed(b"n" * 32)
    drawn = [discrete_laplace(Fraction(2), entropy) for _ in range(DRAWS)]
    assert fits(drawn, {y: float(np.exp(-abs(y) / 2.3)) for y in range(-120, 121)}) < 1e-3


def test_draws_are_whole_numbers_and_scales_must_be_positive() -> None:
    assert type(discrete_laplace(Fraction(3), EntropySource())) is int
    assert type(discrete_gaussian(Fraction(3), EntropySource())) is int
    for sampler in (discrete_laplace, discrete_gaussian):
        with pytest.raises(ValueError, match="scale=0"):
            sampler(Fraction(0), EntropySource())


def test_a_scale_with_a_huge_denominator_is_drawn_exactly() -> None:
    drawn = [discrete_laplace(Fraction(0.1 + 0.2), EntropySource.keyed(bytes([i]) * 32)) for i in range(200)]
    assert set(drawn) <= {-2, -1, 0, 1, 2}
