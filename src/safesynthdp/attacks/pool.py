"""A pool on disk: its plan, its shards, and which of them are done.

Here: paths, reading the plan, the state of each shard. Elsewhere: making the plan (pool_plan.py), carrying out a shard
(shard.py), driving many (driver.py). The manifest of a shard is the truth: a shard is done when its manifest is there,
its spec is the planned one and every file has the hash the manifest names.

    plan.json  records.parquet  assignment.parquet      data/      what models read (private)
    shards/NAME-KEY/  manifest.json and tables          work/      shards that are not done
    target/run  target/sample   the released model      logs/  jobs.json   of drivers
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from safesynthdp.attacks.shard_spec import ShardSpec
from safesynthdp.errors import SafeSynthError, UserError
from safesynthdp.runs import RunDirectory

PLAN, JOBS = "plan.json", "jobs.json"
RECORDS, ASSIGNMENT, MODELS, SIGNALS = "records.parquet", "assignment.parquet", "models.parquet", "signals.parquet"
SHARD_MANIFEST = "manifest.json"
CORPUS = "corpus.parquet"
WEIGHTS_LEDGER, TEXT_LEDGER = "weights_ledger.json", "text_ledger.json"
ShardState = Literal["done", "missing", "damaged"]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A planned pool; reads only."""

    path: Path
    plan: Mapping[str, Any]
    shards: Sequence[ShardSpec]
    """By model id; the dedicated target, if there is one, is the last."""

    @classmethod
    def open(cls, path: str | Path) -> "Pool":
        """Read a pool.

        Raises:
            UserError: If there is none.
            SafeSynthError: If its plan is damaged.
        """
        run = RunDirectory.open(path, kind="shadow_pool")
        if not (run.path / PLAN).is_file():
            raise UserError(f"pool={path} has no {PLAN}; finish `safesynthdp attack plan` with the same output_dir")
        try:
            plan = json.loads((run.path / PLAN).read_text(encoding="utf-8"))
            shards = [ShardSpec.from_json(value) for value in plan["shards"]]
        except (ValueError, KeyError) as error:
            raise SafeSynthError(f"{run.path / PLAN} is damaged; plan the pool again") from error
        return cls(path=run.path, plan=plan, shards=shards)

    @property
    def training_file(self) -> Path:
        """The records of all models."""
        return self.path / "data" / "training.parquet"

    @property
    def reference_file(self) -> Path:
        """Records of the same population that no model is trained on."""
        return self.path / "data" / "reference.parquet"

    @property
    def population_file(self) -> Path:
        """The reference records that every model scores; missing in pools without any."""
        return self.path / "data" / "population.parquet"

    @property
    def candidates_file(self) -> Path:
        """Fresh texts of the canaries' format, for their exposure; missing in pools of an earlier version."""
        return self.path / "data" / "candidates.parquet"

    @property
    def has_users(self) -> bool:
        """Records name their user."""
        return "user" in read_table(self.training_file).column_names

    @property
    def target(self) -> Path:
        """Where the dedicated target's run and sample stay."""
        return self.path / "target"

    @property
    def num_models(self) -> int:
        """Shadow models, without the dedicated target."""
        return int(self.plan["num_models"])

    def shard(self, number: int) -> ShardSpec:
        """Return the shard of a number.

        Raises:
            UserError: If there is none.
        """
        if not 0 <= number < len(self.shards):
            raise UserError(f"shard={number}: this pool has the shards 0 to {len(self.shards) - 1}")
        return self.shards[number]

    def folder(self, spec: ShardSpec) -> Path:
        """Return where a finished shard lies."""
        return self.path / "shards" / folder_name(spec)

    def state_of(self, spec: ShardSpec, *, check_files: bool = True) -> ShardState:
        """Return whether a shard is done.

        Args:
            spec: A planned shard.
            check_files: Hash the files; without, only the manifest is read.
        """
        folder = self.folder(spec)
        if not folder.is_dir():
            return "missing"
        manifest = read_shard_manifest(folder)
        if manifest is None or manifest.get("key") != spec.key:
            return "damaged"
        files = manifest["files"]
        if check_files and any(file_hash(folder / name) != digest for name, digest in files.items()):
            return "damaged"
        return "done"

    def stale(self) -> list[str]:
        """Return the folders under shards/ that no planned shard has: of an earlier plan, or another version."""
        planned = {folder_name(spec) for spec in self.shards}
        folder = self.path / "shards"
        return sorted(p.name for p in folder.iterdir() if p.name not in planned) if folder.is_dir() else []


def folder_name(spec: ShardSpec) -> str:
    """Return the name of a shard's folder: for people, then the key."""
    return f"{spec.name}-{spec.key[:16]}"


def read_shard_manifest(folder: Path) -> dict[str, Any] | None:
    """Return a shard's manifest; None if it is missing or not one."""
    try:
        value = json.loads((folder / SHARD_MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_ours = isinstance(value, dict) and all(isinstance(value.get(name), dict) for name in ("spec", "files", "facts"))
    return value if is_ours else None


def read_table(path: Path, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one of the pool's own tables.

    Raises:
        SafeSynthError: If it is missing or damaged.
    """
    try:
        return pq.read_table(path, columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowException) as error:
        raise SafeSynthError(
            f"{path} is missing or damaged ({type(error).__name__}); restore it, or plan the pool again"
        ) from error


def file_hash(path: Path) -> str | None:
    """Return the SHA-256 of a file; None if it cannot be read."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError:
        return None
