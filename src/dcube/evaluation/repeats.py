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
    return repeated_metrics(repeats, labels, groups, (metric,), bootstrap=bootstrap, level=level, seed=seed)[metric]


def repeated_metrics(
    repeats: Sequence[Floats], labels: Ints, groups: NDArray[np.str_], metrics: Sequence[str],
    *, bootstrap: int = 2000, level: float = 0.95, seed: int = 0,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """`repeated_metric` of several metrics from the same resamples, by name."""
    drawn, single = _draws(repeats, labels, groups, metrics, bootstrap, seed)
    return {
        name: measure(float(np.mean(single[name])), drawn[name], level) | {"repeats": single[name]} for name in metrics
    }


def repeated_difference(
    repeats_a: Sequence[Floats], repeats_b: Sequence[Floats], labels: Ints, groups: NDArray[np.str_],
    metric: str = "macro_f1", *, bootstrap: int = 2000, level: float = 0.95, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Mean over the repeats of metric(A) - metric(B), paired: repeat i of both, and the same resampled groups.

    "A beats B" means that `low` lies above 0. ValueError for different numbers of repeats.
    """
    if len(repeats_a) != len(repeats_b):
        raise ValueError(f"{len(repeats_a)} repeats cannot be paired with {len(repeats_b)}")
    drawn_a, single_a = _draws(repeats_a, labels, groups, (metric,), bootstrap, seed)
    drawn_b, single_b = _draws(repeats_b, labels, groups, (metric,), bootstrap, seed)
    single = [a - b for a, b in zip(single_a[metric], single_b[metric], strict=True)]
    return measure(float(np.mean(single)), drawn_a[metric] - drawn_b[metric], level) | {"repeats": single}


def _draws(
    repeats: Sequence[Floats], labels: Ints, groups: NDArray[np.str_], metrics: Sequence[str], bootstrap: int, seed: int
) -> tuple[dict[str, Floats], dict[str, list[float]]]:
    """By metric: resampled means over the repeats [bootstrap], and each repeat's own value."""
    once = np.ones((1, len(labels)))
    total: dict[str, Floats] = {name: np.zeros(bootstrap) for name in metrics}
    single: dict[str, list[float]] = {name: [] for name in metrics}
    for probabilities in repeats:
        probabilities, labels = check_predictions(probabilities, labels)
        plain = weighted_metrics(probabilities, labels, once, metrics)
        weights = resample_weights(labels, groups, resamples=bootstrap, seed=seed)
        parts = [weighted_metrics(probabilities, labels, w, metrics) for w in weights]
        for name in metrics:
            single[name].append(float(plain[name][0]))
            total[name] += np.concatenate([part[name] for part in parts])
    return {name: values / len(repeats) for name, values in total.items()}, single
