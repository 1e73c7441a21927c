"""Do all processes of a run come, and are they all alive?

Here: a roll call before the process group is formed, and afterwards a sign of life from every process every few
seconds, so that a killed, suspended or unreachable one ends the others soon and with a clear line. Elsewhere: the group
itself (launching.py), what the processes do together (ranks.py). Times are taken from the monotonic clock of each
process and never compared between two: a clock that jumps, or is wrong, changes nothing.

A process that is lost while others wait for it inside a collective cannot be told to them by an exception: they end at
once, as by kill -9, which a run directory survives at any moment.
"""

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from safesynthdp.errors import SafeSynthError

WAY_OUT = "nothing on disk is harmed: the same command goes on where the run stopped"
_ASK_SECONDS = 5.0  # a question to the meeting point that takes longer is given up and asked again


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a process waits for the others, in seconds."""

    meeting: float = 120.0
    """For all to start (``hardware.meeting_seconds``)."""
    silence: float = 60.0
    """For a sign of life (``hardware.silence_seconds``)."""
    waiting: float = 1800.0
    """For a live process that is busy with something else (``hardware.waiting_seconds``)."""


class Pulse:
    """When each of the others was last heard of; ``judge`` says who is lost. No network here."""

    def __init__(self, *, rank: int, silence: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rank, self._silence, self._clock = rank, silence, clock
        self._heard = dict[int, tuple[str, float]]()
        self._judged = clock()
        self._lock = threading.Lock()

    def hear(self, beats: Mapping[int, str]) -> None:
        """Take the newest beat of some ranks; one that has not changed is no news."""
        now = self._clock()
        with self._lock:
            for rank, beat in beats.items():
                if rank != self._rank and self._heard.get(rank, ("", 0.0))[0] != beat:
                    self._heard[rank] = (beat, now)

    def judge(self) -> list[int]:
        """Return the ranks that came and have been silent too long.

        A process that was itself asleep (suspended with all the others by a scheduler) has heard of nobody, through
        no fault of theirs: they get the whole time again.
        """
        now = self._clock()
        with self._lock:
            if now - self._judged > self._silence / 4:
                self._heard = {rank: (beat, now) for rank, (beat, _) in self._heard.items()}
            self._judged = now
            return sorted(rank for rank, (_, heard) in self._heard.items() if now - heard > self._silence)


class Watch:
    """Two threads: one beats and listens at the meeting point, one judges and never waits for anything."""

    def __init__(self, store: Any, *, rank: int, world_size: int, patience: Patience) -> None:
        self._store, self._rank, self._world_size, self._patience = store, rank, world_size, patience
        self._pulse = Pulse(rank=rank, silence=patience.silence)
        self._is_over = threading.Event()
        self._ends_process = False
        self._present = {rank}
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._listen, self._judge)]

    def roll_call(self) -> None:
        """Wait until all are there.

        Raises:
            SafeSynthError: Naming who did not come in time, or came and was lost.
        """
        for thread in self._threads:
            thread.start()
        atexit.register(self.stop)
        until = time.monotonic() + self._patience.meeting
        while len(self._present) < self._world_size:
            if lost := self._pulse.judge():
                raise SafeSynthError(self._said(lost))
            if time.monotonic() > until:
                raise SafeSynthError(
                    f"{_ranks(self._missing())} of {self._world_size} did not come within {self._patience.meeting:g} s "
                    "(hardware.meeting_seconds); see why they did not start, and launch all again"
                )
            time.sleep(0.05)
        self._ends_process = True

    def _missing(self) -> list[int]:
        away = sorted(set(range(self._world_size)) - self._present)
        try:
            return [rank for rank in away if not self._store.check([f"beat/{rank}"])] or away
        except RuntimeError:
            return away

    def stop(self) -> None:
        """Listen no more; from here on silence means nothing."""
        self._is_over.set()
        for thread in self._threads:
            if thread is not threading.current_thread() and thread.is_alive():
                thread.join(2 * _ASK_SECONDS)

    def _listen(self) -> None:
        """Beat, and hear the others; a meeting point that does not answer is no news of anybody."""
        count = 0
        while not self._is_over.wait(min(2.0, self._patience.silence / 10) if self._ends_process else 0.1):
            count += 1
            try:
                self._store.set(f"beat/{self._rank}", str(count))
                for rank in sorted(set(range(self._world_size)) - self._present):
                    if not self._store.check([f"beat/{rank}"]):
                        break  # the later ones are asked for when it has come
                    self._present.add(rank)
                here = sorted(self._present)
                beats = self._store.multi_get([f"beat/{rank}" for rank in here])
            except RuntimeError:
                continue
            self._pulse.hear({rank: beat.decode() for rank, beat in zip(here, beats, strict=True)})

    def _judge(self) -> None:
        """End the process when another is lost: its main thread may be waiting for that one."""
        while not self._is_over.wait(min(0.5, self._patience.silence / 10)):
            if self._ends_process and (lost := self._pulse.judge()):
                sys.stderr.write(f"error: rank {self._rank}: {self._said(lost)}\n")
                sys.stderr.flush()
                os._exit(SafeSynthError.exit_code)

    def _said(self, lost: list[int]) -> str:
        return (
            f"no sign of life from {_ranks(lost)} of {self._world_size} for {self._patience.silence:g} s "
            f"(hardware.silence_seconds): killed, suspended, or its machine is out of reach; {WAY_OUT}"
        )


def meet(environment: Mapping[str, str], patience: Patience) -> Watch:
    """Wait for all processes of a launch and keep an eye on them.

    Args:
        environment: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as every launcher sets them.
        patience: How long.

    Raises:
        SafeSynthError: If the meeting point does not answer, or somebody does not come.
    """
    rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    watch = Watch(_meeting_point(environment, patience), rank=rank, world_size=world_size, patience=patience)
    try:
        watch.roll_call()
    except SafeSynthError:
        watch.stop()
        raise
    return watch


def _meeting_point(environment: Mapping[str, str], patience: Patience) -> Any:
    """Return the store of this launch: the launcher's, or one that rank 0 opens; torch's own group shares it."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # documented, not listed

    host, port = environment.get("MASTER_ADDR", ""), environment.get("MASTER_PORT", "")
    is_launchers = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = TCPStore(
            host,
            int(port),
            int(environment["WORLD_SIZE"]),
            is_master=environment["RANK"] == "0" and not is_launchers,
            timeout=timedelta(seconds=patience.meeting),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (RuntimeError, ValueError) as error:
        raise SafeSynthError(
            f"MASTER_ADDR={host} MASTER_PORT={port}: rank 0 of {environment['WORLD_SIZE']} did not answer there within "
            f"{patience.meeting:g} s (hardware.meeting_seconds); see why it did not start, or free the port"
        ) from error
    store.set_timeout(timedelta(seconds=_ASK_SECONDS))
    return PrefixStore(f"safesynthdp/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _ranks(numbers: list[int]) -> str:
    names = ", ".join(str(number) for number in numbers)
    return f"rank {names}" if len(numbers) == 1 else f"ranks {names}"
