"""What the search for the noise of a target epsilon costs, by each accountant.

python benchmarks/noise_search.py                                      # 450 searches, some minutes on one core
python benchmarks/noise_search.py --accountants prv --steps 1000       # a part of the grid

Each search starts from an empty cache. Seconds are processor time, which a busy machine disturbs less than a clock;
importing opacus, which prv needs once a process and which loads torch, is timed apart. Each noise found is priced
again: epsilon must lie between target / 1.01 and target. Writes benchmarks/results/DATE-noise-search.md.
"""

import argparse
import itertools
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
TARGETS = (0.02, 0.1, 1.0, 10.0, 100.0)
RATES = (1e-4, 1e-3, 1e-2, 0.1, 0.5)
STEPS = (50, 1000, 20_000)
DELTAS = (1e-5, 1e-8)
BOUND = 2.0


@dataclass(frozen=True, kw_only=True)
class Search:
    """One search and what came of it."""

    accountant: str
    target: float
    rate: float
    steps: int
    delta: float
    seconds: float
    share: float
    """Epsilon of the noise found / target."""

    def line(self) -> str:
        """Return it as a row of a table."""
        return (
            f"| {self.accountant} | {self.target:g} | {self.rate:g} | {self.steps} | {self.delta:g} | "
            f"{self.seconds:.2f} | {self.share:.4f} |"
        )


def main() -> None:
    """Search the whole grid and write a dated file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--accountants", nargs="+", choices=["prv", "pld", "rdp"], default=["prv", "pld", "rdp"])
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    arguments = parser.parse_args()
    loading = _import_opacus()
    grid = itertools.product(arguments.accountants, TARGETS, RATES, arguments.steps, DELTAS)
    _write([_searched(*place) for place in grid], loading)


def _import_opacus() -> float:
    """Return the processor seconds of prv's first price, which imports opacus and torch."""
    from safesynthdp.privacy.accounting import dpsgd_epsilon

    began = time.process_time()
    dpsgd_epsilon(noise_multiplier=1.0, sample_rate=0.01, steps=10, delta=1e-5, accountant="prv")
    return time.process_time() - began


def _searched(accountant: str, target: float, rate: float, steps: int, delta: float) -> Search:
    from safesynthdp.privacy import accounting

    accounting._price.cache_clear()
    common = {"sample_rate": rate, "steps": steps, "delta": delta, "accountant": accountant}
    began = time.process_time()
    noise = accounting.find_noise_multiplier(target_epsilon=target, **common)  # type: ignore[arg-type]
    seconds = time.process_time() - began
    spent = accounting.dpsgd_epsilon(noise_multiplier=noise, **common)  # type: ignore[arg-type]
    return Search(
        accountant=accountant,
        target=target,
        rate=rate,
        steps=steps,
        delta=delta,
        seconds=seconds,
        share=spent / target,
    )


def _write(searches: list[Search], loading: float) -> None:
    from safesynthdp.runs import commit, hardware

    date = datetime.now(UTC).strftime("%Y-%m-%d")
    steps = _listed(sorted({search.steps for search in searches}))
    lines = [
        f"# The search for noise, {date}",
        "",
        f"Targets {_listed(TARGETS)}; sample rates {_listed(RATES)}; steps {steps}; delta {_listed(DELTAS)}.",
        f"Hardware {hardware()}, commit {commit()}. Processor seconds, one repeat. The first price of prv, with the",
        f"import of opacus and torch, took {loading:.1f} s and is not part of the table.",
        "share = epsilon of the noise found / target.",
        "",
        f"| accountant | searches | median s | most s | above {BOUND:g} s | least share | below 1 / 1.01 | above 1 |",
        "|---|---|---|---|---|---|---|---|",
        *(_summary(name, searches) for name in dict.fromkeys(search.accountant for search in searches)),
        "",
        "The slowest of each accountant, and whatever misses a bound:",
        "",
        "| accountant | target | sample rate | steps | delta | s | share |",
        "|---|---|---|---|---|---|---|",
        *(search.line() for search in _worth_showing(searches)),
        "",
        "Not measured: replace, joint targets with a label histogram, more than 20,000 steps.",
        "",
    ]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{date}-noise-search.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    sys.stdout.write("\n".join([*lines, f"written to {path}", ""]))


def _summary(accountant: str, searches: list[Search]) -> str:
    seconds = [search.seconds for search in searches if search.accountant == accountant]
    shares = [search.share for search in searches if search.accountant == accountant]
    return (
        f"| {accountant} | {len(seconds)} | {statistics.median(seconds):.2f} | {max(seconds):.2f} | "
        f"{sum(s > BOUND for s in seconds)} | {min(shares):.4f} | {sum(s < 1 / 1.01 for s in shares)} | "
        f"{sum(s > 1 for s in shares)} |"
    )


def _worth_showing(searches: list[Search]) -> list[Search]:
    """Return the three slowest of each accountant and everything out of bounds."""
    names = {search.accountant for search in searches}
    slowest = {
        search
        for name in names
        for search in sorted((s for s in searches if s.accountant == name), key=lambda s: -s.seconds)[:3]
    }
    wrong = {s for s in searches if s.seconds > BOUND or not 1 / 1.01 <= s.share <= 1}
    return [search for search in searches if search in slowest | wrong]


def _listed(values: tuple[float, ...] | list[int]) -> str:
    return ", ".join(f"{value:g}" for value in values)


if __name__ == "__main__":
    main()
