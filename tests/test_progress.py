"""What a person who waits is told: how much is done, how fast it goes now, and how long it will take."""

import sys

import pytest

from safesynthdp import progress as module
from safesynthdp.progress import duration, progress

Capture = pytest.CaptureFixture[str]


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time by hand, and lines for a log."""
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    return made


def test_the_time_left_is_that_of_the_units_left_at_the_speed_so_far(clock: Clock, capsys: Capture) -> None:
    with progress("training", total=10, unit="steps") as advance:
        for _ in range(4):
            clock.now += 25.0
            advance(1)
    assert capsys.readouterr().err.splitlines()[-1] == "training: 4 of 10 steps, 25.0 s a step, 2 min left"


def test_what_was_done_before_a_stop_does_not_make_the_rest_look_fast(clock: Clock, capsys: Capture) -> None:
    with progress("training", total=80, unit="steps", done=36) as advance:
        clock.now += 25.0
        advance(1)
        clock.now += 25.0
        advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "training: 37 of 80 steps, 25.0 s a step, 18 min left",
        "training: 38 of 80 steps, 25.0 s a step, 18 min left",
    ]


def test_the_last_unit_says_how_long_it_took_this_time(clock: Clock, capsys: Capture) -> None:
    with progress("sampling", total=5, unit="texts", done=4) as advance:
        clock.now += 2.0
        advance(1)
    assert capsys.readouterr().err == "sampling: 5 of 5 texts, 2.0 s a text in 2 s\n"


def test_the_first_texts_of_a_batch_to_end_say_nothing_about_the_time_left(clock: Clock, capsys: Capture) -> None:
    with progress("sampling", total=300, unit="texts", at_once=100) as advance:
        clock.now += 30.0
        advance(2)
        clock.now += 30.0
        advance(98)
        clock.now += 60.0
        advance(100)
    assert capsys.readouterr().err.splitlines() == [
        "sampling: 2 of 300 texts",
        "sampling: 100 of 300 texts, 1.7 texts/s, 2 min left",
        "sampling: 200 of 300 texts, 1.7 texts/s, 60 s left",
    ]


def test_fewer_units_than_are_worked_on_at_once_end_with_their_speed(clock: Clock, capsys: Capture) -> None:
    with progress("sampling", total=3, unit="texts", at_once=100) as advance:
        clock.now += 6.0
        advance(3)
    assert capsys.readouterr().err == "sampling: 3 of 3 texts, 2.0 s a text in 6 s\n"


def test_a_log_gets_a_line_every_quarter_of_a_minute_and_one_at_the_end(clock: Clock, capsys: Capture) -> None:
    with progress("sampling", total=100, unit="texts") as advance:
        for _ in range(100):
            clock.now += 1.0
            advance(1)
    assert len(capsys.readouterr().err.splitlines()) == 7


def test_a_terminal_shows_the_speed_since_the_stop_too(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress("training", total=80, unit="steps", done=36) as advance:
        clock.now += 25.0
        advance(1)
    shown = capsys.readouterr().err
    assert "37/80" in shown
    assert "25.0 s a step" in shown
    assert "18 min left" in shown


def test_nothing_done_is_nothing_said(clock: Clock, capsys: Capture) -> None:
    with progress("sampling", total=5, unit="texts") as advance:
        clock.now += 60.0
        advance(0)
    assert capsys.readouterr().err == ""


def test_hours_are_said_as_people_say_them() -> None:
    assert [duration(s) for s in (0.4, 99, 100, 7500)] == ["0 s", "99 s", "2 min", "2 h 05 min"]
