"""What a run will spend, settled before the first private record is drawn.

Here: from the promise in the config to mechanisms, steps and the list of what is not covered. Elsewhere: the
mechanisms themselves and their prices (privacy/).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safesynthdp.errors import ConfigError
from safesynthdp.privacy.accounting import Priced
from safesynthdp.privacy.budget import Budget
from safesynthdp.privacy.mechanisms import DPSGDMechanism, LabelHistogramMechanism
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.privacy.token_histogram import TokenHistogramMechanism
from safesynthdp.records import Records
from safesynthdp.training import tracking
from safesynthdp.training.config import FinetuneConfig, PrivacyConfig
from safesynthdp.training.segments import NOT_COVERED, total_steps


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """The accesses a run will make, and their number."""

    sampler: DPSGDMechanism
    """Draws the batches; for ``privacy.mode: none`` its noise is not used and nothing is priced."""
    is_private: bool
    """False for ``privacy.mode: none``."""
    histogram: LabelHistogramMechanism | None
    """The noisy label counts; None = labels are uniform, or no guarantee is claimed."""
    tokens: TokenHistogramMechanism | None = None
    """The noisy token counts; None = none are taken, or no guarantee is claimed."""
    counts_tokens: bool = False
    """Token counts are taken; without a guarantee they are exact."""
    not_covered: tuple[str, ...]
    """Sentences for the ledger."""
    steps_before: int = 0
    """Steps that were charged under other promises, before this part of the run (segments.py)."""
    num_present: int | None = None
    """Units there are, where that is not ``num_units`` (data.nominal_num_records)."""

    @property
    def mechanism(self) -> DPSGDMechanism | None:
        """The sampled Gaussian mechanism that is run and priced; None if no guarantee is claimed."""
        return self.sampler if self.is_private else None

    @property
    def mechanisms(self) -> tuple[Priced, ...]:
        """All that this part of the run is priced for together; none if no guarantee is claimed."""
        return tuple(found for found in (self.mechanism, self.histogram, self.tokens) if found is not None)

    @property
    def steps(self) -> int:
        """Steps that will be charged under this promise."""
        return self.sampler.steps

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, those before this part included."""
        return self.steps_before + self.steps

    @property
    def num_units(self) -> int:
        """Records, or users, that the rate is planned with."""
        return self.sampler.num_records

    def draw(self, *, step: int, keys: StepKeys) -> NDArray[np.intp]:
        """Return the units of one global Poisson draw, by the very mechanism that is priced."""
        return self.sampler.draw_batch(step=step, keys=keys, num_present=self.num_present)


def make_plan(
    config: FinetuneConfig,
    records: Records,
    *,
    num_units: int,
    noise_multiplier: float | None,
    earlier: Sequence[DPSGDMechanism] = (),
    tokens: TokenHistogramMechanism | None = None,
) -> PrivacyPlan:
    """Return the plan of a run, or of what is left of it.

    Args:
        config: The resolved config.
        records: The training side; only its size and its public facts are used.
        num_units: Records or users there are; data.nominal_num_records, where it is given, is planned with instead.
        noise_multiplier: Known from the ledger of a run that goes on; None = from the config, or searched.
        earlier: What the run spent under other promises: the target covers it too, and its steps count as taken.
        tokens: The token counts that its ledger holds already, under whichever target they were taken.

    Raises:
        ConfigError: If all steps were taken before, the batch is larger than the data, or no noise meets the target.
        BudgetExhausted: If not even one step fits.
    """
    privacy = config.privacy
    known = noise_multiplier or privacy.noise_multiplier
    before = total_steps(earlier)
    sizes = {"num_units": num_units, "steps_before": before}
    plan = _unpriced_plan(config, records, noise_multiplier=known or 1.0, steps=None, **sizes)
    if not plan.is_private:
        return plan
    plan = dataclasses.replace(plan, tokens=tokens or plan.tokens)
    others: list[Priced] = [*earlier, *(found for found in (plan.histogram, plan.tokens) if found is not None)]
    sampler = _within_budget(plan.sampler, others, privacy, is_noise_known=known is not None)
    return dataclasses.replace(plan, sampler=sampler)


def same_plan(
    config: FinetuneConfig,
    records: Records,
    *,
    num_units: int,
    noise_multiplier: float,
    steps: int,
    steps_before: int = 0,
) -> PrivacyPlan:
    """Return the plan that another rank of this run settled and priced."""
    return _unpriced_plan(
        config,
        records,
        num_units=num_units,
        noise_multiplier=noise_multiplier,
        steps=steps,
        steps_before=steps_before,
    )


