"""The choice of weights within a training: the best validation macro-F1 so far, ties by cross-entropy."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dcube.evaluation.metrics import macro_f1
from dcube.training.state import save_weights


class BestWeights:
    """Keeps in `file` the weights whose predictions for the validation images are best; `labels` [n] are theirs."""

    def __init__(self, file: Path, labels: np.ndarray, classes: int, metadata: dict[str, Any]) -> None:
        self.file, self.labels, self.classes, self.metadata = file, labels, classes, metadata

    def __call__(self, step: int, model: nn.Module, extra: dict[str, Any], probabilities: np.ndarray) -> dict[str, Any]:
        """A row of the log: macro_f1, accuracy and cross_entropy of probabilities [n, K]. `extra`, saved with the
        checkpoint, holds the best row so far.
        """
        row = validation_figures(probabilities, self.labels, self.classes)
        best = extra.get("best")
        better = best is None or (row["macro_f1"], -row["cross_entropy"]) > (best["macro_f1"], -best["cross_entropy"])
        if better:  # the file first: a kill between the two repeats this validation
            save_weights(self.file, model, self.metadata | {"step": step, "validation": row})
            extra["best"] = {"step": step, **row}
        return {"event": "validation", **row}


def validation_figures(probabilities: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, float]:
    """macro_f1, accuracy and cross_entropy of probabilities [n, K] for labels [n]."""
    chosen = np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, None)
    predicted = probabilities.argmax(1)
    return {
        "macro_f1": float(macro_f1(labels, predicted, classes)),
        "accuracy": float((predicted == labels).mean()),
        "cross_entropy": float(-np.log(chosen).mean()),
    }
