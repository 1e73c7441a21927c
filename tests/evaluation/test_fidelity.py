"""Rows of fidelity, diversity and validity: whole, bounded, beside their ceiling, honest about what they read."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from safesynthdp.evaluation.encoders import TFIDF, choose_encoder
from safesynthdp.evaluation.fidelity import Settings, measure_fidelity
from safesynthdp.evaluation.fidelity_diversity import measure_diversity
from safesynthdp.evaluation.inputs import Corpora
from safesynthdp.evaluation.rows import Row, decide_publishable, find, to_mapping
from safesynthdp.evaluation.selftest_corpora import as_records, make_world
from safesynthdp.evaluation.validity import measure_validity

Make = Callable[..., Any]
Pairs = Sequence[tuple[str, str]]


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {
        "encoder": choose_encoder(TFIDF), "reference": None, "no_reference": "a test", "buckets": 10, "seeds": 2,
    }  # fmt: skip
    return Settings(**(values | changes))


def measure(corpora: Corpora, **changes: Any) -> list[Row]:
    chosen = settings(**changes)
    fidelity = measure_fidelity(corpora, chosen, progress=lambda what: None)
    rows = fidelity.rows + measure_diversity(
        corpora, fidelity.drawn, fidelity.pairs, chosen.encoder, max_records=chosen.max_records
    )
    return rows + measure_validity(corpora, seeds=2, with_labels=True)


def only(rows: Sequence[Row], name: str, *, train_on: str = "synthetic", **which: Any) -> Row:
    found = find(rows, name, train_on=train_on, **which)
    assert found is not None, (name, which)
    return found


@pytest.fixture(scope="module")
def pool() -> Pairs:
    world = make_world("quick", seed=3)
    return [*world.holdout, *world.fresh, *world.real]


@pytest.fixture(scope="module")
def fresh(pool: Pairs) -> list[Row]:
    """Real text in the place of synthetic text, with an untuned model's text and labels beside it."""
    baseline = [
        (" ".join(random.Random(i).choices(["noise", "static", "hum", "hiss"], k=9)), "screen") for i in range(260)
    ]
    return measure(
        Corpora(
            real=as_records(pool[:900]), synthetic=as_records(pool[900:1150]), holdout=as_records(pool[1150:1400]),
            baseline=as_records(baseline),
        )
    )  # fmt: skip


def test_every_row_is_whole_json_with_a_ceiling_or_a_reason(fresh: list[Row]) -> None:
    for row in fresh:
        mapping = to_mapping(row)
        assert row.value is None or row.ceiling is not None, mapping
        assert row.floor is not None or row.reason, mapping
        if row.value is not None and row.low is not None and row.high is not None:
            assert row.low <= row.value <= row.high, mapping
        if row.value is not None:
            assert row.low is not None, mapping


def test_every_metric_of_the_schema_is_there(fresh: list[Row]) -> None:
    names = {row.name for row in fresh if row.train_on == "synthetic"}
    assert names == {
        "c2st_auc", "mauve", "mauve_star", "frontier_integral", "frechet", "length_ks", "bits_per_byte", "distinct_1",
        "distinct_2", "distinct_3", "duplicate_share", "nn_cosine", "coverage", "empty_share", "truncated_share",
        "invalid_label_share", "label_consistency", "label_tv",
    }  # fmt: skip


def test_real_text_is_at_its_ceiling_and_noise_at_the_floor(fresh: list[Row]) -> None:
    for name, model in (("c2st_auc", "words"), ("mauve", "tfidf-svd"), ("coverage", "tfidf-svd")):
        row = only(fresh, name, model=model)
        base = only(fresh, name, train_on="base_model", model=model)
        assert row.floor == base.value
        assert row.ceiling == only(fresh, name, train_on="real_matched", model=model).value
        assert row.low is not None
        assert row.ceiling is not None
        assert row.floor is not None
        assert abs((row.value or 0) - row.ceiling) < abs(row.floor - row.ceiling) / 3


