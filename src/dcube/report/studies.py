"""Figures of studies and benchmarks over several data sets."""

from collections.abc import Mapping
from textwrap import wrap
from typing import Any

import numpy as np

from dcube.report.figures import ACCENT, INK, MUTED, RULE, SECOND, svg_text

WIDTH_OF_A_LETTER = 0.08  # inches
LABEL = 64  # letters in a line


def differences_figure(summary: Mapping[str, Any]) -> str:
    """Paired differences with their intervals, a panel per data set, filled for the whole training part, hollow for a
    part of it, a diamond for a part of its labels; coloured where the interval excludes 0.

    summary: as of `step1_summary.summarise`. Returns SVG text.
    """
    names = list(summary)
    rows = [row for parts in summary.values() for part in parts.values() for row in part["differences"]]
    labels = list(dict.fromkeys((row["of"], row["to"]) for row in rows))
    texts = [f"{of}\n- {to.removeprefix('probe: ')}" for of, to in labels]
    margin = WIDTH_OF_A_LETTER * max((len(line) for text in texts for line in text.splitlines()), default=0)

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for panel, name in zip(panels, names, strict=True):
            panel.axvline(0, color=RULE, linewidth=1)
            for share, shift, mark in (("whole", -0.18, "o"), ("quarter", 0.0, "o"), ("labels", 0.18, "D")):
                for row in summary[name].get(share, {"differences": []})["differences"]:
                    if row["value"] is None or row["low"] is None:
                        continue
                    at = labels.index((row["of"], row["to"])) + shift
                    low, high = row["low"], row["high"]
                    colour = ACCENT if low > 0 else SECOND if high < 0 else MUTED
                    panel.plot([low, high], [at, at], color=colour, linewidth=1.3)
                    fill = colour if share == "whole" else "white"
                    panel.scatter([row["value"]], [at], s=22, marker=mark, color=fill, edgecolor=colour, zorder=3)
            panel.set_title(name)
            panel.set_xlabel("difference of macro-F1")
        panels[0].set_yticks(np.arange(len(labels)), texts)
        panels[0].invert_yaxis()

    return svg_text(draw, 0.4 + margin + 2.4 * len(names), 0.9 + 0.4 * len(labels))


def scarcity_figure(kept: Mapping[str, Mapping[str, Any]], metric: str = "macro_f1") -> str:
    """What is left of a system where training images are taken away: a line per system through its means over the
    seeds, with intervals, a panel per data set.

    kept: what was kept of the training images (as "all", "25 %"), most first -> sets of a benchmark's summary. Returns
    SVG text.
    """
    names = list(dict.fromkeys(name for sets in kept.values() for name in sets))
    titles = list(dict.fromkeys(
        row["title"] for sets in kept.values() for found in sets.values() for row in found["systems"]
    ))  # fmt: skip
    shades = [ACCENT, SECOND, MUTED, INK]

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for panel, name in zip(panels, names, strict=True):
            for i, title in enumerate(titles):
                shift, colour = 0.08 * (i - (len(titles) - 1) / 2), shades[i % len(shades)]
                points = [
                    (at + shift, row["metrics"][metric])
                    for at, sets in enumerate(kept.values())
                    for row in sets.get(name, {"systems": []})["systems"]
                    if row["title"] == title and "metrics" in row
                ]
                for at, value in points:
                    if value["low"] is not None:
                        panel.plot([at, at], [value["low"], value["high"]], color=colour, linewidth=1)
                where, heights = [at for at, _ in points], [value["value"] for _, value in points]
                style: dict[str, Any] = {"linestyle": "-" if i < len(shades) else "--", "marker": "o", "markersize": 4}
                panel.plot(where, heights, color=colour, label=title, **style)
            panel.set_title(name)
            panel.set_xticks(range(len(kept)), list(kept))
            panel.grid(axis="y", color=RULE, linewidth=0.6)
        panels[0].set_ylabel(metric.replace("macro_f1", "macro-F1").replace("_", " "))
        panels[0].legend(loc="lower left", fontsize=7, frameon=False)

    return svg_text(draw, 1.2 + 3.4 * len(names), 3.4)


def field_figure(sets: Mapping[str, Any], metric: str = "macro_f1") -> str:
    """Every system's mean over the seeds with its interval, a panel per data set, in the order of the first; hollow
    without pretrained weights, coloured for D-Cube and the other uses of its step 1.

    sets: of a benchmark's summary. Returns SVG text.
    """
    rows = {name: {row["title"]: row for row in found["systems"] if "metrics" in row} for name, found in sets.items()}
    labels = list(dict.fromkeys(title for held in rows.values() for title in held))

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
        for panel, (name, held) in zip(panels, rows.items(), strict=True):
            for title, row in held.items():
                at, value = labels.index(title), row["metrics"][metric]
                if value["low"] is None:
                    continue
                colour = ACCENT if row["minutes_step1"] else MUTED
                panel.plot([value["low"], value["high"]], [at, at], color=colour, linewidth=1.3)
                panel.scatter([value["repeats"]], [[at] * len(value["repeats"])], s=6, color=colour, zorder=2)
                fill = "white" if row["random"] else colour
                panel.scatter([value["value"]], [at], s=26, color=fill, edgecolor=colour, zorder=3)
            panel.set_title(f"{name} ({sets[name]['split']})")
            panel.set_xlabel(metric.replace("macro_f1", "macro-F1").replace("_", " "))
            panel.grid(axis="x", color=RULE, linewidth=0.6)
        panels[0].set_yticks(np.arange(len(labels)), told)
        panels[0].invert_yaxis()

    told = ["\n".join(wrap(label, LABEL)) for label in labels]
    lines = 1 + max((label.count("\n") for label in told), default=0)
    return svg_text(draw, 2.8 + 2.6 * len(rows), 0.9 + (0.1 + 0.16 * lines) * max(1, len(labels)))
