"""Floors: what a result must be compared with before it means anything.

Three models without any representation learning, fitted on the same training images: the majority class, logistic
regression on simple statistics of an image, and logistic regression on its 32x32 pixels.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dcube.evaluation.linear import spread, tuned_regression
from dcube.evaluation.metrics import Floats, Ints

FLOORS = ("majority", "statistics", "pixels")
STATISTICS = (
    "mean",
    "standard deviation",
    "quantile 0.05",
    "quantile 0.25",
    "median",
    "quantile 0.75",
    "quantile 0.95",
    "mean of the border",
    "standard deviation of the border",
    "mean of the centre",
    "share of dark pixels",
    "horizontal gradient",
    "vertical gradient",
    "sharpness",
)
PIXEL_GRID = 32
CHUNK = 64  # images worked on at once

Images = NDArray[np.float32]


def floors(
    train_images: Images,
    train_labels: Ints,
    train_groups: NDArray[np.str_] | list[str],
    images: Images,
    *,
    classes: int,
    seed: int = 0,
    names: Sequence[str] = FLOORS,
) -> dict[str, Floats]:
    """Probabilities [N, K] of the floors "majority", "statistics" and "pixels" (or those of `names`) for `images`.

    train_images: [n, C, S, S] in [0, 1]; train_labels: [n] in 0 .. classes - 1; train_groups: [n] names, kept whole
    where the pixels' regression is tuned; images: [N, C, S, S]. A class without training images gets probability 0.
    """
    train_labels = np.asarray(train_labels, dtype=np.int64)
    frequencies = np.bincount(train_labels, minlength=classes) / len(train_labels)
    majority = np.tile(frequencies, (len(images), 1))
    if len(np.unique(train_labels)) < 2:
        return {name: majority.copy() for name in names}
    made: dict[str, Callable[[], Floats]] = {
        "majority": lambda: majority,
        "statistics": lambda: _of_statistics(train_images, train_labels, images, classes),
        "pixels": lambda: _of_pixels(train_images, train_labels, np.asarray(train_groups), images, classes, seed),
    }
    return {name: made[name]() for name in names}


def _of_statistics(train_images: Images, train_labels: Ints, images: Images, classes: int) -> Floats:
    regression = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
    regression.fit(simple_statistics(train_images), train_labels)
    return spread(regression.predict_proba(simple_statistics(images)), regression[-1].classes_, classes)


def _of_pixels(
    train_images: Images, train_labels: Ints, groups: NDArray[np.str_], images: Images, classes: int, seed: int
) -> Floats:
    pixels, test_pixels = _pixels(train_images), _pixels(images)
    centre, scale = pixels.mean(0), pixels.std() + 1e-8  # one scale: a constant border pixel must not be blown up
    pixels, test_pixels = (pixels - centre) / scale, (test_pixels - centre) / scale
    pixels, test_pixels = _rotate(pixels, test_pixels)
    return tuned_regression(pixels, train_labels, groups, test_pixels, classes=classes, seed=seed)


def simple_statistics(images: Images) -> Floats:
    """The 14 numbers of STATISTICS for every image (grey: mean over the channels). images: [N, C, S, S] -> [N, 14]."""
    parts = [_statistics(images[i : i + CHUNK].mean(1, dtype=np.float32)) for i in range(0, len(images), CHUNK)]
    return np.concatenate(parts) if parts else np.zeros((0, len(STATISTICS)))


def _statistics(grey: Images) -> Floats:
    count, height, width = grey.shape
    flat = grey.reshape(count, -1)
    edge = max(1, min(height, width) // 16)
    inner = grey[:, edge:-edge, edge:-edge].reshape(count, -1)
    frame = np.ones((height, width), dtype=bool)
    frame[edge:-edge, edge:-edge] = False
    border = grey[:, frame]
    across, down = np.diff(grey, axis=2), np.diff(grey, axis=1)
    curvature = np.diff(across, axis=2)[:, 1:-1] + np.diff(down, axis=1)[:, :, 1:-1]  # the discrete Laplacian
    columns = [
        flat.mean(1),
        flat.std(1),
        *np.quantile(flat, [0.05, 0.25, 0.5, 0.75, 0.95], axis=1),
        border.mean(1),
        border.std(1),
        grey[:, height // 4 : height - height // 4, width // 4 : width - width // 4].mean((1, 2)),
        (inner < 0.05).mean(1),
        np.abs(across).mean((1, 2)),
        np.abs(down).mean((1, 2)),
        curvature.std((1, 2)),
    ]
    return np.stack(columns, axis=1).astype(np.float64)


def shrink(images: Images, size: int) -> Images:
    """Area-averaged images [N, C, size, size] from [N, C, H, W]: each pixel is the mean of the area it covers."""
    rows, columns = (_overlaps(length, size) for length in images.shape[2:])
    parts = [rows @ images[i : i + CHUNK] @ columns.T for i in range(0, len(images), CHUNK)]
    return np.concatenate(parts) if parts else np.zeros((0, images.shape[1], size, size), dtype=np.float32)


def _overlaps(length: int, size: int) -> Images:
    """[size, length]: the share of each old pixel in each new one; rows sum to 1."""
    edges = np.linspace(0, length, size + 1)
    old = np.arange(length)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return (np.clip(overlap, 0, None) * size / length).astype(np.float32)


def _pixels(images: Images) -> Floats:
    return shrink(images, PIXEL_GRID).reshape(len(images), -1).astype(np.float64)


def _rotate(train: Floats, test: Floats) -> tuple[Floats, Floats]:
    """Drop the directions in which the training images do not differ.

    Exact for a regression with an L2 penalty, whose weights lie in the span of the training images; it saves time
    where there are more pixels than images.
    """
    if train.shape[1] <= train.shape[0]:
        return train, test
    basis = np.linalg.svd(train, full_matrices=False)[2]
    return train @ basis.T, test @ basis.T
