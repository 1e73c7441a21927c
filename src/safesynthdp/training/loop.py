"""The training loop: charge, draw, clip, noise, update; stop where the plan ends; survive a kill.

Here: the order of events, and what a resumed run may replay. Elsewhere: one step (step.py), the plan (plan.py), files
(state.py). The logical step is the only clock.

Guarantee:
    The ledger on disk counts a step before its records are drawn. A step that ran twice ran with the same masks and
    the same noise on the same sum (one release), or with fresh keys and is counted twice.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from safesynthdp.errors import LedgerMismatch, Preempted, SafeSynthError
from safesynthdp.privacy.randomness import StepKeys, words
from safesynthdp.progress import progress
from safesynthdp.runs import RunDirectory
from safesynthdp.training.clipping import ClippingEngine
from safesynthdp.training.config import FinetuneConfig, TrainConfig
from safesynthdp.training.examples import Example
from safesynthdp.training.full_shards import trained_here
from safesynthdp.training.metrics_log import METRICS, append_line, cut_back
from safesynthdp.training.plan import PrivacyPlan
from safesynthdp.training.ranks import Ranks, digest
from safesynthdp.training.spending import Spending
from safesynthdp.training.state import Clock, FoundState, fill_state, find_state, save_state, state_tensors
from safesynthdp.training.step import StepFacts, add_noise, set_gradients, sum_clipped_gradients, zero_sums
from safesynthdp.training.tracking import Trackers
from safesynthdp.training.units import Units

SHOWS_IN_FLOAT32 = 1e-6  # AdamW moves a weight by about the learning rate; ulp(1) / 2 is 6e-8
ECHO_SECONDS = 1.0  # a launcher passes on the Ctrl-C that its children got from the terminal already


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything the loop works with."""

    config: FinetuneConfig
    plan: PrivacyPlan
    run: RunDirectory
    model: nn.Module
    engine: ClippingEngine
    examples: Sequence[Example]
    units: Units
    keys: StepKeys
    spending: Spending
    pad_token_id: int
    signal: str
    ranks: Ranks = field(default_factory=Ranks)
    trackers: Trackers = field(default_factory=Trackers)


def train(job: Job) -> int:
    """Run the planned steps, or what is left of them, and return how many are in the weights.

    Raises:
        KeyboardInterrupt: After Ctrl-C, once the current step is finished and saved.
        Preempted: The same after SIGTERM.
    """
    ranks = job.ranks
    trainable = trained_here(job.model, ranks)
    optimizer, scheduler = _optimizer(trainable, job.config.train, steps=job.plan.total_steps)
    clock = _start(job, trainable=trainable, optimizer=optimizer, scheduler=scheduler)

    def save(now: Clock) -> None:
        whole = _whole_state(ranks, trainable, optimizer)
        with ranks.together():
            if ranks.is_main:
                save_state(
                    job.run.state,
                    clock=now,
                    trainable=trainable,
                    optimizer=optimizer,
                    scheduler=scheduler,
                    whole=whole,
                )

    save(clock)
    with ranks.together():
        if ranks.is_main:
            cut_back(job.run.path / METRICS, step=clock.step)
    keys = job.keys.derive(clock.incarnation)
    sums = zero_sums(trainable)
    last = job.plan.total_steps - clock.abandoned
    check = _MovesCheck(trainable) if job.plan.mechanism is not None and clock.step == 0 else None
    job.model.train()
    with _interruptible(ranks) as interrupted, _progress(job, done=clock.step) as advance:
        for step in range(clock.step, last):
            began = time.monotonic()
            with ranks.together():
                job.spending.charge(clock.abandoned + step + 1)
            facts = _one_step(job, sums, step=step, keys=keys)
            with ranks.together():
                set_gradients(trainable, sums, divisor=job.config.train.expected_batch_size)
                optimizer.step()
                check = check and check.after(optimizer)
                scheduler.step()
                clock = replace(clock, step=step + 1)
                if ranks.is_main and clock.step % job.config.train.logging_steps == 0:
                    append_line(job.run.path / METRICS, facts, step=clock.step, seconds=time.monotonic() - began)
                    job.trackers.log(facts, step=clock.step, spending=job.spending)
            stop = interrupted()
            if stop or clock.step % job.config.train.save_steps == 0 or clock.step == last:
                save(clock)
            if stop is not None and clock.step < last:
                raise stop
            advance(1)
    return clock.step


