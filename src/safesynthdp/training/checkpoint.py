"""What a run releases: the adapter or the model, the tokenizer and a card, in ``checkpoint/``.

Here: writing it so that equal weights are equal bytes (no dates, no paths, sorted lists). Elsewhere: what may never
be released (state.py) and what the release cost (the ledger).
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from torch import Tensor, nn

from safesynthdp.model_config import ModelConfig
from safesynthdp.privacy.storage import disk_error, write_json, write_text
from safesynthdp.runs import CHECKPOINT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def write_checkpoint(
    run_path: Path,
    *,
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    config: ModelConfig,
    guarantee: str,
    use_lora: bool,
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write ``checkpoint/`` whole or not at all and return its path.

    Args:
        run_path: The run directory.
        model: The trained model (a peft model with adapters if ``use_lora``).
        tokenizer: As loaded; it never saw private text.
        config: Names the base model on the card.
        guarantee: One sentence for the card, read from the ledger.
        use_lora: Only the adapter is written.
        weights: What to write where ``model`` holds only parts of it (``Shards.released``).

    Raises:
        SafeSynthError: If the disk refuses.
    """
    target, unfinished = run_path / CHECKPOINT, run_path / f".{CHECKPOINT}.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        given = {} if weights is None else {"state_dict": dict(weights)}
        model.save_pretrained(str(unfinished), **given)  # type: ignore[operator]  # peft and transformers share it
        tokenizer.save_pretrained(str(unfinished))
        if use_lora:
            _normalise_adapter_config(unfinished / "adapter_config.json", base=_base_name(config))
        write_text(unfinished / "README.md", _card(config, guarantee=guarantee, use_lora=use_lora))
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise disk_error(target, error if isinstance(error, OSError) else OSError(28, str(error))) from error
    return target


def _normalise_adapter_config(path: Path, *, base: str) -> None:
    """Peft writes sets in hash order and the local path of the base; equal runs must give equal bytes."""
    values = json.loads(path.read_text(encoding="utf-8"))
    for key, value in values.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            values[key] = sorted(value)
    values["base_model_name_or_path"] = base
    write_json(path, dict(sorted(values.items())))


def _base_name(config: ModelConfig) -> str:
    return config.model_name_or_path or "from_scratch"


def _card(config: ModelConfig, *, guarantee: str, use_lora: bool) -> str:
    base = _base_name(config)
    return "\n".join(
        [
            "---",
            f"base_model: {json.dumps(base)}",
            f"library_name: {'peft' if use_lora else 'transformers'}",
            "pipeline_tag: text-generation",
            "tags: [differential-privacy, synthetic-text]",
            "---",
            "",
            f"# {'LoRA adapter for' if use_lora else 'A language model trained from'} {base}",
            "",
            "Fine-tuned on labelled private text by SafeSynthDP, to sample synthetic text of the same kind.",
            "",
            f"**Guarantee.** {guarantee}",
            "",
            "It covers these weights and whatever is computed from them. It does not cover the base model's own",
            "pre-training data, nor facts that many records share.",
            "",
        ]
    )
