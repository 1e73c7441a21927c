"""Do the intervals of the evaluation cover? Real text against real text, drawn again and again.

python benchmarks/evaluation_intervals.py                            # 200 draws of the builtin vader, 15 minutes
python benchmarks/evaluation_intervals.py --draws 40 --size 300      # shorter

Each draw takes two disjoint samples of one pool (train and test side together). C2ST and label and length distances are
judged against the truth (.5 and 0), coverage against its closed form, all others against their own mean over the draws,
which is what they estimate at this size. A 95 % interval should hold it in 90 to 99 % of the draws.
Writes benchmarks/results/DATE-evaluation-intervals.md.
"""

import argparse
import os
import subprocess
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from safesynthdp.data_config import DataConfig
from safesynthdp.evaluation.coverage import expected_coverage
from safesynthdp.evaluation.encoders import AUTO, TFIDF, Encoder, choose_encoder
from safesynthdp.evaluation.estimates import Estimate
from safesynthdp.evaluation.fidelity_diversity import estimate_of_set
from safesynthdp.evaluation.fidelity_pairs import coverage, distribution_distance, divergences, frechet, two_sample
from safesynthdp.evaluation.form import count_words
from safesynthdp.evaluation.pairs import Pair
from safesynthdp.progress import progress
from safesynthdp.records import Records, load_split

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
POOL = 8_000


def main() -> None:
    """Draw, measure, count, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--buckets", type=int, default=50)
    parser.add_argument("--embedding_model", default=AUTO)
    arguments = parser.parse_args()
    encoder, began = choose_encoder(arguments.embedding_model), time.monotonic()
    found = measure(encoder, draws=arguments.draws, size=arguments.size, buckets=arguments.buckets)
    lines = table(found, size=arguments.size)
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    head = (
        f"# Do the intervals cover? {datetime.now(UTC):%Y-%m-%d}\n\n`vader` against itself, {arguments.draws} draws of "
        f"{arguments.size} records a side, encoder {encoder.name}, {arguments.buckets} buckets; "
        f"{(time.monotonic() - began) / 60:.0f} minutes on {os.cpu_count()} shared cores, commit "
        f"{commit.stdout.strip()}. Target: 90 to 99 %.\n"
    )
    path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-evaluation-intervals.md"
    path.write_text("\n".join([head, *lines, ""]), encoding="utf-8")
    print("\n".join([head, *lines]))


def measure(encoder: Encoder, *, draws: int, size: int, buckets: int) -> dict[str, list[Estimate]]:
    """Return every number of every draw."""
    split = load_split(DataConfig(builtin="vader"))
    pool = split.train.select(np.random.default_rng(1).permutation(len(split.train))[:POOL].tolist())
    vectors = None if encoder.kind == TFIDF else encoder_vectors(encoder, pool)
    found = defaultdict[str, list[Estimate]](list)
    with progress("real against real", total=draws, unit="draws") as advance:
        for draw in range(draws):
            chosen = np.random.default_rng([2, draw]).permutation(len(pool))[: 2 * size]
            for name, estimate in of_draw(_pair(pool, chosen, vectors, encoder), buckets).items():
                found[name].append(estimate)
            advance(1)
    return found


def of_draw(pair: Pair, buckets: int) -> dict[str, Estimate]:
    """Return every number of one pair."""
    words = [count_words(side.texts) for side in (pair.real, pair.other)]
    return {
        "c2st_auc (encoder)": two_sample(pair, on="embeddings"),
        "c2st_auc (tfidf)": two_sample(pair, on="tfidf"),
        "c2st_auc (words)": two_sample(pair, on="words"),
        **divergences(pair, buckets=buckets, seeds=2),
        "frechet": frechet(pair),
        "coverage": coverage(pair),
        "length_ks (words)": distribution_distance(*words),
        **estimate_of_set(pair),
    }


def table(found: dict[str, list[Estimate]], *, size: int) -> list[str]:
    """Return the lines of the table."""
    truths = {"coverage": expected_coverage(size, size), "length_ks (words)": 0.0}
    truths |= {name: 0.5 for name in found if name.startswith("c2st")}
    lines = ["| number | judged against | mean | sd | mean half-width | holds it |", "|---|---|---|---|---|---|"]
    for name, estimates in found.items():
        values, lows, highs = (
            np.array([getattr(e, key) for e in estimates], dtype=np.float64) for key in ("value", "low", "high")
        )
        truth = truths.get(name, float(values.mean()))
        share = float(((lows <= truth) & (truth <= highs)).mean())
        lines.append(
            f"| {name} | {truth:.4f} | {values.mean():.4f} | {values.std(ddof=1):.4f} | "
            f"{(highs - lows).mean() / 2:.4f} | {share:.1%} |"
        )
    return lines


def encoder_vectors(encoder: Encoder, pool: Records) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return the vectors of the pool, kept between runs."""
    from safesynthdp.evaluation.embeddings import embed

    return embed(pool.texts, encoder=encoder)


def _pair(
    pool: Records,
    chosen: np.ndarray[tuple[int], np.dtype[np.intp]],
    vectors: np.ndarray[tuple[int, int], np.dtype[np.float32]] | None,
    encoder: Encoder,
) -> Pair:
    half = len(chosen) // 2
    sides = [pool.select(part.tolist()) for part in (chosen[:half], chosen[half:])]
    if vectors is not None:
        return Pair(real=sides[0], other=sides[1], real_ND=vectors[chosen[:half]], other_ND=vectors[chosen[half:]])
    from safesynthdp.evaluation.embeddings import embed_together

    together = embed_together([side.texts for side in sides], encoder=encoder)
    return Pair(real=sides[0], other=sides[1], real_ND=together[0], other_ND=together[1])


if __name__ == "__main__":
    main()
