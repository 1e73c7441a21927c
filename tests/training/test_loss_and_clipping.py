"""The clip step against a loop over single records, in float64 where equality is the point."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from safesynthdp.errors import ConfigError, SafeSynthError, UnsupportedLayer
from safesynthdp.model_config import LoraConfig
from safesynthdp.models import make_trainable
from safesynthdp.training import loss as loss_module
from safesynthdp.training.clipping import CLIP_MARGIN, PlainEngine, clip_factors, trainable_parameters
from safesynthdp.training.examples import Example, collate
from safesynthdp.training.loss import record_losses, target_log_probs
from safesynthdp.training.opacus_engines import HooksEngine, HooksTape
from safesynthdp.training.selfcheck import check_engine

VOCAB = 41
LENGTHS = (5, 11, 8, 3)


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=VOCAB,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(shape)


def llama(*, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=tied,
        )
    )


def llama_with_adapters() -> nn.Module:
    model = make_trainable(llama(), LoraConfig(lora_r=4), seed=1, use_lora=True)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gpt2, tied, with position embeddings": gpt2,
    "llama": llama,
    "llama, tied": lambda: llama(tied=True),
    "llama with adapters": llama_with_adapters,
}


def examples(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in lengths]
    return [Example(input_ids=tuple(row), num_prompt_tokens=2, is_truncated=False) for row in ids]


def loop_over_single_records(
    model: nn.Module, records: list[Example], bound: float
) -> tuple[dict[str, Tensor], Tensor]:
    """Clip each unpadded record's gradient, found by plain autograd, and add."""
    trainable = trainable_parameters(model)
    total = {name: torch.zeros_like(p) for name, p in trainable.items()}
    norms = list[Tensor]()
    for record in records:
        loss = record_losses(model, collate([record], pad_token_id=0))[0]
        grads = torch.autograd.grad(loss, list(trainable.values()))
        norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
        scale = min(1.0, bound * (1 - CLIP_MARGIN) / float(norm))
        for name, grad in zip(trainable, grads, strict=True):
            total[name] += grad * scale
        norms.append(norm)
    return total, torch.stack(norms)


def clip(model: nn.Module, records: list[Example], bound: float, *, pad: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    engine = HooksEngine(model.train())
    sums = {name: torch.zeros_like(p) for name, p in trainable_parameters(model).items()}
    with engine.tape(rows=len(records)) as tape:
        losses_B = record_losses(model, collate(records, pad_token_id=pad))
        norms_B = tape.clip_into(sums, losses_B, per_sample_max_grad_norm=bound)
    engine.close()
    return sums, norms_B


def released(sums: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(total.double().square().sum()) for total in sums.values()))


