"""Is one classifier better than another? McNemar and DeLong on independent cases, and mean ranks over data sets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, friedmanchisquare, norm, rankdata

from dcube.evaluation.metrics import Floats, Ints, check_predictions

ENOUGH_CASES = 4  # of a class, from which on DeLong's test keeps its level
ENOUGH_SETS = 8  # data sets below which ranks are described, not tested


def one_per_group(
    probabilities: Floats, labels: Ints, groups: Sequence[str] | NDArray[Any]
) -> tuple[Floats, Ints]:
    """One case per group, as tests of independent cases need it: probabilities [G, K] and labels [G].

    probabilities: [N, K]; labels, groups: [N]. A group's label is that of most of its images (ties: the lower class),
    its probabilities are the mean over the images with that label.
    """
    probabilities, labels = check_predictions(probabilities, labels)
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    votes = np.zeros((member.max() + 1, probabilities.shape[1]))
    np.add.at(votes, (member, labels), 1)
    own = votes.argmax(1)
    kept = labels == own[member]
    total = np.zeros_like(votes)
    np.add.at(total, member[kept], probabilities[kept])
    return total / votes.max(1, keepdims=True), own


def mcnemar(predicted_a: Ints, predicted_b: Ints, labels: Ints) -> dict[str, Any]:
    """McNemar's exact test (1947) of two classifiers on the same independent cases; all [N].

    {"only_a", "only_b": cases that one alone has right, "p": two-sided}; p is 1 where they never differ.
    """
    right_a, right_b = np.asarray(predicted_a) == labels, np.asarray(predicted_b) == labels
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    differing = only_a + only_b
    return {"only_a": only_a, "only_b": only_b, "p": float(binomtest(only_a, differing).pvalue) if differing else 1.0}


def delong(prob_a: Floats, prob_b: Floats, labels: Ints) -> dict[str, float | None]:
    """DeLong's test (1988) of the macro AUROC (classes against the rest) of two classifiers on the same cases.

    prob_a, prob_b: [N, K]; labels: [N]. {"value": A minus B, "deviation", "p": two-sided}. With two classes this is
    DeLong's own test; with more, the structural components of the classes are averaged, and their covariance is taken
    within each true class, whose cases are alike. None where a class of fewer than two cases leaves no estimate; p None
    with fewer than ENOUGH_CASES in a class, and where no case differs from another, for the estimate is too rough.
    """
    prob_a, labels = check_predictions(prob_a, labels)
    prob_b, _ = check_predictions(prob_b, labels)
    counts = np.bincount(labels)
    present = np.flatnonzero(counts)
    if len(present) < 2 or counts[present].min() < 2:
        return {"value": None, "deviation": None, "p": None}
    (value_a, parts_a), (value_b, parts_b) = (_macro_components(p, labels, present) for p in (prob_a, prob_b))
    parts = parts_a - parts_b
    variance = sum(counts[k] * parts[labels == k].var(ddof=1) for k in present)
    value, deviation = value_a - value_b, float(np.sqrt(variance))
    if deviation < 1e-12 and abs(value) < 1e-12:
        return {"value": value, "deviation": deviation, "p": 1.0}
    if deviation < 1e-12 or counts[present].min() < ENOUGH_CASES:
        return {"value": value, "deviation": deviation, "p": None}
    return {"value": value, "deviation": deviation, "p": float(2 * norm.sf(abs(value) / deviation))}


def _macro_components(probabilities: Floats, labels: Ints, present: Ints) -> tuple[float, Floats]:
    """Macro AUROC, and what each case adds to it [N]: structural components over the size of their side."""
    total, areas = np.zeros(len(labels)), []
    for k in present:
        positive = labels == k
        scores = probabilities[:, k]
        m, n = int(positive.sum()), int((~positive).sum())
        everywhere = rankdata(scores)
        above = (everywhere[positive] - rankdata(scores[positive])) / n       # share of negatives below, ties half
        below = 1 - (everywhere[~positive] - rankdata(scores[~positive])) / m
        total[positive] += above / m
        total[~positive] += below / n
        areas.append(above.mean())
    return float(np.mean(areas)), total / len(present)


def mean_ranks(values: Floats) -> tuple[Floats, float | None]:
    """Mean rank [M] of M systems over S data sets (1: best, ties share), and Friedman's p; values: [S, M], higher is
    better. p is None with fewer than ENOUGH_SETS data sets or three systems: too few to claim anything.
    """
    ranks = rankdata(-np.asarray(values, dtype=np.float64), axis=1)
    sets, systems = ranks.shape
    p = float(friedmanchisquare(*ranks.T).pvalue) if sets >= ENOUGH_SETS and systems > 2 else None
    return ranks.mean(0), p
