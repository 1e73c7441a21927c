"""The text baseline: it sees a filter, it does not see a coin, and copies do not fool it."""

import numpy as np
import pytest
from numpy.typing import NDArray

from safesynthdp.attacks.baseline import baseline_scores, benchmark_is_valid, fold_of_groups
from safesynthdp.attacks.metrics import auc
from safesynthdp.errors import DataError

VOCABULARY = np.asarray([f"word{i}" for i in range(300)])


def random_texts(num: int, *, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, 301)
    return [" ".join(rng.choice(VOCABULARY, size=12, p=weights / weights.sum())) for _ in range(num)]


def halves(num: int, *, seed: int) -> NDArray[np.bool_]:
    chosen: NDArray[np.bool_] = np.random.default_rng(seed).permutation(num) < num // 2
    return chosen


def test_texts_split_by_a_coin_leave_the_benchmark_valid() -> None:
    verdicts, areas = [], []
    for seed in range(8):
        texts, is_member = random_texts(120, seed=seed), halves(120, seed=seed + 100)
        scores = baseline_scores(texts, is_member, seed=seed)
        verdicts.append(benchmark_is_valid(scores, is_member))
        areas.append(auc(scores[is_member], scores[~is_member]))
    assert verdicts.count(True) >= 7
    assert abs(np.mean(areas) - 0.5) < 0.08


def test_members_filtered_after_the_draw_void_the_benchmark() -> None:
    texts = random_texts(240, seed=0)
    is_member = np.asarray(["word3" in text.split() or "word4" in text.split() for text in texts], dtype=np.bool_)
    scores = baseline_scores(texts, is_member, seed=0)
    assert auc(scores[is_member], scores[~is_member]) > 0.8
    assert benchmark_is_valid(scores, is_member) is False


def test_copies_of_a_text_do_not_give_its_side_away() -> None:
    """Each text four times: with copies in other folds the classifier would know them all by heart."""
    texts = [copy for text in random_texts(60, seed=3) for copy in (text, text.upper(), f"{text}!", f" {text}")]
    is_member = np.repeat(halves(60, seed=4), 4)
    scores = baseline_scores(texts, is_member, seed=0)
    assert 0.3 < auc(scores[is_member], scores[~is_member]) < 0.7


def test_a_users_style_does_not_give_its_side_away() -> None:
    """Each user has a word of its own; only with users kept whole is the classifier blind to it."""
    texts = [f"signature{i // 6} {text}" for i, text in enumerate(random_texts(240, seed=5))]
    users = [f"u{i // 6}" for i in range(240)]
    is_member = np.repeat(halves(40, seed=6), 6)
    blind = baseline_scores(texts, is_member, seed=0, user_ids=users)
    told = baseline_scores(texts, is_member, seed=0)
    assert auc(told[is_member], told[~is_member]) > 0.8
    assert 0.3 < auc(blind[is_member], blind[~is_member]) < 0.7


def test_folds_are_dealt_evenly_keep_groups_whole_and_ignore_the_order() -> None:
    groups = [f"g{i % 50}" for i in range(100)]
    is_member = np.asarray([i % 50 < 20 for i in range(100)], dtype=np.bool_)
    folds = fold_of_groups(groups, is_member, seed=1)
    assert all(folds[i] == folds[i + 50] for i in range(50))
    assert np.bincount(folds[is_member]).tolist() == [8] * 5
    assert np.bincount(folds[~is_member]).tolist() == [12] * 5
    assert fold_of_groups(groups[::-1], is_member[::-1], seed=1).tolist() == folds[::-1].tolist()
    assert fold_of_groups(groups, is_member, seed=2).tolist() != folds.tolist()


def test_a_side_with_one_text_cannot_be_folded_and_a_small_side_gives_no_verdict() -> None:
    with pytest.raises(DataError, match="found 1 among the members, 2 among the non-members"):
        baseline_scores(["a", "A", "b", "c"], np.asarray([True, True, False, False]), seed=0)
    scores = baseline_scores(["a x", "b x", "c y", "d y"], np.asarray([True, True, False, False]), seed=0)
    assert np.isfinite(scores).all()
    assert benchmark_is_valid(np.arange(38.0), np.arange(38) < 19) is None
    assert benchmark_is_valid(np.arange(40.0), np.arange(40) < 20) is False
