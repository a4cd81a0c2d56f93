"""Intervals by a bootstrap over groups: images of one patient are not independent, patients are."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcube.evaluation.metrics import METRICS, Floats, Ints, check_predictions, confusion_matrix, weighted_metrics

PER_CLASS = ("precision", "recall", "f1")
FEW_GROUPS = 10  # of a class: with fewer, one more or less moves its figures a lot
CHUNK_VALUES = 4_000_000  # bounds the memory of one batch of resamples, whatever the number of images


def resample_weights(
    labels: Ints, groups: Sequence[str] | NDArray[Any], *, resamples: int, seed: int
) -> Iterator[Floats]:
    """Bootstrap weightings of N images, in batches [b, N] that add up to `resamples` rows.

    Whole groups are drawn with replacement within the stratum of their majority class (ties: the lower class): of its n
    groups n - 1, each counting n / (n - 1) times (Rao & Wu 1988), for n draws of n tell too little variance where n is
    small. A group that is alone in its stratum always counts once: what it might have been otherwise no resample tells;
    where all are alone there is nothing to draw, and no batch. An image's weight says how often its group counts.
    Deterministic by `seed`, and the same for every model that is evaluated on the same images.
    """
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    votes = np.zeros((member.max() + 1, int(labels.max()) + 1), dtype=np.int64)
    np.add.at(votes, (member, labels), 1)
    strata = votes.argmax(1)
    if len(set(strata)) == len(strata):
        return
    rng = np.random.default_rng(seed)
    batch = max(1, CHUNK_VALUES // len(labels))
    for start in range(0, resamples, batch):
        rows = min(batch, resamples - start)
        drawn = np.zeros((rows, len(strata)))
        for stratum in np.unique(strata):
            inside = np.flatnonzero(strata == stratum)
            n = len(inside)
            drawn[:, inside] = rng.multinomial(n - 1, np.full(n, 1 / n), size=rows) * (n / (n - 1)) if n > 1 else 1
        yield drawn[:, member]


def evaluate_predictions(
    probabilities: Floats,
    labels: Ints,
    groups: Sequence[str] | NDArray[Any],
    classes: Sequence[str],
    *,
    bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Every metric with its interval, ready for `metrics.json`.

    probabilities: [N, K], rows sum to 1; labels: [N]; groups: [N]; classes: K names. A metric is
    {"value", "low", "high"}, the percentile interval of the group bootstrap at `level`, widened to hold the value
    where it would miss it (ECE grows in resamples); null where it is undefined, or no stratum has two groups to draw.
    "bootstrap" says in how many resamples which metric was undefined (a class drew no image): they are left out of that
    metric's interval.
    """
    probabilities, labels = check_predictions(probabilities, labels)
    _check_companions(len(labels), groups, classes, probabilities.shape[1])
    value = {name: v[0] for name, v in weighted_metrics(probabilities, labels, np.ones((1, len(labels)))).items()}
    draws = _resampled(probabilities, labels, groups, bootstrap, seed)
    undefined = {name: int(np.isnan(draws[name]).sum()) for name in METRICS}
    support = np.bincount(labels, minlength=len(classes))
    owners = [len({str(g) for g, y in zip(groups, labels, strict=True) if y == k}) for k in range(len(classes))]
    return {
        "n": len(labels),
        "groups": len({str(group) for group in groups}),
        "classes": list(classes),
        **{name: measure(value[name], draws[name], level) for name in METRICS},
        "per_class": {
            name: {part: measure(value[part][k], draws[part][:, k], level) for part in PER_CLASS}
            | {"support": int(support[k])}
            for k, name in enumerate(classes)
        },
        "confusion": confusion_matrix(labels, probabilities.argmax(1), len(classes)).tolist(),
        "groups_per_class": dict(zip(classes, owners, strict=True)),
        "bootstrap": {
            "resamples": bootstrap,
            "level": level,
            "unit": "group",
            "strata": "majority class of the group",
            "seed": seed,
            "undefined": {name: count for name, count in undefined.items() if count},
        },
    }


