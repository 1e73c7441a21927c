"""Canaries ranked among fresh candidates: what a corpus repeats stands out, and nothing else does."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safesynthdp.attacks.canary_exposure import exposure_table
from safesynthdp.attacks.claims import Claim
from safesynthdp.attacks.command import main
from safesynthdp.attacks.pool import Pool
from safesynthdp.attacks.pool_audit import evaluate
from safesynthdp.attacks.pool_tables import audited_texts
from safesynthdp.attacks.reference_attacks import exposure_p_value
from safesynthdp.cli import run

Planned = Callable[..., Pool]
UNHEARD = [f"unheard{i} of{i} words{i}" for i in range(50)]


@pytest.fixture
def planned(tmp_path: Path, pool_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Planned:
    def make(*flags: str) -> Pool:
        argv = ["plan", "--output_dir", str(tmp_path / "pool"), "--recipe", str(pool_recipe), "--num_models=2"]
        assert run(main, [*argv, "--num_audit=10", "--canaries.count=30", *flags]) == 0
        monkeypatch.setattr(Pool, "state_of", lambda self, spec: "done")
        return Pool.open(tmp_path / "pool")

    return make


def release(pool: Pool, repeated: Callable[[str], bool]) -> None:
    """Write the corpus of every model: words nobody knows, and the canaries of its own members that are repeated."""
    texts, bits = audited_texts(pool), pq.read_table(pool.path / "assignment.parquet").to_pylist()
    for spec in pool.shards:
        mine = [row["record_id"] for row in bits if row["model_id"] == spec.model_id and row["member"]]
        corpus = [*UNHEARD, *(texts[i] for i in mine if repeated(i))]
        pool.folder(spec).mkdir(parents=True)
        pq.write_table(pa.table({"text": corpus}), pool.folder(spec) / "corpus.parquet")


def test_a_repeated_canary_is_ahead_of_all_candidates_and_one_that_was_out_is_not(planned: Planned) -> None:
    pool = planned()
    release(pool, lambda record_id: True)
    found = exposure_table(pool, audited_texts(pool))
    assert found is not None
    rows = found.to_pylist()
    assert {row["target_id"] for row in rows} == {"0", "1", "target"}
    assert len(rows) == 3 * 30, "canaries alone"
    assert {row["score"] for row in rows if row["member"]} == {10.0}
    assert max(row["score"] for row in rows if not row["member"]) < 1.0


def test_a_canary_is_ranked_among_candidates_of_its_own_kind(planned: Planned) -> None:
    pool = planned("--text_canaries.count=20")
    release(pool, lambda record_id: False)
    found = exposure_table(pool, audited_texts(pool))
    assert found is not None
    kind_of = {r["record_id"]: r["canary_kind"] for r in pq.read_table(pool.path / "records.parquet").to_pylist()}
    for kind, size in (("random_tokens", 30), ("text_suffix", 20)):
        bits = [row["score"] for row in found.to_pylist() if kind_of[row["record_id"]] == kind]
        assert len(bits) == 3 * size
        assert np.exp2(-np.asarray(bits)).mean() > 0.5 - 4 / math.sqrt(12 * size), "else told apart by the format"


@pytest.mark.parametrize("kind", ["random_tokens", "text_suffix"])
def test_without_a_leak_the_rank_of_a_canary_is_that_of_any_candidate(kind: str, planned: Planned) -> None:
    pool = planned(f"--canaries.kind={kind}")
    assert pq.read_table(pool.candidates_file).num_rows == 1023
    release(pool, lambda record_id: False)
    found = exposure_table(pool, audited_texts(pool))
    assert found is not None
    ranks = np.exp2(-found["score"].to_numpy())
    assert ranks.mean() > 0.5 - 4 / math.sqrt(12 * 30), "uniform, or above with ties"


def test_kinds_whose_texts_run_out_and_pools_without_text_or_candidates_have_no_exposure(planned: Planned) -> None:
    pool = planned("--canaries.kind=mislabelled", "--canaries.count=5")
    release(pool, lambda record_id: True)
    assert exposure_table(pool, audited_texts(pool)) is None
    pool.candidates_file.unlink()
    assert exposure_table(pool, audited_texts(pool)) is None


def test_the_p_value_of_many_canaries_takes_their_ranks_for_dependent() -> None:
    assert exposure_p_value(np.array([10.0])) == 2 / 1024
    assert exposure_p_value(np.array([10.0, 0.0, 0.0])) == 1.0
    rng = np.random.default_rng(0)
    same = [exposure_p_value(np.full(9, -np.log2(rng.random()))) for _ in range(2000)]
    assert np.mean(np.asarray(same) <= 0.05) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_its_row_is_a_test_of_no_leakage_and_takes_no_share_of_alpha() -> None:
    rng = np.random.default_rng(0)
    member = rng.random(200) < 0.5
    parts = [
        pa.table(
            {
                "target_id": ["target"] * 200,
                "record_id": [f"r{i}" for i in range(200)],
                "channel": [channel] * 200,
                "attack": [attack] * 200,
                "score": np.asarray(scores, dtype=np.float64),
                "member": member,
                "k_in": [0] * 200,
                "k_out": [0] * 200,
            }
        )
        for channel, attack, scores in (
            ("text", "ngram2_exposure", np.where(member, 10.0, 0.5)),
            ("text", "ngram2_rmia", rng.normal(size=200)),
            ("none", "baseline", rng.normal(size=200)),
        )
    ]
    rows = {row["attack"]: row for row in evaluate(pa.concat_tables(parts), {"text": Claim(epsilon=1.0, delta=1e-5)})}
    found = rows["ngram2_exposure"]
    assert found["p_value"] == 2 / 1024
    assert found["verdict"] is found["epsilon_lower_bound"] is None
    assert found["method"] == "rank exposure"
    assert found["estimates"] == {"exposure_bits_in": 10.0, "exposure_bits_out": 0.5}
    assert rows["ngram2_rmia"]["alpha"] == 0.05
    assert rows["ngram2_rmia"]["verdict"] is not None
