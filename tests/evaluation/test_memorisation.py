"""Copies are found, and the control keeps shared phrases from looking like copies."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safesynthdp.evaluation.auc import area
from safesynthdp.evaluation.inputs import Corpora
from safesynthdp.evaluation.longest import longest_common
from safesynthdp.evaluation.memorisation import Result, measure_memorisation
from safesynthdp.evaluation.nearest import shares_in_train
from safesynthdp.evaluation.rows import Row, decide_publishable, find

Make = Callable[..., Any]
CHECKS = ("exact_match", "ngram_13", "chars_50")


def measure(corpora: Corpora) -> Result:
    """All memorisation rows."""
    return measure_memorisation(corpora, progress=lambda _: None)


def number(value: float | None) -> float:
    """A number that must be there."""
    assert value is not None
    return value


def row(result: Result, name: str, train_on: str) -> Row:
    """A row that must be there."""
    found = find(result.rows, name, train_on=train_on)
    assert found is not None
    return found


def test_a_verbatim_copy_is_flagged(make_pairs: Make, as_records: Make) -> None:
    real = make_pairs(200, seed=1)
    result = measure(
        Corpora(real=as_records(real), synthetic=as_records(real[:80]), holdout=as_records(make_pairs(100, seed=2)))
    )
    assert "80 of 80 synthetic texts are verbatim copies" in result.warnings[0]
    for name in CHECKS:
        difference = row(result, name, "difference")
        assert number(difference.low) > 0.2  # half of T is in T'
        assert row(result, name, "real").value == 80
        assert row(result, name, "real_sample").value == pytest.approx(0.5, abs=0.1)


def test_fresh_text_shows_no_difference_even_where_texts_share_phrases(make_pairs: Make, as_records: Make) -> None:
    phrase = "this review was written for the weekly film column of our paper and says that the "

    def shared(count: int, seed: int) -> list[tuple[str, str]]:
        return [(phrase + t if i % 2 else t, label) for i, (t, label) in enumerate(make_pairs(count, seed=seed))]

    result = measure(
        Corpora(
            real=as_records(shared(300, 1)), synthetic=as_records(shared(120, 2)), holdout=as_records(shared(100, 3))
        )
    )
    assert result.warnings == []
    for name in ("ngram_13", "chars_50"):
        assert row(result, name, "holdout").value == pytest.approx(0.5)  # the control is not zero
        difference = row(result, name, "difference")
        assert number(difference.low) < 0 < number(difference.high)
        assert abs(number(difference.value)) < 0.03


def test_one_copied_sentence_in_longer_text_is_found(make_pairs: Make, as_records: Make) -> None:
    real = make_pairs(150, seed=1)
    synthetic = [
        (f"{fresh} {' '.join(old.split()[:15])} {fresh}", label)
        for (fresh, label), (old, _) in zip(make_pairs(100, seed=2), real, strict=False)
    ]
    result = measure(
        Corpora(real=as_records(real), synthetic=as_records(synthetic), holdout=as_records(make_pairs(150, seed=3)))
    )
    assert row(result, "exact_match", "real").value == 0
    assert row(result, "ngram_13", "real").value == 100
    assert any(line.startswith("memorisation: ngram_13") for line in result.warnings)


def test_both_sides_have_equal_size_whichever_is_larger(make_pairs: Make, as_records: Make) -> None:
    text, label = make_pairs(1, seed=9)[0]
    # The text stands in both, T is a quarter of H: with unequal sizes H would always match and T' too.
    real = as_records([(text, label), *make_pairs(24, seed=1)])
    holdout = as_records([(text, label), *make_pairs(99, seed=2)])
    result = measure(Corpora(real=real, synthetic=as_records([(text, label)] * 5), holdout=holdout))
    assert row(result, "exact_match", "real_sample").value == 1
    assert 0 < number(row(result, "exact_match", "holdout").value) < 0.7


def test_many_copies_of_one_text_are_one_witness(make_pairs: Make, as_records: Make) -> None:
    real = make_pairs(100, seed=1)
    result = measure(
        Corpora(
            real=as_records(real), synthetic=as_records([real[0]] * 200), holdout=as_records(make_pairs(100, seed=2))
        )
    )
    difference = row(result, "exact_match", "difference")
    assert difference.value == 1
    assert number(difference.low) < 0.3


def test_the_longest_run_is_that_of_the_copied_passage(make_pairs: Make, as_records: Make) -> None:
    real = make_pairs(150, seed=1)
    passage = " ".join(real[3][0].split()[:15])
    synthetic = make_pairs(60, seed=2)
    synthetic[0] = (f"zzz {passage} qqq", "good")
    result = measure(
        Corpora(real=as_records(real), synthetic=as_records(synthetic), holdout=as_records(make_pairs(150, seed=3)))
    )
    name = "longest_common_substring"
    assert row(result, name, "real").value == len(f" {passage} ") - 1  # the blank before it is shared, what follows not
    assert row(result, name, "difference").value == pytest.approx(len(passage) / 60, rel=0.05)
    assert number(row(result, name, "difference").low) == 0  # one witness is not certain
    assert number(row(result, name, "real").floor) > 100


def test_fresh_text_shares_no_long_run_and_says_why_it_has_no_interval(make_pairs: Make, as_records: Make) -> None:
    result = measure(
        Corpora(real=as_records(make_pairs(80, seed=1)), synthetic=as_records(make_pairs(60, seed=2)),
                holdout=as_records(make_pairs(80, seed=3)))
    )  # fmt: skip
    difference = row(result, "longest_common_substring", "difference")
    assert (difference.value, difference.low) == (0, None)
    assert "shares 50 characters" in (difference.reason or "")


def test_the_nearest_record_of_a_copy_is_a_training_record_and_of_fresh_text_is_either(
    make_pairs: Make, as_records: Make
) -> None:
    real = make_pairs(100, seed=1)
    holdout = as_records(make_pairs(100, seed=3))
    copied = measure(Corpora(real=as_records(real), synthetic=as_records(real[:60]), holdout=holdout))
    fresh = measure(Corpora(real=as_records(real), synthetic=as_records(make_pairs(300, seed=2)), holdout=holdout))
    swapped = measure(Corpora(real=holdout, synthetic=as_records(real[:60]), holdout=as_records(real)))
    name = "nearest_in_train"
    assert row(copied, name, "real_sample").value == row(copied, name, "real_sample").floor == 1
    assert row(swapped, name, "real_sample").value == 0
    found = row(fresh, name, "real_sample")
    assert number(found.low) < 0.5 < number(found.high)
    assert found.reads == ("synthetic", "real", "holdout")


def test_text_without_words_is_a_tie() -> None:
    zeros = np.zeros((3, 5), dtype=np.float32)
    assert shares_in_train(zeros, zeros[:, :4]).tolist() == [0.5, 0.5, 0.5]


def test_the_worst_cases_are_listed_beside_the_rows_and_not_among_them(make_pairs: Make, as_records: Make) -> None:
    real = make_pairs(80, seed=1)
    synthetic = [*make_pairs(40, seed=2), real[5], real[6]]
    corpora = Corpora(
        real=as_records(real), synthetic=as_records(synthetic), holdout=as_records(make_pairs(80, seed=3))
    )
    result = measure_memorisation(corpora, progress=lambda _: None, num_worst=5)
    assert {case["real_text"] for case in result.worst} == {real[5][0], real[6][0]}
    assert all(case["is_whole_text"] and case["synthetic_text"] == case["real_text"] for case in result.worst)
    assert real[5][0] not in repr(result.rows) + repr(result.warnings)
    assert measure(corpora).worst == []


def test_a_holdout_of_another_kind_is_said_to_be_no_control(make_pairs: Make, as_records: Make) -> None:
    real, synthetic = as_records(make_pairs(200, seed=1)), as_records(make_pairs(60, seed=2))
    other = [(f"{text} per annum", label) for text, label in make_pairs(200, seed=3)]
    void = measure(Corpora(real=real, synthetic=synthetic, holdout=as_records(other)))
    good = measure(Corpora(real=real, synthetic=synthetic, holdout=as_records(make_pairs(200, seed=3))))
    assert any("weak or void" in line for line in void.warnings)
    assert not any("weak or void" in line for line in good.warnings)
    assert number(row(void, "c2st_auc", "real_sample").value) > 0.95
    assert number(row(good, "c2st_auc", "real_sample").low) < 0.5 < number(row(good, "c2st_auc", "real_sample").high)


def test_the_interval_of_an_auc_covers_the_truth() -> None:
    rng, truth, covered = np.random.default_rng(0), 0.7602, 0  # Phi(1 / sqrt(2))
    for _ in range(200):
        scores = np.concatenate([rng.normal(1, 1, 80), rng.normal(0, 1, 120)])
        found = area(scores, np.arange(200) < 80, np.arange(200))
        assert found.low <= found.value <= found.high
        covered += found.low <= truth <= found.high
    assert 180 <= covered <= 199


@given(st.text("ab ", max_size=70), st.text("ab ", min_size=50, max_size=90), st.text("ab ", max_size=70))
@settings(max_examples=40)
def test_the_longest_common_run_is_that_of_a_slow_and_plain_search(before: str, shared: str, after: str) -> None:
    first, second = f"{before}{shared}x", f"{shared}y{after}"
    slow = max(
        (j - i for i in range(len(first)) for j in range(i + 50, len(first) + 1) if first[i:j] in second), default=0
    )
    assert longest_common(first, second) == slow


def test_texts_too_short_to_match_give_null_and_a_reason(make_pairs: Make, as_records: Make) -> None:
    synthetic = as_records([("short text", "good"), ("another", "bad")])
    result = measure(
        Corpora(
            real=as_records(make_pairs(30, seed=1)), synthetic=synthetic, holdout=as_records(make_pairs(30, seed=2))
        )
    )
    for name in ("ngram_13", "chars_50"):
        assert row(result, name, "difference").value is None
        assert "no synthetic text has" in (row(result, name, "difference").reason or "")
        assert result.long_enough[name]["synthetic"] == 0
    assert row(result, "exact_match", "difference").value == 0


def test_ceiling_and_floor_are_fresh_text_and_copies(make_pairs: Make, as_records: Make) -> None:
    real = as_records(make_pairs(200, seed=1))
    result = measure(
        Corpora(real=real, synthetic=as_records(make_pairs(90, seed=2)), holdout=as_records(make_pairs(100, seed=3)))
    )
    for name in CHECKS:
        sample = row(result, name, "real_sample")
        assert sample.ceiling == 0
        assert sample.floor == pytest.approx(0.5, abs=0.1)
        assert "real" in sample.reads


def test_no_row_leaves_even_where_the_holdout_is_public(make_pairs: Make, as_records: Make) -> None:
    """The control beside T' has a floor made of training records, and its size is cut by theirs."""
    result = measure(
        Corpora(
            real=as_records(make_pairs(90, seed=1)), synthetic=as_records(make_pairs(90, seed=2)),
            holdout=as_records(make_pairs(100, seed=3)),
        )
    )  # fmt: skip
    assert {row.train_on for row in result.rows} == {"real_sample", "holdout", "difference", "real"}
    assert not any(row.publishable for row in decide_publishable(result.rows, holdout_is_public=True))


def test_a_holdout_that_was_trained_on_is_named(make_pairs: Make, as_records: Make) -> None:
    real = make_pairs(60, seed=1)
    synthetic = as_records(make_pairs(30, seed=2))
    result = measure(Corpora(real=as_records(real), synthetic=synthetic, holdout=as_records(real[:20])))
    assert any("20 of its 20 distinct texts also stand in real" in line for line in result.warnings)


def test_synthetic_text_copied_from_the_holdout_is_named(make_pairs: Make, as_records: Make) -> None:
    holdout = make_pairs(60, seed=2)
    result = measure(
        Corpora(real=as_records(make_pairs(60, seed=1)), synthetic=as_records(holdout), holdout=as_records(holdout))
    )
    assert any("60 of 60 synthetic texts are copies of holdout" in line for line in result.warnings)
