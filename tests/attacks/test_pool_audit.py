"""From scores to audit.json: what is refuted, what is not, and what can have no verdict."""

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from safesynthdp.attacks.bounds import epsilon_one_run
from safesynthdp.attacks.claims import Claim
from safesynthdp.attacks.guesses import guess
from safesynthdp.attacks.made_up_pools import made_up_bits, made_up_signals, record_ids
from safesynthdp.attacks.pool_audit import audit_pool, evaluate, is_refuted
from safesynthdp.attacks.pool_scores import score
from safesynthdp.attacks.record_risk import record_risk
from safesynthdp.attacks.roc import LOWEST_FPR, ceiling, roc_points, roc_rows
from safesynthdp.errors import ConfigError, DataError

NUM = 600
FIELDS = set(
    "target_id channel attack num_members num_nonmembers auc auc_interval tpr_at_fpr epsilon_lower_bound "  # noqa: SIM905
    "epsilon_attainable epsilon_claimed group_size method alpha delta p_value curve_p_value verdict benchmark_valid "
    "estimates num_targets num_references num_epochs notes".split()
)
Row = dict[str, Any]
SMALL, LARGE = Claim(epsilon=0.5, delta=1e-5), Claim(epsilon=8.0, delta=1e-5)


def table(
    *,
    leak: float,
    targets: int = 1,
    num: int = NUM,
    seed: int = 0,
    baseline_leak: float | None = 0.0,
    channel: str = "model",
    attack: str = "lira",
) -> pa.Table:
    """Scores N(0, 1), members ``leak`` higher; the baseline's too. Targets "target", or 0, 1, ..."""
    rng = np.random.default_rng(seed)
    names = ["target"] if targets == 1 else [str(i) for i in range(targets)]
    parts = []
    for name in names:
        member = rng.random(num) < 0.5
        for here, which, extra in ((channel, attack, leak), ("none", "baseline", baseline_leak)):
            if extra is not None:
                scores = rng.normal(size=num) + extra * member
                parts.append(rows_of(name, here, which, scores, member))
    return pa.concat_tables(parts)


def rows_of(target: str, channel: str, attack: str, scores: Any, member: Any) -> pa.Table:
    size = len(scores)
    return pa.table(
        {
            "target_id": [target] * size,
            "record_id": record_ids(size),
            "channel": [channel] * size,
            "attack": [attack] * size,
            "params_hash": ["p"] * size,
            "score": np.asarray(scores, dtype=np.float64),
            "member": np.asarray(member, dtype=np.bool_),
            "k_in": np.full(size, 4),
            "k_out": np.full(size, 4),
        }
    )


def records_of(num: int = NUM, **columns: Any) -> pa.Table:
    size = {
        "record_id": record_ids(num),
        "unit_id": record_ids(num),
        "group_size": [1] * num,
        "canary_kind": [None] * num,
    }
    return pa.table(size | columns)


def row_of(rows: list[Row], target: str = "target", attack: str = "lira") -> Row:
    (found,) = (row for row in rows if row["target_id"] == target and row["attack"] == attack)
    return found


def test_a_row_has_the_fields_of_the_contract_and_is_plain_json() -> None:
    rows = evaluate(table(leak=1.0, targets=4), {"model": LARGE}, num_epochs=3.0)
    assert all(set(row) == FIELDS for row in rows)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    pooled = row_of(rows, "pooled")
    assert (pooled["num_targets"], pooled["num_references"], pooled["num_epochs"]) == (4, 8, 3.0)


def test_a_score_that_is_stored_beside_another_has_no_verdict_and_no_share_of_alpha() -> None:
    beside = table(leak=3.0, attack="rmia_calibrated", baseline_leak=None)
    both = pa.concat_tables([table(leak=3.0, attack="rmia"), beside])
    rows = evaluate(both, {"model": SMALL})
    assert row_of(rows, attack="rmia")["alpha"] == 0.05
    assert row_of(rows, attack="rmia")["verdict"] == "refuted"
    assert row_of(rows, attack="rmia_calibrated")["verdict"] is None
    with pytest.raises(ConfigError, match="primary=rmia_calibrated has no verdict; name rmia"):
        evaluate(both, {"model": SMALL}, primary="rmia_calibrated")


