"""The launch commands of the documents, really run."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from safesynthdp.privacy.ledger import Ledger

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DOOR = ["train/dp_finetune.py", "--config"]
Weights = Callable[[Path], bytes]


def launch(*words: str, recipe: Path, run: Path, more: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(BIN / words[0]), *words[1:], *DOOR, str(recipe), "--output_dir", str(run), *more],
        cwd=ROOT,
        env=outside() | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def of_the_readme() -> list[list[str]]:
    """Return the words of every launch that the README prints, continued lines joined."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.startswith("    accelerate launch ")]


SMALL = {
    "own model": ["--model.model_name_or_path", "null", "--model.from_scratch.num_hidden_layers", "1",
                  "--model.from_scratch.hidden_size", "16", "--data.max_length", "40", "--train.max_steps", "3",
                  "--train.expected_batch_size", "8", "--privacy.accountant", "rdp"],
    "own recipe": ["--train.max_steps", "3"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("words", of_the_readme(), ids=lambda words: Path(words[3]).stem)
def test_a_launch_of_the_readme_runs_as_it_is_printed(words: list[str], recipe: Path, tmp_path: Path) -> None:
    """What is made smaller is added: two processes for eight, a tiny model, few steps."""
    for folder in ("train", "accelerate_configs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "private.csv").symlink_to(recipe.parent / "records.csv")
    (tmp_path / "R.yaml").write_text("output_dir: runs/mine\n" + recipe.read_text())
    script = words.index("train/dp_finetune.py")
    fewer = ["--num_processes", "2"] if "--num_processes" in words else []
    more = SMALL["own recipe" if "R.yaml" in words else "own model"]
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:script], *fewer, *words[script:], *more],
        cwd=tmp_path,
        env=outside() | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Ledger.read(tmp_path / "runs/mine/ledger.json").entry("dpsgd").mechanism["steps"] == 3


def test_the_readme_launches_one_process_two_and_the_gpus() -> None:
    assert {"cpu", "cpu_2proc", "multi_gpu"} <= {Path(words[3]).stem for words in of_the_readme()}


def outside() -> dict[str, str]:
    """Return the environment of a shell that no launcher has touched."""
    left_out = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK")
    return {name: value for name, value in os.environ.items() if name not in left_out}


def launched(config: str) -> list[str]:
    return ["accelerate", "launch", "--config_file", f"accelerate_configs/{config}.yaml"]


@pytest.mark.slow
def test_accelerate_launch_trains_on_two_processes_and_one_of_them_writes(recipe: Path, tmp_path: Path) -> None:
    done = launch(*launched("cpu_2proc"), recipe=recipe, run=tmp_path / "run", more=("--hardware.num_processes", "2"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("spent epsilon=") == 1, "one process speaks"
    assert Ledger.read(tmp_path / "run" / "ledger.json").entry("dpsgd").mechanism["steps"] == 12
    assert '"world_size": 2' in (tmp_path / "run" / "manifest.json").read_text()


@pytest.mark.slow
def test_the_launcher_s_silent_single_process_is_refused(recipe: Path, tmp_path: Path) -> None:
    done = launch("accelerate", "launch", "--cpu", "--num_processes", "2", recipe=recipe, run=tmp_path / "run")
    assert done.returncode != 0
    assert "several were asked for and one was started" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_accelerate_launch_trains_on_one_process(recipe: Path, tmp_path: Path) -> None:
    done = launch(*launched("cpu"), recipe=recipe, run=tmp_path / "run", more=("--hardware.num_processes", "1"))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("config", "num_processes"), [("single_gpu", "1"), ("multi_gpu", "2")])
def test_the_files_for_gpus_train_on_a_machine_without_one_too(
    recipe: Path, tmp_path: Path, config: str, num_processes: str
) -> None:
    more = ("--hardware.num_processes", num_processes)
    words = [*launched(config), "--num_processes", num_processes, "--main_process_ip", "127.0.0.1"]
    done = launch(*words, recipe=recipe, run=tmp_path / "run", more=more)
    assert done.returncode == 0, done.stderr
    assert f'"world_size": {num_processes}' in (tmp_path / "run" / "manifest.json").read_text()


def test_every_file_for_a_launch_is_run_by_these_tests() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    for path in (ROOT / "accelerate_configs").glob("*.yaml"):
        assert f'"{path.stem}"' in here


@pytest.mark.slow
def test_an_fsdp2_launch_shards_the_base_and_releases_what_an_unsharded_one_does(recipe: Path, tmp_path: Path) -> None:
    for name, sharding in (("whole", "none"), ("sharded", "auto")):
        words = [*launched("fsdp2"), "--num_processes", "2", "--main_process_ip", "127.0.0.1"]
        more = ("--lora.enabled", "true", "--hardware.sharding", sharding)
        done = launch(*words, recipe=recipe, run=tmp_path / name, more=more)
        assert done.returncode == 0, done.stderr
        assert ("sharded over 2 processes" in done.stdout) == (name == "sharded")
    adapters = "checkpoint/adapter_model.safetensors"
    assert (tmp_path / "whole" / adapters).read_bytes() == (tmp_path / "sharded" / adapters).read_bytes()


@pytest.mark.slow
def test_an_fsdp2_launch_of_full_fine_tuning_shards_everything_and_releases_what_one_process_does(
    recipe: Path, tmp_path: Path
) -> None:
    words = [*launched("fsdp2"), "--num_processes", "3", "--main_process_ip", "127.0.0.1"]
    done = launch(*words, recipe=recipe, run=tmp_path / "sharded")
    assert done.returncode == 0, done.stderr
    assert "weights, sums and moments are sharded over 3 processes" in done.stdout
    done = launch(*launched("cpu"), recipe=recipe, run=tmp_path / "alone")
    assert done.returncode == 0, done.stderr
    alone, sharded = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("alone", "sharded"))
    assert alone.keys() == sharded.keys()
    for name, value in alone.items():
        np.testing.assert_allclose(sharded[name], value, atol=1e-6, rtol=0, err_msg=name)
    configs = [(tmp_path / name / "checkpoint" / "config.json").read_text() for name in ("alone", "sharded")]
    assert configs[0] == configs[1]


@pytest.mark.slow
def test_torchrun_trains_on_four_processes_and_twice_to_the_same_bytes(
    recipe: Path, tmp_path: Path, weights: Weights
) -> None:
    words = ["torchrun", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "4"]
    for name in ("a", "b"):
        done = launch(*words, recipe=recipe, run=tmp_path / name, more=("--hardware.num_processes", "4"))
        assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


@pytest.mark.slow
def test_multi_node_rendezvous_on_one_machine_trains_on_two_nodes_of_one_process(
    recipe: Path, tmp_path: Path, port: int
) -> None:
    words = ["--num_machines", "2", "--num_processes", "2", "--main_process_ip", "127.0.0.1"]
    command = [str(BIN / "accelerate"), *launched("multi_node")[1:], *words, "--main_process_port", str(port)]
    run = tmp_path / "run"
    nodes = [
        subprocess.Popen(
            [*command, "--machine_rank", str(rank), *DOOR, str(recipe), "--output_dir", str(run)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [node.communicate(timeout=110) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], said[0][1]
    assert '"world_size": 2' in (run / "manifest.json").read_text()
