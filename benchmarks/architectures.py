"""Which architectures are clipped exactly, by which engine: measured against a loop over single records.

python benchmarks/architectures.py                            # all, a minute or two on one core; writes the page below
python benchmarks/architectures.py --only llama gemma2        # some, to the screen

Tiny random models of each architecture, float32 on the CPU, four ragged records with masked prompts. A number is the
largest relative error of a norm or of a tensor of the clipped sum. Writes docs/howto/architectures.md.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesynthdp.errors import UnsupportedLayer

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from safesynthdp.training.examples import Example

PAGE = Path(__file__).parents[1] / "docs/howto/architectures.md"
ENGINES = ("bookkeeping", "hooks", "ghost")
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj", "out_proj"]
VOCAB = 61

_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_GPT2_LIKE: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_WIDE_HEADS = _LLAMA_LIKE | {"head_dim": 8}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2_LIKE,
    "llama": _LLAMA_LIKE,
    "smollm3": _LLAMA_LIKE,
    "mistral": _LLAMA_LIKE,
    "qwen2": _LLAMA_LIKE,
    "qwen3": _WIDE_HEADS,
    "phi": _LLAMA_LIKE,
    "phi3": _LLAMA_LIKE,
    "gpt_neox": _LLAMA_LIKE,
    "olmo2": _LLAMA_LIKE,
    "granite": _LLAMA_LIKE,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "cohere": _LLAMA_LIKE | {"use_qk_norm": True},
    "cohere2": _LLAMA_LIKE,
    "stablelm": _LLAMA_LIKE,
    "starcoder2": _LLAMA_LIKE,
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "gemma": _WIDE_HEADS,
    "gemma2": _WIDE_HEADS,
    "gemma3_text": _WIDE_HEADS,
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 64,
    },
    "gpt_bigcode": _GPT2_LIKE,
    "opt": _LLAMA_LIKE | {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "mixtral": _LLAMA_LIKE | {"num_local_experts": 4},
    "qwen3_moe": _WIDE_HEADS | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "olmoe": _LLAMA_LIKE | {"num_experts": 4, "num_experts_per_tok": 2},
    "llama4_text": _WIDE_HEADS | {"num_local_experts": 4, "intermediate_size_mlp": 64},
}
"""``model_type`` and the size of a tiny one."""
LORA_TARGETS: dict[str, list[str]] = {
    "mamba": ["in_proj", "x_proj"],  # peft refuses out_proj, whose weight a fused kernel reads
    **dict.fromkeys(("opt", "mixtral", "qwen3_moe", "olmoe", "llama4_text"), ATTENTION),
}
"""Where 'all-linear' is refused, what is not."""


def main() -> None:
    """Measure and write the page, or say what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(ARCHITECTURES), metavar="model_type")
    wanted = parser.parse_args().only
    text = page(wanted or list(ARCHITECTURES))
    if wanted:
        sys.stdout.write(text)
    else:
        PAGE.write_text(text, encoding="utf-8")


def page(kinds: Sequence[str]) -> str:
    """Return the whole page."""
    from safesynthdp.models import quiet

    quiet()
    refusals: dict[str, int] = {}
    rows = [_row(kind, refusals) for kind in kinds]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "opacus"))
    head = ["| model_type | " + " | ".join(f"{what}: {e}" for what in ("full", "LoRA") for e in ENGINES) + " |"]
    head.append("|" + "---|" * 7)
    notes = [f"{number}. {message}" for message, number in refusals.items()]
    return "\n".join([*_intro(versions), *head, *rows, "", *_after(), *notes, ""])


def _intro(versions: str) -> list[str]:
    return [
        "# Which models can be trained",
        "",
        f"Written by `python benchmarks/architectures.py` on {datetime.now(UTC):%Y-%m-%d} with {versions}:",
        "tiny random models, float32, CPU. A number is the largest relative error, over norms and tensors of the",
        "clipped sum, against a loop over single unpadded records; [n] is a refusal, quoted below. LoRA is",
        "`all-linear` unless it is listed below. `hardware.clipping_engine: auto` takes `bookkeeping` where it has a",
        "number, else `hooks`. Every run repeats this check on its own model before its first step, and refuses to",
        "train if it fails.",
        "",
    ]


def _after() -> list[str]:
    groups: dict[str, list[str]] = {}
    for kind, targets in LORA_TARGETS.items():
        groups.setdefault(", ".join(targets), []).append(kind)
    named = "; ".join(f"{', '.join(kinds)}: {targets}" for targets, kinds in groups.items())
    return [
        f"LoRA measured with other `lora.target_modules`, as `all-linear` is refused there: {named}.",
        "",
        "Refusals:",
        "",
    ]


