"""One shard of a pool, from its spec to its published tables; killed anywhere, the same call goes on.

Here: lock, order of events, publishing. Elsewhere: training and sampling (shard_stages.py), signals (shard_signals.py),
which shards there are (pool_plan.py).

Guarantee:
    The order is: train, write the tables, delete weights and state, write the manifest, flush, rename. What is under
    shards/ is whole. File locks may not hold across nodes, so nothing rests on them but saving work: of two workers on
    one shard the one that renames first wins, and the other checks the winner's files and drops its own.
"""

import fcntl
import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from safesynthdp.attacks.pool import (
    CORPUS,
    SHARD_MANIFEST,
    SIGNALS,
    TEXT_LEDGER,
    WEIGHTS_LEDGER,
    Pool,
    file_hash,
    folder_name,
)
from safesynthdp.attacks.shard_spec import ShardSpec
from safesynthdp.errors import Preempted, SafeSynthError
from safesynthdp.privacy.storage import (
    disk_error,
    make_private_directory,
    sync_directory,
    write_atomically,
    write_json,
    write_text,
)
from safesynthdp.runs import LEDGER, commit, versions

FACTS, STARTS = "facts.json", "starts.json"
BUSY = "another process works on this shard"


class ShardBusy(Preempted):
    """Another live process holds the shard's lock. Exit code 75: look again later."""


def run_shard(spec: ShardSpec, root: Path | Pool) -> Path:
    """Train one model, score the audited records, sample, publish the tables, and return their folder.

    Args:
        spec: A shard of the pool's plan.
        root: The pool.

    Raises:
        ShardBusy: If another live process works on this shard.
        Preempted: After SIGTERM, with the training state saved.
        SafeSynthError: If training fails, or does not follow the spec.
    """
    pool = root if isinstance(root, Pool) else Pool.open(root)
    done = pool.folder(spec)
    if pool.state_of(spec) == "done":
        return done
    with _own_folder(pool, spec) as work:
        if pool.state_of(spec) == "done":  # while this process waited for its turn
            shutil.rmtree(work, ignore_errors=True)
            return done
        if not (work / FACTS).is_file():
            _count_start(work)
            _make_tables(pool, spec, work)
        _finish(spec, work)
        return _publish(pool, spec, work)


def _make_tables(pool: Pool, spec: ShardSpec, work: Path) -> None:
    """Train, score, sample, score the text; ``facts.json`` says that the tables are whole."""
    from safesynthdp.attacks.shard_signals import shard_signals
    from safesynthdp.attacks.shard_stages import draw_corpus, existing_run, facts_of_run, train

    began = time.monotonic()
    home = pool.target if spec.pair is None else work
    make_private_directory(home)
    run = train(pool, spec, home / "run") if spec.run_id is None else existing_run(pool, spec)
    corpus = draw_corpus(pool, spec, run, home / "sample") if spec.sample is not None else None
    write_private_table(work / SIGNALS, shard_signals(pool, spec, run, corpus))
    write_text(work / WEIGHTS_LEDGER, (run.path / LEDGER).read_text(encoding="utf-8"))
    if corpus is not None:
        write_private_table(work / CORPUS, corpus)
        write_text(work / TEXT_LEDGER, (home / "sample" / LEDGER).read_text(encoding="utf-8"))
    facts = facts_of_run(run) | {
        "recipe_hash": spec.recipe_hash,  # looked at by train, or when the target was planned
        "walltime_s": round(time.monotonic() - began, 2),
        "attempts": _starts(work),
        "peak_memory_gib": _peak_memory_gib(),
        "versions": versions(),
        "commit": commit(),
    }
    write_json(work / FACTS, facts, private=True)


