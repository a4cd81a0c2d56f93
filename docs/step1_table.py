"""Write the figures of docs/step1.md from results/step1/step1.json and trials.csv, and from the studies beside it: no
number there is typed by hand.

    python docs/step1_table.py            rewrite them
    python docs/step1_table.py --check    exit 1 where they are out of date
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

from dcube.experiments.step1 import PLAIN, RELATIVES, SHARES, SYSTEMS, TRAINED, UNTRAINED
from dcube.experiments.step1_cell import MIDDLE, TEXTURES
from dcube.experiments.step1_summary import ALL, LATE, PROBE, SEEN, TWO, markdown

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULTS = ROOT / "docs" / "step1.md", ROOT / "results" / "step1"
SCRATCH, LONG = ROOT / "results" / "step1-scratch", ROOT / "results" / "step1-long"
LONG_CNN = ROOT / "results" / "step1-long-cnn"
OWN, LONG_OWN = ROOT / "results" / "step1-own", ROOT / "results" / "step1-long-own"
LABELS_STUDY, FEWER = ROOT / "results" / "step1-labels", ROOT / "results" / "step1-labels-1000"
LARGER, DRAWS = ROOT / "results" / "step1-64", ROOT / "results" / "step1-draws"
QUARTER_CNN, TENTH = ROOT / "results" / "step1-quarter-cnn", ROOT / "results" / "step1-tenth"
WHOLE, PART, LABELS = SHARES
SYSTEMS_ALONE, PROBES = tuple(SYSTEMS), tuple(PROBE + what for what in ("pixels", UNTRAINED, TRAINED))
READ = tuple(PROBE + what + TEXTURES for what in (UNTRAINED, TRAINED))
SHORT = (*PROBES, *READ, PROBE + MIDDLE, PROBE + "cnn" + TEXTURES, *SYSTEMS_ALONE)
ASKED = (
    *PROBES, *(PROBE + what for what in (PLAIN, *RELATIVES, MIDDLE, "cnn")), *SYSTEMS_ALONE,
    *(LATE + probe for probe in PROBES),
)  # fmt: skip


def read_by(*readers: str) -> tuple[str, ...]:
    """The systems together with readers."""
    return tuple(system + reader for reader in readers for system in SYSTEMS)


RIVALS, PIXELS = ("untrained step 1", "no step 1", "fine-tuned CNN"), PROBE + "pixels"
BESIDE = (*(rival + TWO for rival in RIVALS), "fine-tuned CNN")
ANSWERS: tuple[tuple[str, Path, str, str, tuple[str, ...]], ...] = (  # question, study, share, of what, behind what
    ("best block, a minute of step 1", RESULTS, WHOLE, PROBE + TRAINED, (PROBE + UNTRAINED, PIXELS)),
    ("the same, ten minutes", LONG_OWN, WHOLE, PROBE + TRAINED, (PROBE + UNTRAINED, PIXELS)),
    (
        "all blocks by their textures, a minute", SCRATCH, WHOLE, PROBE + TRAINED + TEXTURES,
        (PROBE + UNTRAINED, PROBE + "pixels", PROBE + UNTRAINED + TEXTURES),
    ),
    (
        "the same, a quarter of the labels", LABELS_STUDY, LABELS, PROBE + TRAINED + TEXTURES,
        (PROBE + UNTRAINED, PROBE + "pixels", PROBE + UNTRAINED + TEXTURES),
    ),
    (
        "the same, ten minutes at 64 px, imitating ImageNet's CNN", LARGER, WHOLE, PROBE + TRAINED + TEXTURES,
        (PROBE + UNTRAINED, PROBE + "pixels", PROBE + UNTRAINED + TEXTURES),
    ),
    ("eq. 4, repaired", RESULTS, WHOLE, PROBE + "eq. 4", (PROBE + PLAIN,)),
    ("classifier beside ImageNet's weights, a minute", RESULTS, WHOLE, "D-Cube", RIVALS),
    ("classifier, nothing pretrained, ten minutes", LONG_OWN, WHOLE, "D-Cube", (*RIVALS, PIXELS)),
    ("the same, a quarter of the labels", LABELS_STUDY, LABELS, "D-Cube", (*RIVALS, PIXELS)),
    (
        "the same, with its textures", LABELS_STUDY, LABELS, "D-Cube" + SEEN,
        ("untrained step 1" + SEEN, *RIVALS[1:]),
    ),
    ("with ImageNet's reader, a quarter of the labels", QUARTER_CNN, LABELS, "D-Cube" + TWO, BESIDE),
    ("the same, a tenth of the labels", TENTH, LABELS, "D-Cube" + TWO, BESIDE),
    ("the same, other draws of that tenth", DRAWS, LABELS, "D-Cube" + TWO, (*BESIDE, PROBE + MIDDLE)),
    ("the same, all labels, 64 px, imitating that CNN", LARGER, WHOLE, "D-Cube" + TWO, BESIDE),
)  # fmt: skip
DRAWN = (
    *(("D-Cube" + TWO, rival) for rival in (*BESIDE, PROBE + MIDDLE)), (PROBE + MIDDLE, "fine-tuned CNN"),
    *((LATE + "D-Cube", rival) for rival in ("fine-tuned CNN", LATE + "untrained step 1", LATE + "no step 1")),
)  # fmt: skip
Trial = dict[str, str]


def study(results: Path, kept: tuple[str, ...], *shares: str, inside: bool = False) -> str:
    """The tables of the study: of the systems `kept` alone, of `shares` alone; `inside`: and what was promised."""
    held = json.loads((results / "step1.json").read_text(encoding="utf-8"))
    for name, parts in held["results"].items():
        held["results"][name] = {title: part for title, part in parts.items() if title in shares}
    parts = [part for shares in held["results"].values() for part in shares.values()]
    for part in parts:
        part["macro_f1"] = {name: part["macro_f1"][name] for name in kept if name in part["macro_f1"]}
        part["differences"] = [d for d in part["differences"] if {d["of"], d["to"]} <= {*kept}]
        part["inside"] = part["inside"] if inside else {}
    drawn = max(part.get("draws", 1) for part in parts)
    seeds = {name: ", ".join(map(str, part["seeds"])) for name, p in held["results"].items() for part in p.values()}
    most = max(seeds.values(), key=len)
    fewer = "".join(f" ({name}: {own})" for name, own in seeds.items() if own != most)
    fewer += f", {drawn} draws of the labels" if drawn > 1 else ""
    head = f"{parts[0]['folds']} folds by group, seeds {most}{fewer}; bold where the interval excludes 0."
    if len(shares) == 1:  # its heading says nothing that the section's does not
        return head + "\n\n" + markdown(held["results"]).partition("\n")[2].strip()
    return f"{head}\n\n{markdown(held['results']).replace('## ', '#### ').strip()}"


def answers(part: str) -> str:
    """What the page comes to: differences in points of macro-F1, out of fold (`part` "") or on the test split."""
    rows: list[str] = []
    sets = [*json.loads((RESULTS / "step1.json").read_text(encoding="utf-8"))["results"]]
    for question, results, share, of, rivals in ANSWERS:
        held = json.loads((results / "step1.json").read_text(encoding="utf-8"))["results"]
        asked = [held.get(name, {}).get(share + part, {}).get("differences", []) for name in sets]
        for rival in rivals:
            found = [next((d for d in of_set if (d["of"], d["to"]) == (of, rival)), None) for of_set in asked]
            seeds = list(dict.fromkeys(str(len(d["repeats"])) for d in found if d))
            if not seeds:  # the test split was not opened for all, nor asked of eq. 4
                continue
            cells = " | ".join(difference(d) if d else "" for d in found)
            rows.append(f"| {question} | {plain(rival)} | {cells} | {', '.join(seeds)} |")
            question = ""
    head = [f"| what | against | {' | '.join(sets)} | repeats |", "| --- | --- |" + " --- |" * (len(sets) + 1)]
    return "\n".join([*head, *rows])


def plain(rival: str) -> str:
    """A rival's name without saying what kind of figure it is."""
    if rival == PROBE + MIDDLE:
        return "that reader alone"
    name = rival.removeprefix(PROBE).removesuffix(SEEN).replace(TEXTURES, ", by its textures")
    return name.replace(TWO, ", with that reader")


