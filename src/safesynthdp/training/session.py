"""One process's work on one run: load, check, estimate, train, release.

Here: what needs torch. Elsewhere: the plan made before (command.py) and the loop itself (loop.py).
"""

import dataclasses
import hashlib
import json
import os
import platform
import statistics
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from safesynthdp.config import to_mapping
from safesynthdp.errors import ConfigError
from safesynthdp.models import (
    DEFAULT_TEMPLATE,
    PromptTemplate,
    load_base_model,
    load_tokenizer,
    make_trainable,
    quiet,
    token_id,
    wants_lora,
)
from safesynthdp.privacy.command import round_up
from safesynthdp.privacy.ledger import Release
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.progress import duration
from safesynthdp.records import Records
from safesynthdp.runs import RunDirectory, commit, versions
from safesynthdp.training.bookkeeping import BookkeepingEngine
from safesynthdp.training.checkpoint import write_checkpoint
from safesynthdp.training.clipping import ClippingEngine, trainable_parameters
from safesynthdp.training.config import FinetuneConfig
from safesynthdp.training.engines import Chosen, choose_engine
from safesynthdp.training.examples import Example, encode
from safesynthdp.training.frozen_shards import Sharding, shard_frozen, wanted_sharding
from safesynthdp.training.full_shards import shard_everything, with_shards
from safesynthdp.training.histogram import LABELS, settle_labels
from safesynthdp.training.loop import Job, train
from safesynthdp.training.plan import PrivacyPlan
from safesynthdp.training.ranks import Ranks, digest
from safesynthdp.training.selfcheck import check_engine, check_ranks, seconds_per_token
from safesynthdp.training.spending import Spending
from safesynthdp.training.state import KEYS, drop_state, load_keys, save_keys
from safesynthdp.training.tracking import Trackers
from safesynthdp.training.units import Units

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FROZEN_SAMPLE = 4096  # elements of each frozen tensor that are compared: another revision differs in most of them


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What the steps need of this process, checked."""

    model: nn.Module
    engine: ClippingEngine
    tokenizer: "PreTrainedTokenizerBase"
    examples: Sequence[Example]
    pad_token_id: int
    ranks: Ranks


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
    ready = _prepare(config, run, records, plan=plan, ranks=ranks)
    ranks = ready.ranks
    with ranks.together():
        if ranks.is_main or ranks.is_sharded:
            _say_estimate(config, run, ready, steps=plan.total_steps - spending.steps)
    with ranks.together():
        run.begin()
        keys = _keys(config, run) if ranks.is_main else None
        if keys is not None:
            settle_labels(run, records, units=units, plan=plan, keys=keys, spending=spending)
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
        signal=_signal(config, records, engine=ready.engine, ranks=ranks),
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


def _prepare(
    config: FinetuneConfig, run: RunDirectory, records: Records, *, plan: PrivacyPlan, ranks: Ranks
) -> Prepared:
    """Load, share out, and check the engine on this very model before anything private is touched."""
    device = ranks.device
    if config.privacy.noise_generator == "device" and device.type == "cpu":
        raise ConfigError("privacy.noise_generator=device: the model is on the CPU, where it is weaker; use keyed")
    with ranks.together(), ranks.first():
        tokenizer = load_tokenizer(config.model)  # fetches and converts a builtin model
    with ranks.together():
        template = PromptTemplate(text=config.data.prompt_template or DEFAULT_TEMPLATE)
        examples = encode(
            records.texts, records.labels, tokenizer=tokenizer, template=template, max_length=config.data.max_length
        )
        use_lora = wants_lora(config.model, config.lora)
        sharding = wanted_sharding(config.hardware.sharding, ranks, use_lora=use_lora)
        dp = plan.mechanism is not None
        model, chosen = _model_and_engine(config, examples, device=device, dp=dp, sharding=sharding)
    engine = chosen.engine
    truncated = sum(example.is_truncated for example in examples)
    if truncated:
        run.say(f"{truncated:,} records are longer than data.max_length={config.data.max_length} tokens and are cut")
    _agree_on_everything(ranks, model, examples, engine=engine)
    ranks = _shard(model, engine, ranks, sharding=sharding, checkpointing=config.hardware.gradient_checkpointing)
    if sharding != "none":
        what = "the frozen base is" if sharding == "frozen_base" else "weights, sums and moments are"
        run.say(f"{what} sharded over {ranks.world_size} processes")
    pad_token_id = token_id(tokenizer.pad_token_id or 0)
    checked = _check(model, engine, ranks=ranks, pad_token_id=pad_token_id, dp=dp)
    parameters = sum(p.numel() for p in trainable_parameters(model).values())
    run.say(f"engine {engine.name} ({chosen.reason}): {checked}; {parameters:,} trainable parameters")
    run.update(
        engine=engine.name,
        engine_reason=chosen.reason,
        num_trainable=parameters,
        num_truncated=truncated,
        device=str(device),
        is_sharded=ranks.is_sharded,
        sharding=sharding,
    )
    return Prepared(
        model=model,
        engine=engine,
        tokenizer=tokenizer,
        examples=examples,
        pad_token_id=pad_token_id,
        ranks=ranks,
    )


def _shard(model: nn.Module, engine: ClippingEngine, ranks: Ranks, *, sharding: Sharding, checkpointing: bool) -> Ranks:
    """Shard the model as asked and return the ranks as they work from here on."""
    if sharding == "none":
        return ranks
    with ranks.together():
        if sharding == "frozen_base":
            shard_frozen(model, ranks, engine=engine.name, checkpointing=checkpointing)
            return dataclasses.replace(ranks, is_sharded=True)
        shards = shard_everything(model, ranks, engine=engine.name, checkpointing=checkpointing)
        assert isinstance(engine, BookkeepingEngine)  # shard_everything refused any other
        engine.shard(shards)
    return with_shards(ranks, shards)


def _check(model: nn.Module, engine: ClippingEngine, *, ranks: Ranks, pad_token_id: int, dp: bool) -> str:
    """Run the start-up checks and return what to say of them."""
    said = "gradients are not clipped"
    vocab_size = _vocab_size(model)
    with ranks.together():
        if dp:
            check_engine(model, engine, vocab_size=vocab_size, pad_token_id=pad_token_id, ranks=ranks)
            said = "clipped sums agree with single records"
        if ranks.are_several:
            check_ranks(model, engine, ranks=ranks, vocab_size=vocab_size, pad_token_id=pad_token_id)
            said += f", {ranks.world_size} processes with one"
    return said


def _agree_on_everything(
    ranks: Ranks, model: nn.Module, examples: Sequence[Example], *, engine: ClippingEngine
) -> None:
    """Refuse ranks that would compute different things, and start them all from rank 0's trainables."""
    if not ranks.are_several:
        return
    tokens = hashlib.sha256(str([(e.input_ids, e.num_prompt_tokens) for e in examples]).encode()).hexdigest()
    ranks.agree("the installed code", [versions(), commit()])
    ranks.agree("data: the tokens of the records", tokens)
    ranks.agree("hardware.clipping_engine", engine.name)
    trainable = trainable_parameters(model)
    frozen = {name: p for name, p in model.named_parameters() if name not in trainable}
    ranks.agree("model: the frozen weights", digest(frozen, most=FROZEN_SAMPLE))
    ranks.spread([parameter.data for parameter in trainable.values()])


