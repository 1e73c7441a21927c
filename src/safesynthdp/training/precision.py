"""Faster products of float32 matrices where the hardware has them (AMX, AVX512-BF16, TF32), and where not to.

Here: the switch and its exception. Elsewhere: micro-batches whose shape no other record decides, which such products
need (micro_batching.py); the check at start (selfcheck.py).

Guarantee:
    Norms, clip factors and clipped sums are always computed with full products: a norm that is rounded otherwise than
    the sum could let a record through above the clip.
"""

from collections.abc import Iterator
from contextlib import contextmanager

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
