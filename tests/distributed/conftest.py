"""Whole runs on several gloo processes, started as a launcher would start them, without the seconds of imports.

``recipe`` is a config file of a run of seconds, ``start`` begins it on W processes, ``end`` waits for them,
``steps_in`` reads what the ledger counts so far.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

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


class Forked:
    """One process; what it says goes to files."""

    def __init__(self, link: socket.socket, pid: int, said: tuple[Path, Path]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._link, self._said = link, said

    def poll(self) -> int | None:
        """Return how it ended; None while it runs."""
        return self._ended(0.0)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as nothing can prevent."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end and return what it said, out and err."""
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        out, err = (path.read_text(encoding="utf-8") for path in self._said)
        return out, err

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._link.settimeout(timeout)
            try:
                self.returncode = int(json.loads(_line(self._link))["returncode"])
                self._link.close()
            except (BlockingIOError, TimeoutError):
                return None
        return self.returncode


class Forks:
    """The server, as seen from a test."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forked.py")), str(folder / "socket")],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def begin(self, words: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> Forked:
        """Begin ``python WORDS``, the first of which is a script."""
        self._count += 1
        said = (self._folder / f"{self._count}.out", self._folder / f"{self._count}.err")
        for path in said:
            path.touch()  # also for one that is killed before it can open them
        until = time.monotonic() + 120
        while not (self._folder / "socket").exists():
            assert self._server.poll() is None, "the server of processes failed"
            assert time.monotonic() < until, "the server of processes did not come"
            time.sleep(0.02)
        link = socket.socket(socket.AF_UNIX)
        link.connect(str(self._folder / "socket"))
        asked = {"words": list(words), "env": dict(env), "cwd": str(cwd), "said": [str(path) for path in said]}
        link.sendall(json.dumps(asked).encode() + b"\n")
        return Forked(link, int(json.loads(_line(link))["pid"]), said)

    def close(self) -> None:
        """End the server; its processes are ended by whoever began them."""
        self._server.kill()
        self._server.wait()


def _line(link: socket.socket) -> bytes:
    """Receive one of our lines, which are short and arrive whole; no line at all means that the server is gone."""
    return link.recv(4096) or b'{"returncode": -1}'


Process = Union["subprocess.Popen[str]", Forked]
Start = Callable[..., list[Process]]
End = Callable[..., list[Ended]]


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a config file on ragged made-up records."""
    folder = tmp_path_factory.mktemp("recipe")
    rows = [f"{'ab ' * (i % 11)}number {i},{('good', 'bad')[i % 2]}" for i in range(90)]
    (folder / "records.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE.replace("RECORDS", str(folder / "records.csv")))
    return folder / "recipe.yaml"


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Processes that need not import anything."""
    held = Forks(tmp_path_factory.mktemp("forks"))
    yield held
    held.close()


@pytest.fixture
def start(recipe: Path, forks: Forks) -> Iterator[Start]:
    """Return a starter of W processes of one run, or ``only`` some; whatever is left at the end is killed.

    ``again`` starts further ones of the run begun last.
    """
    begun = list[Process]()

    ports = list[int]()

    def run(
        world_size: int,
        output_dir: Path,
        *words: str,
        door: Sequence[str] = (DOOR,),
        only: Sequence[int] | None = None,
        again: bool = False,
    ) -> list[Process]:
        if not again:
            ports.append(free_port())
        common = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        if world_size > 1:
            common |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
            common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[-1])}
        config = ["--config", str(recipe)] if tuple(door) == (DOOR,) else []
        command = [*door, *config, "--output_dir", str(output_dir), *words]
        started = list[Process]()
        for rank in range(world_size) if only is None else only:
            env = common | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world_size > 1 else {})
            if command[0] == "-c":
                pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
                started.append(subprocess.Popen([sys.executable, *command], env=env, cwd=ROOT, **pipes))
            else:
                started.append(forks.begin(command, env=env, cwd=ROOT))
        begun.extend(started)
        return started

    yield run
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def end() -> End:
    """Return what waits for processes and tells how each ended."""

    def wait(processes: list[Process], *, seconds: float = 110) -> list[Ended]:
        written = [process.communicate(timeout=seconds) for process in processes]
        return [Ended(int(process.returncode or 0), *said) for process, said in zip(processes, written, strict=True)]

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
