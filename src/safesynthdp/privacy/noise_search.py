"""The smallest noise that meets a target epsilon.

Here: a bracketed secant in logarithms, for any price that falls with the noise. Elsewhere: the prices (accounting.py).
"""

import math
from collections.abc import Callable

from safesynthdp.errors import ConfigError

TOLERANCE = 1e-3
"""Relative: how far below the target the price may end."""
_MOST_PRICES = 100
_NOISE_RANGE = (1e-3, 1e7)


def smallest(
    price: Callable[[float], float],
    target: float,
    start: float,
    *,
    tolerance: float = TOLERANCE,
    slope: float = -1.0,
) -> float:
    """Return x with ``target <= price(x) * (1 + tolerance) <= target * (1 + tolerance)`` for a falling price.

    Where the price jumps, or is flat to rounding, x is the end of a bracket of a tenth of the tolerance at which the
    target is met. The price of x itself was asked and is not above the target.

    Args:
        price: Epsilon of a noise multiplier.
        target: Epsilon, above 0.
        start: The first guess.
        tolerance: Relative, of the price.
        slope: A guess of ``d ln(price) / d ln(x)``, below 0.

    Raises:
        ConfigError: If the target is not met within the range.
    """
    least, most = _NOISE_RANGE
    low, high = least, math.inf  # price(low) is above the target (assumed at the start), price(high) is not
    x, last = start, (math.nan, math.nan)
    for _ in range(_MOST_PRICES):
        if low >= most or high <= 1.01 * least:
            break
        epsilon = price(x)
        if target / (1 + tolerance) <= epsilon <= target:
            return x
        low, high = (low, x) if epsilon <= target else (x, high)
        if high / low < 1 + tolerance / 10:
            return high
        if not 0 < epsilon < math.inf:
            x = math.sqrt(x * low) if epsilon == 0 else min(2 * x, math.sqrt(x * high))
            continue
        here = (math.log(x), math.log(epsilon))
        if here[0] != last[0] and not math.isnan(last[0]):
            slope = min(-0.05, (here[1] - last[1]) / (here[0] - last[0]))
        last = here
        step = (math.log(target) - tolerance / 2 - here[1]) / slope
        x = math.exp(here[0] + max(-3.0, min(3.0, step)))
        if not low < x < high:
            x = math.sqrt(low * high) if high < math.inf else 2 * low
    else:
        if high < math.inf:
            return high
    raise ConfigError(f"target_epsilon={target} is met by no noise_multiplier from {least:g} to {most:g}; change it")
