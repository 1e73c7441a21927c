"""``ledger.json`` as a file: is it a ledger at all?

Here: reading, writing, and the checks that need no arithmetic. Elsewhere: what it costs (ledger.py). A message names a
key and never repeats private text; the ledger holds none.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safesynthdp.errors import LedgerMismatch
from safesynthdp.privacy import checks, storage

VERSION = 1
UNITS = ("record", "user")
KINDS = ("dpsgd", "label_histogram", "token_histogram", "private_prediction", "output_mechanism", "none")
RULES = ("compose", "min", "post_processing")
_LEDGER_KEYS = {"version", "unit", "adjacency", "entries", "releases"}
_ENTRY_KEYS = {"id": str, "kind": str, "mechanism": Mapping, "data": Mapping, "randomness": Mapping, "parents": list}
_RELEASE_KEYS = {
    "artifact": str,
    "epsilon": object,
    "delta": object,
    "rule": str,
    "entries": list,
    "accountant": Mapping,
    "not_covered": list,
}


def load(path: Path) -> dict[str, Any]:
    """Return the checked content of a ledger file.

    Raises:
        LedgerMismatch: If it is missing, is not JSON, or fails ``check``.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LedgerMismatch(
            f"{path}: cannot be read ({error.strerror}); give a run directory or a ledger.json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise LedgerMismatch(f"{path}: is not whole JSON in UTF-8; restore the ledger") from error
    try:
        check(value)
    except LedgerMismatch as error:
        raise LedgerMismatch(f"{path}: {error}") from error
    return dict(value)


def save(path: Path, value: Mapping[str, Any]) -> None:
    """Write a checked ledger, atomically and flushed."""
    check(value)
    storage.write_json(path, value)


def check(value: Any) -> None:
    """Raise LedgerMismatch unless ``value`` has the form of a ledger, version 1, with finite numbers."""
    _check_head(value)
    for number in _numbers(value):
        if not math.isfinite(number):
            raise LedgerMismatch(f"ledger: holds the number {number}; every number must be finite")
    for entry in value["entries"]:
        _check_entry(entry)
    identities = {entry["id"] for entry in value["entries"]}
    if len(identities) < len(value["entries"]):
        raise LedgerMismatch("ledger: two entries have the same id; restore the ledger")
    for entry in value["entries"]:
        _check_known(entry["id"], entry["parents"], identities)
    for release in value["releases"]:
        _check_release(release, identities)
    rules = {(release["artifact"], release["rule"]) for release in value["releases"]}
    if any(rule == "min" for _, rule in rules) and any(artifact == "weights" for artifact, _ in rules):
        raise LedgerMismatch(
            "ledger: weights are released beside text under rule min, which holds only while they are withheld; "
            "restate the text as post_processing"
        )
    _check_noise_on_released_weights(value)


def _check_noise_on_released_weights(value: Mapping[str, Any]) -> None:
    """Whatever its rule is called: text that names the noise and not the weights claims that they are withheld."""
    noise = {entry["id"] for entry in value["entries"] if entry["kind"] == "output_mechanism"}
    weights = {name for r in value["releases"] if r["artifact"] == "weights" for name in r["entries"]}
    for release in value["releases"]:
        named = set(release["entries"])
        if named & noise and not weights <= named:
            raise LedgerMismatch(
                f"ledger: {release['artifact']} is priced by an output_mechanism alone and the weights are released; "
                "restate it as post_processing"
            )


def _check_head(value: Any) -> None:
    """Check everything but the entries and the releases themselves."""
    if not isinstance(value, Mapping):
        raise LedgerMismatch("ledger: is not an object; restore the ledger")
    version = value.get("version")
    if version != VERSION or isinstance(version, bool):
        raise LedgerMismatch(f"ledger: version is {version!r}, this program reads {VERSION}; update it")
    _check_names("ledger", value, _LEDGER_KEYS)
    if value["unit"] not in UNITS:
        raise LedgerMismatch(f"ledger: unit is {value['unit']!r}, not one of {', '.join(UNITS)}")
    if value["adjacency"] not in checks.ADJACENCIES:
        raise LedgerMismatch(f"ledger: adjacency is {value['adjacency']!r}, not one of {', '.join(checks.ADJACENCIES)}")
    _check_types("ledger", value, {"entries": list, "releases": list})


def _check_entry(entry: Any) -> None:
    _check_types("entry", entry, _ENTRY_KEYS)
    _check_names("entry", entry, set(_ENTRY_KEYS))
    if entry["kind"] not in KINDS:
        raise LedgerMismatch(f"ledger: kind of {entry['id']} is {entry['kind']!r}, not one of {', '.join(KINDS)}")
    steps = entry["mechanism"].get("steps", 0)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise LedgerMismatch(f"ledger: steps of {entry['id']} is {steps!r}, not a whole number of 0 or more")


def _check_release(release: Any, identities: set[str]) -> None:
    _check_types("release", release, _RELEASE_KEYS)
    _check_names("release", release, set(_RELEASE_KEYS))
    name, epsilon, delta = release["artifact"], release["epsilon"], release["delta"]
    if release["rule"] not in RULES:
        raise LedgerMismatch(f"ledger: rule of {name} is {release['rule']!r}, not one of {', '.join(RULES)}")
    if epsilon is not None and (not checks.is_number(epsilon) or epsilon < 0):
        raise LedgerMismatch(f"ledger: epsilon of {name} is {epsilon!r}, not null and not a number of 0 or more")
    if delta is None and epsilon is None:
        pass  # no guarantee needs no delta
    elif not checks.is_number(delta) or not 0 < delta < 1:
        raise LedgerMismatch(f"ledger: delta of {name} is {delta!r}, not between 0 and 1")
    _check_known(name, release["entries"], identities)


def _check_known(name: str, references: list[Any], identities: set[str]) -> None:
    for identity in references:
        if not isinstance(identity, str) or identity not in identities:
            raise LedgerMismatch(f"ledger: {name} points to entry {identity!r}, which is missing; restore the ledger")


def _check_types(what: str, value: Any, expected: Mapping[str, type]) -> None:
    if not isinstance(value, Mapping):
        raise LedgerMismatch(f"ledger: a {what} is not an object; restore the ledger")
    for key, kind in expected.items():
        if key not in value:
            raise LedgerMismatch(f"ledger: {key} is missing in a {what}; restore the ledger")
        if not isinstance(value[key], kind):
            raise LedgerMismatch(f"ledger: {key} of a {what} has the wrong type; restore the ledger")


def _check_names(what: str, value: Mapping[str, Any], expected: set[str]) -> None:
    missing, unknown = sorted(expected - value.keys()), sorted(value.keys() - expected)
    if missing or unknown:
        problem = f"{missing[0]} is missing" if missing else f"{unknown[0]} is not known"
        raise LedgerMismatch(f"ledger: {problem} in the {what}; restore the ledger")


def _numbers(value: Any) -> Iterator[float]:
    """Yield every number, however deep."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif checks.is_number(value):
        yield value
