"""What the released text alone gives away: n-gram models, long matches, nearest neighbours."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from safesynthdp.attacks.matching import MATCH_WORDS, long_matches, match_test
from safesynthdp.attacks.metrics import auc, tpr_at_fpr
from safesynthdp.attacks.nearest import nearest_similarity
from safesynthdp.attacks.ngram import Encoded, NgramModel, Vocabulary, ngram_signals
from safesynthdp.errors import DataError

LETTERS = {"a": 0, "b": 1, "c": 2}
WORDS = [f"w{i}" for i in range(300)]


def plain(*texts: str) -> Encoded:
    """Numbers without any marks."""
    rows = [[LETTERS[word] for word in text.split()] for text in texts]
    return Encoded(np.asarray([n for row in rows for n in row]), np.asarray([len(row) for row in rows]))


def random_texts(num: int, *, seed: int, length: int = 20) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=length)) for _ in range(num)]


def test_the_bigram_model_of_a_short_text_has_the_known_probabilities() -> None:
    model = NgramModel.fit(plain("a b a b a c"), order=2, vocabulary_size=3, base=3)
    found = model.log_probs(plain("a b a", "a c", "c c"))
    assert found.tolist() == pytest.approx([-1.203973, -1.098612, -1.098612], abs=1e-6)


def by_definition(corpus: Sequence[str], text: str, *, order: int, vocabulary: Vocabulary) -> float:
    """The formula, word by word."""

    def padded(words: str) -> list[str]:
        known = [word if word in vocabulary.numbers else "?" for word in words.split()]
        return ["<"] * (order - 1) + known + [">"]

    grams = [tuple(r[i : i + order]) for r in map(padded, corpus) for i in range(len(r) - order + 1)]
    row, total = padded(text), 0.0
    for gram in (tuple(row[i : i + order]) for i in range(len(row) - order + 1)):
        context = sum(other[:-1] == gram[:-1] for other in grams)
        total += math.log((grams.count(gram) + 1) / (context + vocabulary.size))
    return total


short = st.lists(st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=6).map(" ".join), min_size=1, max_size=5)


@settings(max_examples=40)
@given(short, short)
def test_the_signals_are_the_formula_word_by_word(corpus: list[str], texts: list[str]) -> None:
    known = ["a b", "c d"]  # "e" is unknown
    vocabulary = Vocabulary.build(known)
    found = ngram_signals(corpus, texts, vocabulary_texts=known)
    for order in (2, 3):
        expected = [by_definition(corpus, text, order=order, vocabulary=vocabulary) for text in texts]
        assert found[f"ngram{order}_lp"].tolist() == pytest.approx(expected, abs=1e-9)


def test_the_probabilities_of_all_words_after_a_context_add_up_to_one() -> None:
    vocabulary = Vocabulary.build(["a b c"])
    corpus = vocabulary.encode(["a b", "a c a"], order=2)
    model = NgramModel.fit(corpus, order=2, vocabulary_size=vocabulary.size, base=vocabulary.size + 1)
    numbers = [0, 1, *vocabulary.numbers.values()]
    after_a = Encoded(np.asarray([n for w in numbers for n in (vocabulary.numbers["a"], w)]), np.full(len(numbers), 2))
    assert np.exp(model.log_probs(after_a)).sum() == pytest.approx(1.0)


def test_the_vocabulary_does_not_depend_on_the_order_or_the_split_of_the_records() -> None:
    texts = random_texts(30, seed=0)
    assert Vocabulary.build(texts).numbers == Vocabulary.build(texts[::-1]).numbers
    assert Vocabulary.build(["B, a!"]).numbers == Vocabulary.build(["a b"]).numbers


def test_a_corpus_that_repeats_its_records_is_told_from_one_that_does_not() -> None:
    members, others, fresh = (random_texts(200, seed=seed) for seed in range(3))
    audited = [*members, *others]
    leaking = [" ".join(text.split()[:10]) for text in members]
    for name in ("ngram2_lp", "ngram3_lp"):
        of = ngram_signals(leaking, audited, vocabulary_texts=audited)[name]
        reference = ngram_signals(fresh, audited, vocabulary_texts=audited)[name]
        domias = of - reference
        assert auc(domias[:200], domias[200:]) > 0.99
        assert 0.4 < auc(reference[:200], reference[200:]) < 0.6


@pytest.mark.parametrize(
    ("theta_in", "theta_out", "cut", "known"),
    [(0.01, 0.005, 12, (0.903761, 0.005330, 0.302650)), (0.002, 0.001, 5, (0.711718, 0.003637, 0.052472))],
)
def test_counting_a_canary_token_has_its_known_power(
    theta_in: float, theta_out: float, cut: int, known: tuple[float, float, float]
) -> None:
    """The count among m = 1000 released tokens is binomial; its exact curve, through the metrics."""
    size, grid = 1_000_000, np.arange(1001)
    sides = [np.repeat(grid, np.round(size * binom.pmf(grid, 1000, t)).astype(int)) for t in (theta_in, theta_out)]
    members, nonmembers = (side.astype(np.float64) for side in sides)
    assert auc(members, nonmembers) == pytest.approx(known[0], abs=1e-5)
    assert np.mean(nonmembers >= cut) == pytest.approx(known[1], abs=1e-5)
    assert tpr_at_fpr(members, nonmembers, known[1] + 2e-5) == pytest.approx(known[2], abs=1e-5)


def test_only_a_run_of_eight_words_that_no_reference_has_is_a_match() -> None:
    run = WORDS[:9]
    texts = [" ".join(["x", *run[:8], "y"]), " ".join(run[1:9]), " ".join(run[:7]), "", "other words"]
    corpus = ["said: " + " ".join(run)]
    assert long_matches(corpus, texts).tolist() == [True, True, False, False, False]
    common = [" ".join(["z", *run[1:9]])]
    assert long_matches(corpus, texts, reference=common).tolist() == [True, False, False, False, False]
    assert long_matches(corpus, texts, words=7).tolist() == [True, True, True, False, False]


def test_no_run_crosses_from_one_text_into_the_next() -> None:
    run = WORDS[:MATCH_WORDS]
    assert not long_matches([" ".join(run[:4]), " ".join(run[4:])], [" ".join(run)]).any()
    assert not long_matches([" ".join(run)], [" ".join(run[:4]), " ".join(run[4:])]).any()
    assert not long_matches([], [" ".join(run)]).any()
    assert long_matches([" ".join(run[::-1])], [" ".join(run)]).tolist() == [False], "the order of words counts"


def test_the_p_value_of_a_match_is_that_of_fair_coins() -> None:
    is_matched, is_member = np.ones(10, dtype=np.bool_), np.arange(10) < 8
    assert match_test(is_matched, is_member).p_value == pytest.approx(binom.sf(7, 10, 0.5))
    assert match_test(is_matched, ~is_matched).p_value == 1.0
    assert match_test(~is_matched, is_member).p_value == 1.0


def test_matches_that_know_no_coin_are_called_a_leak_in_at_most_alpha_of_audits() -> None:
    rng = np.random.default_rng(0)
    p_values = [match_test(rng.random(500) < 0.1, rng.random(500) < 0.5).p_value for _ in range(400)]
    assert np.mean(np.asarray(p_values) < 0.05) <= 0.083


@pytest.mark.parametrize("num", [20, 200])
def test_a_copy_is_its_own_nearest_neighbour(num: int) -> None:
    """20 texts are compared as they are, 200 after projection."""
    texts, others = random_texts(num, seed=0), random_texts(num, seed=1)
    found = nearest_similarity(texts, [*texts, *others, ""], vocabulary_texts=[*texts, *others])
    assert found[:num] == pytest.approx(np.ones(num))
    assert found[num:-1].max() < 0.95
    assert found[-1] == 0.0
    assert auc(found[:num], found[num:-1]) == 1.0


def test_an_empty_corpus_is_refused() -> None:
    with pytest.raises(DataError, match="no text"):
        ngram_signals([], ["a"], vocabulary_texts=["a"])
    with pytest.raises(DataError, match="no text"):
        nearest_similarity([], ["a"], vocabulary_texts=["a"])
    with pytest.raises(DataError, match="words=1"):
        long_matches(["a"], ["a"], words=1)
    with pytest.raises(DataError, match="63 bits"):
        Encoded(np.zeros(3, dtype=np.int64), np.array([3])).windows(3, base=3_000_000)
