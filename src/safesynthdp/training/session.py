"""One process's work on one run: load, check, estimate, train, release.

Here: what needs torch. Elsewhere: the plan made before (command.py) and the loop itself (loop.py).
"""

import dataclasses
import hashlib
import json
import os
import platform
import time
import uuid
from collections.abc import Mapping

import torch
from torch import Tensor

from safesynthdp.config import to_mapping
from safesynthdp.models import logits_width, quiet, wants_lora
from safesynthdp.privacy.command import round_up
from safesynthdp.privacy.ledger import Release
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.records import Records
from safesynthdp.runs import RunDirectory, code_digest, commit, versions
from safesynthdp.training.checkpoint import write_checkpoint
from safesynthdp.training.config import FinetuneConfig
from safesynthdp.training.estimate import say_estimate
from safesynthdp.training.histogram import LABELS, settle_labels
from safesynthdp.training.loop import Job, train
from safesynthdp.training.plan import PrivacyPlan
from safesynthdp.training.preparing import Prepared, prepare
from safesynthdp.training.ranks import Ranks
from safesynthdp.training.selfcheck_records import dropout_rates
from safesynthdp.training.spending import Spending
from safesynthdp.training.state import KEYS, drop_state, load_keys, save_keys
from safesynthdp.training.token_counts import settle_tokens
from safesynthdp.training.tracking import Trackers
from safesynthdp.training.units import Units
from safesynthdp.training.word_columns import WordColumns

DROPOUT_NOT_COVERED = (
    "dropout: its masks go by a record's place in a batch and come from a generator of torch, seeded in secret but not "
    "cryptographic; whoever could predict them would see more than one record's share"
)


def run_session(
    config: FinetuneConfig,
    run: RunDirectory,
    records: Records,
    *,
    units: Units,
    plan: PrivacyPlan,
    spending: Spending,
    ranks: Ranks,
) -> None:
    """Train the planned steps in ``run`` and write the release and its price; rank 0 alone writes."""
    began = time.monotonic()
    quiet()
    ready = prepare(config, run, records, plan=plan, ranks=ranks)
    ranks = ready.ranks
    with ranks.together():
        if ranks.is_main or ranks.is_sharded:
            say_estimate(config, run, ready, steps=plan.total_steps - spending.steps)
    if plan.is_private and any(rate > 0 for _, _, rate in dropout_rates(ready.model)):
        spending.plan = dataclasses.replace(plan, not_covered=(*plan.not_covered, DROPOUT_NOT_COVERED))
    with ranks.together():
        columns = _token_columns(config, ready) if plan.counts_tokens and ranks.is_main else None
        run.begin()
        keys = _keys(config, run) if ranks.is_main else None
        if keys is not None:
            spending.record()
            settle_labels(run, records, units=units, plan=plan, keys=keys, spending=spending)
            if columns is not None:
                settle_tokens(
                    run,
                    ready.examples,
                    records.labels,
                    label_set=records.label_set,
                    columns=columns,
                    units=units,
                    plan=plan,
                    keys=keys,
                    spending=spending,
                )
    shared = ranks.share(None if keys is None else keys.to_json())
    job = Job(
        config=config,
        plan=plan,
        run=run,
        model=ready.model,
        engine=ready.engine,
        examples=ready.examples,
        units=units,
        keys=keys or StepKeys.from_json(shared),
        spending=spending,
        pad_token_id=ready.pad_token_id,
        signal=_signal(config, records, ready=ready, ranks=ranks),
        ranks=ranks,
        trackers=_trackers(config, run, plan=plan, is_main=ranks.is_main),
    )
    steps = train(job)
    job.trackers.finish()
    ready.engine.close()
    with ranks.working():
        weights = ranks.shards.released() if ranks.shards else None
    with ranks.together():
        if ranks.is_main:
            release = _release(config, run, ready, spending=spending, weights=weights)
            run.finish(timings={"seconds": round(time.monotonic() - began, 1)}, steps_in_weights=steps)
            drop_state(run.state)
            run.say(f"{_sentence(release, plan, config)} -> {run.path}")


