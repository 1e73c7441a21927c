"""The ``evaluate`` sub-command: parse, load, measure, write, show.

Here: its config and the order of work. Elsewhere: every number (utility.py, validity.py, memorisation.py) and the
console (table.py). Progress goes to stderr and results to stdout, so that ``--json`` can be piped.
"""

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safesynthdp.config import parse, to_mapping
from safesynthdp.errors import ConfigError, LedgerMismatch
from safesynthdp.evaluation.downstream import MAX_TRAIN_RECORDS, Settings, parse_families
from safesynthdp.evaluation.inputs import Columns, Corpora, Input, find_suspicions, has_labels, load_inputs
from safesynthdp.evaluation.rows import LEVEL, Row, decide_publishable, find
from safesynthdp.evaluation.rows import to_mapping as row_to_mapping
from safesynthdp.evaluation.schema import VERSION, check_metrics
from safesynthdp.privacy.storage import write_json, write_text
from safesynthdp.runs import RunDirectory

if TYPE_CHECKING:
    from safesynthdp.evaluation.direct import Promise
    from safesynthdp.evaluation.downstream import Embed

METRICS, WORST = "metrics.json", "memorisation_worst.jsonl"
MAX_SEEDS = 100
MIN_RECORDS = 50
MAX_BUCKETS = 5_000


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Train on synthetic text, test on real text, and look for what was memorised."""

    real: str
    """Records the generator was trained on: a .csv, .jsonl or .parquet file, or a finetune run."""
    synthetic: str
    """Synthetic text: a file with the columns text and label (or those named below), or a sample run."""
    holdout: str
    """Real records that nothing was trained or tuned on: a file, or a finetune run (what it kept back)."""
    output_dir: str
    """Where metrics.json goes: a new directory."""
    baseline: str | None = None
    """Text of the untuned model (epsilon = 0), from `safesynthdp sample --untuned`: a file or its run."""
    text_column: str = "text"
    """Column of the text."""
    label_column: str | None = "label"
    """Column of the label; null evaluates without labels and leaves out utility."""
    holdout_text_column: str | None = None
    """Column of the text in the holdout, where it is not text_column."""
    holdout_label_column: str | None = None
    """Column of the label in the holdout, where it is not label_column."""
    synthetic_text_column: str | None = None
    """Column of the text in synthetic and baseline, where it is neither text_column nor text."""
    synthetic_label_column: str | None = None
    """Column of the label in synthetic and baseline, where it is neither label_column nor label."""
    downstream: str = "lr,nb,svm"
    """Classifiers to train, separated by commas, the headline first: lr, nb, svm, rf (on tf-idf), emb (on embeddings),
    gru, cnn (small networks on words), encoder (fine-tunes downstream_encoder)."""
    downstream_encoder: str | None = None
    """Pretrained encoder that the family encoder fine-tunes: a folder or an id."""
    seeds: int = 3
    """Draws of every subsample, permutation, random classifier and DP noise, 1 to 100."""
    max_train_records: int = MAX_TRAIN_RECORDS
    """Records that lr, nb and svm train and are tested on at most; rf, gru and cnn train on a quarter of it."""
    dp_direct_epsilon: float | None = None
    """Epsilon of the classifiers trained directly with DP; null reads it from the ledger of a synthetic run."""
    dp_direct_delta: float = 1e-5
    """Delta that goes with dp_direct_epsilon."""
    dp_direct_adjacency: Literal["add_remove", "replace"] = "add_remove"
    """Neighbouring relation that goes with dp_direct_epsilon."""
    worst_cases: int = 20
    """Synthetic texts that share most with a training record, listed with it in memorisation_worst.jsonl; private."""
    embedding_model: str = "auto"
    """Sentence encoder: a folder or hub id, minilm (fetched once), tfidf (none), auto (minilm if it was fetched)."""
    fast: bool = False
    """Leave out the encoder's layers; shuffled words then score like real text."""
    reference_model: str | None = "auto"
    """Language model for bits per byte: folder or hub id, smollm2-135m, auto (that if it was fetched), null (none)."""
    mauve_buckets: int = 100
    """Buckets of MAUVE, 2 to 5,000; the count decides the value, so compare only equal ones."""
    max_records: int = 2000
    """Records a side, at most, for what embeds or compares all pairs; 50 or more."""
    holdout_is_public: bool = False
    """The holdout holds nothing private, so numbers that read no training record may be published."""
    json: bool = False
    """Print metrics.json instead of tables."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ConfigError: With the key, its value and the way out.
        """
        if not 1 <= self.seeds <= MAX_SEEDS:
            raise ConfigError(f"seeds={self.seeds} is out of range; give 1 to {MAX_SEEDS}")
        for key, value in (("max_train_records", self.max_train_records), ("max_records", self.max_records)):
            if value < MIN_RECORDS:
                raise ConfigError(f"{key}={value} is too few to say anything; give {MIN_RECORDS} or more")
        if not 2 <= self.mauve_buckets <= MAX_BUCKETS:
            raise ConfigError(f"mauve_buckets={self.mauve_buckets} is out of range; give 2 to {MAX_BUCKETS}")
        if self.worst_cases < 0:
            raise ConfigError(f"worst_cases={self.worst_cases} is below 0; give 0 to write none")
        self._check_direct()
        is_named = "encoder" in parse_families(self.downstream)
        if is_named != (self.downstream_encoder is not None):
            missing = "downstream_encoder names none" if is_named else "downstream does not list encoder"
            raise ConfigError(f"downstream_encoder={self.downstream_encoder}: {missing}; set both or neither")

    def _check_direct(self) -> None:
        epsilon, delta = self.dp_direct_epsilon, self.dp_direct_delta
        if epsilon is not None and not 0 < epsilon < math.inf:
            raise ConfigError(f"dp_direct_epsilon={epsilon} is no budget; give a finite number above 0")
        if not 0 < delta < 1:
            raise ConfigError(f"dp_direct_delta={delta} is out of range; give one between 0 and 1")

    def columns(self) -> dict[str, Columns]:
        """Return where each role keeps text and label."""
        real = Columns(text=self.text_column, label=self.label_column)
        holdout = _renamed(real, self.holdout_text_column, self.holdout_label_column)
        synthetic = _renamed(real, self.synthetic_text_column, self.synthetic_label_column)
        return {"real": real, "holdout": holdout, "synthetic": synthetic, "baseline": synthetic}


