"""The group bootstrap: against plain loops and SciPy, on clustered data, with undefined resamples, in time."""

import json
import time

import numpy as np
import pytest
from scipy import stats

from dcube.evaluation import METRICS, evaluate_predictions, paired_difference, point_metrics, without_classes
from dcube.evaluation.intervals import resample_weights
from dcube.evaluation.repeats import repeated_difference


def made(count: int, classes: int, seed: int, skill: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    scores = rng.gumbel(size=(count, classes))
    scores[np.arange(count), labels] += skill
    return np.exp(scores) / np.exp(scores).sum(1, keepdims=True), labels


def singles(count: int) -> list[str]:
    return [f"g{i:04d}" for i in range(count)]


def test_weights_draw_as_many_groups_as_each_stratum_has() -> None:
    labels = np.array([0, 0, 1, 1, 1, 0, 1, 0])
    groups = ["a", "a", "a", "b", "b", "c", "d", "d"]  # majority: a 0, b 1, c 0, d 0 (a tie)
    weights = np.concatenate(list(resample_weights(labels, groups, resamples=500, seed=3)))
    assert weights.shape == (500, 8)
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 6] == weights[:, 7]).all()
    assert (weights[:, 3] == 1).all()  # the only group of its stratum is drawn every time
    assert (weights[:, 0] + weights[:, 5] + weights[:, 6] == 3).all()
    assert weights[:, 0].mean() == pytest.approx(1, abs=0.15)


def test_few_groups_vary_as_much_as_they_should() -> None:
    labels = np.zeros(5, dtype=int)
    values = np.array([0.1, 0.9, 0.4, 0.6, 0.2])
    weights = np.concatenate(list(resample_weights(labels, singles(5), resamples=20000, seed=0)))
    assert (weights @ values / 5).std() == pytest.approx(values.std(ddof=1) / np.sqrt(5), rel=0.03)


def test_batches_of_a_large_set_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcube.evaluation.intervals.CHUNK_VALUES", 700)
    sizes = [len(w) for w in resample_weights(np.zeros(100, dtype=int), singles(100), resamples=25, seed=0)]
    assert sizes == [7, 7, 7, 4]


def test_interval_equals_a_plain_loop_over_groups() -> None:
    probabilities, labels = made(90, 3, seed=1)
    groups = np.array([f"g{i // 3:02d}" for i in range(90)])
    result = evaluate_predictions(probabilities, labels, groups, ["x", "y", "z"], bootstrap=4000, seed=0)
    names = np.unique(groups)
    majority = np.array([np.bincount(labels[groups == name], minlength=3).argmax() for name in names])
    rng, values = np.random.default_rng(9), []
    for _ in range(1500):
        drawn = np.concatenate([rng.choice(s, len(s)) for s in (names[majority == k] for k in range(3))])
        rows = np.concatenate([np.flatnonzero(groups == name) for name in drawn])
        values.append(point_metrics(probabilities[rows], labels[rows])["macro_f1"])
    low, high = np.quantile(values, [0.025, 0.975])
    assert result["macro_f1"]["low"] == pytest.approx(low, abs=0.015)
    assert result["macro_f1"]["high"] == pytest.approx(high, abs=0.015)


def test_interval_equals_scipy_where_groups_are_images() -> None:
    probabilities, _ = made(150, 2, seed=4)
    labels = np.zeros(150, dtype=int)  # one stratum: the plain bootstrap
    correct = (probabilities.argmax(1) == labels).astype(float)
    result = evaluate_predictions(probabilities, labels, singles(150), ["a", "b"], bootstrap=5000)
    theirs = stats.bootstrap((correct,), np.mean, n_resamples=5000, method="percentile", rng=1).confidence_interval
    assert result["accuracy"]["low"] == pytest.approx(theirs.low, abs=0.01)
    assert result["accuracy"]["high"] == pytest.approx(theirs.high, abs=0.01)


def test_groups_widen_the_interval_on_clustered_data() -> None:
    probabilities, labels = made(40, 2, seed=5)
    probabilities, labels = np.repeat(probabilities, 10, axis=0), np.repeat(labels, 10)
    groups = np.repeat(singles(40), 10)

    def width(names: object) -> float:
        accuracy = evaluate_predictions(probabilities, labels, names, ["a", "b"])["accuracy"]  # type: ignore[arg-type]
        return accuracy["high"] - accuracy["low"]

    assert width(groups) > 2 * width(singles(400))


