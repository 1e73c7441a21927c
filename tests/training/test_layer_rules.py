"""Layer by layer: the clipped sum of each kind of layer alone, and the uses of a layer that are refused."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm, Gemma3TextScaledWordEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.pytorch_utils import Conv1D

from safesynthdp.training import engines, layer_gradients
from safesynthdp.training.clipping import CLIP_MARGIN, trainable_parameters

ENGINES = ("bookkeeping", "hooks", "ghost")
LENGTHS = (7, 4, 1, 6)
WIDTH = 6

Sums = dict[str, Tensor]

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(WIDTH, 5), (WIDTH,)),
    "Linear without bias": (lambda: nn.Linear(WIDTH, 5, bias=False), (WIDTH,)),
    "Conv1D": (lambda: Conv1D(5, WIDTH), (WIDTH,)),  # type: ignore[no-untyped-call]
    "Embedding": (lambda: nn.Embedding(9, 5), ()),
    "RMSNorm": (lambda: Qwen3RMSNorm(WIDTH), (WIDTH,)),
    "RMSNorm over heads": (lambda: Qwen3RMSNorm(WIDTH), (3, WIDTH)),
    "RMSNorm times 1 + w": (lambda: Gemma3RMSNorm(WIDTH), (WIDTH,)),
    "torch's RMSNorm": (lambda: nn.RMSNorm(WIDTH), (WIDTH,)),
    "torch's RMSNorm over heads": (lambda: nn.RMSNorm([3, WIDTH], eps=1e-5), (3, WIDTH)),
    "LayerNorm": (lambda: nn.LayerNorm(WIDTH), (WIDTH,)),
    "LayerNorm without bias": (lambda: nn.LayerNorm(WIDTH, bias=False), (WIDTH,)),
    "Cohere's LayerNorm": (lambda: CohereLayerNorm(WIDTH), (WIDTH,)),  # type: ignore[no-untyped-call]
    "Cohere's LayerNorm over heads": (lambda: CohereLayerNorm((3, WIDTH)), (3, WIDTH)),  # type: ignore[no-untyped-call]
}


class Alone(nn.Module):
    """One layer, called once."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


