"""A run that exists as the target of a pool: compared with the recipe, never bounded, attacked by the shadows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safesynthdp.attacks.assignment import assignment_table, members
from safesynthdp.attacks.audit_rows import UNDRAWN_NOTE
from safesynthdp.attacks.claims import Claim
from safesynthdp.attacks.command import main
from safesynthdp.attacks.made_up_pools import made_up_signals, record_ids
from safesynthdp.attacks.pool import Pool
from safesynthdp.attacks.pool_audit import audit_pool
from safesynthdp.attacks.pool_signals import read_bits
from safesynthdp.attacks.shard_spec import ShardSpec
from safesynthdp.attacks.shard_stages import training_config
from safesynthdp.cli import run
from safesynthdp.errors import DataError
from safesynthdp.records import DataConfig, load_split, split_of_run
from safesynthdp.runs import RunDirectory
from safesynthdp.training.command import main as finetune

pytestmark = pytest.mark.timeout(300)  # a real training comes first


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, write_pool_recipe: Callable[[Path], Path]) -> Path:
    return write_pool_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def existing(recipe: Path) -> RunDirectory:
    """A run that somebody trained with the recipe and a seed of its own."""
    flags = [f"--output_dir={recipe.parent / 'mine'}", "--privacy.unsafe_seed=77"]
    assert run(finetune, ["--config", str(recipe), *flags]) == 0
    return RunDirectory.open(recipe.parent / "mine", kind="finetune")


def plan(folder: Path, recipe: Path | str, target: RunDirectory, *flags: str) -> int:
    size = ["--num_models=2", "--num_audit=20", "--sample.num_records=8"]
    argv = ["plan", "--output_dir", str(folder), "--recipe", str(recipe), "--target_run", str(target.path)]
    return run(main, [*argv, *size, *flags])


def test_its_members_are_audited_with_as_many_records_it_never_saw(
    tmp_path: Path, recipe: Path, existing: RunDirectory
) -> None:
    assert plan(tmp_path / "pool", recipe, existing) == 0
    pool = Pool.open(tmp_path / "pool")
    bits = pq.read_table(pool.path / "assignment.parquet").to_pylist()
    split = split_of_run(existing)
    of_target = {row["record_id"]: row["member"] for row in bits if row["scheme"] == "as-trained"}
    assert sum(of_target.values()) * 2 == len(of_target) == 20
    for record_id, member in of_target.items():
        assert record_id in (split.train if member else split.holdout).record_ids
    reference = set(pq.read_table(pool.reference_file)["text"].to_pylist())
    texts = dict(zip(split.holdout.record_ids, split.holdout.texts, strict=True))
    assert reference == {text for record_id, text in texts.items() if record_id not in of_target}
    for spec in pool.shards[:2]:
        config = training_config(pool, spec)
        trained = set(load_split(DataConfig(**config["data"])).train.record_ids)
        coins = dict(zip(of_target, members(0, spec.model_id, list(of_target), num_models=2), strict=True))
        assert trained == set(split.train.record_ids) - set(of_target) | {i for i, coin in coins.items() if coin}
        assert config["data"]["nominal_num_records"] == len(split.train), "the rate is that of the run"
    ledger = json.loads((existing.path / "ledger.json").read_text())
    noise = ledger["entries"][0]["mechanism"]["noise_multiplier"]
    assert pool.plan["recipe"]["privacy"]["noise_multiplier"] == noise


def test_the_directory_of_the_run_is_a_recipe_too(tmp_path: Path, existing: RunDirectory) -> None:
    assert plan(tmp_path / "pool", existing.path, existing) == 0
    pool = Pool.open(tmp_path / "pool")
    assert pool.shards[-1].run_id == existing.manifest["run_id"]
    assert [spec.run_id for spec in pool.shards[:-1]] == [None, None]


def test_the_key_of_a_shard_that_is_trained_here_does_not_know_of_existing_runs(
    tmp_path: Path, planned_pool: Path, recipe: Path, existing: RunDirectory
) -> None:
    spec = Pool.open(planned_pool).shards[0]
    facts = spec.to_json()
    del facts["run_id"]
    assert ShardSpec.from_json(facts).key == spec.key, "pools that were planned before keep their shards"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--overrides=[--train.max_steps=7]"], "train.max_steps is 6.0 in the run and 7.0 in the recipe"),
        (
            ["--overrides=[--lora.lora_r=3,--privacy.target_epsilon=4]"],
            "privacy.target_epsilon is 8.0 in the run and 4",
        ),
        (["--overrides=[--data.holdout_percent=40]"], "read other records than the recipe does"),
        (["--canaries.count=3"], "holds no canary; leave out canaries.count"),
        (["--with_target=false"], "leave out canaries.count, text_canaries.count and with_target=false"),
    ],
)
def test_a_run_of_another_recipe_is_refused_with_the_key_that_differs(
    tmp_path: Path,
    recipe: Path,
    existing: RunDirectory,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    said: str,
) -> None:
    capsys.readouterr()
    assert plan(tmp_path / "pool", recipe, existing, *flags) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.splitlines()[-1].startswith("error: target_run=")
    assert not (tmp_path / "pool").exists()


def test_another_run_at_its_place_is_refused_when_the_shard_is_carried_out(
    tmp_path: Path, recipe: Path, existing: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(tmp_path / "pool", recipe, existing) == 0
    path = tmp_path / "pool" / "plan.json"
    path.write_text(path.read_text().replace(str(existing.manifest["run_id"]), "0" * 32))
    assert run(main, ["run", "--pool", str(tmp_path / "pool"), "--shard", "2"]) == 1
    assert "is not the run that was planned with" in capsys.readouterr().err


def made_up(num: int, *, leak: float) -> tuple[pa.Table, pa.Table]:
    ids = record_ids(num)
    trained = set(ids[::2])
    bits = assignment_table({i: i for i in ids}, seed=0, num_models=6, with_target=True, trained=trained)
    return bits, made_up_signals(bits, leak=leak)


def test_a_target_without_coins_has_an_auc_and_never_a_bound_or_a_verdict() -> None:
    bits, signals = made_up(600, leak=5.0)
    rng = np.random.default_rng(0)
    texts = {i: " ".join(f"word{w}" for w in rng.integers(0, 90, size=6)) for i in record_ids(600)}
    claims = {"model": Claim(epsilon=0.5, delta=1e-5)}
    rows = audit_pool(signals, bits, claims=claims, texts=texts, attacks=["lira", "rmia"])[1]
    target = [row for row in rows if row["target_id"] == "target" and row["channel"] == "model"]
    assert len(target) == 2
    for row in target:
        assert row["auc"] > 0.95
        assert [row[name] for name in ("epsilon_lower_bound", "p_value", "curve_p_value", "verdict")] == [None] * 4
        assert UNDRAWN_NOTE in row["notes"]
    pooled = [row for row in rows if row["target_id"] == "pooled"]
    assert {row["verdict"] for row in pooled} == {"refuted"}, "the shadow models have coins"
    assert {row["alpha"] for row in pooled} == {0.05 / 2}, "a target that is not tested has no share of alpha"


def test_bits_that_are_no_coins_are_refused_of_a_shadow_model() -> None:
    bits = made_up(40, leak=0.0)[0]
    assert not read_bits(bits).target_is_drawn
    schemes = np.asarray(bits["scheme"].to_pylist(), dtype=object)
    schemes[:40] = "as-trained"
    wrong = bits.set_column(bits.column_names.index("scheme"), "scheme", pa.array(schemes.tolist()))
    with pytest.raises(DataError, match="only a dedicated target can be as-trained"):
        read_bits(wrong)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_that_exists_is_attacked_by_shadow_models_and_left_as_it_is(
    tmp_path: Path, recipe: Path, existing: RunDirectory
) -> None:
    before = {path: path.stat().st_mtime_ns for path in existing.path.rglob("*")}
    assert plan(tmp_path / "pool", recipe, existing, "--num_models=6") == 0
    for shard in range(7):
        assert run(main, ["run", "--pool", str(tmp_path / "pool"), "--shard", str(shard)]) == 0
    assert run(main, ["score", "--pool", str(tmp_path / "pool")]) == 0
    rows: list[dict[str, Any]] = json.loads((tmp_path / "pool" / "audit.json").read_text())["rows"]
    target = {row["attack"]: row for row in rows if row["target_id"] == "target"}
    assert {"lira", "rmia", "ref", "ngram2_rmia", "match_8"} <= set(target)
    assert all(row["epsilon_lower_bound"] is None and row["verdict"] is None for row in target.values())
    assert not (tmp_path / "pool" / "target" / "run").exists()
    assert (tmp_path / "pool" / "target" / "sample" / "synthetic.parquet").is_file()
    assert before == {path: path.stat().st_mtime_ns for path in existing.path.rglob("*")}
