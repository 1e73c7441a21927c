"""What scoring a pool and bounding epsilon cost, in seconds and memory.

python benchmarks/attack_scoring.py                                  # 16 models and a target, 100,000 records
python benchmarks/attack_scoring.py --records 10000 --models 8       # smaller

Made-up signals go to parquet; a fresh process reads them back, scores every attack, evaluates, and reports its own
peak memory. The text baseline (scikit-learn) is apart. Seconds are of the clock and of the processor. Writes
benchmarks/results/DATE-attack-scoring.md.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
BOUND_SECONDS, BOUND_GIB = 60.0, 2.0
SPREAD = {"mink_20": -5.0, "minkpp_20": -2.0, "ez_pos": 3.0, "ez_neg": 2.0}


def main() -> None:
    """Make the tables, measure in a child, write a dated file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=int, default=16)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--child", type=Path)
    arguments = parser.parse_args()
    if arguments.child is not None:
        sys.stdout.write(json.dumps(_measure(arguments.child)))
        return
    with tempfile.TemporaryDirectory() as folder:
        _make(Path(folder), models=arguments.models, records=arguments.records)
        command = [sys.executable, __file__, "--child", folder]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    _write(json.loads(said), models=arguments.models, records=arguments.records)


def _make(folder: Path, *, models: int, records: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from safesynthdp.attacks.made_up_pools import made_up_bits, made_up_signals, record_ids, signal_rows

    bits = made_up_bits(records, models=models)
    parts = [made_up_signals(bits, leak=0.5), made_up_signals(bits, leak=0.3, seed=1, channel="text")]
    rng, ids, everyone = np.random.default_rng(2), record_ids(records), [-2, *range(models + 1)]
    for signal, middle in SPREAD.items():
        values = middle + 0.1 * rng.normal(size=(models + 1, records))
        parts.append(signal_rows(values, ids, signal=signal, channel="model", models=everyone[1:]))
    values = rng.normal(size=(models + 1, records))
    parts.append(signal_rows(values, ids, signal="ngram3_lp", channel="text", models=everyone[1:]))
    for signal, channel in (("lp_sum", "model"), ("num_scored", "model"), ("ngram2_lp", "text"), ("ngram3_lp", "text")):
        base = np.full((1, records), 20.0) if signal == "num_scored" else rng.normal(size=(1, records))
        parts.append(signal_rows(base, ids, signal=signal, channel=channel, models=[-2]))
    pq.write_table(pa.concat_tables(parts).unify_dictionaries(), folder / "signals.parquet")
    pq.write_table(bits, folder / "assignment.parquet")
    sizes = rng.integers(50, 400, size=records)
    pq.write_table(pa.table({"record_id": ids, "unit_id": ids, "zlib_bytes": sizes}), folder / "records.parquet")


def _measure(folder: Path) -> dict[str, object]:
    import pyarrow.parquet as pq

    from safesynthdp.attacks.bounds import epsilon_one_run
    from safesynthdp.attacks.claims import Claim
    from safesynthdp.attacks.pool_audit import evaluate, joined
    from safesynthdp.attacks.pool_scores import Pool, available_attacks, score_pool

    stages: dict[str, tuple[float, float]] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        clock, processor = time.perf_counter(), time.process_time()
        yield
        stages[name] = (time.perf_counter() - clock, time.process_time() - processor)

    with timed("read and check the tables"):
        tables = {
            name: pq.read_table(folder / f"{name}.parquet", read_dictionary=["record_id", "channel", "signal"])
            for name in ("signals", "assignment", "records")
        }
        pool = Pool(tables.pop("signals"), tables.pop("assignment"), records=tables["records"])
    attacks = available_attacks(pool)
    parts = []
    for attack in attacks:
        with timed(f"score {attack}"):
            parts.append(score_pool(pool, attack=attack))
    claims = {"model": Claim(epsilon=4.0, delta=1e-5), "text": Claim(epsilon=4.0, delta=1e-5)}
    with timed("evaluate one attack (lira)"):
        one = evaluate(parts[attacks.index("lira")], claims)
    with timed(f"evaluate all {len(attacks)} attacks"):
        scores = joined(parts)
        parts.clear()
        del pool  # as the command does
        rows = evaluate(scores, claims, records=tables["records"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for size in (10**5, 10**6):
        with timed(f"one-run bound, m = r = {size:,}"):
            epsilon_one_run(canaries=size, guesses=size, correct=size * 6 // 10, delta=1e-7, alpha=0.05)
    has_torch = "torch" in sys.modules
    return {"stages": stages, "gib": peak, "torch": has_torch, "attacks": attacks, "rows": len(one) + len(rows)}


def _write(facts: dict[str, object], *, models: int, records: int) -> None:
    from safesynthdp.runs import commit, hardware

    stages: dict[str, tuple[float, float]] = facts["stages"]  # type: ignore[assignment]
    attacks: list[str] = facts["attacks"]  # type: ignore[assignment]
    pooled = {name: both for name, both in stages.items() if not name.startswith(("one-run", "evaluate one"))}
    clock, processor = (sum(both[i] for both in pooled.values()) for i in (0, 1))
    lira = ("read and check the tables", "score lira", "evaluate one attack (lira)")
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    lines = [
        f"# Scoring a pool, {date}",
        "",
        f"{models} models and a released one, {records:,} records, {len(attacks)} attacks, made-up signals in parquet.",
        f"Hardware {hardware()}, commit {commit()}. One repeat, in a fresh process; torch imported: {facts['torch']}.",
        "",
        f"All attacks, read to rows: {clock:.1f} s of the clock, {processor:.1f} s of the processor (bound "
        f"{BOUND_SECONDS:g} s); the default attack alone: {sum(stages[name][0] for name in lira):.1f} s and "
        f"{sum(stages[name][1] for name in lira):.1f} s. Peak {facts['gib']:.2f} GiB (bound {BOUND_GIB:g}).",
        "",
        "| stage | clock s | processor s |",
        "|---|---|---|",
        *(f"| {name} | {both[0]:.2f} | {both[1]:.2f} |" for name, both in stages.items()),
        "",
        f"Load average at the end: {os.getloadavg()[0]:.0f}; above the number of cores the clock is not this work's.",
        "Not measured: the text baseline, which reads texts and takes scikit-learn; writing scores.parquet.",
        "",
    ]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{date}-attack-scoring.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    sys.stdout.write("\n".join([*lines, f"written to {path}", ""]))


if __name__ == "__main__":
    main()
