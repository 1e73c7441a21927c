"""The draw of members and non-members, the rows and the table of scores."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from safesynthdp.attacks import tier0
from safesynthdp.attacks.signals import ATTACKS
from safesynthdp.attacks.tier0 import BASELINE, Audited, Target
from safesynthdp.errors import DataError
from safesynthdp.records import DataConfig, Records, Split, load_split
from safesynthdp.training.token_statistics import TokenStatistics

TARGET = Target(target_id="t", epsilon_claimed=3.0, delta=1e-5, num_epochs=2.0, unit="record", is_seeded=False)
ROW_KEYS = {
    *("target_id", "channel", "attack", "num_members", "num_nonmembers", "auc", "auc_interval", "tpr_at_fpr"),
    *("epsilon_lower_bound", "epsilon_attainable", "epsilon_claimed", "group_size", "method", "alpha", "delta"),
    *("p_value", "curve_p_value", "verdict", "benchmark_valid", "estimates", "num_targets", "num_references"),
    *("num_epochs", "notes"),
}
COLUMNS = ["target_id", "record_id", "channel", "attack", "params_hash", "score", "member", "k_in", "k_out"]


def noise_scores(num: int, *, baseline_leak: float = 0.0) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.bool_]]:
    rng = np.random.default_rng(0)
    is_member = np.arange(num) % 2 == 0
    scores = {attack: rng.normal(size=num) for attack in (*ATTACKS, BASELINE)}
    return scores | {BASELINE: scores[BASELINE] + baseline_leak * is_member}, is_member


def drawn_ids(audited: Audited, *, members: bool) -> set[str]:
    return {i for i, m in zip(audited.records.record_ids, audited.is_member, strict=True) if m == members}


def test_the_draw_takes_equally_many_from_each_side_and_names_the_sides_rightly(split: Split) -> None:
    audited = tier0.draw(split, max_records=40, seed=0)
    members, nonmembers = drawn_ids(audited, members=True), drawn_ids(audited, members=False)
    assert len(members) == len(nonmembers) == 40
    assert members <= set(split.train.record_ids)
    assert nonmembers <= set(split.holdout.record_ids)
    text_of = dict(zip(split.train.record_ids, split.train.texts, strict=True))
    text_of |= dict(zip(split.holdout.record_ids, split.holdout.texts, strict=True))
    assert [text_of[i] for i in audited.records.record_ids] == list(audited.records.texts)


def test_the_smaller_side_caps_both(split: Split) -> None:
    few = dataclasses.replace(split, holdout=split.holdout.select(range(7)))
    assert tier0.draw(few, max_records=1000, seed=0).is_member.tolist().count(True) == 7


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_the_records(split: Split) -> None:
    audited = tier0.draw(split, max_records=30, seed=0)
    turned = dataclasses.replace(split, train=split.train.select(reversed(range(len(split.train)))))
    again = tier0.draw(turned, max_records=30, seed=0)
    assert again.records.record_ids == audited.records.record_ids
    assert tier0.draw(split, max_records=30, seed=1).records.record_ids != audited.records.record_ids


def test_the_order_of_the_draw_does_not_list_members_first(split: Split) -> None:
    first_half = tier0.draw(split, max_records=80, seed=0).is_member[:80]
    assert 20 < int(first_half.sum()) < 60


def test_a_run_without_holdout_cannot_be_attacked(data: DataConfig) -> None:
    whole = load_split(dataclasses.replace(data, holdout_percent=0))
    with pytest.raises(DataError, match=r"0 non-members.*data\.holdout_percent"):
        tier0.draw(whole, max_records=10, seed=0)


def test_an_id_on_both_sides_is_refused(split: Split) -> None:
    with pytest.raises(DataError, match="record_id stands twice"):
        tier0.draw(dataclasses.replace(split, holdout=split.train), max_records=10, seed=0)


def test_every_row_has_every_key_no_bound_and_no_verdict() -> None:
    rows = tier0.audit_rows(*noise_scores(400), target=TARGET, alpha=0.1)
    json.dumps(rows, allow_nan=False)
    assert [row["attack"] for row in rows] == ["loss", "ref", "zlib", "mink_20", "minkpp_20", "ez", "baseline"]
    assert all(set(row) == ROW_KEYS for row in rows)
    assert all(row["epsilon_lower_bound"] is None and row["verdict"] is None for row in rows)
    assert all("indicator only" in row["notes"][0] for row in rows)
    assert all(row["benchmark_valid"] is True for row in rows)
    assert [row["channel"] for row in rows] == [*["model"] * 6, "none"]
    assert [row["alpha"] for row in rows] == [*[0.1] * 6, 0.001]
    assert [row["epsilon_claimed"] for row in rows] == [*[3.0] * 6, None]


def test_a_baseline_that_wins_voids_every_row() -> None:
    rows = tier0.audit_rows(*noise_scores(400, baseline_leak=2.0), target=TARGET, alpha=0.05)
    assert all(row["benchmark_valid"] is False for row in rows)
    assert all(any(note.startswith("void") for note in row["notes"]) for row in rows)
    too_few = tier0.audit_rows(*noise_scores(20, baseline_leak=9.0), target=TARGET, alpha=0.05)
    assert all(row["benchmark_valid"] is None for row in too_few)


def test_rows_of_a_seeded_run_say_so_and_every_row_says_it_is_private() -> None:
    plain = tier0.audit_rows(*noise_scores(100), target=TARGET, alpha=0.05)
    seeded = tier0.audit_rows(*noise_scores(100), target=dataclasses.replace(TARGET, is_seeded=True), alpha=0.05)
    assert not any("seed" in " ".join(row["notes"]) for row in plain)
    assert all("seeded: no guarantee" in " ".join(row["notes"]) for row in seeded)
    assert all("outside the guarantee" in " ".join(row["notes"]) for row in plain)


def test_rows_of_users_say_that_records_are_not_independent() -> None:
    target = dataclasses.replace(TARGET, unit="user")
    rows = tier0.audit_rows(*noise_scores(100), target=target, alpha=0.05)
    assert all(row["group_size"] is None and "not independent" in " ".join(row["notes"]) for row in rows)


def test_the_table_has_one_row_a_record_and_attack_and_no_text(split: Split) -> None:
    audited = tier0.draw(split, max_records=20, seed=0)
    scores = {attack: np.arange(40.0) + i for i, attack in enumerate(("loss", "ref", "zlib", BASELINE))}
    table = tier0.scores_table(scores, audited, target_id="t", parameters={"seed": 0})
    assert table.column_names == COLUMNS
    assert table.num_rows == 160
    rows = [row for row in table.to_pylist() if row["attack"] == "zlib"]
    assert [row["record_id"] for row in rows] == list(audited.records.record_ids)
    assert [row["score"] for row in rows] == [i + 2.0 for i in range(40)]
    assert [row["member"] for row in rows] == audited.is_member.tolist()
    assert len({row["params_hash"] for row in table.to_pylist()}) == 4
    other = tier0.scores_table(scores, audited, target_id="t", parameters={"seed": 1})
    assert other["params_hash"][0] != table["params_hash"][0]
    assert not any(text in str(table.to_pydict()) for text in audited.records.texts)


def test_the_score_of_a_record_does_not_depend_on_which_others_were_drawn(split: Split, tmp_path: Path) -> None:
    def by_length(records: Records) -> list[TokenStatistics]:
        found = list[TokenStatistics]()
        for text in records.texts:
            values = np.full(len(text.split()), -math.log(1 + len(text)))
            top = np.zeros(values.size, dtype=np.bool_)
            found.append(TokenStatistics(log_probs=values, means=values - 1, deviations=values * 0 + 1, is_top=top))
        return found

    found = []
    for size in (30, 60):
        audited = tier0.draw(split, max_records=size, seed=0)
        scores = tier0.score(audited, target=by_length, base=by_length, seed=0)
        found.append(dict(zip(audited.records.record_ids, scores["zlib"].tolist(), strict=True)))
    assert found[0].items() <= found[1].items()
