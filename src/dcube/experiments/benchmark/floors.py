"""Cells of the floors: models without any training by the loop, fitted anew whenever they are asked."""

from typing import Any

import numpy as np
import torch

from dcube.baselines.probes import nearest_neighbours, reader_probe
from dcube.classifier.reader import CnnCovariances
from dcube.data.dataset import ImageData
from dcube.evaluation.floors import floors
from dcube.evaluation.linear import linear_probe
from dcube.experiments.benchmark.field import CNN_FLOORS
from dcube.experiments.benchmark.terms import Unit
from dcube.features.subnet import LEVEL, SubNetwork, cnn_features, level_features
from dcube.training.order import key

NO_WEIGHTS = "none"


def train(unit: Unit, data: ImageData) -> dict[str, Any]:
    """What the table says of a floor: there is nothing to train."""
    nothing = dict.fromkeys(("seconds", "steps", "fewest", "planned", "parameters", "trainable"), 0)
    about: dict[str, Any] = {**nothing, "weights": NO_WEIGHTS}
    if unit.model in CNN_FLOORS:
        network = _network(unit)
        about |= {"parameters": sum(p.numel() for p in network.parameters()), "weights": network.source}
    return about


def predict(unit: Unit, data: ImageData, rows: np.ndarray) -> tuple[np.ndarray, float | None]:
    """Probabilities [n, K] for rows of the store. Not timed: fitting and asking are one."""
    train_rows, size = data.indices("train"), unit.settings.diffusion.image_size
    labels, groups = data.labels[train_rows], np.array(data.groups)[train_rows]
    shape: dict[str, Any] = {"classes": len(data.classes), "seed": unit.seed}
    if unit.model == "knn":
        both = cnn_features(_network(unit), data, np.concatenate([train_rows, rows]), size)
        return nearest_neighbours(both[: len(train_rows)], labels, groups, both[len(train_rows) :], **shape), None
    if unit.model == "cnn_probe":
        network = _network(unit)
        maps = [level_features(network, data, part, size, LEVEL) for part in (train_rows, rows)]
        return linear_probe(maps[0], labels, groups, maps[1], **shape), None
    if unit.model == "cnn_covariances":
        config = unit.settings.classifier.model_copy(update={"cnn_size": size})
        torch.manual_seed(key(unit.seed, unit.model, "weights"))
        return reader_probe(CnnCovariances(config, len(data.classes)), data, rows, config, None, unit.seed), None
    seen, asked = (data.images(part, size).numpy() for part in (train_rows, rows))
    return floors(seen, labels, groups, asked, names=(unit.model,), **shape)[unit.model], None


def _network(unit: Unit) -> SubNetwork:
    """The recipe's CNN as it comes."""
    torch.manual_seed(key(unit.seed, unit.model, "weights"))  # of a CNN without pretrained ones
    how = unit.settings.classifier
    return SubNetwork(how.cnn, how.cnn_weights, how.cnn_size)