def main(argv: Sequence[str]) -> None:
    """Measure utility and memorisation of synthetic text."""
    config = parse(EvaluateConfig, argv, prog="safesynthdp evaluate")
    clock = Clock()
    paths = {"real": config.real, "synthetic": config.synthetic, "holdout": config.holdout, "baseline": config.baseline}
    inputs = load_inputs(paths, config.columns())
    clock.lap("load", ", ".join(f"{len(given.records)} {role}" for role, given in inputs.items()))
    run = _open_output(config, inputs)
    if run.is_finished:
        content = _read_finished(run, inputs)
        clock.say(f"{run.path} is finished already, with this config and these records; nothing to do")
    else:
        run.begin()
        content = evaluate(config, inputs, clock, run.path)
        check_metrics(content)
        write_json(run.path / METRICS, content, private=True)
        run.finish(timings=clock.laps, headline=headline(content))
        clock.say(f"wrote {run.path / METRICS}")
    _show(content, as_json=config.json)


def evaluate(config: EvaluateConfig, inputs: dict[str, Input], clock: "Clock", folder: Path) -> dict[str, Any]:
    """Return the content of metrics.json; write the worst cases of memorisation into ``folder``."""
    from safesynthdp.evaluation.compare import measure_likeness
    from safesynthdp.evaluation.memorisation import measure_memorisation
    from safesynthdp.evaluation.utility import NO_BASELINE, measure_utility
    from safesynthdp.evaluation.verdict import find_faults

    corpora = Corpora(**{role: given.records for role, given in inputs.items()})
    warnings = find_suspicions(inputs, label_column=config.label_column)
    if corpora.baseline is None:
        warnings.append(f"baseline: {NO_BASELINE}; the epsilon = 0 row is empty")
    why_not, embedder = _no_utility(corpora, config.label_column), _embedder(config)
    rows, sizes, settings = list[Row](), dict[str, int](), _settings(config)
    if why_not is None:
        families = parse_families(config.downstream)
        promise = _promise(config, inputs)
        utility = measure_utility(
            corpora, families=families, seeds=config.seeds, progress=lambda what: clock.lap("utility", what),
            settings=_limits(config, embedder), promise=promise,
        )  # fmt: skip
        settings["dp_direct"] = promise if isinstance(promise, str) else promise.facts()
        rows, sizes = utility.rows, utility.train_sizes
        warnings += utility.warnings
    else:
        warnings.append(f"utility is left out: {why_not}")
    alike = measure_likeness(corpora, config, progress=clock.lap)
    rows += alike.rows
    warnings += alike.warnings
    memorised = measure_memorisation(
        corpora, progress=lambda what: clock.lap("memorisation", what), max_records=config.max_records,
        num_worst=config.worst_cases, embed=embedder,
    )  # fmt: skip
    if memorised.worst:
        lines = "".join(f"{json.dumps(case, ensure_ascii=False)}\n" for case in memorised.worst)
        write_text(folder / WORST, lines, private=True)
    rows += memorised.rows
    verdict = [finding.to_mapping() for finding in find_faults(rows)]  # before any ceiling is taken out
    rows = decide_publishable(rows, holdout_is_public=config.holdout_is_public)
    facts = {role: given.facts() for role, given in inputs.items()}
    for check, shares in memorised.long_enough.items():
        for role, share in shares.items():
            facts[role].setdefault("long_enough", {})[check] = share
    return {
        "version": VERSION,
        "inputs": facts,
        "settings": settings | {"level": LEVEL, "train_sizes": sizes} | alike.settings,
        "warnings": memorised.warnings + warnings,
        "verdict": verdict,
        "metrics": [row_to_mapping(row) for row in rows],
    }