def _whole_state(
    ranks: Ranks, trainable: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> Mapping[str, torch.Tensor] | None:
    """See that all ranks train the same thing; where it is sharded, return it whole (on rank 0) for a state."""
    if ranks.shards is None:
        ranks.agree("the trained weights", digest(trainable) if ranks.are_several else "")
        return None
    with ranks.together():
        ranks.shards.check_alias()
    with ranks.working():
        return ranks.shards.whole_tensors(state_tensors(trainable, optimizer))


def _progress(job: Job, *, done: int) -> AbstractContextManager[Callable[[int], None]]:
    """Rank 0 shows it."""
    if job.ranks.is_main:
        total = job.plan.total_steps
        return progress("training", total=total, unit="steps", done=min(done, total))
    return nullcontext(lambda _: None)


class _MovesCheck:
    """After the first step every trainable has moved: the noise alone moves it if the optimizer holds it."""

    def __init__(self, trainable: Mapping[str, nn.Parameter]) -> None:
        self._trainable = trainable
        self._before = {name: parameter.detach().clone() for name, parameter in trainable.items()}

    def after(self, optimizer: torch.optim.Optimizer) -> "_MovesCheck | None":
        """Compare, once the learning rate is large enough to show in float32; None when nothing is left to check.

        Raises:
            SafeSynthError: Naming a trainable that stayed as it was.
        """
        if not any(group["lr"] >= SHOWS_IN_FLOAT32 for group in optimizer.param_groups):
            return self
        for name, parameter in self._trainable.items():
            if parameter.numel() and torch.equal(parameter.detach(), self._before[name]):
                raise SafeSynthError(
                    f"{name} did not move in the first step, though noise was added: the optimizer does not hold it"
                )
        return None


def _one_step(job: Job, sums: dict[str, torch.Tensor], *, step: int, keys: StepKeys) -> StepFacts:
    """Draw, clip, sum, and noise once: steps 2 to 6 of the contract; an empty draw is a step like any other."""
    chosen = job.units.draw(job.plan, step=step, keys=keys)
    facts = sum_clipped_gradients(
        job.model,
        job.engine,
        sums,
        [[job.examples[i] for i in records] for records in chosen],
        per_sample_max_grad_norm=job.plan.mechanism.per_sample_max_grad_norm if job.plan.mechanism else math.inf,
        hardware=job.config.hardware,
        pad_token_id=job.pad_token_id,
        dropout_seed=_dropout_seed(job.config.train.seed, step=step, keys=keys),
        ranks=job.ranks,
    )
    if job.plan.mechanism is not None:
        _noise_once(job, sums, step=step, keys=keys)
    return facts


def _dropout_seed(seed: int, *, step: int, keys: StepKeys) -> int:
    """Return where the dropout of a step begins: ``train.seed`` under a secret key.

    Guarantee:
        Masks go by place in a micro-batch, and one record more shifts the places of others. Secret and alike for every
        place they leave the sum's distribution as if each record had its own; were they known, all would move.
    """
    (word,) = words(keys.sampling, domain=f"dropout/{seed}", step=step, tensor=0, count=1)
    return int(word) >> 1


def _noise_once(job: Job, sums: dict[str, torch.Tensor], *, step: int, keys: StepKeys) -> None:
    """Add the noise of a step to the sum over all ranks.

    Guarantee:
        Every rank adds the same keyed noise to the same total, after the reduction: once, whatever their number. The
        noise of a device differs from one device to another, so rank 0 draws it and sends the noisy sums. Where sums
        are sharded, every rank draws the noise of its own elements alone.
    """
    mechanism, generator = job.plan.mechanism, job.config.privacy.noise_generator
    assert mechanism is not None
    is_sent = generator == "device" and job.ranks.are_several
    with job.ranks.together():
        if job.ranks.is_main or not is_sent:
            offsets = job.ranks.shards.offsets if job.ranks.shards else None
            add_noise(sums, mechanism=mechanism, keys=keys, step=step, generator=generator, offsets=offsets)
    if is_sent:
        job.ranks.spread(sums.values())


def _start(
    job: Job,
    *,
    trainable: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> Clock:
    """Restore what rank 0 finds on its disk, on every rank, and return the clock to go on from.

    Steps that were counted after the newest state are replayed where the replay is bit-identical; otherwise they stay
    counted and the keys are fresh. Where there are none, no noise of a later step was ever drawn: the keys are kept,
    on another number of processes too.
    """
    found = None
    with job.ranks.together():
        if job.ranks.is_main:
            found = find_state(job.run.state)
            if found is None and job.spending.steps:
                raise LedgerMismatch(
                    f"resume: the ledger counts {job.spending.steps} steps and {job.run.state} holds none; start "
                    "another run in a new output_dir"
                )
            _refuse_older_ledger(found, job)
    ranks = job.ranks
    facts = ranks.share({} if found is None else found.facts)
    if not facts:
        return Clock(step=0, incarnation=0, abandoned=0, signal=job.signal)
    clock, used = Clock(**facts["clock"]), int(facts["incarnations_used"])
    tensors = ranks.share_bytes(b"" if found is None else found.tensors)
    with ranks.together():
        cut = ranks.shards.cut if ranks.shards else None
        fill_state(tensors, facts, trainable=trainable, optimizer=optimizer, scheduler=scheduler, cut=cut)
    nothing_lost = job.spending.steps == clock.abandoned + clock.step and not job.spending.opens_part
    if facts["is_newest"] and (clock.signal == job.signal or nothing_lost):
        return replace(clock, signal=job.signal)
    return Clock(
        step=clock.step,
        incarnation=used + 1,
        abandoned=max(job.spending.steps - clock.step, clock.abandoned),
        signal=job.signal,
    )


def _refuse_older_ledger(found: FoundState | None, job: Job) -> None:
    """Refuse a ledger that counts fewer steps than are in the state: it is not the one of this state."""
    clock = Clock(step=0, incarnation=0, abandoned=0, signal="") if found is None else Clock(**found.facts["clock"])
    if job.spending.steps < clock.abandoned + clock.step:
        raise LedgerMismatch(
            f"resume: the ledger counts {job.spending.steps} steps, {job.run.state} {clock.abandoned + clock.step}; "
            "restore the newer ledger.json, or start another run in a new output_dir"
        )


def _optimizer(
    trainable: Mapping[str, nn.Parameter], config: TrainConfig, *, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Plain AdamW and a public schedule: post-processing of the noisy gradient."""
    from transformers import get_scheduler

    optimizer = torch.optim.AdamW(
        trainable.values(),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
    )
    schedule = get_scheduler(
        config.lr_scheduler_type, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=steps
    )
    return optimizer, schedule


@contextmanager
def _interruptible(ranks: Ranks) -> Iterator[Callable[[], BaseException | None]]:
    """Turn the first Ctrl-C or SIGTERM into a request that all ranks answer at the end of the same step.

    Yields a call that returns what to raise, or None. A second Ctrl-C, not the launcher's echo of the first, is
    immediate.
    """
    asked = dict[int, float]()

    def ask(number: int, frame: Any) -> None:
        del frame
        first = asked.setdefault(number, time.monotonic())
        if number == signal.SIGINT and time.monotonic() - first > ECHO_SECONDS:
            raise KeyboardInterrupt

    def answer() -> BaseException | None:
        stops, ends = ranks.total([signal.SIGINT in asked, signal.SIGTERM in asked])
        if ends:
            return ranks.on_main(Preempted("told to end (SIGTERM): the state is saved; the same command goes on"))
        return KeyboardInterrupt() if stops else None

    before = dict[int, Any]()
    if threading.current_thread() is threading.main_thread():  # signals never arrive elsewhere
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield answer
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
