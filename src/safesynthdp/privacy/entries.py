"""From the mechanism of a ledger entry to the object it describes.

Here: is every key known, is every number in range? Elsewhere: which keys (mechanisms.py, output_mechanisms.py).
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from safesynthdp.errors import ConfigError, LedgerMismatch

_Mechanism = TypeVar("_Mechanism")


def known_keys(entry: Mapping[str, Any], *, required: set[str], optional: set[str]) -> dict[str, Any]:
    """Return the entry if it has the keys of the formula and no other: an unknown one may change what was done."""
    missing, unknown = sorted(required - entry.keys()), sorted(entry.keys() - required - optional)
    if missing or unknown:
        problem = f"{missing[0]} is missing" if missing else f"{unknown[0]} is not known"
        raise LedgerMismatch(f"ledger: {problem} in mechanism; restore the ledger, or use the version that wrote it")
    return dict(entry)


def built(make: Callable[..., _Mechanism], values: Mapping[str, Any]) -> _Mechanism:
    """Build a mechanism from an entry; a number out of range is the ledger's fault."""
    try:
        return make(**values)
    except ConfigError as error:
        raise LedgerMismatch(f"ledger: {error}") from error
