"""Which engine a run gets, what the run says of it, and the checks of the loop around it."""

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import nn

from safesynthdp.errors import ConfigError, SafeSynthError, UnsupportedLayer
from safesynthdp.privacy.mechanisms import DPSGDMechanism
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.training import engines
from safesynthdp.training.clipping import PlainEngine
from safesynthdp.training.config import PrivacyConfig
from safesynthdp.training.engines import choose_engine
from safesynthdp.training.loop import _MovesCheck
from safesynthdp.training.step import add_noise, set_gradients


class Scale(nn.Module):
    """A layer that nobody has a rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def test_auto_takes_the_single_pass_where_every_layer_has_a_rule_and_says_why() -> None:
    chosen = choose_engine(nn.Sequential(nn.Linear(4, 4)), clipping_engine="auto", rows=8)
    assert chosen.engine.name == "bookkeeping"
    assert "every trainable layer has a rule" in chosen.reason


def test_auto_falls_back_on_hooks_and_names_the_layer_without_a_rule() -> None:
    chosen = choose_engine(nn.Sequential(nn.Linear(4, 4), Scale()), clipping_engine="auto", rows=8)
    assert chosen.engine.name == "hooks"
    assert "1.factor" in chosen.reason


def test_auto_refuses_when_hooks_would_not_fit_and_says_how_much_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_free_bytes", lambda _: 1000)
    with pytest.raises(UnsupportedLayer, match=r"1\.factor.*8 rows need.*GiB"):
        choose_engine(nn.Sequential(nn.Linear(4, 4), Scale()), clipping_engine="auto", rows=8)


def test_a_named_engine_is_never_exchanged_for_another_one() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Scale())
    with pytest.raises(UnsupportedLayer, match=r"1\.factor.*no rule"):
        choose_engine(model, clipping_engine="bookkeeping", rows=8)
    for name in ("hooks", "ghost"):
        chosen = choose_engine(model, clipping_engine=name, rows=8)
        assert chosen.engine.name == name
        chosen.engine.close()


def test_ghost_is_refused_at_the_start_for_users_with_several_records() -> None:
    with pytest.raises(UnsupportedLayer, match="max_records_per_user=2"):
        choose_engine(nn.Linear(4, 4), clipping_engine="ghost", rows=8, rows_per_unit=2)


def test_without_privacy_there_is_nothing_to_clip_with() -> None:
    assert isinstance(choose_engine(nn.Linear(2, 2), clipping_engine="hooks", rows=1, dp=False).engine, PlainEngine)


def test_a_trainable_that_the_optimizer_does_not_hold_is_named_after_the_first_step() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    check = _MovesCheck(dict(model.named_parameters()))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with pytest.raises(SafeSynthError, match=r"1\.weight did not move"):
        check.after(optimizer)


def test_the_movement_check_waits_for_a_learning_rate_that_can_move_anything() -> None:
    model = nn.Linear(3, 3)
    check, optimizer = _MovesCheck(dict(model.named_parameters())), torch.optim.SGD(model.parameters(), lr=0.0)
    assert check.after(optimizer) is check


def test_a_sum_that_is_not_finite_stops_the_step_before_the_weights_are_touched() -> None:
    model = nn.Linear(2, 2, bias=False)
    sums = {"weight": torch.tensor([[1.0, math.nan], [0.0, 0.0]])}
    with pytest.raises(SafeSynthError, match="weight: the sum"):
        set_gradients(dict(model.named_parameters()), sums, divisor=4)
    assert model.weight.grad is None


def test_device_noise_has_the_same_distribution_and_repeats_only_for_the_same_step_tensor_and_key() -> None:
    mechanism = DPSGDMechanism(
        num_records=100, expected_batch_size=10, noise_multiplier=2.0, steps=3, per_sample_max_grad_norm=0.5
    )
    keys = StepKeys.fresh()

    def drawn(step: int, tensor: str, of: StepKeys) -> torch.Tensor:
        sums = {"a": torch.zeros(50_000), "b": torch.zeros(50_000)}
        add_noise(sums, mechanism=mechanism, keys=of, step=step, generator="device")
        return sums[tensor]

    first: Any = drawn(0, "a", keys)
    assert stats.kstest(first.numpy(), "norm").pvalue > 1e-4  # 2.0 * 0.5 = 1
    assert torch.equal(first, drawn(0, "a", keys))
    for other in (drawn(1, "a", keys), drawn(0, "b", keys), drawn(0, "a", StepKeys.fresh())):
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 0.03


def test_several_records_a_step_need_users() -> None:
    with pytest.raises(ConfigError, match="max_records_per_user=2"):
        PrivacyConfig(target_epsilon=1.0, max_records_per_user=2)
    with pytest.raises(ConfigError, match="max_records_per_user=0"):
        PrivacyConfig(target_epsilon=1.0, unit="user", max_records_per_user=0)
