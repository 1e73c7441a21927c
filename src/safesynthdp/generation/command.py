"""``safesynthdp sample``: a run's weights to labelled synthetic text, with the guarantee it inherits.

Here: the order of the stage. Elsewhere: each step of it.
"""

import dataclasses
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from safesynthdp.config import parse, to_mapping
from safesynthdp.errors import ConfigError, LedgerMismatch, UserError
from safesynthdp.generation.settings import SampleConfig
from safesynthdp.runs import CHECKPOINT, LEDGER, TOKENS, RunDirectory

if TYPE_CHECKING:
    from torch import nn

    from safesynthdp.generation.labels import LabelShares
    from safesynthdp.generation.texts import SampledText
    from safesynthdp.models import LoadedModel
    from safesynthdp.privacy.ledger import Ledger
    from safesynthdp.training.ranks import Ranks

_FREE_TO_DIFFER = ("output_dir", "run", "batch_size")


def main(argv: Sequence[str]) -> None:
    """Sample one data set and write down what it inherits."""
    sample(parse(SampleConfig, argv, prog="safesynthdp sample"))


def sample(config: SampleConfig) -> RunDirectory:
    """Draw ``config.num_records`` texts into ``config.output_dir``, or what is left of them, and return it.

    Raises:
        UserError: If the run cannot be sampled, or ``output_dir`` holds something else.
    """
    from safesynthdp.generation.labels import read_shares
    from safesynthdp.training.launching import end_ranks, start_ranks

    ranks = start_ranks()
    if config.output is not None and ranks.are_several:
        raise ranks.on_main(
            ConfigError(
                f"num_processes={ranks.world_size}: an output mechanism draws in one process; launch with "
                "--num_processes 1"
            )
        )
    source = RunDirectory.open(config.run, kind="finetune")
    labels = source.manifest.get("data", {}).get("label_set")
    if not labels:
        raise UserError(f"run={source.path} has not read its data yet; finish it with the command that began it")
    shares = read_shares(source, labels, choice=config.labels, untuned=config.untuned)
    ledger = _ledger(config, source, shares)
    _refuse_other_vocabulary(config, source)
    with _open_run(config, source, ranks) as run:
        with ranks.together():
            if ranks.is_main:
                _refuse_another_model(config, source, run)
                if config.output is not None:
                    from safesynthdp.generation.output_release import claim_batch

                    claim_batch(source, run, ledger)
        ranks.agree("the run's weights", {} if config.untuned or not ranks.are_several else _digests(source))
        if run.is_finished:
            run.say(f"{run.path} is finished already, with this config; nothing to do")
            return run
        if not source.is_finished and not config.untuned:
            run.say(f"{source.path} is not finished: sampling the weights it has released so far")
        _draw(config, source, run, shares, ledger, ranks)
    end_ranks(ranks)
    return run


def _open_run(config: SampleConfig, source: RunDirectory, ranks: "Ranks") -> RunDirectory:
    """Rank 0 creates, locks and writes; the others work along."""
    opened = None
    with ranks.together():
        if ranks.is_main:
            settings = to_mapping(config) | {"run": str(source.path)}
            opened = RunDirectory.create(
                config.output_dir, kind="sample", config=settings, parents=[source], leave_out=_FREE_TO_DIFFER
            )
    manifest = ranks.share(None if opened is None else opened.manifest)
    return opened or RunDirectory.follow(config.output_dir, manifest)


