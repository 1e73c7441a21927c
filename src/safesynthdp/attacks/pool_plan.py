"""``safesynthdp attack plan``: from a recipe and its records to a pool of specs on disk.

Here: resolving the recipe once for all models, choosing roles, writing plan and tables. Elsewhere: roles
(pool_data.py), coins (assignment.py), carrying a spec out (shard.py). Nothing is trained. Planning again over an
earlier plan keeps every shard whose spec did not change, so a pool can grow.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from safesynthdp.attacks.assignment import assignment_table
from safesynthdp.attacks.command import AUDIT
from safesynthdp.attacks.pool import ASSIGNMENT, PLAN, RECORDS, Pool
from safesynthdp.attacks.pool_canaries import candidates_of, make_canaries_of, without_copies
from safesynthdp.attacks.pool_config import PoolConfig
from safesynthdp.attacks.pool_data import PoolData, choose_population, compose, write_training_file
from safesynthdp.attacks.pool_target import ExistingRun, open_target
from safesynthdp.attacks.shard_spec import ShardSpec, canonical_hash, derived_seed, recipe_hash
from safesynthdp.attacks.signals import zlib_lengths
from safesynthdp.config import parse, to_mapping
from safesynthdp.errors import ConfigError, SafeSynthError
from safesynthdp.privacy.storage import make_private_directory, write_atomically, write_json, write_text
from safesynthdp.records import Records, Split, load_split
from safesynthdp.runs import CONFIG, MANIFEST, RunDirectory

if TYPE_CHECKING:
    from safesynthdp.training.config import FinetuneConfig

PLAN_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """What a pool will do, before anything is written."""

    config: PoolConfig
    recipe: dict[str, Any]
    """The training config of every model, with the noise settled; data and seed are filled in for each."""
    data: PoolData
    reference: Records
    """What no model is trained on."""
    population: Records
    """Of these, what every model scores."""
    candidates: Sequence[tuple[str, str]]
    """(kind, text) of fresh texts of the canaries' formats, in no model, for their exposure."""
    target: ExistingRun | None
    label_set: tuple[str, ...]
    label_set_is_public: bool
    shards: tuple[ShardSpec, ...]

    @property
    def unit(self) -> str:
        """Whom the recipe protects."""
        return str(self.recipe["privacy"]["unit"])

    def to_json(self) -> dict[str, Any]:
        """Return plan.json."""
        settings = to_mapping(self.config)
        return {
            "version": PLAN_VERSION,
            "num_models": self.config.num_models,
            "with_target": self.config.with_target,
            "target_run": None if self.target is None else str(self.target.run.path),
            "seed": self.config.seed,
            "unit": self.unit,
            "primary": self.config.primary,
            "channels": settings["channels"],
            "num_processes": self.config.num_processes,
            "labels": list(self.label_set) if self.label_set_is_public else None,
            "label_set": list(self.label_set),
            "recipe": self.recipe,
            "recipe_hash": self.shards[0].recipe_hash,
            "data_hash": self.shards[0].data_hash,
            "nominal_num_records": self.shards[0].nominal_num_records,
            "num_audited": len(self.data.audited),
            "shards": [spec.to_json() for spec in self.shards],
        }


def make_plan(config: PoolConfig) -> AuditPlan:
    """Read the recipe and its records and settle everything that models of the pool share.

    Raises:
        UserError: If recipe or records cannot be used.
    """
    recipe = read_recipe(config)
    split = load_split(recipe.data)
    unit = recipe.privacy.unit
    target = None if config.target_run is None else open_target(config.target_run, to_mapping(recipe), split)
    both = target is not None
    canaries = make_canaries_of(config, split)
    data = compose(split, canaries, num_audit=config.num_audit, seed=config.seed, unit=unit, both_sides=both)
    nominal = data.nominal(unit=unit)
    if target is not None and nominal != target.num_units:
        raise SafeSynthError(
            f"target_run={config.target_run}: {target.num_units} {unit}s, and {nominal} in a shadow model"
        )
    settled = _settled(recipe, split, nominal=nominal, noise=None if target is None else target.noise_multiplier)
    audited = {record.record_id for record in data.audited}
    holdout = without_copies(split.holdout, [canary.text for canary in canaries])
    reference = holdout.select(i for i, held in enumerate(holdout.record_ids) if held not in audited)
    wanted = config.num_population if "model" in config.channels else 0
    population = choose_population(reference, num_population=wanted, seed=config.seed)
    hashed = _data_hash(data, split, holdout, population)
    return AuditPlan(
        config=config,
        recipe=settled,
        data=data,
        reference=reference,
        population=population,
        candidates=candidates_of(config, split),
        target=target,
        label_set=split.train.label_set,
        label_set_is_public=split.train.label_set_is_public,
        shards=tuple(_specs(config, settled, hashed, nominal=nominal, target=target)),
    )


