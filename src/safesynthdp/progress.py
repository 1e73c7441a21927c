"""Progress for people: a bar in a terminal, a line now and then in a log, silence in between.

Here: one bar with a rate and the time left. Elsewhere: what is counted. Nothing private is shown: counts and seconds.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def progress(what: str, *, total: int, unit: str, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Yield ``advance(n)``; shows ``what``, done of total, units a second and the time left.

    Args:
        what: The stage, a few words.
        total: Units in all.
        unit: Plural noun of a unit: "steps", "texts", "records".
        done: Of these, how many were there before, which says nothing about the speed.
    """
    if sys.stderr.isatty():
        with _bar(what, total=total, unit=unit, before=done) as advance:
            yield advance
    else:
        yield _lines(what, total=total, unit=unit, before=done)


def duration(seconds: float) -> str:
    """Return seconds as people say them: '45 s', '7 min', '2 h 05 min'.

    >>> duration(44.6), duration(420), duration(7500)
    ('45 s', '7 min', '2 h 05 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def _bar(what: str, *, total: int, unit: str, before: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    start = time.monotonic()
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(what, total=total, completed=before, rate="")

        def advance(count: int) -> None:
            now_done = shown.tasks[0].completed + count - before
            shown.update(task, advance=count, rate=_rate(now_done, time.monotonic() - start, unit))

        yield advance


def _lines(what: str, *, total: int, unit: str, before: int) -> Callable[[int], None]:
    start = time.monotonic()
    said, done = start, before

    def advance(count: int) -> None:
        nonlocal said, done
        done += count
        now = time.monotonic()
        if done == before or (now - said < SECONDS_BETWEEN_LINES and done < total):
            return
        said = now
        left = (now - start) / (done - before) * (total - done)
        ending = f", {duration(left)} left" if done < total else f" in {duration(now - start)}"
        sys.stderr.write(f"{what}: {done} of {total} {unit}, {_rate(done - before, now - start, unit)}{ending}\n")
        sys.stderr.flush()

    return advance


def _rate(done: float, seconds: float, unit: str) -> str:
    if not done or seconds <= 0:
        return ""
    rate = done / seconds
    return f"{rate:.1f} {unit}/s" if rate >= 1 else f"{1 / rate:.1f} s a {unit.removesuffix('s')}"