def _unpriced_plan(
    config: FinetuneConfig,
    records: Records,
    *,
    num_units: int,
    noise_multiplier: float,
    steps: int | None,
    steps_before: int,
) -> PrivacyPlan:
    batch, privacy = config.train.expected_batch_size, config.privacy
    planned = config.data.nominal_num_records or num_units
    if batch > planned:
        raise ConfigError(
            f"train.expected_batch_size={batch} is above the {planned} {privacy.unit}s to train on; lower it"
        )
    asked = config.train.max_steps or max(1, round((config.train.num_train_epochs or 0) * planned / batch))
    if asked <= steps_before:
        raise ConfigError(
            f"train.max_steps={asked}: {steps_before} steps are spent already under other settings; give more, since "
            "they count"
        )
    sampler = DPSGDMechanism(
        num_records=planned,
        expected_batch_size=batch,
        noise_multiplier=noise_multiplier,
        steps=asked - steps_before if steps is None else steps,
        per_sample_max_grad_norm=privacy.per_sample_max_grad_norm,
        accountant=privacy.accountant,
        adjacency=privacy.adjacency,
    )
    is_private = privacy.mode == "dp"
    return PrivacyPlan(
        sampler=sampler,
        is_private=is_private,
        histogram=_histogram(privacy) if is_private else None,
        tokens=_tokens(privacy) if is_private else None,
        counts_tokens=privacy.token_histogram_share is not None,
        not_covered=(*_not_covered(privacy, records), *_tracked(config), *((NOT_COVERED,) if steps_before else ())),
        steps_before=steps_before,
        num_present=num_units,
    )


def _within_budget(
    sampler: DPSGDMechanism,
    others: Sequence[Priced],
    privacy: PrivacyConfig,
    *,
    is_noise_known: bool,
) -> DPSGDMechanism:
    """Return the mechanism with the noise, or with fewer steps, that keep everything within the target."""
    budget = Budget(target_epsilon=privacy.target_epsilon, delta=privacy.target_delta)
    if not is_noise_known:
        found = budget.find_noise_multiplier(
            num_records=sampler.num_records,
            expected_batch_size=sampler.expected_batch_size,
            steps=sampler.steps,
            per_sample_max_grad_norm=sampler.per_sample_max_grad_norm,
            accountant=sampler.accountant,
            adjacency=sampler.adjacency,
            others=others,
        )
        sampler = dataclasses.replace(sampler, noise_multiplier=found)
    return sampler.with_steps(budget.affordable_steps(sampler, others))


def _histogram(privacy: PrivacyConfig) -> LabelHistogramMechanism | None:
    if privacy.label_histogram_epsilon is None:
        return None
    return LabelHistogramMechanism.from_epsilon(privacy.label_histogram_epsilon, adjacency=privacy.adjacency)


def _tokens(privacy: PrivacyConfig) -> TokenHistogramMechanism | None:
    if privacy.token_histogram_share is None or privacy.target_epsilon is None:
        return None
    epsilon = privacy.token_histogram_share * privacy.target_epsilon
    return TokenHistogramMechanism.from_epsilon(epsilon, delta=privacy.target_delta, adjacency=privacy.adjacency)


def _tracked(config: FinetuneConfig) -> tuple[str, ...]:
    is_sent = bool(config.tracking.report_to) and config.tracking.track_private_metrics
    return (tracking.NOT_COVERED,) if is_sent else ()


def _not_covered(privacy: PrivacyConfig, records: Records) -> tuple[str, ...]:
    lines = [
        "hyper-parameters: earlier trials on these records, if there were any, are not counted",
        "metrics.jsonl, the counts in manifest.json, and everything evaluation or attacks compute from private records",
        "data.fingerprint, here and in manifest.json: it confirms a guess of all records; remove it before publishing",
        "the base model's own pre-training data",
        "floating-point attacks on the noise",
    ]
    if not privacy.num_records_is_public:
        lines.append("the number of records: the sample rate and the noise are computed from it")
    if privacy.mode == "dp" and privacy.noise_generator == "device":
        lines.append(
            "noise of the steps: a device generator seeded from OS entropy, not a cryptographic stream; whoever could "
            "predict it could remove it"
        )
    if privacy.unsafe_seed is not None:
        lines.append("seeded: no guarantee against whoever knows the seed")
    return (*lines, *records.not_covered)