def test_rows_say_what_they_read(fresh: list[Row]) -> None:
    assert only(fresh, "c2st_auc", model="words").reads == ("synthetic", "holdout")
    assert only(fresh, "c2st_auc", train_on="real_matched", model="words").reads == ("real", "holdout")
    assert only(fresh, "duplicate_share", model="near").reads == ("synthetic",)
    assert set(only(fresh, "label_consistency").reads) == {"synthetic", "real", "holdout"}


def test_a_number_in_a_space_fitted_on_private_texts_reads_them_and_stays(fresh: list[Row]) -> None:
    """tf-idf and its SVD see all files: a cosine between synthetic texts depends on every record."""
    for train_on in ("synthetic", "base_model"):
        row = only(fresh, "nn_cosine", train_on=train_on, model="tfidf-svd")
        assert {"real", "holdout"} <= set(row.reads)
        assert not decide_publishable([row], holdout_is_public=True)[0].publishable


def test_a_sample_that_another_file_cut_short_reads_that_file(pool: Pairs) -> None:
    corpora = Corpora(
        real=as_records(pool[:900]), synthetic=as_records(pool[900:1200]), holdout=as_records(pool[1200:1260])
    )
    row = only(measure(corpora), "nn_cosine", model="tfidf-svd")
    assert row.n == 60
    assert set(row.reads) == {"synthetic", "real", "holdout"}


def test_a_comparison_that_the_training_records_cut_short_reads_them(pool: Pairs) -> None:
    """Its n is their number, which no row for the public may tell."""
    corpora = Corpora(
        real=as_records(pool[:57]), synthetic=as_records(pool[900:1200]), holdout=as_records(pool[1200:1300])
    )
    rows = measure_fidelity(corpora, settings(), progress=lambda what: None).rows
    assert {row.n for row in rows if row.name == "frechet" and row.label is None} == {57}
    assert all("real" in row.reads for row in rows if row.train_on == "synthetic")


def test_a_label_that_is_rare_in_training_records_tells_so_to_the_inside_only(pool: Pairs) -> None:
    goods, rest = ([pair for pair in pool if (pair[1] == "goods") == is_in] for is_in in (True, False))
    corpora = Corpora(
        real=as_records(goods[:41] + rest[:459]),
        synthetic=as_records(goods[100:350] + rest[500:750]),
        holdout=as_records(goods[350:600] + rest[750:1000]),
    )
    rows = decide_publishable(
        measure_fidelity(corpora, settings(), progress=lambda what: None).rows, holdout_is_public=True
    )
    row = only(rows, "mauve", model="tfidf-svd", label="goods")
    assert "41 records a side" in (row.reason or "")
    assert "real" in row.reads
    assert not row.publishable
    assert only(rows, "mauve", model="tfidf-svd").publishable


def test_the_same_records_in_any_number_of_calls_give_the_same_numbers(pool: Pairs) -> None:
    corpora = Corpora(
        real=as_records(pool[:300]), synthetic=as_records(pool[300:400]), holdout=as_records(pool[400:500])
    )
    assert measure(corpora) == measure(corpora)


def test_labels_with_too_few_records_have_null_rows_with_the_reason(fresh: list[Row]) -> None:
    row = only(fresh, "coverage", model="tfidf-svd", label="goods")
    assert row.value is None
    assert "200 are needed" in (row.reason or "")


def test_a_label_with_enough_records_is_compared_alone(pool: Pairs) -> None:
    goods = [pair for pair in pool if pair[1] == "goods"]
    spoilt = [(" ".join(reversed(text.split())), label) for text, label in goods[:210]]
    rest = [pair for pair in pool if pair[1] == "screen"]
    corpora = Corpora(
        real=as_records(goods[420:840] + rest[:420]),
        synthetic=as_records(spoilt + rest[420:630]),
        holdout=as_records(goods[210:420] + rest[630:840]),
    )
    rows = measure(corpora)
    good, screen = (only(rows, "c2st_auc", model="tfidf", label=label) for label in ("goods", "screen"))
    assert (good.low or 0) > 0.8
    assert (screen.low or 1) < 0.55
    assert 90 < good.n < 120  # half of 210 a side
    for name in ("mauve", "mauve_star", "frontier_integral", "frechet", "coverage"):
        for label in ("goods", "screen"):
            found = only(rows, name, model="tfidf-svd", label=label)
            assert found.low is not None
            assert found.ceiling is not None


