"""Put the demo's own numbers into README.md, between the two marks; nothing there is typed by hand.

python benchmarks/readme_result.py demo
"""

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from safesynthdp.privacy.command import round_up

BEGIN, END = "<!-- result: written by benchmarks/readme_result.py -->", "<!-- end of result -->"
CELL = "eps8-seed0"
STAGES = {
    "run": f"{CELL}/run",
    "synthetic": f"{CELL}/synthetic",
    "untuned": "untuned",
    "evaluation": f"{CELL}/evaluation",
    "attack": f"{CELL}/attack",
    "report": "report",
}


def main() -> None:
    """Read the stages of a demo folder and rewrite the table."""
    demo = Path(sys.argv[1])
    readme = Path(__file__).parents[1] / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{table(demo)}\n{END}{after}", encoding="utf-8")


def table(demo: Path) -> str:
    """Return the table and the line of facts under it."""
    manifests = {stage: _json(demo / folder / "manifest.json") for stage, folder in STAGES.items()}
    ledger, attack = _json(demo / CELL / "run/ledger.json"), _json(demo / CELL / "attack/audit.json")["rows"]
    release = next(r for r in ledger["releases"] if r["artifact"] == "weights")
    rows = _json(demo / CELL / "evaluation/metrics.json")["metrics"]
    count = manifests["synthetic"]["num_records"]
    price = f"**epsilon = {round_up(release['epsilon'])}** at delta = {release['delta']:g}"
    cells = {
        "synthetic": f"{count:,} synthetic texts, {price}",
        "base_model": "the same number from the untuned model (epsilon = 0)",
        "real_matched": "the same number of real texts (no privacy)",
        "real": "all real texts (no privacy)",
    }
    lines = ["| classifiers trained on | logistic regression | naive Bayes |", "|---|---|---|"]
    for key, what in cells.items():
        lines.append(f"| {what} | {_accuracy(rows, 'lr', key)} | {_accuracy(rows, 'nb', key)} |")
    overlap = {name: next(r for r in rows if r["name"] == name and r["train_on"] == "difference") for name in OVERLAPS}
    shared = ", ".join(f"{what} {_interval(overlap[name], '+.2%')}" for name, what in OVERLAPS.items())
    attacks = ", ".join(f"{row['attack']} {_attack(row)}" for row in attack)
    minutes = (_time(manifests["report"]["finished"]) - _time(manifests["run"]["created"])).total_seconds() / 60
    stages = ", ".join(f"{stage} {_seconds(m):.0f} s" for stage, m in manifests.items())
    memory = max(m.get("peak_memory_gib", 0.0) for m in manifests.values())
    hardware = manifests["run"]["hardware"]
    facts = [
        "",
        f"Accuracy on {_n(rows):,} untouched real texts, four domains, 95 % interval. Verbatim overlap with training "
        f"text minus overlap with held-out text: {shared}. Membership attacks on the weights (AUC, 0.5 = chance): "
        f"{attacks}; no epsilon is audited by them.",
        "",
        f"DP-SGD with noise multiplier {_noise(ledger)}, and noisy label counts, in one price.",
        "",
        "A few steps of training are what two cores do in five minutes: they show the loop, not what the method can "
        "reach. The second row is the one to beat.",
        "",
        f"`make demo`: {minutes:.1f} minutes after set-up ({stages}), at most {memory:.1f} GiB, "
        f"{hardware['cpu_cores']} CPU cores, no GPU; {manifests['run']['created'][:10]}, commit "
        f"{manifests['run']['commit']}.",
    ]
    return "\n".join(lines + facts)


OVERLAPS = {"exact_match": "exact", "ngram_13": "13 words"}


def _noise(ledger: dict[str, Any]) -> float:
    """All digits: tests/docs computes the epsilon of the table again from it."""
    return float(next(e for e in ledger["entries"] if e["kind"] == "dpsgd")["mechanism"]["noise_multiplier"])


def _time(stamp: str) -> datetime:
    return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S%z")


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _row(rows: list[dict[str, Any]], model: str, train_on: str) -> dict[str, Any]:
    wanted = ("accuracy", model, train_on, None)
    return next(r for r in rows if (r["name"], r["model"], r["train_on"], r["label"]) == wanted)


def _accuracy(rows: list[dict[str, Any]], model: str, train_on: str) -> str:
    return _interval(_row(rows, model, train_on), ".3f")


def _interval(row: dict[str, Any], form: str) -> str:
    if row["value"] is None:
        return f"none ({row['reason']})"
    if row["low"] is None:
        return f"{row['value']:{form}}"
    return f"{row['value']:{form}} [{row['low']:{form}}, {row['high']:{form}}]"


def _attack(row: dict[str, Any]) -> str:
    low, high = row["auc_interval"]
    return f"{row['auc']:.3f} [{low:.3f}, {high:.3f}]"


def _n(rows: list[dict[str, Any]]) -> int:
    return int(_row(rows, "lr", "real")["n"])


def _seconds(manifest: dict[str, Any]) -> float:
    timings = manifest.get("timings", {})
    return float(timings.get("seconds", manifest.get("seconds", sum(timings.values()) if timings else 0.0)))


if __name__ == "__main__":
    main()