def _draw(
    config: SampleConfig,
    source: RunDirectory,
    run: RunDirectory,
    shares: "LabelShares",
    ledger: "Ledger",
    ranks: "Ranks",
) -> None:
    from safesynthdp.generation.decoding import draw_device
    from safesynthdp.generation.files import load_parts, save_part
    from safesynthdp.generation.labels import plan_labels
    from safesynthdp.generation.matching_stage import choose, fit_bias, num_candidates, targets_of
    from safesynthdp.generation.matching_stage import facts as matching_facts
    from safesynthdp.generation.release import refuse_unpaid_tokens
    from safesynthdp.generation.sampling import longest_seconds, missing_rows, plan_rows
    from safesynthdp.generation.sharding import sample_on_ranks
    from safesynthdp.generation.steering import Steering
    from safesynthdp.progress import duration, progress

    loaded, model = _load(config, source, run, ranks)
    plan = plan_labels(shares, config.num_records, seed=config.seed)
    targets = targets_of(config, source, loaded)
    refuse_unpaid_tokens(ledger, targets)
    rows = plan_rows(loaded, plan * num_candidates(config, targets), max_new_tokens=config.max_new_tokens)
    with ranks.together():
        texts = load_parts(run) if ranks.is_main else {}
        run.begin()
    left = missing_rows(rows, ranks.share({"done": list(texts)})["done"])
    if texts:
        run.say(f"{len(texts)} texts are there already, {len(left)} are left")
    if ranks.is_main:
        longest = longest_seconds(model, left, batch_size=config.batch_size) / ranks.world_size
        run.say(
            f"drawing {len(left)} texts for {len(shares.labels)} labels (shares: {shares.source}), each of at most "
            f"{max(row.max_new_tokens for row in rows)} tokens: {duration(longest)} if all were that long"
        )
    matched, steering = None, None
    if targets is not None:
        matched = fit_bias(config, run, targets, model, loaded, rows, ranks)
        steering = Steering(matched.bias_LC.to(draw_device(model)), targets.columns)
    began = time.monotonic()
    at_once = config.batch_size * ranks.world_size
    with (
        progress("sampling", total=len(left), unit="texts", at_once=at_once) if ranks.is_main else nullcontext(_silent)
    ) as advance:
        if config.output is not None:
            under_noise = _under_noise(config, source, run)
            drawn = under_noise(model, loaded, left, config, advance=advance, keep=lambda part: save_part(run, part))
        else:
            drawn = sample_on_ranks(
                model,
                loaded,
                left,
                config,
                ranks=ranks,
                advance=advance,
                keep=lambda part: save_part(run, part) if ranks.is_main else None,
                steering=steering,
            )
    seconds = time.monotonic() - began
    with ranks.together():
        if ranks.is_main:
            texts |= drawn
            selection = choose(run, texts, plan, targets, matched, loaded) if targets and matched else None
            if selection is not None:
                texts = {i: dataclasses.replace(texts[n], number=i) for i, n in enumerate(selection.kept)}
            dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
            run.update(token_matching=matching_facts(config, matched, selection), dtype=dtype)
            _write(config, run, texts, plan, shares, ledger, seconds=seconds, num_drawn=len(drawn))


def _load(
    config: SampleConfig, source: RunDirectory, run: RunDirectory, ranks: "Ranks"
) -> "tuple[LoadedModel, nn.Module]":
    """Return what the run released, and its model as it is sampled."""
    from safesynthdp.generation.sampling import ready_model
    from safesynthdp.models import load_run_model
    from safesynthdp.training.precision import slow_format

    with ranks.together(), ranks.first():
        loaded = load_run_model(source, untuned=config.untuned)
        model = ready_model(loaded, dtype=config.dtype, attn_implementation=config.attn_implementation)
    if warning := slow_format(model):
        run.say(f"warning: {warning}; give --dtype fastest")
    return loaded, model


def _silent(_: int) -> None:
    """Only rank 0 shows progress."""


def _write(
    config: SampleConfig,
    run: RunDirectory,
    texts: "dict[int, SampledText]",
    plan: Sequence[str],
    shares: "LabelShares",
    ledger: "Ledger",
    *,
    seconds: float,
    num_drawn: int,
) -> None:
    """Write the ledger, then the text that it prices."""
    from safesynthdp.generation.files import drop_parts, write_tables
    from safesynthdp.generation.matching_stage import drop_bias

    ledger.write(run.path / LEDGER)
    write_tables(run, texts, plan, with_csv=config.csv)
    facts = _facts(config, plan, shares, [texts[number] for number in sorted(texts)])
    run.finish(**facts, seconds=round(seconds, 2), texts_per_second=round(num_drawn / max(seconds, 1e-3), 2))
    drop_parts(run)
    drop_bias(run)
    if config.output is not None:
        from safesynthdp.generation.output_sampling import drop_key

        drop_key(run)
    _say_result(run, ledger)


def _under_noise(config: SampleConfig, source: RunDirectory, run: RunDirectory) -> "Callable[..., Any]":
    """Return the sampler that draws through the output mechanism."""
    from safesynthdp.generation.output_sampling import NoisySampler

    return NoisySampler.of(config, source, run)


