"""Repeated experiments on the same images: a mean over the repeats, with one bootstrap over groups for all of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcube.evaluation.intervals import measure, resample_weights
from dcube.evaluation.metrics import Floats, Ints, check_predictions, weighted_metrics


def repeated_metric(
    repeats: Sequence[Floats], labels: Ints, groups: NDArray[np.str_], metric: str = "macro_f1",
    *, bootstrap: int = 2000, level: float = 0.95, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Mean of a metric over repeats (probabilities [N, K] of the same N images, one per seed).

    {"value", "low", "high", "repeats": the single values}; a resample draws groups once, for every repeat.
    """
    drawn, single = _draws(repeats, labels, groups, metric, bootstrap, seed)
    return measure(float(np.mean(single)), drawn, level) | {"repeats": single}


def repeated_difference(
    repeats_a: Sequence[Floats], repeats_b: Sequence[Floats], labels: Ints, groups: NDArray[np.str_],
    metric: str = "macro_f1", *, bootstrap: int = 2000, level: float = 0.95, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Mean over the repeats of metric(A) - metric(B), paired: repeat i of both, and the same resampled groups.

    "A beats B" means that `low` lies above 0. ValueError for different numbers of repeats.
    """
    if len(repeats_a) != len(repeats_b):
        raise ValueError(f"{len(repeats_a)} repeats cannot be paired with {len(repeats_b)}")
    drawn_a, single_a = _draws(repeats_a, labels, groups, metric, bootstrap, seed)
    drawn_b, single_b = _draws(repeats_b, labels, groups, metric, bootstrap, seed)
    single = [a - b for a, b in zip(single_a, single_b, strict=True)]
    return measure(float(np.mean(single)), drawn_a - drawn_b, level) | {"repeats": single}


def _draws(
    repeats: Sequence[Floats], labels: Ints, groups: NDArray[np.str_], metric: str, bootstrap: int, seed: int
) -> tuple[Floats, list[float]]:
    """Resampled means over the repeats [bootstrap], and each repeat's own value."""
    once = np.ones((1, len(labels)))
    total, single = np.zeros(bootstrap), []
    for probabilities in repeats:
        probabilities, labels = check_predictions(probabilities, labels)
        single.append(float(weighted_metrics(probabilities, labels, once)[metric][0]))
        weights = resample_weights(labels, groups, resamples=bootstrap, seed=seed)
        total += np.concatenate([weighted_metrics(probabilities, labels, w)[metric] for w in weights])
    return total / len(repeats), single
