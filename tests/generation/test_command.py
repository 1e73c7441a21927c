"""From a run directory to a sample directory, whole or resumable, or one line."""

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from safesynthdp.cli import run as run_main
from safesynthdp.generation import command
from safesynthdp.generation.command import main
from safesynthdp.models import LoadedModel
from safesynthdp.privacy.ledger import Ledger
from safesynthdp.runs import RunDirectory

MakeRun = Callable[..., RunDirectory]


def sample(run: RunDirectory, output_dir: Path, *flags: str, num_records: int = 12) -> RunDirectory:
    main([f"--run={run.path}", f"--num_records={num_records}", f"--output_dir={output_dir}", *flags])
    return RunDirectory.open(output_dir, kind="sample")


def rows(sampled: RunDirectory) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(sampled.path / "synthetic.parquet").to_pylist()
    return found


def refusal(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line of a command that must exit with 2."""
    assert run_main(main, argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "model shards" not in line and line]
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def test_a_sample_holds_what_was_asked_for_and_says_what_it_inherits(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    found = sample(run, tmp_path / "out", "--csv", num_records=16)
    table = rows(found)
    assert list(table[0]) == ["text", "label", "record_id"]
    assert [row["record_id"] for row in table] == [f"s-{i:06d}" for i in range(1, 17)]
    assert Counter(row["label"] for row in table) == {"bad": 10, "good": 6}
    with (found.path / "synthetic.csv").open(encoding="utf-8", newline="") as handle:
        assert list(csv.DictReader(handle)) == table
    text, weights = Ledger.read(found.path / "ledger.json"), Ledger.read(run.path / "ledger.json")
    assert [(r.artifact, r.rule, r.epsilon) for r in text.releases] == [
        ("synthetic_text", "post_processing", weights.releases[0].epsilon)
    ]
    facts = found.manifest
    assert facts["status"] == "finished"
    assert facts["parents"][0]["run_id"] == run.manifest["run_id"]
    assert (facts["num_records"], facts["requested"], facts["untuned"]) == (16, 16, False)
    assert facts["labels"] == {"bad": 10, "good": 6, "so so": 0}
    assert facts["texts_per_second"] > 0
    said = capsys.readouterr().out
    assert "1 of 3 labels got no text" in said
    assert "epsilon=" in said
    assert not list((found.path / "state").iterdir())


def test_counts_in_the_manifest_are_those_of_the_file(make_run: MakeRun, tmp_path: Path) -> None:
    """A random byte model writes all kinds of broken text; every piece of it is kept."""
    found = sample(make_run(), tmp_path / "out", "--max_new_tokens=3", num_records=400)
    texts = [row["text"] for row in rows(found)]
    counts = found.manifest["counts"]
    assert len(texts) == 400
    assert counts["empty"] == sum(not text.strip() for text in texts) > 0
    assert counts["malformed"] >= sum("\N{REPLACEMENT CHARACTER}" in text for text in texts) > 0
    assert 0 < counts["truncated"] < 400


@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_batch_size_changes_nothing_in_the_file(make_run: MakeRun, tmp_path: Path, batch_size: int) -> None:
    run = make_run()
    expected = rows(sample(run, tmp_path / "whole"))
    assert rows(sample(run, tmp_path / "cut", f"--batch_size={batch_size}")) == expected
    assert rows(sample(run, tmp_path / "other", "--seed=1")) != expected


def test_an_interrupted_sample_goes_on_and_ends_as_if_it_had_not_been(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safesynthdp.generation import sampling
    from safesynthdp.generation.decoding import decode_wave

    run, seen = make_run(), list[int]()

    def stopping(model: Any, wave: Any, *, on_step: Any, **options: Any) -> None:
        def step(drawn: Any, number: int) -> None:
            on_step(drawn, number)
            seen.extend(row.number for row in drawn)
            if len(seen) > 3:
                raise KeyboardInterrupt

        decode_wave(model, wave, on_step=step, **options)

    expected = rows(sample(run, tmp_path / "whole"))
    argv = [f"--run={run.path}", "--num_records=12", f"--output_dir={tmp_path / 'out'}", "--batch_size=6"]
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "decode_wave", stopping)
        assert run_main(main, argv) == 130
    assert not list((tmp_path / "out").glob("synthetic.*"))
    assert 0 < len(seen) < 12
    capsys.readouterr()
    main(argv)
    assert f"{len(seen)} texts are there already, {12 - len(seen)} are left" in capsys.readouterr().out
    assert rows(RunDirectory.open(tmp_path / "out")) == expected


def test_a_finished_sample_is_left_alone(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    sample(run, tmp_path / "out")
    monkeypatch.setattr(command, "_draw", lambda *_: pytest.fail("it drew again"))
    sample(run, tmp_path / "out")
    assert "finished already" in capsys.readouterr().out


def test_untuned_text_comes_from_the_base_model_with_equal_labels_and_no_cost(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run()
    found = sample(run, tmp_path / "out", "--untuned")
    assert Counter(row["label"] for row in rows(found)) == {"bad": 4, "good": 4, "so so": 4}
    ledger = Ledger.read(found.path / "ledger.json")
    assert ledger.entries == ()
    assert ledger.releases[0].epsilon == 0
    assert found.manifest["untuned"] is True
    tuned = sample(run, tmp_path / "tuned", "--labels=uniform")
    assert [row["text"] for row in rows(tuned)] != [row["text"] for row in rows(found)]


def test_untuned_text_needs_no_finished_training(make_run: MakeRun, tmp_path: Path) -> None:
    assert sample(make_run(finish=False), tmp_path / "out", "--untuned").is_finished


def test_a_run_without_privacy_has_a_null_epsilon(make_run: MakeRun, tmp_path: Path) -> None:
    found = sample(make_run(mode="none"), tmp_path / "out")
    assert Ledger.read(found.path / "ledger.json").releases[0].epsilon is None
    assert found.manifest["label_source"] == "exact"


def test_counts_released_apart_from_the_weights_raise_the_price(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(histogram="apart")
    by_counts = Ledger.read(sample(run, tmp_path / "a").path / "ledger.json").releases[0]
    uniform = Ledger.read(sample(run, tmp_path / "b", "--labels=uniform").path / "ledger.json").releases[0]
    assert by_counts.rule == "compose"
    assert by_counts.epsilon is not None
    assert uniform.epsilon is not None
    assert by_counts.epsilon > uniform.epsilon
    by_roots = Ledger.read(sample(run, tmp_path / "c", "--labels=sqrt").path / "ledger.json").releases[0]
    assert by_roots.epsilon == by_counts.epsilon


def test_an_unfinished_run_is_refused_unless_it_released_weights(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    run.update(status="interrupted")
    sample(run, tmp_path / "out")
    assert "is not finished: sampling the weights it has released so far" in capsys.readouterr().out
    (run.path / "ledger.json").unlink()
    argv = [f"--run={run.path}", "--num_records=1", f"--output_dir={tmp_path / 'other'}"]
    assert "has released no weights yet" in refusal(argv, capsys)
    assert not (tmp_path / "other").exists()


def test_weights_that_changed_meanwhile_never_join_the_same_text(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    found = sample(run, tmp_path / "out")
    argv = [f"--run={run.path}", "--num_records=12", f"--output_dir={found.path}"]
    path = run.path / "checkpoint" / "model.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    assert "holds text of other weights" in refusal(argv, capsys)


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        (["--num_records=0"], "num_records=0"),
        (["--num_records=3", "--temperature=0"], "temperature=0"),
        (["--num_records=3", "--temperature=.nan"], "temperature"),
        (["--num_records=3", "--temperature=.inf"], "temperature=inf"),
        (["--num_records=3", "--top_p=0"], "top_p=0"),
        (["--num_records=3", "--top_p=1.01"], "top_p=1.01"),
        (["--num_records=3", "--top_k=-1"], "top_k=-1"),
        (["--num_records=3", "--batch_size=0"], "batch_size=0"),
        (["--num_records=3", "--max_new_tokens=0"], "max_new_tokens=0"),
        (["--num_records=3", "--max_new_tokens=510"], "max_new_tokens=510"),
        (["--num_records=3", "--seed=-1"], "seed=-1"),
        (["--num_records=3", "--untuned", "--labels=histogram"], "labels=histogram"),
        (["--num_records=3", "--untuned", "--labels=sqrt"], "labels=sqrt"),
        (["--num_records=3", "--labels=best"], "labels"),
        (["--num_records=3", "--dtype=float16"], "dtype"),
        (["--num_records=3", "--tempersture=2"], "tempersture"),
        ([], "num_records"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], key: str
) -> None:
    argv = [f"--run={make_run().path}", f"--output_dir={tmp_path / 'out'}", *flags]
    assert f"error: {key}" in refusal(argv, capsys)


def test_a_missing_or_foreign_run_or_output_is_one_line(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, full = make_run(), tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    tail = ["--num_records=2", f"--output_dir={tmp_path / 'out'}"]
    assert "is not a run directory" in refusal([f"--run={tmp_path / 'nowhere'}", *tail], capsys)
    assert "is not empty and holds no run" in refusal([f"--run={run.path}", *tail[:1], f"--output_dir={full}"], capsys)
    assert "'finetune'" in refusal([f"--run={run.path}", *tail[:1], f"--output_dir={run.path}"], capsys)
    sampled = sample(run, tmp_path / "out")
    assert "'sample'" in refusal([f"--run={sampled.path}", "--num_records=2", f"--output_dir={full}"], capsys)
    assert "another config" in refusal([f"--run={run.path}", *tail], capsys)


def test_adapters_are_merged_before_decoding(load: Callable[[Any], LoadedModel], fresh_model: Any) -> None:
    from peft import LoraConfig, get_peft_model

    from safesynthdp.generation.sampling import ready_model

    adapted = get_peft_model(fresh_model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    tokens = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        expected = adapted(input_ids=tokens).logits
        merged = ready_model(load(adapted), dtype=None)
        torch.testing.assert_close(merged(input_ids=tokens).logits, expected)
    assert not any("lora" in name for name, _ in merged.named_parameters())


@pytest.mark.parametrize("asked", ["sdpa", "eager"])
def test_the_attention_asked_for_is_decoded_with_and_gives_the_same_logits(
    load: Callable[[Any], LoadedModel], fresh_model: Any, asked: str
) -> None:
    from safesynthdp.generation.sampling import ready_model

    tokens = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        expected = fresh_model(input_ids=tokens).logits.clone()
        ready: Any = ready_model(load(fresh_model), dtype=None, attn_implementation=asked)
        assert ready.config._attn_implementation == asked
        found = ready(input_ids=tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)  # eager takes its softmax in float32


@pytest.mark.parametrize("has_instructions", [True, False])
def test_the_fastest_precision_is_bfloat16_only_where_the_processor_multiplies_it(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_instructions: bool
) -> None:
    monkeypatch.setattr("safesynthdp.training.precision.multiplies_bfloat16", lambda _: has_instructions)
    found = sample(make_run(), tmp_path / "out", "--dtype=fastest", "--max_new_tokens=3")
    assert found.manifest["dtype"] == ("bfloat16" if has_instructions else "float32")


def test_a_precision_that_the_processor_has_no_instructions_for_is_warned_of(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("safesynthdp.training.precision.multiplies_bfloat16", lambda _: False)
    sample(make_run(), tmp_path / "slow", "--dtype=bfloat16", "--max_new_tokens=3")
    assert "warning: bfloat16 on a processor without instructions" in capsys.readouterr().out
    sample(make_run(), tmp_path / "plain", "--max_new_tokens=3")
    assert "bfloat16" not in capsys.readouterr().out


def test_an_attention_that_the_model_does_not_take_is_refused(
    load: Callable[[Any], LoadedModel], fresh_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safesynthdp.errors import ConfigError
    from safesynthdp.generation.sampling import ready_model

    other = "sdpa" if fresh_model.config._attn_implementation == "eager" else "eager"
    monkeypatch.setattr(type(fresh_model), "_can_set_attn_implementation", classmethod(lambda cls: False))
    with pytest.raises(ConfigError, match=f"attn_implementation={other}"):
        ready_model(load(fresh_model), dtype=None, attn_implementation=other)


def test_help_answers_without_torch() -> None:
    import subprocess

    code = "import sys; import safesynthdp.generation.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_recipe_is_a_config_of_this_command(make_run: MakeRun, tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "generate" / "recipes" / "sample.yaml"
    run = make_run()
    main(["--config", str(recipe), f"--run={run.path}", f"--output_dir={tmp_path / 'out'}", "--num_records=4"])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["csv"] is True
    assert (tmp_path / "out" / "synthetic.csv").is_file()
