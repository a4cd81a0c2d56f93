"""The stages of a run: diffuse, select, classify, evaluate, report. Each reads and leaves files of the run folder,
is skipped where it was done with the same inputs, and continues where it was interrupted.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcube.checks import check_models
from dcube.classifier.model import Predictor, load_predictor, predict_readers, predict_rows
from dcube.classifier.train import train_classifier
from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.data.decode import Normalisation
from dcube.data.joint import JointData, joined
from dcube.data.seen import union
from dcube.data.store import Store
from dcube.diffusion.train import Diffusion, load_diffusion, train_diffusion
from dcube.errors import InputError
from dcube.evaluation.floors import fitted_floors
from dcube.evaluation.intervals import evaluate_predictions, without_classes
from dcube.experiments.live_probe import LiveProbe
from dcube.experiments.probe import probe as probe_blocks
from dcube.external import evaluate_external
from dcube.features.selection import check_probed, select_blocks
from dcube.features.teacher import make_teacher
from dcube.files import digest, file_digest, read_json, write_json, write_text
from dcube.inference import training_look
from dcube.inputs import cnn_weights, initial_weights, step1_inputs, weights_digest
from dcube.report.figures import probe_figure, selection_figure
from dcube.report.page import write_report
from dcube.runs import Run
from dcube.settings import check_left_out
from dcube.tables import read_split, write_predictions
from dcube.training.loop import Trained
from dcube.training.order import some
from dcube.training.runtime import pick_device, use_threads
from dcube.training.team import summon

LOOK = 500  # training images that say what images look like; images that floors are asked about at once
FLOOR_IMAGES = 5000  # training images of the floors at most: their memory must not grow with the set
FLOOR_SIZE = 128  # pixels; what the floors look at


def diffuse(run: Run, deadline: float | None = None) -> float:
    """Step 1: RUN/diffusion/model.safetensors. Of several image sets (a pre-training) no label is used.

    Where it trains on, what later stages made with the older weights is removed. Returns the seconds that probes took,
    which neither the log nor the deadline counts. InputError where `diffusion.init` has seen images that this run is to
    be judged by.
    """
    settings, data = run.settings(), open_data(run)
    use_threads(settings.runtime)
    begun_with = initial_weights(run, settings, data)
    inputs = step1_inputs(run, settings, begun_with)
    if run.is_done("diffuse", inputs):
        return 0.0
    check_models(settings, classifier=not run.sets)
    if not run.sets:
        check_probed(settings.features, data)
    probe = _live_probe(settings, data) if settings.diffusion.probe_minutes else None
    run.begin("diffuse", inputs)
    write_json(run.diffusion / "init.json", begun_with)
    summon("diffuse", run.path)
    result = _train_step1(run, deadline, probe)
    outdated = run.selection.is_file()
    run.begin("select", _select_inputs(run, settings))  # before the stamp: a repeated command comes here again
    if outdated and not run.selection.is_file():
        print("Step 1 has changed: the selection, the classifier and the figures made with the older one are removed.")
    if result.finished:
        run.mark_done("diffuse", inputs)
    return result.paused


def _train_step1(run: Run, deadline: float | None = None, probe: LiveProbe | None = None) -> Trained:
    settings, data, init = run.settings(), open_data(run), read_json(run.diffusion / "init.json")
    begun = settings.diffusion.model_copy(update={"init": init["file"]})
    settings = settings.model_copy(update={"diffusion": begun})
    return train_diffusion(
        data, settings, run.diffusion, deadline, teacher=make_teacher(data, settings),
        unconditional=bool(run.sets), probe=probe, seen=union(data.seen, init["seen"]),
    )[1]  # fmt: skip


def _live_probe(settings: Experiment, data: ImageData) -> LiveProbe:
    """Of several image sets, the first that can be is probed."""
    parts = data.parts if isinstance(data, JointData) else [data]
    for part in parts:
        if len(part.indices("val")) and len(part.classes) > 1:
            return LiveProbe(part, settings)
    raise InputError(
        "diffusion.probe_minutes needs images with labels and a validation split; raise data.val_fraction, or set it to"
        " 0."
    )


def select(run: Run) -> dict[str, Any]:
    """The Gaussianity test (eq. 6): RUN/selection.json and selection.svg. Returns the selection."""
    settings, weights = run.settings(), _made(run.diffusion / "model.safetensors", "diffuse")
    use_threads(settings.runtime)
    inputs = _select_inputs(run, settings)
    if not run.is_done("select", inputs):
        check_models(settings)
        run.begin("select", inputs)
        diffusion = load_diffusion(weights, pick_device(settings.runtime.device))
        selection = select_blocks(diffusion, open_data(run), settings.features, settings.seed)
        write_text(run.selection_figure, selection_figure(selection))
        write_json(run.selection, selection)
        run.mark_done("select", inputs)
    found: dict[str, Any] = read_json(run.selection)
    return found


def _select_inputs(run: Run, settings: Experiment) -> str:
    """Digest of all that the selection depends on."""
    relevant = settings.features.model_dump(mode="json", exclude={"timesteps", "eval_timesteps", "cache_gb"})
    return digest([file_digest(run.diffusion / "model.safetensors"), settings.seed, relevant])


def classify(run: Run, deadline: float | None = None) -> Path:
    """Step 2: RUN/classifier/model.safetensors."""
    settings, weights = run.settings(), _made(run.diffusion / "model.safetensors", "diffuse")
    use_threads(settings.runtime)
    blocks = read_json(_made(run.selection, "select"))["selected"]
    relevant = [part.model_dump(mode="json") for part in (settings.classifier, settings.data, settings.features)]
    inputs = digest([file_digest(weights), blocks, settings.seed, relevant, *cnn_weights(settings)[1:]])
    if not run.is_done("classify", inputs):
        check_models(settings)
        run.begin("classify", inputs)
        print(f"classifier: class balance by {settings.data.balance}, blocks {blocks}")
        if (settings.classifier.sub_network, settings.classifier.cnn_weights) == ("cnn", "none"):
            print("classifier: the CNN begins with random weights; classifier.sub_network=step1 may do better")
        summon("classify", run.path)
        if _train_step2(run, deadline).finished:
            run.mark_done("classify", inputs)
    return run.classifier / "model.safetensors"


def _train_step2(run: Run, deadline: float | None = None) -> Trained:
    settings, data, blocks = run.settings(), open_data(run), read_json(run.selection)["selected"]
    diffusion = load_diffusion(run.diffusion / "model.safetensors", pick_device(settings.runtime.device))
    rows = some(data.indices("train"), LOOK, settings.seed, "floors")
    look = training_look(data.images(rows, settings.data.size).numpy(), data.store.sides, data.store.deep)
    return train_classifier(data, settings, diffusion, blocks, run.classifier, deadline, look)[1]


def help_train(stage: str, run: Path) -> None:
    """The part of a helper (training/team.py) in the training of `stage` in the run folder; ends in PartDone."""
    held = Run(run)
    runtime = held.settings().runtime
    use_threads(runtime)
    if pick_device(runtime.device).type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    {"diffuse": _train_step1, "classify": _train_step2}[stage](held)


def evaluate(run: Run, split: str, again: bool = False, data: str | None = None) -> dict[str, Any]:
    """Metrics with intervals and the floors beside them; metrics.json and predictions.csv (-val for validation).

    The test split may be looked at once; more needs `again` and is counted. With `data`, another set of images
    with the same classes is evaluated whole, into evaluation/external-NAME.json and .csv.
    """
    settings, weights = run.settings(), _made(run.classifier / "model.safetensors", "classify")
    use_threads(settings.runtime)
    if data is not None:
        return evaluate_external(run, load(run, pick_device(settings.runtime.device)), data)
    images = open_data(run)
    check_left_out(settings, images.classes)
    if not len(images.indices(split)):
        raise InputError(f"{run.path} has no {split} split to evaluate.")
    inputs = digest([weights_digest(weights), settings.evaluation.model_dump(mode="json")])
    suffix = "" if split == "test" else f"-{split}"
    file = run.evaluation / f"metrics{suffix}.json"
    if file.exists() and not again and read_json(file).get("inputs") == inputs:
        done: dict[str, Any] = read_json(file)
        return done
    predictor = load(run, pick_device(settings.runtime.device))  # damaged weights cost no look
    if Normalisation.from_dict(predictor.metadata["normalisation"]) != images.store.normalisation:
        raise InputError(f"The images of {run.path} were prepared anew and otherwise since; use `dcube fit --restart`.")
    looks = {"test_evaluations": run.count_test_evaluation(inputs, again)} if split == "test" else {}
    rows = images.indices(split)
    probabilities, _ = predict_rows(predictor, images, rows)
    systems = with_floors(images, rows, probabilities, settings, predictor)
    measured = figures(systems, images.labels[rows], np.array(images.groups)[rows], images.classes, settings)
    metrics = {"split": split, **measured, **looks, "inputs": inputs}
    paths = [images.store.paths[i] for i in rows]
    table = run.evaluation / f"predictions{suffix}.csv"
    write_predictions(table, paths, images.labels[rows], probabilities, images.classes)
    write_json(file, metrics)
    return metrics


def report(run: Run) -> Path:
    """RUN/report.html from what the other stages left."""
    return write_report(run.path)


def probe(run: Run, timesteps: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Linear probes of every block on the validation split: RUN/probe/probe.csv, probe.json and probe.svg."""
    settings, weights = run.settings(), _made(run.diffusion / "model.safetensors", "diffuse")
    use_threads(settings.runtime)
    data = open_data(run)
    if not len(data.indices("val")):
        raise InputError(f"{run.path} has no validation split to probe on.")
    steps = timesteps or settings.features.prediction_timesteps
    if wrong := [t for t in steps if not 0 <= t < settings.diffusion.timesteps]:
        raise InputError(f"The timestep {wrong[0]} does not lie in 0 .. {settings.diffusion.timesteps - 1}.")
    diffusion = load_diffusion(weights, pick_device(settings.runtime.device))
    selection = read_json(run.selection) if run.selection.is_file() else None
    result = probe_blocks(data, settings, diffusion, steps, run.path / "probe", selection=selection)
    write_text(run.path / "probe" / "probe.svg", probe_figure(result["rows"]))
    return result


