"""What token counts and their matching are worth, chosen without the training records.

    python benchmarks/token_matching.py [--model smollm2-135m] [--rounds 0 1 2 3 5] [--num_records 400]

Half of the held-out texts of the builtin set, cut by a hash of each text: one part stands for the private records
(counts), one for the test (accuracy). The training side is not read, and the other half of the held-out texts neither.
The counts get noise of the size that the training side's N records would have at epsilon 1 and 8 (share 0.8 of it,
delta 1e-5), scaled down to the smaller part, so that signal and noise are in the same proportion. No model is trained:
the untuned one is steered. Of each fit as many texts are scored as come first, and as many that are chosen from more.
Writes benchmarks/results/DATE-token-matching-MODEL.md.
"""

import argparse
import itertools
import platform
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB

from safesynthdp.data_config import DataConfig
from safesynthdp.generation.draws import Sampling
from safesynthdp.generation.sampling import plan_rows, sample_texts
from safesynthdp.generation.selection import select
from safesynthdp.generation.settings import SampleConfig
from safesynthdp.generation.steering import Steering
from safesynthdp.generation.token_matching import matching_rounds
from safesynthdp.generation.token_targets import TokenTargets
from safesynthdp.model_config import ModelConfig
from safesynthdp.models import (
    LoadedModel,
    PromptTemplate,
    load_base_model,
    load_tokenizer,
    logits_width,
    quiet,
    token_id,
)
from safesynthdp.privacy.randomness import StepKeys
from safesynthdp.privacy.token_histogram import TokenHistogramMechanism
from safesynthdp.record_set import Records, split_bucket
from safesynthdp.records import load_split
from safesynthdp.training.examples import encode, text_ids
from safesynthdp.training.token_counts import token_table
from safesynthdp.training.units import Units
from safesynthdp.training.word_columns import WordColumns

PROMPT = "<|im_start|>user\nWrite one short sentence of a {label}.<|im_end|>\n<|im_start|>assistant\n"
FIRST_BUCKET, MIDDLE, END = 80, 85, 90
MAX_NEW_TOKENS = 44


