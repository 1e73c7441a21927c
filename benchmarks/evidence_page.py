"""The table, the profile and the figure of benchmarks/evidence.py: nothing is computed here but shares and ratios."""

from pathlib import Path
from typing import Any

from safesynthdp.privacy.command import round_up

MODELS = {"lr": "logistic regression", "nb": "naive Bayes", "svm": "linear SVM", "emb": "on MiniLM vectors"}
TRAINED = "DP-SGD and token counts"
LONG = "DP-SGD and token counts, trained longer"
COLORS = {
    TRAINED: "#1b5e9b",
    LONG: "#2aa198",
    "softmax": "#b5541c",
    "laplace": "#5b8c2a",
    "gaussian_l2": "#a08a1e",
    "gaussian_probs": "#8e3a8e",
}
NO_GUARANTEE = 30.0
"""Where the figure puts what has no epsilon, beyond a broken axis."""
Json = dict[str, Any]


def table(found: Json, *, is_short: bool = False) -> str:
    """Return the table and its facts in Markdown; the short one is that of README.md."""
    shown = [p for p in found["points"] if p["source"] in (TRAINED, LONG) or not is_short]
    head = [
        f"| classifiers trained on | epsilon | {' | '.join(MODELS.values())} | told from real (AUC) |",
        f"|---|---|{'---|' * len(MODELS)}---|",
    ]
    lines = [_line(_what(p), _epsilon(p), p["accuracy"], p["c2st"]) for p in shown]
    last = _private(found)[-1]["source"]  # the grid with most classifiers
    once = {p["epsilon"]: p for p in reversed(_private(found)) if p["source"] == last}
    direct = [
        _line("the records themselves, with DP", _epsilon(p), p["dp_direct"], {}) for p in reversed(once.values())
    ]
    untuned = _line("text of the untuned model", "0", found["references"]["base_model"], found["untuned_c2st"])
    matched = [(n, accuracy) for n, accuracy in sorted(_matched(shown).items()) if n < found["num_train"]]
    real = [_line(f"{n:,} real texts", "none", accuracy, {}) for n, accuracy in matched]
    whole = _line(f"all {found['num_train']:,} real texts", "none", found["references"]["real"], {})
    lead = [*_lead(found, shown), ""] if is_short else []
    return "\n".join([*lead, *head, *lines, *direct, untuned, *real, whole, "", *_facts(found, is_short), ""])


def _lead(found: Json, shown: list[Json]) -> list[str]:
    """Return the table in one sentence: the first classifier, from the floor over each epsilon to the ceiling."""
    model, name = next(iter(MODELS.items()))
    floor, ceiling = (found["references"][which][model][0] for which in ("base_model", "real"))
    last = [p for p in shown if p["epsilon"] and p["source"] == _private(found)[-1]["source"]]
    largest = {p["epsilon"]: p for p in sorted(last, key=lambda p: (p["epsilon"], p["num_texts"]))}
    steps = [
        f"**{p['accuracy'][model][0]:.3f}** on synthetic text at epsilon {_epsilon(p)}, " for p in largest.values()
    ]
    return [
        f"Accuracy of a {name} on held-out real texts: **{floor:.3f}** trained on text of the untuned model, "
        f"{''.join(steps)}**{ceiling:.3f}** on the private records themselves."
    ]


def _private(found: Json) -> list[Json]:
    """Return the points that have an epsilon, one a training."""
    points = [p for p in found["points"] if p["source"] in (TRAINED, LONG) and p["epsilon"]]
    return list({(p["source"], p["name"]): p for p in reversed(points)}.values())[::-1]


def _matched(points: list[Json]) -> dict[int, Json]:
    """Return what as many real texts reach, by their number."""
    return {p["num_matched"]: p["real_matched"] for p in reversed(points) if p["real_matched"]}


def _facts(found: Json, is_short: bool) -> list[str]:
    hardware = found["hardware"]
    audits = [a for a in found["audits"] if a["target_id"] == "pooled" or not is_short]
    longest = sorted(found["seconds"].items(), key=lambda pair: -pair[1])
    lines = [
        f"Accuracy on {found['num_test']:,} held-out real texts of four domains, 95 % interval (half of them were also "
        "looked at while settings of the token matching were chosen, the other half never); "
        f"{found['num_train']:,} records to train on; on MiniLM vectors: logistic regression on sentence embeddings, "
        "2,000 texts at most to train and to test on (all records where they are trained on with DP); the last column "
        "is the AUC of a classifier that tells the text from real text by its words (0.5 = it cannot).",
        "",
        *(f"- {_priced(p)}" for p in _private(found)),
        "",
        *_audited(audits),
        f"{found['date']}, commits {', '.join(found['commits'])}; {hardware['cpu_cores']} CPU cores, no GPU. Longest: "
        f"{', '.join(f'{name} {seconds:.0f} s' for name, seconds in longest[:4])}; in all "
        f"{sum(found['seconds'].values()) / 60:.0f} minutes of all jobs, two at a time"
        f"{found['note'] and '; '}{found['note']}.",
    ]
    return lines


