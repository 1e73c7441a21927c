"""``safesynthdp account {dpsgd,histogram,tokens,output,plan,ledger}``: every formula of the ledger, without a model.

Here: flags and their two forms of answer, text and ``--json``. Elsewhere: the arithmetic (accounting.py, mechanisms.py,
ledger.py), output mechanisms (output_command.py). Text rounds epsilon up; JSON keeps every digit.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from safesynthdp.errors import ConfigError, SafeSynthError
from safesynthdp.privacy import checks
from safesynthdp.privacy.accounting import dpsgd_epsilon, find_noise_multiplier
from safesynthdp.privacy.ledger import Ledger, Release, is_understated, recompute_all, release_epsilon
from safesynthdp.privacy.mechanisms import DPSGDMechanism, LabelHistogramMechanism
from safesynthdp.privacy.token_histogram import TokenHistogramMechanism

DEFAULT_DELTA = 1e-6


def main(argv: Sequence[str]) -> None:
    """Answer one question of the privacy calculator on stdout.

    Raises:
        ConfigError: If a flag is unknown, missing or out of range; the message starts with the flag.
        SafeSynthError: If a ledger promises more than its entries give.
    """
    arguments = _parser().parse_args(list(argv))
    answer: Callable[[argparse.Namespace], tuple[dict[str, Any], list[str], str | None]] = arguments.answer
    facts, lines, problem = answer(arguments)
    text = json.dumps(facts, indent=2, allow_nan=False) if arguments.json else "\n".join(lines)
    sys.stdout.write(text + "\n")
    if problem is not None:
        raise SafeSynthError(problem)


class _OneLineParser(argparse.ArgumentParser):
    """Errors are one line, raised for the caller to print; no abbreviations."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise ``argument --x: why`` as ``x: why``."""
        line = " ".join(message.split()).removeprefix("argument ")
        known = {
            "the following arguments are required: ": "is missing; give it",
            "unrecognized arguments: ": "is not known here; see --help",
        }
        for start, meaning in known.items():
            if line.startswith(start):
                line = f"{line.removeprefix(start)} {meaning}"
        raise ConfigError(line.removeprefix("--"))


def _parser() -> _OneLineParser:
    parser = _OneLineParser(prog="safesynthdp account", description="What a private run costs, without a model.")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="{dpsgd,histogram,tokens,output,plan,ledger}"
    )
    dpsgd = commands.add_parser("dpsgd", help="DP-SGD: epsilon from the noise, or the noise for a target")
    dpsgd.add_argument("--num_records", type=whole, required=True, help="units in the data (records, or users)")
    dpsgd.add_argument("--expected_batch_size", type=number, required=True, help="mean number of units in a step")
    dpsgd.add_argument("--noise_multiplier", type=number, help="noise standard deviation / clipping bound")
    dpsgd.add_argument("--target_epsilon", type=number, help="in place of --noise_multiplier: find it")
    dpsgd.add_argument("--steps", type=whole, required=True, help="optimizer steps, empty ones included")
    dpsgd.add_argument("--accountant", default=checks.AUTO, help="prv (default), pld (default for replace) or rdp")
    dpsgd.set_defaults(answer=_dpsgd)
    histogram = commands.add_parser("histogram", help="a label histogram with integer noise")
    histogram.add_argument("--mechanism", required=True, help="laplace or gaussian")
    histogram.add_argument("--scale", type=number, required=True, help="scale of the noise, in records")
    histogram.set_defaults(answer=_histogram)
    tokens = commands.add_parser("tokens", help="a token histogram with Gaussian noise")
    tokens.add_argument("--noise_multiplier", type=number, help="noise standard deviation / norm of a contribution")
    tokens.add_argument("--epsilon", type=number, help="in place of --noise_multiplier: find it")
    tokens.set_defaults(answer=_tokens)
    for command in (dpsgd, histogram, tokens):
        command.add_argument("--adjacency", default="add_remove", help="add_remove (default) or replace")
        command.add_argument("--delta", type=number, default=DEFAULT_DELTA, help=f"default {DEFAULT_DELTA:g}")
    from safesynthdp.privacy.output_command import add_parsers

    add_parsers(commands)
    ledger = commands.add_parser("ledger", help="compute every epsilon of a run again; fails if one is too small")
    ledger.add_argument("path", metavar="RUN_OR_FILE", type=Path, help="a run directory or a ledger.json")
    ledger.add_argument("--delta", type=number, default=None, help=f"for a run without a release; {DEFAULT_DELTA:g}")
    ledger.set_defaults(answer=_ledger)
    for command in (dpsgd, histogram, tokens, ledger):
        command.add_argument("--json", action="store_true", help="JSON with all digits")
    return parser


