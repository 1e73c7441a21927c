"""The processes of one run: who I am among them, and the few things they do together.

Here: sums, broadcasts and agreement over accelerate's process group. Elsewhere: finding and checking that group
(launching.py), dealing out the work (sharding.py), the order of events (loop.py). accelerate gives device and process
group only: a prepared model or loader would average gradients we clip ourselves, and give ranks alternate draws.

Guarantee:
    The sums of a step are added over the ranks (SUM, never a mean) before noise is added; ``together`` lets no rank go
    on past a point that another did not reach. Facts travel as JSON, tensors as they are. The network between the
    processes carries private gradients and the run's keys: it must be trusted as the machines are.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from safesynthdp.errors import ReportedElsewhere, SafeSynthError, UserError
from safesynthdp.training.meeting import WAY_OUT

if TYPE_CHECKING:
    from safesynthdp.training.full_shards import Shards
    from safesynthdp.training.meeting import Watch

BUCKET_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes of a run as seen by one of them; alone, every method is a plain local call."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (a device is immutable)
    group: Any = None
    """The process group for tensors; None = all processes."""
    control: Any = None
    """The group for facts: gloo on the CPU, which notices a dead peer at once; None = all processes."""
    is_sharded: bool = False
    """Forward passes of the model talk to the other ranks, so all ranks must run as many (frozen_shards.py)."""
    shards: "Shards | None" = None
    """Where trained weights are sharded too: what this rank holds of them (full_shards.py)."""

    watch: "Watch | None" = None
    """Listens whether the others are alive (meeting.py)."""

    @property
    def is_main(self) -> bool:
        """Rank 0 alone writes files and speaks."""
        return self.rank == 0

    @property
    def are_several(self) -> bool:
        """More than one process works on this run."""
        return self.world_size > 1

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run the body on every rank; if it fails on any of them, it fails on all.

        Raises:
            ReportedElsewhere: On a rank whose own body was fine, or whose failure rank 0 tells in its place.
        """
        if not self.are_several:
            yield
            return
        try:
            yield
        except BaseException as error:
            self._settle(error)
            raise
        self._settle(None)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run micro-batches: as ``together``, or, where they talk among themselves, without a word if one fails.

        A rank that fails inside a sharded pass cannot tell the others, which wait for its shards: it ends, and they
        notice.
        """
        if not self.is_sharded:
            with self.together():
                yield
            return
        try:
            yield
        except RuntimeError as error:
            if not any(name in str(error).lower() for name in ("gloo", "nccl")):
                raise
            raise _lost() from error

    @contextmanager
    def first(self) -> Iterator[None]:
        """Let rank 0 run the body before the others: it downloads and converts, they find it done."""
        if not self.is_main:
            with self.together():
                pass
            yield
            return
        with self.together():
            yield

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, in its own precision, in flat buckets.

        Every rank gets the same bits: each element is added up in one place and sent to all.
        """
        self._in_buckets(tensors, lambda flat: dist.all_reduce(flat, group=self._group_of(flat)))

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite each tensor with rank 0's."""
        self._in_buckets(tensors, lambda flat: dist.broadcast(flat, src=0, group=self._group_of(flat)))

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sum over the ranks of each of a few numbers."""
        if not self.are_several:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        self.add_up_facts(summed)
        return [float(value) for value in summed]

    def add_up_facts(self, numbers: Tensor) -> None:
        """Replace a tensor on the CPU by its sum over the ranks."""
        if self.are_several:
            collective(lambda: dist.all_reduce(numbers, group=self.control))

    def share(self, value: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return rank 0's ``value`` on every rank; it is whatever JSON can hold."""
        if not self.are_several:
            return dict(value or {})
        return dict(json.loads(self.share_bytes(json.dumps(value).encode() if self.is_main else b"")))

    def share_bytes(self, value: bytes) -> bytes:
        """Return rank 0's bytes on every rank."""
        if not self.are_several:
            return value
        size = torch.tensor([len(value)])
        collective(lambda: dist.broadcast(size, src=0, group=self.control))
        sent = torch.frombuffer(bytearray(value), dtype=torch.uint8) if self.is_main and value else None
        held = sent if sent is not None else torch.empty(int(size), dtype=torch.uint8)
        if len(held):
            collective(lambda: dist.broadcast(held, src=0, group=self.control))
        return held.numpy().tobytes()

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's ``value`` (JSON), by rank, on every rank."""
        if not self.are_several:
            return [value]
        raw = json.dumps(value).encode()
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        collective(lambda: dist.all_gather(sizes, torch.tensor([len(raw)]), group=self.control))
        width = max(int(size) for size in sizes)
        mine = torch.frombuffer(bytearray(raw.ljust(width)), dtype=torch.uint8)
        rows = [torch.empty(width, dtype=torch.uint8) for _ in range(self.world_size)]
        collective(lambda: dist.all_gather(rows, mine, group=self.control))
        return [json.loads(row.numpy().tobytes()) for row in rows]

    def agree(self, what: str, value: Any) -> None:
        """Check that every rank holds the same ``value`` (JSON).

        Raises:
            UserError: Naming ``what`` and the ranks that differ from rank 0.
        """
        found = self.gather(value)
        other = [rank for rank, theirs in enumerate(found) if theirs != found[0]]
        if other:
            raise self.on_main(
                UserError(
                    f"ranks 0 and {other[0]} of {self.world_size} differ in {what}; give every machine the same files, "
                    "packages and command"
                )
            )

    def on_main(self, error: SafeSynthError) -> SafeSynthError:
        """Every rank found the same error: rank 0 tells it."""
        return error if self.is_main else ReportedElsewhere(str(error), exit_code=error.exit_code)

    def _group_of(self, tensor: Tensor) -> Any:
        """A model that is not on its device yet is sent as facts are."""
        return self.group if tensor.device.type == self.device.type else self.control

    def _settle(self, error: BaseException | None) -> None:
        """Exchange who failed; return only if nobody did, or this very rank is to tell its own error."""
        if not self.total([float(error is not None)])[0]:
            return
        told = self.gather(_told(error))
        first = next(rank for rank, story in enumerate(told) if story is not None)
        if error is not None and (self.is_main or not isinstance(error, SafeSynthError)):
            return
        message, code = told[first]["message"], told[first]["exit_code"]
        if self.is_main:
            kind = UserError if code == UserError.exit_code else SafeSynthError
            raise kind(f"rank {first} of {self.world_size}: {message}") from error
        raise ReportedElsewhere(message, exit_code=code) from error

    def _in_buckets(self, tensors: Iterable[Tensor], send: Callable[[Tensor], Any]) -> None:
        if not self.are_several:
            return
        for bucket in _buckets(list(tensors)):
            if len(bucket) == 1 and bucket[0].is_contiguous():
                collective(lambda alone=bucket[0]: send(alone))  # type: ignore[misc]
                continue
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            collective(lambda flat=flat: send(flat))  # type: ignore[misc]
            begin = 0
            for tensor in bucket:
                tensor.copy_(flat[begin : begin + tensor.numel()].view(tensor.shape))
                begin += tensor.numel()


