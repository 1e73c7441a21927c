"""Training and sampling of one shard, by the very commands a user would give.

Here: the two config files, in this process or through accelerate's launcher, and the check that the run is the one
the spec names. Elsewhere: training, generation, the order of a shard (shard.py). Several processes a model: the
launcher runs as a child of this task, on a port found for it; each stage refuses another number of processes.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from safesynthdp.attacks.assignment import members
from safesynthdp.attacks.pool import RECORDS, Pool, folder_name, read_table
from safesynthdp.attacks.pool_data import membership_table, training_data_config
from safesynthdp.attacks.pool_target import reopen_target
from safesynthdp.attacks.shard_spec import ShardSpec, numbers_alike, recipe_hash
from safesynthdp.config import config_hash, to_mapping
from safesynthdp.errors import Preempted, SafeSynthError
from safesynthdp.privacy.ledger import Ledger
from safesynthdp.privacy.storage import make_private_directory, write_atomically, write_text
from safesynthdp.records import DataConfig, Records, load_split
from safesynthdp.runs import CONFIG, LEDGER, RunDirectory

_PROMPT_KEYS = ("prompt_template", "label_descriptions", "max_length")
_FREE = ("output_dir", "hardware", "dry_run")


def train(pool: Pool, spec: ShardSpec, folder: Path) -> RunDirectory:
    """Train the model of a spec in ``folder``, or what is left of it, and return the finished run.

    Raises:
        SafeSynthError: If training fails, or the run is not the one the spec names.
    """
    config: dict[str, Any] = {**training_config(pool, spec), "output_dir": str(folder)}
    if spec.pair is not None and _is_other_run(folder, config):
        for other in (folder, folder.with_name("sample")):  # of an earlier place of the pool: only time is lost
            shutil.rmtree(other, ignore_errors=True)
    _stage("finetune", pool, folder, config)
    run = RunDirectory.open(folder, kind="finetune")
    if not run.is_finished:
        raise SafeSynthError(f"{folder}: training ended before its last step")
    found = run.config()
    if recipe_hash(found) != spec.recipe_hash:
        raise SafeSynthError(f"{folder} was trained with another recipe than the pool's; its scores would say nothing")
    if found["data"]["nominal_num_records"] != spec.nominal_num_records:
        raise SafeSynthError(f"{folder} was trained at another nominal size than the pool's")
    if _ids(found["data"]) != _ids(config["data"]):
        raise SafeSynthError(f"{folder} was trained on other members than its coins say")
    return run


def existing_run(pool: Pool, spec: ShardSpec) -> RunDirectory:
    """Return the run that the plan named as its target; nothing is trained.

    Raises:
        SafeSynthError: If another one is there now.
    """
    assert spec.run_id is not None
    return reopen_target(pool.plan["target_run"], run_id=spec.run_id)


def training_config(pool: Pool, spec: ShardSpec) -> dict[str, Any]:
    """Return the training config of a spec: the pool's recipe on its members, at the nominal size."""
    recipe = dict(pool.plan["recipe"])
    data = to_mapping(training_data_config(pool.training_file, labels=pool.plan["labels"], has_users=pool.has_users))
    kept = {key: value for key, value in recipe["data"].items() if key in _PROMPT_KEYS}
    data |= kept | {
        "membership_file": str(_membership_file(pool, spec)),
        "nominal_num_records": spec.nominal_num_records,
    }
    privacy = recipe["privacy"] | {"unsafe_seed": spec.unsafe_seed}
    processes = int(pool.plan["num_processes"])
    hardware = recipe["hardware"] | ({"num_processes": processes} if processes > 1 else {})
    return recipe | {"data": data, "privacy": privacy, "hardware": hardware}


def draw_corpus(pool: Pool, spec: ShardSpec, run: RunDirectory, folder: Path) -> pa.Table:
    """Sample the corpus of a finished run and return it: text, label, record_id."""
    assert spec.sample is not None
    config = spec.sample | {"run": str(run.path), "output_dir": str(folder)}
    _stage("sample", pool, folder, config)
    return read_table(folder / "synthetic.parquet")


