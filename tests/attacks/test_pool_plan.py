"""A pool is planned from a recipe: roles before coins, one key a shard, one recipe for all."""

import gc
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from safesynthdp.attacks import pool_plan
from safesynthdp.attacks.assignment import members
from safesynthdp.attacks.command import main
from safesynthdp.attacks.pool import Pool
from safesynthdp.attacks.pool_data import compose
from safesynthdp.attacks.pool_scoring import ScorePoolConfig, chosen_in_advance
from safesynthdp.attacks.shard_spec import ShardSpec, recipe_hash
from safesynthdp.attacks.shard_stages import audited_records, training_config
from safesynthdp.cli import run
from safesynthdp.errors import DataError, UserError
from safesynthdp.records import DataConfig, Records, Split, canonical_text, load_split
from safesynthdp.runs import RunDirectory
from safesynthdp.sources import read_file

Plan = Callable[..., Pool]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def plan(tmp_path: Path, pool_recipe: Path) -> Plan:
    def make(*flags: str, name: str = "pool") -> Pool:
        argv = ["plan", "--output_dir", str(tmp_path / name), "--recipe", str(pool_recipe), "--num_models=4"]
        assert run(main, [*argv, "--num_audit=20", "--sample.num_records=10", *flags]) == 0
        return Pool.open(tmp_path / name)

    return make


def test_the_tables_are_those_of_the_contract_and_private(plan: Plan) -> None:
    pool = plan()
    records = pq.read_table(pool.path / "records.parquet")
    assert records.column_names == [
        *("record_id", "role", "unit_id", "text_hash", "num_tokens", "zlib_bytes", "group_size", "canary_kind")
    ]
    bits = pq.read_table(pool.path / "assignment.parquet")
    assert bits.column_names == ["model_id", "record_id", "member", "seed", "scheme"]
    assert bits.num_rows == 20 * 5
    assert stat.S_IMODE(pool.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(pool.training_file.stat().st_mode) == 0o600


def test_a_model_trains_on_the_base_and_on_the_records_its_coins_chose_at_the_nominal_size(plan: Plan) -> None:
    pool = plan()
    audited = audited_records(pool).record_ids
    everyone = set(pq.read_table(pool.path / "records.parquet")["record_id"].to_pylist())
    for spec in pool.shards:
        config = training_config(pool, spec)
        trained = set(load_split(DataConfig(**config["data"])).train.record_ids)
        bits = members(0, spec.model_id, audited, num_models=4)
        chosen = {record_id for record_id, bit in zip(audited, bits, strict=True) if bit}
        assert trained == everyone - set(audited) | chosen
        assert config["data"]["nominal_num_records"] == len(everyone) - 10


def test_all_models_have_one_recipe_and_seeds_of_their_own(plan: Plan) -> None:
    pool = plan()
    configs = [training_config(pool, spec) for spec in pool.shards]
    assert {recipe_hash(config) for config in configs} == {pool.plan["recipe_hash"]}
    assert len({config["privacy"]["unsafe_seed"] for config in configs}) == len(configs)
    assert {config["privacy"]["noise_multiplier"] for config in configs} == {
        pool.plan["recipe"]["privacy"]["noise_multiplier"]
    }
    assert configs[0]["privacy"]["noise_multiplier"] > 0
    assert len({spec.sample["seed"] for spec in pool.shards if spec.sample}) == len(configs)


@pytest.mark.parametrize(
    "change", ["train.learning_rate", "privacy.noise_multiplier", "lora.lora_r", "data.max_length"]
)
def test_any_change_of_the_recipe_is_another_hash(plan: Plan, change: str) -> None:
    config = training_config(plan(), plan(name="same").shards[0])
    section, key = change.split(".")
    changed = config | {section: config[section] | {key: config[section][key] * 2}}
    assert recipe_hash(changed) != recipe_hash(config)
    same = config | {"hardware": {"max_tokens_per_microbatch": 7}, "output_dir": "elsewhere"}
    assert recipe_hash(same) == recipe_hash(config)


def test_the_population_is_held_out_and_in_nobodys_training_data(plan: Plan) -> None:
    pool = plan("--num_population=12")
    population = pq.read_table(pool.population_file).to_pylist()
    reference = set(pq.read_table(pool.reference_file)["text"].to_pylist())
    trained = set(pq.read_table(pool.training_file)["text"].to_pylist())
    assert len(population) == 12
    assert {row["text"] for row in population} <= reference - trained
    assert pq.read_table(plan("--num_population=0", name="none").population_file).num_rows == 0
    assert pq.read_table(plan("--channels=[text]", name="text").population_file).num_rows == 0
    keys = [plan(f"--num_population={n}", name=f"p{n}").shards[0].key for n in (12, 11)]
    assert keys[0] == pool.shards[0].key != keys[1], "another population is another table"


def test_labels_that_are_public_without_a_list_of_them_are_part_of_the_recipe(tmp_path: Path, plan: Plan) -> None:
    """As of the builtin texts: the recipe names no labels, the pool's own file has to."""
    records = tmp_path / "vader.csv"
    rows = [f"{label} word{i} number {i},{label}" for i in range(40) for label in ("tweet", "movie_review")]
    records.write_text("\n".join(["text,label", *rows, ""]))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "safesynthdp.records.builtins_vader.read_vader", lambda _: read_file(records, ["text", "label"])
        )
        patched.setattr("safesynthdp.records.fetch", lambda *_, **__: records)
        pool = plan("--overrides=[--data.train_file=null,--data.labels=null,--data.builtin=vader]")
    config = training_config(pool, pool.shards[0])
    assert len(config["data"]["labels"]) == 4
    assert recipe_hash(config) == pool.shards[0].recipe_hash, "else no shard would be taken for the pool's"


