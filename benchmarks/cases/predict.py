"""Prediction of image files at the stored size, decoding included."""

from functools import partial
from typing import Any

import torch

from benchmarks.case import Case, Side
from benchmarks.images import write_files
from benchmarks.reference import classifier
from benchmarks.sizes import Size
from benchmarks.world import World, difference
from dcube.classifier.model import Predictor
from dcube.inference import predict_files
from dcube.training.runtime import fast_dtype


def paths_of(world: World, count: int) -> list[str]:
    """Image files at the stored size, written where they are not there yet."""
    folder = world.folder / f"predict-{count}"
    if not folder.exists():
        write_files(folder, count, world.size.stored)
    return [str(path) for path in sorted(folder.rglob("*.png"))[:count]]


def predictor_of(world: World, dtype: torch.dtype | None) -> Predictor:
    """A loaded model, frozen, as `dcube predict` has it."""
    experiment = world.experiment
    model = world.new_classifier(experiment).eval().requires_grad_(False).to(world.device)
    metadata = {"normalisation": world.data.store.normalisation.to_dict()}
    settings = experiment.classifier, experiment.features
    frozen = world.exact if dtype is None else world.features(dtype)
    return Predictor(model, frozen, *settings, world.data.classes, metadata)


def ours(count: int, world: World, dtype: torch.dtype | None = None) -> Side:
    """`dcube predict` with the model loaded, but for the table; dtype: of the frozen model, None as the size has it."""
    paths, predictor = paths_of(world, count), predictor_of(world, dtype)

    return [(lambda: predict_files(predictor, paths), 1.0)]


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
    made = []
    native = torch.cuda.is_available() or fast_dtype(torch.device("cpu")) == torch.bfloat16
    for dtype, suffix in ((None, ""), (torch.bfloat16, "-bf16")) if native else ((None, ""),):
        one, all_of_them = (partial(ours, count, dtype=dtype) for count in (1, many))
        made += [
            Case(f"predict-1{suffix}", one, partial(reference, 1), deviation),
            Case(f"predict-{many}{suffix}", all_of_them, partial(reference, many), deviation, note, repeats=3),
        ]
    return made
