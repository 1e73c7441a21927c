"""What noise at sampling time costs: the part of the price that all output mechanisms share.

Here: shards, steps, adjacency, conversions, groups. Elsewhere: the mechanisms (output_mechanisms.py), formulas
(output_conversions.py), several accesses together (joint.py).

Symbols: S ``shards`` whose contributions are averaged, C ``clip``, n = ``tokens * texts_per_batch`` steps, R the range
of the score differences of two neighbours (``score_range``), D an L2 sensitivity.

Guarantee:
    The price holds for text drawn from one set of shards when each shard holds its own records, no record is in two,
    the divisor is S whatever is present, and at most n tokens are drawn. It is known before the first token. Removing,
    adding (``null``) or exchanging (``replace``) one record that is a shard of its own; anything that happens to one
    shard of several records or to a model trained on it (``many``); one model that saw everything (``single``).
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from safesynthdp.errors import ConfigError
from safesynthdp.privacy import checks
from safesynthdp.privacy.conversions import cks, kov, pure_rho
from safesynthdp.privacy.losses import Access, Adjacency, Direction, LossGrid, TwoPoint
from safesynthdp.privacy.output_conversions import bounded_range, group_delta_for
from safesynthdp.privacy.output_draws import Floats, Tokens, TokenStep, public_support

OutputAdjacency = Literal["null", "replace", "many"]
ADJACENCIES: tuple[str, ...] = get_args(OutputAdjacency)
_LEAST, _MOST = 1e-15, 1e15  # squares of ratios stay within float64
RELATIONS: dict[Adjacency, tuple[str, ...]] = {"add_remove": ("null", "many"), "replace": ("replace", "many")}
"""Which adjacencies of an output mechanism speak about the neighbours of a ledger."""


@dataclass(frozen=True, kw_only=True)
class BoundedRange:
    """``count`` steps of bounded range: they compose as Renyi curves, never as privacy losses."""

    eta: float
    pure: float
    count: int

    def renyi(self, order: float) -> float:
        """Return the Renyi divergence of one step, at most."""
        return min(bounded_range(self.eta, order), order * pure_rho(self.pure), self.pure)

    def span(self, direction: Direction, tail: float) -> float:
        """Refuse, as ``grid`` does."""
        del direction, tail
        raise ConfigError("mechanism: steps of bounded range have no dominating pair and no grid of privacy losses")

    def grid(self, direction: Direction, interval: float, tail: float) -> LossGrid:
        """Refuse: adaptive steps of bounded range have no dominating pair."""
        del interval
        self.span(direction, tail)
        raise AssertionError


@dataclass(frozen=True, kw_only=True)
class OutputMechanism(ABC):
    """What every mechanism at sampling time has in common."""

    shards: int
    """S, the public divisor: disjoint groups of private records, or the expected number of records in a batch."""
    tokens: int
    """Tokens of a text, end included; all are charged, however early it ends."""
    texts_per_batch: int = 1
    """All texts ever drawn from one set of shards."""
    adjacency: OutputAdjacency
    """null, replace or many."""
    single: bool = False
    """One model that saw every record; then ``shards`` is 1."""

    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        checks.whole("shards", self.shards, at_most=checks.MAX_STEPS)
        checks.whole("tokens", self.tokens)
        checks.whole("texts_per_batch", self.texts_per_batch)
        if self.steps > checks.MAX_STEPS:
            raise ConfigError(
                f"texts_per_batch={self.texts_per_batch} times tokens={self.tokens} is above {checks.MAX_STEPS} steps, "
                "where the accountants stop being exact; use fewer"
            )
        if self.adjacency not in ADJACENCIES:
            raise ConfigError(f"adjacency={self.adjacency} is not one of {', '.join(ADJACENCIES)}")
        if not isinstance(self.single, bool):
            raise ConfigError(f"single={self.single} is not true or false")
        if self.single != (self.shards == 1):
            way_out = "add --single, or average over more shards" if self.shards == 1 else "drop --single or set 1"
            raise ConfigError(f"shards={self.shards} {'with' if self.single else 'without'} single: {way_out}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("clip", "scale") or (field.name == "temperature" and value is not None):
                checks.positive(field.name, value)
                if not _LEAST <= value <= _MOST:
                    raise ConfigError(
                        f"{field.name}={value} is outside [{_LEAST:g}, {_MOST:g}], where no price is exact"
                    )

    @property
    def steps(self) -> int:
        """n: tokens charged to one record."""
        return self.tokens * self.texts_per_batch

    @property
    def width(self) -> int:
        """How many C/S the range of two neighbours' scores holds: 2 where a record can only vanish, else 4."""
        return 2 if self.adjacency == "null" and not self.single else 4

    @property
    @abstractmethod
    def score_range(self) -> float | None:
        """R, or the L1 sensitivity of probability vectors; None where the price rests on an L2 sensitivity."""

    @property
    def l2_sensitivity(self) -> float | None:
        """D; None where the price rests on a range."""
        return None

    @property
    @abstractmethod
    def pure_step(self) -> float | None:
        """Epsilon of one token at delta 0; None where there is none."""

    @property
    @abstractmethod
    def simple_rho_step(self) -> float:
        """Zero-concentrated DP of one token by the textbook constant."""

    @property
    @abstractmethod
    def rho_step(self) -> float:
        """Zero-concentrated DP of one token, exact."""

    @property
    def pure_epsilon(self) -> float | None:
        """Epsilon of all steps at delta 0."""
        return None if self.pure_step is None else self.steps * self.pure_step

    @property
    def rho(self) -> float:
        """Zero-concentrated DP of all steps."""
        return self.steps * self.rho_step

    def conversions(self, delta: float) -> dict[str, float]:
        """Return epsilon at ``delta`` by every bound that holds, by name."""
        checks.probability("delta", delta)
        found = {"cks": cks(self.steps * self.simple_rho_step, delta)}
        if self.pure_step is not None and self.pure_epsilon is not None:
            head = {"pure": self.pure_epsilon, "kov": min(kov(self.pure_step, self.steps, delta), self.pure_epsilon)}
            found = head | found | {"cks_tight": cks(self.rho, delta)}
        return found

    def rough_epsilon(self, delta: float) -> float:
        """Return a bound that takes no time however many the steps: at least ``epsilon``, and close to it."""
        by_rho = cks(self.rho, delta)
        return by_rho if self.pure_epsilon is None else min(by_rho, self.pure_epsilon)

    def epsilon(self, *, delta: float) -> float:
        """Return the smallest of the conversions."""
        return min(self.conversions(delta).values())

    def group_conversions(self, delta: float, *, size: int) -> dict[str, float]:
        """Return epsilon at ``delta`` for ``size`` records at once, by every bound that holds.

        ``group_pure``: size times pure. ``group_rho``: size squared times rho. ``group_approximate``: (x, d) becomes
        ``(size x, d (exp(size x) - 1) / (exp(x) - 1))``.
        """
        checks.whole("group_size", size, at_most=checks.MAX_STEPS)
        checks.probability("delta", delta)
        found = {"group_rho": cks(size**2 * self.rho, delta)}
        if self.pure_epsilon is not None:
            found["group_pure"] = size * self.pure_epsilon
        found["group_approximate"] = group_delta_for(lambda d: self.epsilon(delta=d), size=size, delta=delta)
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def accesses(self, relation: Adjacency) -> tuple[Access, ...]:
        """Return what a joint price is computed from, in a ledger of this neighbour relation."""
        del relation
        if self.pure_step is None:
            raise ConfigError(f"mechanism={self.name} has no pure steps to compose; this is a defect")
        return (TwoPoint(epsilon=self.pure_step, count=self.steps),)

    def support(self, public_V: Floats, *, end: int, top_k: int | None) -> Tokens:
        """Return the candidates of a step: the k likeliest for the public model, those within 2C/S of them, the end.

        Guarantee:
            A function of public logits and public settings alone; private logits never reach it.
        """
        slack = 2 * getattr(self, "clip", 0.0) / self.shards
        temperature = getattr(self, "temperature", None) or 1.0
        return public_support(public_V, end=end, top_k=top_k, slack=slack, temperature=temperature)

    def refuse_draws(self) -> None:
        """Say before the first draw what can be priced but not drawn; nothing here.

        Raises:
            ConfigError: If floating point cannot hold the distribution.
        """
        return

    @abstractmethod
    def draw(self, step: TokenStep) -> int:
        """Return the position of the next token among the candidates."""

    def to_entry(self) -> dict[str, Any]:
        """Return every number of its formula, under the flag names of ``account output``."""
        values = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        return {"mechanism": self.name, **values}


@dataclass(frozen=True, kw_only=True)
class PricedOutput:
    """An output mechanism in a ledger: its price under the ledger's neighbour relation."""

    mechanism: OutputMechanism
    adjacency: Adjacency
    """Of the ledger."""

    def __post_init__(self) -> None:
        known = RELATIONS[checks.adjacency("adjacency", self.adjacency)]
        if self.mechanism.adjacency not in known:
            way_out = f"use one of {', '.join(known)}" if self.adjacency == "add_remove" else "use replace"
            raise ConfigError(
                f"adjacency={self.mechanism.adjacency} of mechanism={self.mechanism.name} says nothing about "
                f"neighbours by {self.adjacency}; {way_out}"
            )

    @property
    def accountant(self) -> str:
        """Its own conversions; alone it asks nobody else."""
        return "conversions"

    def accesses(self) -> tuple[Access, ...]:
        """Return what a joint price is computed from."""
        return self.mechanism.accesses(self.adjacency)

    def epsilon(self, *, delta: float) -> float:
        """Return its price alone."""
        return self.mechanism.epsilon(delta=delta)
