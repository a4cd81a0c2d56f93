"""Figures as SVG text: the same input gives the same bytes. Text stays text, colours come from one small palette."""

import io
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

INK, MUTED, RULE, PAPER, ACCENT, SECOND = "#1d2329", "#6a737d", "#d9dee3", "#ffffff", "#0f6e84", "#b4552d"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "dcube",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class called "a$b$" is a name, not a formula
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "figure.facecolor": PAPER,
    "legend.frameon": False,
}
NOT_LOSSES = ("step", "epoch", "seconds", "lr", "event", "file")
SHORT = 16  # letters of a class beside a confusion matrix, where they suffice
MOST_POINTS = 300  # of one curve; longer logs are averaged over stretches of steps
Row = Mapping[str, Any]


def selection_figure(selection: Mapping[str, Any]) -> str:
    """Figure 2 of one run: p of the Gaussianity test (eq. 6) per block, selected blocks starred, alpha as a line.

    selection: the content of `selection.json`. Returns SVG text.
    """
    blocks = sorted(selection["blocks"], key=lambda block: block["index"])
    places, p = np.arange(len(blocks)), np.array([block["p"] for block in blocks], dtype=float)
    chosen = np.isin([block["index"] for block in blocks], selection["selected"])

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.axhline(selection["alpha"], color=SECOND, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"alpha = {selection['alpha']:g}", (1, selection["alpha"]), (0, 3), xycoords=("axes fraction", "data"),
            textcoords="offset points", ha="right", color=SECOND, fontsize=8,
        )  # fmt: skip
        axes.plot(places, p, color=RULE, linewidth=1.2, zorder=1)
        axes.scatter(places[~chosen], p[~chosen], s=26, color=MUTED, zorder=2)
        axes.scatter(places[chosen], p[chosen], s=150, marker="*", color=ACCENT, zorder=3)
        for place in places[chosen]:
            axes.annotate(
                f"{p[place]:.2g}", (place, p[place]), (0, 12), textcoords="offset points", ha="center", fontsize=8
            )
        names = [f"{block['index']}\n{block['name']}" if len(blocks) <= 10 else f"{block['index']}" for block in blocks]
        axes.set_xticks(places, names)
        axes.set_xlim(-0.5, len(blocks) - 0.5)
        axes.set_ylim(-0.04, max(1.04, float(np.nanmax(p)) * 1.08))
        axes.set_xlabel("block")
        axes.set_ylabel("p (small: far from Gaussian)")

    return svg_text(draw, 7.4, 2.9)


