"""``safesynthdp predict``: private records and a public model to labelled synthetic text, without a released model.

Here: the order of the stage. Elsewhere: each step of it (prediction.py, output_release.py).
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from safesynthdp.config import parse, to_mapping
from safesynthdp.errors import BudgetExhausted, ConfigError, LedgerMismatch, SafeSynthError
from safesynthdp.generation.predict_config import PredictConfig
from safesynthdp.runs import LEDGER, RunDirectory

if TYPE_CHECKING:
    from safesynthdp.generation.prediction import Job
    from safesynthdp.generation.texts import SampledText
    from safesynthdp.privacy.ledger import Ledger
    from safesynthdp.records import Records, Split

_FREE_TO_DIFFER = ("output_dir", "batches_at_once", "rows_per_call")
_ADAPTERS = "adapters.safetensors"


def main(argv: Sequence[str]) -> None:
    """Draw one data set and write down what it cost."""
    predict(parse(PredictConfig, argv, prog="safesynthdp predict"))


def predict(config: PredictConfig) -> RunDirectory:
    """Draw the texts of ``config`` into its ``output_dir``, or what is left of them, and return it.

    Raises:
        SafeSynthError: One line for whatever stops it; nothing half-written is left behind.
    """
    from safesynthdp.generation.command import refuse_several_processes

    refuse_several_processes()
    made = RunDirectory.create(config.output_dir, kind="sample", config=to_mapping(config), leave_out=_FREE_TO_DIFFER)
    with made as run:
        if run.is_finished:
            run.say(f"{run.path} is finished already, with this config; nothing to do")
            return run
        try:
            _predict(config, run)
        except SafeSynthError:
            run.discard()
            raise
    return run


def _predict(config: PredictConfig, run: RunDirectory) -> None:
    from safesynthdp.generation.output_release import prediction_ledger, write_first
    from safesynthdp.generation.output_sampling import output_key
    from safesynthdp.records import load_split

    split = load_split(config.data)
    _refuse_other_records(split, run)
    for warning in split.train.warnings:
        run.say(f"warning: {warning}")
    mechanism = config.mechanism(num_labels=len(split.train.label_set))
    seeded = config.privacy.unsafe_seed is not None
    ledger = prediction_ledger(
        split.train,
        mechanism,
        unit=config.privacy.unit,
        adjacency=config.privacy.adjacency,
        delta=config.privacy.target_delta,
        num_records_is_public=config.privacy.num_records_is_public,
        seeded=seeded,
    )
    _announce(config, ledger, split, run)
    run.update(data=_data_facts(split))
    job = _job(config, mechanism, split.train)
    run.begin()
    write_first(run, ledger)
    job = replace(job, key=output_key(run, unsafe_seed=config.privacy.unsafe_seed))
    _draw(job, ledger, run)


def _refuse_other_records(split: "Split", run: RunDirectory) -> None:
    """Texts of two data sets never share a directory: its ledger would name one of them."""
    if run.is_resumed and run.manifest["data"]["fingerprint"] != split.train.fingerprint:
        raise LedgerMismatch(
            f"output_dir={run.path} was begun on other records; restore data.* or give a new directory, at a new price"
        )


def _job(config: PredictConfig, mechanism: Any, records: "Records") -> "Job":
    """Load the model and refuse what cannot be done with it, before anything is begun."""
    from safesynthdp.generation.output_config import refuse_other_vocabulary
    from safesynthdp.generation.prediction import Job, device_of, refuse_long_prompts
    from safesynthdp.generation.shard_source import refuse_shared_rows
    from safesynthdp.models import load_base_model, load_tokenizer, quiet
    from safesynthdp.privacy.output_draws import OutputKey

    quiet()
    tokenizer = load_tokenizer(config.model)
    model: Any = load_base_model(config.model, seed=config.adapters.seed)
    refuse_shared_rows(model)
    refuse_other_vocabulary(config.output, model)
    job = Job(
        config=config,
        mechanism=mechanism,
        records=records,
        model=model.eval().to(device_of()),
        tokenizer=tokenizer,
        key=OutputKey.fresh(),
        on_step=lambda drawn, number: None,
    )
    refuse_long_prompts(job)
    return job


def _draw(job: "Job", ledger: "Ledger", run: RunDirectory) -> None:
    from safesynthdp.generation.files import drop_parts, load_parts, save_part, write_tables
    from safesynthdp.generation.output_release import release_prediction
    from safesynthdp.generation.output_sampling import drop_key
    from safesynthdp.generation.prediction import plan_texts
    from safesynthdp.generation.sampling import Basket
    from safesynthdp.generation.texts import TextDecoder
    from safesynthdp.progress import progress

    plan = plan_texts(job.config, job.records.label_set)
    texts = load_parts(run)
    done = dict(texts)
    if done:
        run.say(f"{len(done)} texts are there already, {len(plan) - len(done)} are left")
    decoder, basket, began = TextDecoder(job.tokenizer), Basket(lambda part: save_part(run, part)), time.monotonic()
    adapters = _adapters(job, run)
    drawn_tokens = 0
    with progress("predicting", total=len(plan) - len(done), unit="texts") as advance:

        def on_step(drawn: Any, number: int) -> None:
            nonlocal drawn_tokens
            drawn_tokens += number
            finished = [decoder(row) for row in drawn if row.number not in done]
            texts.update({text.number: text for text in finished})
            basket.add(finished)
            advance(len(finished))

        try:
            read = _draw_all(replace(job, on_step=on_step), adapters, done)
        finally:
            basket.empty()
    seconds = time.monotonic() - began
    ledger = release_prediction(
        ledger, job.records, delta=job.config.privacy.target_delta, seeded=job.config.privacy.unsafe_seed is not None
    )
    ledger.write(run.path / LEDGER)
    write_tables(run, texts, plan, with_csv=job.config.csv)
    run.finish(
        **_facts(job, plan, list(texts.values())),
        forward_tokens=read,
        drawn_tokens=drawn_tokens,
        seconds=round(seconds, 2),
        texts_per_second=round((len(texts) - len(done)) / max(seconds, 1e-3), 3),
    )
    drop_parts(run)
    drop_key(run)
    (run.state / _ADAPTERS).unlink(missing_ok=True)
    _say_result(run, ledger)


def _draw_all(job: "Job", adapters: Any, done: dict[int, Any]) -> int:
    from safesynthdp.generation.prediction import draw_from_adapters, draw_heuristic, draw_in_context

    if job.config.heuristic is not None:
        return draw_heuristic(job, done)
    if adapters is not None:
        return draw_from_adapters(job, adapters, done)
    return draw_in_context(job, done)


def _adapters(job: "Job", run: RunDirectory) -> Any:
    """Return the trained adapters of source (c), from ``state/`` if an earlier process trained them."""
    if job.config.source != "adapters" or job.config.output is None:
        return None
    from safetensors.torch import load_file, save_file

    from safesynthdp.generation.prediction import train_adapters
    from safesynthdp.generation.shard_adapters import ShardAdapters
    from safesynthdp.privacy.storage import write_atomically
    from safesynthdp.progress import progress

    shards = job.config.output.shards
    adapters = ShardAdapters(job.model, job.config.lora, shards=shards, seed=job.config.adapters.seed)
    path = run.state / _ADAPTERS
    if path.is_file():
        adapters.load(load_file(path))
        return adapters
    with progress("training adapters", total=shards, unit="shards") as advance:
        train_adapters(job, adapters, advance=advance)
    write_atomically(path, lambda target: save_file(adapters.tensors(), target))
    return adapters


def _announce(config: PredictConfig, ledger: "Ledger", split: "Split", run: RunDirectory) -> None:
    """Say what will be spent before anything is, and refuse what costs more than was meant."""
    from safesynthdp.generation.output_release import PREDICTION
    from safesynthdp.privacy.command import round_up
    from safesynthdp.privacy.ledger import release_epsilon

    privacy = config.privacy
    epsilon, _ = release_epsilon(ledger, [PREDICTION], delta=privacy.target_delta)
    num_units = ledger.entries[0].data["num_records"]
    run.say(f"{len(split.train):,} records, {len(split.train.label_set)} labels")
    if epsilon is None:
        run.say("warning: heuristic noise bounds nothing: no formal guarantee, at any scale")
        return
    if privacy.target_epsilon is not None and epsilon > privacy.target_epsilon:
        raise BudgetExhausted(
            f"privacy.target_epsilon={privacy.target_epsilon}: this text costs epsilon={round_up(epsilon)} at "
            f"delta={privacy.target_delta:g}; `safesynthdp account plan` says what is affordable"
        )
    if privacy.target_delta > 1 / num_units:
        run.say(f"warning: privacy.target_delta={privacy.target_delta:g} is above 1 / {num_units}: too weak a promise")
    if privacy.unsafe_seed is not None:
        run.say("warning: privacy.unsafe_seed is set: no guarantee against whoever knows the seed")
    if config.output is not None and (name := config.output.open_number) is not None:
        run.say(f"output.{name}={ledger.entries[0].mechanism[name]:.6g} is what privacy.target_epsilon affords")
    run.say(f"plan: epsilon={round_up(epsilon)} at delta={privacy.target_delta:g} per {privacy.unit}, {_rows(config)}")


def _rows(config: PredictConfig) -> str:
    if config.output is None:
        raise ConfigError("output is missing; give it")
    output = config.output
    return (
        f"{output.shards} shards and a public row vote on each of {output.tokens} tokens of {output.texts_per_batch} "
        "texts a batch"
    )


def _data_facts(split: "Split") -> dict[str, Any]:
    return {
        "fingerprint": split.train.fingerprint,
        "num_records": len(split.train),
        "num_holdout": len(split.holdout),
        "holdout_fingerprint": split.holdout.fingerprint,
        "label_set": list(split.train.label_set),
        "label_set_is_public": split.train.label_set_is_public,
    }


def _facts(job: "Job", plan: Sequence[str], texts: "Sequence[SampledText]") -> dict[str, Any]:
    from safesynthdp.generation.texts import count_flaws

    held = Counter(plan)
    return {
        "num_records": len(texts),
        "requested": len(plan),
        "num_tokens": sum(text.num_tokens for text in texts),
        "settings": {k: v for k, v in to_mapping(job.config).items() if k not in ("output_dir", "data")},
        "counts": count_flaws(texts),
        "labels": {label: held[label] for label in job.records.label_set},
        "label_source": "uniform",
        "untuned": False,
        "source": "heuristic" if job.config.heuristic is not None else job.config.source,
    }


def _say_result(run: RunDirectory, ledger: "Ledger") -> None:
    from safesynthdp.generation.files import PARQUET
    from safesynthdp.generation.release import sentence

    facts = run.manifest
    counts = ", ".join(f"{count} {flaw}" for flaw, count in facts["counts"].items())
    ratio = facts["forward_tokens"] / max(facts["drawn_tokens"], 1)
    run.say(f"{facts['num_records']} texts at {facts['texts_per_second']:.2f} a second; {counts} (none left out)")
    run.say(
        f"{facts['forward_tokens']} tokens read for {facts['drawn_tokens']} drawn, {ratio:.1f} for one (prompts apart)"
    )
    run.say(f"{sentence(ledger)} -> {run.path / PARQUET}")
