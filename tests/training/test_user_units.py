"""User-level privacy: one clipped gradient a user, whatever the number of its records; at most k of them a step."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from safesynthdp.errors import ConfigError, UnsupportedLayer
from safesynthdp.privacy.mechanisms import DPSGDMechanism
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.training import engines
from safesynthdp.training.clipping import CLIP_MARGIN, trainable_parameters
from safesynthdp.training.config import HardwareConfig
from safesynthdp.training.examples import Example, collate
from safesynthdp.training.loss import record_losses
from safesynthdp.training.plan import PrivacyPlan
from safesynthdp.training.step import sum_clipped_gradients
from safesynthdp.training.units import Units

MEMBERS = ((0,), (1, 2, 3), (4, 5), (6, 7, 8, 9, 10), (11,), (12, 13))
LENGTHS = (5, 11, 3, 8, 6, 9, 4, 7, 12, 5, 3, 10, 6, 8)
BOUND = 0.4


def plan(*, expected_batch_size: int = 6) -> PrivacyPlan:
    sampler = DPSGDMechanism(
        num_records=len(MEMBERS),
        expected_batch_size=expected_batch_size,
        noise_multiplier=1.0,
        steps=50,
        per_sample_max_grad_norm=BOUND,
    )
    return PrivacyPlan(sampler=sampler, is_private=True, histogram=None, not_covered=())


def loop_over_users(model: nn.Module, users: Sequence[Sequence[Example]]) -> tuple[dict[str, Tensor], float]:
    """Clip the gradient of each user's mean loss, record by record unpadded, at the median norm; return that too."""
    trainable = trainable_parameters(model)
    singles = list[tuple[Tensor, ...]]()
    for user in users:
        losses = [record_losses(model, collate([record], pad_token_id=0))[0] for record in user]
        singles.append(torch.autograd.grad(torch.stack(losses).mean(), list(trainable.values())))
    norms = [math.sqrt(sum(float(grad.square().sum()) for grad in grads)) for grads in singles]
    bound = sorted(norms)[len(norms) // 2]
    total = {name: torch.zeros_like(p) for name, p in trainable.items()}
    for grads, norm in zip(singles, norms, strict=True):
        for name, grad in zip(trainable, grads, strict=True):
            total[name] += grad * min(1.0, bound * (1 - CLIP_MARGIN) / norm)
    return total, bound


def summed(
    model: nn.Module, engine: str, users: Sequence[Sequence[Example]], bound: float = BOUND, **hardware: Any
) -> Any:
    attached = engines._ENGINES[engine](model)
    sums = {name: torch.zeros_like(p) for name, p in trainable_parameters(model).items()}
    try:
        facts = sum_clipped_gradients(
            model,
            attached,
            sums,
            users,
            per_sample_max_grad_norm=bound,
            hardware=HardwareConfig(**hardware),
            pad_token_id=0,
            dropout_seed=0,
        )
    finally:
        attached.close()
    return sums, facts


def drawn_users(made_up: Any, *, most: int) -> list[list[Example]]:
    """Return the records of every user in one step of a draw that takes all users."""
    units = Units(members=MEMBERS, max_records=most)
    records = made_up(LENGTHS)
    drawn = units.draw(plan(), step=3, keys=StepKeys.from_unsafe_seed(1))
    assert len(drawn) == len(MEMBERS)
    return [[records[i] for i in user] for user in drawn]


@pytest.mark.usefixtures("really_double")
@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("name", ["gpt2, tied", "llama", "llama, lora all-linear"])
@pytest.mark.parametrize("engine", ["bookkeeping", "hooks"])
def test_a_step_over_users_equals_a_loop_over_them(build: Any, made_up: Any, engine: str, name: str, most: int) -> None:
    model, users = build(name), drawn_users(made_up, most=most)
    assert sorted({len(user) for user in users}) == list(range(1, most + 1))
    wanted, bound = loop_over_users(model, users)
    for hardware in ({}, {"physical_batch_size": 1}, {"physical_batch_size": 3}, {"max_tokens_per_microbatch": 30}):
        found, facts = summed(model, engine, users, bound, **hardware)
        assert facts.batch_size == len(users)
        for key, value in wanted.items():
            assert float((found[key] - value).norm()) <= 1e-10 * float(value.norm())


@pytest.mark.parametrize("engine", ["bookkeeping", "hooks"])
def test_one_user_releases_at_most_the_clip_however_many_records_it_has(build: Any, made_up: Any, engine: str) -> None:
    model, records = build("llama", dtype=torch.float32), made_up(LENGTHS)
    for count in (1, 3, 14):
        found, _ = summed(model, engine, [records[:count]])
        released = math.sqrt(sum(float(total.double().square().sum()) for total in found.values()))
        assert BOUND * (1 - 3 * CLIP_MARGIN) <= released <= BOUND


@pytest.mark.parametrize("engine", ["bookkeeping", "hooks"])
def test_a_user_with_one_broken_record_adds_nothing_and_the_others_all_they_have(
    build: Any, made_up: Any, engine: str
) -> None:
    model, users = build("llama", dtype=torch.float32), drawn_users(made_up, most=3)
    model.get_input_embeddings().weight.data[40] = math.nan
    users = [
        [Example(input_ids=tuple(i % 40 for i in r.input_ids), num_prompt_tokens=1, is_truncated=False) for r in user]
        for user in users
    ]
    last = users[1][-1]
    broken = Example(input_ids=(40, *last.input_ids[1:]), num_prompt_tokens=1, is_truncated=False)
    found, facts = summed(model, engine, [users[0], [*users[1][:-1], broken], *users[2:]])
    wanted, _ = summed(model, engine, [users[0], *users[2:]])
    assert facts.num_dropped == 1
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6)


