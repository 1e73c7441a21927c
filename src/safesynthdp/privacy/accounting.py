"""What a private run costs: numbers in, numbers out.

Here: epsilon of DP-SGD by three accountants, epsilon of several accesses together, and the noise for a target.
Elsewhere: grids of losses (losses.py) and their composition (composition.py), Renyi curves (renyi.py), label histograms
alone (conversions.py), the objects that draw (mechanisms.py), the root finding (noise_search.py).

``prv``: Opacus' accountant, its upper value, which lies above the true one by about 0.01 (prv.py). ``pld``: composed
privacy losses, pessimistic, the tightest. ``rdp``: Renyi divergences, loose by 5 to 50 %, cheap. All three are upper
bounds. ``auto`` is prv, and pld for ``adjacency=replace``, which the other two do not know.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import metadata
from typing import Protocol

from safesynthdp.errors import ConfigError
from safesynthdp.privacy import checks, prv, renyi
from safesynthdp.privacy.composition import COARSE_POINTS, FINE_POINTS, composed_epsilon
from safesynthdp.privacy.losses import Access, Adjacency, GaussianSteps
from safesynthdp.privacy.noise_search import smallest

OWN = "conversions"
"""A mechanism that is priced by formulas of its own when it stands alone, and asks for no accountant otherwise."""
_ROUGH = 0.02
_MARGIN = 2.5e-4  # of the target, so that prv's first answer lands within the tolerance as a rule
_DENSE = 4  # times the usual grid, where the usual one is looser than prv's error
_RARE = 1e-4  # below this sample rate one step moves less than a grid of the usual size resolves


class Priced(Protocol):
    """A mechanism that knows its price."""

    @property
    def adjacency(self) -> Adjacency:
        """Which data sets are neighbours."""
        ...

    @property
    def accountant(self) -> str:
        """The accountant it asks when it stands alone."""
        ...

    def accesses(self) -> tuple[Access, ...]:
        """Return what it does to the data; nothing when it has not run."""
        ...

    def epsilon(self, *, delta: float) -> float:
        """Return its price when it stands alone."""
        ...


def dpsgd_epsilon(
    *,
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    delta: float,
    accountant: str = checks.AUTO,
    adjacency: Adjacency = "add_remove",
) -> float:
    """Return epsilon at ``delta`` of ``steps`` Poisson-sampled Gaussian steps.

    Guarantee:
        At least the true epsilon, for batches drawn by Poisson sampling at exactly ``sample_rate``, clipped to
        ``per_sample_max_grad_norm`` and noised with ``noise_multiplier`` times it, under ``adjacency``. Shuffled or
        fixed batches cost more than this.

    Raises:
        ConfigError: If a number is outside its range, or the accountant does not know ``adjacency``.
    """
    relation = checks.adjacency("adjacency", adjacency)
    accountant = checks.accountant("accountant", accountant, relation=relation)
    count = checks.whole("steps", steps, at_least=0, at_most=checks.MAX_STEPS)
    delta = checks.probability("delta", delta)
    access = GaussianSteps(
        noise_multiplier=checks.positive("noise_multiplier", noise_multiplier),
        sample_rate=checks.rate("sample_rate", sample_rate),
        count=count,
    )
    return _price((access,), delta, relation, accountant, FINE_POINTS) if count else 0.0


def joint_epsilon(mechanisms: Sequence[Priced], *, delta: float, adjacency: Adjacency) -> float:
    """Return epsilon at ``delta`` of all mechanisms together, whatever the order they ran in.

    One alone asks its own accountant, and so do segments of one training, whose steps are added up. Others are composed
    as privacy losses, or as Renyi curves when each DP-SGD among them is accounted with rdp. No epsilons are added up.

    Raises:
        ConfigError: If a mechanism has another adjacency.
    """
    relation = checks.adjacency("adjacency", adjacency)
    delta = checks.probability("delta", delta)
    for mechanism in mechanisms:
        if mechanism.adjacency != relation:
            raise ConfigError(
                f"adjacency={mechanism.adjacency} cannot be composed with adjacency={relation}; choose one"
            )
    active = [mechanism for mechanism in mechanisms if mechanism.accesses()]
    if len(active) == 1:
        return active[0].epsilon(delta=delta)
    accesses = _added_up(access for mechanism in active for access in mechanism.accesses())
    return _price(accesses, delta, relation, joint_accountant(active), FINE_POINTS)


def joint_accountant(mechanisms: Sequence[Priced]) -> str:
    """Return which accountant ``joint_epsilon`` asks."""
    active = [mechanism for mechanism in mechanisms if mechanism.accesses()]
    if len(active) == 1:
        return active[0].accountant
    stepped = {m.accountant for m in active if any(isinstance(a, GaussianSteps) for a in m.accesses())} - {OWN}
    if stepped == {"rdp"}:
        return "rdp"
    accesses = _added_up(access for mechanism in active for access in mechanism.accesses())
    return "prv" if stepped == {"prv"} and len(accesses) == 1 else "pld"


def find_noise_multiplier(
    *,
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    accountant: str = checks.AUTO,
    adjacency: Adjacency = "add_remove",
    others: Sequence[Access] = (),
) -> float:
    """Return the smallest noise multiplier, to 0.1 %, with which everything costs at most ``target_epsilon``.

    ``others`` are the further accesses that the target has to cover. The answer is verified: epsilon of exactly this
    value was computed, at full accuracy, and is not above the target.

    Raises:
        ConfigError: If no noise multiplier reaches the target.
    """
    target = checks.positive("target_epsilon", target_epsilon)
    relation = checks.adjacency("adjacency", adjacency)
    accountant = checks.accountant("accountant", accountant, relation=relation)
    delta, rate = checks.probability("delta", delta), checks.rate("sample_rate", sample_rate)
    count = checks.whole("steps", steps, at_most=checks.MAX_STEPS)
    if others and accountant == "prv":
        accountant = "pld"  # what joint_epsilon asks
    if others and _price(tuple(others), delta, relation, accountant, FINE_POINTS) >= target:
        raise ConfigError(
            f"target_epsilon={target} is spent by the other accesses alone; raise it or make them cheaper"
        )

    def price(noise_multiplier: float, which: str, points: int) -> float:
        access = GaussianSteps(noise_multiplier=noise_multiplier, sample_rate=rate, count=count)
        return _price((access, *others), delta, relation, which, points)

    if accountant == "rdp":
        return smallest(lambda s: price(s, "rdp", 0), target, 1.0)
    if accountant == "pld":
        start = smallest(lambda s: price(s, "pld", COARSE_POINTS), target, 1.0, tolerance=_ROUGH)
        return smallest(lambda s: price(s, "pld", FINE_POINTS), target, start)
    if target <= prv.LEAST_ERROR:
        raise ConfigError(
            f"target_epsilon={target} is not above {prv.LEAST_ERROR}, the least accountant=prv can say; use pld"
        )

    def expected(noise_multiplier: float, points: int) -> float:
        """What prv will say, without asking it."""
        tight = price(noise_multiplier, "pld", points)
        return tight + prv.error(tight)

    start = smallest(lambda s: expected(s, COARSE_POINTS), target, 1.0, tolerance=_ROUGH)
    start = smallest(lambda s: expected(s, FINE_POINTS), target * (1 - _MARGIN), start, tolerance=2 * _MARGIN)
    nearby = [price(noise, "rdp", 0) for noise in (start, 1.05 * start)]
    slope = math.log(nearby[1] / nearby[0]) / math.log(1.05) if min(nearby) > 0 else -1.0
    return smallest(lambda s: price(s, "prv", FINE_POINTS), target, start, slope=slope)


def accountant_version(accountant: str) -> dict[str, str]:
    """Return ``{"name", "version"}`` for a release of the ledger."""
    package = "opacus" if accountant == "prv" else "safesynthdp"
    return {"name": accountant, "version": f"{package} {metadata.version(package)}"}


@lru_cache(maxsize=1024)
def _price(accesses: tuple[Access, ...], delta: float, adjacency: Adjacency, accountant: str, points: int) -> float:
    """Ask one accountant; the arguments have been checked."""
    if accountant == "rdp":
        return renyi.epsilon(accesses, delta=delta)
    if accountant == "prv" and len(accesses) == 1 and isinstance(accesses[0], GaussianSteps):
        return _certified_prv(accesses[0], delta)
    rare = any(isinstance(access, GaussianSteps) and access.sample_rate < _RARE for access in accesses)
    return composed_epsilon(accesses, delta=delta, adjacency=adjacency, points=4 * points if rare else points)


def _certified_prv(access: GaussianSteps, delta: float) -> float:
    """Return prv's upper value if pld, which errs in another way, says too that it is one.

    The true epsilon is at most pld's. So a value of at least pld's is an upper bound whatever rounding did to prv, and
    one that lies more than its own error above pld's is wrong.
    """
    most = _price((access,), delta, "add_remove", "pld", FINE_POINTS)
    eps_error = prv.error(most)
    found = prv.upper_epsilon(access, delta=delta, eps_error=eps_error)
    if found < most:
        most = _price((access,), delta, "add_remove", "pld", _DENSE * FINE_POINTS)
    if not most <= found <= most + 2 * eps_error:
        raise ConfigError(f"accountant=prv says epsilon={found:.6g}, which pld's {most:.6g} does not confirm; use pld")
    return found


def _added_up(accesses: Iterable[Access]) -> tuple[Access, ...]:
    """Return the accesses with equal sampled Gaussian steps in one: composition knows no order."""
    steps: dict[tuple[float, float], GaussianSteps] = {}
    rest: list[Access] = []
    for access in accesses:
        if not isinstance(access, GaussianSteps):
            rest.append(access)
            continue
        key = (access.noise_multiplier, access.sample_rate)
        steps[key] = replace(access, count=access.count + (steps[key].count if key in steps else 0))
    return (*steps.values(), *rest)
