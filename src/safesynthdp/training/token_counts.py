"""How often the records of each label use each token: counted once, noised once, written into the run.

Here: the table of contributions, and the file. Elsewhere: the noise and its price (privacy/token_histogram.py), the
use (generation/token_matching.py). Shapes: L labels, V tokens.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesynthdp.errors import LedgerMismatch
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.privacy.storage import write_json
from safesynthdp.runs import TOKENS, RunDirectory
from safesynthdp.training.examples import Example
from safesynthdp.training.plan import PrivacyPlan
from safesynthdp.training.spending import Spending
from safesynthdp.training.units import Units

SURE = 3.0
"""Cells below so many standard deviations of the noise are left out of the file: next to nothing but noise."""


def settle_tokens(
    run: RunDirectory,
    examples: Sequence[Example],
    labels: Sequence[str],
    *,
    label_set: Sequence[str],
    vocab_size: int,
    units: Units,
    plan: PrivacyPlan,
    keys: StepKeys,
    spending: Spending,
) -> None:
    """Write ``token_histogram.json``; the ledger counts the access before it happens.

    Args:
        run: The run; nothing happens where its file is there.
        examples: [N] the encoded records.
        labels: [N] their labels.
        label_set: The L labels of the run.
        vocab_size: V, the number of the model's logits.
        units: Who contributes.
        plan: With the mechanism; without privacy the sums are exact.
        keys: The run's keys.
        spending: The ledger.

    Raises:
        LedgerMismatch: If the file is gone from a run that has trained.
    """
    spending.charge_tokens()
    path = run.path / TOKENS
    if path.is_file():
        return
    if spending.steps:
        raise LedgerMismatch(f"resume: {path} is missing, and it was released once; restore it")
    table_LV = token_table(examples, labels, label_set=label_set, vocab_size=vocab_size, units=units)
    mechanism = plan.tokens
    noise = 0.0 if mechanism is None else mechanism.noise_multiplier
    released_LV = table_LV if mechanism is None else mechanism.draw(table_LV, keys=keys)
    write_json(path, _content(released_LV, label_set, noise_std=noise), private=True)


def token_table(
    examples: Sequence[Example], labels: Sequence[str], *, label_set: Sequence[str], vocab_size: int, units: Units
) -> NDArray[np.float64]:
    """Return the sums without noise, [L, V].

    Guarantee:
        A record contributes its counts of the tokens it was trained on, the end of text included, scaled to norm 1; a
        unit the mean over its records. What a unit contributes depends on its own records alone.
    """
    position = {label: i for i, label in enumerate(label_set)}
    table_LV = np.zeros((len(label_set), vocab_size), dtype=np.float64)
    for members in units.members:
        for index in members:
            example = examples[index]
            tokens, counts = np.unique(example.input_ids[example.num_prompt_tokens :], return_counts=True)
            share = 1 / (len(members) * math.sqrt(float(counts @ counts)))
            table_LV[position[labels[index]], tokens] += share * counts
    return table_LV


def _content(released_LV: NDArray[np.float64], label_set: Sequence[str], *, noise_std: float) -> dict[str, Any]:
    """Return the cells that stand out of the noise; leaving out the others is post-processing."""
    least = SURE * noise_std
    sums = {
        label: {str(token): round(float(row_V[token]), 4) for token in np.flatnonzero(row_V > least)}
        for label, row_V in zip(label_set, released_LV, strict=True)
    }
    source = "gaussian" if noise_std else "exact"
    return {"source": source, "noise_std": noise_std, "least": least, "vocab_size": released_LV.shape[1], "sums": sums}
