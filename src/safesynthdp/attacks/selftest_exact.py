"""Numbers known from a closed form, through the functions that audits use.

Here: the cases and their answers to six digits. Elsewhere: cases that are drawn (selftest_worlds.py). A case stands
here if an answer that is wrong in the third digit would still look right.
"""

import math
from collections.abc import Iterator

import numpy as np

from safesynthdp.attacks import reference_attacks as ref
from safesynthdp.attacks.bounds import epsilon_clopper_pearson, epsilon_one_run, one_run_p_value
from safesynthdp.attacks.claims import gaussian_epsilon
from safesynthdp.attacks.metrics import auc, tpr_at_fpr
from safesynthdp.attacks.ngram import Encoded, NgramModel
from safesynthdp.attacks.selftest_rows import Check, near_check
from safesynthdp.attacks.signals import error_zone, error_zone_score, min_k, phi

_FORM, _BISECTED = 1e-6, 1e-4
_ONE_RUN = {
    (1000, 100, 80, 0.0): 0.95839,
    (1000, 100, 80, 1e-5): 0.95532,
    (1000, 100, 100, 1e-5): 3.46538,
    (500, 100, 100, 1e-5): 3.47920,
    (100, 100, 100, 1e-5): 3.49022,
    (1000, 1000, 1000, 1e-5): 5.78228,
    (1000, 1000, 731, 0.0): 0.88060,
    (1000, 200, 150, 1e-5): 0.81997,
}
_P_VALUES = {
    (1000, 1000, 600, 0.0, 0.0): 1.3642e-10,
    (1000, 100, 80, 1.0, 0.0): 0.0715562,
    (1000, 100, 80, 1.0, 1e-5): 0.0730091,
    (1000, 100, 100, 3.0, 1e-5): 0.0104113,
    (1000, 1000, 530, 0.0, 0.0): 0.0310116,
}
_UPPER = {(0, 100): 0.036217, (0, 1000): 0.003682, (1, 1000): 0.005559, (10, 1000): 0.018313}
_GAUSSIAN = {
    (0.5, 1e-5): 1.99309,
    (1.0, 1e-5): 4.37718,
    (2.0, 1e-5): 9.99726,
    (1.0, 1e-6): 4.88655,
    (10.0, 1e-5): 91.81729,
}
_PHI = {-1e-12: 27.631021, -1e-6: 13.815510, -0.1: 2.252168, -5.0: -4.993239, -50.0: -50.0, -800.0: -800.0}


def exact_checks() -> list[Check]:
    """Return one row a family of cases; its number is the largest difference from a known answer."""
    return [
        _worst("A1", "AUC and rates of a table with ties", _metrics(), _FORM),
        _worst("A6", "AUC of randomised response", _responses(), _FORM),
        _worst("B", "LiRA and RMIA by hand", _attacks(), _FORM),
        _worst("D", "phi, Min-K%, error zone", _signals(), _FORM),
        _worst("E1", "upper limits of Clopper and Pearson", _limits(), _FORM),
        _worst("E3", "one-run p-values", _p_values(), 1e-6),
        _worst("E4", "one-run bounds", _bounds(), _BISECTED),
        _worst("E6", "randomised response, rejected from 755 of 1000", _least_rejected(), _FORM),
        _worst("F1", "epsilon of Gaussian claims", _claims(), 1e-5),
        _worst("G5", "Laplace bigrams", _bigrams(), _FORM),
    ]


def _worst(identity: str, what: str, pairs: Iterator[tuple[float, float]], tolerance: float) -> Check:
    differences = [abs(found - known) for found, known in pairs]
    size = max(differences)
    return near_check(identity, f"{what} ({len(differences)} numbers)", found=size, expected=0, tolerance=tolerance)


def _metrics() -> Iterator[tuple[float, float]]:
    members, nonmembers = np.array([3.0, 2.0, 2.0, 0.0]), np.array([2.0, 1.0, 0.0, 0.0])
    yield auc(members, nonmembers), 0.75
    yield tpr_at_fpr(members, nonmembers, 0.0), 0.25
    yield tpr_at_fpr(members, nonmembers, 0.25), 0.75
    same = np.zeros(1000)
    yield auc(same, same), 0.5
    yield tpr_at_fpr(same, same, 0.01), 0.0


