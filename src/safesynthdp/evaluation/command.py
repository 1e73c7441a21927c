"""The ``evaluate`` sub-command: parse, load, measure, write, show.

Here: the order of work. Elsewhere: its keys (evaluate_config.py), its directory (result.py), every number (utility.py,
validity.py, memorisation.py).
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesynthdp.config import parse
from safesynthdp.evaluation.downstream import Settings, parse_families
from safesynthdp.evaluation.evaluate_config import EvaluateConfig
from safesynthdp.evaluation.inputs import Corpora, Input, find_suspicions, has_labels, load_inputs
from safesynthdp.evaluation.result import (
    METRICS,
    WORST,
    Clock,
    headline,
    open_output,
    read_finished,
    settings_of,
    show_result,
)
from safesynthdp.evaluation.rows import LEVEL, Row, decide_publishable
from safesynthdp.evaluation.rows import to_mapping as row_to_mapping
from safesynthdp.evaluation.schema import VERSION, check_metrics
from safesynthdp.privacy.storage import write_json, write_text

if TYPE_CHECKING:
    from safesynthdp.evaluation.direct import Promise
    from safesynthdp.evaluation.downstream import Embed


def main(argv: Sequence[str]) -> None:
    """Measure utility and memorisation of synthetic text."""
    config = parse(EvaluateConfig, argv, prog="safesynthdp evaluate")
    clock = Clock()
    paths = {"real": config.real, "synthetic": config.synthetic, "holdout": config.holdout, "baseline": config.baseline}
    inputs = load_inputs(paths, config.columns())
    clock.lap("load", ", ".join(f"{len(given.records)} {role}" for role, given in inputs.items()))
    with open_output(config, inputs) as run:
        if run.is_finished:
            content = read_finished(run, inputs)
            clock.say(f"{run.path} is finished already, with this config and these records; nothing to do")
        else:
            run.begin()
            content = evaluate(config, inputs, clock, run.path)
            check_metrics(content)
            write_json(run.path / METRICS, content, private=True)
            run.finish(timings=clock.laps, headline=headline(content))
            clock.say(f"wrote {run.path / METRICS}")
    show_result(content, as_json=config.json)


def evaluate(config: EvaluateConfig, inputs: dict[str, Input], clock: Clock, folder: Path) -> dict[str, Any]:
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
    rows, sizes, settings = list[Row](), dict[str, int](), settings_of(config)
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
