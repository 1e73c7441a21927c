"""Uses of a layer that no rule covers are refused by name; an engine leaves nothing behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from safesynthdp.errors import SafeSynthError, UnsupportedLayer
from safesynthdp.training import engines
from safesynthdp.training.bookkeeping import BookkeepingEngine
from safesynthdp.training.clipping import ClippingEngine, trainable_parameters
from safesynthdp.training.examples import collate
from safesynthdp.training.loss import record_losses
from safesynthdp.training.opacus_engines import GhostEngine, HooksEngine
from safesynthdp.training.selfcheck import check_engine

ENGINES = ("bookkeeping", "hooks", "ghost")
ROWS = 4


class TwoLinears(nn.Module):
    """One or two square layers, used as a test wants."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.use = nn.Linear(6, 6).double(), nn.Linear(6, 6).double(), use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self, x)


def clip(model: nn.Module, engine: ClippingEngine, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    sums = {key: torch.zeros_like(p) for key, p in trainable_parameters(model).items()}
    with engine.tape(rows=ROWS) as tape:
        losses_B = model(x).reshape(ROWS, -1).square().sum(dim=1)
        return sums, tape.clip_into(sums, losses_B, per_sample_max_grad_norm=1.0)


def inputs() -> Tensor:
    return torch.randn(ROWS, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def norms_one_by_one(model: nn.Module, x: Tensor) -> Tensor:
    parameters = list(model.parameters())
    rows = [torch.autograd.grad(model(x[i : i + 1]).square().sum(), parameters) for i in range(ROWS)]
    return torch.stack([torch.stack([grad.square().sum() for grad in row]).sum().sqrt() for row in rows])


def twice(model: Any, x: Tensor) -> Tensor:
    return torch.as_tensor(model.second(model.first(model.first(x))))


@pytest.mark.parametrize("engine", [BookkeepingEngine, GhostEngine])
def test_a_layer_that_is_called_twice_is_refused_by_name(engine: Callable[[nn.Module], ClippingEngine]) -> None:
    model = TwoLinears(twice)
    with pytest.raises(UnsupportedLayer, match=r"first.*used twice"):
        clip(model, engine(model), inputs())


def test_a_layer_that_is_called_twice_is_exact_under_hooks() -> None:
    model = TwoLinears(twice)
    _, norms = clip(model, HooksEngine(model), inputs())
    torch.testing.assert_close(norms, norms_one_by_one(model, inputs()), rtol=1e-10, atol=0)


@pytest.mark.parametrize("engine", [BookkeepingEngine, GhostEngine])
def test_a_matrix_shared_by_two_linear_layers_is_refused_by_both_names(
    engine: Callable[[nn.Module], ClippingEngine],
) -> None:
    model = TwoLinears(lambda m, x: m.second(m.first(x).tanh()))
    model.second.weight = model.first.weight
    with pytest.raises(UnsupportedLayer, match=r"first.* and second"):
        engine(model)


def test_a_matrix_shared_by_two_linear_layers_is_exact_under_hooks() -> None:
    model = TwoLinears(lambda m, x: m.second(m.first(x).tanh()))
    model.second.weight = model.first.weight
    _, norms = clip(model, HooksEngine(model), inputs())
    torch.testing.assert_close(norms, norms_one_by_one(model, inputs()), rtol=1e-10, atol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_layer_that_sees_all_tokens_in_one_dimension_is_refused_and_not_clipped_token_by_token(engine: str) -> None:
    def flattened(model: Any, x: Tensor) -> Tensor:
        return torch.as_tensor(model.second(model.first(x).reshape(-1, 6))).view(x.shape)

    model = TwoLinears(flattened)
    with pytest.raises(UnsupportedLayer, match=r"second"):
        clip(model, engines._ENGINES[engine](model), inputs())


def test_a_norm_that_sees_all_tokens_in_one_dimension_or_a_second_input_is_refused_by_name() -> None:
    class GatedRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
            return x * self.weight if gate is None else x * gate * self.weight

    uses: list[tuple[str, Callable[[Any, Tensor], Tensor]]] = [
        ("sees 20 rows", lambda m, x: m(x.reshape(-1, 6)).view(x.shape)),
        ("more than one input", lambda m, x: m(x, x)),
        ("more than one input", lambda m, x: m(x, gate=x)),
    ]
    for named, use in uses:
        norm = GatedRMSNorm()
        engine = BookkeepingEngine(nn.ModuleDict({"norm": norm}))
        use(norm, inputs().float())
        with engine.tape(rows=ROWS), pytest.raises(UnsupportedLayer, match=rf"norm .*{named}"):
            use(norm, inputs().float())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_trainable_that_no_record_reaches_is_refused_by_name(engine: str) -> None:
    model = TwoLinears(lambda m, x: m.first(x))
    with pytest.raises(UnsupportedLayer, match=r"second\.(weight|bias)"):
        clip(model, engines._ENGINES[engine](model), inputs())


def test_a_weight_that_is_read_outside_its_layer_is_refused_by_bookkeeping() -> None:
    model = TwoLinears(lambda m, x: m.second(m.first(x)) * m.first.weight.sum())
    with pytest.raises(UnsupportedLayer, match=r"first\.weight is used outside its own layer"):
        clip(model, BookkeepingEngine(model), inputs())


def test_position_ids_shared_by_the_batch_are_refused_and_not_clipped_as_one_record(build: Any, made_up: Any) -> None:
    for name in ("bookkeeping", "hooks"):
        model = build("gpt2, tied")
        engine = engines._ENGINES[name](model)
        ids = collate(made_up(), pad_token_id=0).input_ids_BT
        sums = {key: torch.zeros_like(p) for key, p in trainable_parameters(model).items()}
        with engine.tape(rows=4) as tape:
            losses_B = model(input_ids=ids).logits.flatten(1).square().sum(dim=1)
            with pytest.raises(UnsupportedLayer, match=r"wpe"):
                tape.clip_into(sums, losses_B, per_sample_max_grad_norm=1.0)


class Twisted(nn.Linear):
    """A Linear by name, another product by its own forward."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as the parent calls it
        return input @ self.weight


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: nn.Conv1d(6, 6, 1), r"layer\.weight \(Conv1d\) has no rule"),
        (lambda: nn.GRU(6, 6), r"layer\.weight_ih_l0 \(GRU\) has no rule"),
        (lambda: nn.Embedding(9, 6, max_norm=1.0), r"layer\.weight \(Embedding\) has no rule"),
        (lambda: nn.Embedding(9, 6, scale_grad_by_freq=True), r"layer\.weight \(Embedding\) has no rule"),
        (lambda: Twisted(6, 6), r"layer\.weight \(Twisted\) has no rule"),
    ],
)
def test_a_layer_without_a_rule_is_refused_when_the_engine_is_attached(
    make: Callable[[], nn.Module], named: str
) -> None:
    model = nn.ModuleDict({"layer": make()})
    with pytest.raises(UnsupportedLayer, match=named):
        BookkeepingEngine(model)


def test_opacus_engines_refuse_a_layernorm_without_bias_by_name() -> None:
    model = nn.Sequential(nn.LayerNorm(6, bias=False))
    for name in ("hooks", "ghost"):
        with pytest.raises(UnsupportedLayer, match=rf"{name} has no rule for 0 \(LayerNorm without a bias\)"):
            engines._ENGINES[name](model)


def test_a_padding_id_that_an_opacus_engine_would_train_is_caught_by_the_start_up_check(build: Any) -> None:
    model = build("gpt2, untied", dtype=torch.float32)
    model.get_input_embeddings().padding_idx = 0
    for name in ("hooks", "ghost"):
        engine = engines._ENGINES[name](model)
        with pytest.raises(UnsupportedLayer):
            check_engine(model, engine, vocab_size=41, pad_token_id=0)
        engine.close()
    engine = BookkeepingEngine(model)
    check_engine(model, engine, vocab_size=41, pad_token_id=0)


def test_a_second_tape_within_the_first_is_refused_and_a_failed_one_leaves_none_open() -> None:
    model = TwoLinears(lambda m, x: m.second(m.first(x)))
    engine = BookkeepingEngine(model)
    with engine.tape(rows=ROWS), pytest.raises(SafeSynthError, match="within another"), engine.tape(rows=ROWS):
        pass
    with pytest.raises(RuntimeError, match="interrupted"), engine.tape(rows=ROWS):
        raise RuntimeError("interrupted")
    clip(model, engine, inputs())


@pytest.mark.parametrize("engine", ENGINES)
def test_outside_a_tape_passes_are_ordinary_and_inside_stray_ones_leave_nothing(engine: str) -> None:
    model = TwoLinears(lambda m, x: m.second(m.first(x)))
    wanted = norms_one_by_one(model, inputs())
    attached = engines._ENGINES[engine](model)
    model(inputs()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad()
    with torch.no_grad():
        model(inputs())
    for _ in range(2):
        _, norms = clip(model, attached, inputs())
        torch.testing.assert_close(norms, wanted, rtol=1e-10, atol=0)
    with attached.tape(rows=ROWS), torch.no_grad():
        model(inputs())
    _, norms = clip(model, attached, inputs())
    torch.testing.assert_close(norms, wanted, rtol=1e-10, atol=0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["gpt2, untied", "llama, lora all-linear"])
def test_attaching_and_detaching_leaves_the_model_as_it_was_and_may_be_repeated(
    build: Any, made_up: Any, run_engine: Any, assert_equal: Any, name: str, engine: str
) -> None:
    model, records = build(name), made_up()
    before = inside(model)
    first = run_engine(model, engine, records, 0.5)
    assert inside(model) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    other = "bookkeeping" if engine != "bookkeeping" else "hooks"
    run_engine(model, other, records, 0.5)
    assert_equal(run_engine(model, engine, records, 0.5), first, tolerance=1e-12)


def inside(model: nn.Module) -> dict[str, Any]:
    """Return what hangs on modules and parameters: attributes, hooks, replaced methods."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if key not in ("_parameters", "_modules", "_buffers")}
        found[path] = sorted(own), [len(value) for key, value in sorted(own.items()) if key.endswith("_hooks")]
    found |= {f"{name}.": sorted(vars(parameter)) for name, parameter in model.named_parameters()}
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_saved_while_an_engine_is_attached_is_the_model_alone(
    build: Any, made_up: Any, tmp_path: Path, engine: str
) -> None:
    model, records = build("llama", dtype=torch.float32), made_up()
    names = set(model.state_dict())
    attached = engines._ENGINES[engine](model)
    sums = {key: torch.zeros_like(p) for key, p in trainable_parameters(model).items()}
    with attached.tape(rows=4) as tape:
        tape.clip_into(sums, record_losses(model, collate(records, pad_token_id=0)), per_sample_max_grad_norm=1.0)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as saved:
        assert set(saved.keys()) == names
