"""A loss that cannot couple records: one number a row, from that row's own targets.

Here: per-token log-probabilities and the per-record loss. Elsewhere: gradients (clipping.py), scores over many
records (token_statistics.py). Shapes: B rows, T padded length, V vocabulary.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from safesynthdp.errors import SafeSynthError
from safesynthdp.training.examples import Batch

_AT_ONCE = {"cpu": 1 << 19}
"""Logits that are widened to float32 at a time: on a CPU as many as its cache holds."""


class _PickedLogProbs(torch.autograd.Function):
    """log softmax(row)[target], [N] float32 or float64, of logits [N, V]; wide values exist for a few rows at a time.

    Plain cross entropy keeps two float32 copies of logits that the model computed in bfloat16 and passes over them
    seven times: half of a step where products are fast. Each row is computed by itself.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        if len(logits_NV) != len(targets_N):  # a gather from more rows would pair them with one another's, in silence
            raise SafeSynthError(f"{len(logits_NV)} rows of logits for {len(targets_N)} targets; this is a defect")
        ctx.save_for_backward(logits_NV, targets_N)
        made_N = torch.empty(len(targets_N), dtype=_wide_dtype(logits_NV), device=logits_NV.device)
        for wide_MV, made_MV, targets_M, made_M in _few(logits_NV, targets_N, made_N):
            torch.log_softmax(wide_MV, dim=1, out=made_MV)
            made_M.copy_(made_MV.gather(1, targets_M[:, None])[:, 0])
        return made_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads_N: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        logits_NV, targets_N = ctx.saved_tensors
        back_NV = torch.empty_like(logits_NV)
        for wide_MV, made_MV, targets_M, grads_M, back_MV in _few(logits_NV, targets_N, grads_N, back_NV):
            torch.softmax(wide_MV, dim=1, out=made_MV)
            made_MV.mul_(-grads_M[:, None]).scatter_add_(1, targets_M[:, None], grads_M[:, None])
            back_MV.copy_(made_MV)
        return back_NV, None


def wide(logits: Tensor) -> Tensor:
    """Return logits in float32, or float64 where they are that."""
    return logits.to(_wide_dtype(logits))


def _wide_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _few(logits_NV: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield a few rows at a time: widened logits, room for as many results, and the same rows of the others."""
    rows = max(1, _AT_ONCE.get(logits_NV.device.type, 1 << 26) // logits_NV.shape[1])
    room_2MV = logits_NV.new_empty(2, min(rows, len(logits_NV)), logits_NV.shape[1], dtype=_wide_dtype(logits_NV))
    for logits_MV, *rest in zip(*(torch.split(x, rows) for x in (logits_NV, *others)), strict=True):
        wide_MV, made_MV = room_2MV[:, : len(logits_MV)]
        yield wide_MV.copy_(logits_MV), made_MV, *rest


def target_log_probs(model: nn.Module, batch: Batch) -> Tensor:
    """Return log p(token t | tokens before t), [B, T] float32; 0 where ``target_mask_BT`` is False.

    A float64 model gives float64.
    """
    logits_BKV, targets_BK = target_logits(model, batch)
    picked_N: Tensor = _PickedLogProbs.apply(logits_BKV.flatten(0, 1), targets_BK.flatten())  # type: ignore[no-untyped-call]
    picked_BK = torch.where(batch.target_mask_BT[:, -targets_BK.shape[1] :], picked_N.view_as(targets_BK), 0.0)
    return nn.functional.pad(picked_BK, (batch.first_target, 0))


def target_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits of the last K positions, [B, K, V] as the model computes them, and their own tokens, [B, K].

    K = T - first_target: logits before the first target of the batch are not computed where the model allows it.
    Rows do not interact: attention is causal and padding stands on the right, so no token of a row sees padding, and
    no mask is needed.
    """
    kept = batch.input_ids_BT.shape[1] - batch.first_target + 1
    # Positions, not a number: a product of a slice copies the whole matrix for each row (bfloat16 on a CPU).
    last = torch.arange(-kept, -1, device=batch.input_ids_BT.device)
    extra = {"logits_to_keep": last} if _accepts(model, "logits_to_keep") else {}
    positions = {"position_ids": batch.position_ids_BT} if _accepts(model, "position_ids") else {}
    logits_BKV = model(input_ids=batch.input_ids_BT, use_cache=False, **positions, **extra).logits
    if logits_BKV.shape[1] != kept - 1:  # it gives all positions, whether or not it says that it can give fewer
        logits_BKV = logits_BKV[:, -kept:-1]
    return logits_BKV, batch.input_ids_BT[:, -kept + 1 :]


def record_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Return -sum_t log p_t / (number of own targets), [B] float32, in nats per token.

    Guarantee:
        Entry i depends on row i alone. A mean over the tokens *of the batch* would let one added record move the
        gradient of all others; ``model(labels=...)`` takes that mean and is never called.
    """
    own_targets_B = batch.target_mask_BT.sum(dim=1).clamp(min=1)
    return -target_log_probs(model, batch).sum(dim=1) / own_targets_B


def _accepts(model: nn.Module, argument: str) -> bool:
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    return argument in inspect.signature(type(inner).forward).parameters
