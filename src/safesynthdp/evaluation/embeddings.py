"""Vectors of texts, computed once: a cache by the content of the texts and the hash of the model.

Here: ``embed`` and its cache. Elsewhere: the models (encoders.py). The cache is private: a vector says much about its
text. It lies under the XDG cache in a folder for the owner alone and may be deleted at any time. Vectors of tf-idf
depend on all texts of the call and are never kept. Shapes: N texts, D dimensions.
"""

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safesynthdp.errors import SafeSynthError
from safesynthdp.evaluation.encoders import AUTO, Encoder, choose_encoder
from safesynthdp.fetching import cache_directory
from safesynthdp.privacy.storage import make_private_directory, write_atomically
from safesynthdp.progress import progress

MAX_FILES = 64
_FORMAT = "embeddings-v1"
Vectors = NDArray[np.float32]


def embed(texts: Sequence[str], *, encoder: Encoder | str | None = None) -> Vectors:
    """Return the vector of each text, [N, D] float32 with rows of length 1.

    Args:
        texts: The texts; equal ones are computed once.
        encoder: An encoder, or its name as in ``choose_encoder``; None chooses by itself.

    Raises:
        ConfigError: If there is no such encoder.
        SafeSynthError: If the cache cannot be written.
    """
    chosen = encoder if isinstance(encoder, Encoder) else _named(encoder or AUTO)
    if chosen.kind == "tfidf":
        return chosen.encode(texts, advance=lambda count: None)
    distinct = sorted(set(texts))
    path = _path(distinct, chosen)
    vectors = _read(path, len(distinct))
    if vectors is None:
        with progress(f"embedding with {chosen.name}", total=len(distinct), unit="texts") as advance:
            vectors = chosen.encode(distinct, advance=advance)
        _write(path, vectors)
    position = {text: number for number, text in enumerate(distinct)}
    return np.asarray(vectors[[position[text] for text in texts]], dtype=np.float32)


def embed_together(groups: Sequence[Sequence[str]], *, encoder: Encoder) -> list[Vectors]:
    """Return the vectors of several sets of texts in one space; tf-idf is fitted on all of them.

    The sets are symmetric: none is seen earlier or better than another, so equal distributions look equal.
    """
    if encoder.kind != "tfidf":
        return [embed(texts, encoder=encoder) for texts in groups]
    ends = np.cumsum([len(texts) for texts in groups])[:-1]
    return list(np.split(embed([text for texts in groups for text in texts], encoder=encoder), ends))


@lru_cache(maxsize=2)
def _named(name: str) -> Encoder:
    return choose_encoder(name)


def _path(distinct: Sequence[str], encoder: Encoder) -> Path:
    digest = hashlib.sha256(f"{_FORMAT}\n{encoder.digest}\n".encode())
    for text in distinct:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "big") + content)  # lengths first: no two lists share a stream
    folder = cache_directory() / "embeddings"
    make_private_directory(folder)
    return folder / f"{digest.hexdigest()}.npy"


def _read(path: Path, num_texts: int) -> Vectors | None:
    """Return what was kept, if it is whole."""
    try:
        found = np.load(path, allow_pickle=False)
        os.utime(path)
    except (OSError, ValueError, EOFError):
        return None
    is_whole = found.ndim == 2 and len(found) == num_texts and found.dtype == np.float32
    return found if is_whole else None


def _write(path: Path, vectors: Vectors) -> None:
    """Keep the vectors, and forget the sets that were not used for longest."""

    def save(target: Path) -> None:
        with target.open("wb") as handle:
            np.save(handle, vectors, allow_pickle=False)

    write_atomically(path, save, private=True)
    try:
        files = sorted(path.parent.glob("*.npy"), key=lambda file: file.stat().st_mtime)
        for old in files[:-MAX_FILES]:
            old.unlink(missing_ok=True)
    except OSError as error:
        raise SafeSynthError(f"{path.parent} cannot be tidied ({error.strerror}); check its permissions") from error