def facts_of_run(run: RunDirectory) -> dict[str, Any]:
    """Return what the table ``models`` says of a run: base model, and the numbers of its guarantee."""
    config, ledger = run.config(), Ledger.read(run.path / LEDGER)
    mechanism = ledger.entry("dpsgd").mechanism
    release = next(r for r in ledger.releases if r.artifact == "weights")
    numbers = ("noise_multiplier", "per_sample_max_grad_norm", "sample_rate", "steps")
    return {
        "base_model": config["model"]["model_name_or_path"] or "from_scratch",
        "dp": {
            **{name: mechanism.get(name) for name in numbers},
            "epsilon": release.epsilon,
            "delta": release.delta,
            "adjacency": ledger.adjacency,
            "accountant": release.accountant,
        },
        "expected_batch_size": config["train"]["expected_batch_size"],
    }


def audited_records(pool: Pool) -> Records:
    """Return the audited records of a pool, in the order of the table ``records``.

    Raises:
        SafeSynthError: If the pool's files do not fit one another.
    """
    table = read_table(pool.path / RECORDS, columns=["record_id", "role"]).to_pydict()
    wanted = [i for i, role in zip(table["record_id"], table["role"], strict=True) if role != "base"]
    config = training_data_config(pool.training_file, labels=pool.plan["labels"], has_users=pool.has_users)
    records = load_split(config).train
    place = {record_id: index for index, record_id in enumerate(records.record_ids)}
    if not place.keys() >= set(wanted):
        raise SafeSynthError(f"{pool.training_file} lacks records that {RECORDS} names; plan the pool again")
    return records.select(place[record_id] for record_id in wanted)


def _ids(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the ids of the records that a data section trains on."""
    return load_split(DataConfig(**data)).train.record_ids


def _membership_file(pool: Pool, spec: ShardSpec) -> Path:
    """Write which rows of the training file a model may read; the bits are computed from the rule, not looked up."""
    table = read_table(pool.path / RECORDS, columns=["record_id", "role", "unit_id", "group_size"]).to_pylist()
    audited = [row for row in table if row["role"] != "base"]
    bits = members(spec.seed, spec.model_id, [row["unit_id"] for row in audited], num_models=pool.num_models)
    is_member = {row["record_id"]: bool(bit) for row, bit in zip(audited, bits, strict=True)}
    copies = [(row["record_id"], row["group_size"]) for row in table]
    rows = [(f"{i}-{n}" if n else i, i) for i, size in copies for n in range(size)]
    folder = pool.path / "data" / "members"
    make_private_directory(folder)
    path = folder / f"{folder_name(spec)}.parquet"
    written = membership_table(rows, is_member)
    write_atomically(path, lambda target: pq.write_table(written, target), private=True)
    return path


def _is_other_run(folder: Path, config: Mapping[str, Any]) -> bool:
    if not (folder / CONFIG).is_file():
        return False
    found = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    then, now = (config_hash(numbers_alike(value), leave_out=_FREE) for value in (found, config))
    return then != now


def _stage(name: str, pool: Pool, folder: Path, config: Mapping[str, Any]) -> None:
    """Carry out ``safesynthdp finetune`` or ``sample`` with a config file."""
    path = folder.with_name(f"{name}.yaml")
    write_text(path, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), private=True)
    processes = int(pool.plan["num_processes"])
    if processes > 1:
        _launch(name, path, processes=processes)
    elif name == "finetune":
        from safesynthdp.training.command import main as finetune

        finetune(["--config", str(path)])
    else:
        from safesynthdp.generation.command import main as sample

        sample(["--config", str(path)])


def _launch(name: str, config: Path, *, processes: int) -> None:
    """Run a stage on several processes of this machine; SIGTERM is passed on to them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    where = ["--num_processes", str(processes), "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    command = [sys.executable, *launcher, *where, "--module", "safesynthdp", name, "--config", str(config)]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    child = subprocess.Popen(command, env=environment | _on_cpu())
    told = list[int]()

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        told.append(number)
        child.terminate()

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        code = child.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
        if child.poll() is None:
            child.kill()
    if told:
        raise Preempted(f"{name} was told to end (SIGTERM); the same command goes on")
    if code:
        raise SafeSynthError(f"{name} on {processes} processes ended with code {code}; its own output says why")


def _on_cpu() -> dict[str, str]:
    """Without a GPU the processes talk over the loopback; the launcher does not find out by itself."""
    import torch

    if torch.accelerator.is_available():
        return {}
    return {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
