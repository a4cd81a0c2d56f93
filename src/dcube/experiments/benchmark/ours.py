"""Cells of D-Cube: step 1, step 2 on it, and the other uses of the same step 1."""

import contextlib
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np

from dcube.baselines.diffusion_classifier import diffusion_classifier
from dcube.baselines.probes import feature_probe, reader_probe
from dcube.classifier.batches import cache_pays
from dcube.classifier.model import CHUNK, Predictor, load_predictor, predict_rows, predictor_dtype
from dcube.classifier.reader import Reader, Step1Covariances, WholeMaps, make_readers
from dcube.classifier.train import train_classifier
from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.diffusion.train import Diffusion, load_diffusion, train_diffusion
from dcube.errors import DCubeError
from dcube.experiments.benchmark.caches import make_cache_of
from dcube.experiments.benchmark.pace import step1_pace, step2_pace
from dcube.experiments.benchmark.systems import parameters
from dcube.experiments.benchmark.terms import Unit
from dcube.features.frozen import FrozenFeatures
from dcube.features.selection import PROBE_RASTER, select_blocks
from dcube.features.teacher import CnnTeacher
from dcube.files import read_json, write_json
from dcube.settings import override
from dcube.training.budget import Budget, Length, Pace, deadline, end, length_of, spent
from dcube.training.runtime import pick_device

NO_SAMPLES = "diffusion.sample_every=1000000"  # no pictures before the last step


def prepare(unit: Unit) -> None:
    """Choose the dtype of step 1 for all cells, where the budget is time. unit: of a step 1."""
    if unit.prepared.is_file():
        return
    if (budget := _step1_budget(unit)) is not None and budget.seconds is not None:
        step1_pace(unit.data(), override(unit.settings, [NO_SAMPLES]), unit.prepared.with_suffix(""), held=False)
    write_json(unit.prepared, {})


def train_step1(unit: Unit, data: ImageData) -> dict[str, Any]:
    """Train (or continue) step 1 for its part of the budget."""
    settings, teacher = override(unit.settings, [NO_SAMPLES]), None
    paces, begin = _step1_paces(unit, data, settings), time.monotonic()
    if settings.diffusion.align.weight:
        teacher = CnnTeacher(data, settings)
    length, gone = _step1_length(unit, data, teacher, begin, paces)
    settings = _with_length(settings, "diffusion", length)
    _keep_runtime(unit.prepared.with_suffix(""), unit.directory)
    until = deadline(unit.directory, length.seconds)
    diffusion, result = train_diffusion(data, settings, unit.directory, until, teacher=teacher)
    end(unit.directory)
    seconds = gone + spent(unit.directory)
    counted = parameters(diffusion.model)["parameters"]
    weights = "step 1 from scratch" + (f", imitates the CNN ({teacher.network.source})" if teacher else "")
    return {
        "seconds": seconds, "steps": result.step, "fewest": result.step, "planned": length.steps,
        "parameters": counted, "weights": weights,
    }  # fmt: skip


def train_dcube(unit: Unit, data: ImageData) -> dict[str, Any]:
    """Selection and step 2 (or what is left of them) for the rest of the budget; the features' cache counts."""
    diffusion, step1 = _step1(unit), read_json(unit.step1.result)
    chosen = _select(unit, data, diffusion)
    directory = unit.directory / "step2"
    held = make_cache_of("val", data, unit.settings, diffusion, chosen["selected"], directory)
    gone = chosen["seconds"] + (held or 0.0)
    dtype = predictor_dtype(unit.settings.features, diffusion.device)
    _, told = make_readers(data, unit.settings, directory, diffusion, dtype)
    gone += sum(about["seconds"] for about in told.values())
    length, gone, cached = _step2_length(unit, data, diffusion, chosen["selected"], gone)
    settings = _with_length(unit.settings, "classifier", length)
    every = length.look_every * settings.classifier.optimizer.batch_size / len(data.indices("train"))
    settings = override(settings, [f"classifier.validate_every={every!r}"])
    until = deadline(directory, length.seconds)
    predictor, result = train_classifier(data, settings, diffusion, chosen["selected"], directory, until, cached=cached)
    end(directory)
    seconds = gone + spent(directory)
    model, counted = predictor.model, step1["parameters"]
    trained = counted + parameters(model.subnet, model.head)["parameters"]
    read = parameters(model.readers)["parameters"] + sum(cast(Reader, r).weight.numel() for r in model.readers.values())
    return {
        "seconds": step1["seconds"] + seconds, "seconds_step1": step1["seconds"],
        "steps": step1["steps"] + result.step, "fewest": min(step1["steps"], result.step),
        "planned": step1["planned"] + length.steps,
        "parameters": trained + read, "trainable": trained,
        "weights": f"{_first_weights(predictor)}; {step1['weights']}", "blocks": chosen["selected"],
    }  # fmt: skip