def difference(figure: dict[str, Any]) -> str:
    """In points, bold where the interval excludes 0."""
    text = f"{100 * figure['value']:+.1f} ({100 * figure['low']:+.1f} .. {100 * figure['high']:+.1f})"
    return f"**{text}**" if figure["low"] > 0 or figure["high"] < 0 else text


def by_draw(results: Path, share: str, asked: tuple[tuple[str, str], ...]) -> str:
    """Differences in points: their mean with its interval, and every draw's own."""
    rows = []
    for name, parts in json.loads((results / "step1.json").read_text(encoding="utf-8"))["results"].items():
        for of, to in asked:
            found = next(d for d in parts[share]["differences"] if (d["of"], d["to"]) == (of, to))
            single = ", ".join(f"{100 * value:+.1f}" for value in found["repeats"])
            rows.append(f"| {name} | {of} - {plain(to)} | {difference(found)} | {single} |")
    return "\n".join(["| data | difference | mean | draw by draw |", "| --- | --- | --- | --- |", *rows])


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
    own = (*SYSTEMS_ALONE, *read_by(SEEN, TWO, ALL))
    beside = (*PROBES, *READ, PROBE + MIDDLE, *SYSTEMS_ALONE, *read_by(TWO), *(LATE + s for s in SYSTEMS_ALONE))
    made_of = {
        "answers": answers(""), "answers, test": answers(", test"),
        "study": study(RESULTS, ASKED, WHOLE, inside=True), "a quarter": study(RESULTS, ASKED, PART),
        "scratch": study(SCRATCH, (*SHORT, *read_by(SEEN, ALL)), WHOLE),
        "long": study(LONG, (*SHORT, *read_by(ALL)), WHOLE),
        "long with ImageNet": study(LONG_CNN, (*SHORT, *read_by(SEEN, TWO)), WHOLE),
        "own": study(OWN, (*SYSTEMS_ALONE, *read_by(SEEN, ALL)), WHOLE, PART),
        "own, longer": study(LONG_OWN, own, WHOLE),
        "few labels": study(LABELS_STUDY, (*SHORT, *read_by(SEEN, ALL)), LABELS),
        "quarter beside ImageNet": study(QUARTER_CNN, beside, LABELS),
        "tenth beside ImageNet": study(TENTH, beside, LABELS), "draws": study(DRAWS, beside, LABELS),
        "draw by draw": by_draw(DRAWS, LABELS, DRAWN), "larger": study(LARGER, beside, WHOLE),
        "fewer passes": study(FEWER, (*PROBES, *READ, *SYSTEMS_ALONE), LABELS), "trials": trials(RESULTS),
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