def test_a_leak_above_the_claim_is_refuted_and_the_same_leak_is_consistent_with_a_larger_one() -> None:
    leaking = table(leak=3.0)
    refuted = evaluate(leaking, {"model": SMALL})
    assert row_of(refuted)["verdict"] == "refuted"
    assert is_refuted(refuted)
    assert row_of(refuted)["epsilon_lower_bound"] > 0.5
    larger = evaluate(table(leak=1.5), {"model": Claim(epsilon=2.5, delta=1e-5)})
    assert row_of(larger)["verdict"] == "consistent"
    assert not is_refuted(larger)


def test_a_claim_above_what_the_audit_can_show_is_no_power() -> None:
    row = row_of(evaluate(table(leak=3.0), {"model": LARGE}))
    assert row["epsilon_attainable"] < 8.0
    assert row["verdict"] == "no_power"


def test_the_bound_is_that_of_the_guesses_on_this_table() -> None:
    scores = table(leak=2.0)
    row = row_of(evaluate(scores, {"model": SMALL}))
    values = np.asarray(scores["score"].to_pylist()[:NUM])
    member = np.asarray(scores["member"].to_pylist()[:NUM])
    found = guess(values, member, tie_keys=record_ids(NUM))
    bound = epsilon_one_run(
        canaries=found.canaries, guesses=found.guesses, correct=found.correct, delta=1e-5, alpha=0.05
    )
    assert (row["epsilon_lower_bound"], row["epsilon_attainable"]) == (
        bound.epsilon_lower_bound,
        bound.epsilon_attainable,
    )
    assert row["alpha"] == 0.05


def test_several_attacks_and_families_share_alpha_and_one_named_in_the_plan_has_it_all() -> None:
    both = pa.concat_tables(
        [table(leak=1.0), table(leak=1.0, attack="rmia", baseline_leak=None), table(leak=1.0, targets=4)]
    )
    rows = evaluate(both, {"model": SMALL})
    assert row_of(rows)["alpha"] == pytest.approx(0.05 / 3), "lira twice, rmia once"
    assert row_of(rows, "pooled")["alpha"] == pytest.approx(0.05 / 3)
    assert row_of(rows, "1")["alpha"] == pytest.approx(0.05 / 6), "half, since the pooled row takes the median"
    named = evaluate(both, {"model": SMALL}, primary="rmia")
    assert row_of(named, attack="rmia")["alpha"] == 0.05
    assert row_of(named, attack="rmia")["verdict"] is not None
    assert row_of(named)["verdict"] is None
    with pytest.raises(ConfigError, match="primary=loss"):
        evaluate(both, {"model": SMALL}, primary="loss")


def test_channels_are_audited_against_their_own_claims() -> None:
    both = pa.concat_tables(
        [table(leak=3.0), table(leak=3.0, channel="text", attack="ngram2_rmia", baseline_leak=None)]
    )
    rows = evaluate(both, {"model": SMALL, "text": LARGE})
    assert row_of(rows)["verdict"] == "refuted"
    assert row_of(rows, attack="ngram2_rmia")["verdict"] == "no_power"
    assert row_of(rows)["alpha"] == 0.05, "two releases are two audits"
    alone = evaluate(both, {"model": SMALL})
    assert row_of(alone, attack="ngram2_rmia")["verdict"] is None


def test_a_baseline_off_chance_or_missing_voids_the_verdict() -> None:
    void = evaluate(table(leak=3.0, baseline_leak=1.0), {"model": SMALL})
    assert row_of(void)["verdict"] is None
    assert row_of(void)["benchmark_valid"] is False
    assert any("void" in note for note in row_of(void)["notes"])
    assert row_of(void, attack="baseline")["benchmark_valid"] is False
    unknown = evaluate(table(leak=3.0, baseline_leak=None), {"model": SMALL})
    assert row_of(unknown)["verdict"] is None
    assert row_of(unknown)["benchmark_valid"] is None
    assert row_of(unknown)["epsilon_lower_bound"] > 0.5, "the bound itself needs no baseline"


def test_one_target_with_a_baseline_off_chance_voids_the_pooled_row() -> None:
    good, bad = table(leak=3.0, targets=4), table(leak=3.0, targets=4, seed=1, baseline_leak=2.0)
    names = np.asarray(good["target_id"].to_pylist())
    mixed = pa.concat_tables([good.filter(pa.array(names != "3")), bad.filter(pa.array(names == "3"))])
    rows = evaluate(mixed, {"model": SMALL})
    assert row_of(rows, "pooled")["verdict"] is None
    assert row_of(rows, "2")["benchmark_valid"] is True


