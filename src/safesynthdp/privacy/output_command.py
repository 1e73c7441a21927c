"""``safesynthdp account output`` and ``account plan``: noise at sampling time, without a model.

Here: flags and answers. Elsewhere: the parser they belong to (command.py), prices (output_pricing.py), plans
(planner.py).
"""

import argparse
import sys
from typing import Any

from safesynthdp.errors import ConfigError
from safesynthdp.privacy import checks
from safesynthdp.privacy.command import DEFAULT_DELTA, number, round_up, whole
from safesynthdp.privacy.output_pricing import OutputMechanism
from safesynthdp.privacy.output_registry import output_mechanism
from safesynthdp.privacy.planner import plan_output

Answer = tuple[dict[str, Any], list[str], str | None]
_NUMBERS = ("clip", "scale", "temperature", "mixing")


def add_parsers(commands: Any) -> None:
    """Add both to the sub-commands of ``account``."""
    output = commands.add_parser("output", help="noise at sampling time: epsilon of every token that is drawn")
    _add_common(output, mechanism=None)
    output.add_argument("--shards", type=whole, required=True, help="disjoint groups of records that are averaged")
    output.add_argument("--single", action="store_true", help="one model that saw every record; with --shards 1")
    output.add_argument("--texts_per_batch", type=whole, default=1, help="all texts ever drawn from the same shards")
    output.add_argument("--adjacency", required=True, help="null, replace or many")
    output.add_argument("--group_size", type=whole, default=1, help="records protected at once; default 1")
    output.set_defaults(answer=_output)
    plan = commands.add_parser("plan", help="private prediction: shards, batches and clip for a target epsilon")
    _add_common(plan, mechanism="softmax")
    plan.add_argument("--target_epsilon", type=number, required=True, help="what may be spent")
    plan.add_argument("--num_records", type=whole, required=True, help="private records there are")
    plan.add_argument("--num_texts", type=whole, required=True, help="texts wanted")
    plan.add_argument("--adjacency", default="null", help="null (default), replace or many")
    plan.set_defaults(answer=_plan)
    for command in (output, plan):
        command.add_argument("--delta", type=number, default=DEFAULT_DELTA, help=f"default {DEFAULT_DELTA:g}")
        command.add_argument("--json", action="store_true", help="JSON with all digits")


def _add_common(command: argparse.ArgumentParser, *, mechanism: str | None) -> None:
    names = "softmax, laplace, gaussian_l2, laplace_probs, gaussian_probs or uniform_mix"
    command.add_argument("--mechanism", required=mechanism is None, default=mechanism, help=names)
    command.add_argument("--tokens", type=whole, required=True, help="longest text, end included; all are charged")
    command.add_argument("--clip", type=number, help="bound on what a shard does to a score")
    command.add_argument("--scale", type=number, help="Laplace scale or Gaussian standard deviation")
    command.add_argument("--temperature", type=number, help="of softmax (1), or of sampling after laplace")
    command.add_argument("--mixing", type=number, help="weight of the private distribution in uniform_mix")
    command.add_argument("--vocab_size", type=whole, help="tokens of the vocabulary, for uniform_mix")


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    return {key: getattr(arguments, key) for key in ("tokens", "adjacency", "vocab_size", *_NUMBERS)}


def _output(arguments: argparse.Namespace) -> Answer:
    mechanism = output_mechanism(
        arguments.mechanism,
        shards=arguments.shards,
        single=arguments.single or None,
        texts_per_batch=arguments.texts_per_batch,
        **_given(arguments),
    )
    delta = checks.probability("delta", arguments.delta)
    size = checks.whole("group_size", arguments.group_size, at_most=checks.MAX_STEPS)
    conversions = mechanism.conversions(delta) if size == 1 else mechanism.group_conversions(delta, size=size)
    if mechanism.single:
        sys.stderr.write(
            "warning: single: one model saw every record and is one shard, so nothing is averaged away whatever the "
            "noise; this promise is close to none\n"
        )
    facts = _facts(mechanism, delta, conversions, size=size)
    return facts, _lines(facts), None


def _facts(mechanism: OutputMechanism, delta: float, conversions: dict[str, float], *, size: int) -> dict[str, Any]:
    pure = mechanism.pure_epsilon
    facts: dict[str, Any] = {
        "epsilon": min(conversions.values()),
        "delta": delta,
        "pure_epsilon": None if pure is None else size * pure,
        "rho": size**2 * mechanism.rho,
        "score_range": mechanism.score_range,
        "conversions": conversions,
        "pure_epsilon_per_token": None if mechanism.pure_step is None else size * mechanism.pure_step,
        "steps": mechanism.steps,
    }
    if mechanism.l2_sensitivity is not None:
        facts["l2_sensitivity"] = mechanism.l2_sensitivity
    if size > 1:
        facts["group_size"] = size
    return facts


def _lines(facts: dict[str, Any]) -> list[str]:
    pure = "none" if facts["pure_epsilon"] is None else round_up(facts["pure_epsilon"])
    bound = facts["score_range"] if facts["score_range"] is not None else facts.get("l2_sensitivity")
    named = "score_range" if facts["score_range"] is not None else "l2_sensitivity"
    return [
        f"epsilon           {round_up(facts['epsilon'])}  (rounded up)",
        f"delta             {facts['delta']:g}",
        f"pure_epsilon      {pure}",
        f"rho               {round_up(facts['rho'])}",
        *([f"{named:<18}{bound:.6g}"] if bound is not None else []),
        f"steps             {facts['steps']}, all charged",
        *([f"group_size        {facts['group_size']} records"] if "group_size" in facts else []),
        *(f"by {name:<19}{round_up(value)}" for name, value in facts["conversions"].items()),
    ]


def _plan(arguments: argparse.Namespace) -> Answer:
    if arguments.mechanism == "uniform_mix":
        raise ConfigError("mechanism=uniform_mix is a demonstration and is not planned with; use softmax")
    given = {key: value for key, value in _given(arguments).items() if value is not None}
    found = plan_output(
        target_epsilon=arguments.target_epsilon,
        delta=arguments.delta,
        num_records=arguments.num_records,
        num_texts=arguments.num_texts,
        mechanism=arguments.mechanism,
        **given,
    )
    facts = {
        "epsilon": found.epsilon,
        "delta": arguments.delta,
        "num_batches": found.num_batches,
        "num_texts": found.num_texts,
        **found.mechanism.to_entry(),
        "forward_tokens": found.forward_tokens,
    }
    lines = [f"{key:<16}  {value}" for key, value in facts.items() if key not in ("epsilon", "single")]
    return facts, [f"epsilon           {round_up(found.epsilon)}  (rounded up)", *lines], None