def load(run: Run, device: torch.device) -> Predictor:
    """The trained classifier of a run, with its diffusion model."""
    diffusion: Diffusion = load_diffusion(_made(run.diffusion / "model.safetensors", "diffuse"), device)
    return load_predictor(_made(run.classifier / "model.safetensors", "classify"), diffusion, device)


def open_data(run: Run) -> ImageData:
    """The run's images with its own splits (split.csv); those of a pre-training's sets as one."""
    splits = read_split(run.split)
    stores = {name: Store.open(folder) for name, folder in run.stores().items()}
    keys = {part["name"]: part["key"] for part in run.sets or [read_json(run.data)]}
    if others := [name for name, store in stores.items() if store.key != keys[name]]:
        raise InputError(
            f"The prepared images of '{others[0]}' at {stores[others[0]].directory} are other ones than {run.path} was"
            " made of; repeat the command that made this run with --restart, or in a new folder."
        )
    named = [f"{name}/{path}" if run.sets else path for name, store in stores.items() for path in store.paths]
    if unknown := [path for path in named if path not in splits]:
        raise InputError(
            f"{run.split} does not name {len(unknown)} of the prepared images, such as {unknown[0]}: they were prepared"
            " anew since; repeat the command that made this run with --restart, or in a new folder."
        )
    if run.sets:
        return joined(stores, splits)
    [store] = stores.values()
    return ImageData(store, np.array([splits[path] for path in store.paths]))


