"""``safesynthdp audit``: a lower bound on epsilon from counts, or from a file of scores.

Here: the flags, the JSON and the lines for people. Elsewhere: the bounds (bounds.py), the guesses (guesses.py), the
metrics (metrics.py). No torch, no model: it answers at once. A refuted claim is exit code 1, for scripts.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from safesynthdp.errors import ClaimRefuted, ConfigError

DEFAULT_DELTA, DEFAULT_ALPHA = 1e-5, 0.05
Facts = dict[str, Any]
ONE_RUN_NOTES = (
    "holds for fair, independent coins drawn before training; the number of guesses, the attack and its direction "
    "must not depend on them",
    "coin-flip canaries audit the add/remove adjacency; a claim for replace-one needs pairs of canaries",
)
TRIAL_NOTES = (
    "holds for independent trials (one canary a training run) and a threshold chosen on other data; the records of "
    "one model are not independent trials",
)


def main(argv: Sequence[str]) -> None:
    """Print a lower bound on epsilon, and the verdict on a claim where one is given.

    Raises:
        ClaimRefuted: If the bound lies above the claim; everything is printed before.
    """
    arguments = _parser().parse_args(list(argv))
    compute: Callable[[argparse.Namespace], Facts] = arguments.compute
    facts = compute(arguments)
    sys.stdout.write(json.dumps(facts, allow_nan=False) + "\n" if arguments.json else _for_people(facts))
    if facts["verdict"] == "refuted":
        raise ClaimRefuted(
            f"the claim of epsilon {facts['epsilon_claimed']:g} at delta {facts['delta']:g} is refuted: epsilon is at "
            f"least {facts['epsilon_lower_bound']:.4f} (alpha {facts['alpha']:g})"
        )


def audit_one_run(arguments: argparse.Namespace) -> Facts:
    """Bound epsilon by the guesses on one trained model."""
    counts = {name: getattr(arguments, name) for name in ("canaries", "guesses", "correct")}
    facts = _one_run_facts(counts, arguments)
    return facts | {"notes": list(ONE_RUN_NOTES)}


def audit_clopper_pearson(arguments: argparse.Namespace) -> Facts:
    """Bound epsilon by the error counts of independent trials."""
    from safesynthdp.attacks.bounds import epsilon_clopper_pearson

    names = ("false_positives", "nonmembers", "false_negatives", "members")
    counts = {name: getattr(arguments, name) for name in names}
    claimed = _claim(arguments)
    bound = epsilon_clopper_pearson(**counts, delta=arguments.delta, alpha=arguments.alpha)
    claim = {"epsilon_claimed": claimed, "verdict": bound.verdict(claimed)}
    return asdict(bound) | counts | claim | {"notes": list(TRIAL_NOTES)}


def audit_scores(arguments: argparse.Namespace) -> Facts:
    """Measure an attack by its scores, and bound epsilon where the members can have been drawn by fair coins."""
    from safesynthdp.attacks.bounds import UNFAIR, check_alpha, check_delta, fair_coin_p_value
    from safesynthdp.attacks.guesses import guess
    from safesynthdp.attacks.metrics import auc, delong_interval, tpr_table
    from safesynthdp.attacks.score_table import read_score_table

    check_alpha(arguments.alpha)
    check_delta(arguments.delta)
    path = Path(arguments.file)
    table = read_score_table(path, score_column=arguments.score_column, member_column=arguments.member_column)
    members, nonmembers = table.scores[table.is_member], table.scores[~table.is_member]
    facts: Facts = {
        "num_members": members.size,
        "num_nonmembers": nonmembers.size,
        "auc": auc(members, nonmembers),
        "auc_interval": list(delong_interval(members, nonmembers, alpha=arguments.alpha)),
        "tpr_at_fpr": tpr_table(members, nonmembers),
        "side": arguments.side,
    }
    counts = asdict(guess(table.scores, table.is_member, tie_keys=table.tie_keys, side=arguments.side))
    facts |= _one_run_facts(counts, arguments)
    fairness = fair_coin_p_value(heads=members.size, tosses=table.scores.size)
    if fairness >= UNFAIR:
        return facts | {"notes": list(ONE_RUN_NOTES)}
    nothing = dict.fromkeys(("epsilon_lower_bound", "epsilon_attainable", "p_value", "verdict"))
    return facts | nothing | {"notes": [_unfair(members.size, table.scores.size, fairness), *ONE_RUN_NOTES]}


def _one_run_facts(counts: Mapping[str, int], arguments: argparse.Namespace) -> Facts:
    from safesynthdp.attacks.bounds import epsilon_one_run, one_run_p_value

    claimed = _claim(arguments)
    bound = epsilon_one_run(**counts, delta=arguments.delta, alpha=arguments.alpha)
    p_value = one_run_p_value(**counts, epsilon=claimed or 0.0, delta=arguments.delta)
    claim = {"epsilon_claimed": claimed, "verdict": bound.verdict(claimed)}
    return asdict(bound) | dict(counts) | {"p_value": p_value} | claim


def _claim(arguments: argparse.Namespace) -> float | None:
    from safesynthdp.attacks.bounds import check_epsilon

    claimed: float | None = arguments.claimed_epsilon
    if claimed is not None:
        check_epsilon(claimed, name="claimed_epsilon")
    return claimed


def _unfair(num_members: int, num_records: int, p_value: float) -> str:
    return (
        f"no epsilon bound: {num_members} members of {num_records} records cannot come from fair coins "
        f"(two-sided binomial p = {p_value:.1e}); give every record drawn by a coin, both sides"
    )


def _for_people(facts: Facts) -> str:
    lines = []
    if "auc" in facts:
        low, high = facts["auc_interval"]
        lines.append(f"AUC {facts['auc']:.4f} [{low:.4f}, {high:.4f}] at alpha {facts['alpha']:g}")
        lines.append(f"{facts['num_members']} members, {facts['num_nonmembers']} non-members")
        lines += [f"TPR {_share(rate)} at FPR {float(fpr):.1%}" for fpr, rate in facts["tpr_at_fpr"].items()]
    if facts["epsilon_lower_bound"] is not None:
        lines.append(
            f"epsilon is at least {facts['epsilon_lower_bound']:.4f} of at most {facts['epsilon_attainable']:.4f} "
            f"({facts['method']}, delta {facts['delta']:g}, alpha {facts['alpha']:g})"
        )
    if facts.get("p_value") is not None:
        lines.append(f"p-value {facts['p_value']:.4g} at epsilon {facts['epsilon_claimed'] or 0:g}")
    if facts["verdict"] is not None:
        lines.append(f"claim epsilon {facts['epsilon_claimed']:g}: {facts['verdict']}")
    return "\n".join([*lines, *(f"note: {note}" for note in facts["notes"]), ""])


def _share(rate: float | None) -> str:
    return "n/a" if rate is None else f"{rate:.2%}"


class _Parser(argparse.ArgumentParser):
    """argparse that raises one line where it would print a page of usage and exit."""

    def error(self, message: str) -> NoReturn:
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            raise ConfigError(f"{missing.replace('--', '')} is missing; see {self.prog} --help")
        text = re.sub(r"^argument (?:--)?([^:]+): ", r"\1: ", message)
        raise ConfigError(f"{text}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="safesynthdp audit", description="Lower bounds on epsilon.", allow_abbrev=False)
    methods = parser.add_subparsers(dest="METHOD", required=True, metavar="METHOD")
    one_run = _add(methods, "one-run", audit_one_run, "guesses on the canaries of one trained model")
    one_run.add_argument("--canaries", type=int, required=True, help="records put in or left out by a fair coin each")
    one_run.add_argument("--guesses", type=int, required=True, help="number of guesses, fixed in advance")
    one_run.add_argument("--correct", type=int, required=True, help="number of right guesses")
    trials = _add(methods, "clopper-pearson", audit_clopper_pearson, "error counts of independent trials")
    trials.add_argument("--false_positives", type=int, required=True, help="non-members called members")
    trials.add_argument("--nonmembers", type=int, required=True, help="trials without the canary")
    trials.add_argument("--false_negatives", type=int, required=True, help="members called non-members")
    trials.add_argument("--members", type=int, required=True, help="trials with the canary")
    scores = _add(methods, "scores", audit_scores, "a csv or parquet file with a score and a membership a record")
    scores.add_argument("file", metavar="FILE", help="one attack on one target; higher scores are more member-like")
    scores.add_argument("--score_column", default="score", help="column of scores (default: score)")
    scores.add_argument("--member_column", default="member", help="column of true/false or 1/0 (default: member)")
    scores.add_argument("--side", choices=("both", "top"), default="both", help="guess at both ends, or IN at the top")
    return parser


def _add(methods: Any, name: str, compute: Callable[[argparse.Namespace], Facts], what: str) -> argparse.ArgumentParser:
    method: argparse.ArgumentParser = methods.add_parser(name, help=what, description=what, allow_abbrev=False)
    method.set_defaults(compute=compute)
    method.add_argument("--claimed_epsilon", type=float, help="the claim to test; adds a verdict")
    method.add_argument("--delta", type=float, default=DEFAULT_DELTA, help="of the bound (default: 1e-5)")
    method.add_argument("--alpha", type=float, default=DEFAULT_ALPHA, help="probability of a wrong bound (default .05)")
    method.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return method