def _trackers(config: FinetuneConfig, run: RunDirectory, *, plan: PrivacyPlan, is_main: bool) -> Trackers:
    """Start the trackers; they are told hyper-parameters, no path and nothing computed from records."""
    sections = {name: to_mapping(config)[name] for name in ("privacy", "train", "lora")}
    sections["privacy"].pop("unsafe_seed")
    facts = {f"{name}.{key}": str(value) for name, values in sections.items() for key, value in values.items()}
    tracking = config.tracking
    if tracking.report_to and tracking.track_private_metrics:
        run.say("warning: tracking.track_private_metrics sends numbers computed from private records to a tracker")
    return Trackers.start(tracking, folder=run.path / "tracking", steps=plan.steps, facts=facts, is_main=is_main)


def _token_columns(config: FinetuneConfig, ready: Prepared) -> WordColumns:
    """Return where tokens are counted, before anything private is read."""
    buckets = config.privacy.token_histogram_word_buckets
    return WordColumns.of(ready.tokenizer, num_tokens=logits_width(ready.model), num_buckets=buckets)


def _keys(config: FinetuneConfig, run: RunDirectory) -> StepKeys:
    """Return the run's keys: from disk if it goes on, otherwise new ones, on disk before they are used."""
    if (run.state / KEYS).is_file() or (run.path / LABELS).is_file():
        return load_keys(run.state)
    seed = config.privacy.unsafe_seed
    keys = StepKeys.fresh() if seed is None else StepKeys.from_unsafe_seed(seed)
    save_keys(run.state, keys)
    return keys


def _signal(config: FinetuneConfig, records: Records, *, ready: Prepared, ranks: Ranks) -> str:
    """Hash all that shapes the sum of a step, so that a replay is known to be the same release.

    Only a CPU adds in the same order every time. On any other device the hash is new in each process: a resumed run
    then takes fresh keys and its lost steps stay counted. So it does on another number of processes.
    """
    values = to_mapping(config)
    for key in ("output_dir", "resume_with_new_segment", "tracking"):
        values.pop(key)
    facts = {
        "config": values,
        "data": records.fingerprint,
        "engine": ready.engine.name,
        "inputs": ready.inputs,
        "is_sharded": "full" if ranks.shards else ranks.is_sharded,
        "device": "cpu" if ranks.device.type == "cpu" else uuid.uuid4().hex,
        "machines": ranks.gather([platform.node(), platform.machine(), os.cpu_count(), torch.get_num_threads()]),
        "versions": versions(),
        "commit": commit(),
        "code": code_digest(),
    }
    hashed = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return str(ranks.share({"signal": hashed})["signal"])


def _release(
    config: FinetuneConfig,
    run: RunDirectory,
    ready: Prepared,
    *,
    spending: Spending,
    weights: Mapping[str, Tensor] | None,
) -> Release:
    """Price first, then write what was priced."""
    release = spending.close()
    write_checkpoint(
        run.path,
        model=ready.model,
        tokenizer=ready.tokenizer,
        config=config.model,
        guarantee=_guarantee(release, config),
        use_lora=wants_lora(config.model, config.lora),
        weights=weights,
    )
    return release


def _guarantee(release: Release, config: FinetuneConfig) -> str:
    if release.epsilon is None:
        return "No formal guarantee: trained without clip and noise."
    seeded = " Seeded: no guarantee against whoever knows the seed." if config.privacy.unsafe_seed is not None else ""
    return (
        f"({round_up(release.epsilon)}, {release.delta:g})-differential privacy per {config.privacy.unit}, "
        f"{config.privacy.adjacency} adjacency.{seeded}"
    )


def _sentence(release: Release, plan: PrivacyPlan, config: FinetuneConfig) -> str:
    if release.epsilon is None:
        return "no formal guarantee"
    spent = f"spent epsilon={round_up(release.epsilon)} at delta={release.delta:g} per {config.privacy.unit}"
    return f"{spent} in {plan.total_steps} steps"
