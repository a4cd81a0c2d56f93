"""Write the figures of docs/benchmark.md from docs/paper_tables.json, results/benchmark/**/benchmark.json, trials.csv
diffmic/*.csv and repeated.csv there, and results/benchmark/scarcity.svg: no number of ours there is typed by hand.

    python docs/benchmark_table.py            rewrite them
    python docs/benchmark_table.py --check    exit 1 where they are out of date
"""

import csv
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from dcube.experiments.benchmark.tables import how, table
from dcube.report.studies import scarcity_figure

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULTS = ROOT / "docs" / "benchmark.md", ROOT / "results" / "benchmark"
PAPER = json.loads((ROOT / "docs" / "paper_tables.json").read_text(encoding="utf-8"))
FILE, SCARCITY = "benchmark.json", "scarcity.svg"
BLOCKS = ("figures", "trials", "diffmic", "repeated")
FASTER = ", a minute of a faster core"
GUIDANCE, DIFFMIC = "its guidance alone", {
    "0.3 of the time for the guidance": "share-0.3.csv",
    "0.6": "share-0.6.csv",
    "0.8": "share-0.8.csv",
    "0.6, an image encoder that begins with the guidance's weights": "share-0.6-encoder.csv",
    "the same, in the benchmark": "benchmark.csv",
    f"the same{FASTER}": "benchmark-1min.csv",
}
NOTHING = "There is no result in results/benchmark/ yet: the columns of ours are still to come."


def read(results: Path) -> dict[Path, dict[str, Any]]:
    """What every benchmark's file holds, by its folder."""
    return {file.parent: json.loads(file.read_text(encoding="utf-8")) for file in sorted(results.rglob(FILE))}


def section(results: Path) -> str:
    """The paper's tables with ours beside them, the figure of scarcity, then every benchmark in full."""
    held = read(results)
    whole = [found for found in held.values() if not is_scarce(found) and found["plan"]["test_evaluations"]]
    parts = ["### The paper's figures, and ours", ours_beside(whole)]
    if len(kept(held)) > 1:
        parts.append(f"### Fewer training images\n\n![macro-F1 with fewer images](../results/benchmark/{SCARCITY})")
    if not held:
        return "\n\n".join([*parts, NOTHING])
    for folder, found in held.items():
        name = folder.relative_to(results).as_posix()
        parts += [f"### {name}", how(found["plan"], found["results"])]
        parts += [f"**{data}**\n\n{table(part)}" for data, part in found["results"]["sets"].items()]
        if (folder / "benchmark.svg").is_file():
            parts.append(f"![macro-F1 of every system, {name}](../results/benchmark/{name}/benchmark.svg)")
    return "\n\n".join(parts)


