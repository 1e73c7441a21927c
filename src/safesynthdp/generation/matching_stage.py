"""The token matching of one sample: fitted once, on disk, the same on every rank.

Here: whether there is anything to match, and the file that a resumed sample reads; the candidates as tokens.
Elsewhere: the fit (token_matching.py), the choice among the candidates (selection.py).
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from safesynthdp.errors import LedgerMismatch, SafeSynthError
from safesynthdp.generation.decoding import Row
from safesynthdp.generation.draws import Sampling
from safesynthdp.generation.selection import Selection, select
from safesynthdp.generation.settings import SampleConfig
from safesynthdp.generation.texts import SampledText
from safesynthdp.generation.token_matching import Matched, matching_rounds
from safesynthdp.generation.token_targets import TokenTargets, read_targets
from safesynthdp.models import LoadedModel, logits_width
from safesynthdp.privacy.storage import write_atomically
from safesynthdp.progress import progress
from safesynthdp.runs import TOKENS, RunDirectory
from safesynthdp.training.examples import text_ids
from safesynthdp.training.ranks import Ranks

_BIAS = "token_bias.safetensors"


def targets_of(config: SampleConfig, source: RunDirectory, loaded: LoadedModel) -> TokenTargets | None:
    """Return what this sample matches; None where it samples the model as it is.

    Raises:
        LedgerMismatch: If the run counted tokens and the file is gone, or does not fit it.
    """
    if config.untuned or config.output is not None or not config.token_matching_rounds:
        return None
    width = logits_width(loaded.model)
    found = read_targets(source, loaded.label_set, tokenizer=loaded.tokenizer, num_tokens=width)
    if found is None and source.config()["privacy"].get("token_histogram_share") is not None:
        raise LedgerMismatch(f"{source.path / TOKENS} is missing; restore it, or use --token_matching_rounds 0")
    return found


def fit_bias(
    config: SampleConfig,
    run: RunDirectory,
    targets: TokenTargets,
    model: nn.Module,
    loaded: LoadedModel,
    rows: Sequence[Row],
    ranks: Ranks,
) -> Matched:
    """Return the fitted bias, the same on every rank; an interrupted sample goes on after its last whole round.

    Raises:
        SafeSynthError: If the bias in the state is damaged.
    """
    path = run.state / _BIAS
    with ranks.together():
        held = path.read_bytes() if ranks.is_main and path.is_file() else b""
    held = ranks.share_bytes(held)
    begun = _read(held, path) if held else None
    rounds, records = config.token_matching_rounds, config.token_matching_records
    left = rounds - (len(begun.distances) if begun else 0)
    if begun is not None and left <= 0:
        return begun
    found = begun
    if ranks.is_main:
        run.say(f"matching the released token counts: {left} rounds of {records} texts, at no epsilon")
    total = left * max(records, len({row.label for row in rows}))
    with (
        progress("matching", total=total, unit="texts", at_once=min(records, config.batch_size * ranks.world_size))
        if ranks.is_main
        else nullcontext(_silent)
    ) as advance:
        for fitted in matching_rounds(
            model,
            rows,
            targets,
            sampling=Sampling(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p),
            eos_token_id=loaded.eos_token_id,
            seed=config.seed,
            rounds=rounds,
            num_records=records,
            batch_size=config.batch_size,
            advance=lambda count: advance(count * ranks.world_size),
            begun=begun,
            ranks=ranks,
        ):
            found = fitted
            with ranks.together():
                if ranks.is_main:
                    _keep(path, fitted)
    assert found is not None
    shown = ", ".join(f"{distance:.3f}" for distance in found.distances)
    if ranks.is_main:
        run.say(f"total variation distance of a label's tokens at the beginning of each round: {shown}")
    return found


def num_candidates(config: SampleConfig, targets: TokenTargets | None) -> int:
    """Return how many texts are drawn for each one that is written."""
    return 1 if targets is None else config.token_matching_candidates


def choose(
    run: RunDirectory,
    texts: Mapping[int, SampledText],
    plan: Sequence[str],
    targets: TokenTargets,
    matched: Matched,
    loaded: LoadedModel,
) -> Selection | None:
    """Return which candidates are written; None where there are no more than are wanted.

    Args:
        run: Is told how it went.
        texts: Every candidate, by number.
        plan: The label of each text that is wanted.
        targets: What was released.
        matched: With what the texts should use.
        loaded: With the tokenizer of the training.
    """
    if len(texts) == len(plan):
        return None
    found = [texts[number] for number in range(len(texts))]
    encoded = text_ids([text.text for text in found], tokenizer=loaded.tokenizer)
    end = loaded.eos_token_id
    tokens = [ids if text.is_truncated else [*ids, end] for text, ids in zip(found, encoded, strict=True)]
    place = {label: row for row, label in enumerate(targets.labels)}
    are_cut = [text.is_truncated for text in found]
    selection = select(tokens, [place[label] for label in plan], targets, matched.wanted_LC.numpy(), are_cut=are_cut)
    run.say(
        f"kept {len(plan)} of {len(texts)} texts, closest together to the released token counts: total variation "
        f"distance {selection.distance_kept:.3f}, {selection.distance_unselected:.3f} without the choice"
    )
    return selection


def _silent(_: int) -> None:
    """Only rank 0 shows progress."""


def drop_bias(run: RunDirectory) -> None:
    """Remove what only served to resume."""
    (run.state / _BIAS).unlink(missing_ok=True)


def facts(config: SampleConfig, matched: Matched | None, selection: Selection | None) -> dict[str, Any] | None:
    """Return what manifest.json says of it."""
    if matched is None:
        return None
    chosen = (
        {}
        if selection is None
        else {
            "candidates": config.token_matching_candidates,
            "distance_unselected": round(selection.distance_unselected, 4),
            "distance_kept": round(selection.distance_kept, 4),
        }
    )
    return {
        "rounds": config.token_matching_rounds,
        "records_a_round": config.token_matching_records,
        "distance_at_each_round": [round(distance, 4) for distance in matched.distances],
    } | chosen


def _keep(path: Path, found: Matched) -> None:
    distances = torch.tensor(found.distances, dtype=torch.float64)
    content = save({"bias": found.bias_LC, "wanted": found.wanted_LC, "distances": distances})

    def write(target: Path) -> None:
        target.write_bytes(content)

    write_atomically(path, write)


def _read(content: bytes, path: Path) -> Matched:
    try:
        found = load(content)
        distances = tuple(found["distances"].tolist())
        return Matched(bias_LC=found["bias"], wanted_LC=found["wanted"], distances=distances)
    except (SafetensorError, KeyError) as error:
        raise SafeSynthError(f"{path} cannot be read back; delete it, and the bias is fitted again") from error
