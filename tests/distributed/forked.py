"""Processes that begin with everything imported: a server imports once and forks, where each would import for seconds.

python tests/distributed/forked.py SOCKET serves until its client (conftest.py) goes. For a line of JSON it runs a
script as ``python SCRIPT ...`` would, and answers with the number of the process at once, with its exit code at last.
"""

import atexit
import importlib
import json
import os
import runpy
import selectors
import socket
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

IMPORTED = (
    "accelerate",
    "jsonargparse",
    "opacus",
    "peft",
    "pyarrow.parquet",
    "scipy.special",
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
    "safesynthdp.attacks.command",
    "safesynthdp.generation.sampling",
    "safesynthdp.training.session",
)


def serve(path: Path) -> None:
    """Import, listen, fork, and tell how each process ended, until the client is gone."""
    for name in IMPORTED:
        importlib.import_module(name)
    client, links = os.getppid(), dict[int, socket.socket]()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.tmp")
    listener.listen(64)
    Path(f"{path}.tmp").rename(path)  # only one that listens is found
    with selectors.DefaultSelector() as ready:
        ready.register(listener, selectors.EVENT_READ)
        while os.getppid() == client:
            if ready.select(0.02):
                link, _ = listener.accept()
                asked = json.loads(link.recv(2**20))
                pid = os.fork()
                if not pid:
                    listener.close()
                    _become(asked)
                links[pid] = link
                link.sendall(json.dumps({"pid": pid}).encode())
            while links:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                link = links.pop(pid)
                link.sendall(json.dumps({"returncode": os.waitstatus_to_exitcode(status)}).encode())
                link.close()


def _become(asked: dict[str, Any]) -> NoReturn:
    """Be ``python WORDS`` from here on."""
    code: int | str | None = 1
    try:
        for number, path in enumerate((os.devnull, *asked["said"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
        os.environ.clear()
        os.environ.update(asked["env"])
        os.chdir(asked["cwd"])
        sys.argv = asked["words"]
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001 (the outermost frame of a process)
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