def _finish(spec: ShardSpec, work: Path) -> None:
    """Delete what may not stay, then write the manifest over what does."""
    for name in ("run", "sample"):
        shutil.rmtree(work / name, ignore_errors=True)
        if (work / name).exists():
            raise SafeSynthError(f"{work / name} cannot be deleted; weights of shadow models must not stay: remove it")
    facts = json.loads((work / FACTS).read_text(encoding="utf-8"))
    facts["weights_deleted"] = spec.pair is not None  # the target's weights are the release
    for path in (work / STARTS, *work.glob("*.yaml")):
        path.unlink(missing_ok=True)
    kept = [path for path in sorted(work.iterdir()) if path.name not in (FACTS, SHARD_MANIFEST)]
    files = {path.name: file_hash(path) for path in kept}
    write_json(work / SHARD_MANIFEST, {"key": spec.key, "spec": spec.to_json(), "files": files, "facts": facts})
    (work / FACTS).unlink(missing_ok=True)
    sync_directory(work)


def _publish(pool: Pool, spec: ShardSpec, work: Path) -> Path:
    """Move the finished folder to its place, once; the loser of two checks the winner."""
    done = pool.folder(spec)
    make_private_directory(done.parent)
    for _ in range(2):
        try:
            work.rename(done)
        except OSError as error:
            if not done.is_dir():
                raise disk_error(done, error) from error
            if pool.state_of(spec) == "done":
                shutil.rmtree(work, ignore_errors=True)
                return done
            aside = work.with_name(f"{work.name}.damaged-{os.getpid()}")
            done.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            sync_directory(done.parent)
            return done
    raise SafeSynthError(f"{done} is in the way and not this shard's; remove it and run the same command again")


@contextmanager
def _own_folder(pool: Pool, spec: ShardSpec) -> Iterator[Path]:
    """Lock and yield the folder this host works in; what another host began and left is taken over by rename.

    A process on that host that is still alive, where locks do not reach across nodes, finds its folder gone and ends.
    """
    work = pool.path / "work"
    make_private_directory(work)
    mine = work / f"{folder_name(spec)}@{platform.node()}"
    lock = _lock(mine.with_name(f"{mine.name}.lock"))
    try:
        others = [p for p in work.glob(f"{folder_name(spec)}@*") if p.is_dir() and p != mine]
        for other in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
            foreign = _lock(other.with_name(f"{other.name}.lock"))
            if not mine.exists():
                other.rename(mine)
            else:
                shutil.rmtree(other, ignore_errors=True)
            foreign.close()
        make_private_directory(mine)
        yield mine
    finally:
        lock.close()
    mine.with_name(f"{mine.name}.lock").unlink(missing_ok=True)


def _lock(path: Path, *, tries: int = 5) -> Any:
    """Hold the lock of a folder as long as this process lives; tried again, since a driver may just be looking.

    Raises:
        ShardBusy: If another process holds it.
    """
    try:
        handle = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise disk_error(path, error) from error
    for left in reversed(range(tries)):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if not left:
                handle.close()
                raise ShardBusy(f"{BUSY} ({path.name}); it goes on by itself") from error
            time.sleep(0.2)
    return handle


def _count_start(work: Path) -> None:
    write_json(work / STARTS, {"starts": _starts(work) + 1}, private=True)


def _starts(work: Path) -> int:
    """Return how often this shard was begun here."""
    try:
        return int(json.loads((work / STARTS).read_text(encoding="utf-8"))["starts"])
    except (OSError, ValueError, KeyError):
        return 0


def write_private_table(path: Path, table: pa.Table) -> None:
    """Write a parquet file, whole or not at all, readable by the owner alone."""
    write_atomically(path, lambda target: pq.write_table(table, target), private=True)


def _peak_memory_gib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**30 if sys.platform == "darwin" else 2**20), 3)


def lock_is_held(path: Path) -> bool:
    """Return whether a live process holds this lock, as far as locks reach."""
    if not path.is_file():
        return False
    try:
        _lock(path, tries=1).close()
    except ShardBusy:
        return True
    return False
