"""A run that exists already as the dedicated target of a pool: is it the shadows' recipe, and who is in it?

Here: opening it, comparing recipes key by key, the records it was and was not trained on. Elsewhere: planning
(pool_plan.py), its shard (shard.py).

Guarantee:
    Nobody tossed a coin for such a run: its members are the train side of a split by hashes of texts. Its attacks have
    an AUC and rates, but never a bound on epsilon or a verdict (pool_audit.py), however high they score.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from safesynthdp.attacks.pool_data import PoolRecord
from safesynthdp.attacks.shard_spec import numbers_alike, recipe_part
from safesynthdp.errors import ConfigError, SafeSynthError, UserError
from safesynthdp.privacy.ledger import Ledger
from safesynthdp.records import Split, split_of_run
from safesynthdp.runs import LEDGER, RunDirectory

_SHOWN = 3
_OF_THE_POOL = ("privacy.noise_multiplier", "data.nominal_num_records", "data.labels")
"""What a plan settles: the noise is the run's own, the size too, and labels are compared as records."""


@dataclass(frozen=True, kw_only=True)
class ExistingRun:
    """A finished finetune run that a pool attacks."""

    run: RunDirectory
    noise_multiplier: float | None
    """That of its ledger, which every shadow model gets; None without DP."""

    @property
    def num_units(self) -> int:
        """Records or users it was trained on."""
        return int(self.run.manifest["data"]["num_units"])

    def units_of(self, records: Iterable[PoolRecord]) -> set[str]:
        """Return the units, of those that are audited, that it was trained on."""
        inside = set(split_of_run(self.run).train.record_ids)
        return {record.unit_id for record in records if record.record_id in inside}

    @property
    def run_id(self) -> str:
        """Its name in the target's spec."""
        return str(self.run.manifest["run_id"])


def open_target(path: str, recipe: Mapping[str, Any], split: Split) -> ExistingRun:
    """Return the run, once it is clear that the shadow models repeat it.

    Args:
        path: Its directory.
        recipe: The pool's training config.
        split: The recipe's records.

    Raises:
        UserError: If it is no finished run, was trained for another pool, or by another recipe or on other records; the
            message names the keys that differ.
    """
    run = RunDirectory.open(path, kind="finetune")
    if not run.is_finished:
        raise UserError(f"target_run={path} is not finished; finish it with the command that began it")
    config = run.config()
    if config["data"].get("membership_file") is not None:
        raise UserError(f"target_run={path} was trained on the coins of another pool; score that pool")
    differing = differences(recipe, config)
    if differing:
        said = [f"{key} is {there!r} in the run and {here!r} in the recipe" for key, here, there in differing[:_SHOWN]]
        more = f" and {len(differing) - _SHOWN} more keys" if len(differing) > _SHOWN else ""
        raise ConfigError(
            f"target_run={path}: {'; '.join(said)}{more}; plan with recipe={path}, so that shadows repeat it"
        )
    trained = split_of_run(run)
    if trained.train.fingerprint != split.train.fingerprint or trained.train.label_set != split.train.label_set:
        raise ConfigError(f"target_run={path} read other records than the recipe does; plan with recipe={path}")
    entries = [e for e in Ledger.read(run.path / LEDGER).entries if e.kind == "dpsgd"]
    if len(entries) > 1:
        raise UserError(
            f"target_run={path} was trained in {len(entries)} parts of their own noise; no shadow repeats it"
        )
    noise = entries[0].mechanism.get("noise_multiplier") if entries else None
    return ExistingRun(run=run, noise_multiplier=None if noise is None else float(noise))


def reopen_target(path: str, *, run_id: str) -> RunDirectory:
    """Return the run that a plan named.

    Raises:
        SafeSynthError: If another one is there now.
    """
    run = RunDirectory.open(path, kind="finetune")
    if run.manifest["run_id"] != run_id or not run.is_finished:
        raise SafeSynthError(f"target_run={path} is not the run that was planned with; restore it or plan again")
    return run


def differences(recipe: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, its value in the recipe, its value in the run) of all that shapes what a model learns."""
    here, there = (_flat(numbers_alike(recipe_part(values))) for values in (recipe, config))
    keys = [key for key in sorted({*here, *there}) if key not in _OF_THE_POOL]
    return [(key, here.get(key), there.get(key)) for key in keys if here.get(key) != there.get(key)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found = dict[str, Any]()
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