def paired_difference(
    prob_a: Floats,
    prob_b: Floats,
    labels: Ints,
    groups: Sequence[str] | NDArray[Any],
    metric: str = "macro_f1",
    *,
    bootstrap: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, float | None]:
    """Metric of A minus metric of B on the same images, {"value", "low", "high"} from the same resamples of both.

    prob_a, prob_b: [N, K]; labels, groups: [N]. ValueError for a metric that METRICS does not name.
    """
    if metric not in METRICS:
        raise ValueError(f"there is no metric '{metric}', choose one of {', '.join(METRICS)}")
    prob_a, labels = check_predictions(prob_a, labels)
    prob_b, _ = check_predictions(prob_b, labels)
    once = np.ones((1, len(labels)))
    of_a, of_b = (weighted_metrics(p, labels, once, (metric,))[metric] for p in (prob_a, prob_b))
    draws = [_resampled(p, labels, groups, bootstrap, seed, (metric,))[metric] for p in (prob_a, prob_b)]
    return measure((of_a - of_b)[0], draws[0] - draws[1], level)


def without_classes(
    probabilities: Floats,
    labels: Ints,
    groups: Sequence[str] | NDArray[Any],
    classes: Sequence[str],
    left_out: Sequence[str],
) -> tuple[Floats, Ints, NDArray[Any], list[str]]:
    """Restrict predictions to the images of the other classes, probabilities renormalised over those.

    Returns (probabilities [M, J], labels [M] in 0 .. J - 1, groups [M], J class names). Where a model gives the kept
    classes no probability at all, they share it evenly. ValueError for an unknown class, for fewer than two classes
    left, or for no image left.
    """
    probabilities, labels = check_predictions(probabilities, labels)
    _check_companions(len(labels), groups, classes, probabilities.shape[1])
    unknown = sorted(set(left_out) - set(classes))
    if unknown:
        raise ValueError(f"there is no class '{unknown[0]}' to leave out; the classes are {', '.join(classes)}")
    kept = [k for k, name in enumerate(classes) if name not in left_out]
    rows = np.isin(labels, kept)
    if len(kept) < 2 or not rows.any():
        raise ValueError(f"without {', '.join(left_out)} there are not two classes with images left to compare")
    inside = probabilities[rows][:, kept]
    mass = inside.sum(1, keepdims=True)
    inside = np.where(mass > 0, inside / np.where(mass > 0, mass, 1), 1 / len(kept))
    return inside, np.searchsorted(kept, labels[rows]), np.asarray(groups)[rows], [classes[k] for k in kept]


def _resampled(
    probabilities: Floats, labels: Ints, groups: Sequence[str] | NDArray[Any], bootstrap: int, seed: int,
    metrics: Sequence[str] = METRICS,
) -> dict[str, Floats]:  # fmt: skip
    weights = resample_weights(labels, groups, resamples=bootstrap, seed=seed)
    parts = [weighted_metrics(probabilities, labels, w, metrics) for w in (np.ones((1, len(labels))), *weights)]
    return {name: np.concatenate([part[name] for part in parts])[1:] for name in parts[0]}


def measure(value: float, draws: Floats, level: float) -> dict[str, float | None]:
    """{"value", "low", "high"}: the percentile interval of resampled values, widened to hold the value."""
    draws = draws[~np.isnan(draws)]
    if np.isnan(value) or not len(draws):
        return {"value": None if np.isnan(value) else float(value), "low": None, "high": None}
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return {"value": float(value), "low": float(min(low, value)), "high": float(max(high, value))}


def _check_companions(count: int, groups: Sequence[str] | NDArray[Any], classes: Sequence[str], width: int) -> None:
    if len(groups) != count or len(classes) != width:
        raise ValueError(
            f"expected {count} groups and {width} class names, got {len(groups)} groups and {len(classes)} names"
        )
