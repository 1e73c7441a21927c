"""``safesynthdp attack plan | run | status``: a pool of shadow models, planned, carried out and looked at.

Here: the flags and the lines for people. Elsewhere: the plan (pool_plan.py), one shard (shard.py), many (driver.py),
scores and audit of a finished pool (pool_scoring.py). ``status`` needs no torch.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from safesynthdp.attacks.jobs import Engine, JobBook, leave_note, note_file
from safesynthdp.attacks.pool import Pool
from safesynthdp.attacks.pool_config import PoolConfig, RunPoolConfig, StatusConfig
from safesynthdp.config import parse
from safesynthdp.errors import SafeSynthError


def plan_main(argv: Sequence[str]) -> None:
    """Plan a pool; nothing is trained."""
    from safesynthdp.attacks.pool_plan import make_plan, summary, write_plan

    config = parse(PoolConfig, argv, prog="safesynthdp attack plan")
    sys.stdout.write(summary(write_plan(make_plan(config))))


def run_main(argv: Sequence[str]) -> None:
    """Carry out one shard in this process, or drive all of them."""
    config = parse(RunPoolConfig, argv, prog="safesynthdp attack run")
    pool = Pool.open(config.pool)
    if config.shard is not None:
        _work(pool, config.shard)
        return
    from safesynthdp.attacks.driver import drive

    drive(pool, config)


def status_main(argv: Sequence[str]) -> None:
    """Say where a pool stands."""
    config = parse(StatusConfig, argv, prog="safesynthdp attack status")
    found = status_of(Pool.open(config.pool))
    sys.stdout.write(json.dumps(found, allow_nan=False) + "\n" if config.json else _for_people(found))


def status_of(pool: Pool) -> dict[str, Any]:
    """Return the shards that are done, running, missing, failed, and the folders that are stale.

    A shard is running if a task of a driver is open, or a worker on this machine holds its lock; failed if its last
    task failed and none is open.
    """
    from safesynthdp.attacks.engine_local import LocalEngine
    from safesynthdp.attacks.engine_slurm import SlurmEngine
    from safesynthdp.attacks.engine_submitit import SubmititLocalEngine, SubmititSlurmEngine

    book = JobBook.open(pool)
    config = RunPoolConfig(pool=str(pool.path))
    kinds = (LocalEngine, SlurmEngine, SubmititLocalEngine, SubmititSlurmEngine)
    engines: list[Engine] = [kind(pool, config) for kind in kinds]
    held = engines[0].find()
    alive = {number for engine in engines for number in _alive(pool, book, engine)}
    found: dict[str, Any] = {name: [] for name in ("done", "running", "missing", "failed")}
    reasons = dict[str, str]()
    for number, spec in enumerate(pool.shards):
        rows = book.attempts.get(spec.key, [])
        if pool.state_of(spec) == "done":
            found["done"].append(number)
        elif number in held or number in alive:
            found["running"].append(number)
        elif rows and rows[-1].state in ("failed", "open"):
            found["failed"].append(number)
            reasons[str(number)] = rows[-1].reason or "gone without its manifest; no driver has looked since"
        else:
            found["missing"].append(number)
    return {
        "num_shards": len(pool.shards),
        **found,
        "stale": pool.stale(),
        "reasons": reasons,
        "attempts": {str(n): len(book.attempts.get(spec.key, [])) for n, spec in enumerate(pool.shards)},
    }


def _alive(pool: Pool, book: JobBook, engine: Engine) -> list[int]:
    """Return the shards with an open task that the engine has not lost; where nobody answers it counts as alive."""
    rows = {number: book.current(spec) for number, spec in enumerate(pool.shards)}
    jobs = {number: row.job for number, row in rows.items() if row is not None and row.engine == engine.name}
    return [number for number, seen in engine.look(jobs).items() if seen.phase in ("alive", "unknown")]


def _work(pool: Pool, number: int) -> None:
    """Do one shard; a failure leaves a note for drivers that see no exit code."""
    from safesynthdp.attacks.shard import run_shard

    spec = pool.shard(number)
    try:
        folder = run_shard(spec, pool)
    except SafeSynthError as error:
        leave_note(pool, spec, error)
        raise
    note_file(pool, spec).unlink(missing_ok=True)
    sys.stdout.write(f"{spec.name} is done -> {folder}\n")


def _for_people(found: dict[str, Any]) -> str:
    lines = [f"{found['num_shards']} shards"]
    for name in ("done", "running", "missing", "failed"):
        numbers = ", ".join(str(number) for number in found[name])
        lines.append(f"{name:<8} {len(found[name])}{f'  ({numbers})' if numbers else ''}")
    lines.append(f"{'stale':<8} {len(found['stale'])}")
    lines += [f"shard {number}: {reason}" for number, reason in found["reasons"].items()]
    return "\n".join([*lines, ""])
