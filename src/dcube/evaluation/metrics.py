"""Classification metrics as plain functions on arrays, vectorised over weightings of the images.

A bootstrap resample is a weighting (how often each image was drawn), so thousands of resamples cost a few matrix
products. Conventions: macro means run over the classes that the labels hold; a class that is never predicted has
precision 0 (scikit-learn's `zero_division=0`); what cannot be computed is NaN.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

METRICS = (
    "accuracy",
    "balanced_accuracy",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "macro_auroc",
    "brier",
    "ece",
)
ECE_BINS = 15


def check_predictions(probabilities: Floats, labels: Ints) -> tuple[Floats, Ints]:
    """Bring predictions to float64 [N, K] and int64 [N]; ValueError where they do not fit together."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    labels = np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(f"expected probabilities [N, K] and labels [N], got {probabilities.shape} and {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise ValueError(f"labels must lie in 0 .. {probabilities.shape[1] - 1}, got {labels.min()} .. {labels.max()}")
    if not np.isfinite(probabilities).all() or not np.allclose(probabilities.sum(1), 1, atol=1e-3):
        raise ValueError("probabilities must be finite and sum to 1 in every row")
    return probabilities, labels.astype(np.int64)


def confusion_matrix(labels: Ints, predicted: Ints, classes: int) -> Ints:
    """Counts [K, K]: row = true class, column = predicted class. labels, predicted: [N] in 0 .. classes - 1."""
    cells = np.asarray(labels, dtype=np.int64) * classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def macro_f1(labels: Ints, predicted: Ints, classes: int) -> float:
    """Mean F1 over the classes that `labels` holds. labels, predicted: [N] in 0 .. classes - 1."""
    counts = _counts(np.asarray(labels), np.asarray(predicted), np.ones((1, len(labels))), classes)
    return float(_macro(class_scores(*counts)["f1"], counts[1][0] > 0)[0])


def _counts(labels: Ints, predicted: Ints, weights: Floats, classes: int) -> tuple[Floats, Floats, Floats]:
    """Hits, images of the class and predictions of it under B weightings, [B, K] each."""
    is_true, is_predicted = (np.arange(classes) == of[:, None] for of in (labels, predicted))  # [N, K]
    parts = is_true & is_predicted, is_true, is_predicted
    hits, true, guessed = (weights @ part.astype(np.float64) for part in parts)
    return hits, true, guessed


def class_scores(hits: Floats, true: Floats, predicted: Floats) -> dict[str, Floats]:
    """Precision, recall and F1 of every class, NaN without images. hits: right answers; true: images of the class;
    predicted: answers that name it; all [B, K].
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(predicted > 0, hits / predicted, 0.0)
        recall = np.where(true > 0, hits / true, np.nan)
        f1 = np.where(true > 0, 2 * hits / (true + predicted), np.nan)
    return {"precision": precision, "recall": recall, "f1": f1}


def weighted_metrics(
    probabilities: Floats, labels: Ints, weights: Floats, metrics: Sequence[str] = METRICS
) -> dict[str, Floats]:
    """Metrics under B weightings of the images at once.

    probabilities: [N, K]; labels: [N]; weights: [B, N], not negative. Returns the names of `metrics` -> [B], and
    "precision", "recall", "f1" -> [B, K]. A macro metric is NaN in a weighting that leaves a class of `labels`
    without images. Brier: squared error summed over the classes (0 .. 2). ECE: 15 equal bins of the confidence.
    """
    probabilities, labels = check_predictions(probabilities, labels)
    classes = probabilities.shape[1]
    hits, true, predicted = _counts(labels, probabilities.argmax(1), weights, classes)
    total = weights.sum(1)

    present = np.bincount(labels, minlength=classes) > 0
    scores = class_scores(hits, true, predicted)
    # A class that this weighting left out has no precision either, as far as the mean over classes goes.
    precision = np.where(true > 0, scores["precision"], np.nan)
    made: dict[str, Callable[[], Floats]] = {
        "accuracy": lambda: hits.sum(1) / total,
        "balanced_accuracy": lambda: _macro(scores["recall"], present),
        "macro_precision": lambda: _macro(precision, present),
        "macro_recall": lambda: _macro(scores["recall"], present),
        "macro_f1": lambda: _macro(scores["f1"], present),
        "macro_auroc": lambda: _macro_auroc(probabilities, labels, weights, present),
        "brier": lambda: weights @ ((probabilities - np.eye(classes)[labels]) ** 2).sum(1) / total,
        "ece": lambda: np.abs(weights @ _calibration_gaps(probabilities, labels)).sum(1) / total,
    }
    return {name: made[name]() for name in metrics} | scores


def point_metrics(probabilities: Floats, labels: Ints) -> dict[str, float]:
    """The metrics of METRICS on the images as they are; NaN where undefined (AUROC with one class only)."""
    probabilities, labels = check_predictions(probabilities, labels)
    result = weighted_metrics(probabilities, labels, np.ones((1, len(labels))))
    return {name: float(result[name][0]) for name in METRICS}


def auroc(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Area under the ROC curve under B weightings, from ranks (Mann-Whitney; ties count half).

    scores: [N]; positive: [N] bool; weights: [B, N]. Returns [B], NaN where one side has no weight.
    """
    order = np.argsort(scores, kind="stable")
    _, first = np.unique(scores[order], return_index=True)  # images of one score are one step of the curve
    ahead = weights[:, order] * positive[order]
    behind = weights[:, order] - ahead
    ahead = np.add.reduceat(ahead, first, axis=1)
    behind = np.add.reduceat(behind, first, axis=1)
    below = np.cumsum(behind, axis=1) - behind / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ahead * below).sum(1) / (ahead.sum(1) * behind.sum(1))


def reliability(probabilities: Floats, labels: Ints, bins: int = ECE_BINS) -> dict[str, list[float]]:
    """Points of the reliability diagram: confidence, accuracy and count of every bin that holds images."""
    probabilities, labels = check_predictions(probabilities, labels)
    confidence, correct, index = _confidence(probabilities, labels, bins)
    counts = np.bincount(index, minlength=bins)
    kept = counts > 0
    return {
        "confidence": (np.bincount(index, confidence, bins)[kept] / counts[kept]).tolist(),
        "accuracy": (np.bincount(index, correct, bins)[kept] / counts[kept]).tolist(),
        "count": counts[kept].tolist(),
    }


def _macro(values: Floats, present: NDArray[np.bool_]) -> Floats:
    return values[:, present].mean(1)


def _macro_auroc(probabilities: Floats, labels: Ints, weights: Floats, present: NDArray[np.bool_]) -> Floats:
    each = [auroc(probabilities[:, k], labels == k, weights) for k in np.flatnonzero(present)]
    return np.mean(each, axis=0)


def _confidence(probabilities: Floats, labels: Ints, bins: int) -> tuple[Floats, Floats, Ints]:
    confidence = probabilities.max(1)
    correct = (probabilities.argmax(1) == labels).astype(np.float64)
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)  # bins (low, high]
    return confidence, correct, index


def _calibration_gaps(probabilities: Floats, labels: Ints) -> Floats:
    """[N, bins]: confidence minus correctness of each image, in the column of its bin."""
    confidence, correct, index = _confidence(probabilities, labels, ECE_BINS)
    gaps = np.zeros((len(labels), ECE_BINS))
    gaps[np.arange(len(labels)), index] = confidence - correct
    return gaps
