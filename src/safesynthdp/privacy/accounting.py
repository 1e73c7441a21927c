"""What a private run costs: numbers in, numbers out.

Here: epsilon of DP-SGD by three accountants, epsilon of several accesses together, and the noise for a target.
Elsewhere: grids of losses (losses.py) and their composition (composition.py), Renyi curves (renyi.py), label histograms
alone (conversions.py), the objects that draw (mechanisms.py).

``pld``: composed privacy losses, pessimistic, the tightest. ``prv``: Opacus' accountant, its upper value, which is the
true one plus at most about 0.02. ``rdp``: Renyi divergences, loose by 5 to 50 %, cheap. All three are upper bounds.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import metadata
from typing import Protocol

from safesynthdp.errors import ConfigError
from safesynthdp.privacy import checks, renyi
from safesynthdp.privacy.composition import COARSE_POINTS, FINE_POINTS, composed_epsilon
from safesynthdp.privacy.losses import Access, Adjacency, GaussianSteps

PRV_ERROR = 0.01
_PRV_MEMORY = 30_000_000  # points of Opacus' grid
_TOLERANCE = 1e-3
_MOST_PRICES = 100
_NOISE_RANGE = (1e-3, 1e7)
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
    accountant: str = "pld",
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

    One alone asks its own accountant. Several are composed as privacy losses, or as Renyi curves when each DP-SGD
    among them is accounted with rdp. Epsilons are never added up.

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
    accesses = tuple(access for mechanism in active for access in mechanism.accesses())
    return _price(accesses, delta, relation, joint_accountant(active), FINE_POINTS)


def joint_accountant(mechanisms: Sequence[Priced]) -> str:
    """Return which accountant ``joint_epsilon`` asks."""
    active = [mechanism for mechanism in mechanisms if mechanism.accesses()]
    if len(active) == 1:
        return active[0].accountant
    stepped = {m.accountant for m in active if any(isinstance(a, GaussianSteps) for a in m.accesses())}
    return "rdp" if stepped == {"rdp"} else "pld"


def find_noise_multiplier(
    *,
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    accountant: str = "pld",
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
        return _search(lambda s: price(s, "rdp", 0), target, 1.0)
    rough_target = target - PRV_ERROR if accountant == "prv" else target
    if rough_target <= 0:
        raise ConfigError(
            f"target_epsilon={target} is not above {PRV_ERROR}, the least accountant=prv can say; use pld"
        )
    start = _search(lambda s: price(s, "pld", COARSE_POINTS), rough_target, 1.0)
    return _search(lambda s: price(s, accountant, FINE_POINTS), target, start)


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
        return _prv_epsilon(accesses[0], delta)
    rare = any(isinstance(access, GaussianSteps) and access.sample_rate < _RARE for access in accesses)
    return composed_epsilon(accesses, delta=delta, adjacency=adjacency, points=4 * points if rare else points)


def _prv_epsilon(access: GaussianSteps, delta: float) -> float:
    """Return the upper value of Opacus' accountant; importing it loads torch."""
    rough = composed_epsilon((access,), delta=delta / 4000, adjacency="add_remove", points=COARSE_POINTS)
    if (2 * rough + 6) * math.sqrt(access.count * math.log(12e3 / delta) / 2) / PRV_ERROR > _PRV_MEMORY:
        raise ConfigError(f"accountant=prv needs too much memory for steps={access.count} at this noise; use pld")
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(access.noise_multiplier, access.sample_rate, access.count)]
    try:
        epsilon = float(accountant.get_epsilon(delta, eps_error=PRV_ERROR))
    except RuntimeError as error:
        raise ConfigError(f"accountant=prv cannot compute this epsilon ({error}); use pld") from error
    if not math.isfinite(epsilon):
        raise ConfigError("accountant=prv found no finite epsilon here; use pld")
    return max(epsilon, 0.0)


def _search(price: Callable[[float], float], target: float, start: float) -> float:
    """Return x with ``target / 1.001 <= price(x) <= target`` for a falling price: a bracketed secant in logarithms.

    Where the price jumps, or is flat to rounding, x is the end of the bracket at which the target is met.
    """
    least, most = _NOISE_RANGE
    low, high = least, math.inf  # price(low) is above the target (assumed at the start), price(high) is not
    x, last, slope = start, (math.nan, math.nan), -1.0
    for _ in range(_MOST_PRICES):
        if low >= most or high <= 1.01 * least:
            break
        epsilon = price(x)
        if target / (1 + _TOLERANCE) <= epsilon <= target:
            return x
        low, high = (low, x) if epsilon <= target else (x, high)
        if high / low < 1 + 1e-9:
            return high
        if not 0 < epsilon < math.inf:
            x = math.sqrt(x * low) if epsilon == 0 else min(2 * x, math.sqrt(x * high))
            continue
        here = (math.log(x), math.log(epsilon))
        if here[0] != last[0] and not math.isnan(last[0]):
            slope = min(-0.05, (here[1] - last[1]) / (here[0] - last[0]))
        last = here
        step = (math.log(target) - _TOLERANCE / 2 - here[1]) / slope
        x = math.exp(here[0] + max(-3.0, min(3.0, step)))
        if not low < x < high:
            x = math.sqrt(low * high) if high < math.inf else 2 * low
    else:
        if high < math.inf:
            return high
    raise ConfigError(f"target_epsilon={target} is met by no noise_multiplier from {least:g} to {most:g}; change it")
