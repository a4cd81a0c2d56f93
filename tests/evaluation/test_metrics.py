"""Metrics against scikit-learn, over label and prediction patterns that hypothesis makes up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from dcube.evaluation import METRICS, confusion_matrix, macro_f1, point_metrics, reliability
from dcube.evaluation.metrics import auroc, weighted_metrics

Case = tuple[np.ndarray, np.ndarray]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Probabilities and labels; few distinct values, so ties and classes that are never predicted occur."""
    classes = draw(st.integers(2, 5))
    count = draw(st.integers(2, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([2, 3, 1000]))
    scores = rng.integers(1, levels + 1, (count, classes)).astype(float)
    scores[:, : draw(st.integers(0, classes - 1))] *= 0.1
    return scores / scores.sum(1, keepdims=True), rng.integers(0, classes, count)


@given(cases())
@settings(max_examples=150, deadline=None)
def test_every_metric_equals_scikit_learn(case: Case) -> None:
    probabilities, labels = case
    predicted, present = probabilities.argmax(1), np.unique(labels)
    ours = point_metrics(probabilities, labels)
    assert set(ours) == set(METRICS)
    macro = {"labels": present, "average": "macro", "zero_division": 0}
    assert ours["accuracy"] == pytest.approx(oracle.accuracy_score(labels, predicted))
    assert ours["macro_precision"] == pytest.approx(oracle.precision_score(labels, predicted, **macro))
    assert ours["macro_recall"] == pytest.approx(oracle.recall_score(labels, predicted, **macro))
    assert ours["balanced_accuracy"] == pytest.approx(oracle.recall_score(labels, predicted, **macro))
    assert ours["macro_f1"] == pytest.approx(oracle.f1_score(labels, predicted, **macro))
    assert macro_f1(labels, predicted, probabilities.shape[1]) == pytest.approx(ours["macro_f1"])
    if len(present) > 1:
        areas = [oracle.roc_auc_score(labels == k, probabilities[:, k]) for k in present]
        assert ours["macro_auroc"] == pytest.approx(np.mean(areas))
    else:
        assert np.isnan(ours["macro_auroc"])
    everything = np.arange(probabilities.shape[1])
    brier = oracle.brier_score_loss(labels, probabilities, labels=everything, scale_by_half=False, pos_label=1)
    assert ours["brier"] == pytest.approx(brier)
    expected = oracle.confusion_matrix(labels, predicted, labels=everything)
    assert (confusion_matrix(labels, predicted, len(everything)) == expected).all()


@given(cases(), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_weight_is_a_number_of_copies(case: Case, seed: int) -> None:
    probabilities, labels = case
    weights = np.random.default_rng(seed).integers(0, 4, (3, len(labels)))
    weights[:, [np.flatnonzero(labels == k)[0] for k in np.unique(labels)]] += 1
    together = weighted_metrics(probabilities, labels, weights.astype(float))
    for row, weight in enumerate(weights):
        alone = point_metrics(np.repeat(probabilities, weight, axis=0), np.repeat(labels, weight))
        for name, value in alone.items():
            assert together[name][row] == pytest.approx(value, nan_ok=True), name


def test_balanced_accuracy_and_auroc_names_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels, probabilities = rng.integers(0, 4, 300), rng.dirichlet(np.ones(4), 300)
    ours = point_metrics(probabilities, labels)
    assert ours["balanced_accuracy"] == pytest.approx(oracle.balanced_accuracy_score(labels, probabilities.argmax(1)))
    assert ours["macro_auroc"] == pytest.approx(oracle.roc_auc_score(labels, probabilities, multi_class="ovr"))


def test_weighted_auroc_equals_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    scores, positive, weights = rng.integers(0, 6, 80) / 5, rng.random(80) < 0.4, rng.random((4, 80))
    expected = [oracle.roc_auc_score(positive, scores, sample_weight=w) for w in weights]
    assert auroc(scores, positive, weights) == pytest.approx(expected)


def test_ece_and_reliability_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(2)
    labels, probabilities = rng.integers(0, 3, 200), rng.dirichlet(np.ones(3), 200)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    expected, counts = 0.0, []
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
            counts.append(inside.sum())
    assert point_metrics(probabilities, labels)["ece"] == pytest.approx(expected)
    points = reliability(probabilities, labels)
    assert points["count"] == counts
    assert np.average(points["accuracy"], weights=counts) == pytest.approx(correct.mean())


def test_certain_and_right_is_perfect() -> None:
    result = point_metrics(np.eye(3)[[0, 1, 2, 2]], np.array([0, 1, 2, 2]))
    assert {name: round(value, 12) for name, value in result.items()} == dict.fromkeys(METRICS, 1.0) | {
        "brier": 0,
        "ece": 0,
    }


@pytest.mark.parametrize(
    ("probabilities", "labels", "said"),
    [
        (np.full((2, 2), 0.5), np.array([0]), "expected probabilities"),
        (np.full((2, 2), 0.5), np.array([0, 2]), "labels must lie in 0 .. 1"),
        (np.full((2, 2), 0.4), np.array([0, 1]), "sum to 1"),
        (np.array([[np.nan, 1], [0, 1]]), np.array([0, 1]), "finite"),
        (np.full((2, 2), 0.5), np.array([0.0, 1.0]), "integers"),
        (np.zeros((0, 2)), np.zeros(0, dtype=int), "expected probabilities"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(probabilities: np.ndarray, labels: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        point_metrics(probabilities, labels)
