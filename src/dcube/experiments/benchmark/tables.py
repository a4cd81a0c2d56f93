"""The tables of a benchmark as CSV and Markdown."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from dcube.evaluation.comparison import ENOUGH_SETS
from dcube.evaluation.intervals import FEW_GROUPS
from dcube.experiments.benchmark.field import title
from dcube.experiments.benchmark.summary import REFERENCE

HEADER = (
    "system", "macro-F1", "minus {reference}", "accuracy", "macro precision", "macro recall", "AUROC",
    "calibration error", "minutes", "parameters", "ms/image", "first weights", "configuration (of)", "McNemar p",
    "DeLong p",
)  # fmt: skip
FEW_STEPS = 30  # with fewer, a training (or a part of one) has hardly begun
OPTIMISERS = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD"}
METRICS = ("accuracy", "macro_precision", "macro_recall", "macro_auroc", "ece")


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of all seeds; a column for everything that any row has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _short(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def as_markdown(summary: dict[str, Any], plan: dict[str, Any]) -> str:
    """How it was done in a few lines, a table per data set, and the mean ranks where there are several."""
    parts = [how(plan, summary)]
    parts += [f"## {name}\n\n{table(found)}" for name, found in summary["sets"].items()]
    if summary["ranks"]:
        parts.append(_ranks(summary["ranks"]))
    return "\n\n".join(parts) + "\n"


def how(plan: dict[str, Any], summary: dict[str, Any]) -> str:
    """What a reader must know of the terms."""
    size, seeds = plan["settings"]["diffusion"]["image_size"], plan["seeds"]
    tuned = sorted({row["tuned_on"] for found in summary["sets"].values() for row in found["systems"]})
    budget = f"{plan['budget']} each" if plan["budget"] else "the epochs of table IX each"
    kind = OPTIMISERS[plan["settings"]["classifier"]["optimizer"].get("name", "adamw")]
    if plan["recipes"] == "equal":
        tuning = (
            f"{kind}; up to {plan['tries']} configuration(s) of each system tried on seed"
            f" {' or '.join(map(str, tuned))}, the best by validation macro-F1 kept for all seeds"
        )
    else:
        tuning = "optimiser, learning rate and weight decay of the paper's table IX (nearest row where there is none)"
    widened = " and by what the seeds differ by" if "intervals" in summary and len(seeds) > 1 else ""
    level = 100 * plan["settings"]["evaluation"]["level"]
    share = f"D-Cube's budget: {plan['step1_share']:.0%} for step 1" if plan["budget"] else "D-Cube as its recipe says"
    lines = [
        f"- {size} px, {budget}, {len(seeds)} seed(s); {tuning}. Weights of a training: by validation macro-F1.",
        f"- {share}" + (f"; that of the longer step 1: {plan['long']}." if plan["long"] else "."),
        f"- Figures: {_split(plan)}, mean over seeds, {level:.3g} % intervals by bootstrap over groups{widened}."
        " Differences are paired. McNemar and DeLong: one prediction per group, mean of the seeds; p-values not"
        " corrected for their number.",
        "- Minutes: training alone, that of step 1 in brackets; of models fitted on features (floors, probe) none is"
        " counted but step 1's. **RANDOM**: no pretrained weights.",
    ]
    lines.append(f"- Machine, as of the last call: {plan['machine']}.")
    if plan["share"] or plan["rarest"]:
        cut = [f"{plan['share']:.0%} of the training images" if plan["share"] else ""]
        cut += [f"{plan['rarest']:.0%} of the rarest class" if plan["rarest"] else ""]
        counts = ", ".join(
            f"{name} {_range(found['train_images'])}, {_range(found['train_rarest'])} of the rarest class"
            for name, found in summary["sets"].items()
        )
        lines.append(f"- Scarcity: {' and '.join(filter(None, cut))} kept, another draw each seed ({counts}).")
    return "\n".join(lines)


def table(found: dict[str, Any]) -> str:
    """Markdown table of one data set; a difference in bold where its interval excludes 0."""
    reference = title(found["reference"]) if found["reference"] else "reference"
    head = [text.format(reference=reference) for text in HEADER]
    looks = f" split, opened {found['openings']} time(s)" if found["split"] == "test" else ""
    images = f"{found['n']} images, {found['groups']} groups ({found['split']}{looks})"
    few = [f"{name} {count}" for name, count in found.get("groups_per_class", {}).items() if count < FEW_GROUPS]
    told = f" Few groups ({', '.join(few)}): intervals are too narrow there." if few else ""
    lines = [
        f"{images}; {_range(found['train_images'])} training images.{told}", "",
        "| " + " | ".join(head) + " |", "| --- " * len(head) + "|",
    ]  # fmt: skip
    return "\n".join(lines + ["| " + " | ".join(_cells(row)) + " |" for row in found["systems"]])


def _range(counts: list[int] | None) -> str:
    """What is the same for all seeds, or the least and the most."""
    return "none" if counts is None else f"{counts[0]}" if counts[0] == counts[1] else f"{counts[0]} to {counts[1]}"


def _cells(row: dict[str, Any]) -> list[str]:
    if "failed" in row:
        return [row["title"], f"failed: {row['failed']}", *[""] * (len(HEADER) - 2)]
    metrics = [_interval(row["metrics"][name]) for name in METRICS]
    step1 = f" ({row['minutes_step1']:.1f})" if row["minutes_step1"] else ""
    few = f", only {row['fewest']} steps" if 0 < row["fewest"] < FEW_STEPS else ""
    cut = f", {row['cut']} cut by the clock" if row["cut"] else ""
    why = row["weights"].removeprefix("RANDOM: ")
    weights = f"**RANDOM**{f': {why}' if why != 'random' else ''}" if row["random"] else row["weights"]
    speed = "" if row["milliseconds"] is None else f"{row['milliseconds']:.2f}"
    return [
        f"**{row['title']}**" if row["model"] == REFERENCE else row["title"],
        _interval(row["metrics"]["macro_f1"]), _difference(row.get("difference")), *metrics,
        f"{row['minutes']:.1f}{step1}{few}{cut}", _millions(row["parameters"]), speed, weights,
        f"{row['configuration']} ({len(row['tried'])})", _p(row.get("mcnemar")), _p(row.get("delong")),
    ]  # fmt: skip


def _split(plan: dict[str, Any]) -> str:
    if plan["test_evaluations"]:
        return "test split, opened after all training"
    return "**validation split, by which weights and configurations were chosen: too good**"


def _ranks(ranks: dict[str, Any]) -> str:
    few = f" Fewer than {ENOUGH_SETS} data sets: no significance is claimed."
    lines = [
        f"## Mean rank by macro-F1 over {ranks['sets']} data sets", "",
        f"Friedman's test: p = {ranks['p']:.3g}." if ranks["p"] is not None else few.strip(), "",
        "| system | mean rank |", "| --- | --- |",
    ]  # fmt: skip
    return "\n".join(lines + [f"| {title(model)} | {rank:.2f} |" for model, rank in ranks["systems"]])


def _interval(figure: dict[str, Any], sign: str = "") -> str:
    if figure["value"] is None or figure["low"] is None:
        return "n/a"
    return f"{figure['value']:{sign}.3f} ({figure['low']:{sign}.3f} .. {figure['high']:{sign}.3f})"


def _difference(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return ""
    text = _interval(figure, "+")
    return f"**{text}**" if text != "n/a" and (figure["low"] > 0 or figure["high"] < 0) else text


def _p(found: dict[str, Any] | None) -> str:
    return "" if found is None else "n/a" if found["p"] is None else f"{found['p']:.3f}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count else ""


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value
