"""What the ledgers of a group promise, and whether the promise holds when it is computed again.

Here: releases and entries as they are printed, and the problems that make a report fail. Elsewhere: the ledger itself
and its prices (privacy/ledger.py). Epsilon is read from ledger.json and nowhere else.

Guarantee:
    Every release of every ledger is recomputed from its entries. A stored epsilon below the recomputed one, one that
    cannot be recomputed, and a sample whose ledger leaves out what its run spent are problems: printed in red, and the
    command ends with exit code 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safesynthdp.errors import SafeSynthError
from safesynthdp.reporting.facts import Group, Stage
from safesynthdp.reporting.wording import NO_GUARANTEE

if TYPE_CHECKING:
    from safesynthdp.privacy.ledger import Entry, Ledger, Release

SEEDED = "seeded: no guarantee against whoever knows the seed"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One release: what one artifact costs whoever sees it."""

    run_id: str
    kind: str
    is_untuned: bool
    artifact: str
    epsilon: float | None
    recomputed: float | None
    delta: float | None
    rule: str
    entries: tuple[str, ...]
    accountant: str
    not_covered: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True, kw_only=True)
class Access:
    """One entry: one access to private data, with every number its formula needs."""

    identity: str
    kind: str
    mechanism: Mapping[str, Any]
    data: Mapping[str, Any]
    randomness: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """Everything the ledgers of one group say; with problems, nothing they say counts."""

    unit: str | None
    adjacency: str | None
    accesses: tuple[Access, ...]
    claims: tuple[Claim, ...]
    epsilon: float | None
    """Of all tuned releases together; None is no guarantee."""
    delta: float | None
    problems: tuple[str, ...]

    @property
    def is_seeded(self) -> bool:
        """Whether someone may know the randomness; an access that does not say so counts as seeded."""
        return any(access.randomness.get("seeded") is not False for access in self.accesses if access.kind != "none")

    @property
    def tuned(self) -> tuple[Claim, ...]:
        """The releases that private data went into."""
        return tuple(claim for claim in self.claims if not claim.is_untuned)

    def covers(self, run_id: str) -> bool:
        """Whether every release of a run has a finite epsilon, and no ledger of the group has a problem."""
        claims = [claim for claim in self.claims if claim.run_id == run_id]
        return bool(claims) and all(claim.epsilon is not None for claim in claims) and not self.problems


def read_guarantee(group: Group) -> Guarantee:
    """Read and recompute every ledger of a group."""
    from safesynthdp.privacy.ledger import Ledger

    stages = [stage for stage in group.stages if stage.kind in ("finetune", "sample")]
    problems = [f"{_name(stage)} has no ledger.json" for stage in stages if stage.ledger_path is None]
    found = list[tuple[Stage, Ledger]]()
    for stage in stages:
        if stage.ledger_path is None:
            continue
        try:
            found.append((stage, Ledger.read(stage.ledger_path)))
        except SafeSynthError as error:
            problems.append(f"{_name(stage)}: the ledger cannot be read ({error})")
    claims = tuple(claim for stage, ledger in found for claim in _claims(stage, ledger))
    problems += [*_disagreements(found), *(claim.problem for claim in claims if claim.problem is not None)]
    epsilon, delta = _together(found, claims, problems)
    if problems:  # a ledger that contradicts itself proves nothing
        epsilon = delta = None
    entries = {entry.id: entry for _, ledger in found for entry in ledger.entries}
    return Guarantee(
        unit=next((ledger.unit for _, ledger in found), None),
        adjacency=next((str(ledger.adjacency) for _, ledger in found), None),
        accesses=tuple(_access(entry) for entry in entries.values()),
        claims=claims,
        epsilon=epsilon,
        delta=delta,
        problems=tuple(problems),
    )


def _claims(stage: Stage, ledger: "Ledger") -> list[Claim]:
    return [_claim(stage, ledger, release) for release in ledger.releases]


def _claim(stage: Stage, ledger: "Ledger", release: "Release") -> Claim:
    again, problem = _recomputed(stage, ledger, release)
    accountant = (str(release.accountant[key]) for key in ("name", "version") if release.accountant.get(key))
    return Claim(
        run_id=stage.run_id,
        kind=stage.kind,
        is_untuned=_is_untuned(stage),
        artifact=release.artifact,
        epsilon=release.epsilon,
        recomputed=again,
        delta=release.delta,
        rule=release.rule,
        entries=release.entries,
        accountant=" ".join(accountant),
        not_covered=release.not_covered,
        problem=problem,
    )


