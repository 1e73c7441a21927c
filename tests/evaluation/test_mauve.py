"""MAUVE and its relatives on histograms with known values, and on points with a known truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safesynthdp.evaluation.mauve import divergence, mauve, quantise

# P, Q, MAUVE, MAUVE*, frontier integral; the first and the last but one equal the reference package to 1e-6
KNOWN = [
    ([50, 50], [90, 10], 0.671096, 0.682276, 0.137560),
    ([30, 30, 40, 0], [0, 30, 30, 40], 0.216738, 0.268253, 0.354782),
    ([10, 20, 30, 40], [40, 30, 20, 10], 0.653854, 0.672125, 0.143763),
    ([100, 0], [0, 100], 0.004072, 0.005502, 1.0),
    ([25, 25, 25, 25], [50, 50, 0, 0], 0.278114, 0.338337, 0.306853),
    ([10, 20, 30], [10, 20, 30], 1.0, 1.0, 0.0),
]
counts = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=8)


@pytest.mark.parametrize(("first", "second", "area", "smoothed", "integral"), KNOWN)
def test_histograms_with_known_values(
    first: list[int], second: list[int], area: float, smoothed: float, integral: float
) -> None:
    found = divergence(np.array(first), np.array(second))
    assert found.mauve == pytest.approx(area, abs=2e-6)
    assert found.mauve_star == pytest.approx(smoothed, abs=2e-6)
    assert found.frontier_integral == pytest.approx(integral, abs=2e-6)


@settings(max_examples=100)
@given(counts)
def test_the_order_of_the_sides_and_of_the_buckets_does_not_matter(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array([(p + 1, q) for p, q in pairs]).T[0], np.array([q + 1 for _, q in pairs])
    there = divergence(first, second)
    assert divergence(second, first).mauve == pytest.approx(there.mauve, abs=1e-9)
    assert divergence(first[::-1], second[::-1]).frontier_integral == pytest.approx(there.frontier_integral, abs=1e-9)
    assert 0 < there.mauve <= 1 + 1e-9
    assert 0 <= there.frontier_integral <= 1
    assert there.mauve_star >= there.mauve - 0.02 * len(pairs)


@settings(max_examples=100)
@given(counts)
def test_the_frontier_integral_equals_the_integral_it_is_named_after(pairs: list[tuple[int, int]]) -> None:
    """2 int_0^1 w KL(P, R) + (1 - w) KL(Q, R) dw, R = w P + (1 - w) Q, by quadrature."""
    first, second = (np.array(side, dtype=float) + 1 for side in zip(*pairs, strict=True))
    p, q = first / first.sum(), second / second.sum()
    nodes, weights = np.polynomial.legendre.leggauss(60)
    nodes, weights = (nodes + 1) / 2, weights / 2
    mixed = nodes[:, None] * p + (1 - nodes)[:, None] * q
    inner = nodes * (p * np.log(p / mixed)).sum(axis=1) + (1 - nodes) * (q * np.log(q / mixed)).sum(axis=1)
    assert divergence(first, second).frontier_integral == pytest.approx(2 * float(weights @ inner), abs=1e-9)


def test_equal_histograms_are_one_and_not_three_quarters() -> None:
    assert mauve(np.array([1.0, 2.0]), np.array([10.0, 20.0])) == pytest.approx(1.0)


def test_separate_clouds_share_no_bucket_and_equal_clouds_share_all() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(200, 8)).astype(np.float32) for _ in range(2))
    there, here = np.eye(8, dtype=np.float32)[:2] * 20
    buckets = quantise(first + here, second + there, buckets=8, seed=0)
    assert not set(buckets[:200]) & set(buckets[200:])
    same = quantise(first, second, buckets=8, seed=0)
    found = divergence(*(np.bincount(part, minlength=8) for part in (same[:200], same[200:])))
    assert found.mauve > 0.95


def test_one_text_everywhere_is_no_trouble() -> None:
    points = np.ones((20, 4), dtype=np.float32)
    assert set(quantise(points, points, buckets=2, seed=0)) == {0}


@settings(max_examples=50)
@given(counts)
def test_a_second_implementation_agrees(pairs: list[tuple[int, int]]) -> None:
    """Written another way: scipy's relative entropy, points sorted along the curve, scikit-learn's trapezoids."""
    from scipy.stats import entropy
    from sklearn.metrics import auc

    first, second = (np.array(side, dtype=float) + 0.5 for side in zip(*pairs, strict=True))
    p, q = first / first.sum(), second / second.sum()
    points = [(0.0, 1.0), (1.0, 0.0)]
    for weight in np.linspace(1e-6, 1 - 1e-6, 25):
        mixture = weight * p + (1 - weight) * q
        points.append((float(np.exp(-5 * entropy(q, mixture))), float(np.exp(-5 * entropy(p, mixture)))))
    points.sort(key=lambda point: (point[0], -point[1]))
    assert mauve(first, second) == pytest.approx(float(auc(*zip(*points, strict=True))), abs=1e-6)
