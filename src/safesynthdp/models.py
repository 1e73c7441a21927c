"""Language models, tokenizers and prompts: what is loaded, what is trainable, what is refused.

Here: any Hugging Face causal LM by name or path, the builtin ``smollm2-135m``, tiny models from scratch, LoRA through
peft. Elsewhere: the clipping of what is trainable (training/), the decoding (generation/). A tokenizer is never
trained on private text: it comes with the model, or is the byte tokenizer.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safesynthdp.clippable import refuse_model, refuse_trainables
from safesynthdp.errors import SafeSynthError, UnsupportedLayer, UserError
from safesynthdp.model_config import BUILTIN_MODELS, FromScratchConfig, LoraConfig, ModelConfig
from safesynthdp.runs import CHECKPOINT, LEDGER, MANIFEST, RunDirectory

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_TEMPLATE = "{label}:\n"


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """The public words before every text; ``{label}`` is replaced by the label."""

    text: str = DEFAULT_TEMPLATE
    """Holds ``{label}`` once."""
    descriptions: Mapping[str, str] = field(default_factory=dict)
    """Public words that stand for a label in the prompt; a label that is not here stands for itself."""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "PromptTemplate":
        """Return the template of a ``data`` section."""
        return cls(text=data["prompt_template"] or DEFAULT_TEMPLATE, descriptions=data.get("label_descriptions") or {})

    def words(self, label: str) -> str:
        """Return what a label is called in a prompt."""
        return self.descriptions.get(label, label)

    def prompt(self, label: str) -> str:
        """Return the prompt of a label."""
        return self.text.replace("{label}", self.words(label))


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in eval mode with everything needed to score or to sample."""

    model: "nn.Module"
    tokenizer: "PreTrainedTokenizerBase"
    template: PromptTemplate
    max_length: int
    eos_token_id: int
    label_set: tuple[str, ...] = field(default=())


def logits_width(model: "nn.Module") -> int:
    """Return V, the number of logits a position; at least the tokenizer's vocabulary."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]  # a transformers or peft model
    return int(head.weight.shape[0])


def quiet() -> None:
    """Keep transformers' own bars and notices off the screen; errors still come through."""
    from transformers.utils import logging

    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft asks in an old way
    warnings.filterwarnings("ignore", message="`gradient_checkpointing_enable` is deprecated")  # 5.0 has no other name
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def token_id(value: Any) -> int:
    """Return a special token's id as a number; transformers types it as almost anything."""
    return int(value)


def load_tokenizer(config: ModelConfig) -> "PreTrainedTokenizerBase":
    """Return the model's own tokenizer, or the byte tokenizer (259 ids) for a model from scratch.

    Raises:
        UserError: If the model has no tokenizer or no end-of-text token.
    """
    from transformers import AutoTokenizer, ByT5Tokenizer

    if config.from_scratch is not None:
        return ByT5Tokenizer(extra_ids=0)
    source = str(_source(config))
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, revision=config.revision)
    except (OSError, ValueError, ImportError) as error:
        raise _unreachable(config, error) from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model.model_name_or_path={config.model_name_or_path}: its tokenizer has no end-of-text token, so no "
            "text could end; choose another model"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def base_model_config(config: ModelConfig) -> "PreTrainedConfig":
    """Return the shape of the model: enough to build it without its weights."""
    from transformers import AutoConfig, LlamaConfig

    if config.from_scratch is None:
        extra = {} if config.attn_implementation is None else {"attn_implementation": config.attn_implementation}
        try:
            found: PreTrainedConfig = AutoConfig.from_pretrained(
                str(_source(config)), revision=config.revision, **extra
            )
        except (OSError, ValueError, ImportError) as error:
            raise _unreachable(config, error) from error
        return found
    shape = config.from_scratch
    return LlamaConfig(
        vocab_size=259,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_attention_heads,
        intermediate_size=shape.intermediate_size or 4 * shape.hidden_size,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        tie_word_embeddings=False,
    )