def test_rotating_targets_are_a_median_at_half_alpha_and_are_never_added() -> None:
    rows = evaluate(table(leak=2.0, targets=6), {"model": SMALL})
    pooled, single = row_of(rows, "pooled"), [row_of(rows, str(i)) for i in range(6)]
    assert pooled["epsilon_lower_bound"] == np.median([row["epsilon_lower_bound"] for row in single])
    assert {row["verdict"] for row in single} == {None}
    assert {row["alpha"] for row in single} == {0.025}
    assert pooled["p_value"] == min(1.0, 2 * np.median([row["p_value"] for row in single]))
    assert pooled["verdict"] == "refuted"
    assert pooled["auc"] == pytest.approx(np.mean([row["auc"] for row in single]))
    low, high = pooled["auc_interval"]
    assert low < pooled["auc"] < high
    means = [(single[2 * p]["auc"] + single[2 * p + 1]["auc"]) / 2 for p in range(3)]
    assert high - pooled["auc"] == pytest.approx(4.302653 * np.std(means, ddof=1) / math.sqrt(3), rel=1e-5)


def test_identical_targets_refute_no_more_often_than_one() -> None:
    """The worst dependence: all targets one draw. Adding their counts would refute almost always."""
    shown = 0
    for seed in range(60):
        one = table(leak=0.0, seed=seed, baseline_leak=None, num=200)
        copies = [one.set_column(0, "target_id", pa.array([str(i)] * one.num_rows)) for i in range(6)]
        rows = evaluate(pa.concat_tables(copies), {})
        shown += row_of(rows, "pooled")["epsilon_lower_bound"] > 0
    assert shown / 60 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 60)


def test_noise_is_refuted_in_at_most_alpha_of_audits_with_the_choice_of_attack_included() -> None:
    rng, shown = np.random.default_rng(0), 0
    for _ in range(60):
        member = rng.random(200) < 0.5
        attacks = [rows_of("target", "model", f"a{i}", rng.normal(size=200), member) for i in range(5)]
        rows = evaluate(pa.concat_tables(attacks), {})
        shown += max(row["epsilon_lower_bound"] for row in rows) > 0
    assert shown / 60 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 60)


def test_a_member_count_impossible_for_coins_has_no_bound_and_says_why() -> None:
    member = np.arange(NUM) < 20
    scores = pa.concat_tables([rows_of("target", "model", "lira", member * 1.0, member), table(leak=0)])
    row = row_of(evaluate(scores.slice(0, NUM), {"model": SMALL}))
    assert row["epsilon_lower_bound"] is row["verdict"] is None
    assert any("fair coins" in note for note in row["notes"])


def test_repeated_canaries_are_compared_with_the_claim_for_their_group() -> None:
    records = records_of(canary_kind=["random_tokens"] * NUM, group_size=[4] * NUM)
    claim = Claim(epsilon=0.5, delta=1e-7)
    row = row_of(evaluate(table(leak=3.0), {"model": claim}, records=records))
    assert (row["group_size"], row["epsilon_claimed"]) == (4, 2.0)
    assert row["delta"] == pytest.approx(1e-7 * sum(math.exp(0.5 * i) for i in range(4)))
    assert row["epsilon_lower_bound"] > 0.5
    assert row["verdict"] in ("consistent", "refuted")
    assert row["verdict"] == ("refuted" if row["epsilon_lower_bound"] > 2.0 else "consistent")
    nothing = evaluate(table(leak=3.0), {"model": LARGE}, records=records)
    assert row_of(nothing)["verdict"] is None
    assert any("promises nothing" in note for note in row_of(nothing)["notes"])


def test_kinds_of_record_are_audited_apart_and_share_alpha() -> None:
    kinds = [None if i < 300 else "random_tokens" for i in range(NUM)]
    rows = [
        r
        for r in evaluate(table(leak=1.0), {"model": SMALL}, records=records_of(canary_kind=kinds))
        if r["attack"] == "lira"
    ]
    assert [row["notes"][0] for row in rows] == ["records: natural", "records: random_tokens"]
    assert {row["alpha"] for row in rows} == {0.025}
    assert {row["num_members"] + row["num_nonmembers"] for row in rows} == {300}


