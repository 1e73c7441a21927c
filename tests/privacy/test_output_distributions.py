"""Exact distributions of every output mechanism on tiny vocabularies, against the price that is stated.

Nothing is sampled here. Symbols: S shards, K candidates, p and q the distributions of two neighbours.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import integrate

from safesynthdp.privacy.conversions import pure_rho
from safesynthdp.privacy.mechanisms import GaussianL2, GaussianProbs, Laplace, LaplaceProbs, Softmax, UniformMix
from safesynthdp.privacy.output_clipping import clipped_mean, clipped_mean_l2, mean_probabilities
from safesynthdp.privacy.output_draws import softmax
from safesynthdp.privacy.output_pricing import OutputAdjacency, OutputMechanism

Floats = NDArray[np.float64]
ORDERS = (1.1, 2.0, 8.0, 64.0)
ADJACENCIES: tuple[OutputAdjacency, ...] = ("null", "replace", "many")
PUBLIC = np.array([1.0, 0.0, -1.0, 2.0])
ROWS = np.array([[3.0, -0.5, -1.2, 2.0], [0.9, 4.0, -6.0, 1.0]])
SLACK = 1 + 1e-9


def neighbours(
    adjacency: OutputAdjacency, *, shards: int, count: int, seed: int = 0
) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Yield (public, rows, rows of a neighbour): from harmless differences to rows built to do the most harm."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        size = int(rng.integers(2, 7))
        public = rng.normal(size=size) * 2
        rows = public + rng.normal(size=(shards, size)) * 10.0 ** rng.uniform(-2, 3)
        other = public + rng.normal(size=size) * 10.0 ** rng.uniform(-2, 3)
        if number % 3 == 0:  # the first candidate as far up as can be, the others down, and the reverse
            rows[0], other = public - 1e3, public + 1e3
            rows[0, 0], other[0] = public[0] + 1e3, public[0] - 1e3
        yield public, rows, rows[1:] if adjacency == "null" else np.vstack([other, rows[1:]])


def renyi(p: Floats, q: Floats, order: float) -> float:
    return float(np.logaddexp.reduce(order * np.log(p) + (1 - order) * np.log(q))) / (order - 1)


def noisy_max(scores: Floats, scale: float) -> Floats:
    """The distribution of argmax(scores + Laplace noise), by one-dimensional quadrature."""

    def cdf(x: float) -> float:
        return 0.5 * math.exp(x) if x < 0 else 1 - 0.5 * math.exp(-x)

    def integrand(x: float, winner: int) -> float:
        others = math.prod(cdf((x - s) / scale) for j, s in enumerate(scores) if j != winner)
        return math.exp(-abs(x - scores[winner]) / scale) / (2 * scale) * others

    ends = (float(scores.min()) - 45 * scale, float(scores.max()) + 45 * scale)
    kinks = sorted({float(s) for s in scores})
    found = np.array(
        [integrate.quad(integrand, *ends, args=(i,), points=kinks, limit=400)[0] for i in range(len(scores))]
    )
    assert abs(found.sum() - 1) < 1e-6
    return np.asarray(found / found.sum())


def test_scores_and_draw_are_those_of_the_worked_example() -> None:
    mechanism = Softmax(shards=2, clip=1.0, tokens=1, adjacency="null")
    both, one = ROWS, ROWS[:1]
    scores = clipped_mean(both, PUBLIC, clip=1.0, shards=2)
    np.testing.assert_allclose(scores, [1.45, 0.25, -1.6, 1.5], atol=1e-12)
    np.testing.assert_allclose(clipped_mean(one, PUBLIC, clip=1.0, shards=2), [1.5, -0.25, -1.1, 2.0], atol=1e-12)
    p, q = mechanism.probabilities(both, PUBLIC), mechanism.probabilities(one, PUBLIC)
    np.testing.assert_allclose(p, [0.41669718, 0.12550678, 0.01973433, 0.43806171], atol=5e-9)
    np.testing.assert_allclose(q, [0.34521222, 0.05998889, 0.02564015, 0.56915874], atol=5e-9)
    ratios = np.log(p / q)
    np.testing.assert_allclose(ratios, [0.18820041, 0.73820041, -0.26179959, -0.26179959], atol=5e-9)
    assert np.ptp(ratios) == pytest.approx(1.0, abs=1e-12)
    assert mechanism.eta == 1.0
    recentred = clipped_mean(ROWS[1:], None, clip=2.0, shards=1, recentre=True)
    np.testing.assert_allclose(recentred, [-1.1, 2.0, -2.0, -1.0], atol=1e-12)


@pytest.mark.parametrize("adjacency", ADJACENCIES)
@pytest.mark.parametrize("recentre", [False, True])
def test_softmax_never_costs_more_than_stated_and_can_cost_it_all(adjacency: OutputAdjacency, recentre: bool) -> None:
    shards = 3
    mechanism = Softmax(shards=shards, clip=1.5, temperature=0.7, tokens=1, adjacency=adjacency)
    worst, largest = 0.0, 0.0
    for public, rows, others in neighbours(adjacency, shards=shards, count=2000):
        p = mechanism.probabilities(rows, public, recentre=recentre)
        q = mechanism.probabilities(others, public, recentre=recentre)
        ratios = np.log(p / q)
        worst, largest = max(worst, float(np.ptp(ratios))), max(largest, float(np.abs(ratios).max()))
        for order in ORDERS:
            for a, b in ((p, q), (q, p)):
                divergence = renyi(a, b, order)
                assert divergence <= order * mechanism.rho_step * SLACK + 1e-12
                (access,) = mechanism.accesses("add_remove")
                assert divergence <= access.renyi(order) * SLACK + 1e-12  # type: ignore[attr-defined]
    assert worst <= mechanism.eta * SLACK
    assert largest <= mechanism.pure_step * SLACK
    assert worst >= 0.99 * mechanism.eta


def test_the_renyi_curve_of_softmax_is_reached() -> None:
    """Two candidates and the right public scores give D(a) itself, so the bound is tight, not only safe."""
    mechanism = Softmax(shards=2, clip=1.0, tokens=1, adjacency="many")
    (access,) = mechanism.accesses("add_remove")
    for order in ORDERS:
        found = 0.0
        for gap in np.linspace(-6, 6, 4001):
            public = np.array([gap, 0.0])
            p = mechanism.probabilities(public + np.array([[9.0, -9.0], [0.0, 0.0]]), public)
            q = mechanism.probabilities(public + np.array([[-9.0, 9.0], [0.0, 0.0]]), public)
            found = max(found, renyi(p, q, order))
        assert found == pytest.approx(access.renyi(order), rel=1e-4)  # type: ignore[attr-defined]


@pytest.mark.parametrize("adjacency", ADJACENCIES)
def test_report_noisy_max_with_laplace_never_costs_more_than_stated(adjacency: OutputAdjacency) -> None:
    mechanism = Laplace(shards=2, clip=1.0, scale=1.2, tokens=1, adjacency=adjacency)
    worst, widest = 0.0, 0.0
    for public, rows, others in neighbours(adjacency, shards=2, count=90):
        scores, moved = (clipped_mean(r, public, clip=1.0, shards=2) for r in (rows, others))
        widest = max(widest, float(np.ptp(scores - moved)))
        p, q = noisy_max(scores, 1.2), noisy_max(moved, 1.2)
        worst = max(worst, float(np.abs(np.log(p / q)).max()))
        for order in ORDERS[:3]:
            assert renyi(p, q, order) <= order * mechanism.rho_step + 1e-6
    assert worst <= mechanism.pure_step + 1e-6
    assert worst >= 0.7 * mechanism.pure_step  # a few candidates only: the bound is not tight there
    assert 0.99 * mechanism.score_range <= widest <= mechanism.score_range * SLACK


def test_the_price_of_report_noisy_max_is_reached_far_in_the_tail() -> None:
    """Two candidates, x scales apart: the lower one wins with probability (2 + x) exp(-x) / 4 under Laplace noise."""
    mechanism = Laplace(shards=2, clip=1.0, scale=0.5, tokens=1, adjacency="many")
    e, x = mechanism.pure_step, 2000.0
    reached = (math.log(2 + x) - x) - (math.log(2 + x + e) - x - e)
    assert 0.99 * e <= reached <= e
    near = noisy_max(np.array([0.0, 3.0]), 1.0)
    assert near[0] == pytest.approx((2 + 3.0) * math.exp(-3.0) / 4, rel=1e-6)


def test_laplace_then_softmax_costs_at_most_the_smaller_of_both_prices() -> None:
    """Any fixed noise gives a softmax draw: a mixture over noise vectors is no worse than its worst component."""
    rng = np.random.default_rng(3)
    for scale, tau in ((0.3, 2.0), (4.0, 0.5)):
        mechanism = Laplace(shards=2, clip=1.0, scale=scale, temperature=tau, tokens=1, adjacency="replace")
        assert mechanism.pure_step == min(2 / scale, 2 / tau)
        noise = rng.laplace(size=(20000, 3)) * scale
        for public, rows, others in neighbours("replace", shards=2, count=30, seed=4):
            scores = [clipped_mean(r, public, clip=1.0, shards=2)[:3] for r in (rows, others)]
            if len(scores[0]) < 3:
                continue
            p, q = (np.mean([softmax(s + x, tau) for x in noise[:2000]], axis=0) for s in scores)
            assert float(np.abs(np.log(p / q)).max()) <= mechanism.pure_step * 1.1


@pytest.mark.parametrize("adjacency", ADJACENCIES)
@pytest.mark.parametrize("recentre", [False, True])
def test_vectors_of_scores_stay_within_their_l2_sensitivity(adjacency: OutputAdjacency, recentre: bool) -> None:
    mechanism = GaussianL2(shards=3, clip=1.5, scale=0.4, tokens=1, adjacency=adjacency)
    worst = 0.0
    for public, rows, others in neighbours(adjacency, shards=3, count=2000):
        means = [clipped_mean_l2(r, public, clip=1.5, shards=3, recentre=recentre) for r in (rows, others)]
        worst = max(worst, float(np.linalg.norm(means[0] - means[1])))
    assert worst <= mechanism.sensitivity * SLACK
    assert worst >= 0.99 * mechanism.sensitivity
    for order in ORDERS:
        assert order * (worst / 0.4) ** 2 / 2 <= order * mechanism.rho_step * SLACK


@pytest.mark.parametrize("adjacency", ADJACENCIES)
def test_vectors_of_probabilities_stay_within_their_sensitivities(adjacency: OutputAdjacency) -> None:
    laplace = LaplaceProbs(shards=3, scale=0.4, tokens=1, adjacency=adjacency)
    gaussian = GaussianProbs(shards=3, scale=0.4, tokens=1, adjacency=adjacency)
    l1, l2 = 0.0, 0.0
    for public, rows, others in neighbours(adjacency, shards=3, count=2000):
        public[-1] += 40  # the public model may be sure of what no record says
        moved = mean_probabilities(rows, public, shards=3) - mean_probabilities(others, public, shards=3)
        l1, l2 = max(l1, float(np.abs(moved).sum())), max(l2, float(np.linalg.norm(moved)))
    assert 0.99 * laplace.score_range <= l1 <= laplace.score_range * SLACK
    assert l1 / 0.4 <= laplace.pure_step * SLACK
    assert 0.99 * gaussian.sensitivity <= l2 <= gaussian.sensitivity * SLACK


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
def test_a_row_of_probabilities_that_is_not_finite_counts_as_one_that_is_not_there(spoilt: float) -> None:
    rng = np.random.default_rng(6)
    rows, public = rng.normal(size=(3, 7)), rng.normal(size=7)
    rows[0, 2] = -np.inf  # a logit like any other
    bad = rows.copy()
    bad[1, 4] = spoilt
    there = mean_probabilities(rows[[0, 2]], public, shards=3)
    assert np.array_equal(mean_probabilities(bad, public, shards=3), there)
    assert there.sum() == pytest.approx(1)
    shares = [np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in (rows[0], rows[2], public)]
    assert there == pytest.approx(sum(shares) / 3)


@pytest.mark.parametrize("adjacency", ADJACENCIES)
def test_mixing_with_the_uniform_distribution_never_costs_more_than_stated(adjacency: OutputAdjacency) -> None:
    worst, stated = 0.0, math.inf
    for public, rows, others in neighbours(adjacency, shards=2, count=2000):
        public[0] -= 60  # certain that it is not the first, so that a record can do the most
        size = len(public)
        mechanism = UniformMix(shards=2, mixing=0.6, vocab_size=size, tokens=1, adjacency=adjacency)
        p, q = mechanism.probabilities(rows, public), mechanism.probabilities(others, public)
        ratio = float(np.abs(np.log(p / q)).max())
        assert ratio <= mechanism.pure_step * SLACK
        worst, stated = max(worst, ratio / mechanism.pure_step), min(stated, mechanism.pure_step)
        for order in ORDERS:
            assert renyi(p, q, order) <= order * mechanism.rho_step * SLACK + 1e-12
    assert worst >= 0.99
    assert stated > 0


def test_one_model_may_change_into_any_other_and_that_is_four_clips() -> None:
    for adjacency in ADJACENCIES:
        mechanism = Softmax(shards=1, single=True, clip=1.0, tokens=1, adjacency=adjacency)
        assert mechanism.score_range == 4.0
        p = mechanism.probabilities(PUBLIC + np.array([[9.0, -9, -9, -9]]), PUBLIC)
        q = mechanism.probabilities(PUBLIC - np.array([[9.0, -9, -9, -9]]), PUBLIC)
        assert np.ptp(np.log(p / q)) == pytest.approx(4.0)


# What must be caught: each of these is a mechanism people write, and each breaks the price it would claim.


def violates(draw: Callable[[Floats, Floats], Floats], mechanism: OutputMechanism) -> bool:
    """Return whether random neighbours under ``null`` cost more than the stated pure epsilon of one step."""
    assert mechanism.pure_step is not None
    for public, rows, others in neighbours("null", shards=mechanism.shards, count=300):
        p, q = draw(public, rows), draw(public, others)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.abs(np.log(p) - np.log(q))
        ratios = ratios[~np.isnan(ratios)]
        if len(ratios) and float(ratios.max()) > mechanism.pure_step * SLACK:
            return True
    return False


SOFTMAX = Softmax(shards=3, clip=1.0, tokens=1, adjacency="null")


def _private_top_1(public: Floats, rows: Floats) -> Floats:
    scores = clipped_mean(rows, public, clip=1.0, shards=3)
    return softmax(np.where(scores >= np.partition(scores, -2)[-2], scores, -np.inf))


def _without_a_clip(public: Floats, rows: Floats) -> Floats:
    return softmax(public + (rows - public).sum(axis=0) / 3)


def _divided_by_what_is_present(public: Floats, rows: Floats) -> Floats:
    return softmax(public + np.clip(rows - public, -1, 1).sum(axis=0) / len(rows))


def _normalised_by_the_batch(public: Floats, rows: Floats) -> Floats:
    differences = rows - public
    return softmax(public + np.clip(differences / differences.std(), -1, 1).sum(axis=0) / 3)


def _clip_of_the_mean(public: Floats, rows: Floats) -> Floats:
    return softmax(public + np.clip((rows - public).sum(axis=0) / 3, -1, 1))


@pytest.mark.parametrize(
    "draw",
    [
        _private_top_1,
        _without_a_clip,
        _divided_by_what_is_present,
        _normalised_by_the_batch,
        _clip_of_the_mean,
    ],
)
def test_a_broken_draw_breaks_the_price(draw: Callable[[Floats, Floats], Floats]) -> None:
    assert violates(draw, SOFTMAX)


def test_the_real_draw_does_not() -> None:
    assert not violates(lambda public, rows: SOFTMAX.probabilities(rows, public), SOFTMAX)


def test_the_softmax_constant_does_not_hold_for_exponential_noise() -> None:
    """Two candidates, epsilon 1: argmax under exponential noise is further apart than 1/8 allows."""

    def wins(difference: float) -> Floats:  # P(first + Exp > second + Exp), the scores differing by so much
        first = 1 - 0.5 * math.exp(-difference) if difference >= 0 else 0.5 * math.exp(difference)
        return np.array([first, 1 - first])

    equal, moved = wins(0.0), wins(1.0)
    divergence = float(equal @ np.log(equal / moved))
    assert divergence == pytest.approx(0.2551, abs=5e-5)
    assert divergence > 1 / 8
    assert divergence <= pure_rho(1.0)


def test_the_softmax_constant_does_not_hold_for_laplace_noise() -> None:
    """One probability moved by the whole sensitivity under Laplace noise: divergence e - 1 + exp(-e)."""
    mechanism = LaplaceProbs(shards=2, scale=1.0, tokens=1, adjacency="null")
    e = mechanism.pure_step
    divergence = e - 1 + math.exp(-e)
    assert divergence > e**2 / 8
    assert divergence <= mechanism.rho_step <= mechanism.simple_rho_step == e**2 / 2
    assert Laplace(shards=2, clip=1.0, scale=0.5, tokens=1, adjacency="null").simple_rho_step == 2.0**2 / 2