def number(text: str) -> float:
    """Read a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def whole(text: str) -> int:
    """Read a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def round_up(epsilon: float | None) -> str:
    """Return epsilon for people: four decimals, never fewer than it is."""
    if epsilon is None:
        return "none (no formal guarantee)"
    if not math.isfinite(epsilon):
        return "infinite (no formal guarantee)"
    text = f"{epsilon:.4f}"
    return text if float(text) >= epsilon else f"{math.floor(epsilon * 1e4 + 1) / 1e4:.4f}"


def _dpsgd(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str], str | None]:
    if (arguments.noise_multiplier is None) == (arguments.target_epsilon is None):
        raise ConfigError("noise_multiplier or target_epsilon: give exactly one of the two")
    checks.whole("steps", arguments.steps, at_most=checks.MAX_STEPS)
    shown = DPSGDMechanism(
        num_records=arguments.num_records,
        expected_batch_size=arguments.expected_batch_size,
        noise_multiplier=1.0 if arguments.noise_multiplier is None else arguments.noise_multiplier,
        steps=arguments.steps,
        per_sample_max_grad_norm=1.0,
        accountant=arguments.accountant,
        adjacency=arguments.adjacency,
    )
    _warn_about_delta(checks.probability("delta", arguments.delta), arguments.num_records)
    common: dict[str, Any] = {
        "sample_rate": shown.sample_rate,
        "steps": shown.steps,
        "delta": arguments.delta,
        "accountant": shown.accountant,
        "adjacency": shown.adjacency,
    }
    noise = arguments.noise_multiplier
    if noise is None:
        noise = find_noise_multiplier(target_epsilon=arguments.target_epsilon, **common)
    epsilon = _finite(dpsgd_epsilon(noise_multiplier=noise, **common))
    keys = ("delta", "sample_rate", "steps", "accountant", "adjacency")
    facts = {"epsilon": epsilon, "noise_multiplier": noise, **{key: common[key] for key in keys}}
    lines = [
        f"epsilon           {round_up(epsilon)}  (rounded up)",
        f"delta             {arguments.delta:g}",
        f"noise_multiplier  {noise!r}",
        f"sample_rate       {shown.sample_rate:.6g} ({arguments.expected_batch_size:g} of {shown.num_records})",
        f"steps             {shown.steps}",
        f"accountant        {shown.accountant}, {shown.adjacency}, Poisson sampling",
    ]
    return facts, lines, None


def _finite(epsilon: float) -> float:
    if not math.isfinite(epsilon):
        raise ConfigError("noise_multiplier: no finite epsilon at this delta; give more noise or a larger delta")
    return epsilon


def _warn_about_delta(delta: float, num_records: int) -> None:
    if delta > 1 / num_records:
        sys.stderr.write(f"warning: delta={delta:g} is above 1 / num_records={1 / num_records:g}: too weak a promise\n")


