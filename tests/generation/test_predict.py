"""Private prediction, from records to text: what it costs, who pays, and what it refuses."""

import csv
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from safesynthdp.cli import run as run_main
from safesynthdp.generation.predict_command import main
from safesynthdp.privacy.command import main as account
from safesynthdp.privacy.ledger import Ledger
from safesynthdp.privacy.output_clipping import mean_probabilities
from safesynthdp.privacy.output_registry import output_mechanism
from safesynthdp.runs import RunDirectory

WORDS = ("senate", "market", "mayor", "flour", "sauce", "bake")
CONTEXT = [
    "--output.shards=8",
    "--output.clip=1",
    "--output.tokens=5",
    "--batches_per_label=2",
    "--prompts.max_record_tokens=8",
]
ADAPTERS = [
    "--source=adapters",
    "--output.shards=3",
    "--output.grouping=many",
    "--output.clip=1",
    "--output.tokens=4",
    "--output.texts_per_batch=4",
    "--adapters.max_steps=2",
]
MIX = [
    "--output.mechanism=uniform_mix",
    "--output.mixing=.5",
    "--output.public_top_k=null",
    "--output.grouping=many",
    "--output.shards=8",
    "--output.tokens=5",
]
HEURISTIC = ["--privacy.mode=none", "--heuristic.scale=0.01", "--heuristic.texts_per_label=2", "--heuristic.tokens=4"]


def write_records(path: Path, count: int = 60, *, leave_out: int | None = None) -> Path:
    rng = random.Random(3)
    rows = [(f"{rng.choice(WORDS)} {i}", rng.choice(("bad", "good")), f"u{i % 9}") for i in range(count)]
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["text", "label", "user"])
        writer.writerows(row for i, row in enumerate(rows) if i != leave_out)
    return path


def words(path: Path, output_dir: Path, *flags: str) -> list[str]:
    values = {
        "output_dir": output_dir,
        "model.from_scratch.num_hidden_layers": 1,
        "model.from_scratch.hidden_size": 32,
        "data.train_file": path,
        "data.labels": "[bad, good]",
        "data.holdout_percent": 0,
    }
    return [f"--{key}={value}" for key, value in values.items()] + list(flags)


def predict(tmp_path: Path, name: str, *flags: str, leave_out: int | None = None) -> RunDirectory:
    path = write_records(tmp_path / f"{name}.csv", leave_out=leave_out)
    main(words(path, tmp_path / name, *flags))
    return RunDirectory.open(tmp_path / name, kind="sample")


def rows(found: RunDirectory) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = pq.read_table(found.path / "synthetic.parquet").to_pylist()
    return table


