"""The training loop: charge, draw, clip, noise, update; stop where the plan ends; survive a kill.

Here: the order of events, and what a resumed run may replay. Elsewhere: one step (step.py), the plan (plan.py), files
(state.py). The logical step is the only clock.

Guarantee:
    The ledger on disk counts a step before its records are drawn. A step that ran twice ran with the same masks and
    the same noise on the same sum (one release), or with fresh keys and is counted twice.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from safesynthdp.errors import LedgerMismatch, SafeSynthError
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.progress import progress
from safesynthdp.runs import RunDirectory
from safesynthdp.training.clipping import ClippingEngine, trainable_parameters
from safesynthdp.training.config import FinetuneConfig, TrainConfig
from safesynthdp.training.examples import Example
from safesynthdp.training.plan import PrivacyPlan
from safesynthdp.training.spending import Spending
from safesynthdp.training.state import Clock, load_clock, load_state, save_state
from safesynthdp.training.step import StepFacts, add_noise, set_gradients, sum_clipped_gradients, zero_sums
from safesynthdp.training.units import Units

METRICS = "metrics.jsonl"
SHOWS_IN_FLOAT32 = 1e-6  # AdamW moves a weight by about the learning rate; ulp(1) / 2 is 6e-8
DROPOUT_STRIDE = 1_000_003  # more micro-batches than any step has


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


def train(job: Job) -> int:
    """Run the planned steps, or what is left of them, and return how many are in the weights.

    Raises:
        KeyboardInterrupt: After Ctrl-C, once the current step is finished and saved.
    """
    trainable = trainable_parameters(job.model)
    optimizer, scheduler = _optimizer(trainable, job.config.train, steps=job.plan.steps)
    clock = _start(job)
    if clock.step:
        load_state(job.run.state, trainable=trainable, optimizer=optimizer, scheduler=scheduler)

    def save(now: Clock) -> None:
        save_state(job.run.state, clock=now, trainable=trainable, optimizer=optimizer, scheduler=scheduler)

    save(clock)
    keys = job.keys.derive(clock.incarnation)
    sums = zero_sums(trainable)
    last = job.plan.steps - clock.abandoned
    check = _MovesCheck(trainable) if job.plan.mechanism is not None and clock.step == 0 else None
    job.model.train()
    with _interruptible() as interrupted, progress("training", total=job.plan.steps, unit="steps") as advance:
        advance(min(clock.step, job.plan.steps))
        for step in range(clock.step, last):
            began = time.monotonic()
            job.spending.charge(clock.abandoned + step + 1)
            facts = _one_step(job, sums, step=step, keys=keys)
            set_gradients(trainable, sums, divisor=job.config.train.expected_batch_size)
            optimizer.step()
            check = check and check.after(optimizer)
            scheduler.step()
            clock = replace(clock, step=step + 1)
            if clock.step % job.config.train.logging_steps == 0:
                _log(job.run.path / METRICS, facts, step=clock.step, seconds=time.monotonic() - began)
            if interrupted() or clock.step % job.config.train.save_steps == 0 or clock.step == last:
                save(clock)
            if interrupted():
                raise KeyboardInterrupt
            advance(1)
    return clock.step


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
            if torch.equal(parameter.detach(), self._before[name]):
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
        dropout_seed=(job.config.train.seed * 7919 + step) * DROPOUT_STRIDE % 2**63,
    )
    if job.plan.mechanism is not None:
        generator = job.config.privacy.noise_generator
        add_noise(sums, mechanism=job.plan.mechanism, keys=keys, step=step, generator=generator)
    return facts


def _start(job: Job) -> Clock:
    """Return the clock to go on from; where a replay would not be bit-identical the lost steps stay counted."""
    clock = load_clock(job.run.state)
    if clock is None:
        if job.spending.steps:
            raise LedgerMismatch(
                f"resume: the ledger counts {job.spending.steps} steps and {job.run.state} holds none; start another "
                "run in a new output_dir"
            )
        return Clock(step=0, incarnation=0, abandoned=0, signal=job.signal)
    if clock.signal == job.signal:
        return clock
    return Clock(
        step=clock.step,
        incarnation=clock.incarnation + 1,
        abandoned=max(job.spending.steps - clock.step, clock.abandoned),
        signal=job.signal,
    )


def _optimizer(
    trainable: dict[str, nn.Parameter], config: TrainConfig, *, steps: int
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


def _log(path: Path, facts: StepFacts, *, step: int, seconds: float) -> None:
    """Append one private line: losses and drawn sizes are computed from private records."""
    line: dict[str, Any] = {"step": step, "seconds": round(seconds, 3), **asdict(facts)}
    if not path.exists():
        path.touch(mode=0o600)
    with path.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(line) + "\n")


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a request that is answered at the end of the step; the second one is immediate."""
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        del number, frame
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not the main thread: Ctrl-C never arrives here
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
