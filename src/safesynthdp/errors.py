"""Every error a user can meet: one line that says what was found, what was expected, and the way out.

No message may carry private text: names, counts and row numbers only. Catch ``SafeSynthError`` for all of them;
``UserError`` is also a ``ValueError``.
"""


class SafeSynthError(Exception):
    """The work failed: a full disk, an index out of reach, a broken file. Exit code 1."""

    exit_code = 1


class Preempted(SafeSynthError):
    """The system asked the process to end (SIGTERM) and the work is saved. Exit code 75: try again later."""

    exit_code = 75


class ClaimRefuted(SafeSynthError):
    """An audit refutes what is claimed. Exit code 1; everything was printed or written before."""


class ReportedElsewhere(SafeSynthError):
    """Another process of the same run says what happened; this one ends without a word."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UserError(SafeSynthError, ValueError):
    """The request must change. Exit code 2."""

    exit_code = 2


class ConfigError(UserError):
    """A flag or a config key is wrong; the message starts with the dotted key."""


class DataError(UserError):
    """The records cannot be used; the message names the file and, where it can, the row and the column."""


class MissingColumn(DataError):
    """A source lacks a column that was asked for."""


class UnsupportedLayer(UserError):
    """A trainable parameter has no exact per-record gradient; the message names it."""


class BudgetExhausted(UserError):
    """The next access to the private data would pass the target."""


class LedgerMismatch(UserError):
    """What is asked for is not what the ledger or the saved state says was done."""