def _histogram(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str], str | None]:
    mechanism = LabelHistogramMechanism(
        mechanism=arguments.mechanism, scale=arguments.scale, adjacency=arguments.adjacency
    )
    delta = checks.probability("delta", arguments.delta)
    conversions = mechanism.conversions(delta)
    facts = {
        "epsilon": min(conversions.values()),
        "delta": delta,
        "pure_epsilon": mechanism.pure_epsilon,
        "rho": mechanism.rho,
        "conversions": conversions,
    }
    pure = "none" if mechanism.pure_epsilon is None else round_up(mechanism.pure_epsilon)
    lines = [
        f"epsilon       {round_up(min(conversions.values()))}  (rounded up)",
        f"delta         {delta:g}",
        f"pure_epsilon  {pure}",
        f"rho           {round_up(mechanism.rho)}",
        *(f"by {name:<15}{round_up(value)}" for name, value in conversions.items()),
    ]
    return facts, lines, None


def _tokens(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str], str | None]:
    if (arguments.noise_multiplier is None) == (arguments.epsilon is None):
        raise ConfigError("noise_multiplier or epsilon: give exactly one of the two")
    delta = checks.probability("delta", arguments.delta)
    relation = checks.adjacency("adjacency", arguments.adjacency)
    if arguments.epsilon is None:
        mechanism = TokenHistogramMechanism(noise_multiplier=arguments.noise_multiplier, adjacency=relation)
    else:
        mechanism = TokenHistogramMechanism.from_epsilon(arguments.epsilon, delta=delta, adjacency=relation)
    epsilon = mechanism.epsilon(delta=delta)
    noise = mechanism.noise_multiplier
    facts = {"epsilon": epsilon, "delta": delta, "noise_multiplier": noise, "adjacency": relation}
    lines = [
        f"epsilon           {round_up(epsilon)}  (rounded up)",
        f"delta             {delta:g}",
        f"noise_multiplier  {noise!r}",
        f"accountant        exact for one Gaussian release, {relation}",
    ]
    return facts, lines, None


def _ledger(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str], str | None]:
    path = arguments.path / "ledger.json" if arguments.path.is_dir() else arguments.path
    ledger = Ledger.read(path)
    if not ledger.releases:
        return _unreleased(path, ledger, arguments.delta)
    found = recompute_all(ledger)
    wrong = [release.artifact for release, again in found if is_understated(release.epsilon, again)]
    headline, again = max(found, key=lambda pair: math.inf if pair[1] is None else pair[1])
    facts = _facts(path, ledger, found, epsilon=again, delta=headline.delta)
    lines = [f"{path}: unit {ledger.unit}, adjacency {ledger.adjacency}"]
    for release, number in found:
        delta = "none" if release.delta is None else f"{release.delta:g}"
        stored = "null" if release.epsilon is None else f"{release.epsilon:.10g}"
        rounded = "" if number is None else " (rounded up)"
        lines.append(f"{release.artifact}: epsilon {round_up(number)}{rounded} at delta {delta}; stored {stored}")
    problem = f"{path}: epsilon of {', '.join(wrong)} is stored below what its entries cost; do not rely on it"
    return facts, lines, problem if wrong else None


def _unreleased(path: Path, ledger: Ledger, given: float | None) -> tuple[dict[str, Any], list[str], str | None]:
    """Price what has been spent so far by a run that has released nothing."""
    delta = checks.probability("delta", DEFAULT_DELTA if given is None else given)
    epsilon, _ = release_epsilon(ledger, [entry.id for entry in ledger.entries], delta=delta)
    facts = _facts(path, ledger, [], epsilon=epsilon, delta=delta)
    lines = [f"{path}: no release yet; spent so far: epsilon {round_up(epsilon)} (rounded up) at delta {delta:g}"]
    return facts, lines, None


def _facts(
    path: Path,
    ledger: Ledger,
    found: Sequence[tuple[Release, float | None]],
    *,
    epsilon: float | None,
    delta: float | None,
) -> dict[str, Any]:
    releases = [
        {
            "artifact": release.artifact,
            "epsilon": release.epsilon,
            "recomputed_epsilon": again,
            "delta": release.delta,
            "rule": release.rule,
            "entries": list(release.entries),
        }
        for release, again in found
    ]
    head = {"path": str(path), "unit": ledger.unit, "adjacency": ledger.adjacency}
    return {**head, "releases": releases, "epsilon": epsilon, "delta": delta}
