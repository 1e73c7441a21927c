"""What one process needs before the first step: model, engine and examples, checked on this very model.

Here: loading, sharing out and checking, before anything private is spent. Elsewhere: what comes after (session.py), the
checks themselves (selfcheck.py, selfcheck_ranks.py), how long the steps will take (estimate.py).
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from safesynthdp.errors import ConfigError, LedgerMismatch
from safesynthdp.models import (
    PromptTemplate,
    load_base_model,
    load_tokenizer,
    make_trainable,
    token_id,
    wants_lora,
)
from safesynthdp.records import Records
from safesynthdp.runs import RunDirectory, code_digest, commit, versions
from safesynthdp.training.bookkeeping import BookkeepingEngine
from safesynthdp.training.clipping import ClippingEngine, trainable_parameters
from safesynthdp.training.config import FinetuneConfig
from safesynthdp.training.engines import Chosen, choose_engine
from safesynthdp.training.examples import Example, encode
from safesynthdp.training.frozen_shards import Sharding, shard_frozen, wanted_sharding
from safesynthdp.training.full_shards import shard_everything, with_shards
from safesynthdp.training.plan import PrivacyPlan
from safesynthdp.training.precision import slow_format
from safesynthdp.training.ranks import Ranks, digest
from safesynthdp.training.selfcheck import check_engine
from safesynthdp.training.selfcheck_ranks import check_ranks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FROZEN_SAMPLE = 4096  # elements of each frozen tensor that are compared: another revision differs in most of them


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What the steps need of this process, checked."""

    model: nn.Module
    engine: ClippingEngine
    tokenizer: "PreTrainedTokenizerBase"
    examples: Sequence[Example]
    pad_token_id: int
    ranks: Ranks
    inputs: str
    """Hash of the weights, the model's settings and the tokens that steps are computed from; private. Of the weights a
    CPU hashes every bit, on rank 0; elsewhere nothing is replayed, and they are left out."""


def prepare(
    config: FinetuneConfig, run: RunDirectory, records: Records, *, plan: PrivacyPlan, ranks: Ranks
) -> Prepared:
    """Load, share out, and check the engine on this very model before anything private is touched."""
    device = ranks.device
    if config.privacy.noise_generator == "device" and device.type == "cpu":
        raise ConfigError("privacy.noise_generator=device: the model is on the CPU, where it is weaker; use keyed")
    with ranks.together(), ranks.first():
        tokenizer = load_tokenizer(config.model)  # fetches and converts a builtin model
    with ranks.together():
        template = PromptTemplate.of(vars(config.data))
        examples = encode(
            records.texts, records.labels, tokenizer=tokenizer, template=template, max_length=config.data.max_length
        )
        use_lora = wants_lora(config.model, config.lora)
        sharding = wanted_sharding(config.hardware.sharding, ranks, use_lora=use_lora)
        dp = plan.mechanism is not None
        model, chosen = _model_and_engine(config, examples, device=device, dp=dp, sharding=sharding)
    engine = chosen.engine
    if warning := slow_format(model):
        run.say(f"warning: {warning}; give --model.dtype float32")
    truncated = sum(example.is_truncated for example in examples)
    if truncated:
        run.say(f"{truncated:,} records are longer than data.max_length={config.data.max_length} tokens and are cut")
    tokens = hashlib.sha256(str([(e.input_ids, e.num_prompt_tokens) for e in examples]).encode()).hexdigest()
    _agree_on_everything(ranks, model, tokens=tokens, engine=engine)
    fingerprint = _base_fingerprint(model, config, use_lora=use_lora)
    if run.manifest.get("model_fingerprint", fingerprint) != fingerprint:
        raise ranks.on_main(
            LedgerMismatch(
                f"resume: model.model_name_or_path={config.model.model_name_or_path} holds other weights than this run "
                "began with; restore them, or start another run in a new output_dir"
            )
        )
    inputs = _inputs(model, tokens=tokens, weights=ranks.is_main and device.type == "cpu")
    ranks = _shard(model, engine, ranks, sharding=sharding, checkpointing=config.hardware.gradient_checkpointing)
    if sharding != "none":
        what = "the frozen base is" if sharding == "frozen_base" else "weights, sums and moments are"
        run.say(f"{what} sharded over {ranks.world_size} processes")
    pad_token_id = token_id(tokenizer.pad_token_id or 0)
    checked = _check(model, engine, ranks=ranks, pad_token_id=pad_token_id, dp=dp)
    parameters = sum(p.numel() for p in trainable_parameters(model).values())
    run.say(f"engine {engine.name} ({chosen.reason}): {checked}; {parameters:,} trainable parameters")
    run.update(
        engine=engine.name,
        engine_reason=chosen.reason,
        num_trainable=parameters,
        num_truncated=truncated,
        model_fingerprint=fingerprint,
        device=str(device),
        is_sharded=ranks.is_sharded,
        sharding=sharding,
    )
    return Prepared(
        model=model,
        engine=engine,
        tokenizer=tokenizer,
        examples=examples,
        pad_token_id=pad_token_id,
        ranks=ranks,
        inputs=inputs,
    )


