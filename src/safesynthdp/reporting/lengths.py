"""How long the private records are, for the internal page alone.

Here: reading them again, once for each data set. Elsewhere: the split (records.py), the figure (utility_figures.py). A
report never fetches anything: records from a hub, and builtin ones that are not on this machine, are left alone.
"""

from safesynthdp.errors import SafeSynthError
from safesynthdp.reporting.facts import Stage
from safesynthdp.runs import RunDirectory


class RecordLengths:
    """Words of every training record of a run; nothing where the records are gone, changed or elsewhere."""

    def __init__(self, *, is_wanted: bool) -> None:
        self._is_wanted = is_wanted
        self._known: dict[str, tuple[int, ...]] = {}

    def of(self, stage: Stage) -> tuple[int, ...]:
        """Return the lengths of a finetune run's training records."""
        data = stage.manifest.get("data") or {}
        fingerprint = str(data.get("fingerprint") or stage.run_id)
        if not self._is_wanted or not _is_here(stage):
            return ()
        if fingerprint not in self._known:
            self._known[fingerprint] = _read(stage)
        return self._known[fingerprint]


def _is_here(stage: Stage) -> bool:
    from safesynthdp.fetching import is_fetched

    data = stage.config.get("data") or {}
    builtin = data.get("builtin")
    return bool(data.get("train_file")) or (builtin is not None and is_fetched(str(builtin)))


def _read(stage: Stage) -> tuple[int, ...]:
    from safesynthdp.records import split_of_run

    try:
        records = split_of_run(RunDirectory.open(stage.path)).train
    except SafeSynthError:
        return ()  # the figure says that they are missing
    return tuple(len(text.split()) for text in records.texts)
