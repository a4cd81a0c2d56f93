"""What the tables of the study of step 1 say of answers with few digits, and of figures without an interval."""

import numpy as np

from dcube.experiments.step1_summary import _cell, _told
from dcube.report.studies import differences_figure


def test_answers_of_few_digits_add_up_to_one_with_many_classes() -> None:
    rows = np.full((2, 60), 4.4e-5)
    rows[:, 0] = 1 - rows[:, 1:].sum(1)
    held = {"probabilities": rows.round(4).tolist()}
    assert abs(np.sum(held["probabilities"], 1) - 1).max() > 1e-3
    np.testing.assert_allclose(_told(held).sum(1), 1)
    few = [[0.3333, 0.3333, 0.3333]]
    assert _told({"probabilities": few}).tolist() == few, "what is published stays to the last digit"


def test_a_difference_without_an_interval_is_neither_bold_nor_drawn() -> None:
    figure = {"value": 0.5, "low": None, "high": None}
    assert _cell(figure, signed=True) == "+0.500 (n/a)"
    rows = [{"of": "D-Cube", "to": "no step 1", **figure}]
    assert differences_figure({"tiny": {"whole": {"differences": rows}}}).count("<svg") == 1
