"""The privacy statement: every field, in one order, whether it is known or not.

Here: the fields and where each is read. Elsewhere: the ledger (guarantee.py), the stages (facts.py). A field that no
file states reads "not stated"; none is ever left out.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from safesynthdp.reporting.audits import is_baseline, strongest_of_pools, verdict_text
from safesynthdp.reporting.facts import Group, Stage
from safesynthdp.reporting.guarantee import SEEDED, Access, Claim, Guarantee
from safesynthdp.reporting.layout import Fact
from safesynthdp.reporting.wording import (
    NO_GUARANTEE,
    NOT_STATED,
    count_text,
    epsilon_text,
    interval_text,
    number_text,
    rate_text,
    value_text,
)

ADJACENCY = {
    "add_remove": "two data sets are neighbours if one unit is added or removed",
    "replace": "two data sets are neighbours if one unit is exchanged for another",
}
ARTIFACTS = {
    "weights": "model weights",
    "synthetic_text": "synthetic text",
    "label_histogram": "noisy label counts",
    "token_histogram": "noisy token counts",
}
RULES = {
    "compose": "composition of every access it can be traced to",
    "post_processing": "post-processing: no access beyond what it was made from",
    "min": "the smaller of two bounds on the same text, weights withheld",
}
THREATS = {"model": "the released weights and the recipe", "text": "the synthetic text and the recipe"}
WITHHELD = "withheld: the number is not public"
Reader = Callable[[Group, Guarantee], str | None]


def statement(group: Group, guarantee: Guarantee) -> tuple[Fact, ...]:
    """Return every field of the privacy statement; for a public page, of facts that publish.py let through."""
    facts = [(name, read(group, guarantee)) for name, read in FIELDS.items()]
    return tuple(Fact(name=name, value=value or NOT_STATED, tone="" if value else "faint") for name, value in facts)


def claim_text(claim: Claim) -> str:
    """Return one release in words.

    >>> claim_text(Claim(run_id="", kind="sample", is_untuned=False, artifact="weights", epsilon=7.9801,
    ...     recomputed=7.98, delta=1e-05, rule="compose", entries=(), accountant="pld", not_covered=(), problem=None))
    'model weights: epsilon 7.9801 at delta 1e-05'
    """
    name = f"{ARTIFACTS.get(claim.artifact, claim.artifact)}{' (untuned model)' if claim.is_untuned else ''}"
    if claim.epsilon is None:
        return f"{name}: {NO_GUARANTEE}"
    delta = "" if claim.delta is None else f" at delta {value_text(claim.delta)}"
    return f"{name}: epsilon {epsilon_text(claim.epsilon)}{delta}"


def num_records_text(access: Access) -> str | None:
    """Return how many records an access read, and whether that number is public."""
    count, is_public = access.data.get("num_records"), access.data.get("num_records_is_public")
    if not isinstance(count, int):
        return WITHHELD if is_public is False else None
    return f"{count_text(count)}; the number {'counts as public' if is_public is True else 'is private'}"


def _adjacency(_: Group, guarantee: Guarantee) -> str | None:
    name = guarantee.adjacency
    return None if name is None else f"{name}: {ADJACENCY.get(name, 'see the ledger')}"


def _unit(group: Group, guarantee: Guarantee) -> str | None:
    if guarantee.unit == "record":
        return "one record; a person with k records is protected at group size k only"
    if guarantee.unit == "user":
        return f"one user, with all records that share {_config(group, 'data', 'user_column') or 'a user id'}"
    return None


def _records_per_user(group: Group, guarantee: Guarantee) -> str | None:
    if guarantee.unit == "user":
        most = _config(group, "privacy", "max_records_per_user")
        return f"any number; at most {most or 1} of a drawn user's records are used in a step, and clipped together"
    return "not bounded: records are the unit" if guarantee.unit == "record" else None


def _chunking(group: Group, _: Guarantee) -> str | None:
    length = _config(group, "data", "max_length")
    return None if length is None else f"none: one record is one example, cut after {length} tokens"


def _releases(_: Group, guarantee: Guarantee) -> str | None:
    return _lines(claim_text(claim) for claim in guarantee.claims)


def _rules(_: Group, guarantee: Guarantee) -> str | None:
    rules = (f"{ARTIFACTS.get(c.artifact, c.artifact)}: {RULES.get(c.rule, c.rule)}" for c in guarantee.tuned)
    return _lines(rules)


def _accountant(_: Group, guarantee: Guarantee) -> str | None:
    return _lines(claim.accountant for claim in guarantee.tuned if claim.accountant)


def _sampling(_: Group, guarantee: Guarantee) -> str | None:
    training = _training(guarantee)
    if training is None:
        return None
    if training.kind != "dpsgd":
        return "none assumed: the run trained without privacy"
    done = training.mechanism.get("sampling")
    said = NOT_STATED if done is None else f"{str(done).capitalize()}, as priced"
    return f"assumed: Poisson, each unit drawn on its own; done: {said}"


def _training_numbers(_: Group, guarantee: Guarantee) -> str | None:
    parts = [a.mechanism for a in guarantee.accesses if a.kind in ("dpsgd", "none") and a.mechanism]
    return _lines(value_text({key: value for key, value in part.items() if key in _TRAINING_KEYS}) for part in parts)


def _num_records(_: Group, guarantee: Guarantee) -> str | None:
    return _lines(text for access in guarantee.accesses if (text := num_records_text(access)) is not None)


def _labels(group: Group, _: Guarantee) -> str | None:
    data = _data(group)
    if "label_set_is_public" not in data:
        return None
    if data["label_set_is_public"] is True:
        return f"given as public: {value_text(data.get('label_set'))}"
    return "read off the private records, at no charge: which labels occur is not covered"


def _histogram(group: Group, guarantee: Guarantee) -> str | None:
    tokens = [access for access in guarantee.accesses if access.kind == "token_histogram"]
    also = [f"and of each label's tokens: {value_text(dict(access.mechanism))}" for access in tokens]
    found = [access for access in guarantee.accesses if access.kind == "label_histogram"]
    if found:
        return _lines([f"noisy counts: {value_text(dict(access.mechanism))}" for access in found] + also)
    histogram = group.finetune.histogram if group.finetune is not None else None
    source = None if histogram is None else histogram.get("source")
    text = {"uniform": "none: labels are drawn uniformly, at no cost", "exact": "exact counts, not private"}
    return _lines([*([text[str(source)]] if str(source) in text else []), *also])


def _trials(_: Group, guarantee: Guarantee) -> str | None:
    if not guarantee.accesses:
        return None
    return "not counted: the ledger knows this run only; every earlier trial on the same records spent its own epsilon"


def _randomness(_: Group, guarantee: Guarantee) -> str | None:
    sources = dict.fromkeys(str(a.randomness["source"]) for a in guarantee.accesses if a.randomness.get("source"))
    return ", ".join(sources) or None


def _seed(_: Group, guarantee: Guarantee) -> str | None:
    if not guarantee.accesses:
        return None
    return SEEDED if guarantee.is_seeded else "not set: keys came from the operating system"


def _filters(group: Group, _: Guarantee) -> str | None:
    if not any(not sample.is_untuned for sample in group.samples):
        return "none: no text was sampled"
    stages = [sample.stage for sample in group.samples if not sample.is_untuned and sample.stage.config]
    return _lines(dict.fromkeys(f"{_choice(stage)}; decoding by public rules: {_decoding(stage)}" for stage in stages))


def _choice(stage: Stage) -> str:
    """Say which of the drawn texts were written."""
    candidates = (stage.manifest.get("token_matching") or {}).get("candidates")
    if candidates is None:
        return "nothing is filtered out"
    return f"of {candidates} texts drawn for each one written, those closest together to the released token counts"


def _decoding(stage: Stage) -> str:
    shown = ("temperature", "top_k", "top_p", "max_new_tokens")
    return value_text({key: stage.config[key] for key in shown if key in stage.config})


def _pretraining(group: Group, _: Guarantee) -> str | None:
    name = _config(group, "model", "model_name_or_path")
    if name is None and _config(group, "model", "from_scratch") is not None:
        return "no base model: trained from random weights"
    return f"not protected: whatever {name or 'the base model'} saw before; public text may already be in it"


def _released(_: Group, guarantee: Guarantee) -> str | None:
    return _lines(dict.fromkeys(ARTIFACTS.get(c.artifact, c.artifact) for c in guarantee.tuned))


def _withheld(_: Group, guarantee: Guarantee) -> str | None:
    if not guarantee.claims:
        return None
    return "optimizer state, keys, training progress, attack scores, evaluation on private records"


def _not_covered(_: Group, guarantee: Guarantee) -> str | None:
    lines = dict.fromkeys(line for claim in guarantee.claims for line in claim.not_covered)
    return _lines(lines) or ("nothing is listed" if guarantee.claims else None)


def _audit(group: Group, guarantee: Guarantee) -> str | None:
    rows = [row for attack in group.attacks for row in attack.rows or () if not is_baseline(row)]
    if not rows:
        return "not done, or not published"
    rows = [row for row in rows if row.pool is None or row in strongest_of_pools(rows, guarantee)]
    return _lines(
        f"{row.title}: threat model: an attacker who holds {THREATS.get(row.channel, row.channel)} (channel "
        f"{row.channel}); {count_text(row.num_members)} members, {'canaries' if row.role == 'canary' else 'records'}, "
        f"against {count_text(row.num_nonmembers)}; method {row.method or NOT_STATED}; confidence "
        f"{NOT_STATED if row.alpha is None else value_text(round(1 - row.alpha, 6))}; AUC {rate_text(row.auc)} "
        f"{interval_text(*(row.auc_interval or (None, None)))}; epsilon at least "
        f"{number_text(row.epsilon_lower_bound)}, attainable {number_text(row.epsilon_attainable)}; "
        f"verdict: {verdict_text(row, guarantee)}"
        for row in rows
    )


def _evaluated(group: Group, _: Guarantee) -> str | None:
    if not group.evaluations:
        return "not done"
    done = [e for e in group.evaluations if e.metrics is not None]
    roles = {role for e in done for row in e.metrics or () for role in row.reads}
    return f"whoever ran {len(done)} evaluation(s), on: {', '.join(sorted(roles))}" if roles else "not published"


def _software(group: Group, _: Guarantee) -> str | None:
    if group.finetune is None:
        return None
    manifest = group.finetune.stage.manifest
    version = (manifest.get("versions") or {}).get("safesynthdp")
    parts = {"safesynthdp": version, "commit": manifest.get("commit"), "date": manifest.get("finished")}
    return ", ".join(f"{key} {value or NOT_STATED}" for key, value in parts.items())


_TRAINING_KEYS = ("noise_multiplier", "per_sample_max_grad_norm", "expected_batch_size", "steps", "sample_rate")
FIELDS: Mapping[str, Reader] = {
    "neighbouring relation": _adjacency,
    "unit": _unit,
    "records per user": _records_per_user,
    "chunking": _chunking,
    "epsilon and delta of each release": _releases,
    "composition rule": _rules,
    "accountant and version": _accountant,
    "sampling, assumed and done": _sampling,
    "noise multiplier, clip, expected batch, steps": _training_numbers,
    "number of records": _num_records,
    "label set": _labels,
    "label and token histogram and their cost": _histogram,
    "hyper-parameter trials on private data": _trials,
    "randomness source": _randomness,
    "unsafe seed": _seed,
    "filters and post-processing": _filters,
    "pre-training": _pretraining,
    "what is released": _released,
    "what is not released": _withheld,
    "not covered": _not_covered,
    "audit": _audit,
    "who evaluated on what": _evaluated,
    "software, commit, date": _software,
}


def _training(guarantee: Guarantee) -> Access | None:
    return next((access for access in guarantee.accesses if access.kind in ("dpsgd", "none")), None)


def _config(group: Group, section: str, key: str) -> Any:
    if group.finetune is None:
        return None
    return (group.finetune.stage.config.get(section) or {}).get(key)


def _data(group: Group) -> Mapping[str, Any]:
    return {} if group.finetune is None else group.finetune.stage.manifest.get("data") or {}


def _lines(lines: Iterable[str]) -> str | None:
    """One a line; the same line once."""
    return "\n".join(dict.fromkeys(lines)) or None