def _first_weights(predictor: Predictor) -> str:
    if predictor.config.sub_network == "step1":
        return "f_sub step 1's own, which began with random ones"
    return f"CNN {predictor.metadata['cnn_source']}"


def predict_dcube(unit: Unit, data: ImageData, rows: np.ndarray) -> tuple[np.ndarray, float | None]:
    """Probabilities [n, K] for rows of the store, and milliseconds per image."""
    diffusion = _step1(unit)
    predictor = load_predictor(unit.directory / "step2" / "model.safetensors", diffusion, diffusion.device)
    probabilities, seconds = predict_rows(predictor, data, rows)
    return probabilities, 1000 * seconds / len(rows)


def train_use(unit: Unit, data: ImageData) -> dict[str, Any]:
    """The diffusion classifier and the probe need no training of a network but that of step 1."""
    step1, diffusion = read_json(unit.step1.result), _step1(unit)
    about = {name: step1[name] for name in ("seconds", "steps", "fewest", "planned", "parameters")}
    about |= {"seconds_step1": step1["seconds"], "trainable": step1["parameters"], "weights": step1["weights"]}
    if unit.model == "feature_probe":
        about["blocks"] = _select(unit, data, diffusion)["selected"]
    return about


def predict_draws(unit: Unit, data: ImageData, rows: np.ndarray) -> tuple[np.ndarray, float | None]:
    """Probabilities of the diffusion classifier, and milliseconds per image."""
    diffusion, parts, seconds = _step1(unit), [], 0.0
    for start in range(0, len(rows), CHUNK):
        images = data.images(rows[start : start + CHUNK], diffusion.config.image_size)
        begin = time.perf_counter()
        parts.append(diffusion_classifier(diffusion, images, unit.chosen.draws, unit.seed).numpy())
        seconds += time.perf_counter() - begin
    return np.concatenate(parts), 1000 * seconds / len(rows)


def predict_probe(unit: Unit, data: ImageData, rows: np.ndarray) -> tuple[np.ndarray, float | None]:
    """Probabilities of the linear probe, fitted anew: it is no more than its training features and the rows'."""
    diffusion, settings = _step1(unit), unit.settings
    blocks = _select(unit, data, diffusion)["selected"]
    frozen = FrozenFeatures(diffusion, blocks, settings.features.input, PROBE_RASTER)
    return feature_probe(frozen, data, rows, settings.features.prediction_timesteps, unit.seed), None


def predict_covariances(unit: Unit, data: ImageData, rows: np.ndarray) -> tuple[np.ndarray, float | None]:
    """Probabilities of the linear probe of all blocks' covariances, fitted anew."""
    diffusion, settings = _step1(unit), unit.settings
    whole = WholeMaps(diffusion, settings.features)
    reader = Step1Covariances(whole.channels, len(data.classes)).to(diffusion.device)
    return reader_probe(reader, data, rows, settings.classifier, whole, unit.seed), None


def _step1(unit: Unit) -> Diffusion:
    weights = unit.step1.directory / "model.safetensors"
    return load_diffusion(weights, pick_device(unit.settings.runtime.device))


def _step1_budget(unit: Unit) -> Budget | None:
    """None: the recipe's own length."""
    if unit.model == "step1_long":
        return unit.terms.long
    return None if unit.terms.budget is None else unit.terms.budget.part(unit.terms.step1_share)


def _step1_paces(unit: Unit, data: ImageData, settings: Experiment) -> dict[str, float]:
    """Seconds of a step, its teacher's maps made as they are asked for ("pace") and "held", where the budget is time
    and the length is not fixed yet.
    """
    budget, measured = _step1_budget(unit), unit.directory / "pace"
    if budget is None or budget.seconds is None or (unit.directory / "length.json").is_file():
        return {}
    shutil.rmtree(measured, ignore_errors=True)
    chosen = unit.prepared.with_suffix("") / "runtime.json"
    paces = {
        word: step1_pace(data, settings, measured, held, chosen) for word, held in (("pace", False), ("held", True))
    }
    shutil.rmtree(measured)
    return paces


