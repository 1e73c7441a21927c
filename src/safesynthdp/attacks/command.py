"""``safesynthdp attack``: its actions, and how well a run's training records can be told from others (``score --run``).

Here: the actions, the flags of ``score --run``, the directory that is written, the lines for people. Elsewhere: the
draw and the rows (tier0.py), the forward passes (model_scores.py), shadow pools (pool_command.py), the epsilon bounds
(``safesynthdp audit``).
"""

import json
import os
import sys
import time
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safesynthdp.config import parse, to_mapping
from safesynthdp.errors import ConfigError, SafeSynthError
from safesynthdp.privacy.storage import make_private_directory, write_atomically, write_json
from safesynthdp.runs import LEDGER, RunDirectory

if TYPE_CHECKING:
    from safesynthdp.attacks.model_scores import Scorer
    from safesynthdp.attacks.tier0 import Target
    from safesynthdp.training.ranks import Ranks

SCORES, AUDIT = "scores.parquet", "audit.json"
LEAVE_OUT = ("output_dir", "max_tokens_per_microbatch")
ACTIONS = {
    "plan": "settle who is trained on what: shadow models of one recipe, in complementary pairs",
    "run": "train and score what is left of a pool, here or on a cluster; --shard I does one",
    "status": "which shards of a pool are done, running, missing, failed or stale",
    "score": "--pool P: attacks and audit of a pool; --run R: tier-0 attacks on one run, no shadow model",
}


@dataclass(frozen=True, kw_only=True)
class AttackScoreConfig:
    """Attack one finetune run with signals that need no shadow model. ``--json`` prints the rows as one object."""

    run: str
    """The finetune run that is attacked; its records are read again from where it read them."""
    output_dir: str
    """Where scores.parquet and audit.json go. Private: mode 0700, computed on private data."""
    max_records: int = 1000
    """At most this many members, and as many non-members, drawn at random."""
    alpha: float = 0.05
    """The AUC intervals are at level 1 - alpha."""
    seed: int = 0
    """Of the draw and of the folds of the text baseline; not a secret."""
    max_tokens_per_microbatch: int = 4096
    """Rows x padded length of one forward pass; memory and speed only."""
    json: bool = False
    """Print one JSON object and nothing else on stdout."""

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        if self.max_records < 1:
            raise ConfigError(f"max_records={self.max_records}: give a whole number above 0")
        if self.max_tokens_per_microbatch < 1:
            raise ConfigError(
                f"max_tokens_per_microbatch={self.max_tokens_per_microbatch}: give a whole number above 0"
            )
        if not 0 < self.alpha < 1:
            raise ConfigError(f"alpha={self.alpha} is not an error probability; give a number between 0 and 1")


def main(argv: Sequence[str]) -> None:
    """Do what the first word says."""
    if not argv or argv[0] in ("-h", "--help"):
        if not argv:
            raise ConfigError(f"attack: say what to do; there is {', '.join(ACTIONS)}")
        lines = [f"  {name:<8} {what}" for name, what in ACTIONS.items()]
        sys.stdout.write("\n".join(["usage: safesynthdp attack ACTION [--help] ...", "", *lines, ""]))
        return
    if argv[0] not in ACTIONS:
        raise ConfigError(f"attack {argv[0]}: there is no such action; there is {', '.join(ACTIONS)}")
    if argv[0] != "score":
        from safesynthdp.attacks import pool_command

        {"plan": pool_command.plan_main, "run": pool_command.run_main, "status": pool_command.status_main}[argv[0]](
            argv[1:]
        )
    elif any(word == "--pool" or word.startswith("--pool=") for word in argv):
        from safesynthdp.attacks.pool_scoring import score_main

        score_main(argv[1:])
    else:
        _score_one(argv[1:])


def _score_one(argv: Sequence[str]) -> None:
    """Score one run without shadow models, over as many processes as were launched."""
    config = parse(AttackScoreConfig, argv, prog="safesynthdp attack score")
    run = RunDirectory.open(config.run, kind="finetune")
    if not run.is_finished:
        raise ConfigError(f"run={config.run} is not finished; finish it with the command that began it")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        score_run(config, run)
        return
    from safesynthdp.training.launching import end_ranks, start_ranks

    ranks = start_ranks()
    score_run(config, run, ranks=ranks)
    end_ranks(ranks)


def score_run(
    config: AttackScoreConfig,
    run: RunDirectory,
    *,
    target: "Scorer | None" = None,
    base: "Scorer | None" = None,
    ranks: "Ranks | None" = None,
) -> RunDirectory:
    """Attack ``run``, write scores.parquet and audit.json, and print the rows.

    Args:
        config: The flags.
        run: A finished finetune run.
        target: Scores records with the trained model; the run's own model if not given.
        base: The same with the model before training.
        ranks: The processes that share the forward passes, to the same numbers; rank 0 writes and speaks.

    Raises:
        SafeSynthError: If a signal is not finite, the data is not the run's, or the disk refuses.
    """
    from safesynthdp.attacks.model_scores import run_scorer

    with _open(config, run, ranks) as out:
        if out.is_finished and out.writes:
            sys.stderr.write(f"{out.path} is finished already; nothing to do\n")
        elif not out.is_finished:
            out.begin()
            budget = config.max_tokens_per_microbatch
            _attack(
                config,
                run,
                out,
                target=target or run_scorer(run, untuned=False, max_tokens_per_microbatch=budget, ranks=ranks),
                base=base or run_scorer(run, untuned=True, max_tokens_per_microbatch=budget, ranks=ranks),
                ranks=ranks,
            )
    if not out.writes:
        return out
    rows = _read_rows(out)
    sys.stdout.write(json.dumps({"rows": rows}, allow_nan=False) + "\n" if config.json else _for_people(rows, out))
    return out