def digest(tensors: Mapping[str, Tensor], *, most: int | None = None) -> str:
    """Return a hash of names, shapes and bits (of about ``most`` elements of each, evenly spread; None = all)."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        part = tensor.detach().reshape(-1)
        if most and tensor.numel() >= 2 * most:
            part = part[:: tensor.numel() // most].clone(memory_format=torch.contiguous_format)
        part = part.cpu().contiguous()
        found.update(part.view(torch.uint8).numpy().data)
    return found.hexdigest()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield neighbours of one dtype, about BUCKET_BYTES together."""
    bucket, size = list[Tensor](), 0
    for tensor in tensors:
        nbytes = tensor.numel() * tensor.element_size()
        if bucket and (size + nbytes > BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += nbytes
    if bucket:
        yield bucket


def _told(error: BaseException | None) -> dict[str, Any] | None:
    """What others may know of a failure: our own messages hold no private text, foreign ones might."""
    if error is None:
        return None
    if isinstance(error, SafeSynthError):
        return {"message": str(error), "exit_code": error.exit_code}
    name = "interrupted" if isinstance(error, KeyboardInterrupt) else f"internal error: {type(error).__name__}"
    return {"message": f"{name}; its own output says where", "exit_code": SafeSynthError.exit_code}


def collective(call: Callable[[], Any]) -> None:
    """Run one collective; a lost peer is one clear line instead of a page of gloo."""
    try:
        call()
    except RuntimeError as error:
        raise _lost() from error


def _lost() -> SafeSynthError:
    return SafeSynthError(
        f"another process of this run was lost (killed, out of memory, or its machine is gone); {WAY_OUT}"
    )
