"""The token matching of one sample: fitted once, on disk, the same on every rank.

Here: whether there is anything to match, the file that a resumed sample reads, bringing the bias to all ranks.
Elsewhere: the fit (token_matching.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from safesynthdp.errors import SafeSynthError
from safesynthdp.generation.decoding import Row
from safesynthdp.generation.draws import Sampling
from safesynthdp.generation.settings import SampleConfig
from safesynthdp.generation.token_matching import Matched, TokenTargets, matching_rounds, read_targets
from safesynthdp.models import LoadedModel, logits_width
from safesynthdp.privacy.storage import write_atomically
from safesynthdp.progress import progress
from safesynthdp.runs import RunDirectory
from safesynthdp.training.ranks import Ranks

_BIAS = "token_bias.safetensors"


def targets_of(config: SampleConfig, source: RunDirectory, loaded: LoadedModel) -> TokenTargets | None:
    """Return what this sample matches; None where it samples the model as it is."""
    if config.untuned or config.output is not None or not config.token_matching_rounds:
        return None
    return read_targets(source, loaded.label_set, vocab_size=logits_width(loaded.model))


def fit_bias(
    config: SampleConfig,
    run: RunDirectory,
    targets: TokenTargets,
    model: nn.Module,
    loaded: LoadedModel,
    rows: Sequence[Row],
    ranks: Ranks,
) -> Matched:
    """Return the fitted bias: from the state of an interrupted sample, else by drawing on rank 0.

    Raises:
        SafeSynthError: If the bias in the state is damaged.
    """
    path, held = run.state / _BIAS, b""
    with ranks.together():
        if ranks.is_main:
            if not path.is_file():
                found = _fit(config, targets, model, loaded, rows, run)
                _keep(path, found)
            held = path.read_bytes()
    return _read(ranks.share_bytes(held), path)


def drop_bias(run: RunDirectory) -> None:
    """Remove what only served to resume."""
    (run.state / _BIAS).unlink(missing_ok=True)


def facts(config: SampleConfig, matched: Matched | None) -> dict[str, Any] | None:
    """Return what manifest.json says of it."""
    if matched is None:
        return None
    return {
        "rounds": config.token_matching_rounds,
        "records_a_round": config.token_matching_records,
        "distance_at_each_round": [round(distance, 4) for distance in matched.distances],
    }


def _fit(
    config: SampleConfig,
    targets: TokenTargets,
    model: nn.Module,
    loaded: LoadedModel,
    rows: Sequence[Row],
    run: RunDirectory,
) -> Matched:
    rounds, records = config.token_matching_rounds, config.token_matching_records
    run.say(f"matching the released token counts: {rounds} rounds of {records} texts, at no epsilon")
    total = rounds * max(records, len({row.label for row in rows}))
    with progress("matching", total=total, unit="texts") as advance:
        *_, found = matching_rounds(
            model,
            rows,
            targets,
            sampling=Sampling(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p),
            eos_token_id=loaded.eos_token_id,
            seed=config.seed,
            rounds=rounds,
            num_records=records,
            batch_size=config.batch_size,
            advance=advance,
        )
    shown = ", ".join(f"{distance:.3f}" for distance in found.distances)
    run.say(f"total variation distance of a label's tokens at the beginning of each round: {shown}")
    return found


def _keep(path: Path, found: Matched) -> None:
    distances = torch.tensor(found.distances, dtype=torch.float64)
    content = save({"bias": found.bias_LV, "distances": distances})

    def write(target: Path) -> None:
        target.write_bytes(content)

    write_atomically(path, write)


def _read(content: bytes, path: Path) -> Matched:
    try:
        found = load(content)
        return Matched(bias_LV=found["bias"], distances=tuple(found["distances"].tolist()))
    except (SafetensorError, KeyError) as error:
        raise SafeSynthError(f"{path} cannot be read back; delete it, and the bias is fitted again") from error
