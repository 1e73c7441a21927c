"""Secret randomness of a run: who is drawn in a step, and the noise of that step.

Here: two keys, words and normals that depend on (key, domain, step, tensor, offset) alone, and a source of secret bits.
Elsewhere: exact integer noise (integer_noise.py), what is drawn with it (mechanisms.py). Source: AES-256 in counter
mode (NIST SP 800-38A), BLAKE2b as key derivation. A word is 64 bits, a block of the cipher two words.
"""

import hashlib
import math
import os
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from safesynthdp.errors import ConfigError, LedgerMismatch

KEY_BYTES = 32
MAX_STEP = 2**40
MAX_TENSOR = 2**32
MAX_WORDS = 2**57  # 2**56 blocks of two words: the counter never reaches the bits of step and tensor
_CHUNK = 2**18
_PIECE = 2**14
_BATCH_WORDS = 256


@dataclass(frozen=True, kw_only=True)
class StepKeys:
    """The two secrets of a run. They are kept in ``state/`` (mode 0600) and nowhere else; a repr never shows them.

    Guarantee:
        Amplification by sampling needs the drawn records, and the noise needs its normals, to be unknown. Whoever
        holds ``unsafe_seed`` knows both, so seeded runs carry no guarantee against that person.
    """

    sampling: bytes = field(repr=False)
    """Decides which records join a step; 32 bytes."""
    noise: bytes = field(repr=False)
    """Decides the noise of a step; 32 bytes, independent of ``sampling``."""
    seeded: bool
    """True when both come from ``privacy.unsafe_seed``."""

    def __post_init__(self) -> None:
        if len(self.sampling) != KEY_BYTES or len(self.noise) != KEY_BYTES or self.sampling == self.noise:
            raise LedgerMismatch("state: a key of the run is damaged; restore state/ or start a new output_dir")

    @classmethod
    def fresh(cls) -> "StepKeys":
        """Return new keys from the operating system."""
        return cls(sampling=os.urandom(KEY_BYTES), noise=os.urandom(KEY_BYTES), seeded=False)

    @classmethod
    def from_unsafe_seed(cls, seed: int) -> "StepKeys":
        """Return the keys of ``privacy.unsafe_seed``, each under its own label."""
        root = seed_key(seed)
        return cls(sampling=derive_key(root, "sampling"), noise=derive_key(root, "noise"), seeded=True)

    @property
    def histogram(self) -> bytes:
        """The key of the run's one label histogram, from ``noise`` under a label of its own."""
        return derive_key(self.noise, "histogram")

    def derive(self, incarnation: int) -> "StepKeys":
        """Return the keys of one incarnation of the run: no mask or noise is shared between two of them."""
        if incarnation < 0:
            raise LedgerMismatch(f"state: incarnation is {incarnation}, below 0; restore state/")
        label = f"incarnation/{incarnation}"
        sampling, noise = derive_key(self.sampling, label), derive_key(self.noise, label)
        return StepKeys(sampling=sampling, noise=noise, seeded=self.seeded)

    def to_json(self) -> dict[str, Any]:
        """Return the keys for ``storage.write_json(..., private=True)``."""
        return {"sampling": self.sampling.hex(), "noise": self.noise.hex(), "seeded": self.seeded}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "StepKeys":
        """Read what ``to_json`` wrote; the message of a failure shows no key."""
        try:
            sampling, noise, seeded = bytes.fromhex(value["sampling"]), bytes.fromhex(value["noise"]), value["seeded"]
        except (KeyError, TypeError, ValueError):
            raise LedgerMismatch("state: the keys of the run cannot be read; restore state/") from None
        if not isinstance(seeded, bool):
            raise LedgerMismatch("state: the keys of the run do not say whether they are seeded; restore state/")
        return cls(sampling=sampling, noise=noise, seeded=seeded)


def derive_key(key: bytes, label: str) -> bytes:
    """Return 32 bytes that say nothing about ``key`` or about the key of another label (BLAKE2b, keyed)."""
    return hashlib.blake2b(label.encode(), digest_size=KEY_BYTES, key=key, person=b"safesynthdp").digest()


