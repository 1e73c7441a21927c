"""A loss that cannot couple records: one number a row, from that row's own targets.

Here: per-token log-probabilities and the per-record loss. Elsewhere: gradients (clipping.py), scores over many
records (token_statistics.py). Shapes: B rows, T padded length, V vocabulary.
"""

import inspect

import torch
from peft import PeftModel
from torch import Tensor, nn

from safesynthdp.training.examples import Batch


def target_log_probs(model: nn.Module, batch: Batch) -> Tensor:
    """Return log p(token t | tokens before t), [B, T] float32; 0 where ``target_mask_BT`` is False.

    A float64 model gives float64.
    """
    logits_BKV, targets_BK = target_logits(model, batch)
    picked_BK = -nn.functional.cross_entropy(logits_BKV.transpose(1, 2), targets_BK, reduction="none")
    picked_BK = torch.where(batch.target_mask_BT[:, -targets_BK.shape[1] :], picked_BK, 0.0)
    return nn.functional.pad(picked_BK, (batch.first_target, 0))


def target_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits of the last K positions, [B, K, V] float32 or float64, and their own tokens, [B, K].

    K = T - first_target: logits before the first target of the batch are not computed where the model allows it.
    Rows do not interact: attention is causal and padding stands on the right, so no token of a row sees padding, and
    no mask is needed.
    """
    kept = batch.input_ids_BT.shape[1] - batch.first_target + 1
    # Positions, not a number: a product of a slice copies the whole matrix for each row (bfloat16 on a CPU).
    last = torch.arange(-kept, 0, device=batch.input_ids_BT.device)
    extra = {"logits_to_keep": last} if _accepts(model, "logits_to_keep") else {}
    positions = {"position_ids": batch.position_ids_BT} if _accepts(model, "position_ids") else {}
    logits_BKV = model(input_ids=batch.input_ids_BT, use_cache=False, **positions, **extra).logits
    logits_BKV = logits_BKV[:, -kept:-1]
    logits_BKV = logits_BKV if logits_BKV.dtype == torch.float64 else logits_BKV.float()
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
