"""Which run directories there are, and which belong together.

Here: search, follow parents, group by finetune run. Elsewhere: what is in a directory (reading.py). A parent is looked
for by its run_id among the directories given (a moved folder keeps its id), then at the path its child wrote down.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from safesynthdp.errors import UserError
from safesynthdp.reporting.facts import Group, Stage
from safesynthdp.reporting.lengths import RecordLengths
from safesynthdp.reporting.pools import POOL, read_pool, with_owner
from safesynthdp.reporting.reading import read_attack, read_evaluation, read_finetune, read_sample, read_stage
from safesynthdp.runs import MANIFEST, RunDirectory

KINDS = ("finetune", "sample", "evaluate", "attack", POOL)
SEARCH_DEPTH = 2
MAX_CHARACTERS = 900


def collect(
    runs: Sequence[str], *, texts_per_label: int, with_lengths: bool = True, with_copied: bool = False
) -> tuple[Group, ...]:
    """Return one group a finetune run or private prediction, in the order given, then the stages that belong to none.

    Args:
        runs: Run directories, or folders that hold some (searched two levels deep).
        texts_per_label: How many synthetic texts of each label are kept for the page.
        with_lengths: Read the training records again, where they still lie, for their lengths: private.
        with_copied: Read the training records that synthetic texts share most with: private text.

    Raises:
        UserError: If a path holds no run directory, a run is given twice, or an evaluation reads two finetune runs.
    """
    given = [with_owner(read_stage(RunDirectory.open(path))) for run in runs for path in find(Path(run))]
    stages = _with_ancestors(_by_id(stage for stage in given if stage.kind in KINDS))
    if not stages:
        raise UserError(
            f"{', '.join(runs)}: nothing to report on is there; give the output_dir of a finetune or later stage"
        )
    owners = {run_id: _owner(stage, stages) for run_id, stage in stages.items()}
    found = dict.fromkeys(owner for owner in owners.values() if owner is not None)
    order: list[str | None] = [*found, *([None] if None in owners.values() else [])]
    lengths = RecordLengths(is_wanted=with_lengths)
    return tuple(
        _group(
            [stage for run_id, stage in stages.items() if owners[run_id] == owner],
            texts_per_label=texts_per_label,
            lengths=lengths,
            with_copied=with_copied,
        )
        for owner in order
    )


def find(path: Path) -> list[Path]:
    """Return ``path`` if it is a run directory, else those up to two levels below it, by name.

    Raises:
        UserError: If there is none.
    """
    if (path / MANIFEST).is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} is not a directory; give a run directory or a folder of run directories")
    below = [found.parent for depth in range(1, SEARCH_DEPTH + 1) for found in path.glob("*/" * depth + MANIFEST)]
    if not below:
        raise UserError(f"{path} holds no run directory (no {MANIFEST}, {SEARCH_DEPTH} levels deep); check the path")
    return sorted(below)


def _by_id(stages: Iterable[Stage]) -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    for stage in stages:
        earlier = found.setdefault(stage.run_id, stage)
        if earlier.path != stage.path:
            raise UserError(f"{earlier.path} and {stage.path} are the same run (equal run_id); give one of them")
    return found


def _with_ancestors(given: Mapping[str, Stage]) -> dict[str, Stage]:
    """Add every ancestor that is still on disk, so that a lone evaluation finds its ledger."""
    found, waiting = dict(given), list(given.values())
    while waiting:
        child = waiting.pop(0)
        for parent in child.parents:
            stage = _at_its_path(child, parent)
            if str(parent.get("run_id")) not in found and stage is not None:
                found[stage.run_id] = stage
                waiting.append(stage)
    return found


def _at_its_path(child: Stage, parent: Mapping[str, object]) -> Stage | None:
    folder = child.path / str(parent.get("path"))  # an absolute path replaces the child's
    if not (folder / MANIFEST).is_file():
        return None
    stage = read_stage(RunDirectory.open(folder))
    return stage if stage.run_id == parent.get("run_id") and stage.kind in KINDS else None


def _owner(stage: Stage, stages: Mapping[str, Stage]) -> str | None:
    """Return the run_id of the finetune run, or of the private prediction, that a stage was made from.

    Text of the untuned model decides nothing.
    """
    tuned = _ancestors(stage, stages, leave_out_untuned=True)
    owners = tuned or _ancestors(stage, stages, leave_out_untuned=False)
    if len(owners) > 1:
        paths = " and ".join(str(stages[run_id].path) for run_id in owners)
        raise UserError(f"{stage.path} reads two runs, {paths}; evaluate and attack one run at a time")
    return owners[0] if owners else None


def _ancestors(stage: Stage, stages: Mapping[str, Stage], *, leave_out_untuned: bool) -> list[str]:
    seen, waiting, owners = set[str](), [stage], list[str]()
    while waiting:
        here = waiting.pop()
        if here.run_id in seen or (leave_out_untuned and here.manifest.get("untuned") is True):
            continue
        seen.add(here.run_id)
        if here.kind == "finetune" or (here.kind == "sample" and not here.parents):
            owners.append(here.run_id)
            continue  # a run trained from another run, and private prediction, state their own ledger
        waiting += [stages[str(p.get("run_id"))] for p in here.parents if str(p.get("run_id")) in stages]
    return owners


def _group(stages: Sequence[Stage], *, texts_per_label: int, lengths: RecordLengths, with_copied: bool) -> Group:
    of_kind = {kind: [s for s in stages if s.kind == kind] for kind in KINDS}
    samples = [read_sample(s, per_label=texts_per_label, max_characters=MAX_CHARACTERS) for s in of_kind["sample"]]
    return Group(
        finetune=next((read_finetune(s, lengths=lengths.of(s)) for s in of_kind["finetune"]), None),
        samples=tuple(sorted(samples, key=lambda sample: sample.is_untuned)),
        evaluations=tuple(read_evaluation(s, with_copied=with_copied) for s in of_kind["evaluate"]),
        attacks=(*map(read_attack, of_kind["attack"]), *map(read_pool, of_kind[POOL])),
    )
