"""What text under an output mechanism costs.

Here: the ledger of a sample with noise at sampling time, and of private prediction. Elsewhere: text without it
(release.py), the arithmetic (privacy/ledger.py).

Guarantee:
    Text from one model through a clipped mechanism carries two guarantees: that of the weights, because drawing is
    post-processing, and that of the mechanism, which holds for every pair of models, whatever training did. The
    smaller one is claimed, and only while the weights are withheld; a label histogram is paid with either.
"""

import dataclasses
import fcntl
import json
from typing import Any

from safesynthdp.errors import LedgerMismatch, UserError
from safesynthdp.generation.labels import LabelShares
from safesynthdp.generation.release import PRETRAINING, PRIVATE_LABELS, TEXT, released_weights, sample_ledger
from safesynthdp.privacy.ledger import Entry, Ledger, Release, confirm, least_epsilon, release_epsilon
from safesynthdp.privacy.losses import Adjacency
from safesynthdp.privacy.output_pricing import OutputMechanism
from safesynthdp.privacy.output_registry import Heuristic
from safesynthdp.privacy.storage import write_json
from safesynthdp.records import Records
from safesynthdp.runs import LEDGER, RunDirectory

OUTPUT = "output"
PREDICTION = "prediction"
SEEDED = "seeded: no guarantee against whoever knows the seed"
FLOATING_POINT = "floating-point attacks on the noise, and timing"
_CLAIMED = "output_texts.json"


def output_ledger(
    source: Ledger, shares: LabelShares, mechanism: OutputMechanism, *, weights_withheld: bool, seeded: bool
) -> Ledger:
    """Return the ledger of text drawn from a run's weights through a mechanism.

    Raises:
        UserError: If the labels follow counts that nobody paid for.
        LedgerMismatch: As ``sample_ledger``.
    """
    plain = sample_ledger(source, shares)
    if not weights_withheld:
        return plain  # once the weights are out, noise in the text is worth nothing
    if shares.source == "exact":
        raise UserError("labels=exact counts of private records, which no mechanism covers; use --labels uniform")
    text, weights = plain.releases[0], released_weights(source)
    if weights is None or text.delta is None:
        raise LedgerMismatch("run: its ledger says at no delta what the weights cost; restore the ledger")
    entry = Entry(
        id=OUTPUT,
        kind="output_mechanism",
        mechanism=mechanism.to_entry(),
        data=next((e.data for e in source.entries if e.kind in ("dpsgd", "none")), {}),
        randomness=randomness(seeded=seeded),
    )
    ledger = dataclasses.replace(plain, releases=()).with_entry(entry)
    entries = (*text.entries, *(name for name in _training(source) if name not in text.entries), OUTPUT)
    epsilon, accountant = least_epsilon(ledger, entries, delta=text.delta)
    withheld = "the weights and other text from them: the epsilon of this text holds only while they are withheld"
    lines = (*text.not_covered, withheld, FLOATING_POINT)
    release = dataclasses.replace(
        text,
        epsilon=epsilon,
        rule="min",
        entries=entries,
        accountant=accountant,
        not_covered=_with_seed(lines, seeded=seeded),
    )
    return ledger.with_release(release)


def claim_batch(source: RunDirectory, run: RunDirectory, ledger: Ledger) -> None:
    """Note in a run's state that its one batch of texts is taken; one model is one batch for life.

    Raises:
        UserError: If another sample has claimed the smaller of both guarantees before.
    """
    if not any(release.rule == "min" for release in ledger.releases):
        return
    path = source.state / _CLAIMED
    with (source.state / f"{_CLAIMED}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two samples begun at once: one of them reads what the other wrote
        taken = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"run_id": run.manifest["run_id"]}
        write_json(path, taken)
    if taken["run_id"] != run.manifest["run_id"]:
        run.discard()
        raise UserError(
            f"run={source.path} has given its texts under an output mechanism already: one model is one batch for "
            "life; ask for all texts in one sample, or set output.weights_withheld to false"
        )
    if not (run.path / LEDGER).is_file():
        write_first(run, dataclasses.replace(ledger, releases=()))


def prediction_ledger(
    records: Records,
    mechanism: OutputMechanism | Heuristic,
    *,
    unit: str,
    adjacency: Adjacency,
    delta: float,
    num_records_is_public: bool,
    seeded: bool,
) -> Ledger:
    """Return the ledger of private prediction on these records before its first token: the access, no release yet."""
    num_units = len(set(records.user_ids)) if unit == "user" and records.user_ids is not None else len(records)
    data = {
        "fingerprint": records.fingerprint,
        "num_records": num_units,
        "num_records_is_public": num_records_is_public,
    }
    kind = "none" if isinstance(mechanism, Heuristic) else "private_prediction"
    entry = Entry(
        id=PREDICTION, kind=kind, mechanism=mechanism.to_entry(), data=data, randomness=randomness(seeded=seeded)
    )
    ledger = Ledger(unit=unit, adjacency=adjacency, entries=(entry,))
    release_epsilon(ledger, [PREDICTION], delta=delta)  # refuses what cannot be priced before anything is read
    return ledger


def release_prediction(ledger: Ledger, records: Records, *, delta: float, seeded: bool) -> Ledger:
    """Return the ledger with the release of the text.

    Raises:
        SafeSynthError: If a second accountant contradicts the price; then nothing is released.
    """
    epsilon, accountant = release_epsilon(ledger, [PREDICTION], delta=delta)
    confirm(ledger, [PREDICTION], epsilon, delta=delta)
    lines = [
        PRETRAINING,
        FLOATING_POINT,
        "other runs and earlier trials on these records: each spent its own epsilon, and they add up",
        "the counts of tokens read, and the times, in manifest.json",
        "data.fingerprint, here and in manifest.json: it confirms a guess of all records; remove it before publishing",
    ]
    if not records.label_set_is_public:
        lines.append(PRIVATE_LABELS)
    if not all(entry.data["num_records_is_public"] for entry in ledger.entries):
        lines.append("the number of records, here and in manifest.json; no price is computed from it")
    release = Release(
        artifact=TEXT,
        epsilon=epsilon,
        delta=delta,
        rule="compose",
        entries=(PREDICTION,),
        accountant=accountant,
        not_covered=_with_seed((*lines, *records.not_covered), seeded=seeded),
    )
    return dataclasses.replace(ledger, releases=(release,))


def randomness(*, seeded: bool) -> dict[str, Any]:
    """Return the randomness of an entry."""
    return {"source": "unsafe_seed" if seeded else "os_entropy", "seeded": seeded}


def write_first(run: RunDirectory, ledger: Ledger) -> None:
    """Count the access on disk before the first record is read into a prompt."""
    ledger.write(run.path / LEDGER)


def _training(source: Ledger) -> list[str]:
    return [entry.id for entry in source.entries if entry.kind in ("dpsgd", "none")]


def _with_seed(lines: tuple[str, ...], *, seeded: bool) -> tuple[str, ...]:
    return (*lines, SEEDED) if seeded and SEEDED not in lines else lines
