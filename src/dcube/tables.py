"""The CSV tables of a run folder."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dcube.data.dataset import ImageData
from dcube.data.store import Store
from dcube.files import write_text


def write_predictions(
    path: Path, paths: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> None:
    """path,label,predicted,confidence,p_<class>... ; labels: [n], probabilities: [n, K]."""
    rows = [
        [file, classes[label], classes[int(p.argmax())], f"{p.max():.6f}", *(f"{v:.6f}" for v in p)]
        for file, label, p in zip(paths, labels, probabilities, strict=True)
    ]
    _write(path, ["path", "label", "predicted", "confidence", *(f"p_{name}" for name in classes)], rows)


def write_split(path: Path, store: Store | ImageData, splits: np.ndarray) -> None:
    """path,label,group,split of every image; an empty split: not used by this run."""
    table = zip(store.paths, store.labels, store.groups, splits, strict=True)
    _write(path, ["path", "label", "group", "split"], [[p, store.classes[y], g, s] for p, y, g, s in table])


def read_split(path: Path) -> dict[str, str]:
    """Image path -> split."""
    with open(path, encoding="utf-8", newline="") as handle:
        return {row["path"]: row["split"] for row in csv.DictReader(handle)}


def _write(path: Path, header: list[str], rows: list[list[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
