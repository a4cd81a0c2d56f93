"""Floors: what a result must be compared with before it means anything.

Three models without any representation learning, fitted on the same training images: the majority class, logistic
regression on simple statistics of an image, and logistic regression on its 32x32 pixels.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dcube.evaluation.linear import spread, tuned_layer
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
Floor: TypeAlias = Callable[[Images], Floats]  # images [N, C, S, S] -> probabilities [N, K]


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
    """Probabilities [N, K] of `fitted_floors` for `images` [N, C, S, S]."""
    fitted = fitted_floors(train_images, train_labels, train_groups, classes=classes, seed=seed, names=names)
    return {name: floor(images) for name, floor in fitted.items()}


def fitted_floors(
    images: Images,
    labels: Ints,
    groups: NDArray[np.str_] | list[str],
    *,
    classes: int,
    seed: int = 0,
    names: Sequence[str] = FLOORS,
) -> dict[str, Floor]:
    """The floors "majority", "statistics" and "pixels" (or those of `names`), fitted on training images.

    images: [n, C, S, S] in [0, 1]; labels: [n] in 0 .. classes - 1; groups: [n] names, kept whole where the pixels'
    regression is tuned. A class without training images gets probability 0.
    """
    labels = np.asarray(labels, dtype=np.int64)
    frequencies = np.bincount(labels, minlength=classes) / len(labels)

    def majority(asked: Images) -> Floats:
        return np.tile(frequencies, (len(asked), 1))

    if len(np.unique(labels)) < 2:
        return dict.fromkeys(names, majority)
    made: dict[str, Callable[[], Floor]] = {
        "majority": lambda: majority,
        "statistics": lambda: _of_statistics(images, labels, classes),
        "pixels": lambda: _of_pixels(images, labels, np.asarray(groups), classes, seed),
    }
    return {name: made[name]() for name in names}


def _of_statistics(images: Images, labels: Ints, classes: int) -> Floor:
    regression = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
    regression.fit(simple_statistics(images), labels)
    return lambda asked: spread(
        regression.predict_proba(simple_statistics(asked)), regression[-1].classes_, classes
    )


def _of_pixels(images: Images, labels: Ints, groups: NDArray[np.str_], classes: int, seed: int) -> Floor:
    pixels = _pixels(images)
    centre, scale = pixels.mean(0), pixels.std() + 1e-8  # one scale: a constant border pixel must not be blown up
    pixels = (pixels - centre) / scale
    # The directions in which training images differ are enough for a regression with an L2 penalty, whose weights lie
    # in their span; it saves time where there are more pixels than images.
    basis = np.linalg.svd(pixels, full_matrices=False)[2].T if pixels.shape[1] > len(pixels) else None
    layer = tuned_layer(pixels if basis is None else pixels @ basis, labels, groups, classes=classes, seed=seed)

    def answer(asked: Images) -> Floats:
        values = (_pixels(asked) - centre) / scale
        return layer(values if basis is None else values @ basis)

    return answer


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
