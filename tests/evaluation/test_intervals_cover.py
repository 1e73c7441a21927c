"""Real against real, 200 times: a 95 % interval holds what it is about in 90 to 99 % of the draws."""

from collections import defaultdict

import numpy as np
import pytest

from safesynthdp.evaluation.coverage import expected_coverage
from safesynthdp.evaluation.estimates import Estimate
from safesynthdp.evaluation.fidelity_diversity import estimate_of_set
from safesynthdp.evaluation.fidelity_pairs import coverage, distribution_distance, divergences, frechet, two_sample
from safesynthdp.evaluation.form import count_characters
from safesynthdp.evaluation.pairs import Pair
from safesynthdp.evaluation.selftest_corpora import as_records, make_world

SIZE, DRAWS, DIMENSIONS = 150, 200, 16
TRUTHS = {
    "c2st_auc (embeddings)": 0.5,
    "c2st_auc (words)": 0.5,
    "length_ks": 0.0,
    "coverage": expected_coverage(SIZE, SIZE),
}


def measure() -> dict[str, list[Estimate]]:
    """Every number of pairs of samples of one pool of texts, with vectors of one distribution."""
    world = make_world("quick", seed=5)
    pool = as_records([*world.real, *world.fresh])
    estimates = defaultdict[str, list[Estimate]](list)
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        chosen = rng.permutation(len(pool))[: 2 * SIZE]
        vectors = rng.normal(size=(2 * SIZE, DIMENSIONS)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        sides = [pool.select(part.tolist()) for part in (chosen[:SIZE], chosen[SIZE:])]
        pair = Pair(real=sides[0], other=sides[1], real_ND=vectors[:SIZE], other_ND=vectors[SIZE:])
        lengths = [count_characters(side.texts) for side in sides]
        numbers = {
            "c2st_auc (embeddings)": two_sample(pair, on="embeddings"),
            "c2st_auc (words)": two_sample(pair, on="words"),
            **divergences(pair, buckets=15, seeds=1),
            "frechet": frechet(pair),
            "coverage": coverage(pair),
            "length_ks": distribution_distance(*lengths),
            **estimate_of_set(pair),
        }
        for name, estimate in numbers.items():
            estimates[name].append(estimate)
    return estimates


def shares(found: dict[str, list[Estimate]]) -> dict[str, float]:
    """How often the interval of each number holds the truth, or where none is known the mean of the draws."""
    held = dict[str, float]()
    for name, estimates in found.items():
        numbers = np.array([(e.value, e.low, e.high) for e in estimates], dtype=float)
        truth = TRUTHS.get(name, float(numbers[:, 0].mean()))
        held[name] = float(((numbers[:, 1] <= truth) & (truth <= numbers[:, 2])).mean())
    return held


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_intervals_cover_as_often_as_they_say() -> None:
    held = shares(measure())
    assert {name: share for name, share in held.items() if not 0.9 <= share <= 0.99} == {}, held
