"""Synthetic texts beside the training records nearest to them: private text, for an internal page on request.

Here: the file an evaluation leaves, and how a pair is shown. Elsewhere: what counts as near
(evaluation/longest_rows.py), the flag that asks for it (command.py), why none of it is public (publish.py).
"""

import json
from collections.abc import Sequence
from pathlib import Path

from safesynthdp.errors import SafeSynthError
from safesynthdp.reporting.facts import Copied, Text

WORST = "memorisation_worst.jsonl"
MAX_SHOWN = 900
SHOWN = "Training records stand above, because nearest_records was asked for: this page holds private text."
NONE_SHOWN = "No synthetic text shares 50 characters in a row, or all of its words, with a training record."


def read_copied(path: Path) -> tuple[Copied, ...]:
    """Return the worst cases; there is no file if no text shares 50 characters, or all of its words, with a record.

    Raises:
        SafeSynthError: If the file is damaged.
    """
    if not path.is_file():
        return ()
    try:
        cases = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return tuple(
            Copied(
                characters=int(case["characters"]),
                is_whole_text=case["is_whole_text"] is True,
                synthetic=str(case["synthetic_text"]),
                real=str(case["real_text"]),
            )
            for case in cases
        )
    except (ValueError, KeyError, TypeError) as error:
        raise SafeSynthError(f"{path} is damaged; run the evaluation that wrote it again") from error


def beside(case: Copied) -> tuple[str, tuple[Text, ...]]:
    """Return a heading, and the synthetic text followed by the training record."""
    how = "all of its words" if case.is_whole_text else f"{case.characters} characters in a row"
    both = (("synthetic", case.synthetic), ("training record", case.real))
    texts = tuple(
        Text(label=label, text=f"{label}: {text[:MAX_SHOWN]}", num_hidden=max(0, len(text) - MAX_SHOWN))
        for label, text in both
    )
    return f"shares {how} with the training record nearest to it", texts


def copied_note(cases: Sequence[Copied]) -> str:
    """Return what must be said below."""
    return SHOWN if cases else NONE_SHOWN
