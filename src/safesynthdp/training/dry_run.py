"""What a run would need, without loading a weight or drawing a record: memory by part, steps, noise, price, time.

Here: the model on torch's meta device, one micro-batch through it with every tensor counted that backward would keep.
Elsewhere: the plan and its price (plan.py). The derivation, and predicted next to measured: docs/howto/dry_run.md.
Counts are bytes, on each process. Records are read for their number only.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from safesynthdp.errors import SafeSynthError
from safesynthdp.privacy.accounting import joint_epsilon
from safesynthdp.training.bookkeeping import BookkeepingEngine, BookkeepingTape
from safesynthdp.training.clipping import trainable_parameters
from safesynthdp.training.config import FinetuneConfig
from safesynthdp.training.frozen_shards import Sharding
from safesynthdp.training.full_shards import layer_lists
from safesynthdp.training.plan import PrivacyPlan
from safesynthdp.training.ranks import BUCKET_BYTES

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes on one process at its fullest moment; parts that do not stand at the same time are still added up."""

    num_parameters: int
    num_trainable: int
    frozen_weights: int
    """The frozen base, or this process's shard of it and two whole layers."""
    trained: int
    """Trained weights, their sum, their gradient and AdamW's two moments: five numbers of four bytes each."""
    activations: int
    """What the forward pass of one micro-batch keeps, with the logits' gradient; attention as if it kept T x T."""
    clipping: int
    """What the clip keeps until its factors are known, beyond the activations."""
    reduction: int
    """The flat bucket in which sums are added over the processes, or one whole tensor and this process's part of it."""
    gathered: int = 0
    """Trained weights that stand whole during a pass where they are sharded: all outside the layers, and two layers."""

    @property
    def total(self) -> int:
        """All parts."""
        return self.frozen_weights + self.trained + self.gathered + self.activations + self.clipping + self.reduction


def meta_model(config: FinetuneConfig) -> nn.Module:
    """Return the model as it would be trained, without its weights."""
    from transformers import AutoModelForCausalLM

    from safesynthdp.models import base_model_config, make_trainable, wants_lora

    shape = base_model_config(config.model)
    with torch.device("meta"):
        dtype = getattr(torch, config.model.dtype)
        base = AutoModelForCausalLM.from_config(shape, dtype=dtype)  # type: ignore[no-untyped-call]
        use_lora = wants_lora(config.model, config.lora)
        return make_trainable(base, config.lora, seed=0, use_lora=use_lora).train()


def footprint(
    model: nn.Module, *, rows: int, length: int, num_processes: int = 1, sharding: Sharding = "none"
) -> Footprint:
    """Return what training needs on each process, at micro-batches of ``rows`` x ``length`` tokens.

    ``sharding`` is ``hardware.sharding``, settled.

    Raises:
        SafeSynthError: If the model cannot be run without its weights.
        UnsupportedLayer: If the model cannot be clipped in one backward pass.
    """
    trainable = trainable_parameters(model)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    trained = sum(p.numel() for p in trainable.values())
    weights = sum(p.numel() * p.element_size() for p in frozen)
    if sharding == "frozen_base":
        weights = weights // num_processes + 2 * _largest_layer(model)
    activations, clipping = _kept(model, rows=rows, length=length)
    largest = max(4 * p.numel() for p in trainable.values())
    bucket = min(4 * trained, max(BUCKET_BYTES, largest)) if num_processes > 1 else 0
    parts = num_processes if sharding == "full" else 1
    if sharding == "full":
        bucket = largest + largest // num_processes
    return Footprint(
        num_parameters=trained + sum(p.numel() for p in frozen),
        num_trainable=trained,
        frozen_weights=weights,
        trained=5 * 4 * trained // parts,
        activations=activations,
        clipping=clipping,
        reduction=bucket,
        gathered=_gathered(model) if sharding == "full" else 0,
    )


def seconds_of_run(found: Footprint, *, tokens: float, num_processes: int) -> float:
    """Return the time of a run from the products it needs and the pace of one product on this very machine.

    Two operations a parameter and token forward, two for the gradient of the inputs, two for each trained weight.
    """
    operations = tokens * (4 * found.num_parameters + 2 * found.num_trainable)
    return operations / (_operations_per_second() * num_processes)


