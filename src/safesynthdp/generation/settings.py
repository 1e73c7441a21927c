"""What ``safesynthdp sample`` is asked for.

Here: the flags, their meaning and their bounds. Elsewhere: the decoding they steer (draws.py, decoding.py).
"""

import math
from dataclasses import dataclass
from typing import Literal

from safesynthdp.errors import ConfigError
from safesynthdp.generation.output_config import ModelOutputConfig, refuse_private_truncation
from safesynthdp.privacy.output_pricing import OutputMechanism

MOST_ROUNDS = 20
MOST_CANDIDATES = 20
LabelChoice = Literal["auto", "histogram", "sqrt", "uniform"]
SampleDtype = Literal["float32", "bfloat16", "fastest"]


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Sample labelled synthetic text from a fine-tuning run.

    Sampling reads nothing private: the text costs what the weights cost, however much of it is drawn and with
    whatever settings. The defaults draw from the model as it is. A lower temperature, top_k or top_p makes single
    texts smoother, drops rare ways of writing (minority groups first), and an evaluation then judges the truncation,
    not the model.
    """

    run: str
    """Directory of a finished fine-tuning run."""
    num_records: int
    """How many texts to write; just as many come out."""
    output_dir: str
    """Where the text goes; the same command resumes it."""
    untuned: bool = False
    """Sample from the base model before any training, uniform labels: the epsilon = 0 reference."""
    labels: LabelChoice = "auto"
    """Texts per label: 'histogram' follows the noisy label counts of the run, 'sqrt' their square roots (rare labels
    get more texts, common ones still the most), 'uniform' spreads them evenly, 'auto' takes the counts where the run
    has them."""
    temperature: float = 1.0
    """Divides the logits; 1 = the model's own distribution. No model's generation config is read."""
    top_k: int = 0
    """Draw among the k likeliest tokens only; 0 = all. Rare words, and rare kinds of text, get lost."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that hold this much probability; 1 = all. Loses the same."""
    token_matching_rounds: int = 5
    """Of a run that released token counts (privacy.token_histogram_share): rounds that fit a bias on the logits until
    the texts of each label use its tokens as often as was released. It reads released numbers only and costs no
    epsilon. 0 = the model as it is. Not used with untuned or output."""
    token_matching_records: int = 800
    """Texts drawn in each round, over all labels, and thrown away."""
    token_matching_candidates: int = 3
    """Texts drawn for each one that is written, where token counts are matched: of every label those are kept that
    together come closest to the released counts. It costs no epsilon, and drawing takes so many times as long.
    1 = every text is written."""
    max_new_tokens: int | None = None
    """Longest text, end included; null = what the label's prompt leaves of the run's data.max_length. A text that
    reaches it is counted as truncated."""
    batch_size: int = 128
    """Texts decoded at once: speed and memory only, a text does not depend on it (up to rounding)."""
    dtype: SampleDtype | None = None
    """Precision of the model while sampling; null = as the run has it. 'fastest' is bfloat16 where the processor
    multiplies it in hardware (AMX, AVX512-BF16, any recent GPU), which is about twice as fast, and float32 elsewhere,
    where bfloat16 takes several times as long. Tokens are always drawn in float32."""
    attn_implementation: Literal["sdpa", "eager"] | None = None
    """Of the model while sampling, as in transformers; null = as the run has it. sdpa draws
    faster than eager; the texts are others, by rounding, of the same distribution."""
    seed: int = 0
    """Of the draws and of the order of labels; nothing private hangs on it."""
    csv: bool = False
    """Write synthetic.csv beside synthetic.parquet."""
    output: ModelOutputConfig | None = None
    """Noise at sampling time (keys: mechanism, clip, scale, single, ...). After DP-SGD it is not needed: it adds a
    second guarantee to the text, of use only while the weights are withheld."""
    unsafe_seed: int | None = None
    """Of that noise: null = OS entropy. A number marks every later artifact 'seeded'."""

    def __post_init__(self) -> None:
        """Refuse numbers without a meaning."""
        for name in ("run", "output_dir"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty; give a directory")
        for name in ("num_records", "batch_size", "max_new_tokens", "token_matching_records"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: give a whole number above 0")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature={self.temperature}: give a finite number above 0")
        if self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k}: give a whole number above 0, or 0 for no limit")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} is outside (0, 1]; 1 = no limit")
        self._refuse_other_counts()
        self._refuse_unbounded_output()
        if self.untuned and self.labels in ("histogram", "sqrt"):
            raise ConfigError(
                f"labels={self.labels} reads the run's counts, untuned reads nothing of the run; drop one of them"
            )

    def _refuse_other_counts(self) -> None:
        """Refuse whole numbers outside their range."""
        bounds = (
            ("seed", 0, 2**63 - 1),
            ("token_matching_rounds", 0, MOST_ROUNDS),
            ("token_matching_candidates", 1, MOST_CANDIDATES),
        )
        for name, least, most in bounds:
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name}={getattr(self, name)}: give a whole number from {least} to {most}")

    def _refuse_unbounded_output(self) -> None:
        """All texts and all their tokens are charged, so both are settled before the first one."""
        if self.output is None:
            if self.unsafe_seed is not None:
                raise ConfigError(f"unsafe_seed={self.unsafe_seed} is that of output noise; give output, or seed")
            return
        if self.untuned:
            raise ConfigError("untuned: the base model saw no record, noise protects nothing; leave output out")
        if self.max_new_tokens is None:
            raise ConfigError("max_new_tokens is missing: under output noise every token of it is charged; give it")
        refuse_private_truncation(self.output, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        self.output_mechanism()

    def output_mechanism(self) -> OutputMechanism:
        """Return the mechanism at its full price: one model is one batch for life, so all texts are charged."""
        if self.output is None or self.max_new_tokens is None:
            raise ConfigError("output is missing; give it")
        return self.output.priced(
            shards=1, single=True, adjacency="many", tokens=self.max_new_tokens, texts_per_batch=self.num_records
        )
