"""What cannot be clipped exactly is refused by name, before any record is read by a model.

Here: refusals that the architecture itself decides. Elsewhere: layers without a rule and engines that cannot (training/
bookkeeping.py, training/opacus_engines.py), the check on the real model with made-up records (training/selfcheck.py),
which has the last word. Measured, architecture by architecture: docs/howto/architectures.md.
"""

from typing import TYPE_CHECKING

from safesynthdp.errors import UnsupportedLayer

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_FULL_FINETUNE_REFUSED = {
    "opt": "its feed-forward layers flatten records into one another, and so must stay frozen",
}
_NOT_WITH_OPACUS = {
    "falcon": "it changes a view in place, which Opacus' hooks cannot follow",
}
"""Trained in full, exact in bookkeeping alone."""
_ATTENTION_ONLY = frozenset({"mixtral", "qwen3_moe", "olmoe", "llama4_text"})
"""Their routing drops no token, so frozen experts let no record reach another: adapters on attention are exact."""
_EXPERTS = ("moe", "moeblock", "experts", "router")
_ADAPTERS = "use LoRA with lora.target_modules=[q_proj, k_proj, v_proj]"


def refuse_model(model: "PreTrainedModel", *, use_lora: bool) -> None:
    """Refuse, by name, an architecture whose records reach into one another."""
    kind = str(model.config.model_type)
    if getattr(model, "is_quantized", False):
        raise UnsupportedLayer(f"model ({kind}) is quantised, which has no exact float32 gradient; load it unquantised")
    experts = _experts(model)
    if experts and kind not in _ATTENTION_ONLY:
        raise UnsupportedLayer(f"{experts[0]} routes tokens across records; choose a dense model")
    if experts and not use_lora:
        raise UnsupportedLayer(f"{experts[0]} routes tokens across records; {_ADAPTERS}, or choose a dense model")
    for name, module in model.named_modules():
        if "batchnorm" in type(module).__name__.lower():
            raise UnsupportedLayer(
                f"{name} ({type(module).__name__}) mixes the records of a batch; choose another model"
            )
    if not use_lora and kind in _FULL_FINETUNE_REFUSED:
        reason = _FULL_FINETUNE_REFUSED[kind]
        raise UnsupportedLayer(f"model ({kind}) cannot be trained in full: {reason}; {_ADAPTERS}")


def refuse_trainables(model: "nn.Module") -> None:
    """Refuse trainable parameters that are not float32, and adapters on embeddings, experts and routers."""
    import torch

    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise UnsupportedLayer("lora.target_modules selects no layer; name linear layers of this model")
    experts = tuple(place.split(" ")[0] + "." for place in _experts(model))
    for name, parameter in trainable:
        if "lora_embedding_" in name:
            raise UnsupportedLayer(f"{name} is an adapter on an embedding; leave it out of lora.target_modules")
        if name.startswith(experts):
            raise UnsupportedLayer(f"{name} belongs to experts, which tokens of all records share; {_ADAPTERS}")
        if parameter.dtype != torch.float32:
            raise UnsupportedLayer(f"{name} is {parameter.dtype}; what is trained must be float32")


def refuse_under_opacus(model: "nn.Module", *, engine: str) -> None:
    """Refuse what Opacus' hooks cannot follow; adapters on a frozen base need no hooks there."""
    import torch

    kind = str(getattr(getattr(model, "config", None), "model_type", ""))
    is_full = any(p.requires_grad and "lora_" not in name for name, p in model.named_parameters())
    if is_full and kind in _NOT_WITH_OPACUS:
        raise UnsupportedLayer(
            f"hardware.clipping_engine={engine} cannot train model ({kind}) in full: {_NOT_WITH_OPACUS[kind]}; use "
            "bookkeeping or LoRA"
        )
    for name, module in model.named_modules():
        vectors = dict(module.named_parameters(recurse=False)) if isinstance(module, torch.nn.LayerNorm) else {}
        if "weight" in vectors and "bias" not in vectors and vectors["weight"].requires_grad:
            raise UnsupportedLayer(
                f"hardware.clipping_engine={engine} has no rule for {name} (LayerNorm without a bias); use bookkeeping "
                "or freeze it"
            )


def _experts(model: "nn.Module") -> list[str]:
    """Return 'path (type)' of what routes tokens: modules so named, else all of a model that calls itself MoE."""
    named = [(name, type(module).__name__) for name, module in model.named_modules()]
    found = [f"{name} ({kind})" for name, kind in named if name and kind.lower().endswith(_EXPERTS)]
    return found or [f"{name} ({kind})" for name, kind in named if "moe" in kind.lower()]
