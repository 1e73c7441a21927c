"""``safesynthdp finetune``: records to weights, with a ledger.

Here: the order of the stage, from the parsed config to the release. Elsewhere: each step of it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from safesynthdp.config import parse, to_mapping
from safesynthdp.errors import SafeSynthError
from safesynthdp.runs import LEDGER, RunDirectory
from safesynthdp.training.config import FinetuneConfig

if TYPE_CHECKING:
    from safesynthdp.training.plan import PrivacyPlan


def main(argv: Sequence[str]) -> None:
    """Train one model and write down what it cost."""
    config = parse(FinetuneConfig, argv, prog="safesynthdp finetune")
    run = RunDirectory.create(
        config.output_dir, kind="finetune", config=to_mapping(config), leave_out=("output_dir", "hardware")
    )
    if run.is_finished:
        run.say(f"{run.path} is finished already, with this config; nothing to do")
        return
    try:
        finetune(config, run)
    except SafeSynthError:
        run.discard()  # a request that must change leaves nothing behind; work that has begun stays
        raise


def finetune(config: FinetuneConfig, run: RunDirectory) -> None:
    """Run the stage in ``run``: data, plan, model, self-check, steps, release.

    Raises:
        SafeSynthError: One line for whatever stops it; nothing half-written is left behind.
    """
    from safesynthdp.records import load_split
    from safesynthdp.training.plan import make_plan
    from safesynthdp.training.spending import Spending
    from safesynthdp.training.units import Units

    split = load_split(config.data)
    for warning in split.train.warnings:
        run.say(f"warning: {warning}")
    privacy = config.privacy
    units = Units.of(split.train, unit=privacy.unit, max_records=privacy.max_records_per_user)
    sizes = f"{len(split.train):,} records to train on, {len(split.holdout):,} held out"
    run.say(f"{sizes}, {len(split.train.label_set)} labels")
    known = _known_noise_multiplier(run)
    plan = make_plan(config, split.train, num_units=len(units), noise_multiplier=known)
    _announce(config, plan, run)
    data = {
        "fingerprint": split.train.fingerprint,
        "num_records": plan.num_units,
        "num_records_is_public": config.privacy.num_records_is_public,
    }
    seeded = config.privacy.unsafe_seed is not None
    spending = Spending.open(run.path / LEDGER, plan=plan, privacy=config.privacy, data=data, seeded=seeded)
    run.update(
        data={
            "fingerprint": split.train.fingerprint,
            "num_records": len(split.train),
            "num_units": plan.num_units,
            "num_holdout": len(split.holdout),
            "holdout_fingerprint": split.holdout.fingerprint,
            "label_set": list(split.train.label_set),
            "label_set_is_public": split.train.label_set_is_public,
        }
    )
    from safesynthdp.training.session import run_session

    run_session(config, run, split.train, units=units, plan=plan, spending=spending)


def _known_noise_multiplier(run: RunDirectory) -> float | None:
    """A run that goes on keeps the noise of its ledger; a new one has none yet."""
    from safesynthdp.privacy.ledger import Ledger

    if not (run.path / LEDGER).is_file():
        return None
    entry = Ledger.read(run.path / LEDGER).entries[0]
    return float(entry.mechanism["noise_multiplier"]) if entry.kind == "dpsgd" else None


def _announce(config: FinetuneConfig, plan: "PrivacyPlan", run: RunDirectory) -> None:
    """Say what will be spent before anything is."""
    privacy = config.privacy
    if plan.mechanism is None:
        run.say("privacy.mode=none: no clip, no noise, no formal guarantee")
        return
    if privacy.target_delta > 1 / plan.num_units:
        run.say(
            f"warning: privacy.target_delta={privacy.target_delta:g} is above 1 / {plan.num_units}: it allows "
            f"publishing one {privacy.unit} in full; give a smaller one"
        )
    if privacy.unsafe_seed is not None:
        run.say("warning: privacy.unsafe_seed is set: no guarantee against whoever knows the seed")
    mechanism = plan.mechanism
    histogram = f", label histogram epsilon={privacy.label_histogram_epsilon:g}" if plan.histogram else ""
    run.say(
        f"plan: {plan.steps} steps, sample rate {mechanism.sample_rate:.4g}, noise multiplier "
        f"{mechanism.noise_multiplier:.4g}, clip {mechanism.per_sample_max_grad_norm:g}{histogram}"
    )
