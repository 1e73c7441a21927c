"""How many texts can so many records give at so much epsilon? Numbers in, numbers out.

Here: shards, batches, clip and temperature for private prediction, or why it cannot be done. Elsewhere: the prices
(output_pricing.py). Symbols: S shards of a batch, k texts of a batch, B batches; a record pays for its own batch only.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from safesynthdp.errors import BudgetExhausted, ConfigError
from safesynthdp.privacy import checks
from safesynthdp.privacy.output_pricing import OutputMechanism
from safesynthdp.privacy.output_registry import output_mechanism

LEAST_CLIP = 0.05
"""Of the temperature. Below it no record moves a token's log-probability by more: nothing is learnt from them."""
_MOST_CLIP = 50.0
_MOST_SHARDS = 10_000_000
_MOST_SCALE = 1e9


@dataclass(frozen=True, kw_only=True)
class OutputPlan:
    """A way to spend a budget on private prediction."""

    mechanism: OutputMechanism
    num_batches: int
    epsilon: float
    num_texts: int
    """At least as many as were asked for."""

    @property
    def forward_tokens(self) -> int:
        """Tokens read by a model for one token a step: S + 1 for each drawn one."""
        return self.num_texts * self.mechanism.tokens * (self.mechanism.shards + 1)


def shards_needed(make: Callable[[int], OutputMechanism], *, target_epsilon: float, delta: float) -> int:
    """Return the least S >= 2 with epsilon at most the target; ``make`` gives the mechanism of S shards.

    Raises:
        BudgetExhausted: If ten million do not do.
    """

    def fits(shards: int) -> bool:
        return _fits(make(shards), target_epsilon=target_epsilon, delta=delta)

    low, high = 1, 2
    while not fits(high):
        low, high = high, 2 * high
        if high > _MOST_SHARDS:
            raise BudgetExhausted(f"target_epsilon={target_epsilon} needs more than {_MOST_SHARDS} shards; raise it")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def plan_output(
    *,
    target_epsilon: float,
    delta: float,
    num_records: int,
    tokens: int,
    num_texts: int,
    adjacency: str = "null",
    mechanism: str = "softmax",
    clip: float | None = None,
    **numbers: Any,
) -> OutputPlan:
    """Return the plan with the least computing: as many batches, hence as few shards each, as the budget allows.

    Texts of one batch share its price, and S grows faster with k than the price does, so fewer batches are cheaper in
    epsilon and dearer in time. With ``clip`` None it is 1 at least where the records suffice, then as large as the
    budget allows, since a larger clip lets records say more.

    Raises:
        BudgetExhausted: If it cannot be done; the message says what can.
        ConfigError: If a number is out of range.
    """
    checks.positive("target_epsilon", target_epsilon)
    checks.probability("delta", delta)
    checks.whole("num_records", num_records, at_least=2)
    checks.whole("num_texts", num_texts)
    is_clipped = mechanism in ("softmax", "laplace", "gaussian_l2")
    if clip is not None:
        checks.positive("clip", clip)
        if not is_clipped:
            raise ConfigError(f"clip={clip}: mechanism={mechanism} has no such number; leave it out")
    if adjacency == "replace" and mechanism.endswith("_probs"):
        raise ConfigError(
            f"adjacency=replace: an exchanged record leaves one batch and enters another, and the price of "
            f"mechanism={mechanism} covers one of them; plan with null, or with softmax"
        )
    wanted = (clip or 1.0) if is_clipped else None

    def make(batches: int, bound: float | None) -> OutputMechanism:
        return output_mechanism(
            mechanism,
            shards=max(num_records // batches, 2),
            tokens=tokens,
            texts_per_batch=-(-num_texts // batches),
            adjacency=adjacency,
            clip=bound,
            **numbers,
        )

    def fits(batches: int, bound: float | None) -> bool:
        return _fits(make(batches, bound), target_epsilon=target_epsilon, delta=delta)

    most = min(num_texts, num_records // 2)
    least = min(-(-num_texts * checks.whole("tokens", tokens) // checks.MAX_STEPS), most)  # more steps have no price
    batches = _largest(lambda b: fits(b, wanted), most, least=least)
    if batches == 0:
        if not is_clipped or clip is not None:
            raise _impossible(make(least, wanted), target_epsilon, delta, batches=least)
        batches, wanted = least, _largest_clip(lambda c: fits(least, c), 1.0)
        if wanted is None:
            raise _impossible(make(least, LEAST_CLIP), target_epsilon, delta, batches=least)
    elif is_clipped and clip is None:
        wanted = _largest_clip(lambda c: fits(batches, c), _MOST_CLIP)
    found = make(batches, wanted)
    return OutputPlan(
        mechanism=found,
        num_batches=batches,
        epsilon=found.epsilon(delta=delta),
        num_texts=batches * found.texts_per_batch,
    )


def largest_clip(
    make: Callable[[float], OutputMechanism], *, temperature: float, target_epsilon: float, delta: float
) -> OutputMechanism:
    """Return the mechanism of the largest clip whose price is at most the target; ``make`` gives that of a clip.

    Raises:
        BudgetExhausted: If even a clip of ``LEAST_CLIP`` times the temperature costs more.
    """

    def fits(clip: float) -> bool:
        return _fits(make(clip * temperature), target_epsilon=target_epsilon, delta=delta)

    found = _largest_clip(fits, _MOST_CLIP * (1 - 1e-9))
    if found is None:
        cost = make(LEAST_CLIP * temperature).epsilon(delta=delta)
        raise BudgetExhausted(
            f"target_epsilon={target_epsilon:g}: even clip={LEAST_CLIP * temperature:g} costs epsilon={cost:.4g}; use "
            "more shards, fewer tokens or fewer texts a batch"
        )
    return make(found * temperature)


def least_scale(make: Callable[[float], OutputMechanism], *, target_epsilon: float, delta: float) -> OutputMechanism:
    """Return the mechanism of the least noise whose price is at most the target; ``make`` gives that of a scale.

    Raises:
        BudgetExhausted: If no scale below ``_MOST_SCALE`` does.
    """

    def fits(scale: float) -> bool:
        return _fits(make(scale), target_epsilon=target_epsilon, delta=delta)

    high = 1.0
    while not fits(high):
        high *= 4
        if high > _MOST_SCALE:
            raise BudgetExhausted(f"target_epsilon={target_epsilon:g}: no scale below {_MOST_SCALE:g} does; raise it")
    low = high
    while fits(low) and low > 1 / _MOST_SCALE:
        low /= 4
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if fits(middle) else (middle, high)
    return make(high)


def _fits(mechanism: OutputMechanism, *, target_epsilon: float, delta: float) -> bool:
    """The quick bound first: it never lies below the price."""
    return mechanism.rough_epsilon(delta) <= target_epsilon or mechanism.epsilon(delta=delta) <= target_epsilon


def _largest(holds: Callable[[int], bool], most: int, *, least: int = 1) -> int:
    """Return the largest n in [least, most] found by bisection with ``holds(n)``; 0 when not even the least does."""
    if not holds(least):
        return 0
    low, high = least, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _largest_clip(holds: Callable[[float], bool], most: float) -> float | None:
    """Return the largest clip, to three digits, from ``LEAST_CLIP`` to ``most``; None when not even that holds."""
    if not holds(LEAST_CLIP):
        return None
    low, high = LEAST_CLIP, most
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return float(f"{low:.6g}") if holds(float(f"{low:.6g}")) else low


def _impossible(batch: OutputMechanism, target: float, delta: float, *, batches: int) -> BudgetExhausted:
    """Say why the fewest batches do not do, and what would."""

    def fits(texts: int) -> bool:
        return dataclasses.replace(batch, texts_per_batch=texts).rough_epsilon(delta) <= target

    cost = batch.epsilon(delta=delta)
    fewer = batches * _largest(fits, batch.texts_per_batch)
    way_out = f"ask for at most {fewer} texts" if fewer else "not even one text fits: use more records or DP-SGD"
    bound = getattr(batch, "clip", None)
    clip = "" if bound is None else f" and clip={bound}"
    fewest = "one batch" if batches == 1 else f"{batches} batches, the fewest that can be priced,"
    return BudgetExhausted(
        f"num_texts={batches * batch.texts_per_batch} from {batches * batch.shards} records cost epsilon={cost:.4g} "
        f"even in {fewest} with every record a shard{clip}, target_epsilon is {target:g}; {way_out}"
    )
