"""Words as numbers that anybody can compute: no vocabulary, no document frequency, nothing that was counted.

Here: texts to sets of hashed words. Elsewhere: who learns from them with DP (direct_bayes.py, direct_regression.py). A
vocabulary, an idf or a choice of features taken from private records would be an access of its own; a hash is public.
Shapes: N records, F features.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesynthdp.records import canonical_text

MAX_WORDS = 4096
"""Distinct words of a record that count, the first ones; a cut that depends on the record alone."""
Ints = NDArray[np.int64]


def hashed_words(texts: Sequence[str], *, num_features: int) -> list[Ints]:
    """Return for each text the sorted distinct buckets, 0 to F - 1, of its canonical words; possibly none."""
    buckets = dict[str, int]()
    rows = list[Ints]()
    for text in texts:
        words = list(dict.fromkeys(canonical_text(text).split()))[:MAX_WORDS]
        for word in words:
            if word not in buckets:
                buckets[word] = _digest(word) % num_features
        rows.append(np.unique(np.array([buckets[word] for word in words], dtype=np.int64)))
    return rows


def unit_rows(rows: Sequence[Ints], *, num_features: int) -> Any:
    """Return the sets as a sparse matrix [N, F] whose rows have L2 norm 1, or 0 for a text without words."""
    from scipy.sparse import csr_array

    sizes = np.array([len(row) for row in rows], dtype=np.int64)
    indices = np.concatenate([np.empty(0, dtype=np.int64), *rows])
    values = np.repeat(1 / np.sqrt(np.maximum(sizes, 1)), sizes)
    return csr_array((values, indices, np.concatenate([[0], np.cumsum(sizes)])), shape=(len(rows), num_features))


def num_features_for(epsilon: float) -> int:
    """Return F, fixed in advance: 2^12 up to epsilon 2, where noise in rare words outweighs them, and 2^14 above."""
    return 2**12 if epsilon <= 2 else 2**14


def _digest(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest())
