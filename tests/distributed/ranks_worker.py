"""What each of the gloo processes does for test_ranks.py; facts go to FOLDER/rank-R.json.

python tests/distributed/ranks_worker.py FOLDER [short], with WORLD_SIZE, MASTER_ADDR and MASTER_PORT set, imports once
and forks as many. Layouts of 1, 2 and 3 ranks are groups of the first so many; everybody takes part in making them.
"short" takes the largest layout alone, and only sums and noise.
"""

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from safesynthdp.errors import ConfigError, ReportedElsewhere, SafeSynthError
from safesynthdp.model_config import LoraConfig
from safesynthdp.models import make_trainable
from safesynthdp.privacy.mechanisms import DPSGDMechanism
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.training import ranks as ranks_module
from safesynthdp.training.bookkeeping import BookkeepingEngine
from safesynthdp.training.clipping import trainable_parameters
from safesynthdp.training.config import HardwareConfig
from safesynthdp.training.examples import Example
from safesynthdp.training.frozen_shards import shard_frozen
from safesynthdp.training.full_shards import shard_everything, trained_here, with_shards
from safesynthdp.training.launching import start_ranks
from safesynthdp.training.loop import Job, _noise_once
from safesynthdp.training.ranks import Ranks, digest
from safesynthdp.training.selfcheck import check_engine
from safesynthdp.training.selfcheck_ranks import check_ranks
from safesynthdp.training.state import state_tensors
from safesynthdp.training.step import StepFacts, set_gradients, sum_clipped_gradients, zero_sums
from safesynthdp.training.token_statistics import TokenStatistics, token_statistics

VOCAB, CLIP, SIGMA = 41, 0.5, 1.25
DRAWS = {"empty": 0, "one record": 1, "fewer than ranks": 2, "many": 17}
Facts = dict[str, Any]


def main(folder: Path, *, is_short: bool) -> None:
    """Run every check in every layout this rank belongs to."""
    whole = start_ranks(num_processes=int(os.environ["WORLD_SIZE"]))
    found: Facts = {"rank": whole.rank, "world_size": whole.world_size}
    checks = (sums, noise) if is_short else (sums, noise, talk, failures, scores, self_check, shards, full_shards)
    for size in range(whole.world_size if is_short else 1, whole.world_size + 1):
        group = dist.new_group(list(range(size)))
        if whole.rank < size:
            layout = Ranks(rank=whole.rank, world_size=size, group=group, control=group)
            found[str(size)] = {check.__name__: check(layout) for check in checks}
        dist.barrier()
    (folder / f"rank-{whole.rank}.json").write_text(json.dumps(found))


def fork(folder: Path, *, is_short: bool) -> int:
    """Run ``main`` in WORLD_SIZE forks of this process, made before torch has threads; return how many failed."""
    children = list[int]()
    for rank in range(int(os.environ["WORLD_SIZE"])):
        child = os.fork()
        if child:
            children.append(child)
            continue
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        try:
            main(folder, is_short=is_short)
        except Exception:  # noqa: BLE001 (the outermost frame of a process)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


def sums(layout: Ranks) -> Facts:
    """Largest difference from one process, relative to the largest entry, for draws and cuts of all kinds."""
    found: Facts = {}
    for dtype in (torch.float64, torch.float32):
        model = tiny().to(dtype)
        engine = BookkeepingEngine(model)
        for name, size in DRAWS.items():
            for budget in (16, 64, 4096):
                alone, facts = total(model, engine, records(size), budget, Ranks(), dtype)
                together, same = total(model, engine, records(size), budget, layout, dtype)
                largest = max(float(value.abs().max()) for value in alone.values()) or 1.0
                error = max(float((together[k] - alone[k]).abs().max()) for k in alone) / largest
                found[f"{dtype}, {name}, {budget}"] = {"error": error, "facts": close(facts, same), "largest": largest}
                layout.agree("the sums", digest(together))
    return found


def noise(layout: Ranks) -> Facts:
    """Noise on a sum of zeros, over steps, for both generators."""
    found: Facts = {}
    for generator in ("keyed", "device"):
        drawn = list[Tensor]()
        for step in range(2):
            held = {"a": torch.zeros(150, 100), "b": torch.zeros(5000)}
            layout.add_up(held.values())
            _noise_once(job_of(layout, generator), held, step=step, keys=StepKeys.from_unsafe_seed(1))
            layout.agree("the noise", digest(held))
            drawn.append(torch.cat([value.flatten() for value in held.values()]).double())
        flat = torch.stack(drawn)
        found[generator] = {
            "std": float(flat.std()),
            "correlation_of_steps": float(torch.corrcoef(flat)[0, 1]),
            "correlation_of_tensors": float(torch.corrcoef(torch.stack([flat[0, :5000], flat[0, -5000:]]))[0, 1]),
            "digest": digest({"drawn": flat}),
        }
    return found


