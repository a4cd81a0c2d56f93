"""The work on a cell, whatever its system: train, judge by validation, and, once all are trained, by the test split."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dcube.data.dataset import ImageData
from dcube.errors import DCubeError, InputError
from dcube.experiments.benchmark import floors, joined, ours, systems
from dcube.experiments.benchmark.field import FLOORS, STEP1, parts_of
from dcube.experiments.benchmark.terms import Unit
from dcube.experiments.pool import tidy
from dcube.files import read_json, write_json
from dcube.training.best import validation_figures

FAILURES = DCubeError, MemoryError, RuntimeError  # torch's are RuntimeErrors


@dataclass(frozen=True)
class Contestant:
    """How a kind of system is trained (returns what its row says of it) and asked (probabilities [n, K] of rows, and
    milliseconds per image where the answer alone can be timed).
    """

    train: Callable[[Unit, ImageData], dict[str, Any]]
    predict: Callable[[Unit, ImageData, np.ndarray], tuple[np.ndarray, float | None]]


NETWORK = Contestant(systems.train, systems.predict)
FLOOR = Contestant(floors.train, floors.predict)
JOINED = Contestant(joined.train, joined.predict)
DCUBE = Contestant(ours.train_dcube, ours.predict_dcube)
OTHERS = {
    "dcube": DCUBE,
    "dcube_long": DCUBE,
    "diffusion_classifier": Contestant(ours.train_use, ours.predict_draws),
    "feature_probe": Contestant(ours.train_use, ours.predict_probe),
    "step1_covariances": Contestant(ours.train_use, ours.predict_covariances),
    **dict.fromkeys(FLOORS, FLOOR),
}


def contestant(model: str) -> Contestant:
    """Of a system's name."""
    return JOINED if parts_of(model) else OTHERS.get(model, NETWORK)


def prepare(unit: Unit) -> None:
    """Before all training: what cannot be built is found now, and the dtype is chosen."""
    try:
        (ours if unit.model in STEP1.values() else systems).prepare(unit)
    except FAILURES as error:
        write_json(unit.prepared, {"asked": unit.asked} | _failure(error, unit))
    tidy(unit.prepared.with_suffix(""))


def work(unit: Unit) -> None:
    """Train and validate a cell, or what is left of it. A training that fails is a result: it is written down."""
    if not unit.result.is_file():
        data = unit.data()
        try:
            found = _trained(unit, data)
        except FAILURES as error:
            found = _failure(error, unit)
        write_json(unit.result, found)
    tidy(unit.directory)


def _failure(error: Exception, unit: Unit) -> dict[str, Any]:
    """A training that failed, as its row says it, with paths inside the benchmark's folder; what was given wrongly is
    raised again.
    """
    if isinstance(error, InputError):
        raise error
    reason = str(error) if isinstance(error, DCubeError) else f"{type(error).__name__}: {error}"
    return {"failed": reason.replace(f"{unit.out}{os.sep}", "")}


def _trained(unit: Unit, data: ImageData) -> dict[str, Any]:
    if unit.prepared.is_file() and "failed" in (begun := read_json(unit.prepared)):
        return {"failed": begun["failed"]}
    if unit.model in STEP1.values():
        return ours.train_step1(unit, data)
    if unit.model in STEP1 and "failed" in (begun := read_json(unit.step1.result)):
        return {"failed": begun["failed"]}
    how, rows = contestant(unit.model), data.indices("val")
    facts = how.train(unit, data)
    probabilities, milliseconds = how.predict(unit, data, rows)
    _write(unit, "val", probabilities)
    validation = validation_figures(probabilities, data.labels[rows], len(data.classes))
    return facts | {
        "configuration": unit.chosen.text, "milliseconds": milliseconds, "train_images": len(data.indices("train")),
        "train_rarest": int(np.bincount(data.labels[data.indices("train")], minlength=len(data.classes)).min()),
        "validation": validation,
    }  # fmt: skip


def open_test(unit: Unit) -> None:
    """Probabilities for the test split by the weights of a finished cell, which are not needed any more then."""
    if not unit.predictions("test").is_file() and "failed" not in read_json(unit.result):
        data = unit.data()
        _write(unit, "test", contestant(unit.model).predict(unit, data, data.indices("test"))[0])
    drop_weights(unit)


def drop_weights(unit: Unit) -> None:
    """Remove a cell's weights; its predictions and its row stay."""
    for file in unit.directory.rglob("*.safetensors"):
        file.unlink()


def _write(unit: Unit, split: str, probabilities: np.ndarray) -> None:
    if not np.isfinite(probabilities).all():
        raise DCubeError(f"{unit}: the probabilities are not finite.")
    write_json(unit.predictions(split), probabilities.tolist())