def _facts(
    config: SampleConfig, plan: Sequence[str], shares: "LabelShares", texts: "Sequence[SampledText]"
) -> dict[str, Any]:
    from safesynthdp.generation.texts import count_flaws

    held = Counter(plan)
    return {
        "num_records": len(texts),
        "requested": config.num_records,
        "num_tokens": sum(text.num_tokens for text in texts),
        "settings": {k: v for k, v in to_mapping(config).items() if k not in ("run", "output_dir")},
        "counts": count_flaws(texts),
        "labels": {label: held[label] for label in shares.labels},
        "label_source": shares.source,
        "untuned": config.untuned,
    }


def _say_result(run: RunDirectory, ledger: "Ledger") -> None:
    from safesynthdp.generation.files import PARQUET
    from safesynthdp.generation.release import sentence

    facts = run.manifest
    counts = ", ".join(f"{count} {flaw}" for flaw, count in facts["counts"].items())
    is_chosen = "candidates" in (facts.get("token_matching") or {})
    whole = "" if is_chosen else " (none left out)"
    missing = [label for label, count in facts["labels"].items() if not count]
    if missing:
        run.say(f"warning: {len(missing)} of {len(facts['labels'])} labels got no text; ask for more records")
    run.say(f"{facts['num_records']} texts at {facts['texts_per_second']:.1f} a second; {counts}{whole}")
    run.say(f"{sentence(ledger)} -> {run.path / PARQUET}")


def _ledger(config: SampleConfig, source: RunDirectory, shares: "LabelShares") -> "Ledger":
    """Settle what the text costs before the first token."""
    from safesynthdp.generation.release import released_weights, sample_ledger, untuned_ledger
    from safesynthdp.privacy.ledger import Ledger

    if config.untuned:
        promise = source.config()["privacy"]
        return untuned_ledger(
            unit=promise["unit"],
            adjacency=promise["adjacency"],
            delta=promise["target_delta"],
            label_set_is_public=bool(source.manifest["data"].get("label_set_is_public", False)),
        )
    path = source.path / LEDGER
    spent = Ledger.read(path) if path.is_file() else None
    has_weights = any((source.path / CHECKPOINT).glob("*.safetensors"))
    if spent is None or not has_weights or released_weights(spent) is None:
        raise UserError(f"run={source.path} has released no weights yet; finish it with the command that began it")
    if config.output is None:
        return sample_ledger(spent, shares)
    from safesynthdp.generation.output_release import output_ledger

    return output_ledger(
        spent,
        shares,
        config.output_mechanism(),
        weights_withheld=config.output.weights_withheld,
        seeded=config.unsafe_seed is not None,
    )


def _refuse_other_vocabulary(config: SampleConfig, source: RunDirectory) -> None:
    """A number that cannot be right is found before the one batch of the run is claimed."""
    if config.output is None or config.output.vocab_size is None:
        return
    from safesynthdp.generation.output_config import refuse_other_vocabulary
    from safesynthdp.models import load_run_model

    refuse_other_vocabulary(config.output, load_run_model(source).model)


def _refuse_another_model(config: SampleConfig, source: RunDirectory, run: RunDirectory) -> None:
    """Texts of two models never share a directory, however the run was replaced in the meantime."""
    digests = {} if config.untuned else _digests(source)
    if "weights" not in run.manifest:
        run.update(weights=digests)
    parent = run.manifest["parents"][0]["run_id"]
    if parent != source.manifest["run_id"] or run.manifest["weights"] != digests:
        raise LedgerMismatch(f"output_dir={run.path} holds text of other weights than run={source.path} has now")


def _digests(source: RunDirectory) -> dict[str, str]:
    """Return the SHA-256 of each weights file, and of the token counts."""
    found = dict[str, str]()
    tokens = source.path / TOKENS
    for path in (*sorted((source.path / CHECKPOINT).glob("*.safetensors")), *([tokens] if tokens.is_file() else [])):
        with path.open("rb") as handle:
            found[path.name] = hashlib.file_digest(handle, "sha256").hexdigest()
    return found


def refuse_several_processes() -> None:
    """Private prediction draws everything in one process.

    Raises:
        ConfigError: If a launcher started several.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes != 1:
        raise ConfigError(f"num_processes={processes}: prediction runs on one process; launch with --num_processes 1")
