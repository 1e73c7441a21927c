"""Pools that know nothing, through assignment, references and every attack.

Here: the mean AUC on noise, what keeping the pair would do, and that it is refused. Elsewhere: the tables
(made_up_pools.py), the attacks (pool_scores.py). R = 4000 records and at least 64 targets a size of pool put the
standard error of a mean AUC near .001.
"""

import math

import numpy as np
import pyarrow as pa

from safesynthdp.attacks import reference_attacks as ref
from safesynthdp.attacks.made_up_pools import made_up_bits, made_up_signals
from safesynthdp.attacks.metrics import auc
from safesynthdp.attacks.pool_scores import Pool, score, score_pool
from safesynthdp.attacks.selftest_rows import Check, near_check
from safesynthdp.errors import ConfigError

RECORDS, TARGETS = 4000, 64
SIZES = (6, 8, 16)
TOLERANCE = 0.005
_VARIANTS = (
    ("loss", "shrunk"),
    ("lira", "shrunk"),
    ("lira", "per_record"),
    ("lira", "global"),
    ("lira_offline", "shrunk"),
    ("t_mid", "shrunk"),
    ("rmia", "shrunk"),
    ("rmia_offline", "shrunk"),
    ("ngram2_rmia", "shrunk"),
)


def pool_checks(*, seed: int) -> list[Check]:
    """Return, for each size, the mean AUC that is furthest from chance, and that of LiRA with the pair kept."""
    checks = list[Check]()
    for size in SIZES:
        means = _means(size, seed=seed)
        name, worst = max(means.items(), key=lambda item: abs(item[1] - 0.5))
        what = f"noise, {size} models: AUC of the worst of {len(means)} attacks ({name})"
        checks.append(near_check("pool", what, found=worst, expected=0.5, tolerance=TOLERANCE))
    return [*checks, _pair_kept(seed=seed), _refusal()]


def _means(size: int, *, seed: int) -> dict[str, float]:
    """Return the mean AUC of each attack over the targets of several pools."""
    found: dict[str, list[float]] = {"/".join(variant): [] for variant in _VARIANTS}
    for number in range(math.ceil(TARGETS / size)):
        bits = made_up_bits(RECORDS, models=size, with_target=False, seed=1000 * seed + number)
        parts = [
            made_up_signals(bits, leak=0.0, seed=2 * (1000 * seed + number) + which, channel=channel)
            for which, channel in enumerate(("model", "text"))
        ]
        pool = Pool(pa.concat_tables(parts).unify_dictionaries(), bits)
        for attack, variance in _VARIANTS:
            table = score_pool(pool, attack=attack, variance=variance)  # type: ignore[arg-type]
            scores = np.asarray(table["score"].to_numpy()).reshape(size, RECORDS)
            for row, member in zip(scores, pool.bits.is_in_MR, strict=True):
                found[f"{attack}/{variance}"].append(auc(row[member], row[~member]))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _pair_kept(*, seed: int) -> Check:
    """Return the AUC of LiRA on noise by arrays, with the pair among the references of each target."""
    found = list[float]()
    rng = np.random.default_rng([seed, 8])
    for number in range(TARGETS // 8):
        is_in = np.asarray(made_up_bits(RECORDS, models=8, with_target=False, seed=number)["member"].to_pylist())
        is_in = is_in.reshape(8, RECORDS)
        values = rng.normal(size=is_in.shape)
        for target in range(8):
            others = [model for model in range(8) if model != target]
            scores = ref.lira(values[target], values[others], is_in[others])
            found.append(auc(scores[is_in[target]], scores[~is_in[target]]))
    mean = float(np.mean(found))
    return near_check("pool", "noise, pair kept: the answer leaks out", found=mean, expected=0.45, tolerance=0.02)


def _refusal() -> Check:
    bits = made_up_bits(20, models=6)
    try:
        score(made_up_signals(bits, leak=0.0), bits, drop_pair=False)
        found = "scored"
    except ConfigError:
        found = "refused"
    return Check(id="pool", what="asked to keep the pair", expected="refused", found=found, passed=found == "refused")
