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
from safesynthdp.training.spending import TOKEN_HISTOGRAM, Spending
from safesynthdp.training.units import Units

FALSE_SHARE = 0.1
"""Of the cells that are followed, at most about so many hold nothing but noise."""
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
    _refuse_second_table(run, table_LV, keys=keys, is_charged=spending.ledger.has(TOKEN_HISTOGRAM))
    spending.charge_tokens()
    released_LV = table_LV if mechanism is None else mechanism.draw(table_LV, keys=keys)
    write_json(path, _content(released_LV, label_set, noise_std=noise), private=True)


def least_sure(noisy_V: NDArray[np.float64], noise_std: float) -> float:
    """Return the smallest value of a label's cells that is followed, so that about one in ten of those is noise alone.

    The threshold adapts to how much there is to find: about three standard deviations where a label has thousands of
    records, and beyond what noise alone reaches where it has none; at a fixed three, some sixty of 50,000 cells would
    be noise, and sampling would write nothing else for such a label. Source: Benjamini and Hochberg (1995), for
    thresholds Abramovich et al. (2006), arXiv:math/0505374.
    """
    from scipy.special import ndtr

    if not noise_std:
        return 0.0
    falling_V = -np.sort(-noisy_V)
    tails_V = ndtr(-falling_V / noise_std)
    passing = np.flatnonzero(tails_V <= FALSE_SHARE * np.arange(1, len(falling_V) + 1) / len(falling_V))
    nothing = noise_std * math.sqrt(2 * math.log(max(len(falling_V), 2)))
    return float(falling_V[passing[-1]]) if len(passing) else max(nothing, float(np.nextafter(falling_V[0], np.inf)))


def _refuse_second_table(run: RunDirectory, table_LV: NDArray[np.float64], *, keys: StepKeys, is_charged: bool) -> None:
    """A run draws from one table for life: the price is that of one. Its digest is on disk before it is charged."""
    digest = derive_key(keys.noise, f"{_DIGEST}/{hashlib.sha256(table_LV.tobytes()).hexdigest()}").hex()
    path = run.state / _DIGEST
    if not path.is_file() and not is_charged:
        write_json(path, {"digest": digest}, private=True)
    elif not path.is_file() or json.loads(path.read_text(encoding="utf-8")).get("digest") != digest:
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
    rows = dict(zip(label_set, released_LV, strict=True))
    least = {label: least_sure(row_V, noise_std) for label, row_V in rows.items()}
    sums = {
        label: {str(token): float(row_V[token]) for token in np.flatnonzero((row_V >= least[label]) & (row_V > 0))}
        for label, row_V in rows.items()
    }
    return {
        "source": "gaussian" if noise_std else "exact",
        "noise_std": noise_std,
        "vocab_size": released_LV.shape[1],
        "least": least,
        "totals": {label: float(row_V.sum()) for label, row_V in rows.items()},
        "sums": sums,
    }
