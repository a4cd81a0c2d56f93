"""What the cells of a benchmark say together: a row per system, paired differences to D-Cube, tests and ranks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dcube.evaluation.comparison import delong, mcnemar, mean_ranks, one_per_group
from dcube.evaluation.metrics import point_metrics
from dcube.evaluation.repeats import repeated_difference, repeated_metrics
from dcube.experiments.benchmark.field import title
from dcube.experiments.benchmark.run import Benchmark
from dcube.experiments.benchmark.terms import Unit
from dcube.files import read_json

PRETRAINED = "ImageNet", "file ", "(timm)"  # what the sources of pretrained weights say
SHOWN = ("accuracy", "macro_precision", "macro_recall", "macro_f1", "macro_auroc", "ece")
REFERENCE = "dcube"
INTERVALS = "groups and seeds"  # what they are of; older summaries, which do not say it: groups alone


def summarise(benchmark: Benchmark, split: str) -> dict[str, Any]:
    """{"sets": {name: {"split", "openings" (of its test split), "n", "groups", "classes", "groups_per_class",
    "train_images", "train_rarest", "reference", "systems": [row]}}, "ranks": ..., "intervals": INTERVALS}.

    A row: model, title, tuned_on (the seed of its choice), metrics {name: M} (mean over the seeds, interval by
    bootstrap over groups), minutes (and those of step 1), parameters, milliseconds, weights, random (no pretrained
    ones), configuration, tried, and against the reference (D-Cube, or else the first system) `difference` of
    macro-F1, `mcnemar` and `delong` on one prediction per group; `failed` instead where a training failed. Rows are
    ordered by macro-F1.
    """
    sets = {name: _set(benchmark, name, split) for name in benchmark.stores}
    return {"sets": sets, "ranks": _ranks(list(sets.values())), "intervals": INTERVALS}


def rows_of_seeds(benchmark: Benchmark, split: str) -> list[dict[str, Any]]:
    """One flat row per data set, system and seed, for the CSV file."""
    rows = []
    for unit in benchmark.cells():
        found, choice = read_json(unit.result), read_json(benchmark.choice_file(unit.name, unit.model))
        row = {"data": unit.name, "model": unit.model, "seed": unit.seed, "split": split}
        if "failed" in found:
            rows.append(row | {"failed": found["failed"]})
            continue
        data = unit.data()
        figures = point_metrics(unit.read(split), data.labels[data.indices(split)])
        row |= {name: round(value, 6) for name, value in figures.items()}
        row |= {"validation_macro_f1": round(found["validation"]["macro_f1"], 6), "minutes": found["seconds"] / 60}
        row |= {"minutes_step1": found.get("seconds_step1", 0.0) / 60}
        row |= {name: found[name] for name in ("steps", "fewest", "planned", "parameters", "trainable", "milliseconds")}
        row |= {name: found[name] for name in ("train_images", "train_rarest", "weights")}
        row |= {"configuration": found["configuration"], "configurations_tried": len(choice["tried"])}
        rows.append(row)
    return rows


def _set(benchmark: Benchmark, name: str, split: str) -> dict[str, Any]:
    units = [unit for unit in benchmark.cells() if unit.name == name]
    data = units[0].data()
    rows = data.indices(split)
    labels, groups = data.labels[rows], np.array(data.groups)[rows]
    held = {model: _repeats([u for u in units if u.model == model], split) for model in benchmark.models}
    trained = [model for model in benchmark.models if held[model]]
    reference = REFERENCE if REFERENCE in trained else trained[0] if trained else None
    how_sure: dict[str, Any] = benchmark.terms.settings.evaluation.model_dump(include={"bootstrap", "level"})
    systems = []
    for model in benchmark.models:
        own = [unit for unit in units if unit.model == model]
        choice = read_json(benchmark.choice_file(name, model))
        row = {"model": model, "title": title(model), "tried": choice["tried"], "tuned_on": choice["seed"]}
        row["seeds"] = list(benchmark.seeds)
        if not held[model]:
            reasons = [found["failed"] for unit in own if "failed" in (found := read_json(unit.result))]
            systems.append(row | {"failed": reasons[0]})
            continue
        row |= _facts(own)
        row["metrics"] = repeated_metrics(held[model], labels, groups, SHOWN, **how_sure)
        if reference is not None and model != reference:
            row |= _against(held[model], held[reference], labels, groups, how_sure)
        systems.append(row)
    systems.sort(key=lambda row: -row["metrics"]["macro_f1"]["value"] if "metrics" in row else 1.0)
    cells = [found for unit in units if "failed" not in (found := read_json(unit.result))]
    left = {name: sorted({found[name] for found in cells}) for name in ("train_images", "train_rarest")}
    return {
        "split": split, "openings": benchmark.openings(name), "n": len(rows), "groups": len(set(groups.tolist())),
        "classes": data.classes,
        "groups_per_class": {name: len(set(groups[labels == k].tolist())) for k, name in enumerate(data.classes)},
        **{name: [counts[0], counts[-1]] if counts else None for name, counts in left.items()},  # over the seeds
        "reference": reference, "systems": systems,
    }  # fmt: skip


def _repeats(units: Sequence[Unit], split: str) -> list[np.ndarray]:
    """Probabilities by seed; none at all where a seed failed: a mean over the others would flatter."""
    if any("failed" in read_json(unit.result) for unit in units):
        return []
    return [unit.read(split) for unit in units]


def _facts(units: Sequence[Unit]) -> dict[str, Any]:
    """Means over the seeds of what a row says beside the metrics."""
    found = [read_json(unit.result) for unit in units]
    times, weights = [row["milliseconds"] for row in found], found[0]["weights"]
    return {
        "minutes": float(np.mean([row["seconds"] for row in found])) / 60,
        "minutes_step1": float(np.mean([row.get("seconds_step1", 0.0) for row in found])) / 60,
        "parameters": found[0]["parameters"], "milliseconds": None if None in times else float(np.mean(times)),
        "weights": weights, "random": _is_random(weights), "configuration": found[0]["configuration"],
        "cut": sum(row["steps"] < row["planned"] for row in found), "fewest": min(row["fewest"] for row in found),
    }  # fmt: skip


def _is_random(weights: str) -> bool:
    """Whether a network that others begin with pretrained weights began without any."""
    return "random" in weights.lower() and not any(word in weights for word in PRETRAINED)


def _against(
    repeats: list[np.ndarray], reference: list[np.ndarray], labels: np.ndarray, groups: np.ndarray,
    how_sure: dict[str, Any],
) -> dict[str, Any]:
    """A system minus the reference: paired bootstrap of macro-F1; tests on the mean prediction of the seeds."""
    (mine, own), (theirs, _) = (one_per_group(np.mean(p, axis=0), labels, groups) for p in (repeats, reference))
    return {
        "difference": repeated_difference(repeats, reference, labels, groups, **how_sure),
        "mcnemar": mcnemar(mine.argmax(1), theirs.argmax(1), own), "delong": delong(mine, theirs, own),
    }  # fmt: skip


def _ranks(sets: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Mean ranks by macro-F1 of the systems that every data set has a figure of; None for one data set."""
    if len(sets) < 2:
        return None
    values = [
        {row["model"]: row["metrics"]["macro_f1"]["value"] for row in found["systems"] if "metrics" in row}
        for found in sets
    ]
    common = [model for model in values[0] if all(model in other for other in values)]
    if not common:
        return None
    ranks, p = mean_ranks(np.array([[value[model] for model in common] for value in values]))
    order = np.argsort(ranks, kind="stable")
    return {"sets": len(sets), "p": p, "systems": [[common[i], round(float(ranks[i]), 3)] for i in order]}