def test_a_key_names_no_place_and_a_pool_that_grows_keeps_its_shards(plan: Plan) -> None:
    small, other = plan(), plan(name="other place")
    assert [spec.key for spec in small.shards] == [spec.key for spec in other.shards]
    assert len({spec.key for spec in small.shards}) == 5
    grown = plan("--num_models=6")
    assert [spec.key for spec in grown.shards[:4]] == [spec.key for spec in small.shards[:4]]
    assert grown.shards[-1].key == small.shards[-1].key
    assert plan("--seed=1").shards[0].key != small.shards[0].key
    assert plan("--overrides=[--train.max_steps=3]").shards[0].key != small.shards[0].key


def test_a_spec_survives_json_and_refuses_an_unknown_key(plan: Plan) -> None:
    spec = plan().shards[0]
    again = ShardSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    with pytest.raises(Exception, match="plan the pool again"):
        ShardSpec.from_json({**spec.to_json(), "host": "here"})


def test_a_repeated_canary_is_one_unit_whose_copies_go_in_together(plan: Plan) -> None:
    pool = plan("--canaries.count=6", "--canaries.repeats=3")
    rows = [r for r in pq.read_table(pool.path / "records.parquet").to_pylist() if r["role"] == "canary"]
    assert [row["group_size"] for row in rows] == [3] * 6
    data = DataConfig(**training_config(pool, pool.shards[0])["data"])
    trained = load_split(data).train.record_ids
    bits = members(0, 0, [row["record_id"] for row in rows], num_models=4)
    for row, bit in zip(rows, bits, strict=True):
        assert sum(i.split("-")[0] == row["record_id"] for i in trained) == (3 if bit else 0)


def records_of(texts: list[str], users: list[str] | None = None) -> Records:
    return Records(
        texts=tuple(texts),
        labels=("a",) * len(texts),
        record_ids=tuple(f"id{i}" for i in range(len(texts))),
        user_ids=None if users is None else tuple(users),
        label_set=("a", "b"),
    )