def trials(results: Path) -> str:
    """A row per trial, a column per data set: validation macro-F1, in brackets cross-entropy; steps of step 1 and 2;
    the largest cycle term of the log where there was one.
    """
    with (results / "trials.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sets = list(dict.fromkeys(row["data"] for row in rows))
    lines = ["| trial | options | " + " | ".join(sets) + " |", "| --- | --- |" + " --- |" * len(sets)]
    for trial in dict.fromkeys(row["trial"] for row in rows):
        tried = {row["data"]: row for row in rows if row["trial"] == trial}
        cells = [_trial(tried[name]) if name in tried else "" for name in sets]
        lines.append(f"| {trial} | {next(iter(tried.values()))['options']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _trial(row: dict[str, str]) -> str:
    steps = " + ".join(filter(None, (row["steps_step1"], row["steps_step2"])))
    cycle = f", cycle {row['cycle_most']}" if row["cycle_most"] else ""
    return f"{float(row['macro_f1']):.3f} ({float(row['cross_entropy']):.2f}), {steps} steps{cycle}"


def diffmic(results: Path) -> str:
    """Validation macro-F1 of DiffMIC's trials and of its guidance alone, by seed: a row per system and file."""
    lines: dict[str, dict[str, None]] = {}  # of each data set, in order; the guidance stands in two files
    named = ""
    for title, file in DIFFMIC.items():
        with (results / "diffmic" / file).open(encoding="utf-8", newline="") as opened:
            rows = list(csv.DictReader(opened))
        for data, model in dict.fromkeys((row["data"], row["model"]) for row in reversed(rows)):
            own = [row for row in rows if (row["data"], row["model"]) == (data, model)]
            f1 = [float(row["validation_macro_f1"]) for row in own]
            steps, fewest = (round(mean(float(row[name]) for row in own)) for name in ("steps", "fewest"))
            parts = f"{steps}, the shorter part {fewest}" if fewest < steps else str(steps)
            alone = GUIDANCE + (FASTER if title.endswith(FASTER) else "")
            name = title if model.startswith("diffmic") else alone
            line = f"| {data} | {name} | {' | '.join(f'{value:.3f}' for value in [*f1, mean(f1)])} | {parts} |"
            lines.setdefault(data, {})[line] = None
            named = " | ".join(f"seed {row['seed']}" for row in own)
    head = [f"| data | trial | {named} | mean | steps |", "| --- " * (named.count("|") + 5) + "|"]
    return "\n".join([*head, *(line for part in lines.values() for line in part)])


def repeated(results: Path) -> str:
    """Validation macro-F1 of D-Cube's cells each time that they were trained, their steps and seconds."""
    with (results / "repeated.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    lines = [
        f"| data | what had changed | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | steps 1, 2 | seconds |",
        "| --- " * (len(seeds) + 5) + "|",
    ]
    for data, run in dict.fromkeys((row["data"], row["run"]) for row in rows):
        own = [row for row in rows if (row["data"], row["run"]) == (data, run)]
        f1 = [float(row["validation_macro_f1"]) for row in own]
        first, both, seconds = (mean(float(row[name]) for row in own) for name in ("steps_step1", "steps", "seconds"))
        cells = " | ".join(f"{value:.3f}" for value in [*f1, mean(f1)])
        lines.append(f"| {data} | {run} | {cells} | {first:.0f}, {both - first:.0f} | {seconds:.0f} |")
    return "\n".join(lines)


def is_scarce(found: dict[str, Any]) -> bool:
    """Whether training images were taken away."""
    return bool(found["plan"]["share"] or found["plan"]["rarest"])


def kept(held: dict[Path, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was kept of the training images -> results by data set, most first, of the scarce benchmarks and of the
    whole one on their terms; each set with the systems that the scarce ones have.
    """
    scarce = [found for found in held.values() if is_scarce(found)]
    models = {row["model"] for found in scarce for part in found["results"]["sets"].values() for row in part["systems"]}
    made: dict[tuple[float, float], dict[str, Any]] = {}
    for found in [*held.values()] if scarce else []:
        plan = found["plan"]
        if any(plan[name] != scarce[0]["plan"][name] for name in ("settings", "budget", "test_evaluations")):
            continue
        sets = made.setdefault((plan["rarest"] or 1.0, plan["share"] or 1.0), {})
        for name, part in found["results"]["sets"].items():
            if any(name in other["results"]["sets"] for other in scarce):
                sets[name] = part | {"systems": [row for row in part["systems"] if row["model"] in models]}
    return {_kept(*key): made[key] for key in sorted(made, reverse=True)}


def _kept(rarest: float, share: float) -> str:
    parts = [f"{share:.0%}" if share < 1 else "", f"{rarest:.0%} of the rarest" if rarest < 1 else ""]
    return ", ".join(filter(None, parts)) or "all"


def ours_beside(whole: list[dict[str, Any]]) -> str:
    """Accuracy / macro-F1 in per cent of every system of tables I and II, or of the smaller one that stands for it; a
    column of ours for each data set, size and budget.
    """
    ours: dict[str, dict[str, str]] = {}  # system -> data set and terms -> figures
    for found in whole:
        plan = found["plan"]
        terms = f"{plan['settings']['diffusion']['image_size']} px, {plan['budget'] or 'epochs of table IX'}"
        for data, part in found["results"]["sets"].items():
            for row in part["systems"]:
                if "metrics" in row:
                    figures = ours.setdefault(row["model"], {"": row["title"]})
                    text = "{:.1f} / {:.1f}".format(*_per_cent(row["metrics"]))
                    figures.setdefault(f"{data} ({terms})", f"{text} RANDOM" if row["random"] else text)
    sets = list(dict.fromkeys(data for figures in ours.values() for data in figures if data))
    paper = PAPER["table2"] | {name: row for name, row in PAPER["table1"].items() if name not in PAPER["table2"]}
    columns = list(dict.fromkeys(data for row in paper.values() for data in row if data != "title"))
    lines = [
        "| system | " + " | ".join([*(f"paper: {data}" for data in columns), "ours", *sets]) + " |",
        "| --- " * (2 + len(columns) + len(sets)) + "|",
    ]
    for name, row in paper.items():
        theirs = [_paper(row.get(data)) for data in columns]
        standing = [other for other, of in PAPER["stands_for"].items() if of == name and other in ours]
        for i, model in enumerate([m for m in (name, *standing) if m in ours] or [""]):
            figures = ours.get(model, {})
            cells = [row["title"], *theirs] if i == 0 else ["", *[""] * len(theirs)]
            lines.append("| " + " | ".join([*cells, figures.get("", ""), *(figures.get(d, "") for d in sets)]) + " |")
    return f"{PAPER['source']}; accuracy / macro-F1.\n\n" + "\n".join(lines)


def _per_cent(metrics: dict[str, Any]) -> tuple[float, float]:
    return 100 * metrics["accuracy"]["value"], 100 * metrics["macro_f1"]["value"]


def _paper(figures: dict[str, float] | None) -> str:
    return "" if figures is None else f"{figures['accuracy']:.2f} / {figures['f1']:.2f}"


def _made() -> list[str]:
    return [make(RESULTS) for make in (section, trials, diffmic, repeated)]


def main() -> None:
    """Rewrite or check the page."""
    text = fresh = PAGE.read_text(encoding="utf-8")
    for name, made in zip(BLOCKS, _made(), strict=True):
        begin, end = f"<!-- {name}: docs/benchmark_table.py -->", f"<!-- end of {name} -->"
        before, rest = fresh.split(begin)
        fresh = f"{before}{begin}\n{made}\n{end}{rest.split(end)[1]}"
    if "--check" in sys.argv:
        sys.exit(0 if fresh == text else "docs/benchmark.md is out of date: run python docs/benchmark_table.py")
    PAGE.write_text(fresh, encoding="utf-8")
    if len(parts := kept(read(RESULTS))) > 1:
        (RESULTS / SCARCITY).write_text(scarcity_figure(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
