"""``safesynthdp finetune``: records to weights, with a ledger.

Here: the order of the stage, from the parsed config to the release. Elsewhere: each step of it.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from safesynthdp.config import parse, to_mapping
from safesynthdp.errors import SafeSynthError
from safesynthdp.runs import LEDGER, RunDirectory
from safesynthdp.training.config import FinetuneConfig

if TYPE_CHECKING:
    from safesynthdp.records import Records
    from safesynthdp.training.plan import PrivacyPlan
    from safesynthdp.training.ranks import Ranks
    from safesynthdp.training.spending import Spending


def main(argv: Sequence[str]) -> None:
    """Train one model and write down what it cost."""
    config = parse(FinetuneConfig, argv, prog="safesynthdp finetune")
    if config.dry_run:
        say_dry_run(config)
        return
    from safesynthdp.training.launching import end_ranks, start_ranks

    ranks = start_ranks(num_processes=config.hardware.num_processes)
    run = _open_run(config, ranks)
    if run.is_finished:
        run.say(f"{run.path} is finished already, with this config; nothing to do")
    else:
        try:
            finetune(config, run, ranks)
        except SafeSynthError:
            run.discard()  # a request that must change leaves nothing behind; work that has begun stays
            raise
    end_ranks(ranks)


def say_dry_run(config: FinetuneConfig) -> None:
    """Say what ``config`` would need; the records are counted, nothing is drawn, spent or written."""
    from safesynthdp.records import load_split
    from safesynthdp.training.dry_run import footprint, lines, meta_model
    from safesynthdp.training.plan import make_plan
    from safesynthdp.training.units import Units

    records, hardware = load_split(config.data).train, config.hardware
    units = Units.of(records, unit=config.privacy.unit, max_records=config.privacy.max_records_per_user)
    plan = make_plan(config, records, num_units=len(units), noise_multiplier=None)
    length = config.data.max_length
    rows = max(1, min(hardware.max_tokens_per_microbatch // length, hardware.physical_batch_size or len(units)))
    processes = hardware.num_processes or 1
    is_sharded = hardware.sharding == "frozen_base"
    found = footprint(meta_model(config), rows=rows, length=length, num_processes=processes, is_sharded=is_sharded)
    for line in lines(config, plan, found, rows=rows, length=length, num_processes=processes):
        sys.stdout.write(f"{line}\n")


def finetune(config: FinetuneConfig, run: RunDirectory, ranks: "Ranks") -> None:
    """Run the stage in ``run``: data, plan, model, self-check, steps, release.

    Raises:
        SafeSynthError: One line for whatever stops it; nothing half-written is left behind.
    """
    from safesynthdp.records import load_split
    from safesynthdp.training.units import Units

    with ranks.together(), ranks.first():
        split = load_split(config.data)
        units = Units.of(split.train, unit=config.privacy.unit, max_records=config.privacy.max_records_per_user)
    ranks.agree("data: the records", [split.train.fingerprint, len(units)])
    for warning in split.train.warnings:
        run.say(f"warning: {warning}")
    sizes = f"{len(split.train):,} records to train on, {len(split.holdout):,} held out"
    run.say(f"{sizes}, {len(split.train.label_set)} labels")
    plan = _agreed_plan(config, split.train, run, ranks, num_units=len(units))
    _announce(config, plan, run)
    spending = _agreed_spending(config, split.train, run, ranks, plan=plan)
    run.update(
        world_size=ranks.world_size,
        data={
            "fingerprint": split.train.fingerprint,
            "num_records": len(split.train),
            "num_units": plan.num_units,
            "num_holdout": len(split.holdout),
            "holdout_fingerprint": split.holdout.fingerprint,
            "label_set": list(split.train.label_set),
            "label_set_is_public": split.train.label_set_is_public,
        },
    )
    from safesynthdp.training.session import run_session

    run_session(config, run, split.train, units=units, plan=plan, spending=spending, ranks=ranks)


def _open_run(config: FinetuneConfig, ranks: "Ranks") -> RunDirectory:
    """Rank 0 creates, locks and writes; the others work along."""
    run = None
    with ranks.together():
        if ranks.is_main:
            values = to_mapping(config)
            run = RunDirectory.create(
                config.output_dir,
                kind="finetune",
                config=values,
                leave_out=("output_dir", "hardware", "tracking", "dry_run"),
            )
    manifest = ranks.share(None if run is None else run.manifest)
    return run or RunDirectory.follow(config.output_dir, manifest)


def _agreed_plan(
    config: FinetuneConfig, records: "Records", run: RunDirectory, ranks: "Ranks", *, num_units: int
) -> "PrivacyPlan":
    """Return rank 0's plan on every rank: a search that ends one bit apart would give each rank a noise of its own."""
    from safesynthdp.training.plan import make_plan, same_plan

    plan = None
    with ranks.together():
        if ranks.is_main:
            known = _known_noise_multiplier(run)
            plan = make_plan(config, records, num_units=num_units, noise_multiplier=known)
    found = {} if plan is None else {"noise_multiplier": plan.sampler.noise_multiplier, "steps": plan.steps}
    settled = ranks.share(found)
    if plan is None:
        plan = same_plan(config, records, num_units=num_units, **settled)
    ranks.agree("privacy: the plan", [plan.sampler.to_entry(), list(plan.not_covered)])
    return plan


def _agreed_spending(
    config: FinetuneConfig, records: "Records", run: RunDirectory, ranks: "Ranks", *, plan: "PrivacyPlan"
) -> "Spending":
    """Return the ledger of rank 0's disk, and a mirror of it on the others."""
    from safesynthdp.training.spending import Spending

    data = {
        "fingerprint": records.fingerprint,
        "num_records": plan.num_units,
        "num_records_is_public": config.privacy.num_records_is_public,
    }
    seeded = config.privacy.unsafe_seed is not None
    with ranks.together():
        path = run.path / LEDGER if ranks.is_main else None
        spending = Spending.open(path, plan=plan, privacy=config.privacy, data=data, seeded=seeded)
    spending.charge(int(ranks.share({"steps": spending.steps})["steps"]))
    return spending


def _known_noise_multiplier(run: RunDirectory) -> float | None:
    """A run that goes on keeps the noise of its ledger; a new one has none yet."""
    from safesynthdp.privacy.ledger import Ledger

    if not (run.path / LEDGER).is_file():
        return None
    entry = Ledger.read(run.path / LEDGER).entries[0]
    return float(entry.mechanism["noise_multiplier"]) if entry.kind == "dpsgd" else None


def _announce(config: FinetuneConfig, plan: "PrivacyPlan", run: RunDirectory) -> None:
    """Say what will be spent before anything is."""
    privacy = config.privacy
    if plan.mechanism is None:
        run.say("privacy.mode=none: no clip, no noise, no formal guarantee")
        return
    if privacy.target_delta > 1 / plan.num_units:
        run.say(
            f"warning: privacy.target_delta={privacy.target_delta:g} is above 1 / {plan.num_units}: it allows "
            f"publishing one {privacy.unit} in full; give a smaller one"
        )
    if privacy.unsafe_seed is not None:
        run.say("warning: privacy.unsafe_seed is set: no guarantee against whoever knows the seed")
    mechanism = plan.mechanism
    histogram = f", label histogram epsilon={privacy.label_histogram_epsilon:g}" if plan.histogram else ""
    run.say(
        f"plan: {plan.steps} steps, sample rate {mechanism.sample_rate:.4g}, noise multiplier "
        f"{mechanism.noise_multiplier:.4g}, clip {mechanism.per_sample_max_grad_norm:g}{histogram}"
    )
