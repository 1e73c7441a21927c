"""A SLURM of one node, started for these tests and ended after them; skipped, with the reason, where none can be.

With REQUIRE_SLURM=1 that is a failure.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


def absent(reason: str) -> None:
    """Skip, or fail where SLURM was promised."""
    if os.environ.get("REQUIRE_SLURM") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start a SLURM and return the environment its clients need."""
    if not all(shutil.which(program) for program in ("slurmctld", "slurmd", "munged", "sbatch")):
        absent("slurm-wlm and munge are not installed")
    folder = tmp_path_factory.mktemp("slurm")
    for parent in [folder, *folder.parents[:2]]:
        parent.chmod(0o755)
    started = subprocess.run([HERE / "up.sh", folder], capture_output=True, text=True, timeout=60, check=False)
    if started.returncode:
        subprocess.run([HERE / "down.sh", folder], timeout=30, check=False)
        absent(f"no SLURM could be started: {started.stderr[-300:]}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    yield os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PATH": path,
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "GLOO_SOCKET_IFNAME": "lo",
        "MAIN_IP": "127.0.0.1",
        "PYTHONPATH": str(ROOT / "src"),
    }
    subprocess.run([HERE / "down.sh", folder], timeout=30, check=False)
