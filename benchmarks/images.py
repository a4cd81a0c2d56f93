"""Made-up grey images with classes, as files or as a store: what they show is without importance for speed."""

from pathlib import Path

import numpy as np
from PIL import Image

from dcube.config import DataConfig
from dcube.data.dataset import ImageData
from dcube.data.records import ImageSet, Record
from dcube.data.store import build_store

CLASSES = ("effusion", "normal", "opacity")


def texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Smooth shapes under fine noise, [side, side] uint8: compresses about as a radiograph does."""
    shapes = rng.random((max(2, side // 64), max(2, side // 64))).astype(np.float32)
    smooth = np.asarray(Image.fromarray(shapes).resize((side, side), Image.Resampling.BICUBIC))
    noisy = 200 * smooth + 20 + rng.normal(0, 4, (side, side))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def labels_of(count: int, classes: int = 3, rarest: float = 0.2) -> list[str]:
    """Class names for `count` images: the share `rarest` is of the last class, at least 2 of each."""
    last = max(2, round(rarest * count))
    names = [CLASSES[i] if i < len(CLASSES) else f"class {i}" for i in range(classes)]
    return [names[i % (classes - 1)] for i in range(count - last)] + [names[-1]] * last


def write_files(folder: Path, count: int, side: int, rarest: float = 0.05) -> tuple[list[Path], list[str]]:
    """PNG files in one folder per class, and their classes."""
    rng, paths, labels = np.random.default_rng(0), [], labels_of(count, rarest=rarest)
    for i, label in enumerate(labels):
        paths.append(folder / label / f"{i:04d}.png")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(texture(rng, side)).save(paths[-1])
    return paths, labels


def store_of(folder: Path, count: int, config: DataConfig, classes: int = 3) -> ImageData:
    """A store of `count` images, all of them for training."""
    rng = np.random.default_rng(1)
    pixels = {f"{i:05d}": texture(rng, config.size) for i in range(count)}
    names = zip(pixels, labels_of(count, classes), strict=True)
    records = tuple(Record(path, label, path) for path, label in names)
    images = ImageSet(f"textures {count} {classes} {config.size}", None, records, lambda r: pixels[r.path])
    return ImageData(build_store(images, config, folder), np.full(count, "train"))
