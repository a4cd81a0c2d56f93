"""What the cells of the study of step 1 say together: out-of-fold figures, paired differences, and their table."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dcube.classifier.reader import joined
from dcube.evaluation.repeats import repeated_difference, repeated_metric
from dcube.experiments.step1 import PLAIN, QUARTER, RELATIVES, TRAINED, UNTRAINED, Repeat, Unit, pooled
from dcube.experiments.step1_cell import MIDDLE, TEXTURES, Cell, part_name
from dcube.files import read_json

PROBE, JOINED, TWO, LATE = "probe: ", " + CNN", ", two readers", "fine-tuned CNN, joined with "
OWN = ", joined with the probe of its step 1"
SEEN = ", joined with the covariances of its step 1"
ALL = ", all readers"  # the CNN's middle map, its covariances, and those of step 1 where there is one
CLOSE = 5e-4  # to 1: a sum that is taken as it is
ARM = {"D-Cube": TRAINED, "untrained step 1": UNTRAINED}
TITLES = {  # by the share of a training part, and what is predicted
    "whole": "The whole training part", "quarter": "{Part} of the training part",
    "labels": "{Part} of the training part, and step 1 on all of it, the rest without labels",
    "whole, test": "The test split, after training on all other images",
    "quarter, test": "The test split, after training on {part} of the other images",
    "labels, test": "The test split, after training on {part} of the other images, and step 1 on all of them",
}  # fmt: skip
QUESTIONS = (  # (figure, compared with): each a paired difference
    (PROBE + TRAINED, PROBE + UNTRAINED),
    (PROBE + TRAINED, PROBE + "pixels"),
    (PROBE + TRAINED, PROBE + PLAIN),
    (PROBE + PLAIN, PROBE + UNTRAINED),
    (PROBE + PLAIN, PROBE + "pixels"),
    *((PROBE + relative, PROBE + PLAIN) for relative in RELATIVES),
    (PROBE + TRAINED, PROBE + "cnn"),
    (PROBE + TRAINED, PROBE + MIDDLE),
    (PROBE + TRAINED + JOINED, PROBE + "cnn"),
    (PROBE + TRAINED + JOINED, PROBE + UNTRAINED + JOINED),
    ("D-Cube", "untrained step 1"),
    ("D-Cube", "no step 1"),
    ("D-Cube", "fine-tuned CNN"),
    ("D-Cube", PROBE + "pixels"),
    ("fine-tuned CNN", PROBE + "pixels"),
    ("D-Cube" + TWO, "D-Cube"),
    ("fine-tuned CNN" + TWO, "fine-tuned CNN"),
    ("D-Cube" + TWO, "fine-tuned CNN"),
    ("D-Cube" + TWO, "untrained step 1" + TWO),
    ("D-Cube" + TWO, "no step 1" + TWO),
    ("D-Cube" + TWO, "fine-tuned CNN" + TWO),
    ("D-Cube" + TWO, PROBE + MIDDLE),  # the reader alone
    (PROBE + MIDDLE, "fine-tuned CNN"),
    (LATE + PROBE + TRAINED, "fine-tuned CNN"),
    (LATE + PROBE + TRAINED, LATE + PROBE + UNTRAINED),
    (LATE + PROBE + TRAINED, LATE + PROBE + "pixels"),
    (LATE + "D-Cube", "fine-tuned CNN"),
    (LATE + "D-Cube", LATE + "untrained step 1"),
    (LATE + "D-Cube", LATE + "no step 1"),
    ("D-Cube" + OWN, "D-Cube"),
    ("D-Cube" + OWN, PROBE + TRAINED),
    ("D-Cube" + OWN, "untrained step 1" + OWN),
    ("D-Cube" + OWN, "no step 1"),
    ("D-Cube" + OWN, "fine-tuned CNN"),
    (PROBE + TRAINED + TEXTURES, PROBE + TRAINED),
    (PROBE + UNTRAINED + TEXTURES, PROBE + UNTRAINED),
    (PROBE + "cnn" + TEXTURES, PROBE + MIDDLE),
    (PROBE + TRAINED + TEXTURES, PROBE + UNTRAINED + TEXTURES),
    (PROBE + TRAINED + TEXTURES, PROBE + PLAIN + TEXTURES),
    *((PROBE + relative + TEXTURES, PROBE + PLAIN + TEXTURES) for relative in RELATIVES),
    (PROBE + TRAINED + TEXTURES, PROBE + UNTRAINED),
    (PROBE + TRAINED + TEXTURES, PROBE + "pixels"),
    (PROBE + TRAINED + TEXTURES, PROBE + "cnn"),
    (PROBE + TRAINED + TEXTURES, PROBE + MIDDLE),
    (PROBE + TRAINED + TEXTURES, PROBE + "cnn" + TEXTURES),
    (PROBE + "cnn" + TEXTURES, "fine-tuned CNN"),
    ("D-Cube" + SEEN, "D-Cube"),
    ("D-Cube" + SEEN, PROBE + TRAINED + TEXTURES),
    ("D-Cube" + SEEN, "untrained step 1" + SEEN),
    ("D-Cube" + SEEN, "no step 1"),
    ("D-Cube" + SEEN, "fine-tuned CNN"),
    ("D-Cube" + ALL, "D-Cube" + TWO),
    ("fine-tuned CNN" + ALL, "fine-tuned CNN" + TWO),
    ("D-Cube" + ALL, "untrained step 1" + ALL),
    ("D-Cube" + ALL, "no step 1" + ALL),
    ("D-Cube" + ALL, "fine-tuned CNN" + ALL),
    ("D-Cube" + ALL, "fine-tuned CNN"),
)


def read_cell(cell: Cell) -> dict[str, np.ndarray]:
    """Probabilities [n, K] of the held-out fold by everything that was asked in a cell; by each system joined with the
    probe of the CNN's middle map, which is the second reader of `classifier.second_reader`; and by the fine-tuned CNN
    joined with what step 1 knows alone, and its rivals (without any head that could lose it), or with each system;
    by D-Cube joined with the probe of its own step 1, or of its covariances; and by each system joined with all readers
    that the program has.
    """
    found: dict[str, np.ndarray] = {}
    for file in sorted((cell.directory / "probe").glob("*.json")):
        held = read_json(file)
        found[PROBE + file.stem] = _told(held)
        if "with_cnn" in held:
            found[PROBE + file.stem + JOINED] = _told(held["with_cnn"])
    for file in sorted((cell.directory / "step2").glob("*.json")):
        found[file.stem] = _told(read_json(file))
        found[file.stem + TWO] = _joined(found, file.stem, PROBE + MIDDLE)
        own = [PROBE + ARM[file.stem] + TEXTURES] if file.stem in ARM else []
        readers = [PROBE + MIDDLE, PROBE + "cnn" + TEXTURES, *own]
        if all(reader in found for reader in readers):  # older studies did not ask for covariances
            found[file.stem + ALL] = _joined(found, file.stem, *readers)
            if own:
                found[file.stem + SEEN] = _joined(found, file.stem, *own)
    for other in (PROBE + TRAINED, PROBE + UNTRAINED, PROBE + "pixels", *ARM, "no step 1"):
        if other in found and "fine-tuned CNN" in found:
            found[LATE + other] = _joined(found, "fine-tuned CNN", other)
    for system, arm in ARM.items():
        if system in found and PROBE + arm in found:
            found[system + OWN] = _joined(found, system, PROBE + arm)
    return found


def _told(held: dict[str, Any]) -> np.ndarray:
    """The probabilities of a file [n, K], which was written with few digits: with many classes rows miss 1 by more than
    a rounding.
    """
    rows = np.array(held["probabilities"])
    total = rows.sum(1, keepdims=True)
    return np.where(np.abs(total - 1) > CLOSE, rows / total, rows)


def _joined(found: dict[str, np.ndarray], system: str, *probes: str) -> np.ndarray:
    return joined(torch.from_numpy(found[system]), *(torch.from_numpy(found[probe]).log() for probe in probes)).numpy()


def summarise(units: Sequence[Unit], **how_sure: Any) -> dict[str, Any]:
    """{data set: {share: {"n", "groups", "macro_f1": {system: M}, "differences": [{"of", "to", ..M}],
    "chosen": {arm: [[block, timestep] of each cell]}, "inside": {arm: macro-F1}}}}; M as in `repeated_metric`,
    shares as in TITLES. how_sure: `bootstrap` and `level` of the intervals.
    """
    result: dict[str, Any] = {}
    for name in dict.fromkeys(unit.name for unit in units):
        for title in TITLES:
            chosen = [unit for unit in units if unit.name == name and _share(unit) == title]
            if not chosen:
                continue
            repeats, labels, groups = pooled(chosen, read_cell)
            share = {
                "n": len(labels), "groups": len(set(groups.tolist())),
                "folds": None if chosen[0].fold is None else chosen[0].folds,
                "seeds": sorted({unit.settings.seed for unit in chosen}),
                "draws": len({unit.draw for unit in chosen}),
                "macro_f1": {
                    system: repeated_metric([*p.values()], labels, groups, seeds=[seed for seed, _ in p], **how_sure)
                    for system, p in repeats.items()
                },
                "differences": [
                    {"of": a, "to": b}
                    | _difference(repeats[a], repeats[b], labels, groups, how_sure)
                    for a, b in QUESTIONS if repeats.get(a, {}).keys() & repeats.get(b, {}).keys()
                ],
                "chosen": _chosen(chosen), "inside": _inside(chosen),
            }  # fmt: skip
            result.setdefault(name, {})[title] = share
    return result


def _share(unit: Unit) -> str:
    return unit.share + (", test" if unit.fold is None else "")


def _difference(
    a: dict[Repeat, np.ndarray], b: dict[Repeat, np.ndarray], labels: np.ndarray, groups: np.ndarray,
    how_sure: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Paired over the seeds that both have: eq. 3 alone and the relatives of eq. 4 were asked with the first one."""
    both = [repeat for repeat in a if repeat in b]
    seeds = [seed for seed, _ in both]
    return repeated_difference([a[r] for r in both], [b[r] for r in both], labels, groups, seeds=seeds, **how_sure)


