"""Faster products where the hardware has them (AMX, AVX512-BF16, TF32), and where not to.

Here: the switch for float32 matrices and its exception; which processors multiply bfloat16. Elsewhere: micro-batches
whose shape no other record decides, which such products need (micro_batching.py); the check at start (selfcheck.py).

Guarantee:
    Norms, clip factors and clipped sums are always computed with full products: a norm that is rounded otherwise than
    the sum could let a record through above the clip.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Set ``torch.set_float32_matmul_precision`` within; 'highest' is plain float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def rounds_by_shape(model: nn.Module) -> bool:
    """Return whether a micro-batch's shape matters: some of the model computes in less than float32."""
    reduced = torch.get_float32_matmul_precision() != "highest"
    return reduced or any(parameter.element_size() < 4 for parameter in model.parameters())


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for products in bfloat16; where it has not, float32 is faster."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    known = getattr(torch.cpu, "get_capabilities", dict[str, Any])()  # not in torch 2.8
    return any(bool(known.get(name)) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def fastest(device: torch.device) -> torch.dtype:
    """Return bfloat16 where a device multiplies it in hardware, float32 elsewhere."""
    return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32


def slow_format(model: nn.Module) -> str | None:
    """Return a warning if the model's weights are bfloat16 on a device that has no instructions for it."""
    parameter = next((p for p in model.parameters() if p.dtype == torch.bfloat16), None)
    if parameter is None or multiplies_bfloat16(parameter.device):
        return None
    return "bfloat16 on a processor without instructions for it takes several times as long as float32"