@pytest.mark.parametrize("name", MODELS)
def test_the_clipped_sum_of_a_padded_batch_equals_a_loop_over_single_records(name: str) -> None:
    records = examples()
    tolerance = 1e-10 if "gpt2" in name else 2e-6  # transformers computes RMSNorm in float32 whatever the model's dtype
    wanted, norms = loop_over_single_records(MODELS[name]().double(), records, bound=0.5)
    found, found_norms = clip(MODELS[name]().double(), records, bound=0.5)
    torch.testing.assert_close(found_norms, norms, rtol=tolerance, atol=0)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_no_single_record_releases_more_than_the_clip(name: str) -> None:
    for bound in (1e-3, 0.1, 1e6):
        for record in examples():
            sums, norms = clip(MODELS[name](), [record], bound)
            assert released(sums) <= bound
            assert released(sums) == pytest.approx(min(float(norms[0]), bound * (1 - CLIP_MARGIN)), rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_adding_one_record_to_a_batch_moves_the_sum_by_at_most_the_clip(name: str) -> None:
    records, bound = examples(), 0.3
    for left_out in range(len(records)):
        whole, _ = clip(MODELS[name](), records, bound)
        without, _ = clip(MODELS[name](), [r for i, r in enumerate(records) if i != left_out], bound)
        assert released({key: whole[key] - without[key] for key in whole}) <= bound * (1 + 1e-5)


@pytest.mark.parametrize("change", ["content", "length", "prompt"])
def test_changing_another_record_leaves_my_loss_and_gradient_bit_identical(change: str) -> None:
    records = examples()
    other = examples(seed=9)[1]
    changed = {
        "content": other,
        "length": Example(input_ids=records[1].input_ids[:9], num_prompt_tokens=2, is_truncated=False),
        "prompt": Example(input_ids=records[1].input_ids, num_prompt_tokens=4, is_truncated=False),
    }[change]
    filler = Example(input_ids=tuple(range(11)), num_prompt_tokens=2, is_truncated=False)  # keeps the padded width

    def mine(second: Example) -> list[Tensor]:
        model = llama().train()
        engine = HooksEngine(model)
        with engine.tape(rows=3):
            losses_B = record_losses(model, collate([records[0], second, filler], pad_token_id=0))
            losses_B.sum().backward()  # type: ignore[no-untyped-call]
        rows: list[Any] = [cast(Any, p).grad_sample[0].clone() for p in model.parameters()]
        engine.close()
        return [losses_B[0].detach(), *rows]

    for before, after in zip(mine(records[1]), mine(changed), strict=True):
        assert torch.equal(before, after)


def test_the_pad_id_inside_a_text_is_text() -> None:
    record = Example(input_ids=(3, 4, 7, 0, 0, 7), num_prompt_tokens=2, is_truncated=False)
    longer = examples()[1]
    alone, _ = clip(llama().double(), [record], 1e9)
    both, _ = clip(llama().double(), [record, longer], 1e9)
    other, _ = clip(llama().double(), [longer], 1e9)
    for key in alone:
        torch.testing.assert_close(both[key], alone[key] + other[key], rtol=1e-5, atol=1e-7)


def test_the_loss_is_a_record_s_own_mean_over_its_own_targets_and_skips_the_prompt() -> None:
    model, records = llama().double(), examples()
    losses_B = record_losses(model, collate(records, pad_token_id=0))
    for loss, record in zip(losses_B, records, strict=True):
        ids = torch.tensor([record.input_ids])
        log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
        own = [log_probs[t - 1, record.input_ids[t]] for t in range(record.num_prompt_tokens, len(record))]
        torch.testing.assert_close(loss, -torch.stack(own).mean(), rtol=1e-6, atol=0)


def test_log_probabilities_stand_under_their_own_tokens() -> None:
    model, records = llama().double(), examples()
    picked_BT = target_log_probs(model, collate(records, pad_token_id=0))
    assert picked_BT.shape == (4, 11)
    for row, record in zip(picked_BT, records, strict=True):
        assert bool((row[: record.num_prompt_tokens] == 0).all())
        assert bool((row[len(record) :] == 0).all())
        assert bool((row[record.num_prompt_tokens : len(record)] < 0).all())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 8e-3)]
)
def test_log_probabilities_that_widen_few_rows_at_a_time_equal_cross_entropy(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients, over cuts that do not divide the rows; no row's bits depend on where the cuts fall."""
    torch.manual_seed(0)
    logits_NV = (4 * torch.randn(11, VOCAB)).to(dtype).requires_grad_()
    targets_N, weights_N = torch.randint(VOCAB, (11,)), torch.randn(11, dtype=loss_module.wide(logits_NV).dtype)
    (expected_N,) = [-nn.functional.cross_entropy(loss_module.wide(logits_NV), targets_N, reduction="none")]
    (expected_NV,) = torch.autograd.grad(expected_N @ weights_N, logits_NV)
    seen = list[Tensor]()
    for rows in (1, 4, 100):
        monkeypatch.setitem(loss_module._AT_ONCE, "cpu", rows * VOCAB)
        found_N = loss_module._PickedLogProbs.apply(logits_NV, targets_N)  # type: ignore[no-untyped-call]
        (found_NV,) = torch.autograd.grad(found_N @ weights_N, logits_NV)
        assert torch.allclose(found_N, expected_N, rtol=0, atol=min(tolerance, 1e-5))
        assert torch.allclose(found_NV, expected_NV, rtol=tolerance, atol=tolerance)
        seen += [found_N.detach().double(), found_NV.double()]
    assert all(torch.equal(seen[i], seen[i % 2]) for i in range(len(seen)))


def test_a_model_that_ignores_logits_to_keep_gives_each_target_its_own_row_s_logits() -> None:
    """It answers with all positions; paired with the wanted ones in order, rows would read one another's."""
    inner = llama()

    class Ignoring(nn.Module):
        def forward(
            self, input_ids: Tensor, position_ids: Tensor, use_cache: bool = False, logits_to_keep: object = 0
        ) -> Any:
            return inner(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)

    batch = collate(examples(), pad_token_id=0)
    assert batch.first_target > 0
    found_BT, expected_BT = target_log_probs(Ignoring(), batch), target_log_probs(inner, batch)
    assert torch.allclose(found_BT, expected_BT, rtol=0, atol=1e-6)


def test_logits_and_targets_of_different_numbers_are_an_error() -> None:
    with pytest.raises(SafeSynthError, match="3 rows of logits for 2 targets"):
        loss_module._PickedLogProbs.apply(torch.zeros(3, VOCAB), torch.zeros(2, dtype=torch.int64))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_record_whose_gradient_is_not_finite_adds_exactly_nothing(poison: float) -> None:
    records = examples()
    model = gpt2().train()
    engine = HooksEngine(model)
    sums = {name: torch.zeros_like(p) for name, p in trainable_parameters(model).items()}
    weights = torch.tensor([1.0, poison, 1.0, 1.0])
    with engine.tape(rows=4) as tape:
        losses_B = record_losses(model, collate(records, pad_token_id=0))
        norms_B = tape.clip_into(sums, losses_B * weights, per_sample_max_grad_norm=0.5)
    engine.close()
    assert norms_B.isnan().tolist() == [False, True, False, False]
    zeroed = gpt2().train()
    engine = HooksEngine(zeroed)
    wanted = {name: torch.zeros_like(p) for name, p in trainable_parameters(zeroed).items()}
    with engine.tape(rows=4) as tape:
        losses_B = record_losses(zeroed, collate(records, pad_token_id=0))
        tape.clip_into(wanted, losses_B * torch.tensor([1.0, 0.0, 1.0, 1.0]), per_sample_max_grad_norm=0.5)
    for key, value in wanted.items():
        assert bool(sums[key].isfinite().all())
        torch.testing.assert_close(sums[key], value)


@given(st.lists(st.floats(0, 1e30) | st.just(math.nan) | st.just(math.inf), min_size=1), st.floats(1e-6, 1e6))
@settings(max_examples=100)
def test_a_clip_factor_never_lets_a_norm_pass_the_bound(norms: list[float], bound: float) -> None:
    norms_B = torch.tensor(norms, dtype=torch.float64)
    factors_B = clip_factors(norms_B, per_sample_max_grad_norm=bound)
    assert bool(factors_B.isfinite().all())
    kept = norms_B.isfinite()
    assert bool(((factors_B * norms_B)[kept] <= bound).all())
    assert bool((factors_B[~kept] == 0).all())
    assert bool((factors_B <= 1).all())


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan])
def test_a_clip_that_bounds_nothing_is_refused(bound: float) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.per_sample_max_grad_norm"):
        clip_factors(torch.ones(2), per_sample_max_grad_norm=bound)