def seed_key(seed: int) -> bytes:
    """Return the root key of ``privacy.unsafe_seed``."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConfigError(f"privacy.unsafe_seed={seed} must be a whole number, or null for secret keys")
    return hashlib.blake2b(str(seed).encode(), digest_size=KEY_BYTES, person=b"unsafe_seed").digest()


def words(key: bytes, *, domain: str, step: int, tensor: int, count: int, offset: int = 0) -> NDArray[np.uint64]:
    """Return ``count`` secret 64-bit words, the same as elements ``offset:offset + count`` of a longer draw.

    Guarantee:
        The domain chooses the cipher key; step (40 bits), tensor (32 bits) and block number (56 bits) fill the 128-bit
        counter without overlap. So two draws share keystream only if domain, step, tensor and element are all equal.

    Raises:
        ConfigError: If step, tensor or the last element does not fit its bits.
    """
    _check_place(step=step, tensor=tensor, count=count, offset=offset)
    first = offset // 2
    start = (step << 88) | (tensor << 56) | first
    cipher = Cipher(algorithms.AES256(derive_key(key, domain)), modes.CTR(start.to_bytes(16, "big")))
    blocks = (offset + count + 1) // 2 - first
    stream = np.frombuffer(cipher.encryptor().update(bytes(16 * blocks)), dtype="<u8")
    return stream[offset - 2 * first :][:count].astype(np.uint64, copy=False)


def normals(key: bytes, *, domain: str, step: int, tensor: int, count: int, offset: int = 0) -> NDArray[np.float64]:
    """Return ``count`` standard normals, each from the word at its own place.

    The inverse distribution function of a uniform with 53 bits: 52 bits choose the quantile ``(k + 1/2) / 2^53`` of the
    lower half, one chooses the sign. The values are symmetric, never infinite, and reach 8.2 standard deviations.
    """
    _check_place(step=step, tensor=tensor, count=count, offset=offset)
    result = np.empty(count, dtype=np.float64)

    def fill(begin: int) -> None:
        part = result[begin : begin + _CHUNK]
        _to_normals(words(key, domain=domain, step=step, tensor=tensor, count=len(part), offset=offset + begin), part)

    if count <= _CHUNK:
        fill(0)
    else:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # the cipher and erfinv release the lock
            list(pool.map(fill, range(0, count, _CHUNK)))
    return result


def _to_normals(drawn: NDArray[np.uint64], out: NDArray[np.float64]) -> None:
    """Write sqrt(2) erfinv(1 - 2 quantile) with its sign; 1 - 2 quantile = 1 - k / 2^52 - 2^-53 is exact in float64.

    torch's erfinv takes 2 ns a value where scipy's ndtri takes 20, and bits are faster than conversions; pieces are
    too small for torch to start threads of its own.
    """
    import torch

    bits = drawn >> np.uint64(12)  # k
    bits |= np.uint64(0x3FF0000000000000)  # the float64 1 + k / 2^52
    np.subtract(2.0, bits.view(np.float64), out=out)
    out -= 2.0**-53
    for begin in range(0, len(out), _PIECE):
        piece = torch.from_numpy(out[begin : begin + _PIECE])
        torch.erfinv(piece, out=piece)
    out *= math.sqrt(2)
    out.view(np.uint64)[:] ^= drawn << np.uint64(63)  # the lowest bit becomes the sign


class EntropySource:
    """Secret random whole numbers: from the operating system, or from one key read once."""

    def __init__(self, key: bytes | None = None, *, seeded: bool = False) -> None:
        self._key = key
        self._seeded = seeded
        self._used = 0
        self._pool = 0
        self._pool_bits = 0

    def __repr__(self) -> str:
        return f"EntropySource(source={'key' if self._key else 'os'}, seeded={self._seeded})"

    @classmethod
    def keyed(cls, key: bytes, *, seeded: bool = False) -> "EntropySource":
        """Return the stream of a 32-byte key, the same each time; draw one thing with it."""
        if len(key) != KEY_BYTES:
            raise LedgerMismatch(f"state: a key has {len(key)} bytes, not {KEY_BYTES}; restore state/")
        return cls(key, seeded=seeded)

    @classmethod
    def from_unsafe_seed(cls, seed: int, *, label: str = "integer_noise") -> "EntropySource":
        """Return the stream of ``privacy.unsafe_seed``; another label is another stream."""
        return cls(derive_key(seed_key(seed), label), seeded=True)

    @property
    def seeded(self) -> bool:
        """True when whoever knows the seed can repeat the draws."""
        return self._seeded

    def bits(self, count: int) -> int:
        """Return a uniform whole number of ``count`` bits."""
        if self._key is None:
            return secrets.randbits(count) if count else 0
        while self._pool_bits < count:
            drawn = words(
                self._key, domain="entropy", step=0, tensor=0, count=_BATCH_WORDS, offset=self._used * _BATCH_WORDS
            )
            self._used += 1
            self._pool |= int.from_bytes(drawn.astype("<u8").tobytes(), "little") << self._pool_bits
            self._pool_bits += 64 * _BATCH_WORDS
        value = self._pool & ((1 << count) - 1)
        self._pool >>= count
        self._pool_bits -= count
        return value

    def below(self, bound: int) -> int:
        """Return a uniform whole number in [0, bound)."""
        if bound < 1:
            raise ValueError(f"bound={bound} leaves nothing to draw; it must be at least 1")
        size = (bound - 1).bit_length()
        while True:
            value = self.bits(size)
            if value < bound:
                return value


def _check_place(*, step: int, tensor: int, count: int, offset: int) -> None:
    """Refuse what would run into the bits of another draw."""
    bounds = {"step": (step, MAX_STEP), "tensor": (tensor, MAX_TENSOR), "offset": (offset, MAX_WORDS)}
    for name, (value, bound) in bounds.items():
        if not 0 <= value < bound:
            raise ConfigError(f"{name}={value} is outside [0, {bound}): the noise would repeat; start a new run")
    if count < 0 or offset + count > MAX_WORDS:
        raise ConfigError(f"count={count} at offset={offset} is outside [0, {MAX_WORDS}]; split the tensor")