def _recomputed(stage: Stage, ledger: "Ledger", release: "Release") -> tuple[float | None, str | None]:
    """Return what a release costs by its entries, and what is wrong with what it says."""
    from safesynthdp.privacy.ledger import is_understated, recompute

    what = f"{_name(stage)}, {release.artifact}"
    try:
        again = recompute(ledger, release)
    except SafeSynthError as error:
        return None, f"{what}: the epsilon cannot be recomputed ({error})"
    if not is_understated(release.epsilon, again):
        return again, None
    cost = f"give {NO_GUARANTEE}" if again is None else f"cost {again}"
    return again, f"{what}: the ledger says epsilon {release.epsilon}, but its entries {cost}"


def _disagreements(found: Sequence[tuple[Stage, "Ledger"]]) -> list[str]:
    """Return where a ledger says another thing than that of the run it was made from."""
    if not found or found[0][0].kind != "finetune":
        return []
    origin, first = found[0]
    lines = list[str]()
    for stage, ledger in found[1:]:
        if (ledger.unit, ledger.adjacency) != (first.unit, first.adjacency):
            lines.append(f"{_name(stage)}: its ledger has another unit or adjacency than that of {_name(origin)}")
        elif not _is_untuned(stage) and (left_out := _left_out(first, ledger)):
            lines.append(f"{_name(stage)}: its ledger does not carry what {_name(origin)} spent: {', '.join(left_out)}")
    return lines


def _left_out(run: "Ledger", sample: "Ledger") -> list[str]:
    """Return the accesses behind the weights that text sampled from them does not pay for in full."""
    behind = {identity for release in run.releases if release.artifact == "weights" for identity in release.entries}
    paid = [set(release.entries) for release in sample.releases if release.artifact == "synthetic_text"]
    same = {entry.id: (entry.kind, dict(entry.mechanism)) for entry in sample.entries}
    return [
        entry.id
        for entry in run.entries
        if entry.id in behind
        and (same.get(entry.id) != (entry.kind, dict(entry.mechanism)) or not all(entry.id in ids for ids in paid))
    ]


def _together(
    found: Sequence[tuple[Stage, "Ledger"]], claims: Sequence[Claim], problems: list[str]
) -> tuple[float | None, float | None]:
    """Return epsilon and delta of all tuned releases at once: never less than that of one of them."""
    tuned = [claim for claim in claims if not claim.is_untuned]
    weakest = max(tuned, key=lambda claim: (claim.epsilon is None, claim.epsilon or 0.0), default=None)
    if weakest is None or weakest.epsilon is None or weakest.delta is None:
        return None, None
    everything = {identity for claim in tuned for identity in claim.entries}
    if any(claim.artifact == "weights" for claim in tuned):  # whoever has them learns nothing more from text noise
        everything -= {e.id for _, ledger in found for e in ledger.entries if e.kind == "output_mechanism"}
    delta = max(claim.delta or 0.0 for claim in tuned)
    if everything <= set(weakest.entries) and delta == weakest.delta:
        return weakest.epsilon, delta
    return _compose(found, everything, weakest, delta, problems)


def _compose(
    found: Sequence[tuple[Stage, "Ledger"]], everything: set[str], weakest: Claim, delta: float, problems: list[str]
) -> tuple[float | None, float | None]:
    from safesynthdp.privacy.ledger import Ledger, release_epsilon

    entries = {entry.id: entry for stage, ledger in found if not _is_untuned(stage) for entry in ledger.entries}
    first = found[0][1]
    try:
        merged = Ledger(unit=first.unit, adjacency=first.adjacency, entries=tuple(entries.values()))
        joint, _ = release_epsilon(merged, sorted(everything), delta=delta)
    except SafeSynthError as error:
        problems.append(f"the releases cannot be composed ({error})")
        return None, None
    if joint is None or weakest.epsilon is None:
        return None, None
    return max(joint, weakest.epsilon), delta


def _access(entry: "Entry") -> Access:
    return Access(
        identity=entry.id,
        kind=entry.kind,
        mechanism=entry.mechanism,
        data=entry.data,
        randomness=entry.randomness,
    )


def _is_untuned(stage: Stage) -> bool:
    return stage.manifest.get("untuned") is True


def _name(stage: Stage) -> str:
    return f"{stage.kind} {stage.path.name}"