def _base_fingerprint(model: nn.Module, config: FinetuneConfig, *, use_lora: bool) -> str:
    """Hash a sample of the base model's weights; of one made from scratch the config says all."""
    is_named = config.model.model_name_or_path is not None
    base = {n: p for n, p in model.named_parameters() if is_named and not (use_lora and p.requires_grad)}
    return digest(base, most=FROZEN_SAMPLE)


def _inputs(model: nn.Module, *, tokens: str, weights: bool) -> str:
    """Hash what the sum of a step is computed from."""
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())} if weights else {}
    settings = getattr(getattr(model, "config", None), "to_json_string", str)()
    return hashlib.sha256(f"{tokens} {digest(held)} {settings}".encode()).hexdigest()


def _shard(model: nn.Module, engine: ClippingEngine, ranks: Ranks, *, sharding: Sharding, checkpointing: bool) -> Ranks:
    """Shard the model as asked and return the ranks as they work from here on."""
    if sharding == "none":
        return ranks
    with ranks.together():
        if sharding == "frozen_base":
            shard_frozen(model, ranks, engine=engine.name, checkpointing=checkpointing)
            return dataclasses.replace(ranks, is_sharded=True)
        shards = shard_everything(model, ranks, engine=engine.name, checkpointing=checkpointing)
        assert isinstance(engine, BookkeepingEngine)  # shard_everything refused any other
        engine.shard(shards)
    return with_shards(ranks, shards)


def _check(model: nn.Module, engine: ClippingEngine, *, ranks: Ranks, pad_token_id: int, dp: bool) -> str:
    """Run the start-up checks and return what to say of them."""
    said = "gradients are not clipped"
    vocab_size = vocab_size_of(model)
    with ranks.together():
        if dp:
            check_engine(model, engine, vocab_size=vocab_size, pad_token_id=pad_token_id, ranks=ranks)
            said = "clipped sums agree with single records"
        if ranks.are_several:
            check_ranks(model, engine, ranks=ranks, vocab_size=vocab_size, pad_token_id=pad_token_id)
            said += f", {ranks.world_size} processes with one"
    return said


def _agree_on_everything(ranks: Ranks, model: nn.Module, *, tokens: str, engine: ClippingEngine) -> None:
    """Refuse ranks that would compute different things, and start them all from rank 0's trainables."""
    if not ranks.are_several:
        return
    ranks.agree("the installed code", [versions(), commit(), code_digest()])
    ranks.agree("data: the tokens of the records", tokens)
    ranks.agree("hardware.clipping_engine", engine.name)
    trainable = trainable_parameters(model)
    frozen = {name: p for name, p in model.named_parameters() if name not in trainable}
    ranks.agree("model: the frozen weights", digest(frozen, most=FROZEN_SAMPLE))
    ranks.spread([parameter.data for parameter in trainable.values()])


def _model_and_engine(
    config: FinetuneConfig, examples: Sequence[Example], *, device: torch.device, dp: bool, sharding: Sharding
) -> tuple[nn.Module, Chosen]:
    base = load_base_model(config.model, seed=config.train.seed)
    if sharding != "full":  # else it goes there layer by layer, and only this rank's part stays
        base.to(device)  # type: ignore[arg-type]  # transformers wraps the signature away
    if config.hardware.gradient_checkpointing:
        # Opacus' hooks need the reentrant form, which needs an input that requires a gradient; ours takes either.
        base.gradient_checkpointing_enable({"use_reentrant": True})  # type: ignore[no-untyped-call]
        base.enable_input_require_grads()  # type: ignore[no-untyped-call]
    use_lora = wants_lora(config.model, config.lora)
    model = make_trainable(base, config.lora, seed=config.train.seed, use_lora=use_lora)
    model.train()
    shortest = min((len(example) for example in examples), default=1)
    rows = config.hardware.max_tokens_per_microbatch // shortest
    rows = max(1, min(rows, config.hardware.physical_batch_size or rows, len(examples)))
    most = config.privacy.max_records_per_user
    engine = config.hardware.clipping_engine
    if sharding == "full" and not dp:  # FSDP would average plain gradients
        return model, Chosen(
            engine=BookkeepingEngine(model), reason="privacy.mode=none clips nothing; sums are sharded"
        )
    return model, choose_engine(model, clipping_engine=engine, rows=rows, rows_per_unit=most, dp=dp)


def vocab_size_of(model: nn.Module) -> int:
    """Return the number of rows of the table of token vectors."""
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
