"""A run folder with made files, as the stages would leave it; made once, read by many tests."""

import csv
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dcube.evaluation import evaluate_predictions, without_classes
from dcube.files import write_json, write_text
from dcube.settings import load_experiment

CLASSES = ["benign", "malignant & <odd>", "normal $x$"]


@pytest.fixture(scope="session")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every file; not to be changed."""
    return made_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="session")
def make_selection() -> Callable[..., dict[str, Any]]:
    """p of each block (and the selected ones) -> the content of a `selection.json`."""
    return selection


def made_run(folder: Path) -> Path:
    """Every file the report reads, for three classes with awkward names."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 84)
    groups = [f"p{i // 4:02d}" for i in range(84)]
    scores = rng.gumbel(size=(84, 3)) + 2.2 * np.eye(3)[labels]
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    sizes = ["diffusion.backbone=unet", "diffusion.image_size=64", "diffusion.optimizer.steps=700"]
    settings = load_experiment("small", [*sizes, "diffusion.optimizer.batch_size=32"])
    write_text(folder / "experiment.yaml", yaml.safe_dump(settings.model_dump(mode="json")))
    write_json(
        folder / "environment.json",
        {"python": "3.11", "packages": {"torch": "2.0"}, "commands": ["dcube fit phantom: --out run"]},
    )
    broken = [{"path": "benign/b<1>.png", "reason": "the file ends early"}]
    write_json(folder / "data", {"name": "phantom:", "key": "0", "store": "gone", "broken": broken})
    rows = [(f"{CLASSES[k]}/{i}.png", CLASSES[k], groups[i], s) for i, k in enumerate(labels) for s in ("test",)]
    rows += [
        (f"{CLASSES[k]}/{s}{i}.png", CLASSES[k], f"{s}{i}", s)
        for s in ("train", "val")
        for i in range(9)
        for k in range(3)
    ]
    _write_csv(folder / "split.csv", ["path", "label", "group", "split"], rows)
    _write_evaluation(folder, probabilities, labels, groups, rows)
    write_json(folder / "selection.json", selection([0.9, 0.02, 0.7, 0.4, 0.001, 0.8]))
    _write_logs(folder, rng)
    return folder


def selection(p: list[float], selected: tuple[int, ...] = (1, 4)) -> dict[str, Any]:
    """A `selection.json` with these p."""
    blocks = [
        {"index": i, "name": f"down{i}", "n": 64, "D": 0.1, "p": v, "p_lilliefors": v / 2, "rank": i + 1}
        for i, v in enumerate(p)
    ]
    head = {"reading": "channel_mean", "timestep": 100, "images": 256, "alpha": 0.05, "rule": "p < alpha"}
    return head | {"selected": list(selected), "blocks": blocks}


def _write_evaluation(
    folder: Path, probabilities: np.ndarray, labels: np.ndarray, groups: list[str], rows: Sequence[tuple[str, ...]]
) -> None:
    result = evaluate_predictions(probabilities, labels, groups, CLASSES, bootstrap=200)
    guesses = {"majority": np.tile([0.2, 0.3, 0.5], (84, 1)), "statistics": 0.5 * probabilities + 0.5 / 3}
    floors = {name: evaluate_predictions(p, labels, groups, CLASSES, bootstrap=200) for name, p in guesses.items()}
    part = evaluate_predictions(*without_classes(probabilities, labels, groups, CLASSES, CLASSES[:1]), bootstrap=200)
    extra = {"floors": floors, "without": {"benign": {"metrics": part, "floors": {}}}, "test_evaluations": 2}
    write_json(folder / "evaluation" / "metrics.json", {"split": "test"} | result | extra)
    table = [
        (row[0], row[1], CLASSES[p.argmax()], f"{p.max():.6f}", *(f"{v:.6f}" for v in p))
        for row, p in zip(rows, probabilities, strict=False)
    ]
    header = ["path", "label", "predicted", "confidence", *(f"p_{name}" for name in CLASSES)]
    _write_csv(folder / "evaluation" / "predictions.csv", header, table)


def _write_logs(folder: Path, rng: np.random.Generator) -> None:
    falling = 1 / np.arange(1, 701) ** 0.4
    rows: list[dict[str, Any]] = [
        {
            "step": i + 1, "epoch": i / 40, "seconds": i * 0.3, "loss": v + 0.05 * rng.random(), "diffusion": v,
            "contrastive": v / 9, "active_share": min(1.0, v), "lr": 1e-3,
        }
        for i, v in enumerate(falling)
    ]  # fmt: skip
    rows.append({"step": 700, "event": "samples", "file": "samples/step-00000700.png"})
    _write_lines(folder / "diffusion" / "log.jsonl", rows)
    parts = ("loss", "cross_entropy", "cycle", "consistency")
    rows = [{"step": i + 1, "epoch": i / 20, "seconds": i} | dict.fromkeys(parts, v) for i, v in enumerate(falling)]
    rows += [
        {"step": s, "event": "validation", "macro_f1": 0.5 + s / 2000, "accuracy": 0.6, "loss": 0.5}
        for s in range(50, 701, 50)
    ]
    _write_lines(folder / "classifier" / "log.jsonl", rows)
    for step in (90, 700):
        path = folder / "diffusion" / "samples" / f"step-{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(grey_png(rng.integers(0, 255, (48, 128), dtype=np.uint8), str(step)))


def grey_png(pixels: np.ndarray, note: str) -> bytes:
    """An 8-bit grey PNG that carries a note, so that two grids can be told apart."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = pixels.shape
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    text = chunk(b"tEXt", b"note\0" + note.encode())
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + text + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )


def _write_csv(path: Path, header: list[str], rows: Sequence[tuple[str, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
