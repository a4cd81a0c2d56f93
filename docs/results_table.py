"""Write the results sections of README.md from results/: no number there is typed by hand.

    python docs/results_table.py            rewrite the section
    python docs/results_table.py --check    exit 1 where it is out of date
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = ("results", "audits")
FLOORS = ("majority", "statistics", "pixels")
SHORTCUTS = {
    "files": "width, height, colour", "bytes": "bytes per pixel", "border": "border", "statistics": "14 statistics",
    "pixels": "32x32 pixels", "majority": "majority",
}  # fmt: skip
HEADER = [
    *("data", "test images (groups)", "**D-Cube**, macro-F1"),
    *("majority", "14 statistics", "32x32 pixels", "D-Cube, accuracy"),
]


def interval(figure: dict[str, Any]) -> str:
    """A figure as `0.812 (0.750 .. 0.871)`."""
    return f"{figure['value']:.3f} ({figure['low']:.3f} .. {figure['high']:.3f})"


def row(name: str, metrics: dict[str, Any], floors: dict[str, Any]) -> list[str]:
    """One line of the table."""
    sizes = f"{metrics['n']} ({metrics['groups']})"
    others = [interval(floors[floor]["macro_f1"]) for floor in FLOORS]
    return [name, sizes, f"**{interval(metrics['macro_f1'])}**", *others, interval(metrics["accuracy"])]


def not_beaten(name: str, metrics: dict[str, Any], floors: dict[str, Any]) -> list[str]:
    """Sentences for every figure in which a floor is as good as D-Cube."""
    sentences = []
    for key in ("macro_f1", "accuracy", "balanced_accuracy"):
        for floor, figures in floors.items():
            if figures[key]["value"] >= metrics[key]["value"]:
                values = f"{metrics[key]['value']:.3f} against {figures[key]['value']:.3f}"
                sentences.append(f"{name}: {key.replace('_', ' ')} does not beat the floor '{floor}', {values}.")
    return sentences


def section(results: Path) -> str:
    """The table, a line per data set and per restricted figure, and the commands that made it."""
    rows, commands, lost = [HEADER, ["---"] * len(HEADER)], [], []
    for file in sorted(results.glob("small/*/metrics.json")):
        metrics, name = json.loads(file.read_text()), file.parent.name
        parts = {name: (metrics, metrics["floors"])}
        for left_out, part in metrics["without"].items():
            parts[f"{name} without {left_out}"] = (part["metrics"], part["floors"])
        for title, figures in parts.items():
            rows.append(row(title, *figures))
            lost += not_beaten(title, *figures)
        commands.append((file.parent / "command.txt").read_text().strip())
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
    shown = "\n".join(f"- {sentence}" for sentence in lost) or "Every floor is beaten in macro-F1 and both accuracies."
    return f"{table}\n\n{shown}\n\n```sh\n" + "\n".join(commands) + "\n```"


def audits(results: Path) -> str:
    """How far the classes can be told apart by what is no picture of a disease, a line per data set."""
    lines = ["| data | images (groups) | " + " | ".join(SHORTCUTS.values()) + " |"]
    lines.append("| --- " * (2 + len(SHORTCUTS)) + "|")
    for file in sorted(results.glob("audit/*.json")):
        found = json.loads(file.read_text())["shortcuts"]
        sizes = f"{found['majority']['n']} ({found['majority']['groups']})"
        figures = [interval(found[name]["macro_f1"]) for name in SHORTCUTS]
        lines.append(f"| {file.stem} | {sizes} | {' | '.join(figures)} |")
    return "\n".join(lines)


def main() -> None:
    """Rewrite or check README.md."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    fresh = text
    for name, made in zip(SECTIONS, (section(ROOT / "results"), audits(ROOT / "results")), strict=True):
        begin, end = f"<!-- {name}: docs/results_table.py -->", f"<!-- end of {name} -->"
        before, rest = fresh.split(begin)
        fresh = f"{before}{begin}\n{made}\n{end}{rest.split(end)[1]}"
    if "--check" in sys.argv:
        sys.exit(0 if fresh == text else "README.md is out of date: run python docs/results_table.py")
    readme.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
