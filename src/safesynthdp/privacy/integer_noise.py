"""Exact integer noise: discrete Laplace and discrete Gaussian, drawn with whole numbers only.

Here: the samplers. Elsewhere: the bits they use (randomness.py), their price (conversions.py, losses.py). Source:
Canonne, Kamath and Steinke (2020), arXiv:2004.00010, algorithms 1 to 3. No float enters a draw: a floating-point
sampler leaks through the values that it can and cannot produce.
"""

from fractions import Fraction

from safesynthdp.privacy.randomness import EntropySource


def discrete_laplace(scale: Fraction, entropy: EntropySource) -> int:
    """Return y with probability proportional to ``exp(-|y| / scale)``."""
    if scale <= 0:
        raise ValueError(f"scale={scale} must be above 0")
    numerator, denominator = scale.numerator, scale.denominator
    while True:
        remainder = entropy.below(numerator)
        if not _bernoulli_exp(Fraction(remainder, numerator), entropy):
            continue
        quotient = 0
        while _bernoulli_exp(Fraction(1), entropy):
            quotient += 1
        magnitude = (remainder + numerator * quotient) // denominator
        negative = entropy.bits(1) == 1
        if not (negative and magnitude == 0):  # zero has one sign only
            return -magnitude if negative else magnitude


def discrete_gaussian(scale: Fraction, entropy: EntropySource) -> int:
    """Return y with probability proportional to ``exp(-y^2 / (2 scale^2))``."""
    if scale <= 0:
        raise ValueError(f"scale={scale} must be above 0")
    variance, width = scale**2, scale.numerator // scale.denominator + 1
    while True:
        y = discrete_laplace(Fraction(width), entropy)
        if _bernoulli_exp((abs(y) - variance / width) ** 2 / (2 * variance), entropy):
            return y


def _bernoulli(probability: Fraction, entropy: EntropySource) -> bool:
    """Return True with exactly this probability."""
    return entropy.below(probability.denominator) < probability.numerator


def _bernoulli_exp(exponent: Fraction, entropy: EntropySource) -> bool:
    """Return True with probability exactly ``exp(-exponent)``, for an exponent of at least 0."""
    while exponent > 1:
        if not _bernoulli_exp(Fraction(1), entropy):
            return False
        exponent -= 1
    term = 1
    while _bernoulli(exponent / term, entropy):
        term += 1
    return term % 2 == 1