def loss_curves(rows: Sequence[Row]) -> str:
    """Small multiples of a training log: every loss part, and the validation figures with the best step marked.

    rows: the lines of `log.jsonl`. Values that are not finite numbers are left out. Returns SVG text.
    """
    training = [row for row in rows if "event" not in row]
    validation = [row for row in rows if row.get("event") == "validation"]
    names = sorted({name for row in training for name in row if name not in NOT_LOSSES}, key=lambda n: (n != "loss", n))
    panels = [(name.replace("_", " "), _series(training, name), False) for name in names]
    panels += [
        (f"validation {title}", _series(validation, name), True)
        for name, title in (("macro_f1", "macro-F1"), ("loss", "loss"))
    ]
    panels = [panel for panel in panels if len(panel[1][0])]
    if not panels:
        raise ValueError("the log holds no loss to draw")
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    lines = -(-len(panels) // columns)

    def draw(figure: Any) -> None:
        for axes, (title, (steps, values), is_validation) in zip(
            figure.subplots(lines, columns, squeeze=False).flat[: len(panels)], panels, strict=True
        ):
            _curve(axes, steps, values, is_validation, best="macro-F1" in title)
            axes.set_title(title)
        for axes in figure.axes[len(panels) :]:
            axes.set_visible(False)
        for axes in figure.axes[max(0, len(panels) - columns) : len(panels)]:  # the lowest of each column
            axes.set_xlabel("step")

    return svg_text(draw, 7.4, 1.75 * lines + 0.3)


def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Confusion matrix: rows true, columns predicted; counts, shaded by their share of the row. Returns SVG text."""
    counts = np.asarray(confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    labels = short_names(classes)

    def draw(figure: Any) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.subplots()
        for (row, column), share in np.ndenumerate(shares):
            colour = ACCENT if row == column else SECOND
            axes.add_patch(
                Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, facecolor=colour, alpha=0.06 + 0.6 * share, lw=0)
            )
            axes.text(column, row - 0.08, str(counts[row, column]), ha="center", va="center", fontsize=11)
            axes.text(column, row + 0.24, f"{share:.0%}", ha="center", va="center", fontsize=7.5)
        fits = max(map(len, labels)) <= 12 and len(labels) <= 6
        slant = {} if fits else {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(classes)), labels, **slant)
        axes.set_yticks(range(len(classes)), labels)
        axes.set_xlim(-0.5, len(classes) - 0.5)
        axes.set_ylim(len(classes) - 0.5, -0.5)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    side, more = 0.75 * len(classes), 0.07 * max(0, max(map(len, labels)) - SHORT)
    return svg_text(draw, side + 1.3 + more, 0.7 * side + 0.9 + more / 2)


def short_names(names: Sequence[str]) -> list[str]:
    """Each name in at most SHORT letters: its start, or its end where others begin alike; else the whole name."""
    forms = [[n] if len(n) <= SHORT else [f"{n[: SHORT - 1]}…", f"…{n[1 - SHORT :]}", n] for n in names]
    often = Counter(form for own in forms for form in own)
    return [next((form for form in own if often[form] == 1), own[-1]) for own in forms]


def reliability_figure(points: Mapping[str, Sequence[float]]) -> str:
    """Reliability diagram: how often the model is right at each confidence. points: of `evaluation.reliability`."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=RULE, linewidth=1.2)
        sizes = 12 + 150 * np.asarray(points["count"], dtype=float) / max(1, sum(points["count"]))
        axes.plot(points["confidence"], points["accuracy"], color=ACCENT, linewidth=1.2)
        axes.scatter(points["confidence"], points["accuracy"], s=sizes, color=ACCENT, alpha=0.75, linewidth=0)
        axes.set_xlim(0, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("confidence")
        axes.set_ylabel("share that is right")

    return svg_text(draw, 3.4, 3.0)


def interval_figure(rows: Sequence[tuple[str, Row]], label: str) -> str:
    """One dot with its interval per row (name, {"value", "low", "high"}), the first row set off. Returns SVG text."""
    shown = [(name, measure) for name, measure in rows if measure["value"] is not None and measure["low"] is not None]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for place, (_, measure) in enumerate(shown):
            colour, width = (ACCENT, 3) if place == 0 else (MUTED, 1.6)
            axes.plot([measure["low"], measure["high"]], [place, place], color=colour, lw=width, solid_capstyle="round")
            axes.scatter([measure["value"]], [place], s=46 if place == 0 else 26, color=colour, zorder=3)
            axes.annotate(
                f"{measure['value']:.3f}", (measure["value"], place), (0, 7), textcoords="offset points",
                ha="center", fontsize=8.5,
            )  # fmt: skip
        axes.set_yticks(range(len(shown)), [name for name, _ in shown])
        axes.set_ylim(len(shown) - 0.5, -0.7)
        axes.set_xlim(0, 1)
        axes.set_xlabel(label)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)

    return svg_text(draw, 7.4, 0.55 * len(shown) + 0.75)


def probe_figure(rows: Sequence[Row]) -> str:
    """Macro-F1 of the probes per block: trained and untrained network, the best timestep of each; pixels and the CNN
    as lines. rows: of `probe.json`. Returns SVG text.
    """
    blocks = list(dict.fromkeys(row["block"] for row in rows if row["model"] == "trained"))

    def best(model: str, block: str) -> Row:
        found = [row for row in rows if (row["model"], row["block"]) == (model, block)]
        return max(found, key=lambda row: row["macro_f1"]["value"])

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for model, colour, shift in (("untrained", MUTED, -0.12), ("trained", ACCENT, 0.12)):
            found = [best(model, block)["macro_f1"] for block in blocks]
            places = np.arange(len(blocks)) + shift
            axes.vlines(places, [f["low"] for f in found], [f["high"] for f in found], color=colour, lw=1.6)
            axes.scatter(places, [f["value"] for f in found], s=30, color=colour, zorder=3, label=model)
        for row in rows:
            if row["model"] in ("pixels", "cnn"):
                axes.axhline(row["macro_f1"]["value"], color=SECOND, lw=1, ls=(0, (4, 3)))
                axes.annotate(
                    row["model"], (1, row["macro_f1"]["value"]), (0, 3), xycoords=("axes fraction", "data"),
                    textcoords="offset points", ha="right", color=SECOND, fontsize=8,
                )  # fmt: skip
        axes.set_xticks(range(len(blocks)), blocks)
        axes.set_ylabel("macro-F1 of the probe")
        axes.legend(loc="lower right")

    return svg_text(draw, 7.4, 3.2)


def live_probe_figure(rows: Sequence[Row]) -> str:
    """Macro-F1 of the probes during step 1 over the steps, a curve with its interval per block. rows: those of
    `log.jsonl` whose event is "probe". Returns SVG text.
    """
    names = list(dict.fromkeys(name for row in rows for name in row["blocks"]))
    styles = [(ACCENT, "-"), (SECOND, "-"), (MUTED, "-"), (ACCENT, ":"), (SECOND, ":"), (MUTED, ":")]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for name, (colour, line) in zip(names, itertools.cycle(styles)):  # noqa: B905 - styles come round again
            points = [(row["step"], row["blocks"][name]["macro_f1"]) for row in rows if name in row["blocks"]]
            steps = [step for step, _ in points]
            ends = [[np.nan if f[end] is None else f[end] for _, f in points] for end in ("low", "high")]
            axes.fill_between(steps, *ends, color=colour, alpha=0.12, linewidth=0)
            axes.plot(steps, [f["value"] for _, f in points], line, color=colour, lw=1.4, marker="o", ms=3, label=name)
        axes.set_xlabel("step")
        axes.set_ylabel("macro-F1 of the probe")
        axes.legend(loc="lower right")

    return svg_text(draw, 7.4, 2.9)


def themed(svg: str, name: str) -> str:
    """The same figure for a place inside a page: palette as CSS variables, ids of its own, no links, no prologue."""
    svg = svg[svg.index("<svg") :]
    for colour, variable in (
        (INK, "ink"), (MUTED, "muted"), (RULE, "rule"), (PAPER, "paper"), (ACCENT, "accent"), (SECOND, "second"),
    ):  # fmt: skip
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return re.sub(r'<svg (.*?)width="[^"]*"', r"<svg \1", re.sub(r'(<svg .*?)height="[^"]*" ', r"\1", svg, count=1))


def svg_text(draw: Any, width: float, height: float) -> str:
    """Draw into a figure of this size in inches and return it as SVG without date or links to its maker."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        text = io.StringIO()
        with warnings.catch_warnings():  # a glyph that this machine's font lacks is drawn by the reader's
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return text.getvalue()


def _series(rows: Sequence[Row], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of one column, averaged over stretches where there are too many."""
    found = [
        (row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float) and np.isfinite(row[name])
    ]
    table = np.array(found, dtype=float).reshape(-1, 2)
    if len(table) > MOST_POINTS:
        table = np.array([part.mean(0) for part in np.array_split(table, MOST_POINTS)])
    return table[:, 0], table[:, 1]


def _curve(axes: Any, steps: np.ndarray, values: np.ndarray, is_validation: bool, best: bool) -> None:
    if is_validation:
        axes.plot(steps, values, color=SECOND, linewidth=1.3, marker="o", markersize=2.5)
        if best:
            top = int(np.argmax(values))
            axes.scatter(steps[top], values[top], s=110, marker="*", color=ACCENT, zorder=3)
            axes.annotate(
                f"{values[top]:.3f}", (steps[top], values[top]), (0, -13), textcoords="offset points", ha="center",
                fontsize=8,
            )  # fmt: skip
    else:
        axes.plot(steps, values, color=ACCENT, linewidth=0.7, alpha=0.35)
        window = max(1, len(values) // 15)
        padded = np.pad(values, (window // 2, window - 1 - window // 2), mode="edge")
        axes.plot(steps, np.convolve(padded, np.full(window, 1 / window), "valid"), color=ACCENT, linewidth=1.5)
    axes.margins(x=0.03, y=0.12)
    axes.locator_params(nbins=4)