def load_base_model(config: ModelConfig, *, seed: int) -> "PreTrainedModel":
    """Return the model before any training; ``seed`` sets the random weights of one from scratch."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    if config.from_scratch is not None:
        shape = base_model_config(config)
        assert isinstance(shape, LlamaConfig)
        torch.manual_seed(seed)
        return LlamaForCausalLM(shape)
    extra: dict[str, Any] = {}
    if config.attn_implementation is not None:
        extra["attn_implementation"] = config.attn_implementation
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            str(_source(config)), revision=config.revision, dtype=getattr(torch, config.dtype), **extra
        )
    except (OSError, ValueError, ImportError) as error:
        raise _unreachable(config, error) from error
    return model


def make_trainable(model: "PreTrainedModel", lora: LoraConfig, *, seed: int, use_lora: bool) -> "nn.Module":
    """Return the model with what is trained in float32 and everything else frozen.

    Raises:
        UnsupportedLayer: If something trainable has no exact per-record gradient; the message names it.
    """
    import torch

    refuse_model(model, use_lora=use_lora)
    if not use_lora:
        model.requires_grad_(True)
        trained: nn.Module = model.float()  # type: ignore[no-untyped-call]
        for module in trained.modules():
            if isinstance(module, torch.nn.Embedding):
                module.padding_idx = None  # autograd would drop the pad id's gradient, also where it is text
    else:
        torch.manual_seed(seed)
        trained = _with_adapters(model, lora)
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    refuse_trainables(trained)
    return trained


def wants_lora(model: ModelConfig, lora: LoraConfig) -> bool:
    """Return whether adapters are used; the default follows from the kind of model."""
    return lora.enabled if lora.enabled is not None else model.from_scratch is None


def load_run_model(run: RunDirectory, *, untuned: bool = False) -> LoadedModel:
    """Return the model that a finetune run released, or the one it started from.

    Args:
        run: A finetune run with a checkpoint.
        untuned: Leave out what training changed: the epsilon = 0 reference.

    Raises:
        UserError: If the run has no checkpoint yet.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    quiet()
    config, values = _model_config(run), run.config()
    tokenizer = load_tokenizer(config)
    folder = run.path / CHECKPOINT
    if not untuned and not any(folder.glob("*.safetensors")):
        raise UserError(f"{run.path} has no {CHECKPOINT}/*.safetensors yet; finish it with the command that began it")
    if untuned or (folder / "adapter_config.json").is_file():
        model: nn.Module = load_base_model(config, seed=values["train"]["seed"])
        if not untuned:
            model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return LoadedModel(
        model=model.eval().to(device),  # pyright: ignore[reportArgumentType]  # transformers wraps the signature away
        tokenizer=tokenizer,
        template=PromptTemplate.of(values["data"]),
        max_length=values["data"]["max_length"],
        eos_token_id=token_id(tokenizer.eos_token_id),
        label_set=tuple(run.manifest["data"]["label_set"]),
    )


def _with_adapters(model: "PreTrainedModel", lora: LoraConfig) -> "nn.Module":
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    wanted = PeftLoraConfig(
        task_type="CAUSAL_LM",
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,  # type: ignore[arg-type]  # peft scales by any number
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
        use_rslora=lora.use_rslora,
        bias="none",
    )
    try:
        return get_peft_model(model, wanted)
    except ValueError as error:
        raise UnsupportedLayer(f"lora.target_modules={lora.target_modules}: {' '.join(str(error).split())}") from error


def _model_config(run: RunDirectory) -> ModelConfig:
    values = dict(run.config()["model"])
    shape = values.pop("from_scratch", None)
    return ModelConfig(**values, from_scratch=FromScratchConfig(**shape) if shape else None)


def _source(config: ModelConfig) -> Path | str:
    """Return where transformers finds the model; a builtin is fetched and converted on first use."""
    name = str(config.model_name_or_path)
    if name in BUILTIN_MODELS:
        from safesynthdp.builtin_models import builtin_model_path

        return builtin_model_path(name)
    _refuse_run_weights(name)
    return name


def _refuse_run_weights(name: str) -> None:
    """Weights of a run are no public model: what they cost would be missing from the next ledger."""
    folder = Path(name).resolve()
    for place in (folder, folder.parent):
        if (place / MANIFEST).is_file() and (place / LEDGER).is_file():
            raise UserError(
                f"model.model_name_or_path={name} holds weights of the run {place}, whose cost would be left out of a "
                "new ledger; give the model that run began with, or a copy of the folder if its records were public"
            )


def _unreachable(config: ModelConfig, error: Exception) -> SafeSynthError:
    name = config.model_name_or_path
    if Path(str(name)).exists():
        return UserError(
            f"model.model_name_or_path={name} holds no causal LM that transformers can load ({type(error).__name__})"
        )
    return UserError(
        f"model.model_name_or_path={name} is neither a local folder, a builtin ({', '.join(BUILTIN_MODELS)}) nor a "
        f"model the hub gave us ({type(error).__name__}); check the name and the network"
    )
