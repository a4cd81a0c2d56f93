"""Models fitted on frozen features: a linear probe on the selected blocks, nearest neighbours on the offline CNN's."""

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from dcube.classifier.reader import VALUES, Reader, WholeMaps, fit_reader, fitted_rows, read
from dcube.config import ClassifierConfig
from dcube.data.dataset import ImageData
from dcube.evaluation.linear import linear_probe, spread
from dcube.evaluation.metrics import Floats, Ints, macro_f1
from dcube.features.frozen import FrozenFeatures, flat_features
from dcube.training.order import some

NEIGHBOURS = (1, 3, 5, 9, 15, 25)
Features = NDArray[np.float32]


def feature_probe(
    frozen: FrozenFeatures, data: ImageData, rows: np.ndarray, timesteps: tuple[int, ...], seed: int
) -> Floats:
    """Probabilities [n, K] for `rows` of a linear probe on the selected features, fitted on the training split. Every
    block counts alike: its values are scaled so that their variances over the training images sum to 1.
    """
    most = max(1, VALUES // sum(int(np.prod(shape)) for shape in frozen.shapes))  # as for a reader
    train = some(data.indices("train"), most, seed, "probe")
    seen, asked = (flat_features(frozen, data, part, timesteps) for part in (train, rows))
    scales = [np.sqrt(block.var(0).sum()) + 1e-12 for block in seen]
    joined = [
        np.concatenate([block / scale for block, scale in zip(blocks, scales, strict=True)], axis=1)
        for blocks in (seen, asked)
    ]
    return linear_probe(
        joined[0], data.labels[train], np.array(data.groups)[train], joined[1], classes=len(data.classes), seed=seed
    )


def reader_probe(
    reader: Reader, data: ImageData, rows: np.ndarray, config: ClassifierConfig, whole: WholeMaps | None, seed: int
) -> Floats:
    """Probabilities [n, K] for `rows` of a reader alone, fitted on the training split here."""
    fit_reader(reader, data, fitted_rows(reader, data, seed), config, whole, seed)
    return read(nn.ModuleDict({"alone": reader}), data, rows, config, whole)["alone"]


def nearest_neighbours(
    train: Features, labels: Ints, groups: NDArray[np.str_], features: Features, *, classes: int, seed: int = 0
) -> Floats:
    """Probabilities [N, K] of k nearest neighbours by cosine distance; classes count alike, whatever their number.

    train: [n, d]; labels: [n]; groups: [n], kept whole where k is chosen by macro-F1 over folds of the training set.
    features: [N, d]. A class that training lacks gets probability 0.
    """
    best = _tuned_neighbours(train, labels, groups, classes, seed)
    return _votes(train, labels, features, best, classes)


def _tuned_neighbours(train: Features, labels: Ints, groups: NDArray[np.str_], classes: int, seed: int) -> int:
    """The k of NEIGHBOURS with the best macro-F1 over group-wise folds (ties: the smaller)."""
    present = np.unique(labels)
    folds = min(5, *(len(np.unique(groups[labels == k])) for k in present))
    if folds < 2 or len(present) < 2:
        return NEIGHBOURS[1]
    scores = []
    splits = list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(train, labels, groups))
    for k in NEIGHBOURS:
        predicted = np.zeros(len(labels), dtype=np.int64)
        for seen, held_out in splits:
            predicted[held_out] = _votes(train[seen], labels[seen], train[held_out], k, classes).argmax(1)
        scores.append(macro_f1(labels, predicted, classes))
    return NEIGHBOURS[int(np.argmax(scores))]


def _votes(train: Features, labels: Ints, features: Features, k: int, classes: int) -> Floats:
    """Shares of the k neighbours, each divided by its class's frequency in training."""
    model = KNeighborsClassifier(min(k, len(train)), metric="cosine", algorithm="brute").fit(train, labels)
    votes = spread(model.predict_proba(features), model.classes_, classes)
    votes = votes / np.maximum(np.bincount(labels, minlength=classes), 1)
    return votes / votes.sum(1, keepdims=True)
