"""The whole command line on data and models so small that a fit takes seconds."""

import csv
import json
import multiprocessing
import os
import re
import signal
import struct
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from typer.testing import CliRunner

from dcube.cli import app
from dcube.training.state import checkpoints

PHANTOM = "phantom:patients=12,slices=2,size=32"
CLASSES = ("benign", "malignant", "normal")
OPTIMIZER = {"lr": 1e-3, "batch_size": 8, "steps": 6, "ema_decay": 0.9, "dtype": "fp32"}
RECIPE = {
    "data": {"size": 32},
    "diffusion": {
        "image_size": 16, "timesteps": 20, "sample_steps": 2, "sample_every": 2,
        "unet": {"widths": [8, 16], "groups": 4}, "optimizer": OPTIMIZER,
    },
    "features": {"timestep": 10, "timesteps": [2, 9], "eval_timesteps": [1, 5]},
    "classifier": {
        "cnn": "test_resnet.r160_in1k", "cnn_weights": "none", "cnn_size": 32, "grid": 4, "width": 8,
        "cycle_fraction": 0.5, "optimizer": OPTIMIZER,
    },
    "evaluation": {"bootstrap": 200},
    "runtime": {"device": "cpu", "threads": 1, "checkpoint_seconds": 0},
}  # fmt: skip


def write_recipe(path: Path) -> Path:
    """The recipe of these tests as a YAML file."""
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def cli(*arguments: object) -> Any:
    """`dcube ARGUMENTS` in this process: exit_code, stdout, stderr."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: object) -> Any:
    """The same, which must succeed."""
    result = cli(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: object) -> str:
    """The same, which must fail for bad input: exit status 2, one sentence on stderr and nothing like a traceback."""
    result = cli(*arguments)
    assert result.exit_code == 2, result.output
    *progress, sentence = result.stderr.splitlines()
    assert sentence.startswith("Error: ") and sentence[-1] in ".?", result.stderr
    assert all(re.match(r"[a-z ]+: \d+/\d+, ", line) for line in progress), result.stderr
    assert "Traceback" not in result.output
    assert "[Errno" not in sentence
    return sentence


def child(arguments: list[str]) -> None:
    """The command line as a process of its own has it; for multiprocessing."""
    sys.argv = ["dcube", *arguments]
    app(arguments)


def killed_at(step: int, saved: Path, *arguments: object) -> bool:
    """`dcube ARGUMENTS` as a process, killed when `saved` holds a checkpoint of that step; whether it still ran."""
    process = multiprocessing.get_context("fork").Process(target=child, args=([str(one) for one in arguments],))
    process.start()
    while process.is_alive() and not any(int(path.name[5:]) >= step for path in checkpoints(saved)):
        time.sleep(0.002)
    alive = process.is_alive()
    if process.pid and alive:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return alive


def write_image(path: Path, seed: int, level: int = 0, size: int = 24) -> Path:
    """A PNG of noise around a brightness."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 100, (size, size)) + level
    Image.fromarray(noise.astype(np.uint8)).save(path)
    return path


def write_bomb(path: Path) -> Path:
    """A sound PNG of 20,000 x 20,000 black pixels in some ten thousand bytes."""
    side, packer = 20_000, zlib.compressobj()
    row = bytes(1 + side // 8)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


def write_scans(root: Path, per_class: int = 8, classes: tuple[str, ...] = CLASSES[:2], seed: int = 0) -> Path:
    """Class folders of PNGs, brighter by class."""
    for number, name in enumerate(classes):
        for i in range(per_class):
            write_image(root / name / f"{i:03}.png", 10_000 * seed + 1000 * number + i, 70 * number)
    return root


def write_manifest(root: Path, per_class: int = 8, column: str = "label") -> Path:
    """`write_scans` with a manifest: two images per group, the last two of each class for the test."""
    write_scans(root, per_class)
    rows = [f"path,{column},patient_id,split"]
    for name in CLASSES[:2]:
        for i in range(per_class):
            split = "test" if i >= per_class - 2 else "train"
            rows.append(f"{name}/{i:03}.png,{name},{name}-{i // 2},{split}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root


def table(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(file, newline="") as handle:
        return list(csv.DictReader(handle))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def metrics(run: Path, name: str = "metrics") -> dict[str, Any]:
    """A file of RUN/evaluation."""
    found: dict[str, Any] = json.loads((run / "evaluation" / f"{name}.json").read_text())
    return found