def _responses() -> Iterator[tuple[float, float]]:
    size = 1_000_000
    for epsilon, known in ((0.5, 0.622459), (1.0, 0.731059), (2.0, 0.880797), (4.0, 0.982014)):
        true = np.arange(size) < round(size / (1 + math.exp(-epsilon)))
        yield auc(true.astype(np.float64), (~true).astype(np.float64)), known


def _least_rejected() -> Iterator[tuple[float, float]]:
    for correct, is_rejected in ((754, False), (755, True)):
        p_value = one_run_p_value(canaries=1000, guesses=1000, correct=correct, epsilon=1.0, delta=0.0)
        yield float(p_value < 0.05), float(is_rejected)
    yield one_run_p_value(canaries=1000, guesses=1000, correct=755, epsilon=1.0, delta=0.0), 0.046263


def _attacks() -> Iterator[tuple[float, float]]:
    is_in = np.array([[True]] * 3 + [[False]] * 3)
    one, two = (np.array([[v] for v in values]) for values in ((2.0, 3, 4, 0, 1, 2), (2.0, 2.5, 3, 0, 1, 2)))
    yield float(ref.lira(np.array([2.0]), one, is_in)[0]), 0.0
    yield float(ref.lira(np.array([2.2]), two, is_in, variance="per_record")[0]), 1.233147
    yield float(ref.lira(np.array([2.2]), two, is_in)[0]), 0.81
    yield float(ref.lira_offline(np.array([2.0]), one, is_in, variance="per_record")[0]), -0.172754
    yield float(ref.log_rmia(np.array([-999.0]), np.array([[-1000.0], [-1001.0], [-1002.0]]))[0]), 1.691006
    ratio = ref.log_rmia(np.array([-2.0]), np.log([[0.05], [0.1], [0.15]]))
    yield float(ratio[0]), 0.302585
    population = np.array([-0.5, 0.0, 0.2, 0.9])
    yield float(ref.calibrated(ratio, population)[0]), 0.75
    yield float(ref.calibrated(ratio, population, gamma=2)[0]), 0.25


def _signals() -> Iterator[tuple[float, float]]:
    yield from zip(phi(np.asarray(list(_PHI))).tolist(), _PHI.values(), strict=True)
    values = np.array([-1.0, -2.0, -3.0, -4.0, -5.0])
    yield from ((min_k(values, share=share), known) for share, known in ((0.2, -5.0), (0.4, -4.5), (1.0, -3.0)))
    yield min_k(values[:4]), -4.0
    gains, wrong = np.array([0.5, -0.2, 1.0, -0.3]), np.array([True, True, False, True])
    gained, lost = error_zone(gains, np.zeros(4), is_top=~wrong)
    yield gained, 0.5
    yield lost, 0.5
    yield float(error_zone_score(np.array([gained]), np.array([lost]))[0]), 0.0


def _limits() -> Iterator[tuple[float, float]]:
    for (errors, trials), known in _UPPER.items():
        bound = epsilon_clopper_pearson(
            false_positives=errors, nonmembers=trials, false_negatives=0, members=1, delta=0.0, alpha=0.05
        )
        yield bound.fpr_upper, known


def _p_values() -> Iterator[tuple[float, float]]:
    for (m, r, v, epsilon, delta), known in _P_VALUES.items():
        yield one_run_p_value(canaries=m, guesses=r, correct=v, epsilon=epsilon, delta=delta), known


def _bounds() -> Iterator[tuple[float, float]]:
    for (m, r, v, delta), known in _ONE_RUN.items():
        yield epsilon_one_run(canaries=m, guesses=r, correct=v, delta=delta, alpha=0.05).epsilon_lower_bound, known


def _claims() -> Iterator[tuple[float, float]]:
    yield from ((gaussian_epsilon(mu, delta), known) for (mu, delta), known in _GAUSSIAN.items())


def _bigrams() -> Iterator[tuple[float, float]]:
    def plain(*words: str) -> Encoded:
        return Encoded(np.asarray(["abc".index(word) for word in words]), np.array([len(words)]))

    model = NgramModel.fit(plain(*"ababac"), order=2, vocabulary_size=3, base=3)
    for words, known in (("aba", math.log(0.3)), ("ac", -math.log(3)), ("cc", -math.log(3))):
        yield float(model.log_probs(plain(*words))[0]), known