def _audited(audits: list[Json]) -> list[str]:
    """Return a table of the verdicts, with what each could have shown."""
    if not audits:
        return []
    head = [
        "| audit by eight shadow models | records | claimed | AUC | proved | could have been proved | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    lines = []
    for a in audits:
        kind = next((n.removeprefix("records: ") for n in a["notes"] if n.startswith("records: ")), "")
        kind = kind if kind == "natural" else f"canaries ({kind})"
        targets = "one target" if a["target_id"] == "target" else f"{a['num_targets']} targets in turn"
        claimed = "none" if a["epsilon_claimed"] is None else round_up(a["epsilon_claimed"])
        low, high = a["auc_interval"]
        cells = (
            f"{a['name'].split('-')[0]}, {a['channel']}, {a['attack']}, {targets}",
            f"{a['num_members'] + a['num_nonmembers']:,} {kind}",
            claimed,
            f"{a['auc']:.3f} [{low:.3f}, {high:.3f}]",
            f"{a['epsilon_lower_bound']:.2f}",
            f"{a['epsilon_attainable']:.2f}",
            (
                a["verdict"]
                or ("nothing is claimed" if a["epsilon_claimed"] is None else "none: no leakage is tested, not epsilon")
            ).replace("_", " "),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return [*head, *lines, ""]


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
    mixes = {"uniform": ", as many of each label", "sqrt": ", labels by square roots"}
    mix = mixes.get(point["labels"], "")
    return f"{point['num_texts']:,} synthetic texts{mix}: {by}"


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
    runs = {
        name.split("/")[0]: s for name, s in found["seconds"].items() if name.count("/") == 1 and name.endswith("/run")
    }
    plain = next((s for name, s in runs.items() if name.startswith("no_privacy")), None)
    ratios = [f"{name} {s / plain:.2f}" for name, s in runs.items() if plain and not name.startswith("no_privacy")]
    return "\n".join([
        f"# Where the time goes, {found['date']}, {found['hardware']['cpu_cores']} CPU cores", "",
        "Seconds of the clock, two jobs of one thread at a time where the recipe says so; a pool is its models. A job "
        f"that was stopped and went on counts the pause{found['note'] and '; '}{found['note']}.", "",
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

    figure, panels = plt.subplots(1, 2, figsize=(11, 5.2), sharey=True)
    for axes, model in zip(panels, ("lr", "nb"), strict=True):
        for (source, count), points in _series(found["points"], model).items():
            points.sort(key=lambda p: p["epsilon"] or NO_GUARANTEE)
            x = [p["epsilon"] or NO_GUARANTEE for p in points]
            y = [p["accuracy"][model] for p in points]
            spread = [[v - low for v, low, _ in y], [high - v for v, _, high in y]]
            is_more = any(s == source and n < count for s, n in _series(found["points"], model))
            style = {"marker": "s", "linestyle": "--"} if is_more else {"marker": "o", "linestyle": "-"}
            label, color = f"{source} ({count:,} texts)", COLORS[source]
            axes.errorbar(x, [v for v, _, _ in y], yerr=spread, color=color, label=label, capsize=3, **style)
        direct = [p for p in _private(found) if model in p["dp_direct"]]
        axes.plot([p["epsilon"] for p in direct], [p["dp_direct"][model][0] for p in direct], "^", mfc="white",
                  mec="#444444", label="trained on the records with DP")  # fmt: skip
        levels = {"all real": found["references"]["real"], "untuned": found["references"]["base_model"]}
        matched = _matched(found["points"]).items()
        levels |= {f"{count:,} real": accuracy for count, accuracy in matched if count < found["num_train"]}
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
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=8, loc="lower center", ncol=3, frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(path, metadata={"Date": None})


def _series(points: list[Json], model: str) -> dict[tuple[str, int], list[Json]]:
    """Return the points of each line, by source and number of texts, the sources in the order of their colours."""
    found: dict[tuple[str, int], list[Json]] = {}
    for point in points:
        if model in point["accuracy"]:
            found.setdefault((point["source"], point["num_texts"]), []).append(point)
    return dict(sorted(found.items(), key=lambda pair: (list(COLORS).index(pair[0][0]), pair[0][1])))
