"""One cell of the study of step 1: a training part, the fold held out from it, and everything trained and asked there.

Block, timestep and regularisation are chosen inside the training part. Each result is a small file: a repeated
command makes what lacks and continues what was interrupted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dcube.classifier.model import load_predictor, predict_rows
from dcube.classifier.train import train_classifier
from dcube.config import Experiment
from dcube.data.dataset import ImageData
from dcube.data.folds import fold_splits
from dcube.data.scarcity import scarce
from dcube.data.store import Store
from dcube.diffusion.train import Diffusion, load_diffusion, train_diffusion
from dcube.errors import InputError
from dcube.evaluation.linear import tuned_probe
from dcube.experiments.probe import PIXELS
from dcube.features.frozen import FrozenFeatures, flat_features
from dcube.features.selection import PROBE_RASTER
from dcube.features.subnet import SubNetwork, cnn_features
from dcube.features.teacher import CnnTeacher
from dcube.files import digest, read_json, write_json


@dataclass(frozen=True)
class Cell:
    """One training part and its held-out fold."""

    directory: Path
    data: ImageData
    seed: int

    @property
    def held_out(self) -> np.ndarray:
        """Rows of the fold that nothing is trained on."""
        return self.data.indices("test")


def fold_data(store: Store, seed: int, folds: int, fold: int, quarter: bool) -> ImageData:
    """Everything but the given test split, dealt by group: `fold` is "test", the rest "train", or a quarter of it.

    InputError where a class has too few groups for the folds, or fewer than two in the training part.
    """
    splits = scarce(store, fold_splits(store, folds, seed)[fold], seed, share=0.25 if quarter else None)
    train, groups = splits == "train", np.array(store.groups)
    for label, name in enumerate(store.classes):
        if len(set(groups[train & (store.labels == label)])) < 2:
            raise InputError(
                f"The class '{name}' has fewer than two groups of images in {'a quarter of ' if quarter else ''}a"
                " training part, but choices are made there between groups; add data, or use fewer folds"
                f"{' or --no-quarter' if quarter else ''}."
            )
    return ImageData(store, splits)


def diffusion_arm(cell: Cell, name: str, settings: Experiment) -> Diffusion:
    """The trained step 1 of an arm."""
    directory = cell.directory / "step1" / name
    file, finished = directory / "model.safetensors", directory / "done.json"
    inputs = digest([settings.diffusion.model_dump(mode="json"), cell.seed, cell.data.store.key])
    if not (finished.is_file() and read_json(finished)["inputs"] == inputs):
        teacher = CnnTeacher(cell.data, settings) if settings.diffusion.align.weight else None
        train_diffusion(cell.data, settings, directory, teacher=teacher)
        write_json(finished, {"inputs": inputs})
    return load_diffusion(file)


def probe_arm(
    cell: Cell, name: str, settings: Experiment, diffusion: Diffusion, timesteps: Sequence[int], cnn: np.ndarray
) -> dict[str, Any]:
    """Linear probes of every block and timestep, ordered by their macro-F1 inside the training part.

    {"blocks": [{"block", "timestep", "inside", "probabilities" of the held-out fold}], "with_cnn": probabilities of
    the best block joined with the CNN's features}.
    """
    file = cell.directory / "probe" / f"{name}.json"
    if file.is_file():
        found: dict[str, Any] = read_json(file)
        return found
    rows = np.concatenate([cell.data.indices("train"), cell.held_out])
    table, best = [], None
    for index in range(len(diffusion.model.blocks)):
        for t in timesteps:
            frozen = FrozenFeatures(diffusion, [index], settings.features.input, PROBE_RASTER)
            [features] = flat_features(frozen, cell.data, rows, [t])
            table.append({"block": index, "timestep": t, **_probe(cell, features)})
            if best is None or table[-1]["inside"] > best[0]:
                best = table[-1]["inside"], features
    assert best is not None
    joined = np.concatenate([balanced(best[1]), balanced(cnn)], axis=1)
    result = {"blocks": table, "with_cnn": _probe(cell, joined)}
    write_json(file, result)
    return result


def reference_probes(cell: Cell, settings: Experiment) -> np.ndarray:
    """Probes of raw pixels and of the pretrained CNN, left in probe/; returns the CNN's features [n, d]."""
    rows = np.concatenate([cell.data.indices("train"), cell.held_out])
    how = settings.classifier
    cnn = cnn_features(SubNetwork(how.cnn, how.cnn_weights, how.cnn_size), cell.data, rows, how.cnn_size)
    for name in ("pixels", "cnn"):
        file = cell.directory / "probe" / f"{name}.json"
        if not file.is_file():
            features = cnn if name == "cnn" else cell.data.images(rows, PIXELS).flatten(1).numpy()
            write_json(file, _probe(cell, features))
    return cnn


def balanced(features: np.ndarray) -> np.ndarray:
    """At unit variance in sum, so that a PCA of several does not see the larger one alone."""
    return features / np.sqrt(features.var(0).sum() + 1e-12)


def _probe(cell: Cell, features: np.ndarray) -> dict[str, Any]:
    """{"inside": macro-F1 of the folds inside the training part, "probabilities" of the held-out fold [n, K]}."""
    train, groups = cell.data.indices("train"), np.array(cell.data.groups)
    probabilities, inside = tuned_probe(
        features[: len(train)], cell.data.labels[train], groups[train], features[len(train) :],
        classes=len(cell.data.classes), seed=cell.seed,
    )  # fmt: skip
    return {"inside": inside, "probabilities": probabilities.round(6).tolist()}


def best_blocks(probed: Mapping[str, Any], count: int) -> list[int]:
    """The `count` blocks whose probes are best inside the training part, in the network's order."""
    order = sorted(probed["blocks"], key=lambda row: -row["inside"])
    chosen: list[int] = []
    for row in order:
        if row["block"] not in chosen:
            chosen.append(row["block"])
    return sorted(chosen[:count])


def classify_system(
    cell: Cell, name: str, settings: Experiment, diffusion: Diffusion, blocks: list[int]
) -> np.ndarray:
    """Probabilities [n, K] of the held-out fold by a trained step 2."""
    file = cell.directory / "step2" / f"{name}.json"
    if file.is_file():
        return np.array(read_json(file)["probabilities"])
    directory = cell.directory / "step2" / name
    train_classifier(cell.data, settings, diffusion, blocks, directory)
    predictor = load_predictor(directory / "model.safetensors", diffusion, diffusion.device)
    probabilities, _ = predict_rows(predictor, cell.data, cell.held_out)
    write_json(file, {"blocks": blocks, "probabilities": probabilities.round(6).tolist()})
    return probabilities
