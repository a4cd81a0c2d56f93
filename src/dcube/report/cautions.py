"""What a careful reader would ask about a result, in plain words."""

from collections.abc import Mapping
from typing import Any

from dcube.evaluation.intervals import FEW_GROUPS

FLOOR_NAMES = {
    "majority": "always the commonest class",
    "statistics": "logistic regression on simple statistics",
    "pixels": "logistic regression on 32x32 pixels",
    "second_reader": "its own second reader alone",
    "cnn_covariances": "its own reader of the CNN's textures alone",
    "step1_covariances": "its own reader of step 1's textures alone",
}
Metrics = Mapping[str, Any]


def run_warnings(
    metrics: Metrics | None, selection: Mapping[str, Any] | None, data: Mapping[str, Any] | None,
    cut_short: Mapping[str, tuple[int, int]] | None = None,
) -> list[str]:  # fmt: skip
    """Sentences about everything that limits what this run shows; empty where nothing is known to. cut_short: of
    `records`."""
    found = []
    if cut_short:
        found.append(f"Training stopped early: {steps_done(cut_short)}; repeat the command to train on.")
    if data and str(data.get("name", "")).startswith("phantom:"):
        found.append("The images are synthetic (phantom:). The figures say nothing about patients.")
    found += (data or {}).get("remarks", [])
    if metrics:
        found += [*_split_warnings(metrics), *_floor_warnings(metrics), *_size_warnings(metrics)]
    if selection and selection["rule"] == "k least Gaussian":
        found.append(
            f"No block had p below {selection['alpha']:g}, so the {len(selection['selected'])} least Gaussian ones"
            " were taken."
        )
    if selection and selection["rule"] in ("forced", "most Gaussian"):
        found.append(f"The blocks were not chosen by the test of eq. 6 (rule: {selection['rule']}).")
    if selection and selection["rule"] == "best probe inside train" and selection.get("labels_told"):
        found.append(
            "The blocks were chosen by probes of training images whose labels step 1 was told (diffusion.contrastive):"
            " a block that learnt those patients by heart looks best."
        )
    return found


def steps_done(cut_short: Mapping[str, tuple[int, int]]) -> str:
    """How far the trainings came that have not ended, in words."""
    steps = {"diffusion": "step 1", "classifier": "step 2"}
    return ", ".join(f"{steps[stage]} after {step} of {asked} steps" for stage, (step, asked) in cut_short.items())


def _split_warnings(metrics: Metrics) -> list[str]:
    times = metrics.get("test_evaluations", 1)
    if metrics.get("split") == "val":
        return ["These are validation figures: choices were made on these images, so they flatter the model."]
    if times > 1:
        return [f"The test split has been used {times} times; each use after the first makes its figures less honest."]
    return []


def _floor_warnings(metrics: Metrics) -> list[str]:
    score, found = metrics["macro_f1"], []
    if score["value"] is None:
        return ["The macro-F1 of this split is undefined, so nothing can be said about it."]
    if score["low"] is None:
        found.append(
            "Every class has one group in this split, so its figures have no interval: it shows next to nothing."
        )
    elif score["low"] == score["high"]:
        found.append(
            "The interval of the macro-F1 has no width, for every resample of so few groups came to the same: it is no"
            " certainty."
        )
    for name, floor in (metrics.get("floors") or {}).items():
        title, value = FLOOR_NAMES.get(name, name), floor["macro_f1"]["value"]
        if value is None:
            continue
        if score["value"] <= value:
            found.append(f"The model does not beat {title} (macro-F1 {score['value']:.3f} against {value:.3f}).")
        elif score["low"] is not None and score["low"] <= value:
            found.append(
                f"The interval of the macro-F1 ({score['low']:.3f} to {score['high']:.3f}) includes {title}"
                f" ({value:.3f}): this split does not show that the model is better."
            )
    return found


def _size_warnings(metrics: Metrics) -> list[str]:
    held = metrics.get("groups_per_class") or {}
    found = [
        f"There is no image of class {name} in this split; macro figures leave it out."
        for name, groups in held.items() if groups == 0
    ]  # fmt: skip
    if few := {name: groups for name, groups in held.items() if 0 < groups < FEW_GROUPS}:
        counted = [f"{name} {groups}" for name, groups in few.items()]
        narrow = "" if metrics["macro_f1"]["low"] is None else ", and intervals are too narrow with so few"
        found.append(
            f"Of some classes there are few groups (patients) in this split ({', '.join(counted)}): one more or less"
            f" would move their figures a lot{narrow}."
        )
    for name, scores in (metrics.get("per_class") or {}).items():
        if scores["support"] and scores["recall"]["value"] == 0:
            found.append(f"No image of class {name} was recognised.")
    bootstrap = metrics.get("bootstrap") or {}
    if undefined := bootstrap.get("undefined"):
        worst = max(undefined, key=lambda name: undefined[name])
        found.append(
            f"In {undefined[worst]} of {bootstrap['resamples']} resamples the {worst.replace('_', ' ')} was undefined"
            " (a class drew no image); its interval leaves them out."
        )
    return found
