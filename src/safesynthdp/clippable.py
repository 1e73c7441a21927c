"""What cannot be clipped exactly is refused by name, before any record is read by a model.

Here: refusals that the architecture itself decides. Elsewhere: the check on the real model with made-up records
(training/selfcheck.py), which has the last word.
"""

from typing import TYPE_CHECKING

from safesynthdp.errors import UnsupportedLayer

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_REFUSED_TYPES = {
    "opt": "its feed-forward layers flatten records into one another",
    "mixtral": "experts route tokens across records",
}
_FULL_FINETUNE_REFUSED = {
    "gemma": "its embedding holds a buffer",
    "gemma2": "its embedding holds a buffer",
    "gemma3_text": "its embedding holds a buffer",
    "falcon": "it changes a view in place",
    "gpt_neo": "its position ids are shared by the batch",
    "gpt_bigcode": "its position ids are shared by the batch",
    "llama4_text": "it changes a view in place",
}


def refuse_model(model: "PreTrainedModel", *, use_lora: bool) -> None:
    """Refuse, by name, an architecture whose records reach into one another."""
    kind = str(model.config.model_type)
    if getattr(model, "is_quantized", False):
        raise UnsupportedLayer(f"model ({kind}) is quantised, which has no exact float32 gradient; load it unquantised")
    if kind in _REFUSED_TYPES:
        raise UnsupportedLayer(f"model ({kind}) cannot be clipped: {_REFUSED_TYPES[kind]}; choose another model")
    for name, module in model.named_modules():
        lowered = type(module).__name__.lower()
        if "experts" in lowered or "moe" in lowered or lowered.endswith("router"):
            raise UnsupportedLayer(f"{name} ({type(module).__name__}) routes across records; choose a dense model")
        if "batchnorm" in lowered:
            raise UnsupportedLayer(
                f"{name} ({type(module).__name__}) mixes the records of a batch; choose another model"
            )
    if not use_lora and kind in _FULL_FINETUNE_REFUSED:
        raise UnsupportedLayer(f"model ({kind}) cannot be trained in full: {_FULL_FINETUNE_REFUSED[kind]}; use LoRA")


def refuse_trainables(model: "nn.Module") -> None:
    """Refuse trainable parameters that are not float32, and adapters on embeddings."""
    import torch

    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise UnsupportedLayer("lora.target_modules selects no layer; name linear layers of this model")
    for name, parameter in trainable:
        if "lora_embedding_" in name:
            raise UnsupportedLayer(f"{name} is an adapter on an embedding; leave it out of lora.target_modules")
        if parameter.dtype != torch.float32:
            raise UnsupportedLayer(f"{name} is {parameter.dtype}; what is trained must be float32")
