"""One offline HTML file about a run, from nothing but the files of its folder."""

import base64
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcube.evaluation import reliability
from dcube.files import write_text
from dcube.report import figures
from dcube.report.cautions import FLOOR_NAMES, run_warnings
from dcube.report.records import RunRecords, cut_short, probabilities, read_run, split_table, worst_mistakes

METRIC_NAMES = {
    "accuracy": ("Accuracy", "share of images that are right"),
    "balanced_accuracy": ("Balanced accuracy", "mean recall of the classes"),
    "macro_precision": ("Macro precision", "mean over the classes"),
    "macro_recall": ("Macro recall", "mean over the classes"),
    "macro_f1": ("Macro-F1", "mean over the classes of F1"),
    "macro_auroc": ("Macro AUROC", "mean of one class against the rest"),
    "brier": ("Brier score", "squared error of the probabilities, 0 to 2; lower is better"),
    "ece": ("Calibration error", "confidence against correctness (ECE, 15 bins); lower is better"),
}
SPLIT_NAMES = {"train": "Training", "val": "Validation", "test": "Test"}
READERS = {
    "second_reader": "second reader alone", "cnn_covariances": "reader of the CNN's textures alone",
    "step1_covariances": "reader of step 1's textures alone",
}  # fmt: skip
STAGES = {"diffusion": "Step 1: the diffusion model", "classifier": "Step 2: the classifier"}


def write_report(run_dir: Path) -> Path:
    """Write `report.html` from what the run folder holds and return its path.

    A section whose files are missing says which command makes them. InputError where `run_dir` is no folder or one
    of its files is damaged.
    """
    path = Path(run_dir) / "report.html"
    write_text(path, render(read_run(Path(run_dir))))
    return path


