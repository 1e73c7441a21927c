"""What a target epsilon affords.

Here: steps that fit, noise that fits, and what has been spent, always over all accesses together. Elsewhere: the prices
(accounting.py), what was spent on disk (ledger.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from safesynthdp.errors import BudgetExhausted, ConfigError
from safesynthdp.privacy import checks
from safesynthdp.privacy.accounting import Priced, find_noise_multiplier, joint_epsilon
from safesynthdp.privacy.losses import Adjacency
from safesynthdp.privacy.mechanisms import DPSGDMechanism


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One promise over every access to the data."""

    target_epsilon: float | None
    """The most that may be spent, at ``delta``; None: the noise is given and the price is what it is."""
    delta: float
    """The promise holds but for this probability; it must lie well below 1 / num_records."""

    def __post_init__(self) -> None:
        if self.target_epsilon is not None:
            checks.positive("privacy.target_epsilon", self.target_epsilon)
        checks.probability("privacy.target_delta", self.delta)

    def spent(self, mechanisms: Sequence[Priced]) -> float:
        """Return the epsilon of all mechanisms together; 0 for none."""
        if not mechanisms:
            return 0.0
        return joint_epsilon(mechanisms, delta=self.delta, adjacency=mechanisms[0].adjacency)

    def affordable_steps(self, mechanism: DPSGDMechanism, others: Sequence[Priced] = ()) -> int:
        """Return the largest number of steps, up to ``mechanism.steps``, whose joint epsilon is within the target.

        Raises:
            BudgetExhausted: If not even one step fits.
        """
        if self.target_epsilon is None:
            return mechanism.steps
        target = self.target_epsilon

        def fits(steps: int) -> bool:
            return self.spent([mechanism.with_steps(steps), *others]) <= target

        if fits(mechanism.steps):
            return mechanism.steps
        if not fits(1):
            cost = self.spent([mechanism.with_steps(1), *others])
            raise BudgetExhausted(
                f"privacy.target_epsilon={target} affords no step: one costs epsilon={cost:.4g} with everything else; "
                "raise it, or raise privacy.noise_multiplier"
            )
        return _last_true(fits, 1, mechanism.steps)

    def find_noise_multiplier(
        self,
        *,
        num_records: int,
        expected_batch_size: int | float,
        steps: int,
        per_sample_max_grad_norm: float,
        accountant: str = checks.AUTO,
        adjacency: Adjacency = "add_remove",
        others: Sequence[Priced] = (),
    ) -> float:
        """Return the least noise, to 0.1 %, with which all steps and the others stay within the target.

        Raises:
            ConfigError: If there is no target, or no noise reaches it.
        """
        if self.target_epsilon is None:
            raise ConfigError("privacy.target_epsilon is not set; give it, or privacy.noise_multiplier")
        mechanism = DPSGDMechanism(
            num_records=num_records,
            expected_batch_size=expected_batch_size,
            noise_multiplier=1.0,
            steps=steps,
            per_sample_max_grad_norm=per_sample_max_grad_norm,
            accountant=accountant,
            adjacency=adjacency,
        )
        return find_noise_multiplier(
            target_epsilon=self.target_epsilon,
            delta=self.delta,
            sample_rate=mechanism.sample_rate,
            steps=steps,
            accountant=accountant,
            adjacency=adjacency,
            others=tuple(access for other in others for access in other.accesses()),
        )


def _last_true(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the largest n in [low, high) with ``holds(n)``; it holds at low and not at high."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
