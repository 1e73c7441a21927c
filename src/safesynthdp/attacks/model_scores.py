"""What a run's model says of audited records, token by token, with a word on how long it takes.

Here: load, encode as in training, score. Elsewhere: the forward passes (training/token_statistics.py), the signals
made of them (signals.py). torch is imported when a model is loaded, not before.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from safesynthdp.attacks.signals import Statistics
from safesynthdp.progress import duration, progress
from safesynthdp.records import Records
from safesynthdp.runs import RunDirectory

if TYPE_CHECKING:
    from torch import nn

    from safesynthdp.training.examples import Example
    from safesynthdp.training.ranks import Ranks

Scorer = Callable[[Records], Sequence[Statistics]]
"""Returns, for each record, what a model says of its own scored tokens."""
_PROBE = 8  # records timed before the long part


def run_scorer(
    run: RunDirectory, *, untuned: bool, max_tokens_per_microbatch: int, ranks: "Ranks | None" = None
) -> Scorer:
    """Return a scorer that loads the run's model when it is called, and lets go of it afterwards.

    Args:
        run: A finished finetune run.
        untuned: Score with the model as it was before training.
        max_tokens_per_microbatch: Rows x padded length of one forward pass; memory only.
        ranks: Processes that share the passes; all get all numbers, and rank 0 says how far they are.
    """
    speaks = ranks is None or ranks.is_main
    name = "untuned model" if untuned else "trained model"

    def score(records: Records) -> Sequence[Statistics]:
        from safesynthdp.models import load_run_model
        from safesynthdp.training.examples import encode
        from safesynthdp.training.token_statistics import token_statistics

        loaded = load_run_model(run, untuned=untuned)
        examples = encode(
            records.texts,
            records.labels,
            tokenizer=loaded.tokenizer,
            template=loaded.template,
            max_length=loaded.max_length,
        )
        budget = max_tokens_per_microbatch
        if not speaks:
            return token_statistics(loaded.model, examples, max_tokens_per_microbatch=budget, ranks=ranks)
        _say_how_long(name, loaded.model, examples, budget)
        with progress(name, total=len(examples), unit="records") as advance:
            return token_statistics(
                loaded.model, examples, max_tokens_per_microbatch=budget, progress=advance, ranks=ranks
            )

    return score


def _say_how_long(name: str, model: "nn.Module", examples: Sequence["Example"], max_tokens: int) -> None:
    """Time a few records and say what all of them will take."""
    from safesynthdp.training.token_statistics import token_statistics

    if len(examples) <= _PROBE:
        return
    started = time.monotonic()
    token_statistics(model, examples[:_PROBE], max_tokens_per_microbatch=max_tokens)
    num_tokens, probed = (sum(len(example) for example in part) for part in (examples, examples[:_PROBE]))
    seconds = (time.monotonic() - started) * num_tokens / probed
    sys.stderr.write(f"{name}: {len(examples)} records, {num_tokens} tokens, about {duration(max(1.0, seconds))}\n")
    sys.stderr.flush()
