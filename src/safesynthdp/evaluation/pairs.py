"""Two sets of texts of one size, side by side with their vectors.

Here: which records are drawn, and the parts of a pair. Elsewhere: what is measured on it (fidelity_pairs.py).
Every set is cut to one size: the smallest of holdout, synthetic, real and ``max_records``. Shapes: N texts a side.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safesynthdp.evaluation.embeddings import embed_together
from safesynthdp.evaluation.encoders import Encoder
from safesynthdp.evaluation.estimates import BASE, CEILING, SYNTHETIC
from safesynthdp.evaluation.inputs import Corpora
from safesynthdp.evaluation.jackknife import Ints, clusters, deal_groups
from safesynthdp.records import Records

DRAW_SEED = 7_800
_STREAM = {"holdout": 0, SYNTHETIC: 1, CEILING: 2, BASE: 3}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Holdout text beside other text, N records each."""

    real: Records
    other: Records
    real_ND: NDArray[np.float32]
    other_ND: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.real)

    def groups(self) -> tuple[Ints, Ints]:
        """Return the jackknife group of every text of each side; copies share one, on whichever side they stand."""
        both = deal_groups(clusters([*self.real.texts, *self.other.texts]))
        return both[: len(self.real)], both[len(self.real) :]

    def of_label(self, label: str) -> "Pair":
        """Return the records of one label, cut to the smaller side."""
        parts = [[i for i, name in enumerate(side.labels) if name == label] for side in (self.real, self.other)]
        size = min(map(len, parts))
        return self._select(parts[0][:size], parts[1][:size])

    def first(self, size: int) -> "Pair":
        """Return the first records of both sides; their order is random."""
        return self if size >= len(self) else self._select(list(range(size)), list(range(size)))

    def _select(self, first: list[int], second: list[int]) -> "Pair":
        return Pair(
            real=self.real.select(first),
            other=self.other.select(second),
            real_ND=self.real_ND[first],
            other_ND=self.other_ND[second],
        )


def matched_size(corpora: Corpora, max_records: int) -> int:
    """Return how many records a side are compared."""
    return min(len(corpora.holdout), len(corpora.synthetic), len(corpora.real), max_records)


def draw(corpora: Corpora, size: int) -> dict[str, Records]:
    """Return random records of the holdout and of each set that is compared with it, ``size`` each, in random order.

    The untuned model's text is left out if it has fewer.
    """
    given = {"holdout": corpora.holdout, SYNTHETIC: corpora.synthetic, CEILING: corpora.real}
    if corpora.baseline is not None and len(corpora.baseline) >= size:
        given[BASE] = corpora.baseline
    return {role: draw_records(records, size, stream=_STREAM[role]) for role, records in given.items()}


def make_pairs(drawn: dict[str, Records], encoder: Encoder) -> dict[str, Pair]:
    """Return the pair (holdout, set) of each set; equal texts are embedded once, and kept between runs."""
    pairs = dict[str, Pair]()
    for role, other in drawn.items():
        if role == "holdout":
            continue
        real = drawn["holdout"]
        vectors = embed_together([real.texts, other.texts], encoder=encoder)
        pairs[role] = Pair(real=real, other=other, real_ND=vectors[0], other_ND=vectors[1])
    return pairs


def draw_records(records: Records, size: int, *, stream: int) -> Records:
    """Return ``size`` random records, or all, in random order; always the same for one stream."""
    order = np.random.default_rng([DRAW_SEED, stream]).permutation(len(records))[:size]
    return records.select(order.tolist())