def test_fewer_texts_than_buckets_need_is_a_line_and_not_a_number(pool: Pairs) -> None:
    corpora = Corpora(
        real=as_records(pool[:200]), synthetic=as_records(pool[200:260]), holdout=as_records(pool[260:360])
    )
    chosen = settings(buckets=100)
    result = measure_fidelity(corpora, chosen, progress=lambda what: None)
    row = only(result.rows, "mauve", model="tfidf-svd")
    assert row.value is None
    assert any("too few for 100 buckets" in line and "--mauve_buckets 12" in line for line in result.warnings)


def test_a_handful_of_records_leaves_fidelity_out_and_says_so(pool: Pairs) -> None:
    corpora = Corpora(real=as_records(pool[:50]), synthetic=as_records(pool[50:60]), holdout=as_records(pool[60:90]))
    result = measure_fidelity(corpora, settings(), progress=lambda what: None)
    assert result.rows == []
    assert "fidelity is left out: 10 records" in result.warnings[0]
    assert measure_diversity(corpora, result.drawn, result.pairs, choose_encoder(TFIDF), max_records=2000) == []


def test_hostile_text_is_measured(pool: Pairs) -> None:
    hostile = [("", "goods"), (" ", "goods"), ("\x00\x01", "goods"), ("x" * 1_000_000, "goods"), ("!?", "")] * 8
    corpora = Corpora(real=as_records(pool[:100]), synthetic=as_records(hostile), holdout=as_records(pool[100:160]))
    rows = measure(corpora, buckets=4)
    assert only(rows, "empty_share").value == pytest.approx(0.4)
    assert only(rows, "invalid_label_share").value == pytest.approx(0.2)
    assert (only(rows, "duplicate_share", model="exact").low or 0) > 0.2
    for row in rows:
        to_mapping(row)


def test_a_few_texts_without_words_cover_nothing(pool: Pairs) -> None:
    nonsense = [(f"zork{i} blip{i} quux{i}", "goods") for i in range(95)] + [("!?", "goods"), ("", "screen")] * 5
    corpora = Corpora(real=as_records(pool[:300]), synthetic=as_records(nonsense), holdout=as_records(pool[300:405]))
    rows = measure(corpora)
    assert only(rows, "coverage", model="tfidf-svd").value == 0
    assert (only(rows, "coverage", train_on="real_matched", model="tfidf-svd").value or 0) > 0.8


def test_one_label_only_leaves_consistency_out_and_the_rest_in(pool: Pairs) -> None:
    parts = [as_records([(text, "one") for text, _ in pool[start : start + 60]]) for start in (0, 60, 120)]
    rows = measure(Corpora(real=parts[0], synthetic=parts[1], holdout=parts[2]))
    assert find(rows, "label_consistency", train_on="synthetic") is None
    assert only(rows, "label_tv").value == 0


def test_consistency_is_the_agreement_with_a_classifier_of_real_text(pool: Pairs) -> None:
    names = sorted({label for _, label in pool})
    wrong = [(text, names[(names.index(label) + 1) % 3] if i % 2 else label) for i, (text, label) in enumerate(pool)]
    corpora = Corpora(
        real=as_records(pool[:600]), synthetic=as_records(wrong[600:800]), holdout=as_records(pool[800:1000])
    )
    row = only(measure(corpora), "label_consistency")
    assert row.value == pytest.approx(0.5, abs=0.03)
    assert row.ceiling == pytest.approx(1, abs=0.02)
    assert row.floor == pytest.approx(1 / 3, abs=0.06)