def main() -> None:
    """Fit, sample, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, nargs="+", default=[0, 1, 2, 3, 5])
    parser.add_argument("--num_records", type=int, default=400)
    parser.add_argument("--candidates", type=int, default=3)
    parser.add_argument("--epsilons", type=float, nargs="+", default=[1.0, 8.0])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0])
    parser.add_argument("--word_buckets", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    quiet()
    began = time.monotonic()
    split = load_split(DataConfig(builtin="vader"))
    held = split.holdout
    halves = [_part(held, low, high) for low, high in ((FIRST_BUCKET, MIDDLE), (MIDDLE, END))]
    loaded = _loaded(arguments.model, split.train.label_set)
    lines = ["| epsilon | word buckets | temperature | rounds | candidates | distance | LR | naive Bayes |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for epsilon, buckets in itertools.product(arguments.epsilons, arguments.word_buckets):
        targets = _targets(halves[0], loaded, epsilon, size=len(split.train), buckets=buckets)
        for temperature in arguments.temperatures:
            for row in _study(loaded, targets, halves[1], arguments, epsilon, temperature):
                print(row, flush=True)
                lines.append(row)
    real = [_score(halves[0].select(range(arguments.num_records)), halves[1])]
    lines.append(f"| real texts | | | | | | {real[0][0]:.3f} | {real[0][1]:.3f} |")
    _write(arguments, lines, halves, seconds=time.monotonic() - began)


def _study(
    loaded: LoadedModel,
    targets: TokenTargets,
    test: Records,
    arguments: argparse.Namespace,
    epsilon: float,
    temperature: float,
) -> list[str]:
    wanted, many = arguments.num_records, arguments.candidates
    plan = [i % len(loaded.label_set) for i in range(wanted)]
    labels = [loaded.label_set[row] for row in plan]
    rows = plan_rows(loaded, labels * many, max_new_tokens=MAX_NEW_TOKENS)
    config = SampleConfig(
        run="-", output_dir="-", num_records=len(rows), batch_size=300, seed=0, temperature=temperature
    )
    fitted = matching_rounds(
        loaded.model,
        rows,
        targets,
        sampling=Sampling(temperature=temperature),
        eos_token_id=loaded.eos_token_id,
        seed=1,
        rounds=max(arguments.rounds),
        num_records=800,
        batch_size=300,
        advance=lambda _: None,
    )
    biases, wanted_LC = {0: torch.zeros(targets.released_LC.shape)}, np.empty(0)
    for number, found in enumerate(fitted, start=1):
        biases[number], wanted_LC = found.bias_LC, found.wanted_LC.numpy()
    told = []
    for number in arguments.rounds:
        texts = sample_texts(
            loaded.model,
            loaded,
            rows,
            config,
            advance=lambda _: None,
            keep=lambda _: None,
            steering=Steering(biases[number], targets.columns),
        )
        drawn = [texts[row.number].text for row in rows]
        tokens = [[*ids, loaded.eos_token_id] for ids in text_ids(drawn, tokenizer=loaded.tokenizer)]
        chosen = select(tokens, plan, targets, wanted_LC)
        ways = ((1, range(wanted), chosen.distance_unselected), (many, chosen.kept, chosen.distance_kept))
        for candidates, which, distance in ways:
            lr, nb = _accuracies([drawn[i] for i in which], labels, test)
            settings = f"{epsilon:g} | {targets.columns.num_buckets} | {temperature:g} | {number} | {candidates}"
            told.append(f"| {settings} | {distance:.3f} | {lr:.3f} | {nb:.3f} |")
    return told


def _targets(records: Records, loaded: LoadedModel, epsilon: float, *, size: int, buckets: int) -> TokenTargets:
    """Return the counts of one part, with the noise of ``size`` records at 0.8 of ``epsilon``, in proportion."""
    examples = encode(
        records.texts,
        records.labels,
        tokenizer=loaded.tokenizer,
        template=loaded.template,
        max_length=loaded.max_length,
    )
    columns = WordColumns.of(loaded.tokenizer, num_tokens=logits_width(loaded.model), num_buckets=buckets)
    table_LC = token_table(
        examples,
        records.labels,
        label_set=loaded.label_set,
        columns=columns,
        units=Units.of(records, unit="record"),
    )
    full = TokenHistogramMechanism.from_epsilon(0.8 * epsilon, delta=1e-5, adjacency="add_remove")
    noise = full.noise_multiplier * len(records) / size
    mechanism = TokenHistogramMechanism(noise_multiplier=noise)
    return TokenTargets(
        labels=loaded.label_set,
        columns=columns,
        released_LC=mechanism.draw(table_LC, keys=StepKeys.from_unsafe_seed(0)),
        noise_std=noise,
    )


def _loaded(name: str, labels: tuple[str, ...]) -> LoadedModel:
    config = ModelConfig(model_name_or_path=name, dtype="bfloat16")
    tokenizer = load_tokenizer(config)
    return LoadedModel(
        model=load_base_model(config, seed=0).train(False),
        tokenizer=tokenizer,
        template=PromptTemplate(text=PROMPT),
        max_length=64,
        eos_token_id=token_id(tokenizer.eos_token_id),
        label_set=labels,
    )


def _part(records: Records, low: int, high: int) -> Records:
    return records.select(i for i, text in enumerate(records.texts) if low <= split_bucket(text) < high)


def _score(train: Records, test: Records) -> tuple[float, float]:
    return _accuracies(train.texts, train.labels, test)


def _accuracies(texts: Sequence[str], labels: Sequence[str], test: Records) -> tuple[float, float]:
    vectoriser = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), max_features=50_000)
    train, seen = vectoriser.fit_transform(texts), vectoriser.transform(test.texts)
    truth = np.array(test.labels)
    models = (LogisticRegression(C=10, max_iter=1000), MultinomialNB(alpha=0.1))
    first, second = (float((model.fit(train, labels).predict(seen) == truth).mean()) for model in models)
    return first, second


def _write(arguments: argparse.Namespace, lines: Sequence[str], halves: Sequence[Records], *, seconds: float) -> None:
    today = datetime.now(UTC).date().isoformat()
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    path = Path(__file__).parent / "results" / f"{today}-token-matching-{arguments.model}.md"
    head = [
        f"# Matching released token counts: {arguments.model}, untuned",
        "",
        f"{arguments.num_records} texts, balanced over four labels; counts of {len(halves[0]):,} held-out texts with "
        f"the noise of an epsilon in proportion, accuracy on {len(halves[1]):,} other held-out texts; no training "
        "record was read. `distance`: total variation distance of a label's tokens in the scored texts from the "
        f"counts; {arguments.num_records} texts are scored, the first ones or those chosen from "
        f"{arguments.candidates} times as many; 800 texts a round of the fit.",
        "",
    ]
    tail = [
        "",
        f"`python benchmarks/token_matching.py`, {today}, commit {commit}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {seconds / 60:.0f} minutes.",
    ]
    path.write_text("\n".join([*head, *lines, *tail]) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
