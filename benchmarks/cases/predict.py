"""Prediction of image files at the stored size, decoding included."""

from functools import partial
from typing import Any

from benchmarks.case import Case, Side
from benchmarks.images import write_files
from benchmarks.reference import classifier
from benchmarks.sizes import Size
from benchmarks.world import World, difference
from dcube.classifier.model import Predictor
from dcube.external import predict_files


def paths_of(world: World, count: int) -> list[str]:
    """Image files at the stored size, written where they are not there yet."""
    folder = world.folder / f"predict-{count}"
    if not folder.exists():
        write_files(folder, count, world.size.stored)
    return [str(path) for path in sorted(folder.rglob("*.png"))[:count]]


def predictor_of(world: World) -> Predictor:
    """A loaded model, frozen, as `dcube predict` has it."""
    experiment = world.experiment
    model = world.new_classifier(experiment).eval().requires_grad_(False).to(world.device)
    metadata = {"normalisation": world.data.store.normalisation.to_dict()}
    settings = experiment.classifier, experiment.features
    return Predictor(model, world.exact, *settings, world.data.classes, metadata)


def ours(count: int, world: World) -> Side:
    """`dcube predict` with the model loaded, but for the table."""
    paths, predictor = paths_of(world, count), predictor_of(world)

    return [(lambda: predict_files(predictor, paths, 0.0), 1.0)]


def reference(count: int, world: World) -> Side:
    """One image after the other; of many images some, counted as often as they fit into all."""
    paths, experiment = paths_of(world, count), world.experiment
    some = min(count, world.size.predicted_plainly)
    model = world.new_classifier(experiment).eval().requires_grad_(False).to(world.device)
    plain, config = world.plain(), experiment.classifier
    sizes = world.size.stored, experiment.diffusion.image_size, config.cnn_size
    files, steps = [world.folder / path for path in paths[:some]], experiment.features.prediction_timesteps
    predict = partial(classifier.predict, plain, model, files, world.size.blocks, config.grid, sizes, steps)
    return [(predict, count / some)]


def deviation(rows: Any, probabilities: Any, world: World) -> float:
    """Of the probabilities of the images that both sides saw."""
    names = [name for name in rows[0] if name.startswith("p_")]
    return difference([[row[name] for name in names] for row in rows[: len(probabilities)]], probabilities)


def cases(size: Size) -> list[Case]:
    """One image, and many."""
    many, plainly = size.predicted, size.predicted_plainly
    note = f"the reference takes one image after the other: {plainly} are timed and extrapolated"
    made = [Case("predict-1", partial(ours, 1), partial(reference, 1), deviation)]
    return [*made, Case(f"predict-{many}", partial(ours, many), partial(reference, many), deviation, note, repeats=3)]