def talk(layout: Ranks) -> Facts:
    """Everything that is sent, with buckets smaller than the tensors."""
    usual, ranks_module.BUCKET_BYTES = ranks_module.BUCKET_BYTES, 64
    base = layout.rank + 1
    tensors = [torch.full((7,), base), torch.full((3, 5), float(base)), torch.full((4, 9), float(base)).t()]
    tensors.append(torch.full((3,), float(base), dtype=torch.float64))
    layout.add_up(tensors)
    added = [one_value(value) for value in tensors]
    sent = torch.full((6, 6), float(base)).t()
    layout.spread([sent, torch.empty(0)])
    ranks_module.BUCKET_BYTES = usual
    return {
        "added": added,
        "spread": one_value(sent),
        "total": layout.total([base, 0.5]),
        "share": layout.share({"of": layout.rank, "text": "\u00e9" * 300}),
        "bytes": [len(layout.share_bytes(bytes(size) if layout.is_main else b"")) for size in (0, 1, 5000)],
        "gather": layout.gather({"rank": layout.rank, "long": "x" * (layout.rank * 100)})
        == [{"rank": rank, "long": "x" * (rank * 100)} for rank in range(layout.world_size)],
    }


def failures(layout: Ranks) -> Facts:
    """What a rank raises when one fails, and that all are in step again afterwards."""
    last = layout.world_size - 1

    def refuse() -> None:
        with layout.together(), layout.first():
            if layout.rank == last:
                raise ConfigError("train.x=1 is wrong here")

    def crash() -> None:
        with layout.together():
            if layout.rank == last:
                raise ZeroDivisionError("private text")

    def disagree() -> None:
        layout.agree("the colour", layout.rank)

    found = {check.__name__: raised(check) for check in (refuse, crash, disagree)}
    return found | {"in_step": layout.total([1.0])}


def raised(body: Callable[[], None]) -> list[Any]:
    """Return kind, exit code and message of what a check raises here."""
    try:
        body()
    except (SafeSynthError, ZeroDivisionError) as error:
        code = getattr(error, "exit_code", None)
        return [type(error).__name__, code, "" if isinstance(error, ReportedElsewhere) else str(error)]
    return []


def scores(layout: Ranks) -> Facts:
    """Scores of ragged records, by these ranks and alone."""
    model, examples = tiny(), [example for (example,) in records(13)]
    alone = token_statistics(model, examples, max_tokens_per_microbatch=40)
    together = token_statistics(model, examples, max_tokens_per_microbatch=40, ranks=layout)
    none = token_statistics(model, [], ranks=layout)
    return {
        "same": len(together) == 13 and all(same(a, b) for a, b in zip(alone, together, strict=True)),
        "none": none == [],
    }


def same(first: TokenStatistics, second: TokenStatistics) -> bool:
    """Are all four columns the same bits?"""
    return all(np.array_equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(TokenStatistics))


def self_check(layout: Ranks) -> Facts:
    """What the start-up check says of good ranks, and of ranks whose sums are averaged."""
    model = tiny()
    engine = BookkeepingEngine(model)

    def compare() -> None:
        check_ranks(model, engine, ranks=layout, vocab_size=VOCAB, pad_token_id=0)

    good, before = raised(compare), digest(trainable_parameters(model))
    unbroken = Ranks.add_up

    def averaged(self: Ranks, tensors: Iterable[Tensor]) -> None:
        held = list(tensors)
        unbroken(self, held)
        for tensor in held:
            tensor /= self.world_size

    with patch.object(Ranks, "add_up", averaged):
        bad = raised(compare)
    return {"good": good, "bad": bad, "restored": before == digest(trainable_parameters(model))}


