"""Metrics, their intervals and the floors beside them: plain functions on arrays."""

from dcube.evaluation.intervals import evaluate_predictions, paired_difference, without_classes
from dcube.evaluation.metrics import METRICS, confusion_matrix, macro_f1, point_metrics, reliability

__all__ = [
    "METRICS",
    "confusion_matrix",
    "evaluate_predictions",
    "macro_f1",
    "paired_difference",
    "point_metrics",
    "reliability",
    "without_classes",
]
