"""Before the first step: is what the engine adds up really a sum of clipped per-record gradients?

Here: three made-up ragged records through the real model, wrapper, dtype, device and engine, against autograd on each
record alone. No private record is touched and nothing is spent. Elsewhere: static refusals by name (clippable.py), the
same with an explanation on screen (``safesynthdp selftest engine``), several processes (selfcheck_ranks.py).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from safesynthdp.errors import UnsupportedLayer
from safesynthdp.training.clipping import ClippingEngine, NonFiniteRows, trainable_parameters
from safesynthdp.training.examples import Example, collate
from safesynthdp.training.full_shards import trained_here
from safesynthdp.training.loss import record_losses
from safesynthdp.training.precision import products, rounds_by_shape
from safesynthdp.training.ranks import Ranks
from safesynthdp.training.selfcheck_records import as_if_trained, lengths_of, made_up_records, rank_0_alone_gives
from safesynthdp.training.step import clip_units, zero_sums

FLOAT32_TOLERANCE = 1e-3
BFLOAT16_TOLERANCE = 2e-2
BFLOAT16_SHAPES = 0.2
"""A base in bfloat16 rounds each shape of a batch otherwise: percents of a norm (benchmarks/shape_rounding.py), and of
one made-up record in two dozen two thirds (SmolLM2-135M on AMX), so most records decide and no single one."""
_WAY_OUT = "choose another hardware.clipping_engine, freeze it or use LoRA"


def check_engine(
    model: nn.Module, engine: ClippingEngine, *, vocab_size: int, pad_token_id: int, ranks: Ranks | None = None
) -> None:
    """Compare the engine with single records; where the model is sharded in full, all ranks do it together.

    Checked: norms, the clipped sum tensor by tensor, every trainable reached, one record releases at most C, a record
    does not depend on another one or on what pads it, a record that is not finite adds nothing, and nothing is left
    behind. Adapters start at B = 0, where every gradient of A is 0 and a defect would hide: they are filled at random
    for the check and restored after it.

    Raises:
        UnsupportedLayer: Naming the first parameter whose gradient is wrong, and the way out.
    """
    check = _Check(model, engine, pad_token_id, ranks or Ranks())
    with as_if_trained(model, check.trainable):
        made = made_up_records(vocab_size=vocab_size, pad_token_id=pad_token_id)
        singles = check.single_gradients(made)
        norms = [check.norm(grads) for grads in singles]
        bound = statistics.median(norms)
        check.sums_are_right(made, singles, bound)
        check.one_record_stays_within(made[1], norms[1] / 2)
        check.rows_do_not_interact(made, bound)
        check.padding_is_not_read(made, bound)
        check.not_finite_adds_nothing(made, singles, bound)


class _Check:
    """The model, its engine, and what is asked of them."""

    def __init__(self, model: nn.Module, engine: ClippingEngine, pad_token_id: int, ranks: Ranks) -> None:
        self.model, self.engine, self.pad_token_id, self.ranks = model, engine, pad_token_id, ranks
        self.trainable = trained_here(model, ranks)
        self.device = next(iter(self.trainable.values())).device
        self.is_float32 = not rounds_by_shape(model)
        self.tolerance = FLOAT32_TOLERANCE if self.is_float32 else BFLOAT16_TOLERANCE

    def clipped(self, made: Sequence[Example], bound: float) -> tuple[dict[str, Tensor], Tensor]:
        """Return sums and norms of a batch, by the engine."""
        sums = zero_sums(self.trainable)
        with rank_0_alone_gives(self.ranks):
            _, norms = clip_units(
                self.model,
                self.engine,
                sums,
                [[example] for example in made],
                per_sample_max_grad_norm=bound,
                pad_token_id=self.pad_token_id,
                device=self.device,
            )
        return sums, norms

    def single_gradients(self, made: Sequence[Example]) -> list[dict[str, Tensor]]:
        """Return the gradient of each record's loss by plain autograd, outside every tape.

        Each record is alone and unpadded. Where products are rounded by shape it is a row of the batch that the engine
        sees, once batch and single records were found to be one function: exactly, with full products, or, since
        weights in bfloat16 allow no more, for most records as far as rounding goes.
        """
        if self.is_float32:
            return self._alone(made)
        is_exact = all(parameter.element_size() >= 4 for parameter in self.model.parameters())
        with products("highest") if is_exact else nullcontext():
            found, expected = self._among(made), self._alone(made)
        norms, wanted = (torch.tensor([self.norm(grads) for grads in grads_N]) for grads_N in (found, expected))
        agree = (norms - wanted).abs() <= (FLOAT32_TOLERANCE if is_exact else BFLOAT16_SHAPES) * wanted
        if not (bool(agree.all()) if is_exact else 2 * int(agree.sum()) > len(made)):
            raise UnsupportedLayer(f"a record has another gradient in a batch than alone; {_WAY_OUT}")
        return self._among(made) if is_exact else found

    def _alone(self, made: Sequence[Example]) -> list[dict[str, Tensor]]:
        return [self._gradient([example], 0) for example in made]

    def _among(self, made: Sequence[Example]) -> list[dict[str, Tensor]]:
        return [self._gradient(made, row) for row in range(len(made))]

    def _gradient(self, made: Sequence[Example], row: int) -> dict[str, Tensor]:
        """Return the gradient of one row's loss in a batch."""
        self.model.eval()  # without checkpointing, which plain autograd.grad cannot cross
        loss = record_losses(self.model, collate(made, pad_token_id=self.pad_token_id, device=self.device))[row]
        if self.ranks.shards is not None:  # all ranks hold the same record, and FSDP takes the mean
            loss.backward()  # type: ignore[no-untyped-call]
            self.model.train()
            return self.ranks.shards.take_gradients()
        grads = torch.autograd.grad(loss, list(self.trainable.values()), allow_unused=True)
        self.model.train()
        named = zip(self.trainable.items(), grads, strict=True)
        return {name: torch.zeros_like(p) if g is None else g.detach().float() for (name, p), g in named}

    def sums_are_right(self, made: Sequence[Example], singles: Sequence[Mapping[str, Tensor]], bound: float) -> None:
        """Norms and clipped sum equal those of the loop; every trainable is reached; no gradient is left behind."""
        sums, found = self.clipped(made, bound)
        norms = torch.tensor([self.norm(grads) for grads in singles])
        if not torch.allclose(found.float(), norms, rtol=self.tolerance):
            raise UnsupportedLayer(f"{self._worst(sums, singles)}: per-record norms are wrong in a batch; {_WAY_OUT}")
        self._compare(sums, singles, bound)
        left = [name for name, p in trainable_parameters(self.model).items() if p.grad is not None]
        if left:
            raise UnsupportedLayer(f"{left[0]}: the engine left a gradient behind; {_WAY_OUT}")

    def one_record_stays_within(self, example: Example, bound: float) -> None:
        """A single clipped record releases at most C, and not much less."""
        released = self.norm(self.clipped([example], bound)[0])
        if not (1 - 3 * self.tolerance) * bound <= released <= bound:
            raise UnsupportedLayer(f"one record releases {released / bound:.5f} of the clip; {_WAY_OUT}")

    def rows_do_not_interact(self, made: Sequence[Example], bound: float) -> None:
        """Other content in one row leaves the norms of the others alone."""
        turned = Example(
            input_ids=made[0].input_ids[::-1], num_prompt_tokens=made[0].num_prompt_tokens, is_truncated=False
        )
        before, after = self.clipped(made, bound)[1], self.clipped([turned, *made[1:]], bound)[1]
        if not torch.allclose(before[1:], after[1:], rtol=self.tolerance / 100):
            raise UnsupportedLayer(f"the model mixes the records of a batch; {_WAY_OUT}")

    def padding_is_not_read(self, made: Sequence[Example], bound: float) -> None:
        """Another token in the padding leaves all norms alone."""
        before = self.clipped(made, bound)[1]
        self.pad_token_id, kept = made[1].input_ids[-1], self.pad_token_id
        after = self.clipped(made, bound)[1]
        self.pad_token_id = kept
        if not torch.allclose(before, after, rtol=self.tolerance / 100):
            raise UnsupportedLayer(f"the model reads the padding after a record; {_WAY_OUT}")

    def not_finite_adds_nothing(
        self, made: Sequence[Example], singles: Sequence[Mapping[str, Tensor]], bound: float
    ) -> None:
        """A row whose loss is not finite leaves the sum of the others."""
        sums = zero_sums(self.trainable)
        batch = collate(made, pad_token_id=self.pad_token_id, device=self.device)
        poison_B = torch.tensor([math.nan] + [1.0] * (len(made) - 1), device=self.device)
        with rank_0_alone_gives(self.ranks), self.engine.tape(rows=len(made)) as tape:
            losses_B = record_losses(self.model, batch) * poison_B
            try:
                tape.clip_into(sums, losses_B, per_sample_max_grad_norm=bound)
            except NonFiniteRows:  # nothing was added; the caller runs the others again
                sums = self.clipped(made[1:], bound)[0]
        self._compare(sums, singles[1:], bound)

    def norm(self, grads: Mapping[str, Tensor]) -> float:
        """Return the L2 norm over all tensors, and over all ranks' parts of them."""
        return math.hypot(*lengths_of(grads.values(), self.ranks))

    def _compare(self, sums: Mapping[str, Tensor], singles: Sequence[Mapping[str, Tensor]], bound: float) -> None:
        """Compare tensor by tensor; all ranks come to the same verdict."""
        scales = [min(1.0, bound / self.norm(grads)) for grads in singles]
        expected = {
            name: torch.stack([grads[name] * scale for grads, scale in zip(singles, scales, strict=True)]).sum(dim=0)
            for name in sums
        }
        sizes = lengths_of(expected.values(), self.ranks)
        errors = lengths_of([total - expected[name] for name, total in sums.items()], self.ranks)
        rounded = self.tolerance / 100 * math.hypot(*sizes)  # a key's bias may have no gradient but rounding
        for name, size, error in zip(sums, sizes, errors, strict=True):
            if not size:
                raise UnsupportedLayer(
                    f"{name} is trainable but no record reaches it; freeze it or change lora.target_modules"
                )
            allowed = 3 * self.tolerance * size  # the clip's own margin is 1e-3
            if not error < allowed + rounded:
                raise UnsupportedLayer(f"{name}: the clipped sum is off by {error:.1e}; {_WAY_OUT}")

    def _worst(self, sums: Mapping[str, Tensor], singles: Sequence[Mapping[str, Tensor]]) -> str:
        """Name the parameter whose sum is furthest from the loop's, for the error message."""

        def distance(name: str) -> float:
            plain = torch.stack([grads[name] for grads in singles]).sum(dim=0)
            unit = sums[name] / sums[name].norm().clamp(min=1e-12) - plain / plain.norm().clamp(min=1e-12)
            return float(unit.norm())

        return max(sums, key=distance)