def _row(kind: str, refusals: dict[str, int]) -> str:
    cells = [_cell(kind, engine, refusals, use_lora=use_lora) for use_lora in (False, True) for engine in ENGINES]
    return f"| {kind} | " + " | ".join(cells) + " |"


def _cell(kind: str, engine: str, refusals: dict[str, int], *, use_lora: bool) -> str:
    try:
        return f"{measure(kind, use_lora=use_lora, clipping_engine=engine)[1]:.0e}"
    except UnsupportedLayer as error:
        return f"[{refusals.setdefault(str(error), len(refusals) + 1)}]"


def measure(
    kind: str, *, use_lora: bool, clipping_engine: str = "auto", target_modules: str | list[str] | None = None
) -> tuple[str, float]:
    """Return the engine's name and its largest relative error against single records, self-check included.

    Raises:
        UnsupportedLayer: If the model, a trainable or the engine refuses, or the start-up check does.
    """
    import torch

    from safesynthdp.training.clipping import trainable_parameters
    from safesynthdp.training.engines import choose_engine
    from safesynthdp.training.selfcheck import check_engine
    from safesynthdp.training.step import clip_units, zero_sums

    model = build(kind, use_lora=use_lora, target_modules=target_modules)
    made = records()
    singles = [_single_gradient(model, example) for example in made]
    norms = torch.stack([_norm(grads) for grads in singles])
    bound = float(norms.median())
    engine = choose_engine(model, clipping_engine=clipping_engine, rows=len(made)).engine
    check_engine(model, engine, vocab_size=VOCAB, pad_token_id=0)
    sums = zero_sums(trainable_parameters(model))
    units = [[example] for example in made]
    _, found = clip_units(model, engine, sums, units, per_sample_max_grad_norm=bound, pad_token_id=0)
    engine.close()
    return engine.name, max(float(((found - norms) / norms).abs().max()), _error(sums, singles, norms, bound))


def build(kind: str, *, use_lora: bool, target_modules: str | list[str] | None = None) -> "nn.Module":
    """Return a tiny model of an architecture as a run would train it, with nothing at its initial zero."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from safesynthdp.model_config import LoraConfig
    from safesynthdp.models import make_trainable

    torch.manual_seed(0)
    special = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(kind, **special, **ARCHITECTURES[kind])
    targets = target_modules or LORA_TARGETS.get(kind) or "all-linear"
    lora = LoraConfig(lora_r=4, target_modules=targets)
    base: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model = make_trainable(base, lora, seed=1, use_lora=use_lora).train()
    for module in model.modules():
        rates = [key for key, value in vars(module).items() if isinstance(value, float) and "drop" in key]
        vars(module).update(dict.fromkeys(rates, 0.0))
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def records() -> "list[Example]":
    """Return four ragged records, the pad id within the text of one."""
    import torch

    from safesynthdp.training.examples import Example

    generator = torch.Generator().manual_seed(0)
    made = [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in (5, 13, 8, 3)]
    made[1][6] = 0
    prompts = (1, 2, 1, 2)
    return [
        Example(input_ids=tuple(ids), num_prompt_tokens=prompt, is_truncated=False)
        for ids, prompt in zip(made, prompts, strict=True)
    ]


def _single_gradient(model: "nn.Module", example: "Example") -> "dict[str, Tensor]":
    import torch

    from safesynthdp.training.clipping import trainable_parameters
    from safesynthdp.training.examples import collate
    from safesynthdp.training.loss import record_losses

    trainable = trainable_parameters(model)
    loss = record_losses(model, collate([example], pad_token_id=0))[0]
    grads = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
    found = zip(trainable.items(), grads, strict=True)
    return {name: torch.zeros_like(p) if grad is None else grad for (name, p), grad in found}


def _norm(grads: "Mapping[str, Tensor]") -> "Tensor":
    import torch

    return torch.stack([grad.square().sum() for grad in grads.values()]).sum().sqrt()


def _error(
    sums: "Mapping[str, Tensor]", singles: "Sequence[Mapping[str, Tensor]]", norms: "Tensor", bound: float
) -> float:
    """Return the largest error of a tensor, relative to it or, where it is all but zero, to 1e-6 of the whole."""
    from safesynthdp.training.clipping import CLIP_MARGIN

    scales = [min(1.0, bound * (1 - CLIP_MARGIN) / float(norm)) for norm in norms]
    wanted: dict[str, Any] = {
        name: sum(grads[name] * scale for grads, scale in zip(singles, scales, strict=True)) for name in sums
    }
    whole = float(_norm(wanted))
    return max(
        float((sums[name] - value).norm()) / max(float(value.norm()), 1e-6 * whole, math.ulp(0))
        for name, value in wanted.items()
    )


if __name__ == "__main__":
    main()
