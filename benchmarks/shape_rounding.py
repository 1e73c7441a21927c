"""How far the shape of a micro-batch, and what stands in its other rows, moves one record's gradient.

python benchmarks/shape_rounding.py     # SmolLM2-135M with LoRA, float32, faster products, bfloat16; a minute or two

The gradient of one sentence, alone against in batches of 3, 5 and 7 others (other shapes), and in one shape with other
sentences and at other rows. 0 means the same bits. Writes benchmarks/results/DATE-shape-rounding-DEVICE.md.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safesynthdp.model_config import LoraConfig, ModelConfig
from safesynthdp.models import load_base_model, load_tokenizer, make_trainable, quiet
from safesynthdp.training.bookkeeping import BookkeepingEngine
from safesynthdp.training.clipping import trainable_parameters
from safesynthdp.training.examples import Example, collate
from safesynthdp.training.loss import record_losses
from safesynthdp.training.micro_batching import Shape
from safesynthdp.training.precision import products

RESULTS = Path(__file__).parent / "results"
SENTENCES = (
    "The acting is wooden and the plot never gets going.",
    "I love this camera, it takes sharp pictures even at night.",
    "Prime Minister visits flood victims.",
    "a b c d",
    "This is a considerably longer piece of text that goes on about politics and the economy for a while.",
    "ok",
    "The battery lasts two days which is far more than I expected from such a small phone.",
)
SHAPES = ((4, 32), (8, 48), (16, 48))


class _Model:
    """A model with adapters that are not at zero, and the gradient of one row of a batch."""

    def __init__(self, dtype: str, device: str) -> None:
        config = ModelConfig(model_name_or_path="smollm2-135m", dtype=dtype)  # type: ignore[arg-type]
        lora = LoraConfig(lora_r=4, lora_dropout=0.0)
        self.model: Any = make_trainable(load_base_model(config, seed=0), lora, seed=0, use_lora=True).train()
        generator = torch.Generator().manual_seed(1)
        for name, parameter in trainable_parameters(self.model).items():
            if "lora_B" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02
        self.model.to(device)
        self.engine, self.device = BookkeepingEngine(self.model), device
        tokenizer = load_tokenizer(config)
        self.records = [
            Example(input_ids=tuple(tokenizer(f"Write: {text}")["input_ids"]), num_prompt_tokens=3, is_truncated=False)
            for text in SENTENCES
        ]

    def gradient(self, rows: Sequence[int], *, of: int, shape: tuple[int, int] | None = None) -> Tensor:
        """Return the gradient of row ``of`` in a batch of these sentences, flat."""
        fixed = None if shape is None else Shape(rows=shape[0], width=shape[1], first_target=1)
        records = [self.records[row] for row in rows]
        batch = collate(records, pad_token_id=0, device=self.device, shape=fixed)
        sums = {name: torch.zeros_like(p) for name, p in trainable_parameters(self.model).items()}
        with self.engine.tape(rows=batch.rows) as tape:
            record_losses(self.model, batch).sum().backward()  # type: ignore[no-untyped-call]
            tape.norms()
            tape.add_into(sums, torch.eye(batch.rows, device=self.device)[of])
        return torch.cat([total.flatten() for total in sums.values()]).double().cpu()


def main() -> None:
    """Measure both precisions and write a dated table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    quiet()
    lines = [
        f"# Rounding by shape, SmolLM2-135M with LoRA, {device}",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__}, {torch.get_num_threads()} threads. Distance of one "
        "record's gradient from itself, relative.",
        "",
        "| base | float32_matmul_precision | other shapes (largest) | one shape, other texts and rows (largest) |",
        "|---|---|---|---|",
    ]
    for dtype, precision in (("float32", "highest"), ("float32", "medium"), ("bfloat16", "highest")):
        model = _Model(dtype, device)
        with products(precision):
            alone = model.gradient([0], of=0)
            others = max(_distance(model.gradient(range(size), of=0), alone) for size in (3, 5, 7))
            within = max(_within_shape(model, shape) for shape in SHAPES)
        lines.append(f"| {dtype} | {precision} | {others:.1e} | {within:.1e} |")
    text = "\n".join(lines) + "\n"
    (RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-shape-rounding-{device}.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def _within_shape(model: _Model, shape: tuple[int, int]) -> float:
    """Return the largest distance over other companions and other rows."""
    first = model.gradient([0, 1, 2], of=0, shape=shape)
    arrangements = (([0, 6, 5, 3], 0), ([6, 5, 3, 0], 3), ([6, 0, 3, 1], 1), ([0], 0))
    return max(_distance(model.gradient(rows, of=of, shape=shape), first) for rows, of in arrangements)


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


if __name__ == "__main__":
    main()
