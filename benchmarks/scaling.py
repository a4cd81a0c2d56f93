"""`python -m benchmarks.scaling`: how time and memory grow with images, pixels, classes and selected blocks."""

import argparse
import contextlib
import dataclasses
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import predict, step1, step2
from benchmarks.machine import describe
from benchmarks.sizes import SIZES, Size
from benchmarks.timing import PeakMemory, seconds, summary
from benchmarks.world import Training, World
from dcube.features.frozen import FeatureCache
from dcube.files import write_json
from dcube.training.runtime import pick_device

AXES = ("images", "pixels", "classes", "blocks")
FIGURES = ("step1_s", "step2_s", "extract_s", "cache_mb", "predict_s", "step1_mib", "step2_mib", "predict_mib")
COLUMNS = ("axis", "value", *FIGURES)


def variants(size: Size) -> Iterator[tuple[str, int, Size, int]]:
    """(axis, value, the size with that value, classes): three values per axis, the others as the size has them."""
    base, pixels = size.images, size.experiment().diffusion.image_size
    for images in (base, 4 * base, 16 * base):
        yield "images", images, dataclasses.replace(size, images=images, predicted=images), 3
    for side in (pixels // 2, pixels, 2 * pixels):
        changed = (*size.overrides, f"diffusion.image_size={side}")
        cnn = (size.network[0], max(32, size.network[1] * side // pixels))
        yield "pixels", side, dataclasses.replace(size, overrides=changed, network=cnn, predicted=base), 3
    for classes in (2, 8, 32):
        yield "classes", classes, dataclasses.replace(size, predicted=base), classes
    for blocks in (1, 2, len(size.blocks) * 2):
        chosen = tuple(range(min(size.blocks) - 1, min(size.blocks) - 1 + blocks))
        yield "blocks", blocks, dataclasses.replace(size, blocks=chosen, predicted=base), 3


def measure(size: Size, classes: int, repeats: int, device: torch.device) -> dict[str, float | None]:
    """A step of either training (with cached features), extraction and disk of the cache for all images, prediction
    of as many files as `size.predicted`; medians, and the growth of the peak memory of each.
    """
    with tempfile.TemporaryDirectory(prefix="dcube-scaling-") as folder:
        world = World(size, device, Path(folder), classes=classes)
        rows, timesteps = world.data.indices("train"), world.experiment.features.timesteps
        assert timesteps is not None
        extract = seconds(step2.extraction(world, len(rows)), device)
        optimizers = world.experiment.diffusion.optimizer, world.experiment.classifier.optimizer
        made: dict[str, Callable[[], Callable[[], Any]]] = {
            "step1": lambda: Training(step1.task(world), optimizers[0], world),
            "step2": lambda: Training(step2.task(world, world.experiment), optimizers[1], world),
            "predict": lambda: predict.ours(size.predicted, world)[0][0],
        }
        predict.paths_of(world, size.predicted)
        figures: dict[str, float | None] = {"extract_s": extract}
        figures["cache_mb"] = 1000 * FeatureCache.gigabytes(world.frozen, len(rows), len(timesteps), True)
        for name, make in made.items():
            with PeakMemory(device) as peak:
                call = make()
                call()
            steps = getattr(call, "steps", 1)  # of a training in one call
            figures[f"{name}_s"] = summary([seconds(call, device) / steps for _ in range(repeats)])[0]
            figures[f"{name}_mib"] = peak.mib
        return figures


def report(rows: list[dict[str, Any]]) -> str:
    """The table, columns aligned."""
    lines = [COLUMNS, *(cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    return (row["axis"], str(row["value"]), *("-" if row[f] is None else f"{row[f]:.3g}" for f in FIGURES))


def main() -> None:
    """Measure every axis and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--size", choices=("small", "paper", "tiny"), default="small", metavar="small|paper")
    parser.add_argument("--only", choices=AXES, help="one of them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed calls (default 3)")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or mps (default cpu)")
    options = parser.parse_args()
    device, rows = pick_device(options.device), []
    for axis, value, size, classes in variants(SIZES[options.size]):
        if options.only in (None, axis):
            with contextlib.redirect_stderr(io.StringIO()):  # the program's progress
                figures = measure(size, classes, options.repeats, device)
            rows.append({"axis": axis, "value": value, "size": options.size, **figures})
            print(f"{axis} {value}", file=sys.stderr, flush=True)
    print(report(rows))
    if options.json:
        write_json(options.json, {"machine": describe(device), "rows": rows})


if __name__ == "__main__":
    main()
