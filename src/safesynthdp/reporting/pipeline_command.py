"""``safesynthdp pipeline``: a grid of epsilons and seeds, from records to one report, resumable at any point.

Here: the order of the command, what is skipped, what the exit code says. Elsewhere: the keys (pipeline_config.py), the
jobs (pipeline_jobs.py), who runs them (pipeline_engine.py). Every job is one call of the console script, so whatever a
pipeline does can be done, looked at and repeated by hand; ``pipeline.json`` says which.

Exit code: that of the first failed job (2 = the request must change), 1 if an audit or a ledger contradicts a claim, 75
if it was told to end. The report is drawn before in every case where a run exists.
"""

import fcntl
import hashlib
import json
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safesynthdp.config import parse, to_mapping
from safesynthdp.errors import Preempted, SafeSynthError, UserError
from safesynthdp.privacy.storage import disk_error, write_json
from safesynthdp.progress import duration
from safesynthdp.reporting.pipeline_calls import Job
from safesynthdp.reporting.pipeline_check import check_jobs, of_each_kind
from safesynthdp.reporting.pipeline_config import PipelineConfig
from safesynthdp.reporting.pipeline_engine import Engine, LocalEngine, Outcome
from safesynthdp.reporting.pipeline_jobs import report_job, stage_jobs
from safesynthdp.reporting.pipeline_slurm import SlurmEngine
from safesynthdp.runs import MANIFEST

RECORD = "pipeline.json"


def main(argv: Sequence[str]) -> None:
    """Run the grid; write everything, then fail if anything failed or refutes a claim."""
    config = parse(PipelineConfig, argv, prog="safesynthdp pipeline")
    jobs = stage_jobs(config)
    if config.dry_run:
        sys.stdout.write("".join(f"{line}\n" for line in check_jobs(jobs)))
        return
    check_jobs(of_each_kind(jobs))
    root = Path(config.output_dir).resolve()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(root, error) from error
    with _alone(root), _terminable():
        run_pipeline(config, _engine(config, root / "logs"))


def _engine(config: PipelineConfig, log_dir: Path) -> Engine:
    if config.engine == "slurm":
        return SlurmEngine(log_dir=log_dir, max_parallel=config.max_parallel, slurm=config.slurm)
    return LocalEngine(log_dir=log_dir, max_parallel=config.max_parallel)


def run_pipeline(config: PipelineConfig, engine: Engine) -> None:
    """Run what is not finished, draw the report, and raise for what failed.

    Raises:
        UserError: If a stage refused its request.
        Preempted: If a stage was told to end and saved its work.
        SafeSynthError: If a stage failed, or the report found a claim contradicted.
    """
    root, jobs = Path(config.output_dir).resolve(), stage_jobs(config)
    record = Record(root / RECORD, config)
    left = [job for job in jobs if not record.holds(job)]
    _say(f"{len(jobs)} jobs, {len(jobs) - len(left)} finished before, {len(left)} to do; logs in {root / 'logs'}")
    by_key, outcomes = {job.key: job for job in jobs}, list[Outcome]()

    def on_end(outcome: Outcome) -> bool:
        outcomes.append(outcome)
        job = by_key[outcome.key]
        is_good = outcome.code in job.good_codes or (outcome.code == 1 and _refutes(job))
        is_done = record.add(job) if is_good else False
        what = (
            "finished" if is_done else "not started" if outcome.code is None else f"failed (exit code {outcome.code})"
        )
        detail = "" if is_done and outcome.code == 0 else f": {outcome.last_line}"
        _say(f"[{len(outcomes)}/{len(left)}] {outcome.key} {what} in {duration(outcome.seconds)}{detail}")
        return is_done

    engine.run(left, on_end=on_end)
    found = list(dict.fromkeys(job.output_dir for job in jobs if (job.output_dir / MANIFEST).is_file()))
    failed = [one for one in outcomes if one.code not in (0, None) and one.key not in record.keys]
    _raise_for(failed + (_reports(config, engine, found) if found else []))


