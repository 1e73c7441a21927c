"""A second accountant that shares no code with ours: Google's dp-accounting, asked for a lower bound.

Here: the smallest epsilon that the accesses can possibly have, and the refusal of a price below it. Elsewhere: our own
price, an upper bound (accounting.py). With both right, lower bound <= truth <= price.
"""

from collections.abc import Sequence
from math import exp
from typing import Any

from safesynthdp.errors import SafeSynthError
from safesynthdp.privacy.accounting import Priced
from safesynthdp.privacy.losses import Access, Adjacency, DiscreteGaussian, GaussianSteps, TwoPoint
from safesynthdp.privacy.output_pricing import BoundedRange

_FINEST, _COARSEST = 2e-5, 1e-3
_MOST_PURE, _LARGEST_LOSS, _LEAST_NOISE = 500, 50.0, 0.1
_WANTED_ERROR = 0.05  # losses are rounded down by at most one interval an access


def refuse_contradiction(mechanisms: Sequence[Priced], epsilon: float, *, delta: float, adjacency: Adjacency) -> None:
    """Compare a price with the second accountant's lower bound.

    Raises:
        SafeSynthError: If the price is below it: one of the two accountants is wrong, and nothing may be released.
    """
    accesses = [access for mechanism in mechanisms for access in mechanism.accesses()]
    least = least_epsilon(accesses, delta=delta, adjacency=adjacency)
    if epsilon < least:
        raise SafeSynthError(
            f"accountants disagree: epsilon={epsilon} at delta={delta} is below dp-accounting's lower bound {least}; "
            "do not release anything and report this"
        )


def least_epsilon(accesses: Sequence[Access], *, delta: float, adjacency: Adjacency) -> float:
    """Return a lower bound on epsilon at ``delta`` of all accesses together; 0 for none.

    Losses are rounded down and tails are dropped. The bound is loose by up to 0.05, more beyond 2,500 steps. Steps of
    bounded range have no privacy losses; a bound without them is a lower one, and so is one over fewer pure steps.
    """
    accesses = [_manageable(access) for access in accesses if not isinstance(access, BoundedRange)]
    if not accesses:
        return 0.0
    interval = min(max(_WANTED_ERROR / sum(access.count for access in accesses), _FINEST), _COARSEST)
    composed: Any = None
    for access in accesses:
        one = _optimistic(access, interval, adjacency).self_compose(access.count)
        composed = one if composed is None else composed.compose(one)
    return float(composed.get_epsilon_for_delta(delta))


def _manageable(access: Access) -> Access:
    """Return an access that composes in seconds and costs no more."""
    if isinstance(access, GaussianSteps) and access.sample_rate == 1:
        noise = max(access.noise_multiplier / access.count**0.5, _LEAST_NOISE)
        return GaussianSteps(noise_multiplier=noise, sample_rate=1.0, count=1)
    if isinstance(access, TwoPoint):
        most = min(_MOST_PURE, max(1, int(_LARGEST_LOSS / access.epsilon)))
        return TwoPoint(epsilon=access.epsilon, count=min(access.count, most))
    return access


def _optimistic(access: Access, interval: float, adjacency: Adjacency) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as pld

    if isinstance(access, GaussianSteps):
        return pld.from_gaussian_mechanism(
            access.noise_multiplier,
            pessimistic_estimate=False,
            value_discretization_interval=interval,
            sampling_prob=access.sample_rate,
            use_connect_dots=False,
            neighboring_relation=_relation(adjacency),
        )
    if isinstance(access, TwoPoint):
        return pld.from_randomized_response(
            2 / (1 + exp(access.epsilon)), 2, pessimistic_estimate=False, value_discretization_interval=interval
        )
    if isinstance(access, DiscreteGaussian):
        return pld.from_discrete_gaussian_mechanism(
            access.scale, 1, pessimistic_estimate=False, value_discretization_interval=interval
        )
    raise SafeSynthError(f"{type(access).__name__} has no second opinion; this is a defect")


def _relation(adjacency: Adjacency) -> Any:
    from dp_accounting.privacy_accountant import NeighboringRelation

    return NeighboringRelation.ADD_OR_REMOVE_ONE if adjacency == "add_remove" else NeighboringRelation.REPLACE_ONE
