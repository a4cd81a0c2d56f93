"""Synthetic images of a run as files: a folder of PNGs per class, and a grid to look at."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcube.diffusion.train import Diffusion, load_diffusion
from dcube.errors import InputError
from dcube.files import atomic_write, read_json, write_json
from dcube.inputs import weights_digest
from dcube.progress import progress
from dcube.runs import Run
from dcube.training.runtime import pick_device

CHUNK = 32  # images per forward
COLUMNS = 8  # of the grid
RECORD, GRID = "samples.json", "grid.png"
UNCONDITIONAL = "images"  # name of the folder where there are no classes


def write_samples(
    run: Run, out: Path, n: int, class_name: str | None = None, seed: int = 0, device: str | None = None
) -> Path:
    """Draw `n` images of a class (None: of every class) with the EMA weights of step 1 into `out`.

    Leaves out/CLASS/00000.png ..., grid.png (a row per class; of one class, as many rows as it fills, of 64 images at
    most) and samples.json, which says what they were drawn with. Image i depends on (seed, i) alone, so that a
    repeated command goes on where it ended, and a larger `n` adds images. Raises InputError for an unknown class,
    where step 1 has left no weights yet, and where `out` holds anything else.
    """
    weights = run.diffusion / "model.safetensors"
    if not weights.is_file():
        raise InputError(f"{weights} is not there yet; `dcube diffuse {run.path}` makes it.")
    diffusion = load_diffusion(weights, pick_device(device or run.settings().runtime.device))
    labels = _labels(diffusion, class_name)
    folders = _folders(diffusion.classes or [UNCONDITIONAL])
    _claim(out, {"weights": weights_digest(weights), "seed": seed, "classes": folders})
    with progress("samples", n * len(labels)) as advance:
        for done, label in enumerate(labels):
            folder = out / list(folders.values())[label]
            for first in range(0, n, CHUNK):
                count = min(CHUNK, n - first)
                _draw(diffusion, label, first, count, seed, folder)
                advance(done * n + first + count, "")
    _write_grid(out / GRID, [out / list(folders.values())[label] for label in labels], n)
    return out / GRID


def _labels(diffusion: Diffusion, class_name: str | None) -> list[int]:
    """Labels to draw; without classes, 0 is the null label."""
    if class_name is None:
        return list(range(max(1, len(diffusion.classes))))
    if class_name not in diffusion.classes:
        known = f"it knows {', '.join(diffusion.classes)}" if diffusion.classes else "it was trained without labels"
        raise InputError(f"There is no class '{class_name}' in this run; {known}.")
    return [diffusion.classes.index(class_name)]


def _folders(classes: list[str]) -> dict[str, str]:
    """A folder name for each class: its own name, without what a file system may not like."""
    plain = [re.sub(r"[^\w .+=-]", "_", name).strip(". ") or "_" for name in classes]
    return {
        name: short if plain.count(short) == 1 else f"{short}-{i}"
        for i, (name, short) in enumerate(zip(classes, plain, strict=True))
    }


def _claim(out: Path, record: dict[str, Any]) -> None:
    """Write down what is drawn; InputError where the folder holds other samples, or something else."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; samples need a folder.")
    if (out / RECORD).is_file():
        if read_json(out / RECORD) != record:
            raise InputError(f"{out} holds samples of another model or seed; give a new or empty folder as --out.")
        return
    if out.is_dir() and (other := sorted(path.name for path in out.iterdir() if path.name[0] != ".")):
        raise InputError(f"{out} holds other files ({', '.join(other[:3])}); give a new or empty folder as --out.")
    write_json(out / RECORD, record)


def _draw(diffusion: Diffusion, label: int, first: int, count: int, seed: int, folder: Path) -> None:
    """Images first .. first + count - 1, where they are not there yet."""
    paths = [folder / f"{i:05d}.png" for i in range(first, first + count)]
    if all(path.is_file() for path in paths):
        return
    images = diffusion.sample(torch.full((count,), label), seed, first=first)
    for path, image in zip(paths, images, strict=True):
        save(path, _pixels(image.permute(1, 2, 0).numpy()))


def _pixels(image: np.ndarray) -> np.ndarray:
    """[H, W, C] in [0, 1] -> uint8 [H, W] or [H, W, 3]."""
    pixels = (image * 255).round().astype(np.uint8)
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def save(path: Path, pixels: np.ndarray) -> None:
    """uint8 [H, W] or [H, W, 3] as a PNG file, complete or absent."""
    from PIL import Image

    atomic_write(path, lambda temporary: Image.fromarray(pixels).save(temporary))


def _write_grid(path: Path, folders: list[Path], n: int) -> None:
    from PIL import Image

    shown = min(n, COLUMNS * (COLUMNS if len(folders) == 1 else 1))
    rows = []
    for folder in folders:
        images = [np.asarray(Image.open(folder / f"{i:05d}.png")) for i in range(shown)]
        columns = min(COLUMNS, shown)
        images += [np.zeros_like(images[0])] * (-shown % columns)
        rows += [np.concatenate(images[i : i + columns], axis=1) for i in range(0, len(images), columns)]
    save(path, np.concatenate(rows))
