"""A complete set of run directories in the documented formats, with hostile text in it and numbers that can be found.

``runs`` writes into ``tmp_path``: finetune, sample (tuned and untuned), evaluate, attack. Every number that may not
leave is written with digits that occur nowhere else, so that a test can look for them.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from safesynthdp.cli import run as run_main
from safesynthdp.reporting import figures
from safesynthdp.reporting.command import main
from safesynthdp.runs import RunDirectory

HOSTILE = (
    "<script>document.title='pwned'</script>",
    "</svg></style></textarea><img src=x onerror=\"document.title='pwned'\">",
    "{{7*7}} {% raw %} ${7*7} <%= 7*7 %>",
    "reversed \u202egnp.exe\u202c and \u200fmarked, zero\u200bwidth, nul\x00bell\x07",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \U0001f468\u200d\U0001f469\u200d\U0001f467 two\nlines",
    "w" * 5000,
    'onmouseover="document.title=1" \' style="position:fixed" javascript:alert(1) &lt;b&gt;',
)
LABELS = ("amazon reviews", "movie <b>reviews</b>", "$\\frac{1}{0$", "tweets")
PRIVATE_VALUES = {
    "real accuracy": 0.86731,
    "real ceiling": 0.81937,
    "memorised": 0.00813,
    "loss": 3.14181,
    "attack auc": 0.52917,
    "holdout accuracy": 0.74293,
    "direct": 0.79157,
}
NOTES = ("coins were fair and drawn before training",)
DELTA = 1e-6


@dataclass(frozen=True)
class Runs:
    """Where the directories lie."""

    folder: Path
    finetune: Path
    sample: Path
    untuned: Path
    evaluation: Path
    attack: Path


@dataclass(frozen=True)
class Drawn:
    """A report of the whole set; not to be changed by a test."""

    page: str
    twin: str
    code: int
    cards: dict[str, str]
    """Of the weights and of the tuned sample."""


@pytest.fixture(scope="session", autouse=True)
def _coarse_pictures() -> Iterator[None]:
    """What a PNG shows is looked at in no test; drawing it finely takes a third of the time of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "PNG_DPI", 20)
        yield


