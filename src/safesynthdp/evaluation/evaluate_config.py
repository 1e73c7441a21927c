"""The keys of ``safesynthdp evaluate``.

Here: the config and what it refuses. Elsewhere: the order of work (command.py), what an output directory holds
(result.py).
"""

import math
from dataclasses import dataclass
from typing import Literal

from safesynthdp.errors import ConfigError
from safesynthdp.evaluation.downstream import MAX_TRAIN_RECORDS, parse_families
from safesynthdp.evaluation.inputs import Columns

MAX_SEEDS = 100
MIN_RECORDS = 50
MAX_BUCKETS = 5_000


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Train on synthetic text, test on real text, and look for what was memorised."""

    real: str
    """Records the generator was trained on: a .csv, .jsonl or .parquet file, or a finetune run."""
    synthetic: str
    """Synthetic text: a file with the columns text and label (or those named below), or a sample run."""
    holdout: str
    """Real records that nothing was trained or tuned on: a file, or a finetune run (what it kept back)."""
    output_dir: str = "evaluation"
    """Where metrics.json goes: a new directory; one that holds another evaluation is refused."""
    baseline: str | None = None
    """Text of the untuned model (epsilon = 0), from `safesynthdp sample --untuned`: a file or its run."""
    text_column: str = "text"
    """Column of the text."""
    label_column: str | None = "label"
    """Column of the label; null evaluates without labels and leaves out utility."""
    holdout_text_column: str | None = None
    """Column of the text in the holdout, where it is not text_column."""
    holdout_label_column: str | None = None
    """Column of the label in the holdout, where it is not label_column."""
    synthetic_text_column: str | None = None
    """Column of the text in synthetic and baseline, where it is neither text_column nor text."""
    synthetic_label_column: str | None = None
    """Column of the label in synthetic and baseline, where it is neither label_column nor label."""
    downstream: str = "lr,nb,svm"
    """Classifiers to train, separated by commas, the headline first: lr, nb, svm, rf (on tf-idf), emb (on embeddings),
    gru, cnn (small networks on words), encoder (fine-tunes downstream_encoder)."""
    downstream_encoder: str | None = None
    """Pretrained encoder that the family encoder fine-tunes: a folder or an id."""
    seeds: int = 3
    """Draws of every subsample, permutation, random classifier and DP noise, 1 to 100."""
    max_train_records: int = MAX_TRAIN_RECORDS
    """Records that lr, nb and svm train and are tested on at most; rf, gru and cnn train on a quarter of it."""
    dp_direct_epsilon: float | None = None
    """Epsilon of the classifiers trained directly with DP; null reads it from the ledger of a synthetic run."""
    dp_direct_delta: float = 1e-5
    """Delta that goes with dp_direct_epsilon."""
    dp_direct_adjacency: Literal["add_remove", "replace"] = "add_remove"
    """Neighbouring relation that goes with dp_direct_epsilon."""
    worst_cases: int = 20
    """Synthetic texts that share most with a training record, listed with it in memorisation_worst.jsonl; private."""
    embedding_model: str = "auto"
    """Sentence encoder: a folder or hub id, minilm (fetched once), tfidf (none), auto (minilm if it was fetched)."""
    fast: bool = False
    """Leave out the encoder's layers; shuffled words then score like real text."""
    reference_model: str | None = "auto"
    """Language model for bits per byte: folder or hub id, smollm2-135m, auto (that if it was fetched), null (none)."""
    mauve_buckets: int = 100
    """Buckets of MAUVE, 2 to 5,000; the count decides the value, so compare only equal ones."""
    max_records: int = 2000
    """Records a side, at most, for what embeds or compares all pairs; 50 or more."""
    holdout_is_public: bool = False
    """The holdout holds nothing private, so numbers that read no training record may be published."""
    json: bool = False
    """Print metrics.json instead of tables."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ConfigError: With the key, its value and the way out.
        """
        if not self.output_dir:
            raise ConfigError("output_dir is empty; give a directory")
        for role, given in self.columns().items():
            if given.text == given.label:
                raise ConfigError(f"label_column={given.label} is the text of {role} too; name the column of the label")
        if not 1 <= self.seeds <= MAX_SEEDS:
            raise ConfigError(f"seeds={self.seeds} is out of range; give 1 to {MAX_SEEDS}")
        for key, value in (("max_train_records", self.max_train_records), ("max_records", self.max_records)):
            if value < MIN_RECORDS:
                raise ConfigError(f"{key}={value} is too few to say anything; give {MIN_RECORDS} or more")
        if not 2 <= self.mauve_buckets <= MAX_BUCKETS:
            raise ConfigError(f"mauve_buckets={self.mauve_buckets} is out of range; give 2 to {MAX_BUCKETS}")
        if self.worst_cases < 0:
            raise ConfigError(f"worst_cases={self.worst_cases} is below 0; give 0 to write none")
        self._check_direct()
        is_named = "encoder" in parse_families(self.downstream)
        if is_named != (self.downstream_encoder is not None):
            missing = "downstream_encoder names none" if is_named else "downstream does not list encoder"
            raise ConfigError(f"downstream_encoder={self.downstream_encoder}: {missing}; set both or neither")

    def _check_direct(self) -> None:
        epsilon, delta = self.dp_direct_epsilon, self.dp_direct_delta
        if epsilon is not None and not 0 < epsilon < math.inf:
            raise ConfigError(f"dp_direct_epsilon={epsilon} is no budget; give a finite number above 0")
        if not 0 < delta < 1:
            raise ConfigError(f"dp_direct_delta={delta} is out of range; give one between 0 and 1")

    def columns(self) -> dict[str, Columns]:
        """Return where each role keeps text and label."""
        real = Columns(text=self.text_column, label=self.label_column)
        holdout = _renamed(real, self.holdout_text_column, self.holdout_label_column)
        synthetic = _renamed(real, self.synthetic_text_column, self.synthetic_label_column)
        return {"real": real, "holdout": holdout, "synthetic": synthetic, "baseline": synthetic}


def _renamed(columns: Columns, text: str | None, label: str | None) -> Columns:
    """Return the columns with other names; a file without labels has none to rename."""
    if columns.label is None:
        return Columns(text=text or columns.text, label=None)
    return Columns(text=text or columns.text, label=label or columns.label)
