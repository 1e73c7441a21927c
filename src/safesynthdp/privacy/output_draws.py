"""From bounded scores to one token: secret randomness, candidates, and decoding of a noisy vector.

Here: what every output mechanism shares when it draws; all in float64. Elsewhere: the mechanisms and their prices
(output_mechanisms.py), logits (generation). Shapes: V vocabulary, K candidates, R rows of private logits.

Randomness comes from AES-256 in counter mode under a key of the operating system's entropy. Floating-point attacks on
the noise are out of scope: uniforms have 53 bits.
"""

import os
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from safesynthdp.errors import LedgerMismatch, SafeSynthError
from safesynthdp.privacy.randomness import KEY_BYTES, derive_key, normals, seed_key, words

Floats = NDArray[np.float64]
Tokens = NDArray[np.intp]
_NOISE, _CHOICE = 0, 1
_DEEPEST = 600.0  # in units of the temperature: exp(-600) is still a normal number


@dataclass(frozen=True, kw_only=True)
class OutputKey:
    """The secret of one output: 32 bytes. A repr never shows them.

    Guarantee:
        The noise must be unknown to whoever sees the text. Streams of different names share nothing, so a process
        that was killed draws the same tokens again: one access, counted once.
    """

    secret: bytes = field(repr=False)
    seeded: bool
    """True when it comes from ``privacy.unsafe_seed``."""

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise LedgerMismatch("state: the key of the output noise is damaged; start a new output_dir")

    @classmethod
    def fresh(cls) -> "OutputKey":
        """Return a key from the operating system."""
        return cls(secret=os.urandom(KEY_BYTES), seeded=False)

    @classmethod
    def from_unsafe_seed(cls, seed: int) -> "OutputKey":
        """Return the key of ``privacy.unsafe_seed``, under a label of its own."""
        return cls(secret=derive_key(seed_key(seed), "output"), seeded=True)

    def stream(self, name: str) -> "TokenStream":
        """Return the randomness of one text."""
        return TokenStream(key=derive_key(self.secret, f"stream/{name}"))


@dataclass(frozen=True, kw_only=True)
class TokenStream:
    """Random numbers of one text; those of a step do not depend on what other steps used."""

    key: bytes = field(repr=False)

    def uniform(self, step: int) -> float:
        """Return one number in (0, 1)."""
        word = words(self.key, domain="output", step=step, tensor=_CHOICE, count=1)[0]
        return (float(word >> np.uint64(11)) + 0.5) * 2.0**-53

    def laplace(self, step: int, count: int) -> Floats:
        """Return [count] numbers with density ``exp(-|x|) / 2``."""
        drawn = words(self.key, domain="output", step=step, tensor=_NOISE, count=count)
        magnitude = -np.log(((drawn >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52)
        return np.where(drawn & np.uint64(1), magnitude, -magnitude)

    def normal(self, step: int, count: int) -> Floats:
        """Return [count] standard normals."""
        return normals(self.key, domain="output", step=step, tensor=_NOISE, count=count)


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """What is done with a *noisy vector*, which may be read freely: post-processing, without a price."""

    temperature: float = 1.0
    """Divides noisy scores; finite and above 0."""
    top_k: int = 0
    """Keep the k largest; 0 = all."""
    top_p: float = 1.0
    """Keep the smallest set of largest ones with at least this share; 1 = all."""

    def draw_scores(self, noisy_K: Floats, uniform: float) -> int:
        """Draw a position from noisy logits."""
        return pick(self._cut(np.exp((noisy_K - noisy_K.max()) / self.temperature)), uniform)

    def draw_probabilities(self, noisy_K: Floats, uniform: float) -> int:
        """Draw a position from noisy probabilities, negative ones counted as 0; the largest when none is above 0."""
        weights_K = np.maximum(noisy_K, 0.0)
        if not weights_K.any():
            return int(noisy_K.argmax())
        return pick(self._cut((weights_K / weights_K.max()) ** (1 / self.temperature)), uniform)

    def _cut(self, weights_K: Floats) -> Floats:
        if 0 < self.top_k < len(weights_K):
            lowest = np.partition(weights_K, -self.top_k)[-self.top_k]
            weights_K = np.where(weights_K >= lowest, weights_K, 0.0)
        if self.top_p < 1:
            order = np.argsort(-weights_K, kind="stable")
            sorted_K = weights_K[order]
            dropped = np.cumsum(sorted_K) - sorted_K >= self.top_p * sorted_K.sum()
            weights_K = weights_K.copy()
            weights_K[order[dropped]] = 0.0
        return weights_K


@dataclass(frozen=True, kw_only=True)
class TokenStep:
    """Everything one draw may look at."""

    private_RK: Floats = field(repr=False)
    """[R, K] float64, one row for each prompt that is present; a row that is not finite adds nothing."""
    public_K: Floats | None
    """[K] float64; None where there is no public model, and then ``recentre`` holds."""
    number: int
    """Which token of the text."""
    stream: TokenStream
    """The randomness of the text."""
    decoding: Decoding = Decoding()
    """What is done with a noisy vector; mechanisms whose draw is the noise do not look at it."""
    recentre: bool = False
    """Clip the logits themselves instead of their difference from the public ones."""

    def uniform(self) -> float:
        """See TokenStream."""
        return self.stream.uniform(self.number)

    def laplace(self, count: int) -> Floats:
        """See TokenStream."""
        return self.stream.laplace(self.number, count)

    def normal(self, count: int) -> Floats:
        """See TokenStream."""
        return self.stream.normal(self.number, count)


def public_support(public_V: Floats, *, end: int, top_k: int | None, slack: float, temperature: float) -> Tokens:
    """Return the candidates of a step, rising: a function of the public logits alone.

    ``{y: public_y >= k-th largest - slack}`` plus the end token, minus what lies more than ``600 temperature`` below
    the largest. ``top_k`` None keeps all.

    Raises:
        SafeSynthError: If the public logits are not numbers.
    """
    largest = float(public_V.max())
    if not np.isfinite(largest):
        raise SafeSynthError("the public model gives logits that are not finite; use another model or dtype")
    lowest = largest - _DEEPEST * temperature
    is_in = public_V >= lowest
    if top_k is not None and top_k < len(public_V):
        kth = float(np.partition(public_V, -top_k)[-top_k])
        is_in &= public_V >= kth - slack
        is_in[end] = public_V[end] >= lowest
    return np.flatnonzero(is_in)


def pick(weights_K: Floats, uniform: float) -> int:
    """Return the first position whose cumulative weight passes ``uniform`` times the total; never one of weight 0."""
    upto_K = np.cumsum(weights_K)
    position = int(np.searchsorted(upto_K, uniform * upto_K[-1], side="right"))
    return position if position < len(weights_K) else int(np.flatnonzero(weights_K)[-1])  # rounding passed the end


def softmax(scores_K: Floats, temperature: float = 1.0) -> Floats:
    """Return the probabilities of scores."""
    weights_K: Floats = np.exp((scores_K - scores_K.max()) / temperature)
    return np.asarray(weights_K / weights_K.sum())
