"""Is the text varied: distinct n-grams at a matched token count, copies, near copies.

Here: the numbers of one set of texts. Elsewhere: the nearest neighbour among embeddings (coverage.py), the rows
(fidelity_diversity.py). Sources: Li et al. (2016), arXiv:1510.03055, for distinct-n. It falls with the size of the
set, so all sets are cut to one number of tokens, after shuffling. Shapes: N texts, F features.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from safesynthdp.records import canonical_text

MAX_TOKENS = 20_000
NEAR_JACCARD = 0.8
SHINGLE_CHARACTERS = 5
MAX_SHINGLE_CHARACTERS = 5_000
NUM_FEATURES = 2**20
_BLOCK = 500
_SALT = 7_600
Bools = NDArray[np.bool_]


def token_lists(texts: Sequence[str], *, seed: int, max_tokens: int = MAX_TOKENS) -> list[list[str]]:
    """Return the casefolded words of the texts in random order, ``max_tokens`` of them at most in all.

    Texts without words give empty lists; the last text that fits only in part is cut.
    """
    found, left = list[list[str]](), max_tokens
    order: list[int] = np.random.default_rng([_SALT, seed]).permutation(len(texts)).tolist()
    for index in order:
        words = canonical_text(texts[index]).split()[:left]
        found.append(words)
        left -= len(words)
        if left <= 0:
            break
    return found


def cut_tokens(lists: Sequence[list[str]], max_tokens: int) -> list[list[str]]:
    """Return the first ``max_tokens`` tokens."""
    found, left = list[list[str]](), max_tokens
    for words in lists:
        if left <= 0:
            break
        found.append(words[:left])
        left -= len(words[:left])
    return found


def distinct_n(lists: Sequence[list[str]], n: int) -> float | None:
    """Return the share of n-grams (inside one text) that are distinct; None if there is none.

    >>> distinct_n([["a", "b", "a", "b"]], 2)
    0.6666666666666666
    """
    grams = [tuple(words[i : i + n]) for words in lists for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def duplicates(texts: Sequence[str]) -> Bools:
    """Return which texts stood before in the same canonical form, [N]."""
    seen, found = set[str](), np.zeros(len(texts), dtype=np.bool_)
    for position, text in enumerate(texts):
        form = canonical_text(text)
        found[position] = form in seen
        seen.add(form)
    return found


def near_duplicates(texts: Sequence[str], *, jaccard: float = NEAR_JACCARD) -> Bools:
    """Return which texts share at least ``jaccard`` of their 5-character shingles with an earlier text, [N].

    Exact copies are among them. The first 5,000 characters of the canonical form count; shingles are hashed to 20 bits
    with a fixed digest. Work grows with the square of N: give at most a few thousand.
    """
    from scipy.sparse import csr_array

    shingles = [_shingles(canonical_text(text)) for text in texts]
    sizes_N = np.array([len(s) for s in shingles])
    ends = np.concatenate([[0], np.cumsum(sizes_N)])
    columns = np.concatenate([*shingles, np.empty(0, dtype=np.int64)])
    values = np.ones(len(columns), dtype=np.float32)
    matrix = csr_array((values, columns, ends), shape=(len(texts), NUM_FEATURES))
    found = np.zeros(len(texts), dtype=np.bool_)
    for start in range(0, len(texts), _BLOCK):
        rows = matrix[start : start + _BLOCK]
        shared = (rows @ matrix[: start + _BLOCK].T).tocoo()
        first, second = shared.row + start, shared.col
        joined = sizes_N[first] + sizes_N[second] - shared.data
        is_near = (second < first) & (shared.data >= jaccard * joined)
        found[first[is_near]] = True
    return found | duplicates(texts)


def _shingles(text: str) -> NDArray[np.int64]:
    """Return the sorted numbers of the distinct shingles; a shorter text is one shingle."""
    text = text[:MAX_SHINGLE_CHARACTERS]
    width = min(len(text), SHINGLE_CHARACTERS)
    parts = {text[i : i + width] for i in range(len(text) - width + 1)} if width else set[str]()
    return np.array(sorted({_digest(part) for part in parts}), dtype=np.int64)


def _digest(part: str) -> int:
    digest = hashlib.blake2b(part.encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest) % NUM_FEATURES