def test_a_record_with_a_copy_elsewhere_is_never_audited() -> None:
    split = Split(train=records_of(["One two", "one, TWO", "three", "four", "held"]), holdout=records_of(["Held!"]))
    found = compose(split, [], num_audit=10, seed=0, unit="record")
    assert [record.record_id for record in found.audited] == ["id2", "id3"]


def test_users_are_audited_as_a_whole() -> None:
    split = Split(train=records_of(["a", "b", "c", "d"], ["x", "x", "y", "z"]), holdout=records_of([], []))
    found = compose(split, [], num_audit=2, seed=0, unit="user")
    units = {record.unit_id for record in found.audited}
    assert len(units) == 2
    assert found.nominal(unit="user") == 1 + 1
    assert {r.record_id for r in found.records if r.unit_id in units} == {r.record_id for r in found.audited}


def test_a_pool_without_two_units_to_audit_is_refused() -> None:
    split = Split(train=records_of(["same", "same", "one"]), holdout=records_of([]))
    with pytest.raises(DataError, match=r"^num_audit=5: 1 of 3 records can be audited"):
        compose(split, [], num_audit=5, seed=0, unit="record")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_models=5"], "num_models=5: give an even number"),
        (["--channels=[]"], "channels=[]: name model, text"),
        (["--num_audit=0"], "num_audit=0: audit two records or more"),
        (["--overrides=[--data.membership_file=x.parquet]"], "data.membership_file is set in the recipe"),
        (["--recipe=nowhere.yaml"], "config=nowhere.yaml is not a file"),
        (["--canaries.kind=sampled", "--canaries.count=5"], "canaries.texts_file=None with canaries.kind=sampled"),
        (["--canaries.texts_file=x.csv"], "canaries.texts_file=x.csv with canaries.kind=random_tokens"),
        (
            ["--canaries.kind=text_suffix", "--canaries.count=5", "--text_canaries.count=5"],
            "text_canaries.kind=text_suffix: canaries has it too",
        ),
        (["--primary=lirra"], "primary=lirra gets no verdict here; name one of loss, zlib"),
        (["--primary=match_8"], "primary=match_8 gets no verdict here"),
        (["--primary=lira", "--channels=[text]"], "primary=lira gets no verdict here; name one of ngram2_domias"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(
    tmp_path: Path, pool_recipe: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    argv = ["plan", "--output_dir", str(tmp_path / "pool"), "--recipe", str(pool_recipe), *flags]
    assert run(main, argv) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "pool").exists()


def test_a_directory_that_is_no_pool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        Pool.open(tmp_path)


def test_a_plan_that_could_not_be_written_has_let_go_of_its_directory_at_once(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    gc.collect()
    gc.disable()  # what a traceback holds is freed now or not at all
    try:
        with monkeypatch.context() as patch:
            patch.setattr(pool_plan, "assignment_table", full)
            with pytest.raises(AssertionError):
                plan()
        assert plan().shards
    finally:
        gc.enable()


def test_status_of_a_planned_pool_says_that_all_is_missing(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    pool = plan()
    capsys.readouterr()
    assert run(main, ["status", "--pool", str(pool.path), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["missing"] == [0, 1, 2, 3, 4]
    assert [found[name] for name in ("done", "running", "failed", "stale")] == [[], [], [], []]


def test_an_audit_of_another_plan_is_taken_away_and_one_of_the_same_plan_stays(plan: Plan) -> None:
    audit = plan().path / "audit.json"
    audit.write_text("{}")
    plan()
    assert audit.is_file()
    plan("--num_models=6")
    assert not audit.exists(), "it is about four models"


@pytest.mark.parametrize("kind", ["natural", "mislabelled"])
def test_the_text_of_a_canary_is_in_no_reference_corpus_and_no_population(plan: Plan, kind: str) -> None:
    pool = plan(f"--canaries.kind={kind}", "--canaries.count=8")
    texts = pq.read_table(pool.training_file)["text"].to_pylist()
    roles = pq.read_table(pool.path / "records.parquet").to_pylist()
    assert sum(row["role"] == "canary" for row in roles) == 8
    outside = [pq.read_table(path)["text"].to_pylist() for path in (pool.reference_file, pool.population_file)]
    assert all(outside)
    assert not {canonical_text(text) for text in texts} & {canonical_text(text) for some in outside for text in some}


def test_each_channel_has_canaries_of_its_own(plan: Plan) -> None:
    pool = plan("--canaries.count=6", "--text_canaries.count=7", "--text_canaries.repeats=2")
    roles = [row for row in pq.read_table(pool.path / "records.parquet").to_pylist() if row["role"] == "canary"]
    found = [(row["canary_kind"], row["group_size"]) for row in roles]
    assert (found.count(("random_tokens", 1)), found.count(("text_suffix", 2))) == (6, 7)
    kinds = pq.read_table(pool.candidates_file)["kind"].to_pylist()
    assert (kinds.count("random_tokens"), kinds.count("text_suffix")) == (1023, 1023)


def test_sampled_canaries_are_the_texts_that_were_brought(plan: Plan, tmp_path: Path, capsys: Capture) -> None:
    brought = [f"a model wrote line {i}" for i in range(20)]
    (tmp_path / "written.csv").write_text("\n".join(["text", *brought, ""]))
    pool = plan("--canaries.kind=sampled", "--canaries.count=8", f"--canaries.texts_file={tmp_path / 'written.csv'}")
    texts = pq.read_table(pool.training_file)["text"].to_pylist()
    assert len(set(texts) & set(brought)) == 8
    (tmp_path / "written.csv").write_text('text\nmy secret\n" "\n')
    flags = ["--canaries.kind=sampled", "--canaries.count=1", f"--canaries.texts_file={tmp_path / 'written.csv'}"]
    argv = ["plan", "--output_dir", str(tmp_path / "other"), "--recipe", str(tmp_path / "recipe.yaml"), *flags]
    assert run(main, argv) == 2
    err = capsys.readouterr().err
    assert "row 2" in err
    assert "secret" not in err


def test_only_the_attack_the_plan_names_may_have_the_whole_alpha(plan: Plan, capsys: Capture) -> None:
    pool = plan("--primary=rmia")
    assert pool.plan["primary"] == "rmia"
    assert run(main, ["score", "--pool", str(pool.path), "--primary=lira"]) == 2
    assert "primary=lira: the plan names rmia" in capsys.readouterr().err
    config = ScorePoolConfig(pool=str(pool.path))
    assert chosen_in_advance(pool, config) == ("rmia", [])
    open_plan = plan(name="open")
    late = ScorePoolConfig(pool=str(open_plan.path), primary="lira", attacks=["lira", "rmia"])
    primary, notes = chosen_in_advance(open_plan, late)
    assert primary == "lira"
    assert [note.split(" was chosen when scoring")[0] for note in notes] == ["primary=lira", "attacks=lira,rmia"]


def test_a_pool_of_a_finished_run_names_it_unless_its_recipe_was_changed(
    plan: Plan, pool_recipe: Path, tmp_path: Path
) -> None:
    recipe = yaml.safe_load(pool_recipe.read_text())
    finished = RunDirectory.create(tmp_path / "run", kind="finetune", config=recipe)
    finished.finish()
    named = RunDirectory.open(plan(f"--recipe={finished.path}").path).manifest["parents"]
    assert [parent["run_id"] for parent in named] == [finished.manifest["run_id"]]
    changed = plan(f"--recipe={finished.path}", "--overrides=[--train.max_steps=3]", name="changed")
    assert RunDirectory.open(changed.path).manifest["parents"] == []
    assert RunDirectory.open(plan(name="file").path).manifest["parents"] == []