def shards(layout: Ranks) -> Facts:
    """Adapters on a sharded base against adapters on a whole one, for draws that leave ranks without work too."""
    if not layout.are_several:
        return {}
    whole, sharded = (adapted().double() for _ in range(2))
    engines = BookkeepingEngine(whole), BookkeepingEngine(sharded)
    shard_frozen(sharded, layout, engine="bookkeeping", checkpointing=False)
    held = replace(layout, is_sharded=True)
    found: Facts = {}
    for name, size in DRAWS.items():
        alone, facts = total(whole, engines[0], records(size), 64, Ranks(), torch.float64)
        together, same = total(sharded, engines[1], records(size), 64, held, torch.float64)
        found[name] = {
            "error": max(float((together[k] - alone[k]).abs().max()) for k in alone),
            "largest": max(float(value.abs().max()) for value in alone.values()),
            "facts": close(facts, same),
        }
    here = sum(p.to_local().numel() for p in sharded.parameters() if isinstance(p, DTensor))
    everywhere = sum(p.numel() for p in sharded.parameters() if isinstance(p, DTensor))
    return {"draws": found, "share": here / everywhere}


def full_shards(layout: Ranks) -> Facts:
    """Full fine-tuning on sharded weights against one process: sums, noise, weights after steps, what is refused."""
    if layout.world_size not in (2, 3):
        return {}
    found: Facts = {"checked": {}, "steps": {}, "noise": {}}
    for is_tied in (False, True):
        for dtype in (torch.float64, torch.float32):
            case = f"{'tied' if is_tied else 'untied'}, {dtype}"
            found[case] = {}
            whole, sharded = tiny(is_tied=is_tied).to(dtype), tiny(is_tied=is_tied).to(dtype)
            engines = BookkeepingEngine(whole), BookkeepingEngine(sharded)
            held = sharded_in_full(sharded, engines[1], layout)
            assert held.shards is not None
            for name, size in DRAWS.items():
                alone, facts = total(whole, engines[0], records(size), 64, Ranks(), dtype)
                parts, same = total(sharded, engines[1], records(size), 64, held, dtype)
                error = max(difference(held.shards.places[k].cut(alone[k]), parts[k]) for k in alone)
                largest = max(float(value.abs().max()) for value in alone.values())
                found[case][name] = {"error": error, "largest": largest, "facts": close(facts, same)}
            if dtype == torch.float32:  # as in a run, whose sums are float32
                found["checked"][case] = raised(functools.partial(check, sharded, engines[1], held))
            found["noise"][case] = noise_of_shards(held)
            here = sum(part.numel() for part in held.shards.trained.values())
            found["share"] = here / sum(parameter.numel() for parameter in whole.parameters())
            found["steps"][case] = steps_of_shards(whole, sharded, engines, held, dtype)
    found["refused"] = refused_in_full(layout)
    return found


def sharded_in_full(model: nn.Module, engine: BookkeepingEngine, layout: Ranks) -> Ranks:
    """Return the layout of a model that is sharded over it."""
    shards = shard_everything(model, layout, engine="bookkeeping", checkpointing=False)
    engine.shard(shards)
    return with_shards(layout, shards)


def check(model: nn.Module, engine: BookkeepingEngine, held: Ranks) -> None:
    """Run both start-up checks."""
    check_engine(model, engine, vocab_size=VOCAB, pad_token_id=0, ranks=held)
    check_ranks(model, engine, ranks=held, vocab_size=VOCAB, pad_token_id=0)


def noise_of_shards(held: Ranks) -> bool:
    """Return whether every element got the very noise that one process gives it, and got it once."""
    assert held.shards is not None
    shapes = {name: held.shards.places[name].shape for name in held.shards.trained}
    alone = {name: torch.zeros(shape) for name, shape in shapes.items()}
    parts = {name: torch.zeros_like(part, dtype=torch.float32) for name, part in held.shards.trained.items()}
    for sums, layout in ((alone, Ranks()), (parts, held)):
        _noise_once(job_of(layout), sums, step=3, keys=StepKeys.from_unsafe_seed(1))
    whole = held.shards.whole_tensors({f"trainable.{name}": part for name, part in parts.items()})
    same = [torch.equal(whole[f"trainable.{name}"], value) for name, value in alone.items()] if held.is_main else [True]
    return all(same) and all(bool(value.any()) for value in alone.values())


