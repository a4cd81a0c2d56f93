"""Cells of the systems of `baselines`: a network with a loss of its own, trained by the common loop."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcube.baselines.base import System
from dcube.baselines.registry import baseline, create
from dcube.baselines.training import predict_system, system_paces, train_system
from dcube.data.dataset import ImageData
from dcube.errors import InputError
from dcube.experiments.benchmark.terms import Unit
from dcube.files import read_json, write_json
from dcube.training.budget import Budget, Length, Pace, length_of
from dcube.training.order import key
from dcube.training.runtime import pick_device
from dcube.training.state import load_weights

RANDOM = "RANDOM"  # what `baselines.weights.loud` says of weights that could not be had


def build(unit: Unit, data: ImageData) -> tuple[System, str]:
    """The system as its training with this seed begins, and where its weights came from.

    Weights that could not be had when it was prepared are not asked for again: all cells begin alike. InputError where
    those that could be had then are gone.
    """
    word, file = unit.weights
    known = read_json(unit.prepared)["weights"] if unit.prepared.is_file() else None
    if known is not None and RANDOM in known:
        word, file = "none", None
    torch.manual_seed(key(unit.seed, unit.model, "weights"))
    size = unit.settings.diffusion.image_size
    system, source = create(unit.model, len(data.classes), data.channels, size, word, file)
    if known is not None and RANDOM in source and RANDOM not in known:
        raise InputError(f"{unit.model} began with weights ({known}) that cannot be had now; {source}.")
    return system, source


def prepare(unit: Unit) -> None:
    """Build the system once, count its parameters and, where the budget is time, choose the dtype of its cells."""
    if unit.prepared.is_file():
        return
    data = unit.data()
    system, source = build(unit, data)
    counted = parameters(system) | {"weights": source}  # before anything is trained
    directory = unit.prepared.with_suffix("")
    shutil.rmtree(directory, ignore_errors=True)
    if budget_of(unit).seconds is not None:
        system_paces(system, data, unit.settings, directory)
    write_json(unit.prepared, counted | {"asked": unit.asked})


def train(unit: Unit, data: ImageData) -> dict[str, Any]:
    """Train (or continue) the cell; what its table row says of it."""
    prepared = read_json(unit.prepared)
    lengths = _lengths(unit, data)
    system, _ = build(unit, data)
    _keep_runtimes(unit, system, unit.directory)
    trained = train_system(system, data, unit.settings, unit.directory, lengths, {"model": unit.model})
    return {
        "seconds": trained.seconds, "steps": trained.steps, "fewest": trained.fewest, "planned": trained.planned,
        **{name: prepared[name] for name in ("parameters", "trainable", "weights")},
    }  # fmt: skip


def predict(unit: Unit, data: ImageData, rows: np.ndarray) -> tuple[np.ndarray, float | None]:
    """Probabilities [n, K] for rows of the store by the trained weights, and milliseconds per image."""
    system, _ = create(
        unit.model, len(data.classes), data.channels, unit.settings.diffusion.image_size, weights="none"
    )  # fmt: skip
    system.load_state_dict(load_weights(unit.directory / "model.safetensors")[0])
    system.to(pick_device(unit.settings.runtime.device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    probabilities, seconds = predict_system(system, data, rows, unit.settings)
    return probabilities, 1000 * seconds / len(rows)


def budget_of(unit: Unit) -> Budget:
    """That of the benchmark, or the epochs of the system's row in table IX."""
    return unit.terms.budget or Budget(epochs=baseline(unit.model).recipe.epochs)


def parameters(*modules: torch.nn.Module) -> dict[str, int]:
    """How many there are, and how many of them are trained."""
    held = [p for module in modules for p in module.parameters()]
    return {"parameters": sum(p.numel() for p in held), "trainable": sum(p.numel() for p in held if p.requires_grad)}


def _lengths(unit: Unit, data: ImageData) -> list[Length]:
    """Of the stages; fixed once per cell, so that a continued training is the same one. Where the budget is time, steps
    are timed just before, beside the same neighbours as the training.
    """
    file, images = unit.directory / "length.json", len(data.indices("train"))
    if not file.is_file():
        (system, _), budget = build(unit, data), budget_of(unit)
        paces: dict[str, Pace] = {}
        if budget.seconds is not None:
            measured = unit.directory / "pace"
            shutil.rmtree(measured, ignore_errors=True)
            _keep_runtimes(unit, system, measured)
            paces = system_paces(system, data, unit.settings, measured)
            shutil.rmtree(measured)
        batch_size = unit.settings.classifier.optimizer.batch_size
        found = [
            length_of(budget.part(stage.share), images, batch_size, paces.get(stage.name)) for stage in system.stages()
        ]
        write_json(file, [asdict(length) for length in found])
    return [Length(**length) for length in read_json(file)]


def _keep_runtimes(unit: Unit, system: System, directory: Path) -> None:
    """Train the stages below DIRECTORY in the dtypes that were chosen for all cells."""
    for stage in system.stages():
        chosen, own = (place / stage.name / "runtime.json" for place in (unit.prepared.with_suffix(""), directory))
        if chosen.is_file() and not own.is_file():
            write_json(own, read_json(chosen))
