"""A pinned file comes from the package index once, checked twice, or one line says why not.

pip is real where it can be: it reads a folder of ours in the place of an index.
"""

import dataclasses
import hashlib
import io
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from safesynthdp import fetching
from safesynthdp.errors import ConfigError, SafeSynthError
from safesynthdp.fetching import PINNED, PinnedFile, cache_directory, fetch

CONTENT = b"what we want"
Runner = Callable[..., "subprocess.CompletedProcess[str]"]


def wheel() -> bytes:
    info = "demo_data-1.0.dist-info"
    metadata = "Metadata-Version: 2.1\nName: demo-data\nVersion: 1.0\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files: dict[str, bytes] = {
        "demo_data/file.bin": CONTENT,
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": tags.encode(),
        f"{info}/RECORD": b"",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PinnedFile:
    """A pinned wheel on an index of our own, and an empty cache."""
    archive = wheel()
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "demo_data-1.0-py3-none-any.whl").write_bytes(archive)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = PinnedFile(
        package="demo-data",
        version="1.0",
        archive_sha256=sha256(archive),
        from_source=False,
        member="demo_data/file.bin",
        member_sha256=sha256(CONTENT),
        megabytes=0.1,
    )
    monkeypatch.setitem(PINNED, "demo", made)
    return made


def change(monkeypatch: pytest.MonkeyPatch, pinned: PinnedFile, **values: str) -> None:
    monkeypatch.setitem(PINNED, "demo", dataclasses.replace(pinned, **values))  # type: ignore[arg-type]


def refusal() -> str:
    with pytest.raises(SafeSynthError) as caught:
        fetch("demo", say=lambda line: None)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert not (cache_directory() / "file.bin").exists()
    assert {path.name for path in cache_directory().iterdir()} <= {".demo.lock"}
    return str(caught.value)


def no_pip(*args: object, **kwargs: object) -> "subprocess.CompletedProcess[str]":
    raise AssertionError("pip was run")


def test_a_file_is_fetched_once_and_then_works_offline(pinned: PinnedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    path = fetch("demo", say=said.append)
    assert path.read_bytes() == CONTENT
    assert said == ["fetching demo-data 1.0 (0.1 MB) from the package index, once"]
    assert {p.name for p in path.parent.iterdir()} == {"file.bin", ".demo.lock"}
    monkeypatch.setattr(fetching, "run_pip", no_pip)
    assert fetch("demo", say=said.append) == path
    assert len(said) == 1


def test_a_damaged_file_is_fetched_again(pinned: PinnedFile) -> None:
    path = fetch("demo", say=lambda line: None)
    path.write_bytes(CONTENT[:-1])
    said = list[str]()
    assert fetch("demo", say=said.append).read_bytes() == CONTENT
    assert said[0] == f"{path} is damaged; fetching it again"


def test_a_wrong_archive_is_refused_by_pip(pinned: PinnedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch, pinned, archive_sha256="0" * 64)
    assert "is not the file that was pinned" in refusal()


def test_a_wrong_file_inside_the_archive_is_refused(pinned: PinnedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch, pinned, member_sha256="0" * 64)
    assert "is not the file that was pinned" in refusal()


def test_an_archive_without_the_file_is_refused(pinned: PinnedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch, pinned, member="demo_data/other.bin")
    assert "does not hold demo_data/other.bin" in refusal()


def test_an_index_without_the_version_is_one_line(pinned: PinnedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    change(monkeypatch, pinned, version="2.0")
    assert "is not on the package index, or the index is out of reach" in refusal()


def test_an_interpreter_without_pip_is_one_line(
    pinned: PinnedFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    assert "has no pip" in refusal()


def failing(stderr: str) -> Runner:
    def run(command: list[str], *, folder: Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess(command, 1, "", stderr)

    return run


@pytest.mark.parametrize(
    ("stderr", "line"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device\n", "the disk is full"),
        ("WARNING: Retrying\nERROR: strange thing\nhint: more\n", "pip says: ERROR: strange thing"),
        ("", "pip says: no message"),
        ("ERROR: " + "x" * 5000, "pip says: ERROR: xxx"),
    ],
)
def test_what_pip_says_becomes_one_line(
    pinned: PinnedFile, monkeypatch: pytest.MonkeyPatch, stderr: str, line: str
) -> None:
    monkeypatch.setattr(fetching, "run_pip", failing(stderr))
    message = refusal()
    assert line in message
    assert len(message) < 500


def test_a_full_disk_while_writing_is_one_line(pinned: PinnedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching, "_write_bytes", full)
    assert "the disk is full" in refusal()


def test_an_archive_pip_did_not_check_is_refused_too(pinned: PinnedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(command: list[str], *, folder: Path) -> "subprocess.CompletedProcess[str]":
        (folder / "demo.whl").write_bytes(wheel() + b"more")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetching, "run_pip", careless)
    assert "is not the file that was pinned" in refusal()


def test_a_source_archive_is_read_without_being_unpacked(
    pinned: PinnedFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as opened:
        for name, content in {"demo-1.0/../../evil": b"evil", "demo-1.0/demo_data/file.bin": CONTENT}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            opened.addfile(entry, io.BytesIO(content))
    source = dataclasses.replace(pinned, from_source=True, archive_sha256=sha256(buffer.getvalue()))
    monkeypatch.setitem(PINNED, "demo", source)

    def download(command: list[str], *, folder: Path) -> "subprocess.CompletedProcess[str]":
        assert command[command.index("--no-binary") + 1] == "demo-data"
        assert {"--require-hashes", "--no-deps"} <= set(command)
        pins = (folder / "pinned.txt").read_text()
        assert pins == f"demo-data==1.0 --hash=sha256:{source.archive_sha256}\n"
        (folder / "demo-1.0.tar.gz").write_bytes(buffer.getvalue())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetching, "run_pip", download)
    assert fetch("demo", say=lambda line: None).read_bytes() == CONTENT
    assert not list(tmp_path.rglob("evil"))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="there are: vader, smollm2-135m"):
        fetch("nothing")


def test_the_cache_lies_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_directory() == tmp_path / ".cache" / "safesynthdp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert cache_directory() == tmp_path / "other" / "safesynthdp"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(SafeSynthError, match="cannot be written"):
        cache_directory()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vader", "smollm2-135m"])
def test_the_real_files_are_where_they_were_pinned(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = fetch(name)
    assert sha256(path.read_bytes()) == PINNED[name].member_sha256
