"""Write the figures of docs/step1.md from results/step1/step1.json and trials.csv, and from the studies beside it: no
number there is typed by hand.

    python docs/step1_table.py            rewrite them
    python docs/step1_table.py --check    exit 1 where they are out of date
"""

import csv
import json
import sys
from pathlib import Path

from dcube.experiments.step1 import SYSTEMS, TRAINED, UNTRAINED
from dcube.experiments.step1_cell import MIDDLE, TEXTURES
from dcube.experiments.step1_summary import ALL, PROBE, SEEN, TWO, markdown

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULTS = ROOT / "docs" / "step1.md", ROOT / "results" / "step1"
SCRATCH, LONG = ROOT / "results" / "step1-scratch", ROOT / "results" / "step1-long"
LONG_CNN = ROOT / "results" / "step1-long-cnn"
OWN, LONG_OWN = ROOT / "results" / "step1-own", ROOT / "results" / "step1-long-own"
LABELS = ROOT / "results" / "step1-labels"
PIPELINES = tuple(system + joined for joined in ("", SEEN, TWO, ALL) for system in SYSTEMS)  # without, with readers
SHORT = (  # and what is read by what
    *(PROBE + what for what in ("pixels", UNTRAINED, TRAINED)),
    *(PROBE + what + TEXTURES for what in (UNTRAINED, TRAINED)),
    PROBE + MIDDLE, PROBE + "cnn" + TEXTURES, *PIPELINES,
)  # fmt: skip
Trial = dict[str, str]


def study(results: Path, kept: tuple[str, ...] = (), share: str = "") -> str:
    """The tables of the study; of the systems `kept` alone, without what was promised inside, where they are named; of
    the shares whose names begin with `share`.
    """
    held = json.loads((results / "step1.json").read_text(encoding="utf-8"))
    for name, parts in held["results"].items():
        held["results"][name] = {title: part for title, part in parts.items() if title.startswith(share)}
    if kept:
        for parts in held["results"].values():
            for part in parts.values():
                part["macro_f1"] = {name: part["macro_f1"][name] for name in kept if name in part["macro_f1"]}
                part["differences"] = [d for d in part["differences"] if {d["of"], d["to"]} <= {*kept}]
                part["inside"] = {}
    parts = [part for shares in held["results"].values() for part in shares.values()]
    seeds = ", ".join(map(str, sorted({seed for part in parts for seed in part["seeds"]})))
    head = f"{parts[0]['folds']} folds by group, seeds {seeds}; bold where the interval excludes 0."
    return f"{head}\n\n{markdown(held['results']).replace('## ', '### ').strip()}"


def trials(results: Path) -> str:
    """A row per trial, a column per data set: macro-F1 of each held-out fold that was tried, in brackets the one inside
    the training part, by which the block was chosen."""
    with (results / "trials.csv").open(encoding="utf-8", newline="") as file:
        rows: list[Trial] = list(csv.DictReader(file))
    sets = list(dict.fromkeys(row["data"] for row in rows))
    lines = ["| trial | settings | " + " | ".join(sets) + " |", "| --- | --- |" + " --- |" * len(sets)]
    for trial in dict.fromkeys(row["trial"] for row in rows):
        tried = [row for row in rows if row["trial"] == trial]
        cells = [" / ".join(figure(row) for row in tried if row["data"] == name) for name in sets]
        lines.append(f"| {trial} | {tried[0]['settings']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(row: Trial) -> str:
    """One fold."""
    inside = f" ({float(row['inside']):.3f})" if row["inside"] else ""
    return f"{float(row['macro_f1']):.3f}{inside}"


def fresh(text: str) -> str:
    """The page with all blocks made anew."""
    made_of = {
        "study": study(RESULTS), "scratch": study(SCRATCH), "long": study(LONG, SHORT),
        "long with ImageNet": study(LONG_CNN, SHORT), "own": study(OWN, PIPELINES),
        "own, longer": study(LONG_OWN, PIPELINES), "few labels": study(LABELS, SHORT, "labels"),
        "trials": trials(RESULTS),
    }  # fmt: skip
    for name, made in made_of.items():
        begin, end = f"<!-- {name}: docs/step1_table.py -->", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{made}\n{end}{rest.split(end)[1]}"
    return text


def main() -> None:
    """Rewrite or check the page."""
    text = PAGE.read_text(encoding="utf-8")
    new = fresh(text)
    if "--check" in sys.argv:
        sys.exit(0 if new == text else "docs/step1.md is out of date: run python docs/step1_table.py")
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