def _chosen(units: Sequence[Unit]) -> dict[str, list[list[int]]]:
    """Block and timestep that each cell's training part chose, by arm."""
    found: dict[str, list[list[int]]] = {}
    for unit in units:
        for file in sorted((unit.directory / "probe").glob("*.json")):
            held = read_json(file)
            if "blocks" in held:
                best = max(held["blocks"], key=lambda row: row["inside"])
                found.setdefault(file.stem, []).append([best["block"], best["timestep"]])
    return found


def _inside(units: Sequence[Unit]) -> dict[str, float]:
    """What the chosen block of every arm came to inside the training part, mean over the cells: the figure that chose
    it, which a step 1 that was told the labels has seen the answers to.
    """
    found: dict[str, list[float]] = {}
    for unit in units:
        for file in sorted((unit.directory / "probe").glob("*.json")):
            if "blocks" in (held := read_json(file)):
                found.setdefault(file.stem, []).append(max(row["inside"] for row in held["blocks"]))
    return {arm: float(np.mean(values)) for arm, values in found.items()}


def markdown(summary: dict[str, Any], part: float = QUARTER) -> str:
    """Three tables per share: macro-F1 of every system, the paired differences (bold: the interval excludes 0), and of
    every arm of step 1 what its block promised inside the training part beside what it kept. `part`: of the training
    part, where it is not the whole.
    """
    lines: list[str] = []
    for share, title in TITLES.items():
        held = {name: parts[share] for name, parts in summary.items() if share in parts}
        if not held:
            continue
        what = "test split" if share.endswith("test") else "out of fold"
        words = part_name(part)
        lines += ["## " + title.format(part=words, Part=words.capitalize()), ""]
        lines += [f"| macro-F1, {what} | " + " | ".join(held) + " |", "| --- |" + " --- |" * len(held)]
        for system in dict.fromkeys(s for found in held.values() for s in found["macro_f1"]):
            cells = [_cell(found["macro_f1"].get(system), signed=False) for found in held.values()]
            lines.append(f"| {system} | " + " | ".join(cells) + " |")
        lines += ["", "| difference | " + " | ".join(held) + " |", "| --- |" + " --- |" * len(held)]
        for a, b in QUESTIONS:
            row = [
                _cell(next((d for d in found["differences"] if (d["of"], d["to"]) == (a, b)), None), signed=True)
                for found in held.values()
            ]
            if any(cell != "" for cell in row):
                lines.append(f"| {a} - {b.removeprefix(PROBE)} | " + " | ".join(row) + " |")
        arms = list(dict.fromkeys(arm for found in held.values() for arm in found["inside"]))
        if arms:
            lines += ["", f"| inside the training part -> {what} | " + " | ".join(held) + " |"]
            lines += ["| --- |" + " --- |" * len(held)]
            lines += [f"| {arm} | " + " | ".join(_kept(found, arm) for found in held.values()) + " |" for arm in arms]
        lines.append("")
    return "\n".join(lines)


def _kept(part: dict[str, Any], arm: str) -> str:
    value = part["macro_f1"].get(PROBE + arm, {}).get("value")
    return "" if value is None or arm not in part["inside"] else f"{part['inside'][arm]:.3f} -> {value:.3f}"


def _cell(figure: dict[str, Any] | None, signed: bool) -> str:
    if figure is None or figure["value"] is None:
        return ""
    sign = "+" if signed else ""
    if figure["low"] is None:
        return f"{figure['value']:{sign}.3f} (n/a)"
    text = f"{figure['value']:{sign}.3f} ({figure['low']:{sign}.3f} .. {figure['high']:{sign}.3f})"
    return f"**{text}**" if signed and (figure["low"] > 0 or figure["high"] < 0) else text