def test_records_of_a_user_are_one_unit_with_their_sum() -> None:
    users = [f"u{i // 3}" for i in range(NUM)]
    rng = np.random.default_rng(0)
    member = np.repeat(rng.random(NUM // 3) < 0.5, 3)
    scores = rows_of("target", "model", "lira", rng.normal(size=NUM) + 2 * member, member)
    records = records_of(unit_id=users)
    row = row_of(evaluate(scores, {"model": Claim(epsilon=1.0, delta=1e-5, unit="user")}, records=records))
    assert row["num_members"] + row["num_nonmembers"] == NUM // 3
    mixed = rows_of("target", "model", "lira", rng.normal(size=NUM), rng.random(NUM) < 0.5)
    with pytest.raises(DataError, match="records both in and out"):
        evaluate(mixed, {"model": Claim(epsilon=1.0, delta=1e-5, unit="user")}, records=records)


def test_a_claim_for_exchanged_records_gets_no_verdict_from_coins() -> None:
    row = row_of(evaluate(table(leak=3.0), {"model": Claim(epsilon=0.1, delta=1e-5, adjacency="replace")}))
    assert row["verdict"] is None
    assert any("replace neighbours" in note for note in row["notes"])


def test_half_the_noise_is_caught_by_the_curve_gate_and_not_by_the_bound() -> None:
    """mu .92493 claims epsilon 4; half the noise doubles it. One run attains 3.5 and cannot say."""
    claim = Claim(epsilon=4.0, delta=1e-5, noise_multiplier=2 / 0.92493, sample_rate=1.0, steps=4)
    right, half = (table(leak=leak, num=1000, seed=2) for leak in (0.92493, 2 * 0.92493))
    assert row_of(evaluate(right, {"model": claim}, gate="curve"))["verdict"] == "consistent"
    assert row_of(evaluate(half, {"model": claim}, gate="curve"))["verdict"] == "refuted"
    assert {row_of(evaluate(scores, {"model": claim}))["verdict"] for scores in (right, half)} == {"no_power"}
    assert row_of(evaluate(half, {"model": claim}))["curve_p_value"] < 0.01


def test_a_match_test_gives_a_p_value_and_never_a_bound() -> None:
    rng = np.random.default_rng(0)
    member = rng.random(NUM) < 0.5
    matched = (rng.random(NUM) < 0.2) & member
    rows = evaluate(rows_of("target", "text", "match_8", matched * 1.0, member), {"text": SMALL})
    row = row_of(rows, attack="match_8")
    assert row["p_value"] < 1e-9
    assert row["epsilon_lower_bound"] is row["verdict"] is None
    assert row["method"] == "match test"


def test_estimates_are_labelled_and_cover_what_the_world_is() -> None:
    claim = Claim(epsilon=8.0, delta=1e-5)
    found = row_of(evaluate(table(leak=1.0, num=20_000), {"model": claim}))["estimates"]
    assert found["label"] == "estimates, not bounds"
    assert 0.9 < found["gaussian_mu"] < 1.0
    low, high = found["bayesian_epsilon_interval"]
    assert 0 < low < high < 3


def test_the_rate_at_a_thousandth_needs_5000_nonmembers() -> None:
    assert row_of(evaluate(table(leak=1.0), {}))["tpr_at_fpr"]["0.001"] is None
    assert row_of(evaluate(table(leak=1.0, num=11_000), {}))["tpr_at_fpr"]["0.001"] > 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_cannot_be_used_are_named(value: float) -> None:
    scores = table(leak=0.0, baseline_leak=None)
    values = scores["score"].to_pylist()
    values[5] = value
    with pytest.raises(DataError, match=r"1 have a score that is NaN or infinite \(r5\)"):
        evaluate(scores.set_column(5, "score", pa.array(values)), {})
    with pytest.raises(DataError, match="1 records stand twice for target target"):
        evaluate(pa.concat_tables([scores, scores.slice(0, 1)]), {})
    with pytest.raises(DataError, match=r"no row in the table of records \(r599\)"):
        evaluate(scores, {}, records=records_of(NUM).slice(0, NUM - 1))
    with pytest.raises(DataError, match="no column member"):
        evaluate(scores.drop(["member"]), {})
    with pytest.raises(DataError, match="members or non-members only"):
        evaluate(rows_of("target", "model", "lira", np.zeros(9), np.ones(9)), {})
    with pytest.raises(ConfigError, match="gate=coin"):
        evaluate(scores, {}, gate="coin")


def test_a_pool_goes_from_signals_to_rows_in_one_call() -> None:
    bits = made_up_bits(200, models=6)
    signals = pa.concat_tables(
        [made_up_signals(bits, leak=4.0), made_up_signals(bits, leak=4.0, channel="text", seed=1)]
    )
    rng = np.random.default_rng(0)
    texts = {i: " ".join(f"w{n}" for n in rng.integers(0, 50, 8)) for i in record_ids(200)}
    scores, rows = audit_pool(signals.unify_dictionaries(), bits, claims={"model": SMALL, "text": LARGE}, texts=texts)
    attacks = {row["attack"] for row in rows}
    assert attacks == {"loss", "lira", "lira_offline", "t_mid", "rmia", "rmia_offline", "ngram2_rmia", "baseline"}
    assert row_of(rows, "pooled")["auc"] > 0.95
    assert row_of(rows, "pooled")["benchmark_valid"] is True
    assert set(scores["target_id"].to_pylist()) == {*map(str, range(6)), "target"}
    with pytest.raises(DataError, match="no text for 199 of 200"):
        audit_pool(signals.unify_dictionaries(), bits, claims={}, texts={"r0": "a b"})


def test_attacks_left_out_are_named_and_too_few_pairs_are_an_error() -> None:
    bits = made_up_bits(60, models=6)
    signals, texts = made_up_signals(bits, leak=1.0), {i: f"text {i}" for i in record_ids(60)}
    _, rows = audit_pool(signals, bits, claims={}, texts=texts)
    assert any("zlib, ref, rmia_calibrated" in note for note in row_of(rows, "pooled")["notes"])
    without = signals.filter(pa.array(np.asarray(signals["model_id"].to_pylist()) != 2))
    with pytest.raises(DataError, match="attack=lira: 2 usable pairs"):
        audit_pool(without, bits, claims={}, texts=texts)
    _, rows = audit_pool(without, bits, claims={}, texts=texts, attacks=["loss"])
    assert {row["attack"] for row in rows} == {"loss", "baseline"}


def test_the_curve_of_an_attack_has_the_rates_of_the_tables_and_starts_at_its_floor() -> None:
    found = roc_points(np.array([3.0, 2.0, 2.0, 0.0]), np.array([2.0, 1.0, 0.0, 0.0]))
    assert found == {"fpr": [LOWEST_FPR, 0.25, 0.5, 1.0], "tpr": [0.25, 0.75, 0.75, 1.0]}
    flat = roc_points(np.zeros(5), np.zeros(5))
    assert flat == {"fpr": [LOWEST_FPR, 1.0], "tpr": [0.0, 1.0]}


def test_the_ceiling_of_a_claim_lies_above_chance_and_grows_with_copies() -> None:
    grid = np.geomspace(1e-4, 1, 9)
    one, two = (ceiling(Claim(epsilon=1.0, delta=0.0), grid, group_size=k) for k in (1, 2))
    expected = [min(math.e * x, 1 - (1 - x) / math.e) for x in grid]
    assert one == pytest.approx(expected)
    assert two is not None
    assert all(b >= a >= x for a, b, x in zip(one or [], two, grid, strict=True))
    rows = roc_rows(table(leak=1.0), {"model": SMALL})
    assert {(row["channel"], row["kind"]) for row in rows} == {
        ("model", "natural"), ("model", "chance"), ("model", "ceiling"), ("none", "natural"), ("none", "chance"),
    }  # fmt: skip


def test_the_risk_of_a_record_is_its_place_among_nonmembers_with_its_spread_over_targets() -> None:
    bits = made_up_bits(300, models=8)
    signals = made_up_signals(bits, leak=0.0)
    lp = signals["value"].to_numpy().copy()
    is_r7 = np.asarray(signals["record_id"].to_pylist()) == "r7"
    inside = np.concatenate([bits["member"].to_numpy(zero_copy_only=False), np.zeros(9 * 300, dtype=np.bool_)])
    lp[is_r7 & inside] += 20 * 9.0
    leaking = signals.set_column(4, "value", pa.array(lp))
    risk = record_risk(score(leaking, bits, attack="t_mid"))
    found = {row["record_id"]: row for row in risk.to_pylist()}
    assert found["r7"]["risk_in"] > 0.95
    assert found["r7"]["risk_in_sd"] < 0.1
    assert found["r7"]["num_in"] + found["r7"]["num_out"] == 9
    assert np.mean([row["risk_in"] for row in found.values()]) == pytest.approx(0.5, abs=0.03)
