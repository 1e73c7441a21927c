"""What the self-test of the engine runs: settings in which a leak is known, correct runs, and broken ones.

Here: the list of cases, and how one repetition of a case becomes scores of members and non-members. Elsewhere: the
trainers (canary_trainer.py, broken_trainers.py), what is concluded (selftest_engine.py). Shapes: P coordinates, T
steps.

A setting is where a defect shows in one score a canary. Each has its own correct run, so that what rejects a broken one
is the defect and not the setting.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safesynthdp.attacks import broken_trainers as broken
from safesynthdp.attacks.canary_trainer import CanaryTrainer, EngineOf, Updates, World
from safesynthdp.attacks.metrics import Scores
from safesynthdp.privacy.randomness import StepKeys, derive_key, seed_key, words
from safesynthdp.training.bookkeeping import BookkeepingEngine
from safesynthdp.training.opacus_engines import GhostEngine, HooksEngine

NOISE_MULTIPLIER = 2 / 0.92493
"""With 4 steps of all records, mu = .92493: epsilon 4 at delta 1e-5."""
BASE_RECORDS, RUNS = 20, 400
ENGINES: dict[str, EngineOf] = {"hooks": HooksEngine, "ghost": GhostEngine, "bookkeeping": BookkeepingEngine}
DEFAULT_ENGINE = "bookkeeping"


def total(updates_TP: Updates) -> Scores:
    """Score a canary by the sum of its coordinate's updates."""
    scores: Scores = updates_TP.sum(axis=0)
    return scores


def spread(updates_TP: Updates) -> Scores:
    """Score a canary by the standard deviation of its coordinate over the steps."""
    scores: Scores = updates_TP.std(axis=0)
    return scores


def at_known_step(updates_TP: Updates) -> Scores:
    """Score canary i by its coordinate in step i mod T, where ``ShuffledBatches`` has it."""
    columns = np.arange(updates_TP.shape[1])
    return updates_TP[columns % len(updates_TP), columns]


def stillness_of_idle(updates_TP: Updates) -> Scores:
    """Score the one canary of a run by minus the spread of the coordinates that no record touches."""
    return np.array([-updates_TP[:, BASE_RECORDS + 1 :].std()])


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where a leak shows."""

    what: str
    """For people: how much of the data a step draws, and the score."""
    world: World
    """What is trained on, how, and the score."""
    is_one_canary_a_run: bool = False
    """True: every score is a run of its own, over base records and one canary. False: all canaries share a run."""


EVERY_STEP = Setting(
    what="every step; sum",
    world=World(num_records=1000, expected_batch_size=1000, steps=4, noise_multiplier=NOISE_MULTIPLIER, score=total),
)
EVERY_OTHER_STEP = Setting(
    what="half; spread over steps",
    world=World(num_records=1000, expected_batch_size=500, steps=4, noise_multiplier=NOISE_MULTIPLIER, score=spread),
)
TEN_BATCHES = Setting(
    what="a tenth; at a known step",
    world=World(num_records=4000, expected_batch_size=400, steps=10, noise_multiplier=1.0, score=at_known_step),
)
IDLE_COORDINATES = Setting(
    what=f"{RUNS} runs; idle coordinates",
    world=World(
        num_records=BASE_RECORDS + 1,
        expected_batch_size=BASE_RECORDS + 1,
        steps=4,
        noise_multiplier=NOISE_MULTIPLIER,
        score=stillness_of_idle,
        num_idle=1000,
    ),
    is_one_canary_a_run=True,
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One trainer in one setting, and what the test has to say of it."""

    id: str
    """P0 or N1 to N12."""
    what: str
    """The defect, in a few words."""
    trainer: type[CanaryTrainer]
    setting: Setting = EVERY_STEP
    engine: str = DEFAULT_ENGINE
    group_size: int = 1
    """Copies that the claim is for."""
    is_claim_true: bool = False
    """True: the test must accept. False: it must reject."""

    @property
    def label(self) -> str:
        """What tells the randomness of this case from that of all others."""
        return f"{self.id}/{self.engine}/{self.setting.what}/{self.group_size}"


def _correct(setting: Setting, engine: str = DEFAULT_ENGINE) -> Case:
    return Case(
        id="P0", what="none: as shipped", trainer=CanaryTrainer, setting=setting, engine=engine, is_claim_true=True
    )


