"""Our engine within Opacus: the same update as Opacus' own per-sample gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from opacus.grad_sample import GradSampleHooks
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM

from safesynthdp.errors import ConfigError, UnsupportedLayer
from safesynthdp.training.opacus_plugin import BookkeepingHooks, BookkeepingPrivacyEngine

CLIP = 0.3


def llama(*, tied: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=41,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=tied,
        )
    )


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))


def loss_of(model: nn.Module, ids: Tensor, reduction: str) -> Tensor:
    logits = model(input_ids=ids).logits[:, :-1]
    losses_B = nn.functional.cross_entropy(logits.mT, ids[:, 1:], reduction="none").mean(dim=1)
    return losses_B.mean() if reduction == "mean" else losses_B.sum()


def updated(
    hooks: Callable[[nn.Module], Any], optimizer_class: type[DPOptimizer], model: nn.Module, reduction: str
) -> list[Tensor]:
    """Two steps of Opacus' optimizer with the same noise; the model's weights afterwards."""
    attached = hooks(model.train())
    optimizer = optimizer_class(
        torch.optim.SGD(model.parameters(), lr=0.5),
        noise_multiplier=0.7,
        max_grad_norm=CLIP,
        expected_batch_size=5,
        loss_reduction=reduction,
        generator=torch.Generator().manual_seed(3),
    )
    for seed in (1, 2):
        ids = torch.randint(41, (5, 9), generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        loss_of(model, ids, reduction).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    attached.cleanup()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_step_of_opacus_optimizer_is_the_same_as_with_its_own_hooks(reduction: str, tied: bool) -> None:
    wanted = updated(lambda m: GradSampleHooks(m, loss_reduction=reduction), DPOptimizer, llama(tied=tied), reduction)
    found = updated(
        lambda m: BookkeepingHooks(m, loss_reduction=reduction, max_grad_norm=CLIP),
        DPOptimizerFastGradientClipping,
        llama(tied=tied),
        reduction,
    )
    for first, second in zip(wanted, found, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_leaves_the_update_as_it_is(use_reentrant: bool) -> None:
    def hooks(model: nn.Module) -> BookkeepingHooks:
        return BookkeepingHooks(model, loss_reduction="sum", max_grad_norm=CLIP)

    checkpointed: Any = llama()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    wanted = updated(hooks, DPOptimizerFastGradientClipping, llama(), "sum")
    found = updated(hooks, DPOptimizerFastGradientClipping, checkpointed, "sum")
    for first, second in zip(wanted, found, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-5, atol=1e-6)


def test_two_backward_passes_add_their_clipped_sums_and_zero_grad_in_between_forgets_the_first() -> None:
    model = classifier().train()
    hooks = BookkeepingHooks(model, loss_reduction="sum", max_grad_norm=CLIP)
    first, second = torch.randn(4, 6), torch.randn(3, 6)

    def grads(*batches: Tensor, forget: bool = False) -> list[Tensor]:
        for parameter in model.parameters():
            parameter.grad = None
        for batch in batches:
            losses = model(batch).square().sum()
            if forget:
                model.zero_grad(set_to_none=False)
            losses.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    one, two = grads(first), grads(second)
    for a, b, c in zip(one, two, grads(first, second), strict=True):
        torch.testing.assert_close(a + b, c)
    for b, c in zip(two, grads(first, second, forget=True), strict=True):
        torch.testing.assert_close(b, c)
    hooks.cleanup()


def test_the_privacy_engine_trains_with_poisson_batches_empty_ones_included_and_counts_them() -> None:
    torch.manual_seed(0)
    model = classifier()
    data = TensorDataset(torch.randn(12, 6), torch.randint(3, (12,)))
    engine = BookkeepingPrivacyEngine(accountant="prv")
    made: Any = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data, batch_size=1),
        noise_multiplier=1.0,
        max_grad_norm=CLIP,
        grad_sample_mode="bookkeeping",
        wrap_model=False,
    )
    hooks, optimizer, loader = made
    before, sizes = [p.detach().clone() for p in model.parameters()], list[int]()
    for _ in range(3):
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y, reduction="sum") / max(len(x), 1)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            sizes.append(len(x))
    assert 0 in sizes
    assert sum(count for _, _, count in engine.accountant.history) == len(sizes)
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    hooks.cleanup()


def test_after_cleanup_the_model_is_an_ordinary_one() -> None:
    model = llama().train()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    BookkeepingHooks(model, max_grad_norm=CLIP).cleanup()
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
    assert not any(hasattr(p, "grad_sample") for p in model.parameters())
    loss_of(model, torch.zeros(2, 4, dtype=torch.int64), "sum").backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in model.parameters())


def test_a_trainable_that_a_backward_pass_misses_is_named_at_the_next_forward_pass() -> None:
    model = classifier().train()
    BookkeepingHooks(model, max_grad_norm=CLIP)
    model(torch.randn(2, 6))
    first: nn.Module = model.get_submodule("0")
    first(torch.randn(2, 6)).sum().backward()
    with pytest.raises(UnsupportedLayer, match="trainable but no record reached it"):
        model(torch.randn(2, 6))


class TakesAnything(nn.Module):
    """A model that is called with whatever holds its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = classifier()

    def forward(self, batch: Any) -> Tensor:
        out: Tensor = self.inner(batch["x"] if isinstance(batch, dict) else batch)
        return out


def test_no_way_around_the_model_leaves_a_gradient_that_nobody_clipped() -> None:
    model, x = TakesAnything().train(), 100 * torch.randn(4, 6)
    hooks = BookkeepingHooks(model, loss_reduction="sum", max_grad_norm=CLIP)
    with pytest.raises(UnsupportedLayer, match="without a tensor"):
        model({"x": x})
    with pytest.raises(UnsupportedLayer, match=r"inner\.0 is called outside"):
        model.inner(x)
    with torch.no_grad():
        assert torch.equal(model.inner(x), model({"x": x}))
    model(x[:0]).sum().backward()  # an empty draw
    model(x).square().sum().backward()
    with pytest.raises(UnsupportedLayer, match=r"inner\.0 is called outside"):
        model.inner(x)
    model.zero_grad()
    model.eval()(x).square().sum().backward()
    released = torch.stack([p.grad.square().sum() for p in model.parameters() if p.grad is not None]).sum().sqrt()
    assert 0 < released <= 4 * CLIP
    hooks.cleanup()
    model.inner(x).sum().backward()


@pytest.mark.parametrize("value", [{"loss_reduction": "max"}, {"batch_first": False}, {"max_grad_norm": 0.0}])
def test_an_argument_without_a_meaning_is_refused_by_its_name(value: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(value))):
        BookkeepingHooks(classifier(), **value)


def test_wrapping_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="wrap_model"):
        BookkeepingPrivacyEngine()._prepare_model(classifier(), grad_sample_mode="bookkeeping", wrap_model=True)