def lines(
    config: FinetuneConfig, plan: PrivacyPlan, found: Footprint, *, rows: int, length: int, num_processes: int
) -> Iterator[str]:
    """Yield what is said of a dry run."""
    yield f"{found.num_parameters:,} parameters, {found.num_trainable:,} trained"
    yield f"memory of each of {num_processes} processes, at micro-batches of {rows} x {length} tokens:"
    parts = {
        "frozen weights": found.frozen_weights,
        "trained weights, sums, gradients, moments": found.trained,
        "trained weights gathered for a pass": found.gathered,
        "activations": found.activations,
        "clipping": found.clipping,
        "reduction": found.reduction,
        "together, at most": found.total,
    }
    for name, size in parts.items():
        yield f"  {name:<42} {size / GIB:8.2f} GiB"
    if plan.mechanism is None:
        yield f"{plan.steps} steps without a guarantee (privacy.mode=none)"
    else:
        sigma, rate = plan.mechanism.noise_multiplier, plan.mechanism.sample_rate
        delta = config.privacy.target_delta
        price = joint_epsilon(plan.mechanisms, delta=delta, adjacency=config.privacy.adjacency)
        beside = " and the noisy counts" if len(plan.mechanisms) > 1 else ""
        yield (
            f"{plan.steps} steps, sample rate {rate:.4g}, noise multiplier {sigma:.4g}: epsilon={price:.4g} at "
            f"delta={delta:g} for the weights{beside}"
        )
    tokens = float(plan.steps) * config.train.expected_batch_size * length
    from safesynthdp.progress import duration

    seconds = seconds_of_run(found, tokens=tokens, num_processes=num_processes)
    yield f"about {duration(seconds)} if every process multiplies as fast as this machine does now; nothing was spent"


def _kept(model: nn.Module, *, rows: int, length: int) -> tuple[int, int]:
    """Return the bytes that one micro-batch's forward pass keeps for backward, and those that the clip adds."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    held: dict[int, torch.UntypedStorage] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            held[storage._cdata] = storage  # held on to, so that its identity stays its own
        return tensor

    engine = BookkeepingEngine(model)
    try:
        with engine.tape(rows=rows) as tape, torch.autograd.graph.saved_tensors_hooks(count, lambda kept: kept):
            losses_B, logits_bytes = _losses(model, rows=rows, length=length)
            losses_B.sum().backward()  # type: ignore[no-untyped-call]
            clipping = {s._cdata: s.nbytes() for s in _storages(tape) if s._cdata not in held}
    except RuntimeError as error:
        raise SafeSynthError(
            f"dry_run: {type(model).__name__} cannot run without its weights; try a real run"
        ) from error
    finally:
        engine.close()
    return sum(storage.nbytes() for storage in held.values()) + logits_bytes, sum(clipping.values())


def _losses(model: nn.Module, *, rows: int, length: int) -> tuple[Tensor, int]:
    """Return the losses of made-up records, and the bytes of the logits' gradient.

    The mask is given, as zeros, since finding one would look at values.
    """
    ids_BT = torch.zeros(rows, length, dtype=torch.int64, device="meta")
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(rows, 1, length, length, dtype=dtype, device="meta")
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    picked_BT = nn.functional.cross_entropy(logits_BTV.transpose(1, 2), ids_BT[:, 1:], reduction="none")
    return picked_BT.sum(dim=1), logits_BTV.numel() * 4


def _storages(tape: BookkeepingTape) -> Iterator[torch.UntypedStorage]:
    for found in tape.found().values():
        yield from (value.untyped_storage() for value in _tensors(found))


def _tensors(found: Any) -> Iterator[Tensor]:
    for value in vars(found).values():
        if isinstance(value, Tensor):
            yield value
        elif hasattr(value, "__dict__"):
            yield from _tensors(value)  # the two sides of a tie


def _gathered(model: nn.Module) -> int:
    """Return the bytes of the weights outside all layers, and of the two largest layers."""
    layers = [layer for layers in layer_lists(model) for layer in layers]
    sizes = {id(layer): sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in layers}
    inside = {id(p) for layer in layers for p in layer.parameters()}
    outside = sum(p.numel() * p.element_size() for p in model.parameters() if id(p) not in inside)
    return outside + sum(sorted(sizes.values())[-2:])


def _largest_layer(model: nn.Module) -> int:
    """Return the bytes of the frozen weights of the largest layer: one is in use while the next is fetched."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = [layer for layers in lists for layer in layers] or [model]
    return max(sum(p.numel() * p.element_size() for p in layer.parameters() if not p.requires_grad) for layer in layers)


def _operations_per_second() -> float:
    """Time one product of matrices, in float32 on a CPU and bfloat16 elsewhere."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    dtype = torch.float32 if device is None else torch.bfloat16
    size = 1024 if device is None else 8192
    left = torch.ones(size, size, dtype=dtype, device=device)
    float((left @ left)[0, 0])  # warm, and waited for
    began, repeats, made = time.perf_counter(), 5, left
    for _ in range(repeats):
        made = left @ left
    float(made[0, 0])
    return repeats * 2 * size**3 / (time.perf_counter() - began)
