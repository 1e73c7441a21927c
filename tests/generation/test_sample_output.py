"""Noise on top of a fine-tuned model: what it adds to the ledger, and everything it refuses."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from safesynthdp.cli import run as run_main
from safesynthdp.errors import UserError
from safesynthdp.generation import command, output_release
from safesynthdp.generation.command import main
from safesynthdp.privacy.command import main as account
from safesynthdp.privacy.ledger import Ledger
from safesynthdp.privacy.mechanisms import Softmax
from safesynthdp.privacy.storage import write_json
from safesynthdp.runs import RunDirectory

MakeRun = Callable[..., RunDirectory]
CLIPPED = ["--output.mechanism=softmax", "--output.clip=0.01", "--output.single=true", "--max_new_tokens=4"]
WITHHELD = [*CLIPPED, "--output.weights_withheld=true"]


def sample(run: RunDirectory, output_dir: Path, *flags: str, num_records: int = 6) -> RunDirectory:
    main([f"--run={run.path}", f"--num_records={num_records}", f"--output_dir={output_dir}", *flags])
    return RunDirectory.open(output_dir, kind="sample")


def texts(found: RunDirectory) -> list[str]:
    return [row["text"] for row in pq.read_table(found.path / "synthetic.parquet").to_pylist()]


def refusal(capsys: pytest.CaptureFixture[str], run: RunDirectory, output_dir: Path, *flags: str) -> str:
    capsys.readouterr()
    argv = [f"--run={run.path}", "--num_records=6", f"--output_dir={output_dir}", *flags]
    assert run_main(main, argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_withheld_weights_give_the_text_the_smaller_of_both_guarantees(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    found = sample(run, tmp_path / "out", *WITHHELD, "--labels=uniform")
    ledger = Ledger.read(found.path / "ledger.json")
    (release,) = ledger.releases
    priced = Softmax(shards=1, single=True, clip=0.01, tokens=4, texts_per_batch=6, adjacency="many")
    histogram = Ledger.read(run.path / "ledger.json").entry("counts")
    assert release.rule == "min"
    assert set(release.entries) == {"dpsgd", "counts", "output"}
    assert ledger.entry("output").mechanism == priced.to_entry()
    assert ledger.entry("output").kind == "output_mechanism"
    assert ledger.entry("counts") == histogram
    weights = Ledger.read(run.path / "ledger.json").releases[0].epsilon
    assert release.epsilon is not None
    assert weights is not None
    assert release.epsilon < weights
    assert release.epsilon > priced.epsilon(delta=1e-5)  # the counts are paid with it
    assert any("withheld" in line for line in release.not_covered)
    said = capsys.readouterr().out
    assert "warning: output.single" in said
    assert "the smaller of" in said
    assert run_main(account, ["ledger", str(found.path)]) == 0
    assert len(texts(found)) == 6
    assert not list((found.path / "state").iterdir())


def test_released_weights_make_the_noise_worth_nothing(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    found = sample(run, tmp_path / "out", *CLIPPED)
    (release,) = Ledger.read(found.path / "ledger.json").releases
    assert (release.rule, release.epsilon) == (
        "post_processing",
        Ledger.read(run.path / "ledger.json").releases[0].epsilon,
    )
    assert "adds no claim" in capsys.readouterr().out


def test_text_of_a_model_without_privacy_can_carry_the_bound_of_the_noise(make_run: MakeRun, tmp_path: Path) -> None:
    found = sample(make_run(mode="none", histogram=None), tmp_path / "out", *WITHHELD, "--labels=uniform")
    (release,) = Ledger.read(found.path / "ledger.json").releases
    priced = Softmax(shards=1, single=True, clip=0.01, tokens=4, texts_per_batch=6, adjacency="many")
    assert (release.rule, release.epsilon) == ("min", priced.epsilon(delta=1e-5))


def test_exact_label_counts_are_covered_by_no_mechanism(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "labels=exact" in refusal(capsys, make_run(mode="none"), tmp_path / "out", *WITHHELD)


def test_one_model_is_one_batch_for_life(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    sample(run, tmp_path / "first", *WITHHELD)
    sample(run, tmp_path / "first", *WITHHELD)
    assert "one batch for life" in refusal(capsys, run, tmp_path / "second", *WITHHELD)
    assert not (tmp_path / "second").exists()
    sample(run, tmp_path / "second", *CLIPPED)


def test_two_runs_differ_whatever_their_seed_and_an_unsafe_seed_marks_the_ledger(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run()
    first = sample(run, tmp_path / "a", *CLIPPED, "--seed=1")
    assert texts(sample(run, tmp_path / "b", *CLIPPED, "--seed=1")) != texts(first)
    seeded = [sample(run, tmp_path / name, *CLIPPED, "--unsafe_seed=5") for name in ("c", "d")]
    assert texts(seeded[0]) == texts(seeded[1])
    claimed = sample(run, tmp_path / "e", *WITHHELD, "--unsafe_seed=5")
    ledger = Ledger.read(claimed.path / "ledger.json")
    assert ledger.entry("output").randomness == {"source": "unsafe_seed", "seeded": True}
    assert any(line.startswith("seeded") for line in ledger.releases[0].not_covered)


def test_the_access_is_on_disk_before_the_first_token_and_a_killed_run_draws_the_same(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safesynthdp.generation import output_sampling
    from safesynthdp.generation.checkpoint_source import draw_texts

    run = make_run()

    def stopping(*values: Any, on_step: Any, **options: Any) -> None:
        def step(rows: Any, number: int) -> None:
            on_step(rows, number)
            if rows:
                raise KeyboardInterrupt

        draw_texts(*values, on_step=step, **options)

    argv = [f"--run={run.path}", "--num_records=6", f"--output_dir={tmp_path / 'out'}", *WITHHELD, "--batch_size=2"]
    with monkeypatch.context() as patch:
        patch.setattr(output_sampling, "draw_texts", stopping)
        assert run_main(main, argv) == 130
    begun = Ledger.read(tmp_path / "out" / "ledger.json")
    assert begun.has("output")
    assert begun.releases == ()
    secret = json.loads((tmp_path / "out" / "state" / "output_key.json").read_text())["secret"]
    assert (tmp_path / "out" / "state" / "output_key.json").stat().st_mode & 0o077 == 0
    main(argv)
    ledger = Ledger.read(tmp_path / "out" / "ledger.json")
    assert ledger.releases[0].rule == "min"
    assert len(secret) == 64


@pytest.mark.parametrize("mechanism", ["laplace", "gaussian_l2", "laplace_probs", "gaussian_probs", "uniform_mix"])
def test_every_mechanism_draws_and_every_ledger_recomputes(
    make_run: MakeRun, tmp_path: Path, mechanism: str, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = {
        "laplace": ["--output.clip=1", "--output.scale=3"],
        "gaussian_l2": ["--output.clip=1", "--output.scale=3", "--top_k=5", "--temperature=0.5"],
        "laplace_probs": ["--output.scale=0.1", "--top_p=0.9"],
        "gaussian_probs": ["--output.scale=0.1"],
        "uniform_mix": ["--output.mixing=0.5", "--output.vocab_size=259", "--output.public_top_k=null"],
    }
    flags = [f"--output.mechanism={mechanism}", *numbers[mechanism], "--output.single=true", "--max_new_tokens=3"]
    found = sample(make_run(), tmp_path / "out", *flags, "--output.weights_withheld=true")
    assert Ledger.read(found.path / "ledger.json").entry("output").mechanism["mechanism"] == mechanism
    assert run_main(account, ["ledger", str(found.path)]) == 0
    capsys.readouterr()


def test_recentred_scores_need_no_public_model(make_run: MakeRun, tmp_path: Path, monkeypatch: Any) -> None:
    from safesynthdp.generation import output_sampling

    monkeypatch.setattr(output_sampling, "load_run_model", lambda *_: pytest.fail("it loaded a public model"))
    flags = ["--output.clip_rule=recentre", "--output.public_top_k=null"]
    assert len(texts(sample(make_run(), tmp_path / "out", *CLIPPED, *flags))) == 6


def test_a_wrong_vocabulary_does_not_use_up_the_one_batch_of_a_run(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    flags = ["--output.mechanism=uniform_mix", "--output.mixing=.5", "--output.public_top_k=null", "--max_new_tokens=4"]
    flags += ["--output.single=true", "--output.weights_withheld=true"]
    said = refusal(capsys, run, tmp_path / "out", *flags, "--output.vocab_size=260")
    assert said.startswith("error: output.vocab_size=260")
    assert not (tmp_path / "out").exists()
    sample(run, tmp_path / "out", *flags, "--output.vocab_size=259")


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        (["--output.mechanism=softmax", "--output.single=true", "--max_new_tokens=4"], "output.clip"),
        (["--output.clip=1", "--output.single=true"], "max_new_tokens"),
        (["--output.clip=1", "--max_new_tokens=4"], "output.single=false"),
        ([*CLIPPED, "--output.scale=1"], "output.scale=1.0"),
        ([*CLIPPED, "--output.mechanism=laplace"], "output.scale"),
        ([*CLIPPED, "--output.mechanism=heuristic"], "output"),
        ([*CLIPPED, "--top_k=5"], "top_k=5"),
        ([*CLIPPED, "--top_p=0.5"], "top_p=0.5"),
        ([*CLIPPED, "--temperature=0.5"], "temperature=0.5"),
        ([*CLIPPED, "--untuned"], "untuned"),
        ([*CLIPPED, "--output.clip=-1"], "output.clip=-1"),
        ([*CLIPPED, "--output.clip_rule=recentre"], "output.public_top_k=100"),
        ([*CLIPPED, "--output.public_top_k=0"], "output.public_top_k=0"),
        (["--unsafe_seed=3"], "unsafe_seed=3"),
    ],
)
def test_what_has_no_price_is_refused_before_anything_is_written(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], key: str
) -> None:
    assert refusal(capsys, make_run(), tmp_path / "out", *flags).startswith(f"error: {key}")
    assert not (tmp_path / "out").exists()


def test_a_sample_without_noise_is_what_it_was(make_run: MakeRun, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(command, "_under_noise", lambda *_: pytest.fail("it drew noise"))
    assert len(texts(sample(make_run(), tmp_path / "out"))) == 6


def test_of_two_samples_begun_at_once_only_one_gets_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_write(path: Path, value: dict[str, Any]) -> None:
        time.sleep(0.2)
        write_json(path, value)

    def claim(name: str) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "ledger.json").write_text("{}")
        mine = SimpleNamespace(path=tmp_path / name, manifest={"run_id": name}, discard=lambda: None)
        try:
            output_release.claim_batch(source, mine, ledger)  # type: ignore[arg-type]
        except UserError:
            return "refused"
        return "claimed"

    monkeypatch.setattr(output_release, "write_json", slow_write)
    source: Any = SimpleNamespace(path=tmp_path, state=tmp_path)
    ledger: Any = SimpleNamespace(releases=(SimpleNamespace(rule="min"),))
    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(claim, ["first", "second"])) == ["claimed", "refused"]
