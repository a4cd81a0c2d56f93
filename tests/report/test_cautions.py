"""Warnings in plain words: each appears when it is due, and none when nothing is."""

from typing import Any

import pytest

from dcube.report.cautions import run_warnings


def measure(value: float | None, half: float = 0.05) -> dict[str, float | None]:
    return {
        "value": value,
        "low": None if value is None else value - half,
        "high": None if value is None else value + half,
    }


def metrics(**changes: Any) -> dict[str, Any]:
    return {
        "split": "test",
        "macro_f1": measure(0.8),
        "floors": {"majority": {"macro_f1": measure(0.3)}, "pixels": {"macro_f1": measure(0.6)}},
        "groups_per_class": {"a": 30, "b": 12},
        "per_class": {"a": {"support": 60, "recall": measure(0.9)}, "b": {"support": 20, "recall": measure(0.7)}},
        "bootstrap": {"resamples": 2000, "undefined": {}},
        "test_evaluations": 1,
    } | changes


def test_a_sound_result_has_no_warning() -> None:
    assert run_warnings(metrics(), {"rule": "p < alpha", "alpha": 0.05, "selected": [1]}, {"name": "scans"}) == []
    assert run_warnings(None, None, None) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split": "val"}, "validation figures"),
        ({"test_evaluations": 3}, "used 3 times"),
        (
            {"macro_f1": measure(0.58)},
            "does not beat logistic regression on 32x32 pixels (macro-F1 0.580 against 0.600)",
        ),
        ({"macro_f1": measure(0.64)}, "(0.590 to 0.690) includes logistic regression on 32x32 pixels (0.600)"),
        ({"macro_f1": measure(None)}, "undefined"),
        ({"groups_per_class": {"a": 30, "b": 4}}, "few groups (patients) in this split (b 4): one more or less would"),
        ({"groups_per_class": {"a": 30, "b": 1}}, "(b 1): one more or less would move their figures a lot, and"),
        ({"groups_per_class": {"a": 30, "b": 0}}, "no image of class b"),
        ({"per_class": {"a": {"support": 9, "recall": measure(0.0)}}}, "No image of class a was recognised"),
        ({"bootstrap": {"resamples": 2000, "undefined": {"macro_auroc": 7}}}, "In 7 of 2000 resamples the macro auroc"),
    ],
)
def test_each_limit_of_the_figures_is_said(changes: dict[str, Any], said: str) -> None:
    found = run_warnings(metrics(**changes), None, None)
    assert len(found) == 1 and said in found[0]


def test_floors_are_compared_also_where_there_is_no_interval() -> None:
    few = {"groups_per_class": {"a": 1, "b": 1}, "macro_f1": measure(0.58) | {"low": None, "high": None}}
    found = run_warnings(metrics(**few), None, None)
    assert "have no interval" in found[0] and "does not beat logistic regression on 32x32 pixels" in found[1]
    assert "(a 1, b 1)" in found[2] and "intervals are too narrow" not in found[2] and len(found) == 3


def test_an_interval_without_width_is_no_certainty() -> None:
    exact = {"value": 1.0, "low": 1.0, "high": 1.0}
    [found] = run_warnings(metrics(macro_f1=exact), None, None)
    assert "has no width" in found and "no certainty" in found


def test_how_blocks_were_chosen_and_synthetic_data_are_said() -> None:
    selection = {"rule": "k least Gaussian", "alpha": 0.05, "selected": [1, 2, 3]}
    assert "the 3 least Gaussian ones" in run_warnings(None, selection, None)[0]
    assert "rule: forced" in run_warnings(None, selection | {"rule": "forced"}, None)[0]
    probed = selection | {"rule": "best probe inside train"}
    assert not run_warnings(None, probed | {"labels_told": False}, None)
    assert "learnt those patients by heart" in run_warnings(None, probed | {"labels_told": True}, None)[0]
    assert "synthetic" in run_warnings(None, None, {"name": "phantom:patients=3"})[0]