def _step1_length(
    unit: Unit, data: ImageData, teacher: CnnTeacher | None, begin: float, paces: dict[str, float]
) -> tuple[Length, float]:
    """As `_step2_length`; and the seconds since `begin` that were gone when it was fixed. The teacher then holds its
    maps where that pays.
    """
    budget, optimizer = _step1_budget(unit), unit.settings.diffusion.optimizer
    images, file = len(data.indices("train")), unit.directory / "length.json"

    def found(pace: str, more: float = 0.0) -> Length:
        if budget is None:
            return Length(optimizer.total_steps(images))
        measured = Pace(paces[pace], 0.0) if pace in paces else None
        return length_of(budget, images, optimizer.batch_size, measured, time.monotonic() - begin + more)

    def gains(length: Length, teacher: CnnTeacher) -> bool:
        if budget is None or budget.seconds is None:
            return True
        with contextlib.suppress(DCubeError):  # nothing would be left
            return "held" in paces and found("held", teacher.seconds).steps > length.steps
        return False

    if not file.is_file():
        length = found("pace")
        holds = teacher is not None and teacher.pays(length.steps) and gains(length, teacher)
        if teacher and holds:
            teacher.hold()
            length = found("held")
        write_json(file, {"length": asdict(length), "gone": time.monotonic() - begin, "holds": holds})
    made = read_json(file)
    if teacher and made.get("holds") and teacher.held is None:
        teacher.hold()
    return Length(**made["length"]), float(made["gone"])


def _select(unit: Unit, data: ImageData, diffusion: Diffusion) -> dict[str, Any]:
    """The blocks by the recipe's test, and the seconds that it took."""
    file = unit.directory / "selection.json"
    if not file.is_file():
        begin = time.monotonic()
        found = select_blocks(diffusion, data, unit.settings.features, unit.seed)
        write_json(file, found | {"seconds": time.monotonic() - begin})
    held: dict[str, Any] = read_json(file)
    return held


def _step2_length(
    unit: Unit, data: ImageData, diffusion: Diffusion, blocks: list[int], gone: float
) -> tuple[Length, float, bool | None]:
    """Fixed once per cell, so that a continued training is the same one; the seconds gone before its first step; and
    whether it reads its features from a cache.

    A budget of time that is too short for a cache of the training images to pay is spent without one. gone: seconds of
    selection, of the cache of the validation images and of the second reader.
    """
    optimizer, images = unit.settings.classifier.optimizer, len(data.indices("train"))
    directory, file = unit.directory / "step2", unit.directory / "length.json"
    budget = None if unit.terms.budget is None else unit.terms.budget.part(1 - unit.terms.step1_share)

    def found(cached: bool) -> Length:
        if budget is None:
            return Length(optimizer.total_steps(images))
        pace = None
        if budget.seconds is not None:
            measured = unit.directory / "pace"
            pace = step2_pace(data, unit.settings, diffusion, blocks, measured, cached)
            _keep_runtime(measured, directory)
            shutil.rmtree(measured)
        return length_of(budget, images, optimizer.batch_size, pace, gone)

    if not file.is_file():
        length = found(cached=False)
        seconds = None
        if cache_pays(length.steps, unit.settings, images):
            seconds = make_cache_of("train", data, unit.settings, diffusion, blocks, directory)
        if seconds is not None:
            gone += seconds
            length = found(cached=True)
        write_json(file, {"length": asdict(length), "gone": gone, "cached": seconds is not None})
    held = read_json(file)
    return Length(**held["length"]), float(held["gone"]), held.get("cached")


def _with_length(settings: Experiment, section: str, length: Length) -> Experiment:
    part = getattr(settings, section)
    part = part.model_copy(update={"optimizer": length.of(part.optimizer)})
    return settings.model_copy(update={section: part})


def _keep_runtime(measured: Path, own: Path) -> None:
    """Train in the dtype and with the attention that the steps were timed in."""
    if (measured / "runtime.json").is_file() and not (own / "runtime.json").is_file():
        write_json(own / "runtime.json", read_json(measured / "runtime.json"))


