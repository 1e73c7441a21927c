"""From the grid of a pipeline to results/DATE-NAME: a table, a figure and all numbers behind them.

python benchmarks/evidence.py runs/vader_cpu [--name vader-cpu]

Nothing is typed by hand: every number is read from the files that the stages wrote. The records of the recipe are
public; for private ones the folder would be private too.
"""

import argparse
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from safesynthdp.privacy.command import round_up

MODELS = {"lr": "logistic regression", "nb": "naive Bayes", "svm": "linear SVM"}
TRAINED = "DP-SGD and token counts"
MORE = "DP-SGD and token counts, more texts, as many of each label"
COLORS = {
    TRAINED: "#1b5e9b",
    MORE: "#2aa198",
    "softmax": "#b5541c",
    "laplace": "#5b8c2a",
    "gaussian_l2": "#a08a1e",
    "gaussian_probs": "#8e3a8e",
}
NO_GUARANTEE = 30.0
"""Where the figure puts what has no epsilon, beyond a broken axis."""
Json = dict[str, Any]


def main() -> None:
    """Read a grid and write its folder under results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grid", type=Path)
    parser.add_argument("--name", default="vader-cpu")
    arguments = parser.parse_args()
    found = summary(arguments.grid)
    folder = Path(__file__).parents[1] / "results" / f"{found['date']}-{arguments.name}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(table(found), encoding="utf-8")
    (folder / "profile.md").write_text(profile(found), encoding="utf-8")
    draw(found, folder / "utility.svg")
    print(folder)


def summary(grid: Path) -> Json:
    """Return everything that the folder says."""
    cells = [path.parent for path in sorted(grid.glob("*-seed*/run")) if _is_evaluated(path.parent)]
    first = _json(cells[0] / "run/manifest.json")
    points = [_point(cell, TRAINED, cell / "run/ledger.json", "weights") for cell in cells]
    more = [cell / "more" for cell in cells if _is_evaluated(cell / "more")]
    points += [_point(folder, MORE, folder / "synthetic/ledger.json", "synthetic_text") for folder in more]
    for folder in [path.parents[1] for path in sorted(grid.glob("*-eps*/evaluation/metrics.json"))]:
        if not (folder / "run").is_dir():
            name = folder.name.partition("-")[0]
            points.append(_point(folder, name, folder / "synthetic/ledger.json", "synthetic_text"))
    rows = _rows(cells[0])
    references = {name: _accuracies(rows, name) for name in ("base_model", "real")}
    return {
        "date": first["created"][:10],
        "commits": sorted({_json(path)["commit"] for path in _manifests(grid)}),
        "hardware": first["hardware"],
        "versions": first["versions"],
        "num_train": first["data"]["num_records"],
        "num_test": next(r["n"] for r in rows if (r["name"], r["train_on"]) == ("accuracy", "real")),
        "points": points,
        "references": references,
        "untuned_c2st": _c2st(rows, "base_model"),
        "audits": [row for cell in cells for row in _audits(cell)],
        "seconds": _seconds(grid),
    }


def _is_evaluated(cell: Path) -> bool:
    return (cell / "evaluation/metrics.json").is_file()


def _point(cell: Path, source: str, ledger: Path, artifact: str) -> Json:
    release = next(r for r in _json(ledger)["releases"] if r["artifact"] == artifact)
    rows = _rows(cell)
    sample = _json(cell / "synthetic/manifest.json")
    mechanisms = {entry["id"]: entry["mechanism"] for entry in _json(ledger)["entries"]}
    return {
        "name": cell.name,
        "source": source,
        "epsilon": release["epsilon"],
        "delta": release["delta"],
        "mechanisms": mechanisms,
        "num_texts": sample["num_records"],
        "accuracy": _accuracies(rows, "synthetic"),
        "real_matched": _accuracies(rows, "real_matched"),
        "dp_direct": _accuracies(rows, "dp_direct"),
        "c2st": _c2st(rows, "synthetic"),
        "token_matching": sample.get("token_matching"),
        "overlap": {
            name: _interval(next(r for r in rows if (r["name"], r["train_on"]) == (name, "difference")))
            for name in ("exact_match", "ngram_13")
        },
    }


def _accuracies(rows: list[Json], train_on: str) -> Json:
    wanted = [r for r in rows if (r["name"], r["train_on"], r["label"]) == ("accuracy", train_on, None)]
    return {r["model"]: _interval(r) for r in wanted if r["value"] is not None}


def _c2st(rows: list[Json], train_on: str) -> Json:
    wanted = [r for r in rows if (r["name"], r["train_on"], r["label"]) == ("c2st_auc", train_on, None)]
    return {r["model"]: _interval(r) for r in wanted if r["value"] is not None}


def _audits(cell: Path) -> list[Json]:
    """Return the rows of a pool that have a verdict: one a channel if the plan names a primary attack."""
    path = cell / "pool/audit.json"
    if not path.is_file():
        return []
    keys = ("channel", "attack", "auc", "auc_interval", "epsilon_lower_bound", "epsilon_attainable", "epsilon_claimed",
            "num_members", "num_nonmembers", "p_value", "verdict")  # fmt: skip
    return [{"name": cell.name, **{k: row[k] for k in keys}} for row in _json(path)["rows"] if row["verdict"]]


def _seconds(grid: Path) -> Json:
    """Return how long each stage took, and the models of each pool."""
    found = {}
    for path in _manifests(grid):
        stage, value = str(path.parent.relative_to(grid)), _json(path)
        if value.get("finished"):
            found[stage] = (_time(value["finished"]) - _time(value["created"])).total_seconds()
    for pool in sorted(grid.glob("*/pool")):
        walls = [_json(path)["facts"]["walltime_s"] for path in pool.glob("shards/*/manifest.json")]
        found[f"{pool.relative_to(grid)}: {len(walls)} models"] = round(sum(walls), 1)
    return found


def _manifests(grid: Path) -> list[Path]:
    """Return those of the stages; a pool's models are inside of one."""
    inside = {"shards", "work", "target"}
    return [p for p in sorted(grid.rglob("manifest.json")) if not inside & set(p.parent.relative_to(grid).parts)]