def write_plan(plan: AuditPlan) -> Pool:
    """Write the pool's directory, or bring an earlier plan up to date; finished shards are left as they are.

    Raises:
        ConfigError: If the directory holds something else.
    """
    with RunDirectory.create(plan.config.output_dir, kind="shadow_pool", config={}) as run:
        return _fill(run, plan)


def _fill(run: RunDirectory, plan: AuditPlan) -> Pool:
    config = plan.config
    make_private_directory(run.path)
    write_text(run.path / CONFIG, yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True))
    make_private_directory(run.path / "data")
    pool = Pool(path=run.path, plan=plan.to_json(), shards=plan.shards)
    write_training_file(pool.training_file, plan.data, labels=pool.plan["labels"])
    reference = pa.table({"text": list(plan.reference.texts), "label": list(plan.reference.labels)})
    _write_table(pool.reference_file, reference)
    named = {"record_id": list(plan.population.record_ids)}
    named |= {"text": list(plan.population.texts), "label": list(plan.population.labels)}
    _write_table(pool.population_file, pa.table({name: pa.array(cells, pa.string()) for name, cells in named.items()}))
    kinds, fresh = ([pair[place] for pair in plan.candidates] for place in (0, 1))
    _write_table(
        pool.candidates_file, pa.table({"kind": pa.array(kinds, pa.string()), "text": pa.array(fresh, pa.string())})
    )
    _write_table(run.path / RECORDS, _records_table(plan))
    units = {record.record_id: record.unit_id for record in plan.data.audited}
    bits = assignment_table(
        units,
        seed=config.seed,
        num_models=config.num_models,
        with_target=config.with_target,
        trained=None if plan.target is None else plan.target.units_of(plan.data.audited),
    )
    _write_table(run.path / ASSIGNMENT, bits)
    _drop_other_audit(pool)
    write_json(run.path / PLAN, pool.plan, private=True)
    run.finish(recipe_hash=pool.plan["recipe_hash"], data_hash=pool.plan["data_hash"], parents=_parents(config))
    (run.path / MANIFEST).chmod(0o600)
    return pool


def _drop_other_audit(pool: Pool) -> None:
    """An audit of an earlier plan is about other models; it must not be taken for one of this plan."""
    path = pool.path / PLAN
    try:
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError:
        earlier = None
    if earlier != json.loads(json.dumps(pool.plan)):
        (pool.path / AUDIT).unlink(missing_ok=True)


def _parents(config: PoolConfig) -> list[dict[str, str]]:
    """Return the finetune run whose recipe is audited, where it is one: a report shows the audit beside its claim."""
    path = Path(config.recipe)
    if not (path / MANIFEST).is_file() or config.overrides:
        return []
    run = RunDirectory.open(path, kind="finetune")
    return [{"kind": "finetune", "run_id": str(run.manifest["run_id"]), "path": str(run.path)}]


def read_recipe(config: PoolConfig) -> "FinetuneConfig":
    """Return the training config that the pool's recipe names.

    Raises:
        ConfigError: If it is neither a recipe nor a finetune run, or asks for what a pool cannot repeat.
    """
    from safesynthdp.training.config import FinetuneConfig

    path = Path(config.recipe)
    path = path / CONFIG if path.is_dir() else path
    changes = [*config.overrides, "--output_dir=unused", "--dry_run=false"]
    recipe = parse(FinetuneConfig, ["--config", str(path), *changes], prog="safesynthdp attack plan")
    if recipe.data.membership_file is not None:
        raise ConfigError("data.membership_file is set in the recipe; a pool draws the members itself")
    if recipe.data.holdout_percent == 0 and "text" in config.channels:
        sys.stderr.write("note: data.holdout_percent=0 leaves no reference corpus for the text channel\n")
    return recipe


