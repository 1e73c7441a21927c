"""The model card and the data set card: Markdown with the YAML header that the Hugging Face hub reads.

Here: both cards. Elsewhere: the privacy statement in them (statement.py), what may leave (publish.py, applied before
anything here: a card is public, whoever asked for it), the upload (push_command.py).
"""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from safesynthdp.models import DEFAULT_TEMPLATE
from safesynthdp.reporting.facts import Group, Sample, is_from_scratch, uses_lora
from safesynthdp.reporting.guarantee import SEEDED, Claim, Guarantee
from safesynthdp.reporting.statement import ADJACENCY, ARTIFACTS, statement
from safesynthdp.reporting.wording import (
    NO_GUARANTEE,
    NOT_STATED,
    count_text,
    epsilon_text,
    interval_text,
    rate_text,
    value_text,
    visible,
)

HUB_NAMES = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
         (10_000_000, "1M<n<10M"))  # fmt: skip
UNNAMED = "a model that is not named here"
TAGS = ["differential-privacy", "synthetic-text", "safesynthdp"]
NO_LICENCE = (
    "No licence follows from differential privacy: whoever publishes chooses one, and the records' own terms and those "
    "of the base model still apply."
)


def model_card(group: Group, guarantee: Guarantee) -> str:
    """Return the card of a finetune run's weights; of facts that publish.py let through."""
    finetune = group.finetune
    config: Mapping[str, Any] = {} if finetune is None else finetune.stage.config
    base = base_model(config)
    is_adapter = uses_lora(config)
    header: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": TAGS,
    }
    if base is not None:
        header |= {"base_model": base, "base_model_relation": "adapter" if is_adapter else "finetune"}
    what = "LoRA adapter for" if is_adapter else "Language model fine-tuned from"
    title = f"{what} {base or UNNAMED}"
    about = "Fine-tuned on labelled private text by SafeSynthDP, to sample synthetic text of the same kind."
    if is_from_scratch(config):
        title, about = "Language model trained from random weights", about.replace("Fine-tuned", "Trained")
    data = config.get("data") or {}
    return _card(
        header,
        title=title,
        about=about,
        claims=[claim for claim in guarantee.tuned if claim.artifact == "weights"],
        guarantee=guarantee,
        parts={
            "Intended use": "Sampling labelled synthetic text with the prompt below. It is no assistant, and nothing "
            "it writes is a fact.",
            "Prompt": f"`{_plain(str(data.get('prompt_template') or DEFAULT_TEMPLATE))}`",
            "Method": _method(group, guarantee),
            "Licence": f"That of {_plain(base)} applies to what is built on it. {NO_LICENCE}" if base else NO_LICENCE,
        },
        group=group,
    )


def dataset_card(group: Group, guarantee: Guarantee, sample: Sample) -> str:
    """Return the card of one sample directory; of facts that publish.py let through."""
    labels = _labels(group)
    header: dict[str, Any] = {
        "task_categories": ["text-classification", "text-generation"],
        "size_categories": [_size(sample.num_texts)],
        "tags": TAGS,
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "synthetic.parquet"}]}],
    }
    config: Mapping[str, Any] = {} if group.finetune is None else group.finetune.stage.config
    if (config.get("data") or {}).get("builtin") == "vader":
        header["language"] = ["en"]
    settings = {key: value for key, value in sample.stage.config.items() if key not in ("run", "output_dir")}
    about = (
        "Labelled text written by the untuned base model: no private record was read for it."
        if sample.is_untuned
        else "Labelled text sampled from a model that was fine-tuned on private records by SafeSynthDP. No line of it "
        "was written by a person, and any line may be wrong."
    )
    return _card(
        header,
        title="Synthetic labelled text",
        about=about,
        claims=[claim for claim in guarantee.claims if claim.run_id == sample.stage.run_id],
        guarantee=guarantee,
        parts={
            "Contents": f"{count_text(sample.num_texts)} texts; columns `text`, `label`, `record_id`. Labels: "
            f"{_plain(labels or NOT_STATED)}. Language: "
            f"{'English' if 'language' in header else 'that of the records'}.",
            "Generator": f"{_plain(_generator(config))}; {_plain(value_text(settings))}. {_counts(sample)}",
            "Utility": _utility(group),
            "Limits": "Facts that many records share can appear, and so can text that the base model has seen before. "
            "A text may carry a wrong label. Rare groups fare worse than common ones under differential privacy.",
            "Licence": NO_LICENCE,
        },
        group=group,
    )


