"""token_histogram.safetensors: what a run released of its token counts, in one file.

Written by training/token_counts.py, read by generation/token_targets.py. Shapes: L labels, C columns.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from safesynthdp.errors import LedgerMismatch
from safesynthdp.privacy.storage import write_atomically

GAUSSIAN, EXACT = "gaussian", "exact"
_FACTS = "safesynthdp"


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """A table with what is needed to read it."""

    labels: tuple[str, ...]
    vocab_size: int
    word_buckets: int
    lengths: int
    noise_std: float
    """Of every cell; 0: the sums are exact, of a run without privacy."""
    sums_LC: NDArray[np.float32] = field(repr=False)
    """With their noise."""

    @property
    def source(self) -> str:
        """Gaussian (paid for in the run's ledger) or exact (a run without privacy)."""
        return GAUSSIAN if self.noise_std > 0 else EXACT

    def write(self, path: Path) -> None:
        """Write the file, readable by its owner alone."""
        facts = {
            "labels": self.labels,
            "vocab_size": self.vocab_size,
            "word_buckets": self.word_buckets,
            "lengths": self.lengths,
            "noise_std": self.noise_std,
            "source": self.source,
        }
        held = {_FACTS: json.dumps(facts)}  # one entry: several come in another order each time
        sums_LC = np.ascontiguousarray(self.sums_LC)
        write_atomically(path, lambda target: save_file({"sums": sums_LC}, target, metadata=held), private=True)

    @classmethod
    def read(cls, path: Path) -> "TokenFile":
        """Read what ``write`` wrote.

        Raises:
            LedgerMismatch: If the file is damaged, or says of itself what it is not.
        """
        try:
            with safe_open(path, framework="numpy") as held:
                facts, sums_LC = json.loads(held.metadata()[_FACTS]), held.get_tensor("sums")
            found = cls(
                labels=tuple(facts["labels"]),
                vocab_size=int(facts["vocab_size"]),
                word_buckets=int(facts["word_buckets"]),
                lengths=int(facts.get("lengths", 0)),  # tables of before count the end of text as a token
                noise_std=float(facts["noise_std"]),
                sums_LC=sums_LC,
            )
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise LedgerMismatch(f"{path} cannot be read; restore it") from error
        width = found.vocab_size + found.word_buckets + found.lengths
        is_sized = min(found.word_buckets, found.lengths) >= 0 and sums_LC.shape == (len(found.labels), width)
        if not found.noise_std >= 0 or found.source != facts["source"] or not is_sized:
            raise LedgerMismatch(f"{path} is not what it says it is; restore it")
        return found