def _settled(recipe: "FinetuneConfig", split: Split, *, nominal: int, noise: float | None) -> dict[str, Any]:
    """Return the recipe with its noise searched once, at the nominal size, for all models, or taken from a target."""
    from safesynthdp.training.plan import make_plan as plan_privacy

    privacy = plan_privacy(recipe, split.train, num_units=nominal, noise_multiplier=noise)
    values = to_mapping(recipe)
    if privacy.mechanism is not None:
        values["privacy"]["noise_multiplier"] = privacy.mechanism.noise_multiplier
    del values["output_dir"], values["dry_run"]
    labels = list(split.train.label_set) if split.train.label_set_is_public else None
    values["data"] |= {"max_records": None, "nominal_num_records": nominal, "labels": labels}
    return values


def _data_hash(data: PoolData, split: Split, holdout: Records, population: Records) -> str:
    """Return the hash of all that the tables of a shard depend on, the recipe apart."""
    reference, scored = (hashlib.sha256("\n".join(r.record_ids).encode()).hexdigest() for r in (holdout, population))
    labels = list(split.train.label_set)
    return canonical_hash([data.fingerprint, reference, labels, split.train.label_set_is_public, scored])


def _specs(
    config: PoolConfig,
    recipe: Mapping[str, Any],
    data_hash: str,
    *,
    nominal: int,
    target: ExistingRun | None,
) -> list[ShardSpec]:
    sample = to_mapping(config.sample)
    seed = recipe["privacy"]["unsafe_seed"]
    specs = list[ShardSpec]()
    for model_id in range(config.num_models + config.with_target):
        is_target = model_id == config.num_models
        own = 2**20 if is_target else model_id  # the target's seeds do not hang on how many models there are
        specs.append(
            ShardSpec(
                model_id=model_id,
                pair=None if is_target else model_id // 2,
                seed=config.seed,
                recipe_hash=recipe_hash(recipe),
                data_hash=data_hash,
                nominal_num_records=nominal,
                unsafe_seed=None if seed is None else derived_seed("train", seed, own),
                channels=tuple(config.channels),
                sample=sample | {"seed": derived_seed("sample", sample["seed"], own)}
                if "text" in config.channels
                else None,
                run_id=target.run_id if is_target and target is not None else None,
            )
        )
    return specs


def _records_table(plan: AuditPlan) -> pa.Table:
    """Return the table ``records``: every record of the pool, without its text."""
    records = plan.data.records
    texts = [record.text for record in records]
    return pa.table(
        {
            "record_id": [record.record_id for record in records],
            "role": [record.role for record in records],
            "unit_id": [record.unit_id for record in records],
            "text_hash": [hashlib.sha256(text.encode()).hexdigest() for text in texts],
            "num_tokens": pa.array(_num_tokens(plan, texts), pa.int64()),
            "zlib_bytes": pa.array([int(size) for size in zlib_lengths(texts)], pa.int64()),
            "group_size": pa.array([record.group_size for record in records], pa.int64()),
            "canary_kind": pa.array([record.canary_kind for record in records], pa.string()),
        }
    )


def _num_tokens(plan: AuditPlan, texts: Sequence[str]) -> list[int]:
    from safesynthdp.model_config import FromScratchConfig, ModelConfig
    from safesynthdp.models import load_tokenizer

    values = dict(plan.recipe["model"])
    shape = values.pop("from_scratch", None)
    tokenizer = load_tokenizer(ModelConfig(**values, from_scratch=FromScratchConfig(**shape) if shape else None))
    ids = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [len(tokens) for tokens in ids]


def _write_table(path: Path, table: pa.Table) -> None:
    write_atomically(path, lambda target: pq.write_table(table, target), private=True)


def summary(pool: Pool) -> str:
    """Return lines for people: what will be trained."""
    plan = pool.plan
    mode = plan["recipe"]["privacy"]["mode"]
    target = " and a dedicated target" if plan["with_target"] else ""
    target += f" ({plan['target_run']}: no coins, so no bound on epsilon)" if plan.get("target_run") else ""
    return (
        f"{plan['num_models']} models in {plan['num_models'] // 2} pairs{target}; {plan['num_audited']} audited "
        f"records, planned size {plan['nominal_num_records']}; privacy.mode={mode}; recipe {plan['recipe_hash'][:12]}\n"
        f"shards 0 to {len(pool.shards) - 1}; next: safesynthdp attack run --pool {pool.path}\n"
    )
