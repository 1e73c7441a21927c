"""How often the records of each label use each token: counted once, noised once, written into the run.

Here: the table of contributions, and the file. Elsewhere: the noise and its price (privacy/token_histogram.py), the
use (generation/token_matching.py). Shapes: L labels, V tokens.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safesynthdp.errors import LedgerMismatch
from safesynthdp.privacy.randomness import StepKeys, derive_key
from safesynthdp.privacy.storage import write_json
from safesynthdp.runs import TOKENS, RunDirectory
from safesynthdp.training.examples import Example
from safesynthdp.training.plan import PrivacyPlan
from safesynthdp.training.spending import Spending
from safesynthdp.training.units import Units

_DIGEST = "token_table.json"


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
        LedgerMismatch: If the file is gone from a run that has trained, is not what the ledger pays for, or was drawn
            from other records or tokens than there are now.
    """
    mechanism, path = plan.tokens, run.path / TOKENS
    noise = 0.0 if mechanism is None else mechanism.noise_multiplier
    if path.is_file():
        spending.charge_tokens()
        if json.loads(path.read_text(encoding="utf-8")).get("noise_std") != noise:
            raise LedgerMismatch(f"resume: {path} has another noise than the ledger pays for; restore both")
        return
    if spending.steps:
        raise LedgerMismatch(f"resume: {path} is missing, and it was released once; restore it")
    table_LV = token_table(examples, labels, label_set=label_set, vocab_size=vocab_size, units=units)
    _refuse_second_table(run, table_LV, keys=keys)
    spending.charge_tokens()
    released_LV = table_LV if mechanism is None else mechanism.draw(table_LV, keys=keys)
    write_json(path, _content(released_LV, label_set, noise_std=noise), private=True)


def least_sure(noise_std: float, cells: int) -> float:
    """Return what noise alone exceeds in less than one of ``cells`` independent cells: the universal threshold.

    Source: Donoho and Johnstone (1994), ``sigma sqrt(2 ln n)``. A lower one would let hundreds of cells of a large
    vocabulary through that are nothing but noise, which a label with few records would then be steered to.
    """
    return noise_std * math.sqrt(2 * math.log(max(cells, 2)))


def _refuse_second_table(run: RunDirectory, table_LV: NDArray[np.float64], *, keys: StepKeys) -> None:
    """A run draws from one table for life: the price is that of one."""
    digest = derive_key(keys.noise, f"{_DIGEST}/{hashlib.sha256(table_LV.tobytes()).hexdigest()}").hex()
    path = run.state / _DIGEST
    if not path.is_file():
        write_json(path, {"digest": digest}, private=True)
    elif json.loads(path.read_text(encoding="utf-8")).get("digest") != digest:
        raise LedgerMismatch(
            f"resume: {run.path / TOKENS} was drawn from other token counts than these records give now; restore it "
            "and the settings, or start another run in a new output_dir"
        )


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
    """Return the cells that stand out of the noise, and the sum over all cells of each label; post-processing."""
    least = least_sure(noise_std, released_LV.size)
    sums = {
        label: {str(token): round(float(row_V[token]), 4) for token in np.flatnonzero(row_V > least)}
        for label, row_V in zip(label_set, released_LV, strict=True)
    }
    return {
        "source": "gaussian" if noise_std else "exact",
        "noise_std": noise_std,
        "least": least,
        "vocab_size": released_LV.shape[1],
        "totals": {label: float(row_V.sum()) for label, row_V in zip(label_set, released_LV, strict=True)},
        "sums": sums,
    }
