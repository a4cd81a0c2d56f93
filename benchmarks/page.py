"""Write the tables of docs/performance.md from results/speed/*.json: no number there is typed by hand.

python -m benchmarks.page            rewrite them
python -m benchmarks.page --check    exit 1 where they are out of date
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import changes, fidelity, profile, run, scaling

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULTS = ROOT / "docs" / "performance.md", ROOT / "results" / "speed"
# what a file holds, and who wrote it
KINDS: dict[str, Any] = {"cases": run, "changes": changes, "rows": scaling, "profile": profile, "fidelity": fidelity}
BEGIN, END = "<!-- figures: python -m benchmarks.page -->", "<!-- end of figures -->"


def table(found: dict[str, Any]) -> str:
    """The machine and the Markdown table of one file; StopIteration for one that holds no figures."""
    kind, module = next((kind, module) for kind, module in KINDS.items() if found.get(kind))
    rows = [module.COLUMNS, *map(module.cells, found[kind])]
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([machine(found["machine"]), "", head, "| --- " * len(rows[0]) + "|", *body, *notes(found)])


def machine(facts: dict[str, Any]) -> str:
    """One sentence."""
    cores = f"{facts['cores']} cores, {facts['threads']} threads"
    where = f"{facts['gpu']}, host {facts['cpu']}" if facts["gpu"] else f"{facts['cpu']}, {cores}"
    rates = "; ".join(
        f"{size}: " + ", ".join(f"{dtype} {rate:g}" for dtype, rate in found.items())
        for size, found in facts.get("matrix_gflops", {}).items()
    )
    measured = f" Matrix rate at the models' shapes, GFLOP/s: {rates}." if rates else ""
    return f"{where}, torch {facts['torch']}.{measured}"


def notes(found: dict[str, Any]) -> list[str]:
    """What must be known of the cases, each remark once."""
    held: dict[str, list[str]] = {}
    for row in found.get("cases", []):
        if row["note"]:
            held.setdefault(row["note"], []).append(f"{row['size']} {row['name']}")
    lines = [f"- {', '.join(names)}: {note}." for note, names in held.items()]
    extractors = dict.fromkeys(row["extractor"] for row in found.get("fidelity", []))
    lines += [f"- Frechet distances of the features of {extractor}." for extractor in extractors]
    return ["", *lines] if lines else []


def limits(files: dict[str, dict[str, Any]]) -> str:
    """Of every profiled case the ratio that would remain if only convolutions and matrix products took time, and the
    share of the matrix rate if these ran at it and all else took the time that it takes.
    """
    measured = {(row["size"], row["name"]): row for found in files.values() for row in found.get("cases", [])}
    head = (
        *("case", "size", "ratio", "convolutions and products", "ratio if the rest were free"),
        *("matrix rate", "matrix rate if products ran at it"),
    )
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for row in (row for found in files.values() for row in found.get("profile", [])):
        if case := measured.get((row["size"], row["name"])):
            ratio, rate, share = case["ratio"], case["share_of_matrix_rate"], profile.products(row)
            cells = (row["name"], row["size"], f"{ratio:.2f}", f"{share:.0%}", f"{ratio / share:.1f}")
            lines.append("| " + " | ".join((*cells, f"{rate:.0%}", f"{rate / (rate + 1 - share):.0%}")) + " |")
    return "\n".join(["### What bounds the ratios", "", *lines]) if len(lines) > 2 else ""


def section(results: Path) -> str:
    """All files, by name."""
    files = {file.stem: json.loads(file.read_text()) for file in sorted(results.glob("*.json"))}
    parts = [*(f"### {name}\n\n{table(found)}" for name, found in files.items()), limits(files)]
    return "\n\n".join(filter(None, parts)) or "There is no measurement in results/speed/ yet."


def main() -> None:
    """Rewrite or check the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    fresh = f"{before}{BEGIN}\n{section(RESULTS)}\n{END}{rest.split(END)[1]}"
    if "--check" in sys.argv:
        if fresh != text:
            sys.exit("docs/performance.md is out of date: run python -m benchmarks.page")
        return
    PAGE.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
