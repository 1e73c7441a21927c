"""Is a number inside the range for which the privacy formulas hold?

Every check raises ConfigError with the name of the flag first. Nothing is clamped: an accountant that answers outside
its range answers something else.
"""

import math
from typing import Any, TypeGuard, get_args

from safesynthdp.errors import ConfigError
from safesynthdp.privacy.losses import Adjacency

ADJACENCIES: tuple[str, ...] = get_args(Adjacency)
ACCOUNTANTS = ("pld", "prv", "rdp")
AUTO = "auto"
"""No accountant was chosen: prv, and pld where prv does not know the neighbour relation."""
MAX_STEPS = 10_000_000


def positive(name: str, value: Any) -> float:
    """Return ``value`` if it is a finite number above 0."""
    if not is_number(value) or not 0 < value < math.inf:
        raise ConfigError(f"{name}={value} must be a finite number above 0")
    return float(value)


def whole(name: str, value: Any, *, at_least: int = 1, at_most: int | None = None) -> int:
    """Return ``value`` if it is a whole number within its bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(f"{name}={value} must be a whole number, {at_least} or more")
    if at_most is not None and value > at_most:
        raise ConfigError(f"{name}={value} is above {at_most}, where the accountants stop being exact; use fewer")
    return value


def probability(name: str, value: Any) -> float:
    """Return ``value`` if it is above 0 and below 1, as delta must be."""
    if not is_number(value) or not 0 < value < 1:
        raise ConfigError(f"{name}={value} must lie between 0 and 1, both excluded; usual is below 1 / num_records")
    return float(value)


def rate(name: str, value: Any) -> float:
    """Return ``value`` if it is above 0 and at most 1."""
    if not is_number(value) or not 0 < value <= 1:
        raise ConfigError(f"{name}={value} must lie in (0, 1]")
    return float(value)


def adjacency(name: str, value: Any) -> Adjacency:
    """Return ``value`` if it names a neighbour relation."""
    if value == "add_remove":
        return "add_remove"
    if value == "replace":
        return "replace"
    raise ConfigError(f"{name}={value} is not one of {', '.join(ADJACENCIES)}")


def accountant(name: str, value: Any, *, relation: Adjacency) -> str:
    """Return ``value`` if this accountant knows this neighbour relation; for ``auto`` the one that does."""
    if value == AUTO:
        return "prv" if relation == "add_remove" else "pld"
    if value == "gdp":
        raise ConfigError(f"{name}=gdp under-reports epsilon and is not offered; use one of {', '.join(ACCOUNTANTS)}")
    if value not in ACCOUNTANTS:
        raise ConfigError(f"{name}={value} is not one of {AUTO}, {', '.join(ACCOUNTANTS)}")
    if relation == "replace" and value != "pld":
        raise ConfigError(f"{name}={value} knows only adjacency=add_remove; adjacency=replace needs {name}=pld")
    return str(value)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Return whether ``value`` is an int or a float, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)