def render(records: RunRecords) -> str:
    """The page as HTML text; it loads nothing, from nowhere."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dcube", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "interval": _interval}
    return environment.get_template("page.html.j2").render(page=_context(records))


def _context(records: RunRecords) -> dict[str, Any]:
    metrics, selection = records.metrics, records.selection
    pretraining, short = "sets" in (records.data or {}), cut_short(records)
    if metrics:
        metrics = {"floors": {}, "groups_per_class": {}, "bootstrap": {"resamples": 0, "level": 0.95}} | metrics
    return {
        "name": records.name,
        "run": shlex.quote(records.name),
        "level": f"{metrics['bootstrap']['level']:.0%}" if metrics else "",
        "data_name": (records.data or {}).get("name"),
        "split": SPLIT_NAMES.get(metrics["split"], metrics["split"]) if metrics else "",
        "warnings": run_warnings(metrics, selection, records.data, short),
        "trained": _trained(records.experiment, pretraining, short),
        "pretraining": pretraining,
        "splits": split_table(records.split_rows) if records.split_rows else None,
        "split_names": SPLIT_NAMES,
        "broken": (records.data or {}).get("broken"),
        "metrics": metrics,
        "validation": records.validation,
        "metric_names": METRIC_NAMES,
        "floor_names": FLOOR_NAMES,
        "restricted": _restricted(metrics),
        "mistakes": worst_mistakes(records.predictions),
        "predictions": len(records.predictions),
        "curves": [_curves(stage, STAGES[stage], records.logs[stage]) for stage in list(STAGES)[: 2 - pretraining]],
        "selection": selection,
        "samples": _inline(records.samples),
        "sample_rows": [] if pretraining else sorted({row["label"] for row in records.split_rows}),
        "experiment_text": records.experiment_text,
        "environment": _flat(records.environment or {}),
        "figures": _figures(records, metrics),
    }


def _figures(records: RunRecords, metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    """The figures beside the training curves; None where there is nothing to draw."""
    add: dict[str, Any] = dict.fromkeys(("interval", "confusion", "reliability", "selection"))
    if metrics:
        rows = [("this model", metrics["macro_f1"])]
        rows += [(_short(name), floor["macro_f1"]) for name, floor in metrics["floors"].items()]
        label = f"macro-F1, {SPLIT_NAMES.get(metrics['split'], metrics['split']).lower()}"
        if metrics["macro_f1"]["value"] is not None:
            add["interval"] = _figure(figures.interval_figure, "interval", rows, label)
        add["confusion"] = _figure(figures.confusion_figure, "confusion", metrics["confusion"], metrics["classes"])
        if records.predictions:
            points = reliability(*probabilities(records.predictions, metrics["classes"]))
            add["reliability"] = _figure(figures.reliability_figure, "reliability", points)
    if records.selection:
        add["selection"] = _figure(figures.selection_figure, "selection", records.selection)
    return add


def _figure(draw: Callable[..., str], name: str, *arguments: Any) -> Any:
    """A figure as markup that the template does not escape (its text is escaped already)."""
    from markupsafe import Markup

    return Markup(figures.themed(draw(*arguments), name))  # noqa: S704 - made by matplotlib, not by a person


def _curves(stage: str, title: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    training = [row for row in rows if "event" not in row]
    curves: dict[str, Any] = {"title": title, "stage": stage, "figure": None, "probe": None}
    if training:
        last = training[-1]
        curves["figure"] = _figure(figures.loss_curves, f"loss-{stage}", rows)
        curves["length"] = f"{last['step']} steps"
        if last.get("epoch") is not None:
            curves["length"] += f", {last['epoch']:.1f} epochs"
        if last.get("seconds") is not None:
            curves["length"] += f", {_duration(last['seconds'])}"
    if probes := [row for row in rows if row.get("event") == "probe"]:
        curves |= {"probe": _figure(figures.live_probe_figure, f"probe-{stage}", probes), "last_probe": probes[-1]}
    return curves


def _trained(
    experiment: Mapping[str, Any] | None, pretraining: bool, short: Mapping[str, tuple[int, int]]
) -> list[tuple[str, str]] | None:
    """What was trained, in a few lines a person understands; None without settings. short: of `cut_short`."""
    if not experiment:
        return None
    step_1, step_2 = experiment["diffusion"], experiment["classifier"]
    backbone = {"uvit": "U-ViT", "unet": "convolutional U-Net"}.get(step_1["backbone"], step_1["backbone"])
    kind = "diffusion model without labels" if pretraining else "class-conditional diffusion model"
    lengths = _length(step_1, "pairs", short.get("diffusion")), _length(step_2, "images", short.get("classifier"))
    lines = [
        ("Recipe", f"{experiment['recipe']}, seed {experiment['seed']}"),
        ("Step 1", f"{kind}: {backbone}, {step_1['image_size']} px, {lengths[0]}"),
    ]
    if step_1.get("init"):
        lines.append(("Begun with", str(step_1["init"])))
    if pretraining:
        return lines
    if (align := step_1.get("align", {})).get("weight"):
        lines.append(("Imitates", f"{align['cnn']}, map of stride {align['stride']}, weight {align['weight']:g}"))
    if stride := step_2.get("second_reader"):
        lines.append(("Second reader", f"linear probe of {step_2['cnn']} as it came, map of stride {stride}"))
    for reader in step_2.get("covariance_readers", ()):
        of = f"{step_2['cnn']} as it came" if reader == "cnn" else "step 1"
        lines.append(("Reader of textures", f"linear probe of the covariances of all maps of {of}"))
    if step_2.get("second_reader") or step_2.get("covariance_readers"):
        lines.append(("Answers", "the network's and every reader's, joined evenly"))
    return lines + [
        (
            "Contrastive term",
            f"weight {step_1['contrastive']['weight']:g}, distance {step_1['contrastive']['distance']},"
            f" features under the {step_1['contrastive']['label']} label",
        ),
        (
            "Step 2",
            f"classifier on the selected blocks and {_sub_network(step_1, step_2)}, {lengths[1]}",
        ),
        (
            "Its loss",
            f"cross-entropy, cycle (weight {step_2['lambda_cycle']:g}),"
            f" consistency (weight {step_2['lambda_consistency']:g})",
        ),
    ]


def _sub_network(step_1: Mapping[str, Any], step_2: Mapping[str, Any]) -> str:
    if step_2.get("sub_network", "cnn") == "step1":
        return f"a copy of step 1's own network at {step_1['image_size']} px, trained further"
    return f"{step_2['cnn']} at {step_2['cnn_size']} px (weights: {step_2['cnn_weights']})"


def _length(step: Mapping[str, Any], unit: str, short: tuple[int, int] | None) -> str:
    optimizer = step["optimizer"]
    if short is not None:
        return f"{short[0]} of {short[1]} steps of {optimizer['batch_size']} {unit}"
    if optimizer.get("steps") is not None:
        return f"{optimizer['steps']} steps of {optimizer['batch_size']} {unit}"
    return f"{optimizer['epochs']:g} epochs in batches of {optimizer['batch_size']} {unit}"


def _restricted(metrics: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Rows of the figures without some classes: model first, then its floors, for each set left out."""
    rows = []
    for left_out, part in ((metrics or {}).get("without") or {}).items():
        rows.append({"left_out": left_out, "name": "this model", "metrics": part["metrics"]})
        for name, floor in (part.get("floors") or {}).items():
            rows.append({"left_out": left_out, "name": _short(name), "metrics": floor})
    return rows


def _short(floor: str) -> str:
    names = {"majority": "majority class", "statistics": "simple statistics", "pixels": "32x32 pixels"}
    return (names | READERS).get(floor, floor)


def _inline(image: Path | None) -> str | None:
    return f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}" if image else None


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", "; ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _interval(measure: Mapping[str, float | None]) -> str:
    if measure["low"] is None or measure["high"] is None:
        return ""
    return f"{measure['low']:.2f} – {measure['high']:.2f}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