def test_without_a_clip_the_plain_engine_gives_the_same_sum_and_refuses_to_clip() -> None:
    records = examples()
    wanted, _ = clip(gpt2().double(), records, math.inf)
    model = gpt2().double().train()
    engine = PlainEngine(model)
    sums = {name: torch.zeros_like(p) for name, p in trainable_parameters(model).items()}
    losses_B = record_losses(model, collate(records, pad_token_id=0))
    engine.clip_into(sums, losses_B, per_sample_max_grad_norm=math.inf)
    for key, value in wanted.items():
        torch.testing.assert_close(sums[key], value, rtol=1e-9, atol=1e-12)
    with pytest.raises(ConfigError, match="cannot clip"):
        engine.clip_into(sums, record_losses(model, collate(records, pad_token_id=0)), per_sample_max_grad_norm=1.0)


@pytest.mark.parametrize("name", MODELS)
def test_the_start_up_check_passes_a_right_engine_and_leaves_the_weights_alone(name: str) -> None:
    model = MODELS[name]().train()
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    engine = HooksEngine(model)
    check_engine(model, engine, vocab_size=VOCAB, pad_token_id=0)
    for key, parameter in model.named_parameters():
        assert torch.equal(before[key], parameter)
        assert parameter.grad is None


class _ForgetsTheClip(HooksEngine):
    @contextmanager
    def tape(self, *, rows: int, units: int | None = None) -> Iterator[HooksTape]:
        class Forgets(HooksTape):
            def clip_into(self, sums: Any, losses_U: Tensor, *, per_sample_max_grad_norm: float) -> Tensor:
                del per_sample_max_grad_norm
                return super().clip_into(sums, losses_U, per_sample_max_grad_norm=1e9)

        with super().tape(rows=rows, units=units) as right:
            yield Forgets(right.trainable, right.rows, right.units)


class _CouplesRecords(HooksEngine):
    @contextmanager
    def tape(self, *, rows: int, units: int | None = None) -> Iterator[HooksTape]:
        class Couples(HooksTape):
            def clip_into(self, sums: Any, losses_U: Tensor, *, per_sample_max_grad_norm: float) -> Tensor:
                coupled_U = losses_U * losses_U.mean()
                return super().clip_into(sums, coupled_U, per_sample_max_grad_norm=per_sample_max_grad_norm)

        with super().tape(rows=rows, units=units) as right:
            yield Couples(right.trainable, right.rows, right.units)


@pytest.mark.parametrize("broken", [_ForgetsTheClip, _CouplesRecords])
def test_the_start_up_check_catches_a_broken_engine_by_the_name_of_a_parameter(broken: type[HooksEngine]) -> None:
    model = llama_with_adapters().train()
    with pytest.raises(UnsupportedLayer, match="lora_"):
        check_engine(model, broken(model), vocab_size=VOCAB, pad_token_id=0)


def test_the_start_up_check_names_a_trainable_that_no_record_reaches() -> None:
    model = llama()
    model.unused = nn.Linear(3, 3)
    with pytest.raises(UnsupportedLayer, match=r"unused\.weight"):
        check_engine(model.train(), HooksEngine(model), vocab_size=VOCAB, pad_token_id=0)
