"""Cells of systems whose answers are joined: nothing is trained, and nothing is tuned."""

from typing import Any

import numpy as np
import torch

from dcube.classifier.reader import joined
from dcube.data.dataset import ImageData
from dcube.errors import DCubeError
from dcube.experiments.benchmark.terms import Unit
from dcube.files import read_json


def train(unit: Unit, data: ImageData) -> dict[str, Any]:
    """What its row says: the sums of its parts. DCubeError where a part failed."""
    found = [read_json(part.result) for part in unit.parts]
    for part, row in zip(unit.parts, found, strict=True):
        if "failed" in row:
            raise DCubeError(f"{part.model} failed: {row['failed']}")
    added = "seconds", "steps", "planned", "parameters", "trainable"
    sums = {name: sum(row[name] for row in found) for name in added}
    sums["fewest"] = min((row["fewest"] for row in found if row["fewest"]), default=0)
    sums["seconds_step1"] = sum(row.get("seconds_step1", 0.0) for row in found)
    return sums | {"weights": "; ".join(dict.fromkeys(row["weights"] for row in found))}


def predict(unit: Unit, data: ImageData, rows: np.ndarray) -> tuple[np.ndarray, float | None]:
    """The normalised geometric mean of what the parts said of a whole split, [n, K]; milliseconds where both have."""
    [split] = set(data.splits[rows].tolist())
    first, *others = (torch.from_numpy(part.read(split)) for part in unit.parts)
    times = [read_json(part.result)["milliseconds"] for part in unit.parts]
    return joined(first, *(other.log() for other in others)).numpy(), None if None in times else float(sum(times))
