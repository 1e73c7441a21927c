"""What the checks of training say of broken trainers, before a step is taken and without statistics.

Here: the start-up check and the ledger on those defects that they can see, and on correct runs, which they must let
pass. Elsewhere: the check itself (training/selfcheck.py), the ledger's entry (privacy/mechanisms.py), the defects
(broken_trainers.py). The start-up check sees clipping, coverage and rows that read one another; the ledger sees what a
run declares. Neither sees noise, a divisor or copies in the data: for those there is the claimed curve alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from safesynthdp.attacks.broken_trainers import (
    BrokenEngine,
    clip_the_average,
    sum_unclipped,
    unfreeze_after_attaching,
)
from safesynthdp.attacks.canary_trainer import EngineOf
from safesynthdp.attacks.selftest_cases import ENGINES, EVERY_STEP
from safesynthdp.errors import SafeSynthError
from safesynthdp.privacy.mechanisms import DPSGDMechanism
from safesynthdp.training.clipping import ClippingEngine
from safesynthdp.training.selfcheck import check_engine

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

_VOCABULARY, _PAD = 41, 0
Attach = Callable[["LlamaForCausalLM", EngineOf], ClippingEngine]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check said of one trainer."""

    id: str
    """P0 or N1 to N12."""
    check: str
    """``start-up check`` or ``ledger``."""
    engine: str | None
    """The engine that was attached; None for the ledger."""
    message: str | None
    """What it refused with; None if it let the run pass."""

    @property
    def is_flagged(self) -> bool:
        """True if the run was refused."""
        return self.message is not None

    @property
    def passed(self) -> bool:
        """True if a broken run was refused, or the correct one was not."""
        return self.is_flagged == (self.id != "P0")

    @property
    def name(self) -> str:
        """For a list of failures."""
        return f"{self.id} ({', '.join(part for part in (self.check, self.engine) if part)})"


def findings() -> list[Finding]:
    """Ask the start-up check about every engine and the ledger about every declaration."""
    return [*_of_start_up(), *_of_ledger()]


def _of_start_up() -> list[Finding]:
    found = list[Finding]()
    with torch.random.fork_rng(devices=[]):
        for identity, attach in _ATTACHED.items():
            for name, engine_of in ENGINES.items():
                message = _refusal(partial(_start, attach, engine_of))
                found.append(Finding(id=identity, check="start-up check", engine=name, message=message))
    return found


def _of_ledger() -> list[Finding]:
    entry = EVERY_STEP.world.mechanism.to_entry()
    declared: dict[str, dict[str, Any]] = {
        "P0": entry,
        "N1": entry | {"noise_multiplier": 0.0},
        "N9": entry | {"sampling": "fixed_batches"},
    }
    return [
        Finding(
            id=identity,
            check="ledger",
            engine=None,
            message=_refusal(partial(DPSGDMechanism.from_entry, values)),
        )
        for identity, values in declared.items()
    ]


def _refusal(attempt: Callable[[], object]) -> str | None:
    """Return the message of a refusal; None if there was none."""
    try:
        attempt()
    except SafeSynthError as error:
        return str(error)
    return None


def _start(attach: Attach, engine_of: EngineOf) -> None:
    """Run the start-up check on a small untrained Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=_VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=False,
        )
    ).train()
    engine = attach(model, engine_of)
    try:
        check_engine(model, engine, vocab_size=_VOCABULARY, pad_token_id=_PAD)
    finally:
        engine.close()


def _as_shipped(model: "LlamaForCausalLM", engine_of: EngineOf) -> ClippingEngine:
    return engine_of(model)


def _no_clip(model: "LlamaForCausalLM", engine_of: EngineOf) -> ClippingEngine:
    return BrokenEngine(engine_of(model), sum_unclipped)


def _batch_clip(model: "LlamaForCausalLM", engine_of: EngineOf) -> ClippingEngine:
    return BrokenEngine(engine_of(model), clip_the_average)


def _rows_read_one_another(model: "LlamaForCausalLM", engine_of: EngineOf) -> ClippingEngine:
    def mix(layer: nn.Module, inputs: Any, embedded_BTd: Tensor) -> Tensor:
        return embedded_BTd + embedded_BTd.mean(dim=0, keepdim=True)

    model.get_input_embeddings().register_forward_hook(mix)
    return engine_of(model)


def _uncovered_parameters(model: "LlamaForCausalLM", engine_of: EngineOf) -> ClippingEngine:
    engine, _ = unfreeze_after_attaching(model.get_input_embeddings(), lambda: (engine_of(model), {}))
    return engine


_ATTACHED: dict[str, Attach] = {
    "P0": _as_shipped,
    "N2": _no_clip,
    "N6": _batch_clip,
    "N10": _rows_read_one_another,
    "N12": _uncovered_parameters,
}