def alone(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """Return the layer with random weights, and a batch for it: [B, T, ...], every token used by some record."""
    generator = torch.Generator().manual_seed(1)
    make, features = LAYERS[name]
    model = Alone(make())
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    if not features:
        return model, torch.randint(3, (len(LENGTHS), max(LENGTHS)), generator=generator)  # ids meet again
    x = torch.randn(len(LENGTHS), max(LENGTHS), *features, generator=generator, dtype=torch.float64).to(dtype)
    return model, x


def losses(model: nn.Module, x: Tensor) -> Tensor:
    """Return a loss of each row, [B], from its own tokens alone: the rest is padding."""
    out: Tensor = model(x).flatten(2).tanh().square().sum(dim=2)
    own = torch.arange(x.shape[1]) < torch.tensor(LENGTHS[: len(x)])[:, None]
    return (out * own).sum(dim=1)


def truth(model: nn.Module, x: Tensor, bound: float, rows: Sequence[int] = range(4)) -> tuple[Sums, Tensor]:
    """Clip each row's gradient, found by plain autograd, and add."""
    trainable = trainable_parameters(model)
    grads = [torch.autograd.grad(losses(model, x)[i], list(trainable.values())) for i in rows]
    norms = torch.stack([torch.stack([g.square().sum() for g in row]).sum().sqrt() for row in grads])
    scales = [min(1.0, bound * (1 - CLIP_MARGIN) / max(float(norm), 1e-9)) for norm in norms]
    columns = zip(trainable, zip(*grads, strict=True), strict=True)
    zero = torch.zeros(())
    return {k: sum((g * s for g, s in zip(gs, scales, strict=True)), zero) for k, gs in columns}, norms


def clipped(model: nn.Module, name: str, x: Tensor, bound: float, weights: Tensor | float = 1.0) -> tuple[Sums, Tensor]:
    """Return sums and norms of one batch by the named engine; ``weights`` multiply the losses."""
    engine = engines._ENGINES[name](model)
    sums = {key: torch.zeros_like(p) for key, p in trainable_parameters(model).items()}
    try:
        with engine.tape(rows=len(x)) as tape:
            norms = tape.clip_into(sums, losses(model, x) * weights, per_sample_max_grad_norm=bound)
    finally:
        engine.close()
    return sums, norms


@pytest.mark.usefixtures("really_double")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("engine", "name"),
    [(e, n) for e in ENGINES for n in LAYERS if e == "bookkeeping" or n != "LayerNorm without bias"],
)
def test_a_layer_alone_is_clipped_as_its_records_one_by_one(
    assert_equal: Any, engine: str, name: str, dtype: torch.dtype
) -> None:
    model, x = alone(name, dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    assert_equal(clipped(model, engine, x, bound=2.0), truth(model, x, bound=2.0), tolerance=tolerance)


@pytest.mark.usefixtures("really_double")
@pytest.mark.parametrize("ratio", [0.0, math.inf], ids=["Gram", "formed"])
@pytest.mark.parametrize("name", ["Linear", "Linear without bias", "Conv1D"])
def test_a_matrix_alone_is_exact_by_both_routes(
    assert_equal: Any, monkeypatch: pytest.MonkeyPatch, name: str, ratio: float
) -> None:
    monkeypatch.setattr(layer_gradients, "KEEP_RATIO", ratio)
    model, x = alone(name)
    assert_equal(clipped(model, "bookkeeping", x, bound=2.0), truth(model, x, bound=2.0), tolerance=1e-10)


@pytest.mark.parametrize("engine", ["bookkeeping", "hooks"])
def test_a_matrix_with_one_input_a_record_or_with_several_dimensions_between_is_exact(
    assert_equal: Any, engine: str
) -> None:
    for shape in ((4, WIDTH), (4, 7, 3, WIDTH)):
        model = Alone(nn.Linear(WIDTH, 5).double())
        x = torch.randn(*shape, dtype=torch.float64)
        x = x[:, None] if x.dim() == 2 else x
        assert_equal(clipped(model, engine, x, bound=2.0), truth(model, x, bound=2.0), tolerance=1e-10)


@pytest.mark.parametrize("kind", [nn.Embedding, Gemma3TextScaledWordEmbedding])
def test_a_padding_row_that_torch_does_not_train_is_not_trained_and_not_counted(
    assert_equal: Any, kind: type[nn.Embedding]
) -> None:
    model, ids = Alone(kind(9, 5, padding_idx=0).double()), alone("Embedding")[1]
    assert bool((ids == 0).any())
    nn.init.normal_(model.layer.weight)  # type: ignore[arg-type]
    sums, norms = clipped(model, "bookkeeping", ids, bound=2.0)
    assert_equal((sums, norms), truth(model, ids, bound=2.0), tolerance=1e-7)  # Gemma's factor is float32
    assert not bool(sums["layer.weight"][0].any())


@pytest.mark.parametrize("engine", ["bookkeeping", "hooks"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [name for name in LAYERS if "without" not in name])
def test_a_record_whose_gradient_is_not_finite_adds_exactly_nothing(
    assert_equal: Any, name: str, poison: float, engine: str
) -> None:
    model, x = alone(name, torch.float32)
    weights = torch.tensor([1.0, 1.0, poison, 1.0])
    found, norms = clipped(model, engine, x, 2.0, weights)
    wanted, wanted_norms = truth(model, x, 2.0, rows=(0, 1, 3))
    assert norms.isnan().tolist() == [False, False, True, False]
    assert_equal((found, norms[[0, 1, 3]]), (wanted, wanted_norms), tolerance=1e-5)


@pytest.mark.parametrize("ratio", [0.0, math.inf], ids=["Gram", "formed"])
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "Embedding"])
def test_a_record_whose_inputs_are_not_finite_adds_exactly_nothing_by_either_route(
    assert_equal: Any, monkeypatch: pytest.MonkeyPatch, name: str, ratio: float
) -> None:
    """Zero times NaN is NaN: its inputs must go as well as its gradients."""
    monkeypatch.setattr(layer_gradients, "KEEP_RATIO", ratio)
    model, x = alone(name, torch.float32)
    wanted, wanted_norms = truth(model, x, 2.0, rows=(0, 1, 3))
    x[2] = math.nan
    found, norms = clipped(model, "bookkeeping", x, 2.0)
    assert norms.isnan().tolist() == [False, False, True, False]
    assert_equal((found, norms[[0, 1, 3]]), (wanted, wanted_norms), tolerance=1e-5)


@pytest.mark.parametrize("ratio", [0.0, math.inf], ids=["Gram", "formed"])
def test_a_batch_of_broken_records_alone_adds_nothing(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    monkeypatch.setattr(layer_gradients, "KEEP_RATIO", ratio)
    for name in LAYERS:
        model, x = alone(name, torch.float32)
        found, norms = clipped(model, "bookkeeping", x, 2.0, torch.full((4,), math.nan))
        assert bool(norms.isnan().all())
        assert not any(bool(total.any()) for total in found.values())
