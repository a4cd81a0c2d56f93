"""Repeated experiments on the same images: a mean over the repeats, with one bootstrap over groups for all of them."""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcube.evaluation.intervals import measure, resample_weights
from dcube.evaluation.metrics import Floats, Ints, check_predictions, weighted_metrics

UNBOUNDED = "brier"  # the one metric that may pass 1


def repeated_metric(
    repeats: Sequence[Floats], labels: Ints, groups: NDArray[np.str_], metric: str = "macro_f1",
    *, bootstrap: int = 2000, level: float = 0.95, seed: int = 0, seeds: Sequence[int] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Mean of a metric over repeats (probabilities [N, K] of the same N images, one per seed).

    {"value", "low", "high", "repeats": the single values}; a resample draws groups once, for every repeat, and the
    interval holds what the repeats differ by too (`with_seeds`). seeds: of the repeats [R], where several share one.
    """
    how: dict[str, Any] = {"bootstrap": bootstrap, "level": level, "seed": seed, "seeds": seeds}
    return repeated_metrics(repeats, labels, groups, (metric,), **how)[metric]


def repeated_metrics(
    repeats: Sequence[Floats], labels: Ints, groups: NDArray[np.str_], metrics: Sequence[str],
    *, bootstrap: int = 2000, level: float = 0.95, seed: int = 0, seeds: Sequence[int] | None = None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """`repeated_metric` of several metrics from the same resamples, by name."""
    drawn, single = _draws(repeats, labels, groups, metrics, bootstrap, seed)
    found = {name: with_seeds(single[name], drawn[name], level, seeds) for name in metrics}
    for name, row in found.items():
        if name != UNBOUNDED and row["low"] is not None:
            row |= {"low": max(row["low"], 0.0), "high": min(row["high"], 1.0)}
    return found


def repeated_difference(
    repeats_a: Sequence[Floats], repeats_b: Sequence[Floats], labels: Ints, groups: NDArray[np.str_],
    metric: str = "macro_f1", *, bootstrap: int = 2000, level: float = 0.95, seed: int = 0,
    seeds: Sequence[int] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Mean over the repeats of metric(A) - metric(B), paired: repeat i of both, and the same resampled groups. seeds:
    of the repeats [R], where several share one.

    "A beats B" means that `low` lies above 0. ValueError for different numbers of repeats.
    """
    if len(repeats_a) != len(repeats_b):
        raise ValueError(f"{len(repeats_a)} repeats cannot be paired with {len(repeats_b)}")
    drawn_a, single_a = _draws(repeats_a, labels, groups, (metric,), bootstrap, seed)
    drawn_b, single_b = _draws(repeats_b, labels, groups, (metric,), bootstrap, seed)
    single = [a - b for a, b in zip(single_a[metric], single_b[metric], strict=True)]
    return with_seeds(single, drawn_a[metric] - drawn_b[metric], level, seeds)


def with_seeds(
    single: Sequence[float], drawn: Floats, level: float, seeds: Sequence[int] | None = None
) -> dict[str, Any]:
    """{"value": mean of `single` [R], "low", "high", "repeats": `single`} from what the resamples gave, `drawn` [R, B].

    The interval over groups, widened by what the repeats differ by beyond that: other groups explain a part of the
    variance between repeats (the resamples tell how much), the rest is of the training and the folds, which resampled
    groups know nothing of. With one repeat that part stays unknown, with two it is a rough guess. Repeats of one of
    several `seeds` [R] are no independent ones, and are averaged first; of a single seed the interval speaks of it
    alone.
    """
    told = list(single)
    if seeds is not None and 1 < len(set(seeds)) < len(told):
        alike = [np.flatnonzero(np.asarray(seeds) == one) for one in dict.fromkeys(seeds)]
        single = [float(np.mean(np.asarray(told)[rows])) for rows in alike]
        drawn = np.stack([drawn[rows].mean(0) for rows in alike])
    row: dict[str, Any] = measure(float(np.mean(single)), drawn.mean(0), level) | {"repeats": told}
    if len(single) > 1 and row["low"] is not None:
        noise = (drawn - np.asarray(single)[:, None])[:, ~np.isnan(drawn).any(0)]
        beyond = max(0.0, float(np.var(single, ddof=1) - noise.var(0, ddof=1).mean())) / len(single)
        further = NormalDist().inv_cdf((1 + level) / 2) * beyond**0.5
        row["low"] = row["value"] - float(np.hypot(row["value"] - row["low"], further))
        row["high"] = row["value"] + float(np.hypot(row["high"] - row["value"], further))
    return row


def _draws(
    repeats: Sequence[Floats], labels: Ints, groups: NDArray[np.str_], metrics: Sequence[str], bootstrap: int, seed: int
) -> tuple[dict[str, Floats], dict[str, list[float]]]:
    """By metric: the resampled values of each of R repeats [R, bootstrap], and its own value."""
    once = np.ones((1, len(labels)))
    drawn: dict[str, list[Floats]] = {name: [] for name in metrics}
    single: dict[str, list[float]] = {name: [] for name in metrics}
    for probabilities in repeats:
        probabilities, labels = check_predictions(probabilities, labels)
        weights = resample_weights(labels, groups, resamples=bootstrap, seed=seed)
        parts = [weighted_metrics(probabilities, labels, w, metrics) for w in (once, *weights)]
        for name in metrics:
            plain, *resampled = np.concatenate([part[name] for part in parts])
            single[name].append(float(plain))
            drawn[name].append(np.array(resampled))
    return {name: np.stack(values) for name, values in drawn.items()}, single
