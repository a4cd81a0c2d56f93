"""Repeated experiments: the mean over seeds, one bootstrap over groups."""

import numpy as np
import pytest

from dcube.evaluation.intervals import evaluate_predictions, paired_difference
from dcube.evaluation.repeats import repeated_difference, repeated_metric, repeated_metrics

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 60)
GROUPS = np.array([f"g{i // 3}" for i in range(60)])


def predictions(seed: int, skill: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(60, 3)) + skill * np.eye(3)[LABELS]
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_one_repeat_is_the_plain_evaluation() -> None:
    p, q = predictions(1, 1), predictions(2, 3)
    plain = evaluate_predictions(p, LABELS, GROUPS, ["a", "b", "c"], bootstrap=200)["macro_f1"]
    once = repeated_metric([p], LABELS, GROUPS, bootstrap=200)
    assert once == plain | {"repeats": [plain["value"]]}
    several = repeated_metrics([p], LABELS, GROUPS, ("ece", "macro_f1"), bootstrap=200)
    assert several["macro_f1"] == once and several["ece"] == repeated_metric([p], LABELS, GROUPS, "ece", bootstrap=200)
    difference = repeated_difference([q], [p], LABELS, GROUPS, bootstrap=200)
    assert difference["low"] == paired_difference(q, p, LABELS, GROUPS, bootstrap=200)["low"]


def test_the_mean_of_repeats_is_paired() -> None:
    a, b = [predictions(i, 2) for i in (1, 2)], [predictions(i, 1) for i in (3, 4)]
    result = repeated_difference(a, b, LABELS, GROUPS, bootstrap=300)
    single = [paired_difference(x, y, LABELS, GROUPS, bootstrap=100)["value"] for x, y in zip(a, b, strict=True)]
    assert result["repeats"] == pytest.approx(single) and result["value"] == pytest.approx(np.mean(single))
    same = repeated_difference(a, a[::-1], LABELS, GROUPS, bootstrap=300)
    assert (same["low"], same["high"]) == pytest.approx((0, 0), abs=1e-12)  # the mean of the same two, in every draw


def test_repeats_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="2 repeats cannot be paired with 1"):
        repeated_difference([predictions(1, 1)] * 2, [predictions(1, 1)], LABELS, GROUPS)