CASES: tuple[Case, ...] = (
    *(_correct(EVERY_STEP, engine) for engine in ENGINES),
    *(_correct(setting) for setting in (EVERY_OTHER_STEP, TEN_BATCHES, IDLE_COORDINATES)),
    Case(id="N1", what="no noise", trainer=broken.NoNoise),
    Case(id="N2", what="no clip", trainer=broken.NoClip),
    Case(id="N3", what="a tenth of the noise", trainer=broken.TenthOfTheNoise),
    Case(id="N4", what="half the noise", trainer=broken.HalfTheNoise),
    Case(id="N5", what="same noise every step", trainer=broken.SameNoiseEveryStep, setting=EVERY_OTHER_STEP),
    Case(id="N6", what="clips the average", trainer=broken.BatchClip),
    Case(id="N7", what="noise per micro-batch", trainer=broken.NoisePerMicroBatch),
    Case(id="N8", what="divides by the drawn number", trainer=broken.RealisedDivisor, setting=IDLE_COORDINATES),
    Case(id="N9", what="batches priced as Poisson", trainer=broken.ShuffledBatches, setting=TEN_BATCHES),
    Case(id="N10", what="rows read one another", trainer=broken.CrossRecordPath),
    Case(id="N11", what="each record 4 times", trainer=broken.RepeatedRecord),
    Case(
        id="N11",
        what="so, claimed for 4 copies",
        trainer=broken.RepeatedRecord,
        group_size=broken.COPIES,
        is_claim_true=True,
    ),
    Case(id="N12", what="uncovered parameters", trainer=broken.UncoveredParameters),
)


def play(case: Case, *, seed: int, repetition: int) -> tuple[Scores, NDArray[np.bool_]]:
    """Return one score a canary, and who was in, by fair coins of their own."""
    keys, coins = _keys(case, seed=seed, repetition=repetition)
    if case.setting.is_one_canary_a_run:
        is_member = _toss(coins, RUNS)
        return _one_canary_a_run(case, is_member, keys), is_member
    is_member = _toss(coins, case.setting.world.num_records)
    trainer = case.trainer(case.setting.world, ENGINES[case.engine], is_present=is_member, keys=keys)
    try:
        return case.setting.world.score(trainer.train()), is_member
    finally:
        trainer.close()


def _one_canary_a_run(case: Case, is_member: NDArray[np.bool_], keys: StepKeys) -> Scores:
    """Train once for each coin. With every record in every step the clipped sum is one of two, found once each."""
    world = case.setting.world
    trainers = list[CanaryTrainer]()
    for canary_is_present in (False, True):
        is_present = np.array([*[True] * BASE_RECORDS, canary_is_present])
        trainer = case.trainer(world, ENGINES[case.engine], is_present=is_present, keys=keys)
        trainer.add_up(trainer.present(0))
        trainers.append(trainer)
    clipped = [{name: total.clone() for name, total in trainer.sums.items()} for trainer in trainers]
    scores = np.empty(len(is_member))
    for run, coin in enumerate(is_member.tolist()):
        trainer = trainers[coin]
        trainer.keys = keys.derive(run)
        updates = np.empty((world.steps, world.num_records + world.num_idle))
        for step in range(world.steps):
            for name, summed in trainer.sums.items():
                summed.copy_(clipped[coin][name])
            trainer.add_noise(step)
            updates[step] = trainer.release(trainer.present(step))
        scores[run] = world.score(updates).item()
    for trainer in trainers:
        trainer.close()
    return scores


def _keys(case: Case, *, seed: int, repetition: int) -> tuple[StepKeys, bytes]:
    """Return the keys of the run and of the coins: no case and no repetition shares any with another."""
    root = derive_key(seed_key(seed), f"selftest/{case.label}/{repetition}")
    sampling, noise, coins = (derive_key(root, name) for name in ("sampling", "noise", "coins"))
    return StepKeys(sampling=sampling, noise=noise, seeded=True), coins


def _toss(key: bytes, count: int) -> NDArray[np.bool_]:
    """Return fair, independent coins."""
    drawn = words(key, domain="selftest/coins", step=0, tensor=0, count=count)
    return (drawn & np.uint64(1)).astype(np.bool_)