def steps_of_shards(
    whole: nn.Module,
    sharded: nn.Module,
    engines: tuple[BookkeepingEngine, BookkeepingEngine],
    held: Ranks,
    dtype: torch.dtype,
) -> float:
    """Return the largest difference of weights and moments after three steps, by rank 0; also of what is released."""
    assert held.shards is not None
    trained = trainable_parameters(whole), held.shards.trained
    optimizers = [torch.optim.AdamW(part.values(), lr=0.01, eps=1e-3) for part in trained]
    for step in range(3):
        for arm, (model, layout) in enumerate(((whole, Ranks()), (sharded, held))):
            sums, _ = total(model, engines[arm], records(9 + step), 64, layout, dtype)
            _noise_once(job_of(layout), sums, step=step, keys=StepKeys.from_unsafe_seed(1))
            set_gradients(trained[arm], sums, divisor=4.0)
            optimizers[arm].step()
    held.shards.check_alias()
    parts = held.shards.whole_tensors(state_tensors(trained[1], optimizers[1]))
    released = held.shards.released()
    if not held.is_main:
        return 0.0
    expected = state_tensors(trained[0], optimizers[0])
    assert released.keys() == whole.state_dict().keys()
    assert parts.keys() == expected.keys()
    return max(
        *(difference(expected[key], value) for key, value in parts.items()),
        *(difference(value, released[key]) for key, value in whole.state_dict().items()),
    )


def refused_in_full(layout: Ranks) -> list[Any]:
    """What is said of an engine, of checkpointing, of a tensor that two layers share, and of a single number."""
    shared, number = tiny(num_layers=2), tiny()
    layers = cast(Any, shared).model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    number.temperature = nn.Parameter(torch.tensor(1.0))
    cases = [(tiny(), "ghost", False), (tiny(), "bookkeeping", True), (shared, "bookkeeping", False)]

    def shard(model: nn.Module, engine: str, checkpointing: bool) -> None:
        shard_everything(model, layout, engine=engine, checkpointing=checkpointing)

    return [raised(functools.partial(shard, *case)) for case in [*cases, (number, "bookkeeping", False)]]


def job_of(layout: Ranks, generator: str = "keyed") -> Job:
    """Return what the noise of a step needs of a job."""
    mechanism = DPSGDMechanism(
        num_records=100, expected_batch_size=10, noise_multiplier=SIGMA, steps=3, per_sample_max_grad_norm=CLIP
    )
    job = SimpleNamespace(
        plan=SimpleNamespace(mechanism=mechanism),
        config=SimpleNamespace(privacy=SimpleNamespace(noise_generator=generator)),
        ranks=layout,
    )
    return cast(Job, job)


def difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of two tensors of one shape."""
    assert one.shape == other.shape
    return float((one.detach() - other.detach()).abs().max()) if one.numel() else 0.0


def total(
    model: nn.Module,
    engine: BookkeepingEngine,
    drawn: list[list[Example]],
    budget: int,
    layout: Ranks,
    dtype: torch.dtype,
) -> tuple[dict[str, Tensor], StepFacts]:
    """Return the clipped sum of a draw."""
    held = {name: value.to(dtype) for name, value in zero_sums(trained_here(model, layout)).items()}
    facts = sum_clipped_gradients(
        model,
        engine,
        held,
        drawn,
        per_sample_max_grad_norm=CLIP,
        hardware=HardwareConfig(max_tokens_per_microbatch=budget),
        pad_token_id=0,
        dropout_seed=5,
        ranks=layout,
    )
    return held, facts


def one_value(tensor: Tensor) -> float:
    """Return the number that a tensor is full of."""
    assert float(tensor.min()) == float(tensor.max())
    return float(tensor.max())


def close(left: StepFacts, right: StepFacts) -> bool:
    """Return whether two steps tell the same, up to the order of a sum."""
    one, other = vars(left), vars(right)
    return all(one[k] == other[k] or abs(one[k] - other[k]) < 1e-6 for k in one)


def tiny(*, is_tied: bool = False, num_layers: int = 1) -> nn.Module:
    """Return a small model with dropout in its attention, in training mode."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": num_layers}
    config = LlamaConfig(
        vocab_size=VOCAB, num_attention_heads=2, attention_dropout=0.1, tie_word_embeddings=is_tied, **sizes
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model.train()


def adapted() -> nn.Module:
    """Return a small model with adapters that are not at their initial zero."""
    model = make_trainable(cast(LlamaForCausalLM, tiny()), LoraConfig(lora_r=2), seed=1, use_lora=True).train()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def records(size: int) -> list[list[Example]]:
    """Return ragged made-up records, one a unit."""
    generator = torch.Generator().manual_seed(size)
    made = list[list[Example]]()
    for i in range(size):
        ids = torch.randint(VOCAB, (3 + (7 * i) % 23,), generator=generator).tolist()
        made.append([Example(input_ids=tuple(ids), num_prompt_tokens=1, is_truncated=False)])
    return made


if __name__ == "__main__":
    sys.exit(fork(Path(sys.argv[1]), is_short="short" in sys.argv[2:]))
