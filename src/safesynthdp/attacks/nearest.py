"""The weak baseline of the text channel: how near is the nearest released text?

Here: an embedding of texts, and the largest cosine. Elsewhere: n-gram attacks (ngram.py), which find more. What a page
calls a "distance to the closest record" is this: it sees copies and little else, so it is an attack to be beaten and
never a privacy score. scipy only. Shapes: R texts, S released texts, V words, D dimensions.

Embedding: tf-idf of words, projected on the D strongest directions of the released corpus (latent semantic analysis),
plus the exact tf-idf cosine for corpora too small to have D directions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import svds

from safesynthdp.attacks.ngram import Vocabulary, words_of
from safesynthdp.errors import DataError

DIMENSIONS = 64
_BLOCK = 2048
_START_SEED = 0
Floats = NDArray[np.float64]


def nearest_similarity(corpus: Sequence[str], texts: Sequence[str], *, vocabulary_texts: Sequence[str]) -> Floats:
    """Return, for each text, the largest cosine with any released text, [R] in [-1, 1]; 0 for a text without words.

    Raises:
        DataError: If the corpus is empty.
    """
    if not corpus:
        raise DataError("the corpus that is attacked has no text; generate again with num_records above 0")
    vocabulary = Vocabulary.build(vocabulary_texts)
    counts_SV = _counts(corpus, vocabulary)
    holding_V = np.bincount(counts_SV.indices, minlength=counts_SV.shape[1])
    weights_V = np.log((1 + counts_SV.shape[0]) / (1 + holding_V)) + 1
    released, audited = (
        _unit_rows(part.multiply(weights_V).tocsr()) for part in (counts_SV, _counts(texts, vocabulary))
    )
    if min(released.shape) > DIMENSIONS:
        start = np.random.default_rng(_START_SEED).normal(size=min(released.shape))
        directions_DV: Any = svds(released, k=DIMENSIONS, v0=start)[2]
        near, far = (_unit_dense(part @ directions_DV.T) for part in (released, audited))
        return _largest(far, near)
    return _largest(audited.toarray(), released.toarray())


def _largest(audited: Floats, released: Floats) -> Floats:
    blocks = [audited[i : i + _BLOCK] @ released.T for i in range(0, len(audited), _BLOCK)]
    found: Floats = np.concatenate([np.empty(0), *(block.max(axis=1) for block in blocks)])
    return found


def _counts(texts: Sequence[str], vocabulary: Vocabulary) -> Any:
    """Return how often each text has each word, [texts, V + 1]; the unknown word is the last column."""
    size = vocabulary.size + 1
    rows = [[vocabulary.numbers.get(word, size - 1) for word in words_of(text)] for text in texts]
    bounds = np.cumsum([0, *(len(row) for row in rows)])
    columns = np.fromiter((c for row in rows for c in row), dtype=np.int64, count=int(bounds[-1]))
    found: Any = sparse.csr_matrix((np.ones(columns.size), columns, bounds), shape=(len(texts), size))
    found.sum_duplicates()
    return found


def _unit_rows(rows: Any) -> Any:
    norms = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    return sparse.diags(1 / np.where(norms > 0, norms, 1)) @ rows


def _unit_dense(rows: Floats) -> Floats:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Floats = rows / np.where(norms > 1e-12, norms, 1)
    return unit
