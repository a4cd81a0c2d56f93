"""What the report reads from a run folder; every file may be missing, a damaged one is named."""

import csv
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dcube.errors import InputError
from dcube.evaluation.metrics import Floats, Ints
from dcube.files import read_json
from dcube.training.log import read_log

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class RunRecords:
    """The files of one run, as read; None or empty where a file is not there."""

    name: str
    experiment: dict[str, Any] | None
    experiment_text: str
    environment: dict[str, Any] | None
    data: dict[str, Any] | None
    split_rows: list[dict[str, str]]
    logs: dict[str, list[dict[str, Any]]]  # "diffusion", "classifier"
    samples: Path | None  # the latest grid
    selection: dict[str, Any] | None
    metrics: dict[str, Any] | None  # of the test split, or of validation where the test split was not used
    validation: dict[str, Any] | None  # of validation, where both are there
    predictions: list[dict[str, str]] = field(default_factory=list)  # of the split that `metrics` speaks of
    reached: dict[str, int] = field(default_factory=dict)  # the newest step, of the trainings of which it is known


def read_run(run_dir: Path) -> RunRecords:
    """Read what there is in a run folder. InputError where it is no folder, or naming a damaged file."""
    if not run_dir.is_dir():
        raise InputError(f"There is no run folder {run_dir}; `dcube fit DATA --out {run_dir}` makes it.")
    evaluation = run_dir / "evaluation"
    test, validation = _json(evaluation / "metrics.json"), _json(evaluation / "metrics-val.json")
    experiment = run_dir / "experiment.yaml"
    text = experiment.read_text(encoding="utf-8") if experiment.is_file() else ""
    logs = {stage: read_log(run_dir / stage / "log.jsonl") for stage in ("diffusion", "classifier")}
    grids = sorted((run_dir / "diffusion" / "samples").glob("*.png"), key=lambda path: (len(path.name), path.name))
    return RunRecords(
        name=run_dir.resolve().name,
        experiment=_yaml(text, experiment),
        experiment_text=text,
        environment=_json(run_dir / "environment.json"),
        data=_with_broken(_json(run_dir / "data")),
        split_rows=_table(run_dir / "split.csv"),
        logs=logs,
        samples=grids[-1] if grids else None,
        selection=_json(run_dir / "selection.json"),
        metrics=test or validation,
        validation=validation if test else None,
        predictions=_table(evaluation / ("predictions.csv" if test else "predictions-val.csv")),
        reached=_reached(run_dir, logs),
    )


def cut_short(records: RunRecords) -> dict[str, tuple[int, int]]:
    """Of the trainings ("diffusion", "classifier") that have not come to their end: the steps that they came to, and
    those that the settings ask for."""
    found, images = {}, sum(row["split"] == "train" for row in records.split_rows)
    for stage, step in records.reached.items() if records.experiment else ():
        asked = records.experiment[stage]["optimizer"]  # type: ignore[index]
        steps = asked.get("steps") or max(1, round(asked["epochs"] * images / asked["batch_size"]))
        if step < steps and (asked.get("steps") or images):
            found[stage] = step, steps
    return found


def split_table(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Images and groups per class and split, a row of sums last: [{"name", "train": (images, groups), ...}]."""
    images: dict[tuple[str, str], int] = defaultdict(int)
    groups: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        for label in (row["label"], ""):
            images[label, row["split"]] += 1
            groups[label, row["split"]].add(row["group"])
    labels = sorted({row["label"] for row in rows})
    return [
        {"name": label or "all"} | {split: (images[label, split], len(groups[label, split])) for split in SPLITS}
        for label in [*labels, ""]
    ]


def worst_mistakes(predictions: list[dict[str, str]], most: int = 12) -> list[dict[str, Any]]:
    """The wrong predictions the model was surest of: path, label, predicted, confidence."""
    wrong = [row for row in predictions if row["predicted"] != row["label"]]
    wrong.sort(key=lambda row: (-float(row["confidence"]), row["path"]))
    return [row | {"confidence": float(row["confidence"])} for row in wrong[:most]]


def probabilities(predictions: list[dict[str, str]], classes: list[str]) -> tuple[Floats, Ints]:
    """The p_<class> columns [N, K], rows scaled to sum to 1 (they were rounded), and label indices [N]."""
    table = np.array([[float(row[f"p_{name}"]) for name in classes] for row in predictions])
    labels = np.array([classes.index(row["label"]) for row in predictions])
    return table / table.sum(1, keepdims=True), labels


def _reached(run_dir: Path, logs: dict[str, list[dict[str, Any]]]) -> dict[str, int]:
    """By the newest checkpoint; by the log where somebody has removed that."""
    found: dict[str, int] = {}
    for stage, rows in logs.items():
        names = [path.name for path in (run_dir / stage / "checkpoint").glob("step-*")]
        steps = [int(name.removeprefix("step-")) for name in names] or [r["step"] for r in rows if "event" not in r]
        found |= {stage: max(steps)} if steps else {}
    return found


def _with_broken(data: dict[str, Any] | None) -> dict[str, Any] | None:
    """Add the list of broken files from the prepared images, as long as these are still there."""
    if data is None or "broken" in data or "store" not in data:
        return data
    return data | {"broken": (_json(Path(data["store"]) / "store.json") or {}).get("broken")}


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return read_json(path)
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); run the stage that makes it again.") from error


def _yaml(text: str, path: Path) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())}); restore it, or fit again.") from error


def _table(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))