def table(found: Json) -> str:
    """Return the table and its facts in Markdown."""
    head = [
        "| classifiers trained on | epsilon | logistic regression | naive Bayes | linear SVM | told from real (AUC) |",
        "|---|---|---|---|---|---|",
    ]
    lines = [_line(_what(p), _epsilon(p), p["accuracy"], p["c2st"]) for p in found["points"]]
    direct = [_line("the records themselves, with DP", _epsilon(p), p["dp_direct"], {}) for p in _private(found)]
    untuned = _line("text of the untuned model", "0", found["references"]["base_model"], found["untuned_c2st"])
    real = [_line(f"{n:,} real texts", "none", accuracy, {}) for n, accuracy in sorted(_matched(found).items())]
    whole = _line(f"all {found['num_train']:,} real texts", "none", found["references"]["real"], {})
    return "\n".join([*head, *lines, *direct, untuned, *real, whole, "", *_facts(found), ""])


def _private(found: Json) -> list[Json]:
    """Return the points of the grid that have an epsilon, one a training."""
    return [p for p in found["points"] if p["source"] == TRAINED and p["epsilon"]]


def _matched(found: Json) -> dict[int, Json]:
    """Return what as many real texts reach, by their number."""
    return {p["num_texts"]: p["real_matched"] for p in reversed(found["points"])}


def _facts(found: Json) -> list[str]:
    audits = [
        f"{a['name']}, channel {a['channel']}, {a['attack']}: AUC {a['auc']:.3f} "
        f"[{a['auc_interval'][0]:.3f}, {a['auc_interval'][1]:.3f}], epsilon at least "
        f"{a['epsilon_lower_bound']:.2f} of at most {a['epsilon_attainable']:.2f} that could be shown, "
        f"{a['verdict'].replace('_', ' ')}"
        for a in found["audits"]
    ]
    hardware = found["hardware"]
    longest = sorted(found["seconds"].items(), key=lambda pair: -pair[1])
    lines = [
        f"Accuracy on {found['num_test']:,} held-out real texts of four domains, 95 % interval (half of them were also "
        "looked at while settings of the token matching were chosen, the other half never); "
        f"{found['num_train']:,} records to train on; the last column is the AUC of a classifier that tells the text "
        "from real text by its words (0.5 = it cannot).",
        "",
        *(f"- {_priced(p)}" for p in _private(found)),
        "",
        *([f"Audits by shadow models: {'; '.join(audits)}.", ""] if audits else []),
        f"{found['date']}, commits {', '.join(found['commits'])}; {hardware['cpu_cores']} CPU cores, no GPU. Longest: "
        f"{', '.join(f'{name} {seconds:.0f} s' for name, seconds in longest[:8])}; in all "
        f"{sum(found['seconds'].values()) / 60:.0f} minutes of all jobs, two at a time.",
    ]
    return lines


def _priced(point: Json) -> str:
    parts = point["mechanisms"]
    steps, tokens = parts["dpsgd"], parts.get("token_histogram")
    counts = f", token counts with noise {tokens['noise_multiplier']!r}" if tokens else ""
    return (
        f"**epsilon = {round_up(point['epsilon'])}** at delta = {point['delta']:g}: {steps['steps']} steps with noise "
        f"multiplier {steps['noise_multiplier']!r} at sample rate {steps['sample_rate']:.6g}{counts}, and noisy label "
        "counts, in one price."
    )


def _what(point: Json) -> str:
    source = point["source"]
    by = source if source.startswith("DP-SGD") else f"private prediction, {source}"
    by = "the same training without noise or clip" if point["epsilon"] is None else by
    return f"{point['num_texts']:,} synthetic texts: {by}"


