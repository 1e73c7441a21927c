"""The Frechet distance of two sets of embeddings: means and covariances, never a cosine.

Here: the distance and its standard error. Elsewhere: the embeddings (embeddings.py), the real-real value it is read
against (fidelity.py). Source: Dowson and Landau (1982); Heusel et al. (2017), arXiv:1706.08500. It is biased upwards by
sampling (.05 between equal distributions at 1,500 texts), so only values at equal n compare.
Shapes: N texts, D dimensions, G groups.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safesynthdp.evaluation.jackknife import standard_error
from safesynthdp.evaluation.threads import one_thread

MAX_CORRECTED_DIMENSIONS = 512
Floats = NDArray[np.float64]
Points = NDArray[np.float32] | Floats


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of outer products: a group is left out by subtraction."""

    count: float
    sum_D: Floats
    outer_DD: Floats

    @classmethod
    def of(cls, points_ND: Points) -> "Moments":
        """Return the moments of the rows."""
        points = np.asarray(points_ND, dtype=np.float64)
        return cls(float(len(points)), points.sum(axis=0), points.T @ points)

    def without(self, other: "Moments") -> "Moments":
        """Return the moments of the rows that are not in ``other``."""
        return Moments(self.count - other.count, self.sum_D - other.sum_D, self.outer_DD - other.outer_DD)

    def mean_and_covariance(self) -> tuple[Floats, Floats]:
        """Return the mean [D] and the unbiased covariance [D, D]."""
        mean_D = self.sum_D / self.count
        covariance = (self.outer_DD - self.count * np.outer(mean_D, mean_D)) / max(self.count - 1, 1.0)
        return mean_D, covariance


def frechet_distance(first_ND: Points, second_ND: Points) -> float:
    """Return ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``, in squared units of the embedding."""
    with one_thread():
        return between(Moments.of(first_ND), Moments.of(second_ND))


def between(first: Moments, second: Moments) -> float:
    """Return the Frechet distance of two Gaussians with these moments; never below 0."""
    mean_1, covariance_1 = first.mean_and_covariance()
    mean_2, covariance_2 = second.mean_and_covariance()
    values, axes = np.linalg.eigh(covariance_1)
    root = (axes * np.sqrt(values.clip(min=0))) @ axes.T
    crossed = np.linalg.eigvalsh(root @ covariance_2 @ root).clip(min=0)  # eigenvalues of C1 C2, and symmetric
    spread = np.trace(covariance_1) + np.trace(covariance_2) - 2 * np.sqrt(crossed).sum()
    return max(0.0, float(((mean_1 - mean_2) ** 2).sum() + spread))


def error_of_distance(
    first_ND: Points, second_ND: Points, groups: tuple[NDArray[np.intp], NDArray[np.intp]], *, corrected: bool = True
) -> float:
    """Return the jackknife standard error; groups are left out on both sides, [N] each.

    Above 512 dimensions the correction for second-order terms is left out even if it is wanted: it would take minutes,
    and without it the interval is too wide, never too narrow.
    """
    sides = (first_ND, second_ND)
    names = np.union1d(*groups).tolist()
    whole = [Moments.of(points) for points in sides]
    parts = {
        name: [Moments.of(points[group == name]) for points, group in zip(sides, groups, strict=True)] for name in names
    }

    def measure(left_out: tuple[int, ...]) -> list[float]:
        kept = list(whole)
        for name in left_out:
            kept = [side.without(part) for side, part in zip(kept, parts[name], strict=True)]
        return [between(*kept) if min(side.count for side in kept) > 1 else 0.0]

    with one_thread():
        is_small = first_ND.shape[1] <= MAX_CORRECTED_DIMENSIONS
        return float(standard_error(measure, names, corrected=corrected and is_small)[0])
