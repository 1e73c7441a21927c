"""Whole runs on several gloo processes, started the way a launcher would start them.

``recipe`` is a config file of a run of seconds, ``start`` begins it on W processes, ``end`` waits for them,
``steps_in`` reads what the ledger counts so far.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOOR = str(ROOT / "train" / "dp_finetune.py")
RECIPE = """
model: {from_scratch: {num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2}}
data: {train_file: RECORDS, labels: ["good", "bad"], max_length: 40}
privacy: {target_epsilon: 8.0, target_delta: 1.0e-3, unsafe_seed: 3, accountant: rdp}
train: {expected_batch_size: 8, max_steps: 12, save_steps: 3}
hardware: {max_tokens_per_microbatch: 96}
"""


@dataclass(frozen=True)
class Ended:
    """How one process ended."""

    code: int
    out: str
    err: str


Start = Callable[..., list["subprocess.Popen[str]"]]
End = Callable[..., list[Ended]]


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a config file on ragged made-up records."""
    folder = tmp_path_factory.mktemp("recipe")
    rows = [f"{'ab ' * (i % 11)}number {i},{('good', 'bad')[i % 2]}" for i in range(90)]
    (folder / "records.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE.replace("RECORDS", str(folder / "records.csv")))
    return folder / "recipe.yaml"


@pytest.fixture
def start(recipe: Path) -> Iterator[Start]:
    """Return a starter of W processes of one run, or ``only`` some; whatever is left at the end is killed.

    ``again`` starts further ones of the run begun last.
    """
    begun = list["subprocess.Popen[str]"]()

    ports = list[int]()

    def run(
        world_size: int,
        output_dir: Path,
        *words: str,
        door: Sequence[str] = (DOOR,),
        only: Sequence[int] | None = None,
        again: bool = False,
    ) -> list[subprocess.Popen[str]]:
        if not again:
            ports.append(free_port())
        common = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        if world_size > 1:
            common |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
            common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[-1])}
        config = ["--config", str(recipe)] if tuple(door) == (DOOR,) else []
        command = [sys.executable, *door, *config, "--output_dir", str(output_dir), *words]
        started = [
            subprocess.Popen(
                command,
                env=common | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world_size > 1 else {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
            for rank in (range(world_size) if only is None else only)
        ]
        begun.extend(started)
        return started

    yield run
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def end() -> End:
    """Return what waits for processes and tells how each ended."""

    def wait(processes: list[subprocess.Popen[str]], *, seconds: float = 110) -> list[Ended]:
        written = [process.communicate(timeout=seconds) for process in processes]
        return [Ended(process.returncode, *said) for process, said in zip(processes, written, strict=True)]

    return wait


@pytest.fixture
def port() -> int:
    """Return a free port."""
    return free_port()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="session")
def steps_in() -> Callable[[Path], int]:
    """Return a reader of the steps that a run's ledger counts; 0 before there is one."""

    def read(run: Path) -> int:
        path = run / "ledger.json"
        if not path.is_file():
            return 0
        return int(json.loads(path.read_text())["entries"][0]["mechanism"]["steps"])

    return read


@pytest.fixture(scope="session")
def weights() -> Callable[[Path], bytes]:
    """Return a reader of a run's released weights."""
    return lambda run: (run / "checkpoint" / "model.safetensors").read_bytes()
