"""One price for several accesses of any kind.

Here: which accountant composes what. Elsewhere: privacy losses and Renyi curves (accounting.py, renyi.py), prices alone
(mechanisms.py, output_pricing.py). Steps of bounded range (softmax sampling) have a Renyi curve and no pair of
distributions, so they never become privacy losses.
"""

from collections.abc import Sequence

from safesynthdp.privacy import renyi
from safesynthdp.privacy.accounting import Priced, joint_accountant, joint_epsilon
from safesynthdp.privacy.losses import Access, Adjacency
from safesynthdp.privacy.output_pricing import BoundedRange


def joint_price(mechanisms: Sequence[Priced], *, delta: float, adjacency: Adjacency) -> tuple[float, str]:
    """Return epsilon at ``delta`` of all mechanisms together, and the name of the accountant that says so.

    Guarantee:
        At least the true epsilon, whatever the order they ran in and however one's outcome chose the next. With steps
        of bounded range it is the smaller of two bounds: all Renyi curves added and converted once (not for replaced
        records, where the curve of a sampled Gaussian is not known); or privacy losses of the rest at delta/2 plus the
        bounded-range steps at delta/2.
    """
    active = [mechanism for mechanism in mechanisms if mechanism.accesses()]
    ranged = [mechanism for mechanism in active if _is_ranged(mechanism)]
    rest = [mechanism for mechanism in active if not _is_ranged(mechanism)]
    if not ranged:
        return (joint_epsilon(rest, delta=delta, adjacency=adjacency), joint_accountant(rest)) if rest else (0.0, "pld")
    if not rest:
        return _ranged_epsilon(ranged, delta=delta, adjacency=adjacency)
    half = _ranged_epsilon(ranged, delta=delta / 2, adjacency=adjacency)[0]
    split = half + joint_epsilon(rest, delta=delta / 2, adjacency=adjacency)
    if adjacency != "add_remove":
        return split, f"conversions and {joint_accountant(rest)}, half of delta each"
    together = renyi.epsilon(_accesses(active), delta=delta)
    if together <= split:
        return together, "rdp"
    return split, f"conversions and {joint_accountant(rest)}, half of delta each"


def _ranged_epsilon(ranged: Sequence[Priced], *, delta: float, adjacency: Adjacency) -> tuple[float, str]:
    """Return the price of steps of bounded range alone."""
    for mechanism in ranged:
        if mechanism.adjacency != adjacency:
            raise ValueError(f"adjacency={mechanism.adjacency} is not {adjacency}")  # PricedOutput has seen to it
    if len(ranged) == 1:
        return ranged[0].epsilon(delta=delta), ranged[0].accountant
    return renyi.epsilon(_accesses(ranged), delta=delta), "rdp"


def _accesses(mechanisms: Sequence[Priced]) -> list[Access]:
    return [access for mechanism in mechanisms for access in mechanism.accesses()]


def _is_ranged(mechanism: Priced) -> bool:
    return any(isinstance(access, BoundedRange) for access in mechanism.accesses())
