"""Our clipping engine for users of Opacus: one backward pass in place of ``grad_sample``.

Here: the hooks object that stands where Opacus' own does with ``wrap_model=False``, and the ``PrivacyEngine`` that
builds it. Elsewhere: the engine (bookkeeping.py). Loaders, optimizers, noise and accountants are Opacus'. How-to:
docs/howto/opacus.md. Source: Opacus, Yousefpour et al. (2021), arXiv:2109.12298.
"""

from collections.abc import Mapping
from typing import Any

import torch
from opacus import PrivacyEngine
from opacus.grad_sample import AbstractGradSampleHooks
from torch import Tensor, nn
from torch.autograd.variable import Variable

from safesynthdp.errors import ConfigError, UnsupportedLayer
from safesynthdp.training.bookkeeping import BookkeepingEngine, BookkeepingTape
from safesynthdp.training.clipping import trainable_parameters

MODE = "bookkeeping"


class BookkeepingHooks(AbstractGradSampleHooks):  # type: ignore[misc]  # Opacus carries no types
    """Leaves the sum of clipped gradients in ``.grad`` after ``loss.backward()``.

    To be used with ``DPOptimizerFastGradientClipping``, which adds noise to ``.grad`` and never clips again. The clip
    factor is Opacus' own, min(1, C / (norm + 1e-6)), so a step equals one of ``DPOptimizer`` with per-sample
    gradients up to rounding. Rows are found by the first tensor that the model is called with; a batch without rows
    (an empty Poisson draw) is passed through and leaves zeros. Training and eval mode are clipped alike.

    Guarantee:
        That of ``BookkeepingEngine``, if the loss is a mean (``loss_reduction="mean"``) or a sum over *rows* of
        terms that depend on one row each. A mean over the tokens of a batch is not. No backward pass leaves a gradient
        that was not clipped: a trainable layer that is called past the model is refused, and so is a call without a
        tensor to count rows by.

    Args:
        m: The model; it stays as it is and is called directly.
        batch_first: Must be True.
        loss_reduction: How the loss joins the rows: 'mean' or 'sum'.
        strict: As in Opacus; a layer without a rule is refused either way.
        max_grad_norm: C.

    Raises:
        UnsupportedLayer: If a trainable layer has no rule, was not reached in a backward pass, or is called past the
            model; if the model is called without a tensor.
        ConfigError: If an argument has another value.
    """

    def __init__(
        self,
        m: nn.Module,
        *,
        batch_first: bool = True,
        loss_reduction: str = "mean",
        strict: bool = True,
        max_grad_norm: float = 1.0,
    ) -> None:
        if loss_reduction not in ("mean", "sum"):
            raise ConfigError(f"loss_reduction={loss_reduction} is neither mean nor sum")
        if not batch_first:
            raise ConfigError("batch_first=False is not supported; put the batch in the first dimension")
        if not max_grad_norm > 0:
            raise ConfigError(f"max_grad_norm={max_grad_norm} bounds nothing; give a number above 0")
        super().__init__(m, batch_first=batch_first, loss_reduction=loss_reduction)
        del strict
        self.max_grad_norm = max_grad_norm
        self.trainable = trainable_parameters(m)
        self._engine = BookkeepingEngine(m)
        self._engine.is_plain_outside = False
        self._tape: BookkeepingTape | None = None
        self._earlier: Mapping[str, Tensor | None] | None = None
        self._handle = m.register_forward_pre_hook(self._begin, with_kwargs=True)

    def remove_hooks(self) -> None:
        """Give the model back as it was."""
        self._drop()
        self._handle.remove()
        self._engine.close()

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Open a tape for the batch that is about to go through the model."""
        del module
        self._drop()
        if not torch.is_grad_enabled():
            return
        rows = next((len(x) for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.dim()), None)
        if rows is None:
            raise UnsupportedLayer("the model is called without a tensor, so its rows are not known; pass one directly")
        self._engine.is_plain_outside = rows == 0  # an empty batch has no gradient to clip
        if rows == 0:
            return
        self._tape = self._engine.open_tape(rows=rows)
        self._tape.on_record = self._on_record

    def _on_record(self) -> None:
        """In the backward pass: set earlier gradients aside once, and look again when autograd has finished."""
        if self._earlier is None:
            self._earlier = {name: parameter.grad for name, parameter in self.trainable.items()}
            for parameter in self.trainable.values():
                parameter.grad = None
        Variable._execution_engine.queue_callback(self._finish)

    def _finish(self) -> None:
        """Clip and sum once every layer was reached (a checkpointed block ends a backward pass of its own)."""
        tape, earlier = self._tape, self._earlier
        if tape is None or earlier is None or tape.missing():
            return
        scale = tape.rows if self.loss_reduction == "mean" else 1
        norms_B = tape.norms() * scale
        factors_B = (self.max_grad_norm / (norms_B + 1e-6)).clamp(max=1.0) * scale
        sums = {name: torch.zeros_like(parameter) for name, parameter in self.trainable.items()}
        tape.add_into(sums, factors_B)
        for name, parameter in self.trainable.items():
            before = earlier[name]
            parameter.grad = sums[name] if before is None else before + sums[name]
        self._drop()

    def _drop(self) -> None:
        """Close the tape.

        Raises:
            UnsupportedLayer: If a backward pass began on it and did not reach every trainable.
        """
        tape, earlier = self._tape, self._earlier
        self._tape, self._earlier = None, None
        self._engine.close_tape()
        if tape is not None and earlier is not None and tape.missing():
            raise UnsupportedLayer(f"{tape.missing()} is trainable but no record reached it; freeze it")


class BookkeepingPrivacyEngine(PrivacyEngine):  # type: ignore[misc]
    """Opacus' engine with one more ``grad_sample_mode``: ``make_private(grad_sample_mode="bookkeeping", ...)``.

    Returns what Opacus returns with ``wrap_model=False``: (hooks, optimizer, data_loader).
    """

    def _prepare_model(self, module: nn.Module, *, grad_sample_mode: str = "hooks", **kwargs: Any) -> Any:
        if grad_sample_mode != MODE:
            return super()._prepare_model(module, grad_sample_mode=grad_sample_mode, **kwargs)
        if kwargs.pop("wrap_model", True):
            raise ConfigError("wrap_model=True: bookkeeping leaves the model as it is; give wrap_model=False")
        self.validate(module=module, optimizer=None, data_loader=None)
        return BookkeepingHooks(module, **kwargs)

    def _prepare_optimizer(self, *, grad_sample_mode: str = "hooks", **kwargs: Any) -> Any:
        mode = "ghost" if grad_sample_mode == MODE else grad_sample_mode  # the optimizer that never clips again
        return super()._prepare_optimizer(grad_sample_mode=mode, **kwargs)
