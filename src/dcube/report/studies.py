"""Figures of studies over several data sets."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dcube.report.figures import ACCENT, MUTED, RULE, SECOND, svg_text


def differences_figure(summary: Mapping[str, Any]) -> str:
    """Paired differences with their intervals, a panel per data set, filled for the whole training part and hollow
    for a quarter of it; coloured where the interval excludes 0.

    summary: as of `step1_summary.summarise`. Returns SVG text.
    """
    names = list(summary)
    rows = [row for parts in summary.values() for part in parts.values() for row in part["differences"]]
    labels = list(dict.fromkeys((row["of"], row["to"]) for row in rows))

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for panel, name in zip(panels, names, strict=True):
            panel.axvline(0, color=RULE, linewidth=1)
            for share, shift in (("whole", -0.14), ("quarter", 0.14)):
                for row in summary[name].get(share, {"differences": []})["differences"]:
                    if row["value"] is None:
                        continue
                    at = labels.index((row["of"], row["to"])) + shift
                    low, high = row["low"], row["high"]
                    colour = ACCENT if low > 0 else SECOND if high < 0 else MUTED
                    panel.plot([low, high], [at, at], color=colour, linewidth=1.3)
                    fill = colour if share == "whole" else "white"
                    panel.scatter([row["value"]], [at], s=22, color=fill, edgecolor=colour, zorder=3)
            panel.set_title(name)
            panel.set_xlabel("difference of macro-F1")
        panels[0].set_yticks(np.arange(len(labels)), [f"{of} - {to.removeprefix('probe: ')}" for of, to in labels])
        panels[0].invert_yaxis()

    return svg_text(draw, 3.2 + 2.4 * len(names), 0.9 + 0.36 * len(labels))
