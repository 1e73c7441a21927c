"""Per-record gradients that are never formed, or formed once: what a layer leaves on the tape.

Here: for each kind of layer the squared norms ||G_i||^2 and the weighted sum sum_i c_i G_i. Elsewhere: how inputs and
output gradients are caught (recording.py), the clip factors (clipping.py). Source: Goodfellow (2015), arXiv:1510.01799,
for norms from inputs and output gradients; Bu et al. (2023), arXiv:2210.00038, for one backward pass.
Shapes: U units, S tokens of a unit in all its rows, d input and p output width, V vocabulary.

Guarantee:
    Norm and weighted sum are computed from the *same* tensors, in the precision of the sums, so what is released is
    clipped whatever the rounding of these tensors was.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from safesynthdp.training.clipping import CLIP_MARGIN, squared_norms

_BLOCK = 256
"""Features that one product of a Gram matrix adds up: float32 sums of n equal terms drift by up to n / 8 ulps."""
KEEP_RATIO = 2.0
"""A gradient of a matrix is formed when it is at most this many times larger than what the Gram route keeps."""


class LayerGradient(Protocol):
    """The gradients of one parameter, one a unit."""

    def squares(self) -> Tensor:
        """Return ||G_i||^2, [U]; never below the truth by more than the clip's margin."""
        ...

    def drop(self, broken_U: Tensor) -> None:
        """Zero the units of a [U] mask in every tensor that enters a product: 0 * NaN is NaN."""
        ...

    def add_into(self, total: Tensor, factors_U: Tensor) -> None:
        """Add sum_i c_i G_i to ``total``, in the parameter's shape."""
        ...


@dataclass
class Formed:
    """Gradients that were formed: [U, *shape]. Biases, norms, adapters, and matrices that are small for S."""

    grads_U: Tensor

    def squares(self) -> Tensor:
        """See ``LayerGradient.squares``."""
        return squared_norms(self.grads_U)

    def drop(self, broken_U: Tensor) -> None:
        """See ``LayerGradient.drop``."""
        self.grads_U[broken_U] = 0.0

    def add_into(self, total: Tensor, factors_U: Tensor) -> None:
        """See ``LayerGradient.add_into``."""
        total.view(-1).addmv_(self.grads_U.flatten(1).t(), factors_U)


