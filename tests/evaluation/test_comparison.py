"""Tests between classifiers: against published examples, plain readings of the papers, and simulation."""

import numpy as np
import pytest
from scipy.stats import binom, norm
from sklearn.metrics import roc_auc_score

from dcube.evaluation.comparison import ENOUGH_SETS, delong, mcnemar, mean_ranks, one_per_group


def test_mcnemar_by_hand() -> None:
    """1 against 9 cases: p = 2 (C(10, 0) + C(10, 1)) / 2^10."""
    labels = np.zeros(25, dtype=np.int64)
    a, b = labels.copy(), labels.copy()
    a[:9], b[9:10] = 1, 1
    found = mcnemar(a, b, labels)
    assert (found["only_a"], found["only_b"]) == (1, 9)
    assert found["p"] == pytest.approx(22 / 1024) == pytest.approx(2 * binom.cdf(1, 10, 0.5))
    assert mcnemar(b, a, labels)["p"] == found["p"] and mcnemar(a, a, labels)["p"] == 1


def plain_delong(a: np.ndarray, b: np.ndarray, positive: np.ndarray) -> tuple[float, float, float]:
    """DeLong et al. 1988 as written: psi over all pairs, S10 and S01, the variance of the difference."""
    areas, v10, v01 = [], [], []
    for scores in (a, b):
        pairs = scores[positive][:, None] - scores[~positive][None, :]
        psi = (pairs > 0) + 0.5 * (pairs == 0)
        areas.append(psi.mean())
        v10.append(psi.mean(1))
        v01.append(psi.mean(0))
    s = np.cov(v10) / positive.sum() + np.cov(v01) / (~positive).sum()
    deviation = np.sqrt(s[0, 0] + s[1, 1] - 2 * s[0, 1])
    difference = areas[0] - areas[1]
    return difference, deviation, 2 * norm.sf(abs(difference) / deviation)


def two_classes(seed: int, cases: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (np.arange(cases) % 3 == 0).astype(np.int64)
    scores = [np.round(1 / (1 + np.exp(-(skill * labels + rng.normal(size=cases)))), 1) for skill in (1.5, 0.7)]
    return labels, *(np.stack([1 - s, s], axis=1) for s in scores)


def test_delong_is_the_papers_with_two_classes_and_ties() -> None:
    for seed in range(5):
        labels, a, b = two_classes(seed)
        found = delong(a, b, labels)
        expected = plain_delong(a[:, 1], b[:, 1], labels == 1)
        assert [found[name] for name in ("value", "deviation", "p")] == pytest.approx(expected)
        areas = roc_auc_score(labels, a[:, 1]) - roc_auc_score(labels, b[:, 1])
        assert found["value"] == pytest.approx(areas)
    assert delong(a, a, labels) == {"value": 0.0, "deviation": 0.0, "p": 1.0}
    assert delong(a[:4], b[:4], np.array([0, 0, 0, 1]))["p"] is None
    few = np.array([0, 0, 1, 1])
    sure, none = np.eye(2)[few], np.full((4, 2), 0.5)
    assert delong(sure, none, few)["value"] == 0.5 and delong(sure, none, few)["p"] is None, "no case differs"
    assert delong(none, none, few)["p"] == 1


def test_delong_with_three_classes_is_calibrated() -> None:
    """Where two classifiers are equally good, p is below 0.05 in about 5 % of 600 draws; the macro AUROC is
    scikit-learn's."""
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], (40, 30, 20))
    low, deviations, values = 0, [], []
    for _ in range(600):
        shared = rng.normal(size=(90, 3))
        a, b = (np.eye(3)[labels] + shared + rng.normal(size=(90, 3)) for _ in range(2))
        a, b = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (a, b))
        found = delong(a, b, labels)
        low += found["p"] < 0.05
        values.append(found["value"])
        deviations.append(found["deviation"])
    assert 0.02 < low / 600 < 0.09
    assert np.mean(deviations) == pytest.approx(np.std(values), rel=0.1)
    areas = [roc_auc_score(labels, p, multi_class="ovr", average="macro") for p in (a, b)]
    assert values[-1] == pytest.approx(areas[0] - areas[1])


def test_one_case_per_group() -> None:
    groups = np.array(["p1", "p1", "p1", "p2", "p2", "p3"])
    labels = np.array([1, 1, 0, 1, 0, 0])  # p2 is undecided: the lower class
    probabilities = np.array([[0.2, 0.8], [0.4, 0.6], [1.0, 0.0], [0.5, 0.5], [0.9, 0.1], [0.7, 0.3]])
    made, own = one_per_group(probabilities, labels, groups)
    assert own.tolist() == [1, 0, 0]
    np.testing.assert_allclose(made, [[0.3, 0.7], [0.9, 0.1], [0.7, 0.3]])


def test_ranks_share_ties_and_claim_nothing_of_few_sets() -> None:
    values = np.array([[0.9, 0.8, 0.8], [0.7, 0.9, 0.6]])
    ranks, p = mean_ranks(values)
    assert ranks.tolist() == [1.5, 1.75, 2.75] and p is None
    many = np.tile([0.9, 0.8, 0.7], (ENOUGH_SETS, 1))
    ranks, p = mean_ranks(many)
    assert ranks.tolist() == [1, 2, 3] and p is not None and p < 0.001
    assert mean_ranks(many[:-1])[1] is None