def test_undefined_resamples_are_counted_and_left_out() -> None:
    labels = np.array([0, 0, 0, 1] + [0] * 6)  # the only image of class 1 lives in a group of class 0
    groups = ["a", "a", "a", "a", "b", "b", "c", "c", "d", "d"]
    probabilities = np.where(labels[:, None] == [0, 1], 0.8, 0.2)
    result = evaluate_predictions(probabilities, labels, groups, ["n", "p"], bootstrap=1000)
    undefined = result["bootstrap"]["undefined"]
    assert 200 < undefined["macro_f1"] < 440  # (3/4)^4 = 316 in a thousand leave group a out
    assert undefined["macro_f1"] == undefined["macro_auroc"] == undefined["macro_precision"]
    assert "accuracy" not in undefined and "ece" not in undefined
    assert result["macro_f1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert result["groups_per_class"] == {"n": 4, "p": 1}


def test_the_result_has_the_shape_of_the_contract() -> None:
    probabilities, labels = made(60, 3, seed=6)
    result = evaluate_predictions(probabilities, labels, singles(60), ["x", "y", "z"], bootstrap=300)
    json.dumps(result, allow_nan=False)
    assert (result["n"], result["groups"], result["classes"]) == (60, 60, ["x", "y", "z"])
    for name in METRICS:
        assert result[name]["low"] <= result[name]["value"] <= result[name]["high"]
        assert result[name]["value"] == pytest.approx(point_metrics(probabilities, labels)[name])
    assert result["per_class"]["y"]["support"] == (labels == 1).sum() == sum(result["confusion"][1])
    assert set(result["per_class"]["y"]) == {"precision", "recall", "f1", "support"}
    again = evaluate_predictions(probabilities, labels, singles(60), ["x", "y", "z"], bootstrap=300)
    assert again == result
    other = evaluate_predictions(probabilities, labels, singles(60), ["x", "y", "z"], bootstrap=300, seed=1)
    assert other["macro_f1"] != result["macro_f1"]


def test_a_class_without_images_is_null_not_an_error() -> None:
    probabilities, labels = made(40, 2, seed=7)
    probabilities = np.column_stack([probabilities, np.zeros(40)])
    result = evaluate_predictions(probabilities, labels, singles(40), ["a", "b", "c"], bootstrap=200)
    json.dumps(result, allow_nan=False)
    assert result["per_class"]["c"]["recall"] == {"value": None, "low": None, "high": None}
    assert result["per_class"]["c"]["support"] == result["groups_per_class"]["c"] == 0
    assert result["macro_f1"]["value"] is not None


def test_two_thousand_resamples_are_fast() -> None:
    probabilities, labels = made(500, 4, seed=8)
    start = time.process_time()
    evaluate_predictions(probabilities, labels, [f"g{i // 4}" for i in range(500)], list("abcd"))
    assert time.process_time() - start < 3


def test_paired_difference_is_narrower_than_two_intervals_and_signed() -> None:
    probabilities, labels = made(300, 3, seed=10, skill=1.5)
    worse = 0.6 * probabilities + 0.4 * made(300, 3, seed=11, skill=0)[0]
    difference = paired_difference(probabilities, worse, labels, singles(300), "accuracy", bootstrap=1000)
    values = [point_metrics(p, labels)["accuracy"] for p in (probabilities, worse)]
    assert difference["value"] == pytest.approx(values[0] - values[1])
    backwards = paired_difference(worse, probabilities, labels, singles(300), "accuracy", bootstrap=1000)
    assert backwards["low"] == pytest.approx(-difference["high"])  # type: ignore[operator]
    alone = evaluate_predictions(probabilities, labels, singles(300), list("abc"), bootstrap=1000)["accuracy"]
    assert difference["high"] - difference["low"] < 1.5 * (alone["high"] - alone["low"])  # type: ignore[operator]
    same = paired_difference(probabilities, probabilities, labels, singles(300), bootstrap=200)
    assert same == {"value": 0.0, "low": 0.0, "high": 0.0}
    with pytest.raises(ValueError, match="no metric 'f1'"):
        paired_difference(probabilities, worse, labels, singles(300), "f1")


def test_without_classes_restricts_and_renormalises() -> None:
    probabilities = np.array([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0], [0.1, 0.1, 0.8], [0.6, 0.2, 0.2]])
    labels = np.array([2, 0, 1, 0])
    inside, kept, groups, classes = without_classes(probabilities, labels, list("abcd"), ["x", "y", "z"], ["y"])
    assert inside == pytest.approx(np.array([[2 / 7, 5 / 7], [0.5, 0.5], [0.75, 0.25]]))
    assert (kept.tolist(), groups.tolist(), classes) == ([1, 0, 0], ["a", "b", "d"], ["x", "z"])
    with pytest.raises(ValueError, match="no class 'w'"):
        without_classes(probabilities, labels, list("abcd"), ["x", "y", "z"], ["w"])
    with pytest.raises(ValueError, match="not two classes"):
        without_classes(probabilities, labels, list("abcd"), ["x", "y", "z"], ["x", "y"])


def test_companions_of_another_length_are_refused() -> None:
    probabilities, labels = made(10, 2, seed=0)
    with pytest.raises(ValueError, match="10 groups and 2 class names"):
        evaluate_predictions(probabilities, labels, singles(9), ["a", "b"])


def test_where_every_stratum_has_one_group_there_is_no_interval() -> None:
    """An interval without width would look like certainty."""
    probabilities, labels = made(40, 2, seed=1)
    alone = np.where(labels == 0, "a", "b")
    assert not list(resample_weights(labels, alone, resamples=10, seed=0))
    found = evaluate_predictions(probabilities, labels, alone, ["x", "y"], bootstrap=50)
    assert found["macro_f1"]["value"] > 0 and found["macro_f1"]["low"] is None and found["macro_f1"]["high"] is None
    assert all(row["recall"]["low"] is None for row in found["per_class"].values())
    difference = paired_difference(probabilities, 1 - probabilities, labels, alone, bootstrap=50)
    assert difference["value"] and difference["low"] is None
    repeated = repeated_difference([probabilities] * 2, [1 - probabilities] * 2, labels, alone, bootstrap=50)
    assert repeated["value"] == pytest.approx(difference["value"]) and repeated["low"] is None
