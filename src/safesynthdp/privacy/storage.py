"""Files that are whole or absent: write to a temporary name, flush to disk, rename.

Here: text, JSON and private directories. Elsewhere: what is in them (ledger.py, runs.py).
"""

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safesynthdp.errors import SafeSynthError

PRIVATE_DIRECTORY_MODE = 0o700
PRIVATE_FILE_MODE = 0o600


def write_atomically(path: Path, write: Callable[[Path], None], *, private: bool = False) -> None:
    """Call ``write`` on a temporary name beside ``path``, flush it to disk and rename it into place.

    A reader, or a process killed at any moment, sees the old file or the new one, never half of it.

    Args:
        path: Where the file ends up; its folder must exist.
        write: Writes the whole file at the path it is given.
        private: Readable by the owner alone (mode 0600).

    Raises:
        SafeSynthError: If the file system refuses (disk full, no permission).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if private:
            temporary.touch(mode=PRIVATE_FILE_MODE)
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    write_atomically(path, lambda target: _write_utf8(target, text), private=private)


def write_json(path: Path, value: Mapping[str, Any], *, private: bool = False) -> None:
    """Write ``value`` as indented JSON, whole or not at all; NaN and infinity are refused (``ValueError``)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n", private=private)


def make_private_directory(path: Path) -> None:
    """Create ``path`` (and its parents) so that only the owner can look inside (mode 0700)."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(PRIVATE_DIRECTORY_MODE)
    except OSError as error:
        raise disk_error(path, error) from error


def sync_directory(path: Path) -> None:
    """Flush a folder's list of names to disk, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(path: Path, error: OSError) -> SafeSynthError:
    """Return the one line for a file system that refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SafeSynthError(f"{path}: the disk is full; free some space and run the same command again")
    return SafeSynthError(f"{path}: cannot be written ({error.strerror}); check the path and its permissions")


def _write_utf8(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
