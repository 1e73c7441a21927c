"""From the grid of a pipeline to results/DATE-NAME: a table, a figure and all numbers behind them.

python benchmarks/evidence.py runs/vader_cpu [--long runs/vader_cpu_long] [--name vader-cpu]

Nothing is typed by hand: every number is read from the files that the stages wrote. The records of the recipe are
public; for private ones the folder would be private too.
"""

import argparse
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from evidence_page import LONG, TRAINED, draw, profile, table

ATTACKS = ("lira", "ngram2_domias")
"""The primary attack of the recipe on the model, and one on the text."""
Json = dict[str, Any]


def main() -> None:
    """Read a grid and write its folder under results/."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grid", type=Path)
    parser.add_argument("--long", type=Path, help="a grid of the same epsilons, trained longer")
    parser.add_argument("--name", default="vader-cpu")
    parser.add_argument("--note", default="", help="said beside the seconds: what else the machine did")
    arguments = parser.parse_args()
    found = summary(arguments.grid, arguments.long) | {"note": arguments.note}
    folder = Path(__file__).parents[1] / "results" / f"{found['date']}-{arguments.name}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(table(found), encoding="utf-8")
    (folder / "short.md").write_text(table(found, is_short=True), encoding="utf-8")
    (folder / "profile.md").write_text(profile(found), encoding="utf-8")
    draw(found, folder / "utility.svg")
    print(folder)


def summary(grid: Path, long: Path | None) -> Json:
    """Return everything that the folder says."""
    cells = _cells(grid)
    grids = [grid] if long is None else [grid, long]
    first = _json(cells[0] / "run/manifest.json")
    points = [_point(cell, TRAINED, cell / "run/ledger.json", "weights") for cell in cells]
    for cell in [cell for g in grids[1:] for cell in _cells(g)]:
        parts = [cell / "evaluation", *sorted(path.parent for path in cell.glob("evaluation_*/metrics.json"))]
        points += [_point(cell, LONG, cell / "run/ledger.json", "weights", evaluation=part) for part in parts]
    for folder in [path.parents[1] for path in sorted(grid.glob("*-eps*/evaluation/metrics.json"))]:
        if not (folder / "run").is_dir():
            name = folder.name.partition("-")[0]
            points.append(_point(folder, name, folder / "synthetic/ledger.json", "synthetic_text"))
    rows = _rows(cells[0])
    more = [row for g in grids[1:] for cell in _cells(g)[:1] for row in _rows(cell)]  # with a classifier more
    references = {name: _accuracies(more, name) | _accuracies(rows, name) for name in ("base_model", "real")}
    return {
        "date": first["created"][:10],
        "commits": sorted({_json(path)["commit"] for g in grids for path in _manifests(g)}),
        "hardware": first["hardware"],
        "versions": first["versions"],
        "num_train": first["data"]["num_records"],
        "num_test": next(r["n"] for r in rows if (r["name"], r["train_on"]) == ("accuracy", "real")),
        "points": points,
        "references": references,
        "untuned_c2st": _c2st(rows, "base_model"),
        "audits": [row for cell in cells for row in _audits(cell)],
        "seconds": _seconds(grid)
        | ({} if long is None else {f"long/{name}": took for name, took in _seconds(long).items()}),
    }


def _cells(grid: Path) -> list[Path]:
    return [
        path.parent for path in sorted(grid.glob("*-seed*/run")) if (path.parent / "evaluation/metrics.json").is_file()
    ]


def _point(cell: Path, source: str, ledger: Path, artifact: str, *, evaluation: Path | None = None) -> Json:
    """Return what is shown of one set of texts; ``evaluation`` may have read only the first of them."""
    release = next(r for r in _json(ledger)["releases"] if r["artifact"] == artifact)
    found = _json((evaluation or cell / "evaluation") / "metrics.json")
    rows, sizes, most = found["metrics"], found["settings"]["train_sizes"], found["settings"]["max_train_records"]
    sample = _json(cell / "synthetic/manifest.json")
    mechanisms = {entry["id"]: entry["mechanism"] for entry in _json(ledger)["entries"]}
    return {
        "name": cell.name,
        "source": source,
        "epsilon": release["epsilon"],
        "delta": release["delta"],
        "mechanisms": mechanisms,
        "num_texts": min(sizes["synthetic"], most),
        "num_matched": min(sizes.get("real_matched", sizes["real"]), most),  # as many texts as records: all of them
        "labels": yaml.safe_load((cell / "synthetic/config.yaml").read_text(encoding="utf-8")).get("labels"),
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
    """Return what a pool found on its dedicated target and on all targets together, by one attack a channel."""
    path = cell / "pool/audit.json"
    if not path.is_file():
        return []
    keys = ("channel", "attack", "target_id", "num_targets", "auc", "auc_interval", "epsilon_lower_bound",
            "epsilon_attainable", "epsilon_claimed", "num_members", "num_nonmembers", "p_value", "verdict",
            "notes")  # fmt: skip
    rows = _json(path)["rows"]
    shown = [r for r in rows if r["attack"] in ATTACKS and r["target_id"] in ("target", "pooled")]
    return [{"name": cell.name, **{k: row[k] for k in keys}} for row in shown]


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
