"""What a job of submitit runs: the worker's command as a child, and what becomes of signals.

Here: the callable that submitit pickles, its ``checkpoint``. Elsewhere: submitting it (engine_submitit.py), what the
worker does (shard.py). Imports nothing of this package, so that a task starts at once.

submitit swallows SIGTERM, and its own signal, SIGUSR2, reaches the process it runs in and, on some clusters, all
children too, which would die of it. So the worker ignores SIGUSR2, and both come to it as SIGTERM: it saves and ends
with code 75. submitit then puts the job back into the queue by itself; after a plain SIGTERM the driver does.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

SECONDS_TO_SAVE = 45.0
"""Of the 90 that submitit asks for: SLURM may signal 60 seconds early, never late, and the queue wants its share."""


@dataclass(frozen=True)
class Task:
    """A path and a number, as the words of a command: all that is pickled."""

    command: tuple[str, ...]
    """The worker of one shard."""
    environment: tuple[tuple[str, str | None], ...] = ()
    """Changes to what the job finds; None takes a variable away."""


class Call:
    """Run a task's worker and end as it ends; only code 0 leaves a result file, which is never read."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._worker: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Run the worker to its end.

        Raises:
            SystemExit: With the worker's code, unless it is 0.
        """
        environment = dict(os.environ)
        for name, value in self.task.environment:
            environment.pop(name, None)
            environment |= {} if value is None else {name: value}
        self._worker = subprocess.Popen(
            self.task.command, stdin=subprocess.DEVNULL, env=environment, preexec_fn=_ignore_submitit
        )
        signal.signal(signal.SIGTERM, self._pass_on)  # in place of submitit's handler, which drops it
        code = self._worker.wait()
        if code:
            sys.exit(code if code > 0 else 128 - code)

    def checkpoint(self) -> "DelayedSubmission":
        """Let the worker save and end, and return the same task; submitit 1.5.4 calls it by this name on SIGUSR2."""
        from submitit.core.utils import DelayedSubmission

        self._pass_on(signal.SIGTERM, None)
        until = time.monotonic() + SECONDS_TO_SAVE
        while not self._is_over() and time.monotonic() < until:
            time.sleep(0.05)
        if self._worker is not None and not self._is_over():
            os.kill(self._worker.pid, signal.SIGKILL)  # what it saved last is what the next one goes on from
        return DelayedSubmission(Call(self.task))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._worker is not None and not self._is_over():
            os.kill(self._worker.pid, signal.SIGTERM)

    def _is_over(self) -> bool:
        """Ask without ``Popen``'s lock: this runs in a signal handler, while ``wait`` holds it."""
        if self._worker is None or self._worker.returncode is not None:
            return True
        try:
            return os.waitid(os.P_PID, self._worker.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True


def _ignore_submitit() -> None:
    """An ignored signal stays ignored in every program that is started from here."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