def _model_and_engine(
    config: FinetuneConfig, examples: Sequence[Example], *, device: torch.device, dp: bool, sharding: Sharding
) -> tuple[nn.Module, Chosen]:
    base = load_base_model(config.model, seed=config.train.seed)
    if sharding != "full":  # else it goes there layer by layer, and only this rank's part stays
        base.to(device)  # type: ignore[arg-type]  # transformers wraps the signature away
    if config.hardware.gradient_checkpointing:
        # Opacus' hooks need the reentrant form, which needs an input that requires a gradient; ours takes either.
        base.gradient_checkpointing_enable({"use_reentrant": True})  # type: ignore[no-untyped-call]
        base.enable_input_require_grads()  # type: ignore[no-untyped-call]
    use_lora = wants_lora(config.model, config.lora)
    model = make_trainable(base, config.lora, seed=config.train.seed, use_lora=use_lora)
    model.train()
    shortest = min((len(example) for example in examples), default=1)
    rows = config.hardware.max_tokens_per_microbatch // shortest
    rows = max(1, min(rows, config.hardware.physical_batch_size or rows, len(examples)))
    most = config.privacy.max_records_per_user
    engine = config.hardware.clipping_engine
    if sharding == "full" and not dp:  # FSDP would average plain gradients
        return model, Chosen(
            engine=BookkeepingEngine(model), reason="privacy.mode=none clips nothing; sums are sharded"
        )
    return model, choose_engine(model, clipping_engine=engine, rows=rows, rows_per_unit=most, dp=dp)


def _keys(config: FinetuneConfig, run: RunDirectory) -> StepKeys:
    """Return the run's keys: from disk if it goes on, otherwise new ones, on disk before they are used."""
    if (run.state / KEYS).is_file() or (run.path / LABELS).is_file():
        return load_keys(run.state)
    seed = config.privacy.unsafe_seed
    keys = StepKeys.fresh() if seed is None else StepKeys.from_unsafe_seed(seed)
    save_keys(run.state, keys)
    return keys


def _signal(config: FinetuneConfig, records: Records, *, engine: ClippingEngine, ranks: Ranks) -> str:
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
        "engine": engine.name,
        "is_sharded": "full" if ranks.shards else ranks.is_sharded,
        "device": "cpu" if ranks.device.type == "cpu" else uuid.uuid4().hex,
        "machines": ranks.gather([platform.node(), platform.machine(), os.cpu_count(), torch.get_num_threads()]),
        "versions": versions(),
        "commit": commit(),
    }
    hashed = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return str(ranks.share({"signal": hashed})["signal"])


def _say_estimate(config: FinetuneConfig, run: RunDirectory, ready: Prepared, *, steps: int) -> None:
    """Time one made-up micro-batch and say how long the planned steps will take."""
    batch = config.train.expected_batch_size
    length = max(8, round(statistics.fmean(len(example) for example in ready.examples)))
    rows = max(1, min(32, batch, config.hardware.max_tokens_per_microbatch // length))
    pace = seconds_per_token(
        ready.model,
        ready.engine,
        rows=rows,
        length=length,
        vocab_size=_vocab_size(ready.model),
        pad_token_id=ready.pad_token_id,
        ranks=ready.ranks,
    )
    seconds = pace * length * batch * max(steps, 0) / ready.ranks.world_size
    run.say(f"about {duration(seconds)} for {steps} steps of {batch} records on average")


def _vocab_size(model: nn.Module) -> int:
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]


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
