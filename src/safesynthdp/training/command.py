"""``safesynthdp finetune``: records to weights, with a ledger.

Here: the order of the stage, from the parsed config to the release. Elsewhere: each step of it.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from safesynthdp.config import parse, to_mapping
from safesynthdp.errors import ConfigError, SafeSynthError
from safesynthdp.runs import LEDGER, STATE, RunDirectory
from safesynthdp.training.config import FinetuneConfig
from safesynthdp.training.segments import (
    GUARANTEE_VERSION,
    SEGMENT,
    Segment,
    earlier_mechanisms,
    promise_changed,
    refuse_other_guarantee,
    refuse_other_model,
    training_entries,
)

if TYPE_CHECKING:
    from safesynthdp.privacy.mechanisms import DPSGDMechanism
    from safesynthdp.privacy.token_histogram import TokenHistogramMechanism
    from safesynthdp.records import Records
    from safesynthdp.training.plan import PrivacyPlan
    from safesynthdp.training.ranks import Ranks
    from safesynthdp.training.spending import Spending

FREE_TO_DIFFER = ("output_dir", "hardware", "tracking", "dry_run", "resume_with_new_segment")


def main(argv: Sequence[str]) -> None:
    """Train one model and write down what it cost."""
    config = parse(FinetuneConfig, argv, prog="safesynthdp finetune")
    if config.dry_run:
        say_dry_run(config)
    else:
        run_finetune(config)


def run_finetune(config: FinetuneConfig) -> RunDirectory:
    """Train in ``config.output_dir``, or what is left of it, and return the run.

    Raises:
        SafeSynthError: One line for whatever stops it.
    """
    from safesynthdp.training.launching import end_ranks, start_ranks
    from safesynthdp.training.meeting import Patience

    hardware = config.hardware
    patience = Patience(
        meeting=hardware.meeting_seconds, silence=hardware.silence_seconds, waiting=hardware.waiting_seconds
    )
    ranks = start_ranks(num_processes=hardware.num_processes, patience=patience)
    with _open_run(config, ranks) as run:
        if run.is_finished:
            run.say(f"{run.path} is finished already, with this config; nothing to do")
        else:
            try:
                finetune(config, run, ranks)
            except SafeSynthError:
                run.discard()  # a request that must change leaves nothing behind; work that has begun stays
                raise
    end_ranks(ranks)
    return run


def say_dry_run(config: FinetuneConfig) -> None:
    """Say what ``config`` would need; the records are counted, nothing is drawn, spent or written."""
    from safesynthdp.models import quiet, wants_lora
    from safesynthdp.records import load_split
    from safesynthdp.training.dry_run import footprint, lines, meta_model
    from safesynthdp.training.frozen_shards import planned_sharding
    from safesynthdp.training.plan import make_plan
    from safesynthdp.training.units import Units

    quiet()
    records, hardware = load_split(config.data).train, config.hardware
    units = Units.of(records, unit=config.privacy.unit, max_records=config.privacy.max_records_per_user)
    plan = make_plan(config, records, num_units=len(units), noise_multiplier=None)
    length = config.data.max_length
    rows = max(1, min(hardware.max_tokens_per_microbatch // length, hardware.physical_batch_size or len(units)))
    processes = hardware.num_processes or 1
    sharding = planned_sharding(hardware.sharding, use_lora=wants_lora(config.model, config.lora))
    found = footprint(meta_model(config), rows=rows, length=length, num_processes=processes, sharding=sharding)
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
    with ranks.together():
        segment = _segment(config, split.train, run)
    plan, segment = _agreed_plan(config, split.train, run, ranks, num_units=len(units), segment=segment)
    _announce(config, plan, run)
    spending = _agreed_spending(config, split.train, run, ranks, plan=plan, segment=segment)
    with ranks.together():
        if run.is_drifted:
            run.adopt(_values(config), leave_out=FREE_TO_DIFFER, **{SEGMENT: segment.to_json()})
    run.update(
        world_size=ranks.world_size,
        guarantee_version=GUARANTEE_VERSION,
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
    from safesynthdp.training.precision import products
    from safesynthdp.training.session import run_session

    with products(config.hardware.float32_matmul_precision):
        run_session(config, run, split.train, units=units, plan=plan, spending=spending, ranks=ranks)


def _open_run(config: FinetuneConfig, ranks: "Ranks") -> RunDirectory:
    """Rank 0 creates, locks and writes; the others work along."""
    run = None
    with ranks.together():
        if ranks.is_main:
            values = _values(config)
            run = RunDirectory.create(
                config.output_dir,
                kind="finetune",
                config=values,
                leave_out=FREE_TO_DIFFER,
                may_drift=config.resume_with_new_segment,
            )
            if run.is_drifted:
                refuse_other_model(run.config(), values)
    manifest = ranks.share(None if run is None else run.manifest)
    return run or RunDirectory.follow(config.output_dir, manifest)


def _values(config: FinetuneConfig) -> dict[str, Any]:
    """Return the config as written down; that a run went on with another one is said in the manifest."""
    return to_mapping(config) | {"resume_with_new_segment": False}


def _segment(config: FinetuneConfig, records: "Records", run: RunDirectory) -> Segment:
    """Return which part of the run this is: the one that is open, or a new one if the promise changed.

    Raises:
        ConfigError: If the records have other labels than the run released counts of.
    """
    from safesynthdp.privacy.ledger import Ledger

    known = run.manifest.get(SEGMENT)
    if known is not None:
        segment = Segment(number=int(known["number"]), noise_multiplier=known["noise_multiplier"])
    else:
        segment = Segment(noise_multiplier=_first_noise_multiplier(run))
    data = run.manifest.get("data", {})
    are_others = data.get("fingerprint") not in (None, records.fingerprint)
    if config.privacy.mode == "dp":
        are_others |= refuse_other_guarantee(run.manifest, may_differ=config.resume_with_new_segment)
    if config.resume_with_new_segment and run.writes and run.is_resumed and are_others:
        run.is_drifted = True  # the config is the same, the file behind it is not
    if not run.is_drifted:
        return segment
    labels = data.get("label_set")
    if labels is not None and labels != list(records.label_set):
        raise ConfigError("data.labels: a run that goes on keeps its labels; restore them, or start another run")
    is_same = not are_others and not promise_changed(run.config(), _values(config))
    if is_same or config.privacy.mode == "none":
        return segment
    if not (run.path / LEDGER).is_file():
        return Segment()  # nothing was spent
    return Segment(number=len(training_entries(Ledger.read(run.path / LEDGER))) + 1)


def _agreed_plan(
    config: FinetuneConfig, records: "Records", run: RunDirectory, ranks: "Ranks", *, num_units: int, segment: Segment
) -> "tuple[PrivacyPlan, Segment]":
    """Return rank 0's plan on every rank: a search that ends one bit apart would give each rank a noise of its own."""
    from safesynthdp.training.plan import make_plan, same_plan

    plan = None
    with ranks.together():
        if ranks.is_main:
            noise, earlier = segment.noise_multiplier, _earlier(run, segment)
            plan = make_plan(
                config, records, num_units=num_units, noise_multiplier=noise, earlier=earlier, tokens=_tokens(run)
            )
    settled = ranks.share({} if plan is None else _settled(plan) | {"number": segment.number})
    segment = Segment(number=settled.pop("number"), noise_multiplier=settled["noise_multiplier"])
    if plan is None:
        plan = same_plan(config, records, num_units=num_units, **settled)
    ranks.agree("privacy: the plan", [plan.sampler.to_entry(), list(plan.not_covered), segment.number])
    return plan, segment


