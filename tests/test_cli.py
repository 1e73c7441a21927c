"""One line and an exit code, whatever goes wrong; no private text unless --debug asks for it."""

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from safesynthdp.cli import COMMANDS, run
from safesynthdp.errors import ConfigError, SafeSynthError

ROOT = Path(__file__).parents[1]


def failing(error: BaseException) -> int:
    def main(argv: Sequence[str]) -> None:
        del argv
        raise error

    return run(main, [])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("key=1 is wrong"), 2),
        (SafeSynthError("the disk is full"), 1),
        (KeyboardInterrupt(), 130),
        (KeyError("x"), 1),
        (OSError(errno.ENOSPC, "No space left on device"), 1),
    ],
)
def test_every_error_is_one_line_and_a_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(error) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")


def test_an_unexpected_message_is_not_printed_because_it_may_hold_private_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert failing(ValueError("Alice has diabetes")) == 1
    said = capsys.readouterr().err
    assert "Alice" not in said
    assert "ValueError" in said
    assert "test_cli.py" in said


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str]) -> None:
        assert "--debug" not in argv
        raise ConfigError("key=1 is wrong")

    assert run(main, ["--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_names_every_sub_command_without_importing_torch() -> None:
    code = "import sys; sys.argv=['safesynthdp','--help']\nfrom safesynthdp import cli\n"
    code += "try: cli.entry_point()\nexcept SystemExit: pass\nassert not {'torch','numpy','sklearn'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_sub_command_has_help_of_its_own(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from safesynthdp.cli import entry_point; entry_point()", name, "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


@pytest.mark.parametrize("words", [["nonsense"], ["finetune", "--no_such_key", "1"], ["finetune"]])
def test_the_console_script_refuses_nonsense_with_code_2(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from safesynthdp.cli import entry_point; entry_point()", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


LEAVING = """
import atexit, sys
from safesynthdp.cli import leave

class Torn:
    def __del__(self):
        print("torn down", flush=True)

torn = Torn()
atexit.register(print, "registered")
sys.stdout.write("last words ")
leave(3)
"""


@pytest.mark.parametrize(
    ("world_size", "words"), [("1", "last words registered\ntorn down\n"), ("2", "last words registered\n")]
)
def test_one_of_several_processes_ends_with_its_code_and_does_not_tear_down_its_interpreter(
    world_size: str, words: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAVING],
        env=os.environ | {"WORLD_SIZE": world_size},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, words, "")
