"""Both controls of a pool, on real models: without noise it is broken, with noise it stays below its ceiling.

Six shadow models and a released one, each trained from scratch by the commands that people type, on half of 64 texts by
the pool's own coins; one more time with DP-SGD.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safesynthdp.attacks.assignment import assignment_table
from safesynthdp.attacks.audit_rows import Row
from safesynthdp.attacks.claims import Claim, claim_of_release
from safesynthdp.attacks.matching import long_matches
from safesynthdp.attacks.nearest import nearest_similarity
from safesynthdp.attacks.ngram import ngram_signals
from safesynthdp.attacks.pool_audit import audit_pool, is_refuted
from safesynthdp.attacks.pool_signals import BASE_MODEL
from safesynthdp.attacks.record_signals import score_records
from safesynthdp.cli import run
from safesynthdp.privacy.ledger import Ledger
from safesynthdp.records import Records, read_records
from safesynthdp.runs import LEDGER, RunDirectory

NUM_RECORDS, NUM_MODELS, NUM_SAMPLED = 64, 6, 200
SYLLABLES = [a + b for a in "bdfgklmn" for b in "aeiou"]
EPSILON = 8.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True, kw_only=True)
class Audited:
    """A pool, attacked."""

    rows: list[Row]
    scores: pa.Table
    claims: dict[str, Claim]

    def row(self, attack: str, target: str = "pooled") -> Row:
        (found,) = (row for row in self.rows if row["attack"] == attack and row["target_id"] == target)
        return found


def write_texts(path: Path) -> Records:
    """Texts of eight random syllables: nothing can be learnt from one about another."""
    rng = np.random.default_rng(0)
    lines = [f"{' '.join(rng.choice(SYLLABLES, 8))},{'good' if i % 2 else 'bad'}" for i in range(NUM_RECORDS)]
    path.write_text("\n".join(["text,label", *lines, ""]))
    return read_records(path, labels=["good", "bad"])


def train(folder: Path, texts: Path, *, privacy: dict[str, str]) -> RunDirectory:
    from safesynthdp.training.command import main

    flags = {
        "output_dir": str(folder / "run"),
        "model.from_scratch.hidden_size": "64",
        "data.train_file": str(texts),
        "data.membership_file": str(folder / "members.parquet"),
        "data.labels": "[good, bad]",
        "data.holdout_percent": "0",
        "data.max_length": "40",
        "train.expected_batch_size": "16",
        "train.max_steps": "200",
        "train.learning_rate": "3e-3",
        **privacy,
    }
    assert run(main, [f"--{key}={value}" for key, value in flags.items()]) == 0
    return RunDirectory.open(folder / "run", kind="finetune")


def sample(source: RunDirectory, folder: Path, *flags: str) -> list[str]:
    from safesynthdp.generation.command import main

    argv = [
        "--run",
        str(source.path),
        "--output_dir",
        str(folder),
        "--num_records",
        str(NUM_SAMPLED),
        "--labels=uniform",
    ]
    assert run(main, [*argv, "--max_new_tokens=36", *flags]) == 0
    return [str(text) for text in pq.read_table(folder / "synthetic.parquet")["text"].to_pylist()]


def model_signals(source: RunDirectory, records: Records, *, untuned: bool, base: Any = None) -> tuple[pa.Table, Any]:
    from safesynthdp.models import load_run_model
    from safesynthdp.training.examples import encode
    from safesynthdp.training.token_statistics import token_statistics

    loaded = load_run_model(source, untuned=untuned)
    examples = encode(
        records.texts,
        records.labels,
        tokenizer=loaded.tokenizer,
        template=loaded.template,
        max_length=loaded.max_length,
    )
    found = token_statistics(loaded.model, examples)
    return score_records(found, record_ids=records.record_ids, base_log_probs=base), [s.log_probs for s in found]


def rows_of(table: pa.Table, model: int, channel: str) -> pa.Table:
    size = table.num_rows
    return pa.table(
        {
            "model_id": np.full(size, model),
            "record_id": table["record_id"].cast(pa.string()),
            "channel": [channel] * size,
            "signal": table["signal"].cast(pa.string()),
            "value": table["value"],
        }
    )


def text_rows(corpus: list[str], reference: list[str], records: Records, model: int) -> pa.Table:
    texts, everyone = list(records.texts), list(records.texts)
    values = ngram_signals(corpus, texts, vocabulary_texts=everyone)
    values["match_8"] = long_matches(corpus, texts, reference=reference).astype(np.float64)
    values["embed_nn"] = nearest_similarity(corpus, texts, vocabulary_texts=everyone)
    ids = list(records.record_ids)
    columns = {"record_id": ids * len(values), "signal": [name for name in values for _ in ids]}
    return rows_of(pa.table(columns | {"value": np.concatenate(list(values.values()))}), model, "text")


def attack(folder: Path, *, privacy: dict[str, str]) -> Audited:
    texts = folder / "private.csv"
    records = write_texts(texts)
    bits = assignment_table({i: i for i in records.record_ids}, seed=0, num_models=NUM_MODELS, with_target=True)
    member = np.asarray(bits["member"].to_pylist()).reshape(-1, len(records))
    parts, base, reference, target = list[pa.Table](), None, list[str](), None
    for model, row in enumerate(member):
        here = folder / str(model)
        here.mkdir()
        pq.write_table(pa.table({"record_id": list(records.record_ids), "member": row}), here / "members.parquet")
        own = {"privacy.unsafe_seed": str(model + 1)} if privacy["privacy.mode"] == "dp" else {}
        target = train(here, texts, privacy=privacy | own)
        if base is None:
            untuned, base = model_signals(target, records, untuned=True)
            reference = sample(target, here / "untuned", "--untuned=true")
            parts += [rows_of(untuned, BASE_MODEL, "model"), text_rows(reference, [], records, BASE_MODEL)]
        parts.append(rows_of(model_signals(target, records, untuned=False, base=base)[0], model, "model"))
        parts.append(text_rows(sample(target, here / "corpus"), reference, records, model))
    assert target is not None
    claims = {
        "model": claim_of_release(Ledger.read(target.path / LEDGER), "weights"),
        "text": claim_of_release(Ledger.read(folder / str(NUM_MODELS) / "corpus" / LEDGER), "synthetic_text"),
    }
    of_id = dict(zip(records.record_ids, records.texts, strict=True))
    scores, rows = audit_pool(pa.concat_tables(parts), bits, claims=claims, texts=of_id)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    return Audited(rows=rows, scores=scores, claims=claims)


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    return attack(tmp_path_factory.mktemp("overfitted"), privacy={"privacy.mode": "none"})


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    privacy = {"privacy.mode": "dp", "privacy.target_epsilon": str(EPSILON), "privacy.target_delta": "1e-3"}
    return attack(tmp_path_factory.mktemp("private"), privacy=privacy | {"train.max_steps": "60"})


def test_an_overfitted_model_is_broken_by_its_weights(overfitted: Audited) -> None:
    for name in ("lira", "t_mid", "rmia"):
        assert overfitted.row(name)["auc"] > 0.8
        assert overfitted.row(name)["tpr_at_fpr"]["0.01"] > 0.1


def test_an_overfitted_model_is_seen_in_its_text(overfitted: Audited) -> None:
    assert overfitted.row("ngram2_rmia")["auc"] > 0.6
    assert overfitted.row("ngram3_rmia")["auc"] > 0.6


def test_without_noise_there_is_no_claim_and_no_verdict(overfitted: Audited) -> None:
    assert overfitted.claims["model"].epsilon is None
    assert {row["verdict"] for row in overfitted.rows} == {None}
    assert overfitted.row("baseline", target="target")["benchmark_valid"] is True


def test_a_private_model_stays_within_the_ceiling_of_its_claim(private: Audited) -> None:
    assert not is_refuted(private.rows)
    for channel, name in (("model", "lira"), ("model", "rmia"), ("text", "ngram2_rmia"), ("text", "ngram3_rmia")):
        claim = private.claims[channel]
        assert claim.epsilon is not None
        assert claim.epsilon <= EPSILON
        assert claim.tradeoff is not None
        for target in ("pooled", "target"):
            row = private.row(name, target)
            assert row["tpr_at_fpr"]["0.1"] <= 1 - claim.tradeoff(0.1)
            assert row["verdict"] in ("no_power", "consistent")
            assert row["epsilon_lower_bound"] <= claim.epsilon


def test_noise_is_what_makes_the_difference(overfitted: Audited, private: Audited) -> None:
    for name in ("lira", "rmia", "ngram2_rmia"):
        assert overfitted.row(name)["auc"] > private.row(name)["auc"] + 0.1
