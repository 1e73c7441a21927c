"""Progress for people: a bar in a terminal, a line now and then in a log, silence in between.

Here: one bar with a rate and the time left. Elsewhere: what is counted. Nothing private is shown: counts and seconds.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def progress(what: str, *, total: int, unit: str, done: int = 0, at_once: int = 1) -> Iterator[Callable[[int], None]]:
    """Yield ``advance(n)``; shows ``what``, done of total, units a second and the time left.

    Args:
        what: The stage, a few words.
        total: Units in all.
        unit: Plural noun of a unit: "steps", "texts", "records".
        done: Of these, how many were there before, which says nothing about the speed.
        at_once: Units that are worked on together: before so many have ended, the first to end say nothing about it
            either (short texts of a batch end long before it does).
    """
    speed = _Speed(total=total, unit=unit, before=done, at_once=min(at_once, total - done))
    if sys.stderr.isatty():
        with _bar(what, speed) as advance:
            yield advance
    else:
        yield _lines(what, speed)


def duration(seconds: float) -> str:
    """Return seconds as people say them: '45 s', '7 min', '2 h 05 min'.

    >>> duration(44.6), duration(420), duration(7500)
    ('45 s', '7 min', '2 h 05 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


@dataclass(frozen=True, kw_only=True)
class _Speed:
    """Units a second since the start, and what follows from them."""

    total: int
    unit: str
    before: int
    at_once: int
    start: float = field(default_factory=lambda: time.monotonic())

    def rate(self, done: float) -> str:
        """Return the speed in words; empty while it is not known."""
        ended, seconds = done - self.before, time.monotonic() - self.start
        if ended < max(self.at_once, 1) or seconds <= 0:
            return ""
        rate = ended / seconds
        return f"{rate:.1f} {self.unit}/s" if rate >= 1 else f"{1 / rate:.1f} s a {self.unit.removesuffix('s')}"

    def left(self, done: float) -> str:
        """Return the time left in words; empty while it is not known."""
        if not self.rate(done) or done >= self.total:
            return ""
        seconds = (time.monotonic() - self.start) / (done - self.before) * (self.total - done)
        return f"{duration(seconds)} left"


@contextmanager
def _bar(what: str, speed: _Speed) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(speed.unit),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(what, total=speed.total, completed=speed.before, rate="", left="")

        def advance(count: int) -> None:
            done = shown.tasks[0].completed + count
            shown.update(task, advance=count, rate=speed.rate(done), left=speed.left(done))

        yield advance


def _lines(what: str, speed: _Speed) -> Callable[[int], None]:
    said, done = speed.start, speed.before

    def advance(count: int) -> None:
        nonlocal said, done
        done += count
        now = time.monotonic()
        if done == speed.before or (now - said < SECONDS_BETWEEN_LINES and done < speed.total):
            return
        said = now
        facts = [f"{done} of {speed.total} {speed.unit}", speed.rate(done), speed.left(done)]
        ending = "" if done < speed.total else f" in {duration(now - speed.start)}"
        sys.stderr.write(f"{what}: {', '.join(fact for fact in facts if fact)}{ending}\n")
        sys.stderr.flush()

    return advance