def refusal(capsys: pytest.CaptureFixture[str], tmp_path: Path, *flags: str) -> str:
    capsys.readouterr()
    assert run_main(main, words(write_records(tmp_path / "r.csv"), tmp_path / "out", *flags)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_text_from_records_in_context_and_a_ledger_that_recomputes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = predict(tmp_path, "out", *CONTEXT, "--output.texts_per_batch=3", "--csv")
    assert Counter(row["label"] for row in rows(found)) == {"bad": 6, "good": 6}
    ledger = Ledger.read(found.path / "ledger.json")
    (entry,), (release,) = ledger.entries, ledger.releases
    priced = output_mechanism("softmax", shards=8, clip=1.0, tokens=5, texts_per_batch=3, adjacency="null")
    assert (entry.kind, entry.mechanism) == ("private_prediction", priced.to_entry())
    assert (release.artifact, release.rule, release.entries) == ("synthetic_text", "compose", ("prediction",))
    assert release.epsilon == priced.epsilon(delta=1e-5)
    assert entry.randomness == {"source": "os_entropy", "seeded": False}
    said = capsys.readouterr().out
    assert "by private prediction" in said
    assert "tokens read for" in said
    assert run_main(account, ["ledger", str(found.path)]) == 0
    facts = found.manifest
    assert facts["forward_tokens"] > 8 * facts["drawn_tokens"]
    assert (facts["num_records"], facts["requested"], facts["untuned"]) == (12, 12, False)
    assert not list((found.path / "state").iterdir())
    main(words(tmp_path / "out.csv", tmp_path / "out", *CONTEXT, "--output.texts_per_batch=3", "--csv"))
    assert "finished already" in capsys.readouterr().out


@pytest.mark.parametrize("grouping", ["one", "many"])
def test_removing_a_record_leaves_every_other_batch_byte_identical(tmp_path: Path, grouping: str) -> None:
    flags = [*CONTEXT, f"--output.grouping={grouping}", "--output.texts_per_batch=2", "--privacy.unsafe_seed=7"]
    flags += ["--output.clip=.2", "--output.temperature=.004", "--output.tokens=12"]  # so that a record shows
    flags += ["--prompts.max_record_tokens=60"]
    full = [row["text"] for row in rows(predict(tmp_path, "full", *flags))]
    touched = set[int]()
    for record in (0, 1, 2, 5, 11, 30):
        fewer = [row["text"] for row in rows(predict(tmp_path, f"without_{record}", *flags, leave_out=record))]
        changed = {i // 2 for i, (a, b) in enumerate(zip(full, fewer, strict=True)) if a != b}
        assert len(changed) <= 1  # its own batch of two texts, or luck
        touched |= changed
    assert touched


def test_adapters_vote_and_are_gone_afterwards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = predict(tmp_path, "out", *ADAPTERS)
    assert [row["label"] for row in rows(found)] == ["bad", "good", "bad", "good"]
    priced = output_mechanism("softmax", shards=3, clip=1.0, tokens=4, texts_per_batch=4, adjacency="many")
    ledger = Ledger.read(found.path / "ledger.json")
    assert ledger.entries[0].mechanism == priced.to_entry()
    assert ledger.releases[0].epsilon == priced.epsilon(delta=1e-5)
    assert not list((found.path / "state").iterdir())
    assert not (found.path / "checkpoint").exists()
    assert run_main(account, ["ledger", str(found.path)]) == 0


def test_the_heuristic_claims_nothing_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = predict(tmp_path, "out", *HEURISTIC)
    ledger = Ledger.read(found.path / "ledger.json")
    assert (ledger.entries[0].kind, ledger.releases[0].epsilon) == ("none", None)
    assert len(rows(found)) == 4
    said = capsys.readouterr().out
    assert "no formal guarantee" in said.splitlines()[-1]


@pytest.mark.parametrize("mechanism", ["laplace", "gaussian_l2", "laplace_probs", "gaussian_probs", "uniform_mix"])
def test_every_mechanism_draws_from_shards(tmp_path: Path, mechanism: str) -> None:
    numbers = {
        "laplace": ["--output.clip=1", "--output.scale=2", "--output.temperature=1"],
        "gaussian_l2": ["--output.clip=1", "--output.scale=2", "--top_k=20"],
        "laplace_probs": ["--output.scale=0.1"],
        "gaussian_probs": ["--output.scale=0.1"],
        "uniform_mix": [
            "--output.mixing=0.5",
            "--output.vocab_size=259",
            "--output.public_top_k=null",
            "--output.grouping=many",
        ],
    }
    flags = [f"--output.mechanism={mechanism}", *numbers[mechanism], "--output.shards=5", "--output.tokens=3"]
    found = predict(tmp_path, "out", *flags)
    epsilon = Ledger.read(found.path / "ledger.json").releases[0].epsilon
    assert epsilon is not None
    assert epsilon > 0


def test_users_pay_for_a_batch_of_every_label(tmp_path: Path) -> None:
    flags = [*CONTEXT, "--output.grouping=many", "--privacy.unit=user", "--data.user_column=user"]
    ledger = Ledger.read(predict(tmp_path, "out", *flags).path / "ledger.json")
    assert ledger.unit == "user"
    assert ledger.entries[0].mechanism["texts_per_batch"] == 2
    assert ledger.entries[0].data["num_records"] == 9


def test_replaced_records_cost_twice_the_range(tmp_path: Path) -> None:
    ledger = Ledger.read(predict(tmp_path, "out", *CONTEXT, "--privacy.adjacency=replace").path / "ledger.json")
    assert ledger.adjacency == "replace"
    assert ledger.entries[0].mechanism["adjacency"] == "replace"


def test_two_runs_differ_and_seeded_ones_do_not(tmp_path: Path) -> None:
    flags = [*CONTEXT, "--output.tokens=12", "--adapters.seed=4"]
    first, second = (rows(predict(tmp_path, name, *flags)) for name in ("a", "b"))
    assert first != second
    seeded = [predict(tmp_path, name, *flags, "--privacy.unsafe_seed=1") for name in ("c", "d")]
    assert rows(seeded[0]) == rows(seeded[1])
    ledger = Ledger.read(seeded[0].path / "ledger.json")
    assert ledger.entries[0].randomness["seeded"] is True
    assert any(line.startswith("seeded") for line in ledger.releases[0].not_covered)


def test_speed_settings_change_no_text(tmp_path: Path) -> None:
    flags = [*CONTEXT, "--privacy.unsafe_seed=1", "--output.texts_per_batch=2"]
    expected = rows(predict(tmp_path, "a", *flags))
    assert rows(predict(tmp_path, "b", *flags, "--batches_at_once=1")) == expected


def test_an_interrupted_prediction_goes_on_with_the_same_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safesynthdp.generation import prediction
    from safesynthdp.generation.output_decoding import decode_texts

    calls = list[int]()

    def stopping(*values: Any, **options: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        decode_texts(*values, **options)

    argv = words(write_records(tmp_path / "r.csv"), tmp_path / "out", *CONTEXT, "--batches_at_once=1")
    with monkeypatch.context() as patch:
        patch.setattr(prediction, "decode_texts", stopping)
        assert run_main(main, argv) == 130
    begun = Ledger.read(tmp_path / "out" / "ledger.json")
    assert begun.has("prediction")
    assert begun.releases == ()
    key = (tmp_path / "out" / "state" / "output_key.json").read_text()
    assert len(json.loads(key)["secret"]) == 64
    capsys.readouterr()
    main(argv)
    assert "2 texts are there already, 2 are left" in capsys.readouterr().out
    assert len(rows(RunDirectory.open(tmp_path / "out"))) == 4


@pytest.mark.parametrize("mechanism", ["laplace_probs", "gaussian_probs"])
def test_a_replaced_record_pays_for_the_batch_it_leaves_and_the_one_it_enters(tmp_path: Path, mechanism: str) -> None:
    flags = [*CONTEXT[:1], *CONTEXT[2:], f"--output.mechanism={mechanism}", "--output.scale=.3"]
    found = predict(tmp_path, "out", *flags, "--privacy.adjacency=replace")
    (entry,) = Ledger.read(found.path / "ledger.json").entries
    charged = output_mechanism(**entry.mechanism)
    one_row, nobody = np.array([[-60.0, 0.0]]), np.zeros((0, 2))
    public = np.array([0.0, -60.0])
    moved_K = mean_probabilities(one_row, public, shards=8) - mean_probabilities(nobody, public, shards=8)
    steps = 2 * 5  # a token of the batch it leaves, a token of the batch it enters
    if charged.pure_epsilon is not None:
        assert charged.pure_epsilon >= steps * np.abs(moved_K).sum() / 0.3 * (1 - 1e-12)
    assert charged.rho >= 0.999 * steps * (
        charged.rho_step if mechanism == "laplace_probs" else moved_K @ moved_K / 0.18
    )


def test_a_shard_without_a_record_stops_no_mixture(tmp_path: Path) -> None:
    flags = ["--output.mechanism=uniform_mix", "--output.mixing=.5", "--output.vocab_size=259"]
    flags += ["--output.public_top_k=null", "--output.grouping=many", "--output.shards=90", "--output.tokens=2"]
    assert len(rows(predict(tmp_path, "out", *flags))) == 2


def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from safesynthdp.generation import prediction
    from safesynthdp.generation.output_decoding import decode_texts

    calls = list[int]()

    def stopping(*values: Any, **options: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        decode_texts(*values, **options)

    argv = words(write_records(tmp_path / "r.csv"), tmp_path / "out", *CONTEXT, "--batches_at_once=1")
    with monkeypatch.context() as patch:
        patch.setattr(prediction, "decode_texts", stopping)
        assert run_main(main, argv) == 130
    return argv


def test_a_prediction_never_goes_on_with_other_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = interrupted(tmp_path, monkeypatch)
    before = (tmp_path / "out" / "ledger.json").read_bytes()
    write_records(tmp_path / "r.csv", leave_out=7)
    capsys.readouterr()
    assert run_main(main, argv) == 2
    assert "was begun on other records" in capsys.readouterr().err
    assert (tmp_path / "out" / "ledger.json").read_bytes() == before


def test_a_prediction_never_goes_on_with_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = interrupted(tmp_path, monkeypatch)
    (tmp_path / "out" / "state" / "output_key.json").unlink()
    capsys.readouterr()
    assert run_main(main, argv) == 2
    assert "pay twice" in capsys.readouterr().err


def test_weights_of_a_run_are_no_public_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("manifest.json", "ledger.json"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("{}")
    (tmp_path / "run" / "checkpoint").mkdir()
    argv = [
        word for word in words(write_records(tmp_path / "r.csv"), tmp_path / "out", *CONTEXT) if "scratch" not in word
    ]
    assert run_main(main, [*argv, f"--model.model_name_or_path={tmp_path / 'run' / 'checkpoint'}"]) == 2
    assert "holds weights of the run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_number_of_records_that_is_private_is_listed(tmp_path: Path) -> None:
    found = predict(tmp_path, "out", *CONTEXT, "--privacy.num_records_is_public=false")
    lines = Ledger.read(found.path / "ledger.json").releases[0].not_covered
    assert any(line.startswith("the number of records") for line in lines)


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        ([*CONTEXT[:1], *CONTEXT[2:]], "output.clip"),
        ([*CONTEXT[:2], *CONTEXT[3:]], "output"),
        ([*CONTEXT, "--output.shards=1"], "output.shards=1"),
        ([*CONTEXT, "--top_k=3"], "top_k=3"),
        ([*CONTEXT, "--privacy.mode=none"], "privacy.mode=none"),
        (HEURISTIC[1:], "privacy.mode=dp"),
        ([*HEURISTIC, "--privacy.target_epsilon=1"], "privacy"),
        ([*CONTEXT, *HEURISTIC], "output is missing"),
        ([], "output is missing"),
        ([*CONTEXT, "--privacy.unit=user"], "privacy.unit=user"),
        ([*CONTEXT, "--privacy.adjacency=replace", "--output.grouping=many"], "privacy.adjacency=replace"),
        ([*ADAPTERS, "--output.grouping=one"], "output.grouping=one"),
        ([*ADAPTERS, "--batches_per_label=2"], "batches_per_label=2"),
        ([*CONTEXT, "--privacy.target_epsilon=0.01"], "privacy.target_epsilon=0.01"),
        ([*CONTEXT, "--prompts.template=no_place"], "prompts.template"),
        ([*CONTEXT, "--prompts.max_record_tokens=5000"], "prompts.max_record_tokens=5000"),
        ([*CONTEXT, "--output.scale=1"], "output.scale=1.0"),
        ([*CONTEXT, "--output.mechanism=uniform_mix"], "output.public_top_k=100"),
        ([*CONTEXT, "--output.surprise=1"], "output"),
        ([*CONTEXT, "--output.clip=much"], "output.clip: Expected a <class 'float'>. Got value: much"),
        ([*CONTEXT, "--output.tokens=null"], "output.tokens is missing"),
        ([*CONTEXT, "--heuristic.noise=cauchy"], "heuristic.noise: Expected a typing.Literal['laplace', 'gaussian']"),
        ([*MIX, "--output.vocab_size=300"], "output.vocab_size=300"),
        ([*CONTEXT, "--data.text_column=nowhere"], ""),
    ],
)
def test_what_has_no_price_is_refused_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], key: str
) -> None:
    assert refusal(capsys, tmp_path, *flags).startswith(f"error: {key}")
    assert not (tmp_path / "out").exists()


def test_models_in_which_rows_can_meet_are_refused() -> None:
    from types import SimpleNamespace

    import torch

    from safesynthdp.errors import UserError
    from safesynthdp.generation.shard_source import refuse_shared_rows

    model = torch.nn.Linear(1, 1)
    nested = {"ffn_config": SimpleNamespace(moe_num_experts=16)}
    for facts in ({"num_local_experts": 8}, {"n_routed_experts": 4}, {"quantization_config": {"bits": 8}}, nested):
        model.config = SimpleNamespace(**facts)  # type: ignore[assignment]
        with pytest.raises(UserError, match="model: "):
            refuse_shared_rows(model)
    model.config = SimpleNamespace(num_local_experts=None)  # type: ignore[assignment]
    refuse_shared_rows(model)


def test_help_answers_without_torch() -> None:
    import subprocess
    import sys

    code = "import sys; import safesynthdp.generation.predict_command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


RECIPES = sorted((Path(__file__).parents[2] / "generate" / "recipes").glob("*_*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_config_with_a_price_or_says_that_it_has_none(recipe: Path) -> None:
    from safesynthdp.config import parse
    from safesynthdp.generation.predict_config import PredictConfig
    from safesynthdp.generation.settings import SampleConfig

    assert f"generate/recipes/{recipe.name}" in recipe.read_text(encoding="utf-8"), "say how to launch it"
    if recipe.stem.startswith("checkpoint_"):
        mechanism = parse(SampleConfig, ["--config", str(recipe), "--run=r", "--output_dir=o"], prog="p")
        assert mechanism.output_mechanism().epsilon(delta=1e-5) > 0
        return
    config = parse(PredictConfig, ["--config", str(recipe)], prog="p")
    epsilon = config.mechanism(num_labels=4).epsilon(delta=config.privacy.target_delta)
    assert (epsilon is None) == recipe.stem.startswith("heuristic")
    assert config.source == ("adapters" if recipe.stem.startswith("adapters") else "in_context")


def test_there_is_a_recipe_for_every_source_and_mechanism() -> None:
    from safesynthdp.privacy.output_registry import CLASSES

    names = {path.stem for path in RECIPES}
    assert {f"{source}_{name}" for source in ("context", "adapters", "checkpoint") for name in CLASSES} <= names
    assert "heuristic_laplace" in names
