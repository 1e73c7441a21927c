"""Signals: their formulas, their precision and what they refuse."""

import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from safesynthdp.attacks.signals import (
    ATTACKS,
    attack_scores,
    error_zone,
    error_zone_score,
    mean_log_probs,
    min_k,
    phi,
    zlib_lengths,
)
from safesynthdp.errors import SafeSynthError
from safesynthdp.training.token_statistics import TokenStatistics


def said(*log_probs: float) -> TokenStatistics:
    """What a model says of a record: moments -2 and 0.5, and only tokens above log 1/2 come first."""
    values = np.asarray(log_probs, dtype=np.float64)
    return TokenStatistics(
        log_probs=values,
        means=np.full_like(values, -2),
        deviations=np.full_like(values, 0.5),
        is_top=values > math.log(0.5),
    )


TARGET = [said(-1.0, -2.0, -3.0), said(-0.5)]
BASE = [said(-2.0, -2.0, -5.0), said(-0.25)]
TEXTS = ["three tokens here", "one"]


def test_each_signal_is_its_formula() -> None:
    scores = attack_scores(target=TARGET, base=BASE, texts=TEXTS, record_ids=["a", "b"])
    sizes = [len(zlib.compress(text.encode(), 6)) for text in TEXTS]
    assert tuple(scores) == ATTACKS
    assert scores["loss"].tolist() == [-2.0, -0.5]
    assert scores["ref"].tolist() == [1.0, -0.25]
    assert scores["zlib"].tolist() == [-2.0 / sizes[0], -0.5 / sizes[1]]
    assert scores["mink_20"].tolist() == [-3.0, -0.5]
    assert scores["minkpp_20"].tolist() == [-2.0, 3.0]
    assert scores["ez"].tolist() == pytest.approx([math.log(3.1 / 0.1), math.log(0.1 / 0.35)])


def test_a_likelier_record_scores_higher_under_every_signal() -> None:
    surer = [said(*(record.log_probs + 0.25)) for record in TARGET]
    before = attack_scores(target=TARGET, base=BASE, texts=TEXTS, record_ids=["a", "b"])
    after = attack_scores(target=surer, base=BASE, texts=TEXTS, record_ids=["a", "b"])
    assert all((after[attack] > before[attack]).all() for attack in ATTACKS)


def test_digits_survive_log_probabilities_near_minus_a_thousand() -> None:
    """float32 would lose the difference, and exp(lp) would be zero."""
    tokens = np.full(1000, -1.0)
    nudged = tokens.copy()
    nudged[0] += 1e-7
    first, second = mean_log_probs([tokens, nudged], record_ids=["a", "b"], model="m")
    assert (second - first) * 1000 == pytest.approx(1e-7, rel=1e-3)


@pytest.mark.parametrize("broken", [np.array([math.nan, -1.0]), np.array([-math.inf]), np.array([])])
def test_a_record_without_a_finite_signal_is_an_error_that_names_it(broken: NDArray[np.float64]) -> None:
    with pytest.raises(SafeSynthError, match=r"the trained model .* 1 of 2 records \(b\)") as caught:
        attack_scores(target=[TARGET[0], said(*broken)], base=BASE, texts=TEXTS, record_ids=["a", "b"])
    assert "tokens here" not in str(caught.value)
    with pytest.raises(SafeSynthError, match=r"the untuned model .* 1 of 2 records \(a\)"):
        attack_scores(target=TARGET, base=[said(*broken), BASE[1]], texts=TEXTS, record_ids=["a", "b"])


def test_moments_that_are_not_finite_are_an_error_too() -> None:
    broken = replace(TARGET[1], means=np.array([math.nan]))
    with pytest.raises(SafeSynthError, match=r"attack=minkpp_20 gives no finite score for 1 records \(b\)"):
        attack_scores(target=[TARGET[0], broken], base=BASE, texts=TEXTS, record_ids=["a", "b"])


def test_many_broken_records_are_counted_and_the_first_ones_named() -> None:
    with pytest.raises(SafeSynthError, match=r"30 of 30 records \(r0, .*r9 and 20 more\)"):
        mean_log_probs([np.array([math.nan])] * 30, record_ids=[f"r{i}" for i in range(30)], model="m")


def test_two_models_must_have_scored_the_same_tokens() -> None:
    with pytest.raises(SafeSynthError, match="different tokens"):
        attack_scores(target=TARGET, base=BASE[::-1], texts=TEXTS, record_ids=["a", "b"])


def test_the_compressed_length_is_in_bytes_of_utf8() -> None:
    assert zlib_lengths(["\u00e4" * 3]).tolist() == [len(zlib.compress(b"\xc3\xa4" * 3, 6))]


@pytest.mark.parametrize(("share", "expected"), [(0.2, -5.0), (0.4, -4.5), (1.0, -3.0)])
def test_min_k_is_the_mean_of_the_lowest_share(share: float, expected: float) -> None:
    assert min_k(np.array([-1.0, -2.0, -3.0, -4.0, -5.0]), share=share) == expected


def test_min_k_of_a_short_text_is_its_lowest_token() -> None:
    assert min_k(np.array([-1.0, -2.0, -3.0, -4.0])) == -4.0
    assert min_k(np.array([-0.5])) == -0.5


def test_the_error_zone_counts_only_tokens_the_model_got_wrong() -> None:
    is_top = np.array([False, False, True, False])
    gains = np.array([0.5, -0.2, 1.0, -0.3])
    gained, lost = error_zone(gains - 2, np.full(4, -2.0), is_top=is_top)
    assert (gained, lost) == pytest.approx((0.5, 0.5))
    assert error_zone_score(np.array([gained]), np.array([lost])) == pytest.approx(0, abs=1e-12)


def test_a_record_better_at_every_token_scores_above_zero_and_one_never_wrong_is_not_last() -> None:
    base = np.full(3, -2.0)
    for is_top in (np.zeros(3, dtype=np.bool_), np.ones(3, dtype=np.bool_)):
        gained, lost = error_zone(np.array([-0.1, -1.0, -1.9]), base, is_top=is_top)
        assert lost == 0
        assert error_zone_score(np.array([gained]), np.array([lost]))[0] > 3


def test_phi_keeps_its_digits_from_certain_to_impossible() -> None:
    values = np.array([-1e-12, -1e-6, -0.1, -math.log(2), -5.0, -50.0, -800.0])
    known = [27.631021, 13.815510, 2.252168, 0, -4.993239, -50, -800]
    assert phi(values).tolist() == pytest.approx(known, abs=1e-6)
    with pytest.raises(SafeSynthError, match="not below 0"):
        phi(np.array([0.0]))