def with_floors(
    data: ImageData, rows: np.ndarray, probabilities: np.ndarray, settings: Experiment, predictor: Predictor
) -> dict[str, np.ndarray]:
    """Probabilities of D-Cube ("") and of every floor, trained on the same training split, for `rows` of a store. Each
    of its readers alone is a floor too: what the network adds is seen beside it.
    """
    systems = {"": probabilities}
    if settings.evaluation.floors:
        train = some(data.indices("train"), FLOOR_IMAGES, settings.seed, "floors")
        groups, classes, size = np.array(data.groups)[train], len(data.classes), min(FLOOR_SIZE, settings.data.size)
        seen = data.images(train, size).numpy()
        fitted = fitted_floors(seen, data.labels[train], groups, classes=classes, seed=settings.seed)
        parts: dict[str, list[np.ndarray]] = {name: [] for name in fitted}
        for at in range(0, len(rows), LOOK):
            asked = data.images(rows[at : at + LOOK], size).numpy()
            for name, floor in fitted.items():
                parts[name].append(floor(asked))
        systems |= {name: np.concatenate(found) for name, found in parts.items()}
        systems |= predict_readers(predictor, data, rows)
    return systems


def figures(
    systems: dict[str, np.ndarray], labels: np.ndarray, groups: np.ndarray, classes: list[str], settings: Experiment
) -> dict[str, Any]:
    """Metrics of the contract, with "floors" and, for the class sets of `evaluation.without`, "without" beside them."""

    def measure(left_out: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        out = {}
        for name, p in systems.items():
            kept = (p, labels, groups, classes)
            if left_out:
                kept = without_classes(p, labels, groups, classes, left_out)
            how = settings.evaluation
            out[name] = evaluate_predictions(*kept, bootstrap=how.bootstrap, level=how.level, seed=settings.seed)
        return out

    everything = measure(())
    metrics = everything.pop("")
    metrics |= {"floors": everything, "without": {}}
    for left_out in settings.evaluation.without:
        restricted = measure(left_out)
        metrics["without"][", ".join(left_out)] = {"metrics": restricted.pop(""), "floors": restricted}
    return metrics


def _made(path: Path, stage: str) -> Path:
    if not path.is_file():
        run = path.parent if path.suffix == ".json" else path.parent.parent
        raise InputError(f"{path} is not there yet; `dcube {stage} {run}` makes it.")
    return path