def base_model(config: Mapping[str, Any]) -> str | None:
    """Return the hub's name of the base model; None for a local folder, whose name is nobody's business."""
    name = (config.get("model") or {}).get("model_name_or_path")
    if name is None:
        return None
    return HUB_NAMES.get(str(name), str(name) if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)) else None)


def _card(
    header: Mapping[str, Any],
    *,
    title: str,
    about: str,
    claims: Sequence[Claim],
    guarantee: Guarantee,
    parts: Mapping[str, str],
    group: Group,
) -> str:
    rows = [f"| {_plain(fact.name)} | {_plain(fact.value)} |" for fact in statement(group, guarantee)]
    lines = [
        "---",
        yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {_plain(title)}",
        "",
        about,
        "",
        f"**Guarantee.** {_promise(claims, guarantee)}",
        "",
    ]
    for name, text in parts.items():
        lines += [f"## {name}", "", text, ""]
    return "\n".join([*lines, "## Privacy statement", "", "| | |", "|---|---|", *rows, ""])


def _promise(claims: Sequence[Claim], guarantee: Guarantee) -> str:
    """The claim in one sentence, or that there is none."""
    if guarantee.problems or not claims or any(claim.epsilon is None for claim in claims):
        return f"{NO_GUARANTEE[0].upper()}{NO_GUARANTEE[1:]}."
    worst = max(claims, key=lambda claim: claim.epsilon or 0.0)
    if worst.is_untuned:
        return "Epsilon 0: nothing private went into it."
    unit = f"per {guarantee.unit or NOT_STATED}; {ADJACENCY.get(guarantee.adjacency or '', 'neighbours not stated')}"
    seeded = f" {SEEDED[0].upper()}{SEEDED[1:]}." if guarantee.is_seeded else ""
    withheld = " It holds while the weights are withheld." if worst.rule == "min" else ""
    name = ARTIFACTS.get(worst.artifact, worst.artifact)
    return (
        f"{name[0].upper()}{name[1:]}: epsilon {epsilon_text(worst.epsilon)} at delta {value_text(worst.delta)}, "
        f"{unit}.{withheld}{seeded}"
    )


def _generator(config: Mapping[str, Any]) -> str:
    return "a model trained from random weights" if is_from_scratch(config) else base_model(config) or UNNAMED


def _method(group: Group, guarantee: Guarantee) -> str:
    if any(access.kind == "dpsgd" for access in guarantee.accesses):
        return "DP-SGD with Poisson sampling, every record's gradient clipped, noise added once a step; see below."
    return "Trained without clip and noise: no formal guarantee." if group.finetune is not None else NOT_STATED


def _labels(group: Group) -> str | None:
    data = {} if group.finetune is None else group.finetune.stage.manifest.get("data") or {}
    return value_text(data.get("label_set")) if data.get("label_set") else None


def _counts(sample: Sample) -> str:
    counts = sample.stage.manifest.get("counts") or {}
    return f"Of these: {_plain(value_text(dict(counts)))}; none was dropped." if counts else ""


def _utility(group: Group) -> str:
    """Only rows that publish.py let through are left."""
    rows = [row for e in group.evaluations for row in e.metrics or () if row.name == "accuracy" and row.label is None]
    own = next((row for row in rows if row.train_on == "synthetic" and row.value is not None), None)
    if own is None:
        return "Measured on private records, and so not published."
    found = f"{rate_text(own.value)} {interval_text(own.low, own.high)}".strip()
    return (
        f"Accuracy {found} of {_plain(own.model or 'a classifier')} trained on this text, tested on public real text."
    )


def _size(count: int | None) -> str:
    return next((name for limit, name in SIZES if (count or 0) < limit), "n>1T" if count is None else "10M<n<100M")


def _plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is, on one line."""
    safe = html.escape(visible(text), quote=False).replace("\u21b5\n", "<br>").replace("\n", "<br>")
    return re.sub(r"([\\`*_{}\[\]|#~])", r"\\\1", safe)
