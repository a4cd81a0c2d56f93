"""Repeated experiments: the mean over seeds, one bootstrap over groups."""

import numpy as np
import pytest

from dcube.evaluation.intervals import evaluate_predictions, paired_difference
from dcube.evaluation.repeats import repeated_difference, repeated_metric, repeated_metrics, with_seeds

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
    same = repeated_difference(a, a, LABELS, GROUPS, bootstrap=300)
    assert (same["value"], same["low"], same["high"]) == (0, 0, 0)


def test_what_the_repeats_differ_by_widens_the_interval() -> None:
    even = np.random.default_rng(0).normal(0, 0.01, 4000)
    groups_alone = with_seeds([0.05, 0.05], np.stack([0.05 + even, 0.05 + even]), 0.95)
    assert groups_alone["low"] == pytest.approx(0.05 - 1.96 * 0.01, abs=0.001)
    apart = with_seeds([0.0, 0.1], np.stack([even, 0.1 + even]), 0.95)  # variance .005, over two repeats .0025
    assert apart["value"] == pytest.approx(0.05) and apart["repeats"] == [0.0, 0.1]
    assert apart["high"] - 0.05 == pytest.approx(1.96 * np.sqrt(0.01**2 + 0.0025), abs=0.001)
    other = np.random.default_rng(1).normal(0, 0.1, 4000)  # resamples that differ as much as the repeats
    noise = np.stack([other, 0.1 - other])
    assert with_seeds([0.0, 0.1], noise, 0.95)["high"] == pytest.approx(0.05, abs=1e-9)
    assert with_seeds([0.05], 0.05 + even[None], 0.95)["low"] == groups_alone["low"]


def test_intervals_of_repeats_are_as_wide_as_they_say() -> None:
    rng, missed = np.random.default_rng(3), 0
    for _ in range(400):  # two systems that are alike; groups and trainings each have their own luck
        of_groups = rng.normal(0, 1, 30)
        shared = of_groups.mean() + rng.normal(0, 0.1, 2)
        drawn = np.stack([shared[r] + rng.normal(0, 1 / np.sqrt(30), 500) for r in range(2)])
        drawn[1] += (drawn[0] - shared[0]) - (drawn[1] - shared[1])  # the same groups are drawn for both
        row = with_seeds(list(shared), drawn, 0.95)
        missed += not row["low"] <= 0 <= row["high"]
    assert missed / 400 < 0.08


def test_metrics_stay_where_they_can_be() -> None:
    sure = np.eye(3)[LABELS] * 0.97 + 0.01
    row = repeated_metric([sure, predictions(1, 2)], LABELS, GROUPS, "accuracy", bootstrap=200)
    assert row["high"] == 1 and row["low"] >= 0


def test_repeats_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="2 repeats cannot be paired with 1"):
        repeated_difference([predictions(1, 1)] * 2, [predictions(1, 1)], LABELS, GROUPS)


def test_draws_of_one_seed_are_no_repeats_of_their_own() -> None:
    """Ten draws over two seeds tell of the seeds no more than two repeats do."""
    even = np.linspace(-0.01, 0.01, 201)
    single = [0.0, 0.02, 0.1, 0.12]
    drawn = np.stack([value + even for value in single])
    row = with_seeds(single, drawn, 0.95, seeds=[0, 0, 1, 1])
    two = with_seeds([0.01, 0.11], np.stack([0.01 + even, 0.11 + even]), 0.95)
    assert {key: row[key] for key in ("value", "low", "high")} == pytest.approx(
        {key: two[key] for key in ("value", "low", "high")}
    )
    assert row["repeats"] == single
    narrow = with_seeds(single, drawn, 0.95)
    assert narrow["high"] - narrow["low"] < row["high"] - row["low"]
    for alone in ([7, 7, 7, 7], [0, 1, 2, 3], None):
        assert with_seeds(single, drawn, 0.95, seeds=alone) == narrow


def test_intervals_over_seeds_and_draws_hold_the_truth_about_as_often_as_they_say() -> None:
    rng, found = np.random.default_rng(0), 0
    for _ in range(400):
        seeds = np.repeat(np.arange(6), 5)
        spread = np.repeat(rng.normal(0, 0.02, 6), 5) + rng.normal(0, 0.01, 30)
        shared, draws = rng.normal(0, 0.01), rng.normal(0, 0.01, 300)
        single = spread + shared
        row = with_seeds(single.tolist(), single[:, None] + draws[None], 0.95, seeds=seeds.tolist())
        found += row["low"] <= 0 <= row["high"]
    assert 0.85 < found / 400 < 0.99