def _settled(plan: "PrivacyPlan") -> dict[str, Any]:
    """Return what a plan has beyond its config."""
    return {
        "noise_multiplier": plan.sampler.noise_multiplier,
        "steps": plan.steps,
        "steps_before": plan.steps_before,
    }


def _earlier(run: RunDirectory, segment: Segment) -> "tuple[DPSGDMechanism, ...]":
    """Return what the ledger says was spent before a part of the run."""
    from safesynthdp.privacy.ledger import Ledger

    if segment.number == 1:
        return ()
    return earlier_mechanisms(Ledger.read(run.path / LEDGER), segment)


def _tokens(run: RunDirectory) -> "TokenHistogramMechanism | None":
    """Return the token counts that the ledger of a run holds already."""
    from safesynthdp.privacy.ledger import Ledger
    from safesynthdp.privacy.token_histogram import TokenHistogramMechanism
    from safesynthdp.training.spending import TOKEN_HISTOGRAM

    if not (run.path / LEDGER).is_file():
        return None
    ledger = Ledger.read(run.path / LEDGER)
    if not ledger.has(TOKEN_HISTOGRAM):
        return None
    return TokenHistogramMechanism.from_entry(
        {"adjacency": ledger.adjacency, **ledger.entry(TOKEN_HISTOGRAM).mechanism}
    )


def _agreed_spending(
    config: FinetuneConfig,
    records: "Records",
    run: RunDirectory,
    ranks: "Ranks",
    *,
    plan: "PrivacyPlan",
    segment: Segment,
) -> "Spending":
    """Return the ledger of rank 0's disk, and a mirror of its open part on the others."""
    from safesynthdp.training.histogram import LABELS
    from safesynthdp.training.spending import Spending
    from safesynthdp.training.state import LATEST

    data = {
        "fingerprint": records.fingerprint,
        "num_records": plan.num_units,
        "num_records_is_public": config.privacy.num_records_is_public,
    }
    seeded = config.privacy.unsafe_seed is not None
    with ranks.together():
        path = run.path / LEDGER if ranks.is_main else None
        spending = Spending.open(
            path,
            plan=plan,
            privacy=config.privacy,
            data=data,
            seeded=seeded,
            segment=segment,
            has_spent=any((run.path / name).is_file() for name in (f"{STATE}/{LATEST}", LABELS)),
        )
    spending.charge(int(ranks.share({"steps": spending.steps})["steps"]))
    return spending


def _first_noise_multiplier(run: RunDirectory) -> float | None:
    """A run that goes on keeps the noise of its ledger; a new one has none yet."""
    from safesynthdp.privacy.ledger import Ledger

    if not run.writes or not (run.path / LEDGER).is_file():
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
    before = f" after {plan.steps_before} under other settings" if plan.steps_before else ""
    histogram = f", label histogram epsilon={privacy.label_histogram_epsilon:g}" if plan.histogram else ""
    if plan.tokens is not None:
        histogram += f", token histogram noise {plan.tokens.noise_multiplier:.4g}"
    run.say(
        f"plan: {plan.steps} steps{before}, sample rate {mechanism.sample_rate:.4g}, noise multiplier "
        f"{mechanism.noise_multiplier:.4g}, clip {mechanism.per_sample_max_grad_norm:g}{histogram}"
    )