@pytest.fixture(scope="session")
def internal(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return draw(tmp_path_factory.mktemp("internal"))


@pytest.fixture(scope="session")
def public(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return draw(tmp_path_factory.mktemp("public"), "--public")


def draw(folder: Path, *flags: str) -> Drawn:
    write_runs(folder / "runs")
    out = folder / "out"
    code = run_main(main, [str(folder / "runs"), "--output_dir", str(out), *flags])
    page = (out / "report.html").read_text(encoding="utf-8")
    run_id = json.loads((folder / "runs/synthetic/manifest.json").read_text())["run_id"]
    found = {"model": next(out.glob("cards/model-*.md")), "dataset": out / f"cards/dataset-{run_id[:8]}.md"}
    cards = {kind: path.read_text(encoding="utf-8") for kind, path in found.items()}
    return Drawn(page, (out / "report.json").read_text(), code, cards)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return write_runs(tmp_path / "runs")


@pytest.fixture(scope="session")
def make_runs() -> Callable[[Path], Runs]:
    """For fixtures that outlive a test."""
    return write_runs


@pytest.fixture
def edit() -> Callable[[Path, Callable[[Any], object]], None]:
    return edit_json


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_runs(folder: Path) -> Runs:
    finetune = write_finetune(folder / "vader-eps4")
    sample = write_sample(folder / "synthetic", finetune, untuned=False)
    untuned = write_sample(folder / "untuned", finetune, untuned=True)
    evaluation = write_evaluation(folder / "evaluation", [finetune, sample, untuned])
    attack = write_attack(folder / "attack", finetune)
    paths = [run.path for run in (finetune, sample, untuned, evaluation, attack)]
    return Runs(folder, *paths)


@pytest.fixture
def write_grid() -> Callable[..., list[Path]]:
    return write_grid_of


def write_grid_of(
    folder: Path, *, epsilons: Sequence[float | None] = (0.5, 1, 2, 4, 8, None), seeds: int = 2
) -> list[Path]:
    """Runs for each epsilon, None without privacy, each with all of its stages; returns the finetune runs."""
    found = list[Path]()
    for number, epsilon in enumerate(epsilons):
        for seed in range(seeds):
            runs = write_runs(folder / f"{number}-eps{epsilon}-seed{seed}")
            _shift(runs, epsilon=epsilon, accuracy=0.55 + 0.03 * number + 0.008 * seed)
            found.append(runs.finetune)
    return found


def _shift(runs: Runs, *, epsilon: float | None, accuracy: float) -> None:
    """Make a run of another epsilon out of one of 4.48; the ledgers stay true."""
    for path in (runs.finetune, runs.sample):
        edit_json(path / "ledger.json", lambda value: _price(value, epsilon))
    by = accuracy - PRIVATE_VALUES["holdout accuracy"]
    edit_json(runs.evaluation / "metrics.json", lambda value: _move(value, by))
    bound = 5.1 if epsilon is None else 0.0 if epsilon < 1 else 0.35 * epsilon
    changed = {"epsilon_claimed": epsilon, "epsilon_lower_bound": bound, "verdict": epsilon and "consistent"}
    edit_json(runs.attack / "audit.json", lambda value: value["rows"][3].update(changed))


def _price(value: Any, epsilon: float | None) -> None:
    if epsilon is None:
        value["entries"] = [{**entry, "kind": "none", "mechanism": {"steps": 300}} for entry in value["entries"][1:]]
    for release in value["releases"]:
        release.update({"epsilon": epsilon} | ({"entries": ["dpsgd"]} if epsilon is None else {}))
    noise = {0.5: 6.0, 1: 3.3, 2: 1.9, 4: 1.1}.get(epsilon or 0)
    for entry in value["entries"]:
        if entry["id"] == "dpsgd" and noise is not None:
            entry["mechanism"]["noise_multiplier"] = noise


def _move(value: Any, by: float) -> None:
    for row in value["metrics"]:
        if row["train_on"] == "synthetic" and row["name"] in ("accuracy", "macro_f1", "recall"):
            row.update({key: row[key] + by for key in ("value", "low", "high")})


def write_finetune(path: Path) -> RunDirectory:
    config = {
        "output_dir": str(path),
        "model": {"model_name_or_path": "smollm2-135m", "revision": None, "dtype": "float32"},
        "lora": {"enabled": True, "lora_r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
        "data": {
            "train_file": "/secret/ward7/letters.csv",
            "prompt_template": "Write a text about {label}:",
            "max_length": 64,
            "labels": list(LABELS),
            "holdout_percent": 20,
        },
        "privacy": {
            "mode": "dp", "target_epsilon": 4.48, "target_delta": DELTA, "unit": "record", "adjacency": "add_remove",
            "accountant": "pld", "num_records_is_public": False, "unsafe_seed": None,
        },
        "train": {"expected_batch_size": 4096, "max_steps": 300, "learning_rate": 0.001, "seed": 0},
        "hardware": {"clipping_engine": "auto"},
    }  # fmt: skip
    run = RunDirectory.create(path, kind="finetune", config=config)
    write_json(path / "ledger.json", ledger("weights"))
    histogram = {"labels": list(LABELS), "noisy_counts": [31002, 29871, 28114, 31033], "shares": [0.25] * 4}
    write_json(path / "label_histogram.json", histogram | {"source": "discrete_laplace"})
    lines = [
        {"step": step, "loss": PRIVATE_VALUES["loss"] * 0.995**step, "clip_share": 0.9 - 0.001 * step, "seconds": 1.0}
        for step in range(1, 301)
    ]
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 301, "lo')
    run.finish(
        data={
            "num_records": 120000, "num_holdout": 30017, "num_truncated": 4173, "fingerprint": "f1a9" * 16,
            "label_set": list(LABELS), "label_set_is_public": True,
        },
        engine="hooks",
        num_trainable=460800,
    )  # fmt: skip
    return run


def write_sample(path: Path, finetune: RunDirectory, *, untuned: bool) -> RunDirectory:
    config = {"run": str(finetune.path), "num_records": 1000, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0}
    run = RunDirectory.create(path, kind="sample", config=config | {"untuned": untuned}, parents=[finetune])
    texts = [*HOSTILE, *(f"a plain synthetic text number {number}" for number in range(13))]
    labels = [LABELS[number % len(LABELS)] for number in range(len(texts))]
    table = {"text": texts, "label": labels, "record_id": [f"s{number}" for number in range(len(texts))]}
    pyarrow.parquet.write_table(pyarrow.table(table), path / "synthetic.parquet")
    write_json(path / "ledger.json", ledger("untuned" if untuned else "synthetic_text"))
    counts = {"empty": 0, "truncated": 14, "malformed": 2}
    run.finish(num_records=len(texts), requested=len(texts), untuned=untuned, counts=counts, texts_per_second=5.2)
    return run


def ledger(artifact: str) -> dict[str, Any]:
    """The ledger of a run whose exact epsilon is 4.4721 (with the histogram), stated as 4.48."""
    entropy = {"source": "os_entropy", "seeded": False}
    data = {"fingerprint": "f1a9" * 16, "num_records": 120000, "num_records_is_public": False}
    entries = [
        {
            "id": "label_histogram", "kind": "label_histogram", "data": data, "randomness": entropy, "parents": [],
            "mechanism": {"mechanism": "laplace", "scale": 10.0, "adjacency": "add_remove"},
        },
        {
            "id": "dpsgd", "kind": "dpsgd", "data": data, "randomness": entropy, "parents": [],
            "mechanism": {
                "num_records": 120000, "expected_batch_size": 4096, "noise_multiplier": 1.0, "steps": 300,
                "per_sample_max_grad_norm": 1.0, "accountant": "pld", "adjacency": "add_remove",
                "sample_rate": 4096 / 120000, "sampling": "poisson",
            },
        },
    ]  # fmt: skip
    accountant = {"name": "pld", "version": "0.1.0"}
    missed = ["which labels occur", "metrics on held-out records"]

    def release(name: str, epsilon: float, rule: str, used: list[str]) -> dict[str, Any]:
        return {"artifact": name, "epsilon": epsilon, "delta": DELTA, "rule": rule, "entries": used,
                "accountant": accountant, "not_covered": missed}  # fmt: skip

    both = ["label_histogram", "dpsgd"]
    releases = {
        "weights": [release("weights", 4.48, "compose", both), release("label_histogram", 4.48, "compose", both)],
        "synthetic_text": [release("synthetic_text", 4.48, "compose", both)],
        "untuned": [release("synthetic_text", 0.0, "post_processing", [])],
    }  # fmt: skip
    used = [] if artifact == "untuned" else entries
    head = {"version": 1, "unit": "record", "adjacency": "add_remove"}
    return {**head, "entries": used, "releases": releases[artifact]}


def write_evaluation(path: Path, parents: list[RunDirectory]) -> RunDirectory:
    run = RunDirectory.create(path, kind="evaluate", config={"seeds": 3, "downstream": "lr,nb"}, parents=parents)
    inputs = {
        role: {"file": "letters.csv", "run_id": run.manifest["run_id"], "fingerprint": "f1a9" * 16, "n": 120000}
        for role, run in zip(("real", "synthetic", "baseline"), parents, strict=True)
    }
    rows = [*_utility_rows(), *_memorisation_rows(), *_validity_rows()]
    settings = {"seeds": 3, "downstream": "lr,nb", "holdout_is_public": False, "train_sizes": {"real": 120000}}
    warnings = ["utility: 14 texts of synthetic were cut"]
    write_json(
        path / "metrics.json",
        {
            "version": 1,
            "inputs": inputs,
            "settings": settings,
            "warnings": warnings,
            "metrics": rows,
            "verdict": [
                {"finding": "label_collapse", "says": "label shares are 0.31337 apart", "evidence": []},
                "copies",
            ],
        },
    )
    run.finish()
    return run


def _row(**fields: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("model", "label", "low", "high", "ceiling", "floor", "reason"))
    return empty | {"level": 0.95, "n": 30017, "seeds": 3, "publishable": False, "direction": "higher"} | fields


def _utility_rows() -> list[dict[str, Any]]:
    accuracies = {
        "synthetic": PRIVATE_VALUES["holdout accuracy"], "real": PRIVATE_VALUES["real accuracy"],
        "real_matched": PRIVATE_VALUES["real ceiling"], "base_model": 0.513, "shuffled_labels": 0.25,
        "dp_direct": PRIVATE_VALUES["direct"],
    }  # fmt: skip
    rows = list[dict[str, Any]]()
    for model, shift in (("lr", 0.0), ("nb", -0.021)):
        for train_on, accuracy in accuracies.items():
            reads = ["real" if train_on.startswith(("real", "dp_")) else "synthetic", "holdout"]
            common = {"group": "utility", "model": model, "train_on": train_on, "reads": reads}
            value = accuracy + shift
            rows.append(_row(name="accuracy", value=value, low=value - 0.012, high=value + 0.011, **common))
            rows.append(_row(name="macro_f1", value=value - 0.01, low=value - 0.022, high=value, **common))
            rows += [
                _row(name="recall", label=label, value=value - 0.03, low=value - 0.06, high=value, **common)
                for label in LABELS
            ]
        ratio = {
            "group": "utility",
            "model": model,
            "train_on": "real_matched",
            "reads": ["real", "holdout", "synthetic"],
        }
        rows.append(_row(name="accuracy_ratio", value=0.907, low=0.894, high=0.921, **ratio))
    majority = {"group": "utility", "model": "majority", "train_on": "majority", "reads": ["holdout"]}
    return [*rows, _row(name="accuracy", value=0.262, low=0.257, high=0.267, **majority)]


def _memorisation_rows() -> list[dict[str, Any]]:
    value, rows = PRIVATE_VALUES["memorised"], list[dict[str, Any]]()
    for name in ("exact_match", "ngram_13", "chars_50"):
        common = {"group": "memorisation", "name": name, "direction": "lower", "n": 20, "seeds": 20}
        shares = {"real_sample": value, "holdout": value - 0.001, "difference": 0.001}
        rows += [
            _row(train_on=against, value=share, low=share - 0.002, high=share + 0.002, ceiling=0.0072, floor=0.99,
                 reads=["synthetic", "real"], **common)
            for against, share in shares.items()
        ]  # fmt: skip
        rows.append(_row(train_on="real", value=1.0, reads=["synthetic", "real"], **common))
    return rows


def _validity_rows() -> list[dict[str, Any]]:
    common = {"group": "validity", "train_on": "synthetic", "direction": "lower", "n": 20}
    both = {"train_on": "synthetic", "reads": ["synthetic", "holdout"], "n": 2000}
    return [
        _row(
            group="two_sample",
            name="c2st_auc",
            value=0.71,
            low=0.69,
            high=0.73,
            ceiling=0.509,
            direction="half",
            **both,
        ),
        _row(group="divergence", name="mauve", value=0.83, low=0.81, high=0.85, ceiling=0.963, floor=0.012, **both),
        _row(group="diversity", name="distinct_2", value=0.64, ceiling=0.779, floor=0.092, **both),
        _row(name="empty_share", value=0.05173, ceiling=0.0, reads=["synthetic"], **common | {"publishable": True}),
        _row(name="label_tv", value=0.0457, reads=["synthetic", "real"], **common | {"group": "label_fidelity"}),
        _row(name="bits_per_byte", value=None, reads=["synthetic"], reason="no reference model was given", **common),
    ]


def write_attack(path: Path, finetune: RunDirectory) -> RunDirectory:
    run = RunDirectory.create(path, kind="attack", config={"seed": 0}, parents=[finetune])
    names = {"baseline": "none", "loss": "model", "ref": "model", "one_run": "model"}
    rows = [_audit_row(name, channel, number) for number, (name, channel) in enumerate(names.items())]
    write_json(path / "audit.json", {"version": 1, "rows": rows})
    write_scores(path / "scores.parquet", names)
    run.finish()
    return run


def write_scores(path: Path, names: Mapping[str, str]) -> None:
    """Members score a little higher."""
    rng = np.random.default_rng(0)
    columns: dict[str, list[Any]] = {key: [] for key in ("target_id", "channel", "attack", "score", "member")}
    for attack, channel in names.items():
        for is_member in (True, False):
            columns["score"] += list(rng.normal(0.3 * is_member * (channel != "none"), 1.0, size=500))
            columns["member"] += [is_member] * 500
            columns["attack"] += [attack] * 500
            columns["channel"] += [channel] * 500
            columns["target_id"] += ["target"] * 500
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def _audit_row(name: str, channel: str, number: int) -> dict[str, Any]:
    has_bound = name == "one_run"
    auc = 0.4988 if channel == "none" else PRIVATE_VALUES["attack auc"] - 0.004 * (number - 1)
    return {
        "target_id": "target", "channel": channel, "attack": name, "num_members": 30017, "num_nonmembers": 30017,
        "auc": auc, "auc_interval": [auc - 0.006, auc + 0.006],
        "tpr_at_fpr": {"0.1": 0.112, "0.01": 0.0126, "0.001": None},
        "epsilon_lower_bound": 0.31 if has_bound else None, "epsilon_attainable": 5.78 if has_bound else None,
        "epsilon_claimed": None if channel == "none" else 4.48, "group_size": 1, "method": "one-run",
        "alpha": 0.001 if channel == "none" else 0.05, "delta": DELTA, "p_value": None, "curve_p_value": None,
        "verdict": "consistent" if has_bound else None,
        "benchmark_valid": True, "estimates": {}, "num_targets": 1, "num_references": 0, "num_epochs": 10.24,
        "notes": list(NOTES),
    }  # fmt: skip


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