def _limits(config: EvaluateConfig, embed: "Embed | None") -> Settings:
    return Settings(
        embed=embed,
        encoder=config.downstream_encoder,
        max_train_records=config.max_train_records,
        max_records=config.max_records,
    )


def _embedder(config: EvaluateConfig) -> "Embed | None":
    """Return what the family emb and the nearest record see texts with; without an encoder each has a stand-in."""
    from safesynthdp.evaluation.embeddings import embed
    from safesynthdp.evaluation.encoders import choose_encoder

    encoder = choose_encoder(config.embedding_model, fast=config.fast)
    return None if encoder.kind == "tfidf" else partial(embed, encoder=encoder)


def _promise(config: EvaluateConfig, inputs: dict[str, Input]) -> "Promise | str":
    """Return what direct DP training may spend, or why it is left out."""
    from safesynthdp.evaluation.direct import promise_of

    found = promise_of(
        inputs["synthetic"], epsilon=config.dp_direct_epsilon, delta=config.dp_direct_delta,
        adjacency=config.dp_direct_adjacency,
    )  # fmt: skip
    if isinstance(found, str) or found.unit == "record" or inputs["real"].records.user_ids is not None:
        return found
    return "the unit is the user and real does not name users: give the finetune run as --real"


def _renamed(columns: Columns, text: str | None, label: str | None) -> Columns:
    """Return the columns with other names; a file without labels has none to rename."""
    if columns.label is None:
        return Columns(text=text or columns.text, label=None)
    return Columns(text=text or columns.text, label=label or columns.label)


def headline(content: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers that a list of runs shows: the first family's accuracy and the longest word overlap."""
    rows = [Row(**row | {"reads": tuple(row["reads"])}) for row in content["metrics"]]
    family = parse_families(content["settings"]["downstream"])[0]
    accuracy = find(rows, "accuracy", train_on="synthetic", model=family)
    macro_f1 = find(rows, "macro_f1", train_on="synthetic", model=family)
    overlap = find(rows, "ngram_13", train_on="difference")
    found = dict[str, Any](model=family)
    for name, row in (("accuracy", accuracy), ("macro_f1", macro_f1), ("ngram_13_difference", overlap)):
        if row is not None:
            found[name] = {key: getattr(row, key) for key in ("value", "low", "high", "ceiling", "floor")}
    return found


@dataclass(kw_only=True)
class Clock:
    """Seconds by stage, and one line for each."""

    laps: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.monotonic)

    def lap(self, stage: str, what: str) -> None:
        """Add the time since the last lap to ``stage`` and say what was done in it."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self.laps[stage] = round(self.laps.get(stage, 0.0) + seconds, 3)
        self.say(f"{seconds:7.1f} s  {stage}: {what}")

    def say(self, line: str) -> None:
        """Write one line for people, beside the results."""
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _open_output(config: EvaluateConfig, inputs: dict[str, Input]) -> RunDirectory:
    """Inputs were read before, so that a wrong column leaves no directory behind that a better try would meet."""
    parents = {given.run.path: given.run for given in inputs.values() if given.run is not None}
    return RunDirectory.create(
        config.output_dir, kind="evaluate", config=_settings(config), parents=list(parents.values())
    )


def _settings(config: EvaluateConfig) -> dict[str, Any]:
    """Return the config without what only says how the result is shown."""
    return {key: value for key, value in to_mapping(config).items() if key != "json"}


def _read_finished(run: RunDirectory, inputs: dict[str, Input]) -> dict[str, Any]:
    """Return the earlier result if it is about the same records."""
    try:
        content: dict[str, Any] = json.loads((run.path / METRICS).read_text(encoding="utf-8"))
        then = {role: facts["fingerprint"] for role, facts in content["inputs"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LedgerMismatch(f"{run.path / METRICS} is damaged; give another output_dir") from error
    changed = sorted(role for role, given in inputs.items() if then.get(role) != given.records.fingerprint)
    if changed:
        raise ConfigError(
            f"output_dir={run.path} holds an evaluation of other records ({', '.join(changed)} changed since); "
            "give another directory"
        )
    return content


def _no_utility(corpora: Corpora, label_column: str | None) -> str | None:
    """Return why no classifier can be trained and tested, or None."""
    if label_column is None:
        return "label_column is null"
    for role, records in (("holdout", corpora.holdout), ("real", corpora.real), ("synthetic", corpora.synthetic)):
        if not has_labels(records):
            return f"{role} has no labels"
    if len(set(corpora.holdout.labels)) < 2:
        return "all holdout records have one label"
    return None


def _show(content: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(content, indent=2, allow_nan=False) + "\n")
        return
    from safesynthdp.evaluation.table import show

    show(content)
