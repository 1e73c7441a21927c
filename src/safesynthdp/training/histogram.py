"""How many texts of each label a sample will hold: paid for, uniform, or (without a guarantee) exact.

Here: drawing the noisy counts once and writing them into the run. Elsewhere: the noise and its price
(privacy/mechanisms.py), the use (generation/).
"""

from typing import Any

from safesynthdp.privacy.mechanisms import label_shares
from safesynthdp.privacy.randomness import EntropySource, StepKeys, derive_key
from safesynthdp.privacy.storage import write_json
from safesynthdp.records import Records
from safesynthdp.runs import RunDirectory
from safesynthdp.training.plan import PrivacyPlan
from safesynthdp.training.spending import Spending
from safesynthdp.training.units import Units

LABELS = "label_histogram.json"


def settle_labels(
    run: RunDirectory, records: Records, *, units: Units, plan: PrivacyPlan, keys: StepKeys, spending: Spending
) -> None:
    """Write ``label_histogram.json``; the ledger counts the access before it happens.

    Guarantee:
        The noise comes from the run's own key under a label of its own, so a run killed here and begun again draws the
        same numbers: one access, counted once.
    """
    path = run.path / LABELS
    spending.charge_histogram()  # once; also where the counts are there already and an older ledger was restored
    if path.is_file():
        return
    labels = records.label_set
    if plan.mechanism is not None and plan.histogram is None:
        uniform = [1 / len(labels)] * len(labels)
        write_json(path, _content(labels, source="uniform", counts=None, shares=uniform))
        return
    counts = units.label_counts(records.labels, labels, keys=keys)
    if plan.histogram is None:
        write_json(path, _content(labels, source="exact", counts=counts, shares=label_shares(counts)))
        return
    entropy = EntropySource.keyed(derive_key(keys.noise, "label_histogram"), seeded=keys.seeded)
    noisy = plan.histogram.draw(counts, entropy=entropy)
    write_json(path, _content(labels, source="discrete_laplace", counts=noisy, shares=label_shares(noisy)))


def _content(labels: tuple[str, ...], *, source: str, counts: list[int] | None, shares: list[float]) -> dict[str, Any]:
    return {"labels": list(labels), "noisy_counts": counts, "shares": shares, "source": source}