def test_ghost_refuses_users_with_several_records_and_takes_those_with_one(build: Any, made_up: Any) -> None:
    model = build("llama")
    summed(model, "ghost", drawn_users(made_up, most=1))
    with pytest.raises(UnsupportedLayer, match=r"max_records_per_user is above 1; use bookkeeping or hooks"):
        summed(model, "ghost", drawn_users(made_up, most=2))


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_draw_holds_a_user_once_and_at_most_k_distinct_records_of_it(most: int) -> None:
    units, keys = Units(members=MEMBERS, max_records=most), StepKeys.from_unsafe_seed(5)
    owner = {record: user for user, members in enumerate(MEMBERS) for record in members}
    seen = set[int]()
    for step in range(50):
        drawn = units.draw(plan(expected_batch_size=3), step=step, keys=keys)
        users = [{owner[record] for record in chosen} for chosen in drawn]
        assert all(len(user) == 1 for user in users)
        assert len({user.pop() for user in users}) == len(drawn)
        for chosen in drawn:
            assert len(set(chosen)) == len(chosen) == min(most, len(MEMBERS[owner[chosen[0]]]))
            seen.update(chosen)
    assert seen == set(owner), "every record has its turn"


def test_which_records_of_a_user_join_is_keyed_fair_and_changes_from_step_to_step() -> None:
    units, keys = Units(members=((0, 1, 2, 3, 4), (5,)), max_records=2), StepKeys.from_unsafe_seed(5)
    everyone = PrivacyPlan(
        sampler=DPSGDMechanism(
            num_records=2, expected_batch_size=2, noise_multiplier=1.0, steps=9, per_sample_max_grad_norm=1.0
        ),
        is_private=True,
        histogram=None,
        not_covered=(),
    )

    def chosen(of: StepKeys) -> list[tuple[int, ...]]:
        return [units.draw(everyone, step=step, keys=of)[0] for step in range(1000)]

    first = chosen(keys)
    assert first == chosen(StepKeys.from_unsafe_seed(5))
    assert first != chosen(StepKeys.from_unsafe_seed(6))
    counts = np.bincount(np.array(first).ravel(), minlength=5)
    assert np.abs(counts - 400).max() < 5 * math.sqrt(1000 * 0.4 * 0.6)


def test_rows_that_do_not_share_out_evenly_among_users_are_refused(build: Any) -> None:
    for engine in ("bookkeeping", "hooks", "ghost"):
        attached = engines._ENGINES[engine](build("llama"))
        with pytest.raises(ConfigError, match="units=2"), attached.tape(rows=3, units=2):
            pass
