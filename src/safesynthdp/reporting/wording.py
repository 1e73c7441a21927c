"""How a page writes numbers and foreign text.

Here: epsilon rounded up, intervals, and text whose control characters can be seen. Elsewhere: HTML escaping, which
Jinja does on top (html.py).

Guarantee:
    ``epsilon_text`` never prints less than it was given, so a page cannot claim more privacy than the ledger does.
"""

import math
import unicodedata
from decimal import ROUND_CEILING, Decimal

from safesynthdp.errors import SafeSynthError

LEFT_OUT = "left out of the public edition"
NOT_STATED = "not stated"
NO_GUARANTEE = "no formal guarantee"
EPSILON_DECIMALS = 4  # as ``safesynthdp account`` prints it
_HARD_SPACE = "\u00a0"
_JOINER = "\u200d"  # holds family emoji together and moves nothing
_KEPT_CATEGORIES = ("L", "M", "N", "P", "S", "Zs")


def epsilon_text(epsilon: float | None) -> str:
    """Return epsilon rounded up to four decimals, or the words that stand for None.

    >>> epsilon_text(7.98), epsilon_text(0.9641001), epsilon_text(0.0), epsilon_text(None)
    ('7.9800', '0.9642', '0.0000', 'no formal guarantee')

    Raises:
        SafeSynthError: If epsilon is negative or not finite: a broken ledger.
    """
    if epsilon is None:
        return NO_GUARANTEE
    if not 0 <= epsilon < math.inf:
        raise SafeSynthError(f"epsilon={epsilon} is no guarantee; the ledger must say null where there is none")
    return str(Decimal(repr(float(epsilon))).quantize(Decimal(1).scaleb(-EPSILON_DECIMALS), rounding=ROUND_CEILING))


def number_text(value: float | None) -> str:
    """Return three decimals, or three significant digits below 0.01; "n/a" for None.

    >>> number_text(0.8125), number_text(0.00041), number_text(33.0), number_text(None)
    ('0.812', '0.00041', '33', 'n/a')
    """
    if value is None:
        return "n/a"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < 0.01 or abs(value) >= 1e6 else f"{value:.3f}"


def rate_text(value: float | None) -> str:
    """Return a share with three decimals even where it is whole, so that a column lines up.

    >>> rate_text(1.0), rate_text(0.5667), rate_text(0.00583)
    ('1.000', '0.567', '0.0058')
    """
    if value is None:
        return number_text(value)
    return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:.3f}"


def interval_text(low: float | None, high: float | None) -> str:
    """Return ``[low, high]`` that no line break divides, or nothing where there is no interval."""
    return "" if low is None or high is None else f"[{rate_text(low)},{_HARD_SPACE}{rate_text(high)}]"


def count_text(value: int | None) -> str:
    """Return a count with thousands marked.

    >>> count_text(18917), count_text(None)
    ('18,917', 'not stated')
    """
    return NOT_STATED if value is None else f"{value:,}"


def value_text(value: object) -> str:
    """Return a configuration or mechanism value as people write it: every digit of a number, no braces of JSON."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {value_text(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(value_text(inner) for inner in value) or "none"
    return str(value)


def visible(text: str) -> str:
    r"""Return ``text`` with every character that hides, moves or breaks something written as an escape.

    Controls, direction marks, zero-width characters, line separators, private use and lone surrogates; a line break
    stays one, after a mark that shows it.

    >>> visible("a\x00b") + visible("\u202eabc")
    'a\\x00b\\u202eabc'
    """
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character == "\n":
        return "\u21b5\n"
    if character == _JOINER or unicodedata.category(character).startswith(_KEPT_CATEGORIES):
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