@dataclass
class Outer:
    """G_i = right_i^T left_i over S tokens, for a matrix; its norm from two S x S Gram matrices.

    ``rows_USp`` and ``columns_USd`` are named after the matrix: gradient and input of a Linear, the reverse for the
    transposed Conv1D of GPT-2.
    """

    rows_USp: Tensor
    columns_USd: Tensor
    gram_of_columns: Tensor | None = None
    """[U, S, S] where another layer with the same input has computed it already."""

    def squares(self) -> Tensor:
        """See ``LayerGradient.squares``: sum_ts (a a^T)_ts (g g^T)_ts, not below what its rounding may hide."""
        return safe(*self.measured()[:2])

    def measured(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sum, what its rounding may hide, and sum_t |a_t| |g_t| (how much there is to cancel), [U] each.

        Where tokens cancel, the sum is a small difference of large numbers and can fall below the truth, even below
        0: by at most ``rounding`` times (sum_t |a_t| |g_t|)^2.
        """
        first_USS, second_USS = gram(self.rows_USp), self.gram_of_columns
        if second_USS is None:
            second_USS = gram(self.columns_USd)
        spread_U = (diagonal(first_USS) * diagonal(second_USS)).sqrt().sum(dim=1)
        sum_U = torch.linalg.vecdot(first_USS.flatten(1), second_USS.flatten(1)).clamp(min=0)
        widths = self.rows_USp.shape[2], self.columns_USd.shape[2]
        return sum_U, rounding(sum_U.dtype, *widths) * spread_U.square(), spread_U

    def drop(self, broken_U: Tensor) -> None:
        """See ``LayerGradient.drop``; copies, since other layers share the input."""
        kept_U11 = ~broken_U[:, None, None]
        self.rows_USp = torch.where(kept_U11, self.rows_USp, 0.0)
        self.columns_USd = torch.where(kept_U11, self.columns_USd, 0.0)

    def add_into(self, total: Tensor, factors_U: Tensor) -> None:
        """See ``LayerGradient.add_into``: one product over all tokens; the narrower side is scaled."""
        rows_USp, columns_USd = self.rows_USp, self.columns_USd
        if rows_USp.shape[2] <= columns_USd.shape[2]:
            rows_USp = rows_USp * factors_U[:, None, None]
        else:
            columns_USd = columns_USd * factors_U[:, None, None]
        total.addmm_(rows_USp.flatten(0, 1).t(), columns_USd.flatten(0, 1))


@dataclass
class Lookup:
    """Rows of a table, G_i = sum_t onehot(id_t) g_t, never as one-hot vectors."""

    ids_US: Tensor
    grads_USd: Tensor

    def squares(self) -> Tensor:
        """See ``LayerGradient.squares``: tokens of equal id are added first, unit by unit."""
        if self.ids_US.is_meta:
            return self.grads_USd.new_zeros(len(self.ids_US))  # a dry run: there are no values, only sizes
        units, width = self.ids_US.shape[0], int(self.ids_US.max()) + 1
        owner_U1 = torch.arange(units, device=self.ids_US.device)[:, None]
        seen, place_US = torch.unique(self.ids_US + owner_U1 * width, return_inverse=True)
        summed = self.grads_USd.new_zeros(len(seen), self.grads_USd.shape[2])
        summed.index_add_(0, place_US.flatten(), self.grads_USd.flatten(0, 1))
        return self.grads_USd.new_zeros(units).index_add_(0, seen // width, summed.square().sum(dim=1))

    def drop(self, broken_U: Tensor) -> None:
        """See ``LayerGradient.drop``."""
        self.grads_USd = torch.where(broken_U[:, None, None], 0.0, self.grads_USd)

    def add_into(self, total: Tensor, factors_U: Tensor) -> None:
        """See ``LayerGradient.add_into``."""
        total.index_add_(0, self.ids_US.flatten(), (self.grads_USd * factors_U[:, None, None]).flatten(0, 1))


@dataclass
class Tied:
    """One matrix as input table and output head: G = G^e + G^h."""

    table: Lookup
    head: Outer

    def squares(self) -> Tensor:
        """See ``LayerGradient.squares``: |G^e|^2 + |G^h|^2 + 2 sum_ts g^h[s, id_t] <g^e_t, h_s>."""
        rows_URV, hidden_URd = self.head.rows_USp, self.head.columns_USd
        wanted_URS = self.table.ids_US[:, None, :].expand(-1, rows_URV.shape[1], -1)
        weights_URS = rows_URV.gather(2, wanted_URS)
        products_URS = hidden_URd @ self.table.grads_USd.mT
        cross_U = torch.linalg.vecdot(weights_URS.flatten(1), products_URS.flatten(1))
        head_U, hidden_U, head_spread_U = self.head.measured()
        sum_U = (self.table.squares() + head_U + 2 * cross_U).clamp(min=0)
        spread_U = head_spread_U * self.table.grads_USd.square().sum(dim=2).sqrt().sum(dim=1)
        return safe(sum_U, hidden_U + 2 * rounding(sum_U.dtype, hidden_URd.shape[2]) * spread_U)

    def drop(self, broken_U: Tensor) -> None:
        """See ``LayerGradient.drop``."""
        self.table.drop(broken_U)
        self.head.drop(broken_U)

    def add_into(self, total: Tensor, factors_U: Tensor) -> None:
        """See ``LayerGradient.add_into``: both into one buffer."""
        self.table.add_into(total, factors_U)
        self.head.add_into(total, factors_U)


def is_formed(*, tokens: int, rows: int, columns: int) -> bool:
    """Return whether a matrix gradient is formed (one batched product, kept) or left as its two factors.

    Forming needs rows * columns floats a unit, the factors tokens * (rows + columns), and the Gram matrices cost
    tokens * (rows + columns) / (3 rows columns) of the layer's own work: decided for each layer and length.
    """
    return rows * columns <= KEEP_RATIO * tokens * (rows + columns)


def safe(sum_U: Tensor, hidden_U: Tensor) -> Tensor:
    """Return a squared norm that is too small by no more than the clip's margin, [U].

    Three quarters of the margin (``CLIP_MARGIN`` of a norm is twice that of its square) take what ordinary rounding
    hides, so a norm is as measured; only where more could be hidden, since tokens cancel, is it raised.
    """
    return torch.maximum(sum_U, (sum_U + hidden_U) * (1 - 1.5 * CLIP_MARGIN))


def rounding(dtype: torch.dtype, *widths: int) -> float:
    """Return the relative rounding of a product of Gram matrices over so many features.

    The worst case in practice, equal features whose roundings all go one way, measured on a CPU: 31 ulps at 256, 380 at
    49152 without blocks.
    """
    ulps = 2 + sum(min(width, _BLOCK) / 8 + width / _BLOCK / 8 for width in widths)
    return ulps * torch.finfo(dtype).eps


def gram(x_USd: Tensor) -> Tensor:
    """Return x x^T, [U, S, S], block by block of features."""
    part = x_USd[..., :_BLOCK]
    total_USS = part @ part.mT
    for start in range(_BLOCK, x_USd.shape[2], _BLOCK):
        part = x_USd[..., start : start + _BLOCK]
        total_USS = torch.baddbmm(total_USS, part, part.mT)
    return total_USS


def diagonal(x_USS: Tensor) -> Tensor:
    """Return the diagonal, [U, S]."""
    return x_USS.diagonal(dim1=1, dim2=2)
