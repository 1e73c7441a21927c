"""The console script, and how every door turns an error into one line and an exit code.

Here: the table of sub-commands and ``run``. Elsewhere: each sub-command's ``main`` (``<room>/command.py``), imported
only when it is asked for, so that ``safesynthdp --help`` answers at once.
"""

import atexit
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from safesynthdp.errors import ConfigError, ReportedElsewhere, SafeSynthError

COMMANDS = {
    "finetune": ("safesynthdp.training.command:main", "fine-tune a language model with DP-SGD"),
    "sample": ("safesynthdp.generation.command:main", "sample labelled synthetic text from a run"),
    "predict": (
        "safesynthdp.generation.predict_command:main",
        "text straight from records: many prompts vote",
    ),
    "evaluate": ("safesynthdp.evaluation.command:main", "train on synthetic text, test on real text"),
    "attack": ("safesynthdp.attacks.command:main", "score members against non-members"),
    "audit": ("safesynthdp.attacks.audit_command:main", "epsilon lower bounds from counts or scores"),
    "report": ("safesynthdp.reporting.command:main", "one page for a whole run"),
    "pipeline": ("safesynthdp.reporting.pipeline_command:main", "a grid of epsilons and seeds, records to report"),
    "push": ("safesynthdp.reporting.push_command:main", "weights or text to the Hugging Face hub, with a card"),
    "selftest": ("safesynthdp.attacks.selftest_command:main", "are broken trainers flagged on this machine"),
    "account": ("safesynthdp.privacy.command:main", "privacy calculator; needs no model"),
}
INTERRUPTED = 130


def entry_point() -> None:
    """Run ``safesynthdp SUB-COMMAND ...`` and exit with its code."""
    argv = sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(_usage())
        sys.exit(0)
    if argv[0] == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"safesynthdp {version('safesynthdp')}\n")
        sys.exit(0)
    leave(run(_dispatch, argv))


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Call ``main(argv)`` and return the exit code.

    0, 1 (failed), 2 (the request must change), 75 (told to end, saved, try again later) or 130 (Ctrl-C).

    An error is one line on stderr. ``--debug`` anywhere on the command line adds the traceback. The message of an
    unexpected exception is not printed without it, since it may carry private text.
    """
    debug = "--debug" in argv
    try:
        main([word for word in argv if word != "--debug"])
    except ReportedElsewhere as error:
        return error.exit_code
    except SafeSynthError as error:
        _complain(" ".join(str(error).split()), debug=debug)
        return error.exit_code
    except KeyboardInterrupt:
        if _rank() == "0":
            _complain("interrupted; the same command goes on where this one stopped", debug=debug)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 (the outermost frame of a program)
        _complain(f"{_where(error)}; --debug shows the traceback (it may contain private text)", debug=debug)
        return SafeSynthError.exit_code
    return 0


def leave(code: int) -> NoReturn:
    """End this process with ``code``.

    One of several processes ends without tearing down its interpreter: a thread of gloo may still hold the tensor of
    the last exchange, and aborts the process when it gives it back to an interpreter that is half gone
    (https://github.com/pytorch/pytorch/pull/179291). Whatever was registered to run at the end has run.
    """
    if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
        atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]  # no public name
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _dispatch(argv: Sequence[str]) -> None:
    name = argv[0]
    if name not in COMMANDS:
        raise ConfigError(f"{name} is not a sub-command; choose one of {', '.join(COMMANDS)}")
    module, function = COMMANDS[name][0].split(":")
    getattr(importlib.import_module(module), function)(argv[1:])


def _usage() -> str:
    lines = [f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        ["usage: safesynthdp SUB-COMMAND [--help] ...", "", *lines, "", "--debug shows tracebacks; --version", ""]
    )


def _complain(line: str, *, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    sys.stderr.write(f"error: {line}\n" if _rank() == "0" else f"error: {line} (rank {_rank()})\n")


def _rank() -> str:
    """Return this process's number among those a launcher started."""
    return os.environ.get("RANK", "0")


def _where(error: Exception) -> str:
    """Name the exception and the line that raised it, without its message."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({frame.name} in {frame.filename}:{frame.lineno})"
    return f"internal error: {type(error).__name__} ({frame.name} in {frame.filename}:{frame.lineno})"