class Record:
    """Which jobs are finished, with which words, recipe and inputs: ``pipeline.json``."""

    def __init__(self, path: Path, config: PipelineConfig) -> None:
        self._path, self._config = path, to_mapping(config)
        self._jobs: dict[str, Any] = _read(path).get("jobs", {})
        self.keys = set[str]()
        """What is known to be finished."""

    def holds(self, job: Job) -> bool:
        """Whether a job was finished by the same call on the same inputs; what it needs is asked for before it."""
        known = self._jobs.get(job.key, {})
        is_same = known.get("call") == self._call(job) and known.get("run_id") == _run_id(job, wanted="finished")
        is_held = is_same and known.get("run_id") is not None and all(need in self.keys for need in job.needs)
        if is_held:
            self.keys.add(job.key)
        return is_held

    def add(self, job: Job) -> bool:
        """Write down that a job ended; False if its directory does not say that it is finished."""
        run_id = _run_id(job, wanted="finished")
        if run_id is None:
            return False
        words = shlex.join(["safesynthdp", *job.words])
        self._jobs[job.key] = {"call": self._call(job), "run_id": run_id, "command": words}
        self.keys.add(job.key)
        write_json(self._path, {"version": 1, "config": self._config, "jobs": self._jobs}, private=True)
        return True

    def _call(self, job: Job) -> str:
        """Hash of the words, the recipe's content and the runs it was given, with the calls that made them."""
        recipe = job.recipe.read_text(encoding="utf-8") if job.recipe is not None and job.recipe.is_file() else ""
        known = [self._jobs.get(need, {}) for need in job.needs]
        given = [(need.get("run_id"), need.get("call")) for need in known]
        return hashlib.sha256(json.dumps([job.words, recipe, given]).encode()).hexdigest()


def _reports(config: PipelineConfig, engine: Engine, found: Sequence[Path]) -> list[Outcome]:
    """Draw the report, and the public one if asked for; return those that failed or found something."""
    outcomes = list[Outcome]()

    def on_end(outcome: Outcome) -> bool:
        outcomes.append(outcome)
        return outcome.code == 0

    editions = [False, True] if config.public else [False]
    jobs = [report_job(config, found, is_public=is_public) for is_public in editions]
    engine.run(jobs, on_end=on_end)
    for job in jobs:
        if (job.output_dir / "report.html").is_file():
            _say(str(job.output_dir / "report.html"))
    return [outcome for outcome in outcomes if outcome.code]


def _raise_for(failed: Sequence[Outcome]) -> None:
    if not failed:
        return
    first = failed[0]
    more = "" if len(failed) == 1 else f" (and {len(failed) - 1} more, see the logs)"
    line = f"{first.key}: {first.last_line.removeprefix('error: ')}{more}"
    if any(outcome.code == Preempted.exit_code for outcome in failed):
        raise Preempted(line)
    raise (UserError if first.code == UserError.exit_code else SafeSynthError)(line)


def _run_id(job: Job, *, wanted: str) -> str | None:
    """Return the run in a job's directory if it has the wanted status and the job's result lies there."""
    if job.result is not None and not (job.output_dir / job.result).is_file():
        return None
    manifest = _read(job.output_dir / MANIFEST)
    return str(manifest.get("run_id")) if manifest.get("status") == wanted else None


def _refutes(job: Job) -> bool:
    """Whether a job ended with code 1 because of what it found: everything is written then."""
    rows = _read(job.output_dir / job.result).get("rows") if job.result is not None else None
    return isinstance(rows, list) and any(isinstance(row, Mapping) and row.get("verdict") == "refuted" for row in rows)


def _read(path: Path) -> Mapping[str, Any]:
    """A file that is missing or broken holds nothing: its job runs again and says what is wrong."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Two pipelines in one directory would start every job twice."""
    with (root / ".pipeline.lock").open("w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SafeSynthError(f"output_dir={root} is in use by another pipeline; wait for it") from error
        yield


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the jobs in good order too."""

    def end(number: int, frame: object) -> None:
        del number, frame
        raise Preempted("told to end (SIGTERM): the jobs have saved; the same command goes on")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
