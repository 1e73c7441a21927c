"""What one model of a pool is, exactly: a shard with equal contents has an equal key, on any machine.

Here: the spec, its key, the hash of a recipe. Elsewhere: making specs (pool_plan.py), carrying one out (shard.py). No
host, device or path is in a key: a pool may be moved, and any scheduler may carry out any part of it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from safesynthdp.errors import SafeSynthError

SCHEMA = 1
"""Rises when a shard's tables change their meaning: older shards are then stale."""
_NOT_RECIPE = ("output_dir", "hardware", "dry_run")
_NOT_DATA = ("train_file", "dataset_name", "dataset_config", "dataset_split", "builtin", "max_records")
_POOL_DATA = ("membership_file", "holdout_percent", "text_column", "label_column", "user_column")


@dataclass(frozen=True, kw_only=True)
class ShardSpec:
    """One training run, its corpus and its signals. Small: it names data by hash."""

    model_id: int
    """Place in the pool; ``num_models`` for the dedicated target."""
    pair: int | None
    """None for the dedicated target."""
    seed: int
    """Of the coins."""
    recipe_hash: str
    data_hash: str
    """Over records, roles and label set."""
    nominal_num_records: int
    unsafe_seed: int | None
    """Of this model's masks and noise, derived from the recipe's; None = OS entropy."""
    channels: tuple[str, ...]
    sample: dict[str, Any] | None
    """Settings of the corpus, its seed included; None without the channel text."""
    run_id: str | None = None
    """Of the run that is the dedicated target without being trained here."""
    schema: int = SCHEMA

    @property
    def key(self) -> str:
        """SHA-256 of the canonical spec, 32 hex digits; the target's place does not count, so that a pool can grow."""
        facts = {name: value for name, value in asdict(self).items() if name != "run_id" or value is not None}
        return canonical_hash(facts if self.pair is not None else facts | {"model_id": None})[:32]

    @property
    def name(self) -> str:
        """A name for people and folders."""
        return "target" if self.pair is None else f"model-{self.model_id:03d}"

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON can hold it."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ShardSpec":
        """Read what ``to_json`` wrote.

        Raises:
            SafeSynthError: If a key is missing or unknown.
        """
        try:
            return cls(**{**value, "channels": tuple(value["channels"])})
        except (TypeError, KeyError) as error:
            raise SafeSynthError("plan.json holds a spec that is not of this version; plan the pool again") from error


def canonical_hash(value: Any) -> str:
    """Return the SHA-256 of JSON with sorted keys and without spaces."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def recipe_hash(config: Mapping[str, Any]) -> str:
    """Return the hash of all that shapes what a model learns: the config without places, seeds of noise and hardware.

    Args:
        config: A resolved training config, as in a run's config.yaml.
    """
    return canonical_hash(numbers_alike(recipe_part(config)))


def recipe_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``recipe_hash`` covers."""
    kept = {name: value for name, value in config.items() if name not in _NOT_RECIPE}
    kept["data"] = {k: v for k, v in kept["data"].items() if k not in (*_NOT_DATA, *_POOL_DATA)}
    kept["privacy"] = {k: v for k, v in kept["privacy"].items() if k != "unsafe_seed"}
    kept["privacy"]["is_seeded"] = config["privacy"].get("unsafe_seed") is not None
    return kept


def numbers_alike(value: Any) -> Any:
    """Return the same with whole numbers as floats: 32 and 32.0 are one setting, and YAML does not keep them apart."""
    if isinstance(value, Mapping):
        return {key: numbers_alike(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [numbers_alike(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def derived_seed(what: str, seed: int, model_id: int) -> int:
    """Return a seed of one model's own, 0 to 2^31 - 1; models share none."""
    digest = hashlib.sha256(f"{what}-v1|{seed}|{model_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