def _epsilon(point: Json) -> str:
    return "none" if point["epsilon"] is None else round_up(point["epsilon"])


def _line(what: str, epsilon: str, accuracy: Json, c2st: Json) -> str:
    cells = [_text(accuracy.get(model)) for model in MODELS]
    return f"| {what} | {epsilon} | {' | '.join(cells)} | {_text(c2st.get('words'))} |"


def _text(interval: list[float] | None) -> str:
    if interval is None:
        return ""
    value, low, high = interval
    return f"{value:.3f}" if low is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def profile(found: Json) -> str:
    """Return where the time went, in Markdown."""
    jobs: dict[str, list[float]] = {}
    for name, seconds in found["seconds"].items():
        jobs.setdefault(_stage(name), []).append(seconds)
    whole = sum(sum(seconds) for seconds in jobs.values())
    shown = sorted(jobs.items(), key=lambda pair: -sum(pair[1]))
    lines = [
        f"| {name} | {len(s)} | {sum(s):.0f} | {sum(s) / len(s):.0f} | {sum(s) / whole:.0%} |" for name, s in shown
    ]
    runs = {name.split("/")[0]: s for name, s in found["seconds"].items() if name.endswith("/run")}
    plain = next((s for name, s in runs.items() if name.startswith("no_privacy")), None)
    ratios = [f"{name} {s / plain:.2f}" for name, s in runs.items() if plain and not name.startswith("no_privacy")]
    return "\n".join([
        f"# Where the time goes, {found['date']}, {found['hardware']['cpu_cores']} CPU cores", "",
        "Seconds of the clock, two jobs of one thread at a time where the recipe says so; a pool is its models.", "",
        "| stage | jobs | seconds | seconds a job | share |", "|---|---|---|---|---|", *lines, "",
        f"Training with noise and clip against the same steps without: {', '.join(ratios) or 'not measured'} times as "
        "long. Only this and the audit are the price of the certificate; a step alone, against an ordinary one, is in "
        "benchmarks/results (step-ratio).", "",
    ])  # fmt: skip


def _stage(name: str) -> str:
    if "pool" in name:
        return "shadow models" if "models" in name else "pool: plan and score"
    kind = name.rsplit("/", 1)[-1]
    if kind == "synthetic" and "-seed" not in name:
        return "predict"
    return {"run": "train", "synthetic": "sample", "untuned": "sample", "evaluation": "evaluate"}.get(kind, kind)


def draw(found: Json, path: Path) -> None:
    """Draw accuracy against epsilon, one line a source, with the levels of real text and of the untuned model."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "evidence"
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True)
    for axes, model in zip(panels, ("lr", "nb"), strict=True):
        for source, color in COLORS.items():
            points = [p for p in found["points"] if p["source"] == source and model in p["accuracy"]]
            points.sort(key=lambda p: p["epsilon"] or NO_GUARANTEE)
            if not points:
                continue
            x = [p["epsilon"] or NO_GUARANTEE for p in points]
            y = [p["accuracy"][model] for p in points]
            spread = [[v - low for v, low, _ in y], [high - v for v, _, high in y]]
            label = f"{source} ({points[0]['num_texts']:,} texts)"
            axes.errorbar(x, [v for v, _, _ in y], yerr=spread, marker="o", color=color, label=label, capsize=3)
        direct = [p for p in _private(found) if model in p["dp_direct"]]
        axes.plot([p["epsilon"] for p in direct], [p["dp_direct"][model][0] for p in direct], "^", mfc="white",
                  mec="#444444", label="trained on the records with DP")  # fmt: skip
        levels = {"all real": found["references"]["real"], "untuned": found["references"]["base_model"]}
        levels |= {f"{count:,} real": accuracy for count, accuracy in _matched(found).items()}
        for words, accuracy in levels.items():
            value = accuracy[model][0]
            axes.axhline(value, color="#777777", linewidth=1, linestyle=(0, (5, 3)))
            axes.annotate(f"{words} {value:.3f}", (0.55, value), xytext=(0, 3), textcoords="offset points", fontsize=8)
        axes.set_xscale("log")
        axes.set_xlim(0.5, 50)
        axes.set_xticks([1, 2, 4, 8, NO_GUARANTEE], ["1", "2", "4", "8", "none"])
        axes.minorticks_off()
        axes.set_xlabel("epsilon per record")
        axes.set_title(MODELS[model], fontsize=10)
    panels[0].set_ylabel(f"accuracy on {found['num_test']:,} real texts")
    panels[0].legend(fontsize=7.5, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _rows(cell: Path) -> list[Json]:
    return list(_json(cell / "evaluation/metrics.json")["metrics"])


def _interval(row: Json) -> list[Any]:
    return [row["value"], row["low"], row["high"]]


def _time(stamp: str) -> datetime:
    return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S%z")


def _json(path: Path) -> Json:
    return dict(json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
