"""How often the records of each label use each token: counted once, noised once, written into the run.

Here: the table of contributions. Elsewhere: a text's contribution (word_columns.py), the noise and its price
(privacy/token_histogram.py), the file (token_file.py), the use (generation/token_targets.py). Shapes: L labels, C
columns.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from safesynthdp.errors import LedgerMismatch
from safesynthdp.privacy.randomness import StepKeys, derive_key
from safesynthdp.privacy.storage import write_json
from safesynthdp.runs import TOKENS, RunDirectory
from safesynthdp.training.examples import Example
from safesynthdp.training.plan import PrivacyPlan
from safesynthdp.training.spending import TOKEN_HISTOGRAM, Spending
from safesynthdp.training.token_file import TokenFile
from safesynthdp.training.units import Units
from safesynthdp.training.word_columns import WordColumns

_DIGEST = "token_table.json"


def settle_tokens(
    run: RunDirectory,
    examples: Sequence[Example],
    labels: Sequence[str],
    *,
    label_set: Sequence[str],
    columns: WordColumns,
    units: Units,
    plan: PrivacyPlan,
    keys: StepKeys,
    spending: Spending,
) -> None:
    """Write ``token_histogram.safetensors``; the ledger counts the access before it happens.

    Args:
        run: The run; nothing happens where its file is there.
        examples: [N] the encoded records.
        labels: [N] their labels.
        label_set: The L labels of the run.
        columns: Where a token is counted.
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
        _refuse_another_table(path, columns, noise_std=noise)
        return
    if spending.steps:
        raise LedgerMismatch(f"resume: {path} is missing, and it was released once; restore it")
    table_LC = token_table(examples, labels, label_set=label_set, columns=columns, units=units)
    _refuse_second_table(run, table_LC, keys=keys, is_charged=spending.ledger.has(TOKEN_HISTOGRAM))
    spending.charge_tokens()
    released_LC = table_LC if mechanism is None else mechanism.draw(table_LC, keys=keys)
    TokenFile(
        labels=tuple(label_set),
        vocab_size=columns.num_tokens,
        word_buckets=columns.num_buckets,
        lengths=columns.num_lengths,
        noise_std=noise,
        sums_LC=released_LC.astype(np.float32),
    ).write(path)


def _refuse_another_table(path: Path, columns: WordColumns, *, noise_std: float) -> None:
    found = TokenFile.read(path)
    if found.noise_std != noise_std:
        raise LedgerMismatch(f"resume: {path} has another noise than the ledger pays for; restore both")
    if found.word_buckets != columns.num_buckets:
        raise LedgerMismatch(
            f"resume: privacy.token_histogram_word_buckets={columns.num_buckets}, and {path} was released with "
            f"{found.word_buckets}, once; give that number"
        )


def _refuse_second_table(run: RunDirectory, table_LC: NDArray[np.float64], *, keys: StepKeys, is_charged: bool) -> None:
    """A run draws from one table for life: the price is that of one. Its digest is on disk before it is charged."""
    digest = derive_key(keys.noise, f"{_DIGEST}/{hashlib.sha256(table_LC.tobytes()).hexdigest()}").hex()
    path = run.state / _DIGEST
    if not path.is_file() and not is_charged:
        write_json(path, {"digest": digest}, private=True)
    elif not path.is_file() or json.loads(path.read_text(encoding="utf-8")).get("digest") != digest:
        raise LedgerMismatch(
            f"resume: {run.path / TOKENS} was drawn from other token counts than these records give now; restore it "
            "and the settings, or start another run in a new output_dir"
        )


def token_table(
    examples: Sequence[Example], labels: Sequence[str], *, label_set: Sequence[str], columns: WordColumns, units: Units
) -> NDArray[np.float64]:
    """Return the sums without noise, [L, C].

    Guarantee:
        A record contributes its counts of the tokens it was trained on, its end or that it was cut included, in the
        public weights of the columns and scaled to norm 1; a unit the mean over its records. What a unit contributes
        depends on its own records alone.
    """
    position = {label: i for i, label in enumerate(label_set)}
    table_LC = np.zeros((len(label_set), columns.width), dtype=np.float64)
    for members in units.members:
        for index in members:
            example = examples[index]
            tokens = example.input_ids[example.num_prompt_tokens :]
            own = columns.contribution(tokens, is_cut=example.is_truncated)
            weighted_U = own.counts_U * columns.weight_C[own.columns_U]
            table_LC[position[labels[index]], own.columns_U] += weighted_U / (len(members) * own.norm)
    return table_LC