def _open(config: AttackScoreConfig, run: RunDirectory, ranks: "Ranks | None") -> RunDirectory:
    """Create or find the directory; beside other processes rank 0 does, and they work along."""
    if ranks is not None and not ranks.is_main:
        with ranks.together():
            pass
        return RunDirectory.follow(config.output_dir, ranks.share(None))
    settings = to_mapping(config) | {"run": str(run.path)}
    del settings["json"]
    with nullcontext() if ranks is None else ranks.together():
        out = RunDirectory.create(config.output_dir, kind="attack", config=settings, parents=[run], leave_out=LEAVE_OUT)
        make_private_directory(out.path)
        if out.manifest["parents"][0]["run_id"] != run.manifest["run_id"]:
            raise ConfigError(f"output_dir={out.path} holds the attack on an earlier run there; give another directory")
    if ranks is not None:
        ranks.share(out.manifest)
    return out


def _attack(
    config: AttackScoreConfig,
    run: RunDirectory,
    out: RunDirectory,
    *,
    target: "Scorer",
    base: "Scorer",
    ranks: "Ranks | None",
) -> None:
    import pyarrow.parquet as pq

    from safesynthdp.attacks import tier0
    from safesynthdp.records import split_of_run

    started = time.monotonic()
    audited = tier0.draw(split_of_run(run), max_records=config.max_records, seed=config.seed)
    scores = tier0.score(audited, target=target, base=base, seed=config.seed)
    with nullcontext() if ranks is None else ranks.together():
        if not out.writes:
            return
        attacked = _target(run)
        rows = tier0.audit_rows(scores, audited.is_member, target=attacked, alpha=config.alpha)
        drawn = {"rule": "draw-v1", "seed": config.seed, "max_records": config.max_records}
        table = tier0.scores_table(scores, audited, target_id=attacked.target_id, parameters=drawn)
        write_atomically(out.path / SCORES, lambda path: pq.write_table(table, path), private=True)
        write_json(out.path / AUDIT, {"version": 1, "rows": rows}, private=True)
        out.finish(
            headline=tier0.headline(scores, audited.is_member, alpha=config.alpha),
            auc={row["attack"]: row["auc"] for row in rows},
            num_members=rows[0]["num_members"],
            num_nonmembers=rows[0]["num_nonmembers"],
            draw=drawn,
            zlib_version=zlib.ZLIB_RUNTIME_VERSION,
            seconds=round(time.monotonic() - started, 1),
        )


def _target(run: RunDirectory) -> "Target":
    """Read what the run claims, and how often it drew a record, from its ledger."""
    from safesynthdp.attacks.tier0 import Target
    from safesynthdp.privacy.ledger import Ledger

    ledger = Ledger.read(run.path / LEDGER)
    weights = [release for release in ledger.releases if release.artifact == "weights"]
    steps = [int(entry.mechanism["steps"]) for entry in ledger.entries if "steps" in entry.mechanism]
    batch, units = run.config()["train"].get("expected_batch_size"), run.manifest["data"].get("num_units")
    return Target(
        target_id=str(run.manifest["run_id"]),
        epsilon_claimed=weights[-1].epsilon if weights else None,
        delta=weights[-1].delta if weights else None,
        num_epochs=sum(steps) * float(batch) / units if steps and batch and units else None,
        unit=ledger.unit,
        is_seeded=any(entry.randomness.get("seeded", True) for entry in ledger.entries),
    )


def _read_rows(out: RunDirectory) -> list[dict[str, Any]]:
    try:
        rows = json.loads((out.path / AUDIT).read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError, KeyError) as error:
        raise SafeSynthError(f"{out.path / AUDIT} is missing or broken; attack again in a new directory") from error
    return list(rows)


def _for_people(rows: Sequence[dict[str, Any]], out: RunDirectory) -> str:
    first = rows[0]
    epochs = "" if first["num_epochs"] is None else f", {first['num_epochs']:.3g} epochs"
    lines = [f"{first['num_members']} members, {first['num_nonmembers']} non-members, 1 target, 0 references{epochs}"]
    for row in rows:
        low, high = row["auc_interval"]
        rates = ", ".join(
            f"{'n/a' if rate is None else f'{rate:.1%}'} at FPR {float(fpr):.1%}"
            for fpr, rate in row["tpr_at_fpr"].items()
        )
        interval = f"[{low:.3f}, {high:.3f}] at alpha {row['alpha']:g}"
        lines.append(f"{row['attack']:<9} channel {row['channel']:<6} AUC {row['auc']:.3f} {interval}; TPR {rates}")
    notes = dict.fromkeys(note for row in rows for note in row["notes"])
    return "\n".join([*lines, *(f"note: {note}" for note in notes), f"written to {out.path}{os.sep}", ""])
