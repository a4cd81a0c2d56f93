"""Figures: valid SVG, the same bytes each time, and the things they must show."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dcube.report import figures, selection_figure

Make = Callable[..., dict[str, Any]]


def texts(svg: str) -> list[str]:
    return [
        "".join(node.itertext()).strip() for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")
    ]


def test_selection_figure_is_deterministic_and_undated(make_selection: Make) -> None:
    first = selection_figure(make_selection([0.9, 0.02, 0.7]))
    assert first == selection_figure(make_selection([0.9, 0.02, 0.7]))
    assert "<dc:date>" not in first and "matplotlib.org" not in first


def test_selection_figure_stars_the_selected_blocks_and_names_alpha(make_selection: Make) -> None:
    labels = texts(selection_figure(make_selection([0.9, 0.02, 0.7, 0.4, 0.001, 0.8])))
    assert {"alpha = 0.05", "0.02", "0.001", "down3"} <= set(labels)
    assert "0.7" not in labels  # only selected blocks carry their p


def test_selection_figure_takes_many_blocks_all_or_none_selected(make_selection: Make) -> None:
    for selected in ((), tuple(range(13))):
        labels = texts(selection_figure(make_selection(list(np.linspace(0, 1, 13)), selected)))
        assert "12" in labels and "down12" not in labels


def test_loss_curves_skip_what_is_not_finite_and_thin_out_long_logs() -> None:
    rows = [{"step": i, "seconds": i, "loss": 1 / (i + 1), "cycle": float("nan")} for i in range(50_000)]
    svg = figures.loss_curves([*rows, {"step": 50_000, "loss": None}])
    assert len(svg) < 60_000
    assert "loss" in texts(svg) and "cycle" not in texts(svg) and "seconds" not in texts(svg)
    with pytest.raises(ValueError, match="no loss"):
        figures.loss_curves([{"step": 1, "event": "samples", "file": "x.png"}])


def test_one_logged_step_is_a_figure() -> None:
    ElementTree.fromstring(figures.loss_curves([{"step": 1, "loss": 2.0}]))


def test_the_best_validation_step_carries_its_value() -> None:
    rows = [{"step": s, "event": "validation", "macro_f1": v} for s, v in ((10, 0.5), (20, 0.7654), (30, 0.6))]
    labels = texts(figures.loss_curves([{"step": 1, "loss": 2.0}, *rows]))
    assert "0.765" in labels and "validation macro-F1" in labels


def test_confusion_figure_shows_counts_names_and_an_empty_class() -> None:
    svg = figures.confusion_figure([[20, 3], [0, 0]], ["a$b$ & <c>", "a name that is too long for a cell"])
    labels = texts(svg)
    assert {"20", "3", "87%", "a$b$ & <c>", "a name that is …"} <= set(labels)


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["benign", "a name that is too long"], ["benign", "a name that is …"]),
        (
            ["adenocarcinoma of the left lung", "adenocarcinoma of the right lung", "normal"],
            ["…f the left lung", "… the right lung", "normal"],
        ),
        (["begins quite alike, A, differs, ends alike", "begins quite alike, B, differs, ends alike"], None),
    ],
)
def test_classes_that_begin_alike_are_told_apart(names: list[str], shown: list[str] | None) -> None:
    assert figures.short_names(names) == (shown or names)
    labels = texts(figures.confusion_figure([[1] * len(names)] * len(names), names))
    assert all(labels.count(name) == 2 for name in shown or names), "beside the rows and below the columns"


def test_interval_and_reliability_figures() -> None:
    rows: list[tuple[str, Any]] = [
        ("this model", {"value": 0.8, "low": 0.7, "high": 0.9}),
        ("gone", {"value": None, "low": None, "high": None}),
    ]
    labels = texts(figures.interval_figure(rows, "macro-F1"))
    assert "0.800" in labels and "gone" not in labels
    ElementTree.fromstring(figures.reliability_figure({"confidence": [0.5], "accuracy": [0.4], "count": [3]}))


def test_themed_figures_take_the_page_colours_and_have_ids_of_their_own(make_selection: Make) -> None:
    svg = selection_figure(make_selection([0.9, 0.02]))
    one, two = figures.themed(svg, "one"), figures.themed(svg, "two")
    assert one.startswith("<svg") and "http" not in one and "var(--accent)" in one and figures.ACCENT not in one
    ids = [{node.get("id") for node in ElementTree.fromstring(s).iter()} - {None} for s in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    assert 'viewBox="' in one and " width=" not in one.split(">")[0]


def test_live_probe_figure_names_its_blocks_and_bears_what_is_undefined() -> None:
    def row(step: int, **values: float) -> dict[str, Any]:
        low = {"low": None if step == 0 else 0.1}
        blocks = {name: {"macro_f1": {"value": value, "high": value} | low} for name, value in values.items()}
        return {"step": step, "event": "probe", "blocks": blocks}

    svg = figures.live_probe_figure([row(0, mid=0.2, up2=0.3), row(9, mid=0.5, up2=0.4), row(20, mid=0.6)])
    assert {"mid", "up2", "step", "macro-F1 of the probe"} <= set(texts(svg)) and "nan" not in svg
